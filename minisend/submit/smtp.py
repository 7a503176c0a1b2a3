"""sendmail -bs: SMTP on standard input and output, for programs that would rather talk to a server than write a pipe.

The other end is a program on this machine (alpine, nmh, Symfony), or, when standard input is a network socket, whoever
inetd or a socket unit let in.  A network is held to the letter of RFC 5321: CRLF alone ends a line, so that no message
can be smuggled past a relay that sees line ends where we see none; HELO comes first; and 5 minutes of silence end the
session.  As with Postfix's sendmail -bs there is no access control of our own: who can connect can send.

What is taken goes the way of every submission.  250 after the end of data says that the message is on disk, and a
message that was not ended is not kept, whatever ended the session instead.  It is read only as fast as the queue
takes it, and never held whole.

Standard output carries SMTP and nothing else; nothing is written to standard error, as for alpine and nmh both are one
pipe: a failure that would be a line there is the text of a 421.  Replies are sent before more is read, those to commands
that came together in one piece.

    exit code   0 after QUIT or the end of input; the code of a configuration that cannot be read; 74 when input cannot
                be read; 128 and the number of a signal, which is let in only while the client is waited for

Source: RFC 5321, Postfix sendmail(1) and smtpd(8) in stand-alone mode, LSB 5.0 sendmail (LF ends a line).
"""

import _signal  # type: ignore[import-not-found]  # what signal wraps in enums, which cost 3 ms
import errno
import posix
import select
from _stat import S_ISSOCK

from minisend.address import AddressError, parse_recipients
from minisend.config.submission import SubmissionFacts, submission_facts
from minisend.envelope import Recipient
from minisend.errors import MessageTooBig, MinisendError, ReadError, SpoolFull
from minisend.smtp.server import (
    Mail,
    MessageData,
    MessageEnd,
    Rcpt,
    ServerConnection,
    State,
)
from minisend.spool.account import Account
from minisend.spool.enqueue import ID_OCTETS
from minisend.submit.command import each_once, new_envelope, start_delivery, stop_on_signals
from minisend.submit.handover import absolute, hand_over
from minisend.submit.identity import caller
from minisend.submit.options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from minisend.smtp.server import Event

_STDIN, _STDOUT = 0, 1
_PIECE = 64 * 1024
# Milliseconds without an octet after which a client on a network is given up (RFC 5321 section 4.5.3.2.7).
_PATIENCE = 300_000
# A pipe is waited for without end, but in turns: a signal that comes just before the system call is seen after it only.
_TURN = 10_000
# So many of the longest addresses, each with an original, still make an envelope that the queue reads.
_MOST_RECIPIENTS = 50_000
# RFC 5321 section 4.5.3.1.5: 512 octets for a reply line with code, status and line end.
_LONGEST_TEXT = 480


def serve(options: Options, config_file: str | None) -> int:
    """Speak SMTP on descriptors 0 and 1 until the client ends it.  Returns the exit code.

    ``config_file``  of a leading -C, or None
    Raises nothing but what is a bug.
    """
    posix.umask(0o077)
    signals = stop_on_signals()
    _signal.pthread_sigmask(_signal.SIG_BLOCK, signals)
    try:
        facts = submission_facts(config_file, posix.environ, posix.getuid(), posix.geteuid())
    except MinisendError as exc:
        _refuse_to_serve(exc)
        return exc.exit_code
    # Starting a delivery changes the working directory, and there may be many of them.
    config_file = absolute(config_file) if facts.file and config_file else None
    # Deliveries that have ended must not stay behind as zombies for as long as the client lives.
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
    session = _Session(options, config_file, facts, caller(), signals, network=_is_network(_STDIN))
    return session.run()


