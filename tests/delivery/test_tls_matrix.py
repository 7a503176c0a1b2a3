"""What a server can do about TLS, at each level: exit code, reason and octets, as minisend.toml(5) has them in its table.

The server is a script that keeps what it got in the clear and what it got inside TLS apart, connection by connection.
"""

import errno
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest
import trustme
from delivery.program import Program

from minisend.errors import SmtpError
from minisend.smtp.deadlines import Deadlines
from minisend.smtp.handshake import Trust, fingerprints
from minisend.smtp.session import Session
from minisend.smtp.stream import HandshakeError, connect

_WAIT = 20.0  # a test that waits longer has failed

DELIVERED = (0, "1 delivered, 0 waiting, 0 failed")
WAITS = (75, "0 delivered, 1 waiting, 0 failed")

HELLO = [b"EHLO"]
BEFORE_TLS = [b"EHLO", b"STARTTLS"]
MESSAGE = [b"EHLO", b"MAIL", b"RCPT", b"DATA", b"Subject", b"QUIT"]
# After RFC 3207 nothing may be said to a server that let somebody else speak.
NOTHING: list[bytes] = []


@dataclass
class Connection:
    """Verbs, and "Subject" for a message, in the order they came: ``clear`` and inside TLS; ``rest``: what was no line."""

    clear: list[bytes] = field(default_factory=list)
    encrypted: list[bytes] = field(default_factory=list)
    rest: bytes = b""


@dataclass(frozen=True)
class Way:
    """What the server does.

    ``context``   of its side of the handshake; None: it sends ``answer`` there and closes
    ``keyword``   what its EHLO offers
    ``go_ahead``  its reply to STARTTLS
    """

    context: ssl.SSLContext | None = None
    answer: bytes = b""
    keyword: bytes = b"STARTTLS"
    go_ahead: bytes = b"220 go ahead\r\n"


class Server:
    """``implicit``: TLS from the first octet, on every connection but those that do not begin with a handshake."""

    def __init__(self, way: Way, *, implicit: bool) -> None:
        self._way = way
        self._implicit = implicit
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept)
        self._faults: list[BaseException] = []
        self.port: int = self._listener.getsockname()[1]
        self.connections: list[Connection] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(_WAIT)
        assert not self._thread.is_alive()
        if self._faults:
            raise self._faults[0]

    def _accept(self) -> None:
        """One connection after the other, which is how one message is sent."""
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            accepted.settimeout(_WAIT)
            connection = Connection()
            self.connections.append(connection)
            try:
                with accepted:
                    self._serve(accepted, connection)
            except (ConnectionError, ssl.SSLError):
                pass  # the client has gone, or the handshake has failed
            except BaseException as fault:
                # Gone before the handshake has begun.
                if not isinstance(fault, OSError) or fault.errno != errno.ENOTCONN:
                    self._faults.append(fault)

    def _serve(self, plain: socket.socket, connection: Connection) -> None:
        if not self._implicit:
            plain.sendall(b"220 mx.test ESMTP\r\n")
            if not self._talk(plain, connection.clear):
                return
            plain.sendall(self._way.go_ahead)
        if self._way.context is None:
            # Not before the handshake has begun: that would be an injection.
            connection.rest = plain.recv(65536)
            if self._way.answer:
                plain.sendall(self._way.answer)
                plain.shutdown(socket.SHUT_WR)
                while piece := plain.recv(65536):
                    connection.rest += piece
            return
        with self._way.context.wrap_socket(plain, server_side=True) as encrypted:
            if self._implicit:
                encrypted.sendall(b"220 mx.test ESMTP\r\n")
            self._talk(encrypted, connection.encrypted)

    def _talk(self, over: socket.socket, verbs: list[bytes]) -> bool:
        """Take commands to the end, or True when the handshake is to begin."""
        with over.makefile("rwb") as lines:

            def say(reply: bytes) -> None:
                lines.write(reply + b"\r\n")
                lines.flush()

            while line := lines.readline():
                verb = line.split()[0].partition(b":")[0]
                verbs.append(verb)
                if verb == b"EHLO":
                    tls = not isinstance(over, ssl.SSLSocket) and not self._implicit
                    say(b"250-mx.test\r\n250 " + (self._way.keyword if tls else b"HELP"))
                elif verb == b"STARTTLS":
                    if not self._way.go_ahead.startswith(b"220"):
                        lines.write(self._way.go_ahead)
                        lines.flush()
                        continue
                    return True
                elif verb == b"DATA":
                    say(b"354 go ahead")
                    while (line := lines.readline()) != b".\r\n":
                        assert line, "end of file within the message"
                        if line.startswith(b"Subject:"):
                            verbs.append(b"Subject")
                    say(b"250 taken")
                elif verb == b"QUIT":
                    say(b"221 bye")
                    return False
                else:
                    say(b"250 ok")
        return False


