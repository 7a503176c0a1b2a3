r"""The form of a log line, and where log lines go: syslog, stderr.

    QUEUEID: key=value key="quoted value" ...

One event is one line: whatever stands in a value, no line end or control character leaves this
module.  A value is quoted when it is empty or has a space, ``"``, ``=``, ``\`` or a character that
does not print; inside quotes ``\"``, ``\\``, ``\n``, ``\t``, ``\xHH``, ``\uHHHH`` and
``\UHHHHHHHH`` are escapes, where ``\xHH`` from 80 up is an octet that is not UTF-8.

Never raises for what it was given to log or for a sink that is gone: delivery goes on without.

syslog(3), facility mail, identity "minisend".
"""

import sys


def line(queue_id: str, **fields: "str | bytes | int | float") -> str:
    """One log line without line end, fields in the order given; octets are read as UTF-8."""
    return " ".join([f"{queue_id}:", *(f"{key}={_value(value)}" for key, value in fields.items())])


def _value(value: "str | bytes | int | float") -> str:
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
    if text and text.isprintable() and not any(char in text for char in ' "=\\'):
        return text
    return '"' + _printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(map(_escape, text))


def _escape(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: an octet from 80 to FF
        return f"\\x{code - 0xDC00:02x}"
    if char in "\n\t":
        return "\\n" if char == "\n" else "\\t"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Log:
    """Takes lines, gives them to syslog, stderr or both.

    ``syslog``  opened at the first line: a command that logs nothing does not connect
    ``stderr``  as ``minisend: LINE``, with the level where it is not info
    """

    __slots__ = ("_opened", "_stderr", "_syslog")

    def __init__(self, *, syslog: bool, stderr: bool) -> None:
        self._syslog = syslog
        self._stderr = stderr
        self._opened = False

    def info(self, text: str) -> None:
        """What happened as it should."""
        self._write("info", text)

    def warning(self, text: str) -> None:
        """What an admin should look at; no message is in danger."""
        self._write("warning", text)

    def error(self, text: str) -> None:
        """What stops delivery until somebody acts."""
        self._write("error", text)

    def _write(self, level: str, text: str) -> None:
        text = _printable(text)
        if self._syslog:
            import syslog

            if not self._opened:
                syslog.openlog("minisend", syslog.LOG_PID, syslog.LOG_MAIL)
                self._opened = True
            priorities = {
                "info": syslog.LOG_INFO,
                "warning": syslog.LOG_WARNING,
                "error": syslog.LOG_ERR,
            }
            syslog.syslog(priorities[level], text)
        # None: the caller closed descriptor 2, which may be another file by now.
        if self._stderr and sys.stderr is not None:
            mark = "" if level == "info" else f"{level}: "
            try:
                sys.stderr.write(f"minisend: {mark}{text}\n")
                sys.stderr.flush()
            except (OSError, ValueError):
                pass  # a pipe without reader, a stream that was closed
