"""The opening of a session: greeting, EHLO, STARTTLS and AUTH, up to the point where a message may be sent.

No message is ever sent over a connection with less TLS than asked for, and no password over one without, unless the
configuration says so.

Source: RFC 5321 sections 3.1 and 3.2, RFC 2033 section 4.1 (LHLO), RFC 3207 (STARTTLS), RFC 4954 (AUTH).
"""

from __future__ import annotations

from minisend.errors import (
    LocalProtocolError,
    NetworkError,
    RemoteProtocolError,
    SmtpError,
    TlsError,
)
from minisend.smtp import client
from minisend.smtp.client import Answer
from minisend.smtp.dialogue import Dialogue, Refused
from minisend.smtp.reply import Reply
from minisend.smtp.stream import HandshakeError, blame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from minisend.smtp import auth
    from minisend.smtp.deadlines import Deadlines
    from minisend.smtp.handshake import Trust
    from minisend.smtp.stream import Stream

#: Octets of a command line with its CRLF (RFC 5321 section 4.5.3.1.4): a longer AUTH waits to be asked (RFC 4954 section 4).
_COMMAND_LINE = 512

_TLS_LEVELS = ("none", "opportunistic", "starttls", "implicit")


class Opening(Dialogue):
    """A session until ``open`` has returned.

    ``hello``        our name for EHLO, octets
    ``tls``          "none" | "opportunistic" (if offered) | "starttls" (or nothing) | "implicit" (from the first octet)
    ``trust``        needed unless ``tls`` is "none"; what it verifies is the caller's policy
    ``server_name``  name for SNI and for the certificate
    ``credentials``  None: no AUTH
    ``auth``         "auto" or the mechanism to use, as ``auth.choose`` takes it
    ``trace``        gets each line of the dialogue, without secrets
    ``allow_cleartext``  let a password go over a connection without TLS
    ``lmtp``         the server speaks LMTP: each recipient that it accepts gets an answer of its own to the message
    ``pipelining``   False: one command at a time, whatever the server offers
    """

    def __init__(
        self,
        stream: Stream,
        *,
        hello: bytes,
        tls: str = "none",
        trust: Trust | None = None,
        server_name: str | None = None,
        credentials: auth.Credentials | None = None,
        auth: str = "auto",
        deadlines: Deadlines | None = None,
        trace: Callable[[str], None] | None = None,
        allow_cleartext: bool = False,
        lmtp: bool = False,
        pipelining: bool = True,
    ) -> None:
        if tls not in _TLS_LEVELS:
            raise LocalProtocolError(f"not a level of TLS: {tls!r}")  # and must not pass for "none"
        super().__init__(stream, deadlines, trace, lmtp=lmtp, pipelining=pipelining)
        self._hello_name = hello
        self._tls = tls
        self._trust = trust
        self._server_name = server_name
        self._credentials = credentials
        self._mechanism = auth
        self._allow_cleartext = allow_cleartext

    def open(self) -> None:
        """From the connection to the point where a message may be sent.

        Raises ``Refused``, ``NetworkError``, ``TlsError`` (``HandshakeError`` when the handshake failed),
        ``AuthError``, ``RemoteProtocolError``; the connection is closed then.
        """
        try:
            if self._tls == "implicit":
                self._start_tls("connect")
            self._hear_greeting()
            self._say_hello()
            if self._tls in ("starttls", "opportunistic"):
                self._ask_for_tls()
            if self._credentials is not None:
                try:
                    self._authenticate(self._credentials)
                except SmtpError as error:
                    blame(error, client.AUTH)
                    raise
            if self._trust is not None:
                self._stream.keep_tls_session(self._trust, self._server_name)
        except SmtpError as error:
            if isinstance(error, HandshakeError):
                error.plain_text_allowed = self._tls == "opportunistic" and not error.taken_up
            # What has no phase yet failed between commands: while choosing how to encrypt.
            blame(error, client.STARTTLS)
            self.quit()
            raise
        except BaseException:
            self.close()
            raise

    def _hear_greeting(self) -> None:
        try:
            self._answer_ok()
        except NetworkError as error:
            if self._tls == "implicit" or self._trust is None:
                raise
            from minisend.smtp.handshake import Fault

            advised = self._trust.advised(Fault.SILENT, str(error))
            raise blame(NetworkError(advised, local=error.local), client.GREETING) from error

    def _say_hello(self) -> None:
        self._connection.ehlo(self._hello_name)
        answer = self._answer()
        if answer.reply.permanent and not self._lmtp:
            # RFC 5321 section 3.2: a server from before ESMTP.
            self._connection.helo(self._hello_name)
            answer = self._answer()
        if not answer.reply.ok:
            raise Refused(answer)

    def _ask_for_tls(self) -> None:
        required = self._tls == "starttls"
        if not self._connection.extensions.starttls:
            if required:
                raise self._without_tls("does not offer STARTTLS")
            return
        self._connection.starttls()
        answer = self._answer()
        if answer.reply.code == 421:
            raise Refused(answer)
        if not answer.reply.ok:
            if required:
                raise self._without_tls(f"refused STARTTLS: {answer.reply}")
            return
        self._start_tls(client.STARTTLS)
        self._connection.tls_established()
        try:
            self._say_hello()
        except (NetworkError, TlsError) as error:
            if required or isinstance(error, HandshakeError):
                raise
            # As good as a handshake that failed: what began so well is of no use.
            raise blame(HandshakeError(f"{error}, inside TLS"), client.EHLO) from error

    def _without_tls(self, why: str) -> TlsError:
        text = f"TLS is required, and the server {why}"
        if self._trust is not None:
            from minisend.smtp.handshake import Fault

            text = self._trust.advised(Fault.NOT_OFFERED, text)
        return TlsError(text)

    def _start_tls(self, phase: str) -> None:
        if self._fault is not None:  # octets behind the reply to STARTTLS
            raise self._fault
        try:
            if self._trust is None:
                raise LocalProtocolError("TLS without saying whom to trust")
            self._stream.start_tls(self._trust, self._server_name, self._deadlines.starttls)
        except SmtpError as error:
            self._fault = blame(error, phase)
            raise
        if self._trace is not None:
            self._trace(f"-- {self._stream.tls}")

    def _authenticate(self, credentials: auth.Credentials) -> None:
        from minisend.smtp import auth

        self._connection.hide(credentials.password, credentials.token)
        choices = auth.choose(
            self._connection.extensions.auth,
            self._mechanism,
            credentials,
            encrypted=self._stream.encrypted,
            allow_cleartext=self._allow_cleartext,
            binding=self._stream.channel_binding,
            starttls=self._connection.extensions.starttls,
        )
        while True:
            name = choices[0].name
            exchange = choices[0].begin()
            answer = self._run(name, exchange)
            if answer.reply.ok:
                exchange.accepted()
                return
            choices = auth.further(choices, exchange, answer.reply)
            if not choices:
                raise Refused(_with_reason(answer, exchange.failure))

    def _run(self, name: str, exchange: auth.Exchange) -> Answer:
        """One AUTH to its end; a challenge that the exchange has no response to is answered with "*" (RFC 4954 section 4)."""
        response = exchange.initial
        if (
            response is not None
            and len(f"AUTH {name} \r\n") + 4 * ((len(response) + 2) // 3) <= _COMMAND_LINE
        ):
            self._connection.auth(name, response)
            response = None
        else:
            self._connection.auth(name)
        answer = self._answer()
        while answer.reply.code // 100 == 3:
            try:
                if response is None:
                    response = exchange.answer(answer.reply)
                if response is None:
                    raise RemoteProtocolError(f"more challenges than {name} has")
            except SmtpError:
                # What the server says to that, if it does, explains nothing.
                try:
                    self._connection.auth_response(None)
                    self._answer()
                except SmtpError:
                    pass
                raise
            self._connection.auth_response(response)
            response = None
            answer = self._answer()
        return answer


def _with_reason(answer: Answer, reason: bytes) -> Answer:
    """The refusal of AUTH, with what the server said in a challenge before it as a last line."""
    if not reason:
        return answer
    reply = Reply(answer.reply.code, (*answer.reply.lines, b"(" + reason + b")"))
    return Answer(answer.command, answer.argument, reply)
