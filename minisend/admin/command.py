"""The minisend command: its arguments, and which part of the program answers them.

Knows what may be asked and how the answer is summed up, not how anything is done: each subcommand's module is
imported when it is used.  Every mistake on the command line is a UsageError (64), one line.
"""

import argparse
import posix
import time
from typing import NoReturn

from minisend import __version__
from minisend.admin.terminal import write
from minisend.config import Config, load
from minisend.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minisend.delivery.flush import Selection, Summary


class _Parser(argparse.ArgumentParser):
    """argparse, with an exception of ours in place of two lines and exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(arguments: list[str], config_file: str | None) -> int:
    """Run ``minisend ARGUMENTS``; ``config_file`` is the value of a leading -C.  Returns the exit code.

    Raises MinisendError, and SystemExit for --help and --version.
    """
    asked = _parser().parse_args(arguments)
    if asked.command == "flush":
        return _flush(asked, config_file)
    if asked.command == "demo":
        from minisend.admin.demo import demo

        return demo(asked.recipient)
    try:
        return _queue(asked, config_file)
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
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    flush = commands.add_parser("flush", help="deliver what is due", allow_abbrev=False)
    flush.add_argument("--all", action="store_true", help="deliver everything, due or not")
    flush.add_argument("ids", nargs="*", metavar="ID", help="deliver these messages, due or not")
    flush.add_argument(
        "--recipient", metavar="DOMAIN", help="only messages with a recipient in this domain"
    )
    flush.add_argument("--quiet", action="store_true", help="say nothing on success or deferral")
    # What a submission starts: one of a few flushers, see minisend.delivery.slots.
    flush.add_argument("--background", action="store_true", help=argparse.SUPPRESS)

    queue = commands.add_parser(
        "queue", help="show what waits, why, until when", allow_abbrev=False
    )
    queue.add_argument(
        "--json", action="store_true", help="one JSON object a line, like postqueue -j"
    )
    queue.add_argument("id", nargs="?", metavar="ID", help="show this message and its attempts")

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


def _queue(asked: argparse.Namespace, config_file: str | None) -> int:
    from minisend.admin.queue import show_message, show_queue

    spool = _load(config_file).spool.path
    if asked.id is None:
        return show_queue(spool, as_json=asked.json)
    return show_message(spool, asked.id, as_json=asked.json)


def _flush(asked: argparse.Namespace, config_file: str | None) -> int:
    if asked.ids and (asked.all or asked.recipient):
        raise UsageError("flush: name messages, or use --all or --recipient, not both")
    if asked.recipient == "":
        raise UsageError("flush: --recipient: expected a domain (got nothing)")
    if asked.background:
        from minisend.delivery.flush import background_flush
        from minisend.log import Log

        return background_flush(_load(config_file), Log(syslog=True, stderr=False))

    from minisend.delivery.flush import Selection

    selection = Selection(
        everything=asked.all,
        ids=tuple(asked.ids),
        domain=(asked.recipient or "").encode("utf-8", "surrogateescape"),
    )
    return flush_once(selection, config_file, quiet=asked.quiet)


def flush_once(selection: "Selection", config_file: str | None, *, quiet: bool) -> int:
    """Deliver the selected messages, with a bar on a terminal and a line at the end.  Returns the exit code."""
    from minisend.admin.progress import Progress
    from minisend.delivery.flush import flush
    from minisend.log import Log

    config = _load(config_file)
    log = Log(syslog=True, stderr=False)
    with Progress("flushing", shown=not quiet) as progress:
        summary = flush(config, selection, log=log, progress=progress)
    if not quiet:
        try:
            write(1, _summary_line(summary, selection, config.spool.path) + "\n")
        except BrokenPipeError:
            pass
    return summary.exit_code


def _summary_line(summary: "Summary", selection: "Selection", spool: str) -> str:
    """What the flush came to, in words."""
    others = []
    if summary.skipped:
        others.append(f"{summary.skipped} being delivered by another process")
    if summary.broken:
        others.append(f"{summary.broken} not readable, see the log")
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
