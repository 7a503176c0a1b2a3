r"""The form of a log line, and where log lines go: the systemd journal, /dev/log, standard error.

    QUEUEID: key=value key="quoted value" ...

One event is one line: whatever stands in a value, no line end or control character leaves this
module, so nobody who sends a message or answers one can forge a line.  A value is quoted when it is
empty or has a space, ``"``, ``=``, ``\`` or a character that does not print; inside quotes ``\"``,
``\\``, ``\n``, ``\t``, ``\xHH``, ``\uHHHH`` and ``\UHHHHHHHH`` are escapes, where ``\xHH`` from 80 up
is an octet that is not UTF-8.  ``parse`` reads it back.  The queue id of what belongs to no message is
``-``.  An attempt has one line for each recipient: from, to, relay, delay, dsn, status, reason.

    info      what happened, also a delay or a failure of a recipient: that is mail's daily life
    warning   trouble of this machine that an admin should look at; no message is in danger
    error     trouble of this machine that stops delivery until somebody acts

    destination                        chosen when                  form
    /run/systemd/journal/socket        it is a socket               native protocol, fields as below
    /dev/log                           it is a socket               RFC 3164 as syslog(3) writes it, local time
    standard error                     neither, and wanted          minisend: [warning: |error: ]LINE

Journal fields: MESSAGE, PRIORITY, SYSLOG_IDENTIFIER=minisend, SYSLOG_FACILITY=2 (mail), SYSLOG_PID, then
MINISEND_QUEUE_ID and MINISEND_<KEY> for each key of the line, as octets, not quoted.

Never raises for what it was given to log or for a destination that is gone, and never waits for a reader that
does not read, but for the ``_PATIENCE`` below: delivery goes on without.  What could not be written is counted,
and the count is told before the next line that can be.  A daemon that was restarted is found again.

Limits: a line is cut to 8,000 octets, on standard error to PIPE_BUF (4,096), which is what a pipe takes whole or not at
all.  A /dev/log that is a stream socket (old syslog-ng) takes nothing, and is counted as such.

Sources: Postfix smtp(8), "status=" at info, and msg(3) for the levels; systemd JOURNAL_NATIVE_PROTOCOL; systemd.exec(5)
for $JOURNAL_STREAM; RFC 3164 section 4.1 and glibc's misc/syslog.c.
"""

import posix
import time
from _thread import RLock

from minisend.kept import Kept

JOURNAL = "/run/systemd/journal/socket"
SYSLOG = "/dev/log"
IDENTIFIER = "minisend"
NO_MESSAGE = "-"

# syslog(3): LOG_MAIL, and the severities of RFC 3164 section 4.1.1, table 2
_FACILITY = 2
_INFO, _WARNING, _ERROR = 6, 4, 3
_MARKS = {_INFO: "", _WARNING: "warning: ", _ERROR: "error: "}
# Below rsyslog's default maxMessageSize of 8k, with room for what stands before the text.
_LIMIT = 8000
_PIPE_BUF = 4096
_CUT = "…"
# Seconds: a daemon that is busy writing to its disk gets a moment, one that has stopped reading costs at most the second
# of these in each minute.
_PATIENCE = 0.1
_PATIENCE_EACH_MINUTE = 1.0

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket

    Value = str | bytes | int | float


class Line(str):
    """The text of a line, without line end, that still knows its parts.

    ``queue_id``  as given
    ``fields``    key → value as given, in order
    """

    __slots__ = ("fields", "queue_id")
    fields: "dict[str, Value]"
    queue_id: str

    def __new__(cls, queue_id: str, fields: "dict[str, Value]") -> "Line":
        parts = [f"{key}={_form(value)}" for key, value in fields.items()]
        made = super().__new__(cls, " ".join([f"{_form(queue_id)}:", *parts]))
        made.queue_id = queue_id
        made.fields = fields
        return made


def line(queue_id: str, **fields: "Value") -> Line:
    """One log line, fields in the order given; octets are read as UTF-8."""
    return Line(queue_id, fields)


def parse(text: str) -> Line:
    """The line that ``text`` is; all values are text, an octet that is not UTF-8 a surrogate (surrogateescape).

    One that was cut is read as far as it goes.  Raises ValueError when it is none of ours.
    """
    quoted = text.startswith('"')
    head, at = _read_value(text, 0)
    if quoted:
        if text[at : at + 1] != ":":
            raise ValueError("no queue id")
        at += 1
    elif len(head) > 1 and head.endswith(":"):
        head = head[:-1]
    else:
        raise ValueError("no queue id")
    fields: dict[str, Value] = {}
    while at < len(text):
        key, equals, _ = text[at + 1 :].partition("=")
        if not equals and text.endswith(_CUT):
            break
        if text[at] != " " or not equals or not key.isidentifier():
            raise ValueError(f"no field at {at}")
        fields[key], at = _read_value(text, at + len(key) + 2)
    return Line(head, fields)