class Authorities:
    """Those whom the client trusts, those whom it does not, and certificates of both."""

    def __init__(self, directory: Path) -> None:
        self.known = trustme.CA()
        self.stranger = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self.known.cert_pem.write_to_path(self.ca_file)
        ours = self.known.issue_cert("client@here.test")
        self.certificate = directory / "client.pem"
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in ours.cert_chain_pems))
        self.key = directory / "client.key"
        ours.private_key_pem.write_to_path(self.key)
        self.key.chmod(0o600)
        foreign = self.stranger.issue_cert("client@here.test")
        self.foreign = directory / "foreign.pem"
        foreign.private_key_and_cert_chain_pem.write_to_path(self.foreign)
        self.foreign.chmod(0o600)
        late = self.known.issue_cert("client@here.test", not_before=PAST, not_after=PAST)
        self.expired = directory / "expired.pem"
        late.private_key_and_cert_chain_pem.write_to_path(self.expired)
        self.expired.chmod(0o600)
        # Its own issuer, and so a certificate that vouches for itself.
        self.self_signed = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        alone = trustme.CA()
        path = directory / "self.pem"
        path.write_bytes(alone.private_key_pem.bytes() + alone.cert_pem.bytes())
        self.self_signed.load_cert_chain(path)
        self.self_signed_pins = fingerprints(
            ssl.PEM_cert_to_DER_cert(alone.cert_pem.bytes().decode())
        )

    def context(
        self,
        *names: str,
        issuer: trustme.CA | None = None,
        begins: datetime | None = None,
        ends: datetime | None = None,
    ) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (issuer or self.known).issue_cert(
            *(names or ("localhost",)), not_before=begins, not_after=ends
        ).configure_cert(context)
        return context

    def demanding(self, version: ssl.TLSVersion) -> ssl.SSLContext:
        """Of a server that takes nobody without a certificate."""
        context = self.context()
        context.minimum_version = context.maximum_version = version
        context.verify_mode = ssl.CERT_REQUIRED
        self.known.configure_trust(context)
        return context

    def old(self) -> ssl.SSLContext:
        """Of a server that stands still since 2007."""
        context = self.context()
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        return context


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Authorities:
    return Authorities(tmp_path_factory.mktemp("authorities"))


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    with ExitStack() as servers:
        yield lambda way, level: servers.enter_context(Server(way, implicit=level == "implicit"))


@dataclass(frozen=True)
class Result:
    """``why``: the reason shown; of each connection what was in the clear, and what inside TLS."""

    flush: tuple[int, str]
    why: str
    clear: list[list[bytes]]
    encrypted: list[list[bytes]]


def sent(tmp_path: Path, server: Server, level: str, settings: str) -> Result:
    """One message, flushed once."""
    program = Program(
        tmp_path,
        f'[smarthost]\nhost = "localhost"\nport = {server.port}\ntls = "{level}"\n{settings}',
    )
    program.sendmail("bob@x.test", stdin=b"Subject: s\n\n")
    flush = program.flush()
    why = ""
    for message in program.queue():
        recipients = message["recipients"]
        assert isinstance(recipients, list)
        why = str(recipients[0]["delay_reason"])
        why = why.replace(f"localhost[127.0.0.1]:{server.port}", "SERVER")
        why = why.replace(f"port = {server.port}", "port = PORT")
    for connection in server.connections:
        # Nothing but TLS records where TLS was to begin.
        assert connection.rest[:2] in (b"", b"\x16\x03"), connection.rest
        assert b"EHLO" not in connection.rest
    return Result(
        flush,
        why,
        [connection.clear for connection in server.connections],
        [connection.encrypted for connection in server.connections],
    )


