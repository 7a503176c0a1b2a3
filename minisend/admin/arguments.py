"""The arguments of the minisend command, as argparse knows them.  Every mistake is a UsageError (64), one line."""

import argparse
from typing import NoReturn

from minisend import __version__
from minisend.admin import filters
from minisend.admin.terminal import printable, write
from minisend.errors import UsageError


class _Parser(argparse.ArgumentParser):
    """argparse, with an exception of ours in place of two lines and exit code 2."""

    def error(self, message: str) -> NoReturn:
        if message.partition(": ")[2].split(" ")[0][:2] == "-C":
            message = "-C FILE comes first: minisend -C FILE COMMAND"
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: object = None) -> None:
        # At once: what the interpreter finds out at its end becomes a trace and exit code 120.
        try:
            write(1, message)
        except BrokenPipeError:
            pass  # "minisend --help | head"


def parser() -> argparse.ArgumentParser:
    """What reads them: ``command`` of the result is the subcommand.  Raises UsageError, and SystemExit for --help and --version."""
    whole = _Parser(
        prog="minisend",
        usage="minisend [-C FILE] COMMAND ...",
        description="Look after the mail queue.  See minisend(1).",
        epilog="-C FILE, which must come first, names another configuration file.",
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"minisend {__version__}")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", prog="minisend")

    def add(name: str, about: str, description: str = "") -> argparse.ArgumentParser:
        text = description or f"{about[0].upper()}{about[1:]}."
        return commands.add_parser(name, help=about, description=text, allow_abbrev=False)

    flush = add("flush", "deliver what is due")
    flush.add_argument("--all", action="store_true", help="deliver everything, due or not")
    flush.add_argument("ids", nargs="*", metavar="ID", help="deliver these messages, due or not")
    flush.add_argument(
        "--recipient", metavar="DOMAIN", help="only messages with a recipient in this domain"
    )
    flush.add_argument("--json", action="store_true", help="one JSON object")
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

    run = add(
        "run",
        "serve the queue: deliver what comes and what falls due",
        "Deliver in the foreground, until told to stop by SIGTERM.  Logs to standard error.",
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

    queue = add("queue", "show what waits, why, until when")
    queue.add_argument(
        "--json", action="store_true", help="one JSON object a line, like postqueue -j"
    )
    queue.add_argument("ids", nargs="*", metavar="ID", help="only these messages")
    filters.add_options(queue, filters.STATES_OF["queue"])

    show = add("show", "show all of a message")
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
        action = add(name, about)
        action.add_argument("ids", nargs="*", metavar="ID", help="queue id of the message")
        action.add_argument("--all", action="store_true", help="all that the command is about")
        if name == "rm":
            action.add_argument(
                "--yes", action="store_true", help="do not ask before --all or a filter removes"
            )
        filters.add_options(action, filters.STATES_OF[name])

    check = add("check", "say whether the queue is well")
    check.add_argument("--json", action="store_true", help="one JSON object")
    check.add_argument(
        "--overdue",
        metavar="AGE",
        type=filters.duration,
        help="how long a message may be due before nobody serves the queue (default: 30m)",
    )

    story = add("log", "show what happened to a message")
    story.add_argument("--json", action="store_true", help="one JSON object a line for each event")
    story.add_argument("id", metavar="ID", help="queue id of the message, also one that is gone")

    login = add("login", "let minisend send mail for an account (OAuth2)")
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

    setup = add("setup", "make a queue, and say what is left to do")
    setup.add_argument(
        "--system", action="store_true", help="one for all users: account and directories"
    )
    setup.add_argument("--root", metavar="DIR", help="with --system: below this directory")
    setup.add_argument("--dry-run", action="store_true", help="only say what there is to do")

    doctor = add("doctor", "look for what is wrong, and say what repairs it")
    doctor.add_argument("--json", action="store_true", help="one JSON object")

    demo = add(
        "demo",
        "send a message through the whole program, to a server of its own",
        "Send a sample message, or the one on standard input, from sendmail through the queue to a "
        "small server on the loopback interface, and show each step.  Nothing leaves this machine.",
    )
    demo.add_argument(
        "recipient",
        nargs="?",
        metavar="RECIPIENT",
        default="demo@example.net",
        help="envelope recipient of a message on standard input (default: %(default)s)",
    )
    return whole


def _seconds(text: str) -> float:
    digits = text.removesuffix("s")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 9):
        raise argparse.ArgumentTypeError(
            f'expected whole seconds, such as 30 (got "{printable(text)}")'
        )
    return float(digits)
