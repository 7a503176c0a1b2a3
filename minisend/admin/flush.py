"""minisend flush: one delivery of what is due or was chosen, and what is said of it.

A plain flush runs after each submission and from timers: nothing heavy is loaded before it is needed.
"""

import posix
import time

from minisend.admin.signals import EndingOnSignals
from minisend.admin.terminal import printable, write
from minisend.config.sections import Config
from minisend.errors import ConfigError
from minisend.spool.place import is_own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minisend.delivery.attempt import Summary
    from minisend.delivery.flush import Selection


def flush(
    config: Config,
    selection: "Selection",
    *,
    as_root: bool = False,
    quiet: bool = False,
    verbose: bool = False,
    as_json: bool = False,
) -> int:
    """Deliver the selected messages, with a bar on a terminal and a line at the end.  Returns the exit code.

    What keeps a destination from being reached is said on standard error, before that line.
    ``as_root``  root runs it, which may have become the owner of the queue
    ``verbose``  the dialogue with each server, there in place of the bar
    ``as_json``  one object in place of the line and of what is said before it
    """
    if as_root and posix.geteuid() != 0:
        _check_credentials(config)
    if config.submission.socket and not is_own(config.spool.path):
        return _flush_served(selection, config.submission.socket, quiet=quiet, as_json=as_json)
    from minisend.admin.progress import Progress
    from minisend.delivery import flush as engine
    from minisend.delivery.workers import processes
    from minisend.log import Log

    stop = engine.Stop()
    # Quiet stays quiet: what cron is told it mails, which the next run delivers and logs, without end.
    log = Log(syslog=True, stderr=False, fallback=not quiet)
    # Lines on standard error show the progress themselves, and would be written into the bar.
    bar = Progress("flushing", shown=not quiet and not verbose and not log.on_stderr)
    began = time.time()
    with EndingOnSignals(stop), bar as progress:
        summary = engine.flush(
            config,
            selection,
            log=log,
            progress=progress,
            stop=stop,
            processes=1 if verbose else processes(),
            trace=(lambda text: write(2, text + "\n")) if verbose else None,
        )
    if not quiet:
        try:
            down = _down_since(config.spool.path, began) if summary.deferred else []
            if as_json:
                write(1, _summary_object(summary, down) + "\n")
            else:
                for name, reason in [] if log.on_stderr else down:
                    write(2, f"{name}: {reason}\n")
                write(1, _summary_line(summary, selection, config.spool.path) + "\n")
        except BrokenPipeError:
            pass
    return summary.exit_code


def _check_credentials(config: Config) -> None:
    """Of root's flush in the system's queue: a smarthost that it cannot log in to would only be put off, for the service too.

    Raises ConfigError.
    """
    if b"CREDENTIALS_DIRECTORY" in posix.environ:
        return
    for smarthost in (config.smarthost, *config.smarthosts.values()):
        if smarthost is not None and smarthost.credential:
            name = smarthost.credential
            raise ConfigError(
                f"flush: the credential {name} is given to the service alone: systemctl start minisend-deliver, or "
                f"systemd-run --pipe --wait -p User=minisend -p LoadCredential={name}:/path/to/secret minisend flush --all"
            )


def _down_since(spool: str, since: float) -> list[tuple[str, str]]:
    """The destinations that were tried in vain since then, and why, as they may be shown."""
    from minisend.delivery.destination import Destinations

    return [
        (printable(name), printable(down.reason))
        for name, down in Destinations(spool).all()
        if down.at >= since
    ]


def _flush_served(
    selection: "Selection", socket: str, *, quiet: bool, as_json: bool = False
) -> int:
    """Of a queue that is another account's: the caller's own messages, all of them."""
    from minisend.admin.served import flush as ask
    from minisend.admin.served import not_allowed

    if (
        selection.ids
        or selection.domain
        or selection.id_part
        or selection.sender_part
        or selection.recipient_part
    ):
        raise not_allowed("flush of chosen messages")
    if as_json:
        raise not_allowed("flush --json")
    answer = ask(socket)
    if not quiet:
        write(1, answer + "\n")
    return 0


def _summary_object(summary: "Summary", down: list[tuple[str, str]]) -> str:
    """The same for programs."""
    import json

    return json.dumps(
        {
            "tried": summary.tried,
            "delivered": summary.delivered,
            "waiting": summary.deferred,
            "failed": summary.failed,
            "skipped": summary.skipped,
            "unreadable": summary.broken,
            "stopped": summary.stopped,
            "destinations": [{"destination": name, "reason": reason} for name, reason in down],
        }
    )


def _summary_line(summary: "Summary", selection: "Selection", spool: str) -> str:
    """What the flush came to, in words."""
    others = []
    if summary.skipped:
        others.append(f"{summary.skipped} being delivered by another process")
    if summary.broken:
        others.append(f"{summary.broken} not readable, see the log")
    if summary.stopped:
        others.append("stopped before the end")
    if not summary.tried:
        if others:
            return ", ".join(["nothing delivered", *others])
        return _nothing_tried(selection, spool)
    counts = [
        f"{summary.delivered} delivered",
        f"{summary.deferred} waiting",
        f"{summary.failed} failed",
    ]
    return ", ".join(counts + others)


def _nothing_tried(selection: "Selection", spool: str) -> str:
    """Why nothing was tried: the queue is empty, nothing in it was meant, or all that is in it waits."""
    from minisend.admin.listing import clock, open_queue, places

    queue = open_queue(spool)
    if queue is None:
        return "nothing to deliver: the queue is empty"
    with queue:
        due = sorted(place.due for state in ("new", "cur") for place in places(queue, state))
    if not due:
        return "nothing to deliver: the queue is empty"
    if selection.domain or selection.id_part or selection.sender_part or selection.recipient_part:
        return "nothing to deliver: no message matches"
    now = time.time()
    if due[0] <= now:
        # It came, or its time did, after the flush had looked.
        return f"nothing was due: {len(due)} waiting, the next attempt is due now"
    return f"nothing is due: {len(due)} waiting, the next attempt is at {clock(due[0], now)}"