def waits(level: str, why: str) -> Result:
    """One connection, nothing of the message.  With implicit TLS the handshake is part of connecting, as ``why`` shows."""
    if level == "implicit":
        return Result(WAITS, why, [NOTHING], [NOTHING])
    return Result(WAITS, f"host SERVER: {why} (during STARTTLS)", [BEFORE_TLS], [NOTHING])


def delivered(level: str) -> Result:
    """Inside TLS."""
    return Result(DELIVERED, "", [NOTHING if level == "implicit" else BEFORE_TLS], [MESSAGE])


IN_PLAIN_TEXT = Result(DELIVERED, "", [BEFORE_TLS, MESSAGE], [NOTHING, NOTHING])

PAST = datetime(2020, 1, 1, tzinfo=UTC)
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)
LEVELS = ("starttls", "implicit", "opportunistic")
TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


CERTIFICATES: list[tuple[str, Callable[[Authorities], ssl.SSLContext], str]] = [
    (
        "expired",
        lambda at: at.context(begins=PAST, ends=PAST + timedelta(1)),
        "certificate of localhost has expired on Jan 2 00:00:00 2020 GMT: the server needs a new one; "
        "until then [smarthost] tls_fingerprint can name this one",
    ),
    (
        "not yet valid",
        lambda at: at.context(begins=FUTURE, ends=FUTURE + timedelta(1)),
        "certificate of localhost is not valid yet, but from Jan 1 00:00:00 2100 GMT: "
        "see that the clock of this machine is right",
    ),
    (
        "wrong name",
        lambda at: at.context("a.test", "*.b.test", "192.0.2.1", "d.test"),
        "certificate is not for localhost, the name expected, but for a.test, *.b.test, 192.0.2.1, ...: "
        "[smarthost] host is to be a name that it bears, or tls_fingerprint its fingerprint",
    ),
    (
        "self-signed",
        lambda at: at.self_signed,
        "certificate of localhost is self-signed: [smarthost] tls_fingerprint can name it",
    ),
    (
        "unknown CA",
        lambda at: at.context(issuer=at.stranger),
        "certificate of localhost is from a CA that is not trusted here: "
        "[smarthost] tls_ca_file can name the CA's own certificate",
    ),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("context", "why"), [pytest.param(*case[1:], id=case[0]) for case in CERTIFICATES]
)
def test_a_certificate_that_does_not_hold(
    serve: Callable[..., Server],
    authorities: Authorities,
    tmp_path: Path,
    context: Callable[[Authorities], ssl.SSLContext],
    why: str,
    level: str,
) -> None:
    server = serve(Way(context(authorities)), level)
    result = sent(tmp_path, server, level, f'tls_ca_file = "{authorities.ca_file}"\n')
    assert result == (delivered(level) if level == "opportunistic" else waits(level, why))


@pytest.mark.parametrize("level", LEVELS[:2])
@pytest.mark.parametrize("context", [pytest.param(case[1], id=case[0]) for case in CERTIFICATES])
def test_a_certificate_that_need_not_hold(
    serve: Callable[..., Server],
    authorities: Authorities,
    tmp_path: Path,
    context: Callable[[Authorities], ssl.SSLContext],
    level: str,
) -> None:
    server = serve(Way(context(authorities)), level)
    assert sent(tmp_path, server, level, "tls_verify = false\n") == delivered(level)


@pytest.mark.parametrize("level", LEVELS)
def test_a_certificate_that_holds(
    serve: Callable[..., Server], authorities: Authorities, tmp_path: Path, level: str
) -> None:
    server = serve(Way(authorities.context()), level)
    result = sent(tmp_path, server, level, f'tls_ca_file = "{authorities.ca_file}"\n')
    assert result == delivered(level)


@pytest.mark.parametrize("level", LEVELS[:2])
@pytest.mark.parametrize("kind", [0, 1], ids=["certificate", "key"])
def test_the_fingerprint_expected(
    serve: Callable[..., Server], authorities: Authorities, tmp_path: Path, level: str, kind: int
) -> None:
    """Nobody vouches for this certificate, and it has no name."""
    pins = [authorities.self_signed_pins[kind], f"sha256:{'00' * 32}"]
    server = serve(Way(authorities.self_signed), level)
    assert sent(tmp_path, server, level, f"tls_fingerprint = {pins}\n") == delivered(level)


