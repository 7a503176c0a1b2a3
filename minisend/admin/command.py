"""The minisend command: its arguments, and which part of the program answers them.

Knows what may be asked and how the answer is summed up, not how anything is done: each subcommand's module is
imported when it is used.  Every mistake on the command line is a UsageError (64), one line.
"""

import argparse
import posix
import signal
import time
from contextlib import contextmanager
from typing import NoReturn

from minisend import __version__
from minisend.admin import filters
from minisend.admin.owner import become_owner
from minisend.admin.terminal import printable, write
from minisend.config import Config, load
from minisend.errors import UsageError
from minisend.spool.place import is_own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from minisend.delivery.attempt import Summary
    from minisend.delivery.flush import Selection, Stop


class _Parser(argparse.ArgumentParser):
    """argparse, with an exception of ours in place of two lines and exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(arguments: list[str], config_file: str | None) -> int:
    """Run ``minisend ARGUMENTS``; ``config_file`` is the value of a leading -C.  Returns the exit code.

    Raises MinisendError, and SystemExit for --help and --version.
    """
    asked = _parser().parse_args(arguments)
    try:
        return _COMMANDS[asked.command](asked, config_file)
    except BrokenPipeError:
        return 0  # "minisend queue | head": the reader has all it wants


def _parser() -> _Parser:
    parser = _Parser(
        prog="minisend",
        usage="minisend [-C FILE] COMMAND ...",
        description="Look after the mail queue.  See minisend(1).",
        epilog="-C FILE, which must come first, names another configuration file.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minisend {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, prog="minisend"
    )

    flush = commands.add_parser("flush", help="deliver what is due", allow_abbrev=False)
    flush.add_argument("--all", action="store_true", help="deliver everything, due or not")
    flush.add_argument("ids", nargs="*", metavar="ID", help="deliver these messages, due or not")
    flush.add_argument(
        "--recipient", metavar="DOMAIN", help="only messages with a recipient in this domain"
    )
    how_loud = flush.add_mutually_exclusive_group()
    how_loud.add_argument("--quiet", action="store_true", help="say nothing on success or deferral")
    how_loud.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="show the dialogue with each server, without passwords",
    )
    # What a submission starts: one of a few flushers, see minisend.delivery.slots.
    flush.add_argument("--background", action="store_true", help=argparse.SUPPRESS)

    run = commands.add_parser(
        "run",
        help="serve the queue: deliver what comes and what falls due",
        description="Deliver in the foreground, until told to stop by SIGTERM.  Logs to standard error.",
        allow_abbrev=False,
    )
    roles = run.add_mutually_exclusive_group()
    roles.add_argument(
        "--accept", action="store_true", help="only take mail, from the socket and the drop"
    )
    roles.add_argument("--deliver", action="store_true", help="only deliver what is in the queue")
    run.add_argument(
        "--exit-idle",
        metavar="SECONDS",
        type=_seconds,
        help="end after so long without anything to do",
    )

    queue = commands.add_parser(
        "queue", help="show what waits, why, until when", allow_abbrev=False
    )
    queue.add_argument(
        "--json", action="store_true", help="one JSON object a line, like postqueue -j"
    )
    queue.add_argument("ids", nargs="*", metavar="ID", help="only these messages")
    filters.add_options(queue, filters.STATES_OF["queue"])

    show = commands.add_parser("show", help="show all of a message", allow_abbrev=False)
    show.add_argument("ids", nargs="+", metavar="ID", help="queue id of the message")
    show.add_argument("--headers", action="store_true", help="without the body")
    form = show.add_mutually_exclusive_group()
    form.add_argument("--raw", action="store_true", help="the octets that go out, nothing else")
    form.add_argument(
        "--json", action="store_true", help="one JSON object a line, without the body"
    )

    for name, about in (
        ("rm", "remove messages; nobody is told"),
        ("hold", "keep messages from being delivered"),
        ("release", "let held messages go, at once"),
        ("requeue", "try messages again from the start, failed ones too"),
    ):
        action = commands.add_parser(name, help=about, allow_abbrev=False)
        action.add_argument("ids", nargs="*", metavar="ID", help="queue id of the message")
        action.add_argument("--all", action="store_true", help="all that the command is about")
        if name == "rm":
            action.add_argument(
                "--yes", action="store_true", help="do not ask before --all or a filter removes"
            )
        filters.add_options(action, filters.STATES_OF[name])

    check = commands.add_parser("check", help="say whether the queue is well", allow_abbrev=False)
    check.add_argument("--json", action="store_true", help="one JSON object")
    check.add_argument(
        "--overdue",
        metavar="AGE",
        type=filters.duration,
        help="how long a message may be due before nobody serves the queue (default: 30m)",
    )

    story = commands.add_parser("log", help="show what happened to a message", allow_abbrev=False)
    story.add_argument("--json", action="store_true", help="one JSON object a line for each event")
    story.add_argument("id", metavar="ID", help="queue id of the message, also one that is gone")

    login = commands.add_parser(
        "login", help="let minisend send mail for an account (OAuth2)", allow_abbrev=False
    )
    methods = login.add_mutually_exclusive_group()
    for method, text in (
        ("device", "enter a code on another device"),
        ("browser", "log in with a browser on this machine"),
    ):
        methods.add_argument(
            f"--{method}", dest="method", action="store_const", const=method, default="", help=text
        )
    login.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        default="",
        help="of a [smarthosts.NAME] table (default: the [smarthost] table)",
    )

    demo = commands.add_parser(
        "demo",
        help="send a message through the whole program, to a server of its own",
        description="Send a sample message, or the one on standard input, from sendmail through the queue to a "
        "small server on the loopback interface, and show each step.  Nothing leaves this machine.",
        allow_abbrev=False,
    )
    demo.add_argument(
        "recipient",
        nargs="?",
        metavar="RECIPIENT",
        default="demo@example.net",
        help="envelope recipient of a message on standard input (default: %(default)s)",
    )
    return parser


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


def _queue(asked: argparse.Namespace, config_file: str | None) -> int:
    from minisend.admin.queue import show_queue

    config = _load_as_owner(config_file)
    chosen = _filter(asked, config)
    if asked.ids and chosen.given:
        raise UsageError("queue: name messages, or use filters, not both")
    return show_queue(config, chosen, tuple(asked.ids), as_json=asked.json)


def _show(asked: argparse.Namespace, config_file: str | None) -> int:
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


def _act(asked: argparse.Namespace, config_file: str | None) -> int:
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


def _filter(asked: argparse.Namespace, config: Config) -> filters.Filter:
    states = filters.STATES_OF[asked.command]
    return filters.Filter(asked, states, time.time(), lambda: config.mail_domain)


def _check(asked: argparse.Namespace, config_file: str | None) -> int:
    from minisend.admin.check import OVERDUE, check

    overdue = OVERDUE if asked.overdue is None else asked.overdue
    return check(_for_owner(_load_as_owner(config_file), "check"), overdue, as_json=asked.json)


def _demo(asked: argparse.Namespace, config_file: str | None) -> int:
    from minisend.admin.demo import demo

    return demo(asked.recipient)


def _login(asked: argparse.Namespace, config_file: str | None) -> int:
    from minisend.admin.login import login

    return login(_load_as_owner(config_file), asked.name, asked.method)


def _story(asked: argparse.Namespace, config_file: str | None) -> int:
    from minisend.admin.story import show_story

    return show_story(_load_as_owner(config_file).spool.path, asked.id, as_json=asked.json)


def _flush(asked: argparse.Namespace, config_file: str | None) -> int:
    if asked.ids and (asked.all or asked.recipient):
        raise UsageError("flush: name messages, or use --all or --recipient, not both")
    if asked.recipient == "":
        raise UsageError("flush: --recipient: expected a domain (got nothing)")
    if asked.background:
        from minisend.delivery.flush import Stop, background_flush
        from minisend.log import Log

        stop = Stop()
        with _ending_on_signals(stop):
            return background_flush(
                _load_as_owner(config_file), Log(syslog=True, stderr=False), stop
            )

    from minisend.delivery.flush import Selection, Stop

    selection = Selection(
        everything=asked.all,
        ids=tuple(asked.ids),
        domain=(asked.recipient or "").encode("utf-8", "surrogateescape"),
    )
    return flush_once(selection, config_file, quiet=asked.quiet, verbose=asked.verbose)


def _run(asked: argparse.Namespace, config_file: str | None) -> int:
    from minisend.admin.serving import run
    from minisend.delivery.flush import Stop
    from minisend.log import service_log

    config = _load(config_file)
    stop = Stop()
    with _ending_on_signals(stop):
        return run(
            config,
            log=service_log(),
            stop=stop,
            accept=asked.accept,
            deliver=asked.deliver,
            exit_idle=asked.exit_idle,
        )


def _seconds(text: str) -> float:
    digits = text.removesuffix("s")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 9):
        raise argparse.ArgumentTypeError(
            f'expected whole seconds, such as 30 (got "{printable(text)}")'
        )
    return float(digits)


@contextmanager
def _ending_on_signals(stop: "Stop") -> "Iterator[None]":
    """SIGTERM and SIGINT end the transactions that are under way, and then the run; a second one ends at once."""

    def ask(number: int, frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        stop.ask()

    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    for each, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(each, ask)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def flush_once(
    selection: "Selection", config_file: str | None, *, quiet: bool, verbose: bool = False
) -> int:
    """Deliver the selected messages, with a bar on a terminal and a line at the end.  Returns the exit code.

    ``verbose``  the dialogue with each server, on standard error in place of the bar
    """
    from minisend.admin.progress import Progress
    from minisend.delivery.flush import Stop, flush
    from minisend.delivery.workers import processes
    from minisend.log import Log

    stop = Stop()
    config = _load_as_owner(config_file)
    if config.submission.socket and not is_own(config.spool.path):
        return _flush_served(selection, config.submission.socket, quiet=quiet)
    # Quiet stays quiet: what cron is told it mails, which the next run delivers and logs, without end.
    log = Log(syslog=True, stderr=False, fallback=not quiet)
    # Lines on standard error show the progress themselves, and would be written into the bar.
    bar = Progress("flushing", shown=not quiet and not verbose and not log.on_stderr)
    with _ending_on_signals(stop), bar as progress:
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
            write(1, _summary_line(summary, selection, config.spool.path) + "\n")
        except BrokenPipeError:
            pass
    return summary.exit_code


def _flush_served(selection: "Selection", socket: str, *, quiet: bool) -> int:
    """Of a queue that is another account's: the caller's own messages, all of them."""
    from minisend.admin.served import flush, not_allowed

    if selection.ids or selection.domain or selection.id_part or selection.recipient_part:
        raise not_allowed("flush of chosen messages")
    answer = flush(socket)
    if not quiet:
        write(1, answer + "\n")
    return 0


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
    from minisend.admin.listing import clock, open_queue

    queue = open_queue(spool)
    if queue is None:
        return "nothing to deliver: the queue is empty"
    with queue:
        due = sorted(place.due for place in queue.places("new", "cur"))
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
    "demo": _demo,
}