def _text(value: "Value") -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _form(value: "Value") -> str:
    text = _text(value)
    if text.isprintable():
        if not text:
            return '""'
        if '"' not in text and "\\" not in text:
            # Nearly all of them.
            return f'"{text}"' if " " in text or "=" in text else text
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


def _read_value(text: str, at: int) -> tuple[str, int]:
    """The value that begins there, and where it ends: behind its last character or closing quote."""
    if text[at : at + 1] != '"':
        end = text.find(" ", at)
        end = len(text) if end < 0 else end
        return text[at:end], end
    at += 1
    value = ""
    while at < len(text) and text[at] != '"':
        if text[at] != "\\":
            value += text[at]
            at += 1
            continue
        letter = text[at + 1 : at + 2]
        width = {"x": 2, "u": 4, "U": 8}.get(letter, 0)
        digits = text[at + 2 : at + 2 + width]
        at += 2 + width
        if at >= len(text):
            break  # cut inside the escape: behind a whole one there is at least the closing quote
        if width:
            code = int(digits, 16)
            if code > 0x10FFFF:
                raise ValueError(f"no character: {digits}")
            value += chr(code + 0xDC00 if letter == "x" and code >= 0x80 else code)
        else:
            value += {"n": "\n", "t": "\t"}.get(letter, letter)
    return value, min(at + 1, len(text))


