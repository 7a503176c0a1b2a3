"""The minisend command: which part of the program answers it, and how the answer is summed up.

Knows what may be asked, not how anything is done: each subcommand's module is imported when it is used.  What the
arguments mean is ``admin.arguments``'s; a plain ``flush``, which runs after each submission and from timers, is
understood without it, for argparse takes 20 ms.
"""

import posix
import time
from _signal import SIG_DFL, SIG_IGN, SIGINT, SIGTERM, getsignal, signal  # type: ignore[import-not-found]

from minisend.admin.owner import become_owner
from minisend.admin.terminal import write
from minisend.config.load import load
from minisend.config.sections import Config
from minisend.errors import ConfigError, UsageError
from minisend.spool.place import is_own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from minisend.admin import filters
    from minisend.delivery.attempt import Summary
    from minisend.delivery.flush import Selection, Stop


class _Flush:
    """What argparse makes of a ``flush`` whose arguments are words of ``_PLAIN`` and nothing else."""

    command = "flush"
    all = quiet = verbose = json = background = False
    ids: "tuple[str, ...]" = ()
    recipient = None

    def __init__(self, words: "list[str]") -> None:
        for word in words:
            setattr(self, word.lstrip("-"), True)


_PLAIN = ("--all", "--quiet", "--background")


def main(arguments: list[str], config_file: str | None) -> int:
    """Run ``minisend ARGUMENTS``; ``config_file`` is the value of a leading -C.  Returns the exit code.

    Raises MinisendError, and SystemExit for --help and --version.
    """
    if arguments[:1] == ["flush"] and all(word in _PLAIN for word in arguments[1:]):
        return _flush(_Flush(arguments[1:]), config_file)
    from minisend.admin.arguments import parser

    asked = parser().parse_args(arguments)
    if asked.command is None:
        raise UsageError("expected a command (got nothing): see minisend --help")
    try:
        return _COMMANDS[asked.command](asked, config_file)
    except BrokenPipeError:
        return 0  # "minisend queue | head": the reader has all it wants


def _load(config_file: str | None) -> Config:
    return load(config_file, posix.environ, posix.getuid(), posix.geteuid())


def _load_as_owner(config_file: str | None) -> Config:
    """For what touches the queue: root becomes the account whose it is."""
    config = _load(config_file)
    become_owner(config.spool.path)
    return config


def _for_owner(config: Config, command: str) -> Config:
    """Raises PermissionDenied where the queue is another account's, for what the service at the socket does not do."""
    if config.submission.socket and not is_own(config.spool.path):
        from minisend.admin.served import not_allowed

        raise not_allowed(command)
    return config


def _queue(asked: "Namespace", config_file: str | None) -> int:
    from minisend.admin.queue import show_queue

    config = _load_as_owner(config_file)
    chosen = _filter(asked, config)
    if asked.ids and chosen.given:
        raise UsageError("queue: name messages, or use filters, not both")
    return show_queue(config, chosen, tuple(asked.ids), as_json=asked.json)


def _show(asked: "Namespace", config_file: str | None) -> int:
    from minisend.admin.show import show

    if asked.raw and len(asked.ids) > 1:
        raise UsageError("show --raw: one message at a time")
    return show(
        _for_owner(_load_as_owner(config_file), "show"),
        tuple(asked.ids),
        headers=asked.headers,
        raw=asked.raw,
        as_json=asked.json,
    )


def _act(asked: "Namespace", config_file: str | None) -> int:
    config = _load_as_owner(config_file)
    chosen = _filter(asked, config)
    if asked.command == "rm" and not is_own(config.spool.path) and config.submission.socket:
        from minisend.admin.served import remove

        return remove(config.submission.socket, chosen, tuple(asked.ids), everything=asked.all)
    from minisend.admin.actions import act

    return act(
        _for_owner(config, asked.command),
        asked.command,
        chosen,
        tuple(asked.ids),
        everything=asked.all,
        ask=asked.command == "rm" and not asked.yes and posix.isatty(0),
    )


def _filter(asked: "Namespace", config: Config) -> "filters.Filter":
    from minisend.admin import filters

    states = filters.STATES_OF[asked.command]
    return filters.Filter(asked, states, time.time(), lambda: config.mail_domain)


def _check(asked: "Namespace", config_file: str | None) -> int:
    from minisend.admin.check import OVERDUE, check

    overdue = OVERDUE if asked.overdue is None else asked.overdue
    return check(_for_owner(_load_as_owner(config_file), "check"), overdue, as_json=asked.json)


def _demo(asked: "Namespace", config_file: str | None) -> int:
    from minisend.admin.demo import demo

    return demo(asked.recipient)


def _login(asked: "Namespace", config_file: str | None) -> int:
    from minisend.admin.login import login

    return login(_load_as_owner(config_file), asked.name, asked.method)


