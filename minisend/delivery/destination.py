"""What is known of a next hop that cannot be reached: one status file per destination, beside the queue.

A destination that is down is probed; the messages that wait for it are not attempted one by one.  They get the time of
the next probe for their own, which costs each a rename, and this file says why for all of them.

    <spool>/state/destinations/=<next hop, quoted>     one JSON object, see ``Down``
    <spool>/state/destinations/!<next hop, quoted>     what the administrator was told of it, or of one of its hosts, see
                                                       ``delivery.notice``

The file is advice: written without fsync, believed only while it can be read, and removed when the destination
answers.  Without it a message is attempted as if nothing were known.

    failure                                 back-off                      next probe
    the site: refused, silent, no answer    doubles, retry_min to         as for a message (``delivery.retry``)
    from the DNS, "not now" in greeting     retry_max
    this machine: no network; a setting     stays                         in retry_min
    that does not work, no access token

What a setting or a token keeps from being tried counts all the same: those who wait for it do not wait for ever.

Source: DESIGN section 4; Postfix's qmgr(8) ("dead" destinations).
"""

import posix

from minisend.delivery import retry
from minisend.envelope import DELAYED, Outcome
from minisend.spool.place import state
from minisend.value import Value

# In the spool's directory of state, a file for each.
_DIRECTORY = "destinations"
# What is not to be quoted in a file name; a name that begins with a dot is none of ours.
_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~[]:,@+"
_LONGEST_NAME = 200
# Octets of a status file; replies are cut before they come here.
_LONGEST = 64 * 1024
# As in the names of messages: eleven digits, the year 5138.
_LAST_TIME = 10**11 - 1
#: Seconds after a failure in which a process that goes on working probes for nobody.
PROBE_PAUSE = 60.0


class Down(Value):
    """A destination that could not be reached.  Times in seconds since the epoch.

    ``since``     the first failure
    ``failures``  how far the back-off is; those of this machine do not advance it
    ``counted``   times of the last ``retry.LEAST_ATTEMPTS`` that counted, oldest first
    ``until``     the next probe: whole seconds, as in the names of the messages that wait for it
    ``status``, ``reason``, ``remote_mta``, ``diagnostic``, ``command``, ``at``  of the last one, as in ``Outcome``
    """

    __slots__ = (
        *("since", "failures", "counted", "until"),
        *("status", "reason", "remote_mta", "diagnostic", "command", "at"),
    )

    def __init__(
        self,
        since: float,
        failures: int,
        counted: tuple[float, ...],
        until: int,
        status: str,
        reason: str,
        remote_mta: str,
        diagnostic: str,
        command: str,
        at: float,
    ) -> None:
        self.since = since
        self.failures = failures
        self.counted = counted
        self.until = until
        self.status = status
        self.reason = reason
        self.remote_mta = remote_mta
        self.diagnostic = diagnostic
        self.command = command
        self.at = at

    def outcome(self, recipient: int) -> Outcome:
        """What a recipient who waits for this destination would have heard."""
        return Outcome(
            recipient,
            DELAYED,
            self.status,
            self.reason,
            remote_mta=self.remote_mta,
            diagnostic=self.diagnostic,
            command=self.command,
            at=self.at,
        )

    def attempts_since(self, arrived: float) -> int:
        """How often it was tried in vain for a message that arrived then; counted no further than it matters."""
        return sum(at >= arrived for at in self.counted)


def after_failure(
    known: Down | None,
    outcome: Outcome,
    *,
    local: bool,
    settings: bool = False,
    name: str,
    retry_min: float,
    retry_max: float,
) -> Down:
    """What is known after one more failure.

    ``local``     a fault of this machine
    ``settings``  of what the administrator has set, or has to renew: looked at again soon
    A probe before its time - for a new message, or because somebody asked for it - does not advance the back-off.
    """
    now = outcome.at
    failures = known.failures if known else 0
    counted = known.counted if known else ()
    if not local:
        counted = (*counted, now)[-retry.LEAST_ATTEMPTS :]
    if local or settings:
        until = now + retry_min
    elif known is not None and now < known.until <= now + retry_max and known.failures:
        until = known.until
    else:
        failures += 1
        until = retry.wait_after(
            failures,
            now,
            retry_min=retry_min,
            retry_max=retry_max,
            jitter=retry.jitter(name, failures),
        )
    return Down(
        since=known.since if known else now,
        failures=failures,
        counted=counted,
        until=int(until),
        status=outcome.status,
        reason=outcome.reason,
        remote_mta=outcome.remote_mta,
        diagnostic=outcome.diagnostic,
        command=outcome.command,
        at=now,
    )