@pytest.mark.parametrize("level", LEVELS[:2])
@pytest.mark.parametrize("kind", [0, 1], ids=["certificate", "key"])
def test_another_fingerprint(
    serve: Callable[..., Server], authorities: Authorities, tmp_path: Path, level: str, kind: int
) -> None:
    """Nothing else than TLS is begun, so the server has heard of no message and no account."""
    found = authorities.self_signed_pins[kind]
    pin = f"{found.partition(':')[0]}:{'00' * 32}"
    server = serve(Way(authorities.self_signed), level)
    assert sent(tmp_path, server, level, f'tls_fingerprint = "{pin}"\n') == waits(
        level,
        f"certificate of localhost is not one of those expected (expected {pin}; found {found}): "
        "change [smarthost] tls_fingerprint only if you know why the server has another",
    )


@pytest.mark.parametrize("level", LEVELS[:2])
def test_the_fingerprint_expected_and_an_authority_that_did_not_issue_it(
    serve: Callable[..., Server], authorities: Authorities, tmp_path: Path, level: str
) -> None:
    pin = authorities.self_signed_pins[0]
    server = serve(Way(authorities.self_signed), level)
    settings = f'tls_fingerprint = "{pin}"\ntls_ca_file = "{authorities.ca_file}"\n'
    assert sent(tmp_path, server, level, settings) == waits(level, CERTIFICATES[3][2])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("oldest", ["1.2", "1.3"])
def test_a_server_whose_tls_is_too_old(
    serve: Callable[..., Server],
    authorities: Authorities,
    tmp_path: Path,
    level: str,
    oldest: str,
) -> None:
    context = authorities.old()
    if oldest == "1.3":
        context = authorities.context()
        context.maximum_version = TLS_1_2
    server = serve(Way(context), level)
    settings = f'tls_ca_file = "{authorities.ca_file}"\ntls_min_version = "{oldest}"\n'
    result = sent(tmp_path, server, level, settings)
    if level == "opportunistic":
        assert result == IN_PLAIN_TEXT
    else:
        assert result == waits(
            level,
            "TLS handshake with localhost: no TLS version in common with the server: "
            f'[smarthost] tls_min_version = "{oldest}" is the oldest accepted',
        )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=lambda version: version.name)
def test_a_server_that_demands_a_certificate_of_ours(
    serve: Callable[..., Server],
    authorities: Authorities,
    tmp_path: Path,
    level: str,
    version: ssl.TLSVersion,
) -> None:
    trust = f'tls_ca_file = "{authorities.ca_file}"\n'
    ours = f'tls_cert_file = "{authorities.certificate}"\ntls_key_file = "{authorities.key}"\n'
    foreign = f'tls_cert_file = "{authorities.foreign}"\n'
    expired = f'tls_cert_file = "{authorities.expired}"\n'
    way = Way(authorities.demanding(version))
    for name in ("ours", "none", "foreign", "late"):
        (tmp_path / name).mkdir()
    assert sent(tmp_path / "ours", serve(way, level), level, trust + ours) == delivered(level)
    without = sent(tmp_path / "none", serve(way, level), level, trust)
    stranger = sent(tmp_path / "foreign", serve(way, level), level, trust + foreign)
    late = sent(tmp_path / "late", serve(way, level), level, trust + expired)
    if level == "opportunistic":
        assert [without, stranger, late] == [IN_PLAIN_TEXT] * 3
        return
    refused = "TLS handshake with localhost: our certificate, or the lack of one, is not accepted: the server said "
    remedy = ": [smarthost] tls_cert_file and tls_key_file name the one to show"
    if version is TLS_1_2:
        # There is no alert of its own for it.
        lacking = "TLS handshake with localhost: the server said handshake failure"
        assert without == waits(level, lacking)
        assert stranger == waits(level, f"{refused}unknown ca{remedy}")
        assert late == waits(level, f"{refused}certificate expired{remedy}")
    else:
        # The handshake is over for us when the server looks at what we have shown.
        phase = "greeting" if level == "implicit" else "EHLO"
        clear = NOTHING if level == "implicit" else BEFORE_TLS
        for result, alert in (
            (without, "certificate required"),
            (stranger, "unknown ca"),
            (late, "certificate expired"),
        ):
            why = f"host SERVER: {refused}{alert}{remedy} (during {phase})"
            assert result == Result(WAITS, why, [clear], [NOTHING])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        pytest.param(
            b"220 mx.test ESMTP\r\n",
            "TLS handshake with localhost: the server answered with what is not TLS",
            id="plain text",
        ),
        pytest.param(
            b"", "TLS handshake with localhost: server closed the connection", id="closed"
        ),
        pytest.param(
            b"\x15\x03\x01\x00\x02\x02\x50",
            "TLS handshake with localhost: the server said internal error",
            id="alert",
        ),
    ],
)
def test_a_server_that_does_not_get_through_the_handshake(
    serve: Callable[..., Server],
    authorities: Authorities,
    tmp_path: Path,
    level: str,
    answer: bytes,
    why: str,
) -> None:
    server = serve(Way(answer=answer), level)
    if level == "opportunistic":
        assert sent(tmp_path, server, level, "") == IN_PLAIN_TEXT
        return
    if answer.startswith(b"220"):
        other = "starttls" if level == "implicit" else "implicit"
        why += f': [smarthost] tls = "{level}" with port = PORT: is tls = "{other}" meant?'
    assert sent(tmp_path, server, level, "") == waits(level, why)
    assert all(connection.rest for connection in server.connections)