def _setup(asked: "Namespace", config_file: str | None) -> int:
    from minisend.admin.setup import setup_own, setup_system

    if asked.system:
        if config_file is not None:
            raise UsageError("setup --system: takes no -C: its places are fixed")
        return setup_system(asked.root or "", dry_run=asked.dry_run)
    if asked.root is not None:
        raise UsageError("setup: --root goes with --system")
    return setup_own(_load(config_file), dry_run=asked.dry_run)


def _doctor(asked: "Namespace", config_file: str | None) -> int:
    from minisend.admin.doctor.report import doctor

    return doctor(config_file, as_json=asked.json)


def _story(asked: "Namespace", config_file: str | None) -> int:
    from minisend.admin.story import show_story

    return show_story(_load(config_file), asked.id, as_json=asked.json)


def _flush(asked: "Namespace | _Flush", config_file: str | None) -> int:
    if asked.ids and (asked.all or asked.recipient):
        raise UsageError("flush: name messages, or use --all or --recipient, not both")
    if asked.json and asked.quiet:
        raise UsageError("flush: --json or --quiet, not both")
    if asked.recipient == "":
        raise UsageError("flush: --recipient: expected a domain (got nothing)")
    if asked.background:
        from minisend.delivery.flush import Stop, background_flush
        from minisend.log import Log

        stop = Stop()
        with _EndingOnSignals(stop):
            return background_flush(
                _load_as_owner(config_file), Log(syslog=True, stderr=False), stop
            )

    from minisend.delivery.flush import Selection, Stop

    selection = Selection(
        everything=asked.all,
        ids=tuple(asked.ids),
        domain=(asked.recipient or "").encode("utf-8", "surrogateescape"),
    )
    return flush_once(
        selection, config_file, quiet=asked.quiet, verbose=asked.verbose, as_json=asked.json
    )


def _run(asked: "Namespace", config_file: str | None) -> int:
    from minisend.admin.serving import run
    from minisend.delivery.flush import Stop
    from minisend.log import service_log

    config = _load(config_file)
    stop = Stop()
    with _EndingOnSignals(stop):
        return run(
            config,
            log=service_log(),
            stop=stop,
            accept=asked.accept,
            deliver=asked.deliver,
            exit_idle=asked.exit_idle,
        )


class _EndingOnSignals:
    """SIGTERM and SIGINT end the transactions that are under way, and then the run; a second one ends at once."""

    def __init__(self, stop: "Stop") -> None:
        self._stop = stop
        self._before = {each: getsignal(each) for each in (SIGTERM, SIGINT)}

    def _ask(self, number: int, frame: object) -> None:
        for each in self._before:
            signal(each, SIG_DFL)
        self._stop.ask()

    def __enter__(self) -> None:
        for each, handler in self._before.items():
            if handler != SIG_IGN:
                signal(each, self._ask)

    def __exit__(self, *exc_info: object) -> None:
        for each, handler in self._before.items():
            signal(each, handler)


def flush_once(
    selection: "Selection",
    config_file: str | None,
    *,
    quiet: bool,
    verbose: bool = False,
    as_json: bool = False,
) -> int:
    """Deliver the selected messages, with a bar on a terminal and a line at the end.  Returns the exit code.

    What keeps a destination from being reached is said on standard error, before that line.
    ``verbose``  the dialogue with each server, there in place of the bar
    ``as_json``  one object in place of the line and of what is said before it
    """
    from minisend.admin.progress import Progress
    from minisend.delivery.flush import Stop, flush
    from minisend.delivery.workers import processes
    from minisend.log import Log

    stop = Stop()
    was_root = posix.geteuid() == 0
    config = _load_as_owner(config_file)
    if was_root and posix.geteuid() != 0:
        _check_credentials(config)
    if config.submission.socket and not is_own(config.spool.path):
        return _flush_served(selection, config.submission.socket, quiet=quiet, as_json=as_json)
    # Quiet stays quiet: what cron is told it mails, which the next run delivers and logs, without end.
    log = Log(syslog=True, stderr=False, fallback=not quiet)
    # Lines on standard error show the progress themselves, and would be written into the bar.
    bar = Progress("flushing", shown=not quiet and not verbose and not log.on_stderr)
    began = time.time()
    with _EndingOnSignals(stop), bar as progress:
        summary = flush(
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
    from minisend.admin.terminal import printable
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
    from minisend.admin.served import flush, not_allowed

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
    answer = flush(socket)
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


_COMMANDS = {
    "flush": _flush,
    "run": _run,
    "queue": _queue,
    "show": _show,
    "rm": _act,
    "hold": _act,
    "release": _act,
    "requeue": _act,
    "check": _check,
    "log": _story,
    "login": _login,
    "setup": _setup,
    "doctor": _doctor,
    "demo": _demo,
}