class Destinations:
    """The status files of one spool.  Never raises for what it reads or cannot write."""

    def __init__(self, spool: str) -> None:
        self._spool = spool
        self._directory = state(spool, _DIRECTORY)

    def get(self, name: str) -> Down | None:
        """What is known of the next hop of this name (``NextHop.name``), None when nothing is wrong with it."""
        try:
            with open(self._path(name), "rb") as file:
                return _parse(file.read(_LONGEST))
        except OSError:
            return None

    def all(self) -> list[tuple[str, Down]]:
        """Name and status of each next hop that something is known of, by name."""
        import json

        found = []
        try:
            for file_name in posix.listdir(self._directory):
                with open(f"{self._directory}/{file_name}", "rb") as file:
                    octets = file.read(_LONGEST)
                down = _parse(octets)
                if down is not None and file_name.startswith("="):
                    found.append((str(json.loads(octets).get("destination", "")), down))
        except OSError:
            pass
        return sorted(found, key=lambda pair: pair[0])

    def put(self, name: str, down: Down) -> None:
        """Keep it for other processes and the next run."""
        import json

        path = self._path(name)
        # Of this process alone, whose threads do not write about one destination at the same time.
        draft = f"{self._directory}/.{posix.getpid()}.{path[len(self._directory) + 1 :]}"
        octets = json.dumps({"destination": name, **_values(down)}).encode("ascii")
        try:
            state(self._spool, _DIRECTORY, make=True)
            fd = posix.open(
                draft,
                posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_NOFOLLOW | posix.O_CLOEXEC,
                0o600,
            )
            try:
                posix.write(fd, octets)
            finally:
                posix.close(fd)
            posix.rename(draft, path)
        except OSError:
            pass  # the queue's own writes tell of a disk that takes nothing

    def forget(self, name: str) -> None:
        """It answers."""
        _remove(self._path(name))

    def told(self, name: str) -> str:
        """The path of the file that keeps what the administrator was told of it, in a directory that is there if it can be."""
        try:
            state(self._spool, _DIRECTORY, make=True)
        except OSError:
            pass  # whoever opens the file finds that out
        return self._path(name, "!")

    def forget_told(self, name: str) -> None:
        """It has let us in: when it does so no more, that is to be told again."""
        _remove(self._path(name, "!"))

    def sweep(self, before: float) -> None:
        """Remove what no probe has touched since: nobody waits for it any more."""
        try:
            with posix.scandir(self._directory) as found:
                for each in found:
                    if each.stat(follow_symlinks=False).st_mtime < before:
                        posix.unlink(each.path)
        except OSError:
            pass

    def _path(self, name: str, mark: str = "=") -> str:
        quoted = _quoted(name)
        if len(quoted) > _LONGEST_NAME:
            from hashlib import blake2b

            quoted = blake2b(name.encode(), digest_size=16).hexdigest()
        return f"{self._directory}/{mark}{quoted}"


def _remove(path: str) -> None:
    try:
        posix.unlink(path)
    except OSError:
        pass


def _values(down: Down) -> dict[str, object]:
    return {name: getattr(down, name) for name in Down.__slots__}


def _quoted(name: str) -> str:
    """As a URL has it, in octets of UTF-8."""
    return "".join(chr(octet) if octet in _PLAIN else f"%{octet:02X}" for octet in name.encode())


def _parse(octets: bytes) -> Down | None:
    import json
    import re

    try:
        values = json.loads(octets)
        values["counted"] = tuple(map(float, values["counted"]))
        down = Down(**{name: values[name] for name in Down.__slots__})
        texts = (down.status, down.reason, down.remote_mta, down.diagnostic, down.command)
        times = (down.since, down.until, down.at, *down.counted)
        believed = (
            all(isinstance(text, str) for text in texts)
            and re.fullmatch(r"4\.[0-9]{1,3}\.[0-9]{1,3}", down.status)
            and all(type(number) in (int, float) and 0 <= number <= _LAST_TIME for number in times)
            and type(down.failures) is type(down.until) is int
            and down.failures >= 0
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return down if believed else None
