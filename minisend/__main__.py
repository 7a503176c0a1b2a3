"""Picks the face: sendmail, mailq, newaliases or minisend, by the name of the program or its first argument.

Imports nothing that the face does not need, and is the one place where an exception becomes an exit code and a line on
standard error.  Also the file that a detached flusher is started by, which is why it can be run by its path.
"""

import posix
import sys

if not __package__:
    # Run by path (python3 -I .../minisend/__main__.py): the package is the directory this file lies in.
    sys.path.insert(0, __file__.rpartition("/")[0].rpartition("/")[0] or "/")

from minisend.errors import MinisendError, SystemFault, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

FACES = ("sendmail", "mailq", "newaliases", "minisend")

# What sendmail's and Postfix's mailq take beside -C: more words, sendmail's client queue, a part of the queue, debugging.
_IGNORED_BY_MAILQ = ("-v", "-A", "-q", "-d")
_USAGE = {
    "mailq": "usage: mailq [-C FILE]    list the queue\nSee sendmail(8).\n",
    "newaliases": "usage: newaliases    for compatibility: there is no alias database to build\nSee sendmail(8).\n",
}


def main() -> int:
    """Run the face that ``sys.argv`` names; returns the exit code.  Ends the process itself after a submission and a flush."""
    face, arguments = _face(sys.argv)
    try:
        _open_standard_descriptors()
        code = _run(face, arguments)
    except MinisendError as exc:
        _complain(face, str(exc))
        code = exc.exit_code
    except KeyboardInterrupt as exc:
        number = exc.args[0] if exc.args else 2  # SIGINT, from the interpreter's own handler
        _complain(face, f"stopped by signal {number:d}")
        code = 128 + number
    except MemoryError:
        code = -1
    except Exception as exc:  # noqa: BLE001 - the last resort: a bug ends in a line and EX_SOFTWARE, not in a traceback
        _report_bug(face, exc)
        code = MinisendError.exit_code
    if code == -1:
        # Only here is what filled the memory free again.
        _complain(face, "not enough memory")
        code = SystemFault.exit_code
    return code


def _open_standard_descriptors() -> None:
    """Something on descriptors 0 to 2: else the next file opened, a queue file, would be standard error."""
    for fd in (0, 1, 2):
        try:
            posix.fstat(fd)
        except OSError:
            posix.open("/dev/null", posix.O_RDWR)


def _face(argv: list[str]) -> tuple[str, list[str]]:
    # Also sendmail.minisend, as a system that lets its administrator choose among agents names it.
    name = argv[0].rpartition("/")[2].partition(".")[0]
    if name in FACES and name != "minisend":
        return name, argv[1:]
    if len(argv) > 1 and argv[1] in FACES:
        return argv[1], argv[2:]
    return "minisend", argv[1:]


def _take_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """A leading ``-C FILE`` or ``-CFILE``, and the rest."""
    if not arguments or arguments[0][:2] != "-C":
        return None, arguments
    if len(arguments[0]) > 2:
        return arguments[0][2:], arguments[1:]
    if len(arguments) < 2:
        raise UsageError("option -C needs a value")
    return arguments[1], arguments[2:]


def _run(face: str, arguments: list[str]) -> int:
    if face in _USAGE and ("--help" in arguments or "--version" in arguments):
        _print(_USAGE[face] if "--help" in arguments else _version())
        return 0
    if face == "newaliases":
        return 0  # whatever its arguments: the scripts of packages call it in odd ways
    config_file, arguments = _take_config(arguments)
    if face == "sendmail":
        return _sendmail(arguments, config_file)
    if face == "mailq":
        for word in arguments:
            if not word.startswith(_IGNORED_BY_MAILQ):
                raise UsageError(f"unknown argument: {word}")
        return _mailq(config_file)
    from minisend.admin.command import main as minisend

    code = minisend(arguments, config_file)
    if arguments[:1] == ["flush"]:
        _end(code)
    return code


def _sendmail(arguments: list[str], config_file: str | None) -> int:
    from minisend.submit import options as table

    options = table.parse(arguments)
    if options.mode == "submit":
        from minisend.submit.command import submit

        try:
            code = submit(options, config_file)
        except MinisendError as exc:
            if options.errors != "q":
                raise
            code = exc.exit_code
        _end(code)
    if options.mode == "smtp":
        from minisend.submit.smtp import serve

        posix._exit(serve(options, config_file))
    if options.mode == "mailq":
        return _mailq(config_file)
    if options.mode == "flush":
        from minisend.admin.command import flush_once
        from minisend.delivery.flush import Selection

        part = {name: text.encode("utf-8", "surrogateescape") for name, text in options.parts}
        selection = Selection(
            everything=True,
            id_part=part.get("id_part", b""),
            sender_part=part.get("sender_part", b""),
            recipient_part=part.get("recipient_part", b""),
        )
        return flush_once(selection, config_file)
    if options.mode == "verify":
        from minisend.admin.verify import verify

        return verify(options.words, config_file, options.sender)
    if options.mode == "help":
        _print(table.USAGE)
    elif options.mode == "version":
        _print(_version())
    return 0


def _end(code: int) -> "NoReturn":
    """Nothing of ours waits to be written, and tearing down the interpreter takes as long as a submission's disk."""
    posix._exit(code)


def _version() -> str:
    from minisend import __version__

    return f"minisend {__version__}\n"


def _print(text: str) -> None:
    from minisend.admin.terminal import write

    try:
        write(1, text)
    except BrokenPipeError:
        pass  # who asked has seen enough


def _mailq(config_file: str | None) -> int:
    from minisend.admin.mailq import mailq

    return mailq(config_file)


def _complain(face: str, text: str) -> None:
    line = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in f"{face}: {text}")
    try:
        posix.write(2, line.encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        pass  # a closed or full standard error must not change the exit code


def _report_bug(face: str, exc: Exception) -> None:
    import traceback

    from minisend.log import NO_MESSAGE, Log, line

    trace = "".join(traceback.format_exception(exc))
    Log(syslog=True, stderr=False).error(line(NO_MESSAGE, event="bug", face=face, trace=trace))
    _complain(face, f"internal error, please report it: {type(exc).__name__}: {exc}")


if __name__ == "__main__":
    sys.exit(main())
