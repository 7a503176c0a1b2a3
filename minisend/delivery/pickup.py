"""The drop directory, looked at by who flushes or serves the queue; what came of it is logged.

What is there and how it comes in is ``spool.ingest``'s.  Nobody can wake us from there: who serves looks at the time of the
directory now and then.

Limits: the numbers of [limits] count what is in the queue at the beginning of each look, for which every message is
opened; without them, as is the default, none is.
"""

import posix
import time

from minisend.errors import SpoolError
from minisend.log import NO_MESSAGE, Log, line
from minisend.spool.place import is_own_drop
from minisend.spool.store import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minisend.config.sections import Config
    from minisend.spool.ingest import Result
    from minisend.spool.quota import Quotas

# Seconds between two looks at the time of the directory; between two at what is in it, when something could not be taken
# the last time, and when nothing is known to be there.
_GLANCE = 10.0
_AGAIN = 60.0
_LOOK = 300.0


class Pickup:
    """For the drop directory of a configuration, if it has one and it is ours; without ``ingest`` for none.

    ``quotas``  of the service at the socket, which counts for the same limits
    """

    def __init__(
        self, config: "Config", log: Log, *, ingest: bool = True, quotas: "Quotas | None" = None
    ) -> None:
        self._quotas = quotas
        self._config = config
        self._log = log
        drop = config.served.drop
        self._drop = drop if ingest and drop and is_own_drop(drop) else ""
        self._next = 0.0
        self._changed = -1

    @property
    def wait(self) -> float:
        """Seconds until the next ``look`` makes sense."""
        return _GLANCE if self._drop else _LOOK

    def look(self) -> bool:
        """Bring in what may have come since the last time.  True when something did."""
        if not self._drop:
            return False
        try:
            changed = posix.stat(f"{self._drop}/new").st_mtime_ns
        except OSError:
            changed = -1
        now = time.monotonic()
        if changed == self._changed and now < self._next:
            return False
        result = self.run()
        # Nobody says when what is left can be taken.  What somebody has in hand is soon free, what has no room later.
        if result is None or result.is_in_hand:
            self._next = now + _GLANCE
        else:
            self._next = now + (_AGAIN if result.left else _LOOK)
        # As of before: what came during the run may have been missed by it.
        self._changed = changed
        return result is not None and bool(result.ingested)

    def run(self) -> "Result | None":
        """Bring in what is there now, whatever the time of the directory says; None when that could not be tried.

        Trouble with the drop directory is logged, and keeps nobody from delivering what is in the queue.
        """
        if not self._drop:
            return None
        try:
            result = self._ingest()
        except SpoolError as exc:
            self._log.error(line(NO_MESSAGE, event="drop", reason=str(exc)))
            return None
        self._tell(result)
        return result

    def _ingest(self) -> "Result":
        # Not for who has no drop directory.
        from minisend.spool.enqueue import Floor
        from minisend.spool.ingest import Ingest
        from minisend.spool.limits import Usage
        from minisend.spool.quota import count

        spool, limits = self._config.spool, self._config.limits
        usage: Usage | Quotas | None = None
        if self._quotas is not None:
            usage = self._quotas if self._quotas.is_limited else None
        elif limits.messages_per_uid or limits.octets_per_uid or limits.rate_per_uid:
            usage = Usage(
                messages=limits.messages_per_uid,
                octets=limits.octets_per_uid,
                rate=limits.rate_per_uid,
                clock=time.time,
            )
            with Queue(spool.path, create=True) as queue:
                count(queue, usage)
        return Ingest(
            spool.path,
            self._drop,
            limit=spool.max_message_size,
            usage=usage,
            keep_rates=self._quotas is None,
            floor=Floor(f"{spool.path}/queue", spool.min_free, spool.min_free_inodes),
        ).run()

    def _tell(self, result: "Result") -> None:
        for queue_id, uid, octets in result.ingested:
            self._log.info(line(queue_id, event="ingested", claimed_uid=uid, size=octets))
        for queue_id in result.duplicates:
            self._log.info(
                line(queue_id, event="duplicate", reason="its copy in the drop is removed")
            )
        for why in result.warnings:
            counted = result.left.get(why, 0) + result.refused.get(why, 0)
            detail = {"detail": result.because[why]} if why in result.because else {}
            self._log.warning(
                line(
                    NO_MESSAGE,
                    event="drop",
                    directory=f"{self._drop}/new",
                    count=counted,
                    reason=why,
                    **detail,
                )
            )