class Log:
    """Takes lines, also from several threads at once, and gives them to their destination.

    ``syslog``    to the journal, else to /dev/log
    ``stderr``    to standard error
    ``fallback``  to standard error where there is neither journal nor /dev/log
    ``journal``, ``device``  paths of the two sockets, where they are not the usual ones
    The destination is chosen, and connected to, at the first line: a command that logs nothing does neither.
    """

    __slots__ = (
        "_connection",
        "_device",
        "_fallback",
        "_journal",
        "_lock",
        "_lost",
        "_native",
        "_path",
        "_patience",
        "_patience_until",
        "_stderr",
        "_syslog",
    )

    def __init__(
        self,
        *,
        syslog: bool,
        stderr: bool,
        fallback: bool = False,
        journal: str | None = None,
        device: str | None = None,
    ) -> None:
        self._syslog = syslog
        self._stderr = stderr
        self._fallback = fallback
        self._journal = journal or JOURNAL
        self._device = device or SYSLOG
        # Of the daemon's socket: None before the first line, "" when there is none.
        self._path: str | None = None
        self._native = False
        self._connection: Socket | None = None
        # Lines that the daemon and standard error did not take.
        self._lost = {"syslog": 0, "stderr": 0}
        self._patience = 0.0
        self._patience_until = 0.0
        # Reentrant, as a signal handler may log while its thread is in here.
        self._lock = RLock()

    def __del__(self) -> None:
        self._disconnect()

    def info(self, text: str) -> None:
        """What happened: a ``Line``, or text that becomes one line."""
        self._write(_INFO, text)

    def warning(self, text: str) -> None:
        """What an admin should look at; no message is in danger."""
        self._write(_WARNING, text)

    def error(self, text: str) -> None:
        """What stops delivery until somebody acts."""
        self._write(_ERROR, text)

    @property
    def heard(self) -> bool:
        """False when no line goes anywhere: then none needs to be made."""
        if self._path is None:
            with self._lock:
                self._choose()
        return bool(self._path) or self._stderr

    @property
    def on_stderr(self) -> bool:
        """True when lines go to standard error."""
        with self._lock:
            self._choose()
            return self._stderr

    def _write(self, severity: int, text: str) -> None:
        with self._lock:
            self._choose()
            if self._path:
                self._deliver("syslog", severity, text)
            if self._stderr:
                self._deliver("stderr", severity, text)

    def _choose(self) -> None:
        if self._path is not None:
            return
        self._path = ""
        if self._syslog:
            self._native = _is_socket(self._journal)
            if self._native:
                self._path = self._journal
            elif _is_socket(self._device):
                self._path = self._device
        if not self._path and self._fallback:
            self._stderr = True

    def _deliver(self, where: str, severity: int, text: str) -> None:
        """Write the line, or count it as lost; before it, the count of those that were."""
        put = self._to_daemon if where == "syslog" else self._to_stderr
        lost = self._lost[where]
        if lost:
            told = line(NO_MESSAGE, event="lost", lines=lost, reason=f"{lost} lines lost")
            if not put(_WARNING, told):
                self._lost[where] = lost + 1
                return
            self._lost[where] = 0
        if not put(severity, text):
            self._lost[where] += 1

    # -- the daemon

    def _to_daemon(self, severity: int, text: str) -> bool:
        octets = _native(severity, text) if self._native else _rfc3164(severity, text)
        # A second time on a new connection: the one at hand may lead to a daemon that is gone.
        for fresh in (False, True):
            try:
                if fresh or self._connection is None:
                    self._disconnect()
                    self._connection = _connect(self._path or "")
                    fresh = True
                self._send(self._connection, octets)
                return True
            except OSError as exc:
                self._disconnect()
                if fresh or isinstance(exc, BlockingIOError):
                    return False
        return False

    def _send(self, connection: "Socket", octets: bytes) -> None:
        """Raises BlockingIOError when the daemon does not take it."""
        import _socket

        try:
            connection.send(octets, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            if not self._wait(connection.fileno()):
                raise
            connection.send(octets, _socket.MSG_DONTWAIT)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # -- standard error

    def _to_stderr(self, severity: int, text: str) -> bool:
        # Not sys.stderr: it may hold back a part, and a write of its own kind waits for the reader.
        octets = _cut(f"{IDENTIFIER}: {_MARKS[severity]}{_printable(text)}", _PIPE_BUF - 1) + b"\n"
        try:
            # A pipe that poll calls writable has room for PIPE_BUF octets.
            return self._wait(2) and posix.write(2, octets) == len(octets)
        except OSError:
            return False

    def _wait(self, fd: int) -> bool:
        """True once ``fd`` can be written to, at once or after a wait that is well spent."""
        import select

        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        if poll.poll(0):
            return True
        now = time.monotonic()
        if now >= self._patience_until:
            self._patience_until = now + 60
            self._patience = _PATIENCE_EACH_MINUTE
        ready = bool(poll.poll(1000 * min(_PATIENCE, max(self._patience, 0))))
        self._patience -= time.monotonic() - now
        return ready


def service_log() -> Log:
    """The log of a service in the foreground: standard error, or the journal when that is where standard error leads."""
    try:
        status = posix.fstat(2)
    except OSError:
        native = False
    else:
        stream = b"%d:%d" % (status.st_dev, status.st_ino)
        native = posix.environ.get(b"JOURNAL_STREAM") == stream and _is_socket(JOURNAL)
    return Log(syslog=native, stderr=not native)


def _is_socket(path: str) -> bool:
    try:
        return posix.stat(path).st_mode & 0o170000 == 0o140000
    except OSError:
        return False


def _connect(path: str) -> "Socket":
    # Not ``socket``, which takes 8 ms to import.
    import _socket

    made = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        made.connect(path)
    except OSError:
        made.close()
        raise
    return made


def _rfc3164(severity: int, text: str) -> bytes:
    # No locale is ever set, so the month is in English.
    stamp = time.strftime("%b %e %H:%M:%S", time.localtime())
    head = f"<{_FACILITY * 8 + severity}>{stamp} {IDENTIFIER}[{posix.getpid()}]: "
    return head.encode("ascii") + _cut(_printable(text), _LIMIT)


def _native(severity: int, text: str) -> bytes:
    parts = [
        _native_field(b"MESSAGE", _cut(_printable(text), _LIMIT)),
        b"PRIORITY=%d\nSYSLOG_IDENTIFIER=%b\nSYSLOG_FACILITY=%d\nSYSLOG_PID=%d\n"
        % (severity, IDENTIFIER.encode("ascii"), _FACILITY, posix.getpid()),
    ]
    if isinstance(text, Line):
        if text.queue_id != NO_MESSAGE:
            parts.append(_native_field(b"MINISEND_QUEUE_ID", _cut(text.queue_id, _LIMIT)))
        for key, value in text.fields.items():
            octets = value[:_LIMIT] if isinstance(value, bytes) else _cut(str(value), _LIMIT)
            parts.append(_native_field(_names[key,], octets))
    return b"".join(parts)


def _name(key: str) -> bytes:
    return f"MINISEND_{key.upper()}".encode("ascii")


_names: "Kept[bytes]" = Kept(_name, 64)


def _native_field(name: bytes, value: bytes) -> bytes:
    if b"\n" in value:
        return name + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
    return name + b"=" + value + b"\n"


def _cut(text: str, limit: int) -> bytes:
    """``text`` in UTF-8, at most ``limit`` octets, ``_CUT`` at the end of one that was longer."""
    if len(text) <= limit and text.isascii():
        return text.encode("ascii")
    try:
        octets = text[:limit].encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair
        octets = text[:limit].encode("utf-8", "backslashreplace")
    if len(octets) <= limit and len(text) <= limit:
        return octets
    end = limit - len(_CUT.encode())
    for _ in range(3):
        if octets[end] & 0xC0 == 0x80:  # inside a character
            end -= 1
    return octets[:end] + _CUT.encode()