class _Session:
    """One client, from the greeting to the end."""

    __slots__ = (
        "_code",
        "_config_file",
        "_facts",
        "_gone",
        "_identity",
        "_input",
        "_mail",
        "_options",
        "_output",
        "_patience",
        "_patient",
        "_recipients",
        "_sender",
        "_server",
        "_signals",
    )

    def __init__(
        self,
        options: Options,
        config_file: str | None,
        facts: SubmissionFacts,
        identity: Account,
        signals: list[int],
        *,
        network: bool,
    ) -> None:
        self._options = options
        self._config_file = config_file
        self._facts = facts
        self._identity = identity
        self._server = ServerConnection(
            _machine(), size_limit=facts.max_message_size, local=not network
        )
        self._patience = _PATIENCE if network else _TURN
        self._patient = not network  # waits again when that is over
        self._input = select.poll()
        self._input.register(_STDIN, select.POLLIN)
        self._output = select.poll()
        self._output.register(_STDOUT, select.POLLOUT)
        self._signals = signals  # blocked but in _wait
        self._mail = Mail(b"")  # of the transaction under way, and its reverse-path in our form
        self._sender = b""
        self._recipients: list[Recipient] = []
        self._gone = False  # the client does not send, or does not listen, any more
        self._code = 0

    def run(self) -> int:
        """Answer everything; the exit code."""
        try:
            while (event := self._next()) is not None:
                match event:
                    case Mail():
                        self._begin(event)
                    case Rcpt():
                        self._add(event)
                    case MessageData() | MessageEnd():
                        self._take(event)
        except Exception:
            self._server.close("internal error", "4.3.0")
            self._flush()
            raise
        return self._code

    # The transaction

    def _begin(self, mail: Mail) -> None:
        try:
            sender = _address(mail.sender) if mail.sender else b""
        except AddressError as exc:
            self._server.reply(553, _text(exc), "5.1.7")
            return
        self._mail = mail
        self._sender = sender
        self._recipients = []
        self._server.reply(250, "sender ok", "2.1.0")

    def _add(self, rcpt: Rcpt) -> None:
        if len(self._recipients) >= _MOST_RECIPIENTS:
            self._server.reply(452, "too many recipients", "4.5.3")
            return
        try:
            address = _address(rcpt.recipient)
        except AddressError as exc:
            self._server.reply(553, _text(exc), exc.status)
            return
        original = rcpt.original if rcpt.original != address else b""
        self._recipients.append(Recipient(address, original, rcpt.notify))
        self._server.reply(250, "recipient ok", "2.1.5")

    def _take(self, first: MessageData | MessageEnd) -> None:
        """Queue the message that begins with ``first``, answer, and start its delivery."""
        submission = posix.urandom(ID_OCTETS)
        envelope = new_envelope(
            self._options, self._identity, submission, self._sender, each_once(self._recipients)
        )
        envelope.body = self._mail.body
        envelope.ret = self._mail.ret
        envelope.envid = self._mail.envid
        message = self._message(first)
        try:
            try:
                own = hand_over(
                    self._facts,
                    submission,
                    envelope,
                    message,
                    self._mail.size,
                    later=self._options.delivery == "queue",
                )
            except MinisendError as exc:
                for _ in message:
                    pass  # the client listens only when it has sent everything
                self._server.reply(*_refusal(exc))
                return
        except _Abandoned:
            return
        self._server.reply(250, f"Ok: queued as {envelope.queue_id}", "2.0.0")
        self._flush()
        if own:
            start_delivery(self._options, self._facts, self._config_file, envelope.queue_id)

    def _message(self, first: MessageData | MessageEnd) -> "Iterator[bytes]":
        """The octets of the message, taken from the client as they are asked for.  Raises _Abandoned when it stays unfinished."""
        event: Event | None = first
        while isinstance(event, MessageData):
            yield event.octets
            event = self._next()
        if not isinstance(event, MessageEnd):
            raise _Abandoned

    # The client

    def _next(self) -> "Event | None":
        """The next event; None when there will be none."""
        event = self._server.next_event()
        while event is None and self._read():
            event = self._server.next_event()
        return event

    def _read(self) -> bool:
        """Send what there is to say, then take in more; False when the session is over."""
        self._flush()
        if self._gone or self._server.state is State.CLOSED:
            return False
        try:
            octets = self._octets()
        except KeyboardInterrupt as exc:
            self._end("shutting down", "4.3.2", 128 + exc.args[0])
        except TimeoutError:
            self._end("nothing came for too long", "4.4.2", 0)
        except ConnectionError:
            self._gone = True
        except OSError as exc:
            self._end(_text(f"cannot read: {exc.strerror}"), "4.3.0", ReadError.exit_code)
        else:
            self._server.receive_data(octets)
            self._gone = not octets
        return not self._gone

    def _octets(self) -> bytes:
        """What came, ``b""`` at the end of input; waits for it, also on a descriptor in non-blocking mode."""
        while True:
            self._wait(self._input)
            try:
                return posix.read(_STDIN, _PIECE)
            except BlockingIOError:
                pass  # another process that has it open was quicker

    def _end(self, text: str, status: str, code: int) -> None:
        self._code = code
        self._patience, self._patient = 0, False  # who does not listen now does not hear it
        self._server.close(text, status)
        self._flush()
        self._gone = True

    def _flush(self) -> None:
        """Send all that the server has to say.  A client that does not listen any more is gone."""
        octets = self._server.data_to_send()
        try:
            while octets and not self._gone:
                # Not to be stopped by a signal while the client could be told: it may be that a message was queued.
                if not self._output.poll(0):
                    self._wait(self._output)
                try:
                    # So much goes into a pipe that is ready without blocking.
                    octets = octets[posix.write(_STDOUT, octets[: select.PIPE_BUF]) :]
                except BlockingIOError:
                    pass
        except KeyboardInterrupt as exc:
            self._gone = True
            self._code = 128 + exc.args[0]
        except OSError:
            self._gone = True

    def _wait(self, poller: select.poll) -> None:
        """Until the descriptor is ready.  Raises TimeoutError, and KeyboardInterrupt with the number of a signal."""
        try:
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, self._signals)
            while not poller.poll(self._patience):
                if not self._patient:
                    raise TimeoutError
        finally:
            _signal.pthread_sigmask(_signal.SIG_BLOCK, self._signals)