@pytest.mark.parametrize("level", ["starttls", "opportunistic"])
@pytest.mark.parametrize(
    ("way", "said"),
    [
        pytest.param(Way(keyword=b"HELP"), "does not offer STARTTLS", id="not offered"),
        # What Cisco's "fixup" makes of it, so that the length stays.
        pytest.param(Way(keyword=b"XXXXXXXA"), "does not offer STARTTLS", id="blanked"),
        *(
            pytest.param(
                Way(go_ahead=f"{reply}\r\n".encode()), f"refused STARTTLS: {reply}", id=reply[:3]
            )
            for reply in (
                "454 4.7.0 TLS not available due to local problem",
                "500 5.5.1 what?",
                "502 no",
            )
        ),
    ],
)
def test_no_starttls(
    serve: Callable[..., Server], tmp_path: Path, way: Way, said: str, level: str
) -> None:
    server = serve(way, level)
    result = sent(tmp_path, server, level, "")
    asked = BEFORE_TLS if "refused" in said else HELLO
    if level == "opportunistic":
        assert result == Result(DELIVERED, "", [asked + MESSAGE[1:]], [NOTHING])
    else:
        why = (
            f"host SERVER: TLS is required, and the server {said}: "
            '[smarthost] tls = "starttls" demands it; somebody on the way may have removed the offer'
            " (during STARTTLS)"
        )
        assert result == Result(WAITS, why, [[*asked, b"QUIT"]], [NOTHING])


@pytest.mark.parametrize("level", ["starttls", "opportunistic"])
@pytest.mark.parametrize(
    "injected", [b"250 hello\r\n", b"2", b"\x16\x03\x01"], ids=["reply", "octet", "record"]
)
def test_octets_behind_the_reply_to_starttls(
    serve: Callable[..., Server],
    authorities: Authorities,
    tmp_path: Path,
    injected: bytes,
    level: str,
) -> None:
    """CVE-2011-0411, and its kin in clients: no handshake is begun, and nothing said in the clear either."""
    server = serve(Way(authorities.context(), go_ahead=b"220 go ahead\r\n" + injected), level)
    why = "host SERVER: octets after the reply to STARTTLS (during STARTTLS)"
    assert sent(tmp_path, server, level, f'tls_ca_file = "{authorities.ca_file}"\n') == Result(
        WAITS, why, [BEFORE_TLS], [NOTHING]
    )


