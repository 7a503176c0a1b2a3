"""The minisend command: which part of the program answers it, and how the answer is summed up.

Knows what may be asked, not how anything is done: each subcommand's module is imported when it is used.  What the
arguments mean is ``admin.arguments``'s; a plain ``flush``, which runs after each submission and from timers, is
understood without it, for argparse takes 20 ms.
"""

import posix
import time

from minisend.admin.owner import become_owner
from minisend.admin.signals import EndingOnSignals
from minisend.config.load import load
from minisend.config.sections import Config
from minisend.errors import UsageError
from minisend.spool.place import is_own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from minisend.admin import filters
    from minisend.delivery.flush import Selection


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
        with EndingOnSignals(stop):
            return background_flush(
                _load_as_owner(config_file), Log(syslog=True, stderr=False), stop
            )

    from minisend.admin.flush import flush
    from minisend.delivery.flush import Selection

    selection = Selection(
        everything=asked.all,
        ids=tuple(asked.ids),
        domain=(asked.recipient or "").encode("utf-8", "surrogateescape"),
    )
    as_root = posix.geteuid() == 0
    return flush(
        _load_as_owner(config_file),
        selection,
        as_root=as_root,
        quiet=asked.quiet,
        verbose=asked.verbose,
        as_json=asked.json,
    )


def _run(asked: "Namespace", config_file: str | None) -> int:
    from minisend.admin.serving import run
    from minisend.delivery.flush import Stop
    from minisend.log import service_log

    config = _load(config_file)
    stop = Stop()
    with EndingOnSignals(stop):
        return run(
            config,
            log=service_log(),
            stop=stop,
            accept=asked.accept,
            deliver=asked.deliver,
            exit_idle=asked.exit_idle,
        )


def flush_once(selection: "Selection", config_file: str | None) -> int:
    """``sendmail -q``.  Returns the exit code."""
    from minisend.admin.flush import flush

    as_root = posix.geteuid() == 0
    return flush(_load_as_owner(config_file), selection, as_root=as_root, quiet=True)


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