class _Abandoned(Exception):
    """RSET, QUIT or the end of input came in the middle of a message: it will not be completed."""


def _is_network(fd: int) -> bool:
    """True for a socket other than a local one."""
    if not S_ISSOCK(posix.fstat(fd).st_mode):
        return False
    import _socket

    try:
        # Which family it has is found out with getsockname.
        sock = _socket.socket(fileno=fd)
    except OSError:
        return True
    sock.detach()
    return sock.family != _socket.AF_UNIX


def _machine() -> bytes:
    """Our name in the greeting: the kernel's, as nobody but the client sees it."""
    name = posix.uname().nodename
    fit = name and name.isascii() and name.isprintable() and " " not in name
    return name.encode("ascii") if fit else b"localhost"


def _address(path: bytes) -> bytes:
    """The one address that a path names, in the form that the command line's have.  Raises AddressError."""
    addresses = parse_recipients(path)
    if len(addresses) > 1:
        raise AddressError(path, "more than one address")
    return addresses[0]


def _refusal(exc: MinisendError) -> tuple[int, str, str]:
    """The reply for a message that was not queued."""
    if isinstance(exc, MessageTooBig):
        return 552, _text(exc), exc.status
    cause = exc.__cause__
    if isinstance(exc, SpoolFull) or (
        isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
    ):
        return 452, _text(exc), "4.3.1"
    return 451 if exc.status.startswith("4") else 554, _text(exc), exc.status


def _refuse_to_serve(exc: MinisendError) -> None:
    try:
        posix.write(_STDOUT, f"421 4.3.5 {_text(exc)}\r\n".encode("ascii"))
    except OSError:
        pass  # nobody is told, but by the exit code


def _text(what: object) -> str:
    """One line of printable ASCII that fits a reply."""
    text = str(what).encode("ascii", "backslashreplace").decode("ascii")
    return "".join(c if c.isprintable() else "?" for c in text)[:_LONGEST_TEXT]