@pytest.mark.parametrize("level", LEVELS)
def test_a_handshake_that_stalls(level: str) -> None:
    """It ends at its deadline, which is too long to be waited for in a flush."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = connect("127.0.0.1", listener.getsockname()[1], 5)
        accepted, _ = listener.accept()
    accepted.settimeout(_WAIT)
    until_tls = threading.Thread(target=_until_tls, args=(accepted,))
    if level != "implicit":
        until_tls.start()
    session = Session(
        stream,
        hello=b"here.test",
        tls=level,
        trust=Trust(ssl.create_default_context()),
        server_name="localhost",
        deadlines=Deadlines(starttls=1.0 if level != "implicit" else 0.05),
    )
    with accepted, pytest.raises(SmtpError) as caught:
        session.open()
    if level != "implicit":
        until_tls.join()
    error = caught.value
    assert isinstance(error, HandshakeError)
    assert (str(error), error.plain_text_allowed, vars(error)["phase"]) == (
        "TLS handshake with localhost: timed out",
        level == "opportunistic",
        "connect" if level == "implicit" else "STARTTLS",
    )


def _until_tls(accepted: socket.socket) -> None:
    """A server's part up to where the handshake is to begin."""
    with accepted.makefile("rwb") as lines:
        for reply in (b"220 mx.test\r\n", b"250-mx.test\r\n250 STARTTLS\r\n", b"220 go ahead\r\n"):
            lines.write(reply)
            lines.flush()
            if not reply.endswith(b"ahead\r\n"):
                assert lines.readline()


def test_an_address_has_no_name_to_send(
    serve: Callable[..., Server], authorities: Authorities, tmp_path: Path
) -> None:
    """SNI is of names alone (RFC 6066 section 3); a name is always sent."""
    asked: list[str | None] = []
    context = authorities.context("localhost", "127.0.0.1")
    context.sni_callback = lambda over, name, of: asked.append(name)
    for host in ("localhost", "127.0.0.1"):
        directory = tmp_path / host
        directory.mkdir()
        server = serve(Way(context), "implicit")
        program = Program(
            directory,
            f'[smarthost]\nhost = "{host}"\nport = {server.port}\ntls = "implicit"\n'
            f'tls_ca_file = "{authorities.ca_file}"\n',
        )
        program.sendmail("bob@x.test", stdin=b"Subject: s\n\n")
        assert program.flush() == DELIVERED
    assert asked == ["localhost", None]


# The prime of RFC 2409 section 6.2: 1,024 bits, what servers used for ephemeral keys until 2015.
OAKLEY_2 = """\
-----BEGIN DH PARAMETERS-----
MIGHAoGBAP//////////yQ/aoiFowjTExmKLgNwc0SkCTgiKZ8x0Agu+pjsTmyJR
Sgh5jjQE3e+VGbPNOkMbMCsKbfJfFDdP4TVtbVHCReSFtXZiXn7G9ExC6aY37WsL
/1y29Aa37e44a/taiZ+lrp8kEXxLH+ZJKGZR7OZTgf//////////AgEC
-----END DH PARAMETERS-----
"""


def _short_keys(authorities: Authorities, directory: Path) -> ssl.SSLContext:
    """Of a server whose ephemeral keys are shorter than OpenSSL's defaults take."""
    path = directory / "dh.pem"
    path.write_text(OAKLEY_2)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authorities.known.issue_cert("localhost", key_type=trustme.KeyType.RSA).configure_cert(context)
    context.maximum_version = TLS_1_2
    context.set_ciphers("DHE-RSA-AES128-GCM-SHA256:@SECLEVEL=0")
    context.load_dh_params(path)
    return context


def test_a_key_that_is_too_short_is_better_than_plain_text(
    serve: Callable[..., Server], authorities: Authorities, tmp_path: Path
) -> None:
    """And where plain text is not what follows, it is refused."""
    short = Way(_short_keys(authorities, tmp_path))
    for level, settings, expected in (
        ("opportunistic", "", delivered("opportunistic")),
        (
            "starttls",
            "tls_verify = false\n",
            waits("starttls", "TLS handshake with localhost: dh key too small"),
        ),
    ):
        directory = tmp_path / level
        directory.mkdir()
        assert sent(directory, serve(short, level), level, settings) == expected


@pytest.mark.parametrize("trusted", ["intermediate authority", "server"])
def test_who_is_trusted_need_not_be_a_root(
    serve: Callable[..., Server], tmp_path: Path, trusted: str
) -> None:
    """Whatever Python's version has for a default."""
    authority = trustme.CA().create_child_ca()
    issued = authority.issue_cert("localhost")
    ca_file = tmp_path / "ca.pem"
    pem = issued.cert_chain_pems[0] if trusted == "server" else authority.cert_pem
    pem.write_to_path(ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    server = serve(Way(context), "starttls")
    settings = f'tls_ca_file = "{ca_file}"\n'
    assert sent(tmp_path, server, "starttls", settings) == delivered("starttls")
