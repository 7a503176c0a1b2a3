"""The program and the servers that others wrote: what each offers is used, and what arrived is what was given.

    cell                     Postfix  Exim  OpenSMTPD  Dovecot submission     Dovecot LMTP
    in the clear, STARTTLS   yes      yes   yes        yes                    yes
    TLS from the first octet yes      yes   yes        yes                    a route names a socket or a port, and no level of TLS
    8-bit and UTF-8 content  yes      yes   yes        yes                    yes
    UTF-8 address            yes      yes   has no SMTPUTF8: the address fails with 5.6.7, the other one has the message
    20 MB, 300 recipients    yes      yes   yes        yes                    yes
    DSN parameters           yes      yes   yes        has no DSN: the program reports itself, once
    AUTH                     Cyrus's  yes   yes        all of them            LMTP has none here

Each yes is a test of what the server has stored; AUTH at Dovecot and Cyrus is in ``test_auth``.  ``OFFERED`` is what
the servers really say, so that a cell which a newer one adds is missed here.

Each server is started twice for all tests: open, and with TLS and accounts.  Dovecot's submission takes no mail
without a login; what it takes it hands to a Postfix.  Its LMTP server has mailboxes.
"""

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest
import trustme
from delivery.program import Program
from delivery.reports import read_report

from peers.certificate import Certificate
from peers.dovecot import Dovecot, DovecotLMTP
from peers.exim import Exim
from peers.opensmtpd import OpenSMTPD
from peers.postfix import Arrived, Postfix, split_trace
from peers.process import Server, wait_for

pytestmark = pytest.mark.peer

# Not ASCII, as servers that know nothing of character sets take it octet for octet.
PASSWORD = "pässword, ="

SECURITY = ("none", "starttls", "implicit")
EVERY_PEER = ("postfix", "exim", "opensmtpd", "dovecot", "dovecot lmtp")
CELLS = [
    (peer, tls)
    for peer in EVERY_PEER
    for tls in SECURITY
    if (peer, tls) != ("dovecot lmtp", "implicit")
]

# What EHLO or LHLO says inside TLS, the numbers behind SIZE left out.
OFFERED = {
    "postfix": "8BITMIME, AUTH LOGIN PLAIN, CHUNKING, DSN, ENHANCEDSTATUSCODES, ETRN, PIPELINING, SIZE, SMTPUTF8, VRFY",
    "exim": "8BITMIME, AUTH CRAM-MD5 LOGIN PLAIN, CHUNKING, DSN, HELP, PIPECONNECT, PIPELINING, SIZE, SMTPUTF8",
    "opensmtpd": "8BITMIME, AUTH LOGIN PLAIN, DSN, ENHANCEDSTATUSCODES, HELP, SIZE",
    "dovecot": "8BITMIME, AUTH PLAIN, BURL, CHUNKING, ENHANCEDSTATUSCODES, PIPELINING, SIZE",
    "dovecot lmtp": "8BITMIME, CHUNKING, ENHANCEDSTATUSCODES, PIPELINING",
}

# Whom the tests write to.
MAILBOXES = ("ann", "bob", "carl", *(f"m{n}" for n in range(9)), *(f"r{n}" for n in range(300)))

HEADER = b"From: ann@x.test\nDate: Mon, 2 Nov 2026 10:00:00 +0100\nMessage-ID: <1@x.test>\n"
RECEIVED = re.compile(rb"Received: by here\.test \(minisend, [^\n]*\)\n\tid ([0-9a-f]{16}); .*\n")


class Peer(Protocol):
    """What these tests want of a server beside ``Server``."""

    address: str
    port: int
    implicit_port: int | None

    def arrived(self) -> list[Arrived]: ...

    def log(self) -> str: ...


class Mailboxes(DovecotLMTP):
    """Dovecot's LMTP server as one of the others."""

    implicit_port = None

    def __init__(self, certificate: Certificate | None = None) -> None:
        super().__init__({f"{name}@x.test": 0 for name in MAILBOXES}, certificate=certificate)


class BehindDovecot(Dovecot):
    """Dovecot with the Postfix that gets its mail, whose Received field is not the only one."""

    def __init__(self, relay: Postfix, certificate: Certificate) -> None:
        super().__init__((relay.address, relay.port), certificate, {"ann": PASSWORD})
        self._relay = relay

    def arrived(self) -> list[Arrived]:
        return self._relay.arrived()


class Peers:
    """The servers of this module, each started when it is first asked for."""

    def __init__(self, certificate: Certificate, running: ExitStack) -> None:
        self.certificate = certificate
        self._running = running
        self._started: dict[tuple[str, bool], Peer] = {}

    def get(self, name: str, *, secure: bool) -> Peer:
        if (name, secure) not in self._started:
            self._started[name, secure] = self._start(name, secure)
        return self._started[name, secure]

    def _start(self, name: str, secure: bool) -> Peer:
        options = {"certificate": self.certificate, "accounts": {"ann": PASSWORD}} if secure else {}
        if name == "dovecot":
            behind = self._running.enter_context(Postfix())
            return self._enter(BehindDovecot(behind, self.certificate))
        if name == "dovecot lmtp":
            return self._enter(Mailboxes(self.certificate if secure else None))
        if name == "exim":
            mechanisms = ("PLAIN", "LOGIN", "CRAM-MD5")
            return self._enter(Exim(**options, mechanisms=mechanisms))
        if name == "traced opensmtpd":
            return self._enter(OpenSMTPD(**options, traced=True))
        return self._enter({"postfix": Postfix, "opensmtpd": OpenSMTPD}[name](**options))

    def _enter(self, server: Server) -> Peer:
        self._running.enter_context(server)
        # pytest shows it for a test that fails.
        self._running.callback(lambda: print(f"--- log of {server.name}\n{server.log()[-20_000:]}"))
        return server


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    # Not the session's: OpenSMTPD has RSA in every version.
    certificate = Certificate(
        tmp_path_factory.mktemp("certificate"), "localhost", key_type=trustme.KeyType.RSA
    )
    with ExitStack() as running:
        yield Peers(certificate, running)


class Sending:
    """The program with one of the servers as its smarthost, and what arrives there from now on."""

    def __init__(
        self, peers: Peers, name: str, tls: str, directory: Path, auth: str = "auto"
    ) -> None:
        self.peer = peers.get(name, secure=tls != "none")
        self.name = name
        self._before = len(self.peer.arrived())
        port = self.peer.implicit_port if tls == "implicit" else self.peer.port
        settings = f'[smarthost]\nhost = "localhost"\nport = {port}\ntls = "{tls}"\n'
        if name == "dovecot lmtp":
            # With a certificate that is not checked, as for MX hosts.
            level = "none" if tls == "none" else "opportunistic"
            settings = (
                f'[[route]]\nrecipient = "*"\nvia = "lmtp:[127.0.0.1]:{port}"\n'
                f'[delivery]\ntls = "{level}"\n'
            )
        elif tls != "none" or name == "dovecot":
            self.secret = directory / "secret"
            self.secret.write_text(PASSWORD)
            self.secret.chmod(0o600)
            settings += (
                f'tls_ca_file = "{peers.certificate.ca_file}"\nauth = "{auth}"\n'
                f'username = "ann"\npassword_file = "{self.secret}"\n'
            )
        self.program = Program(directory, settings, admin="admin@here.test")

    def arrived(self) -> list[Arrived]:
        """As it was when the program had it, without the Received fields that were put before."""
        stripped = []
        for arrived in self.peer.arrived()[self._before :]:
            message = arrived.message
            if self.name == "dovecot":
                _, message = split_trace(message)
            ours = RECEIVED.match(message)
            stripped.append((arrived, message[ours.end() :] if ours else message))
        return [
            Arrived(
                queue_id=each.queue_id,
                sender=each.sender,
                recipients=each.recipients,
                helo=each.helo,
                mechanism=each.mechanism,
                account=each.account,
                trace=each.trace,
                message=message,
            )
            for each, message in stripped
        ]


@pytest.fixture
def sending(peers: Peers, tmp_path: Path) -> Callable[..., Sending]:
    return lambda name, tls="none", **options: Sending(peers, name, tls, tmp_path, **options)


# What Received says of the session; Dovecot's is Postfix's of the session behind it.
HELO = dict.fromkeys(EVERY_PEER, b"here.test") | {"dovecot": b"mail.example.test"}
PROTOCOLS = {
    ("postfix", "none"): rb" with ESMTP id ",
    ("postfix", "starttls"): rb"\(using TLSv1\.3 [^;]* with ESMTPSA id ",
    ("exim", "none"): rb" with esmtp \(Exim",
    ("exim", "starttls"): rb" with esmtpsa\s+\(TLS1\.3\) tls TLS_\S+\s+\(Exim",
    ("dovecot", "none"): rb" with ESMTP id ",
    ("dovecot", "starttls"): rb" with ESMTP id ",
    ("dovecot lmtp", "none"): rb"\tby mail\.example\.test with LMTP\n",
    (
        "dovecot lmtp",
        "starttls",
    ): rb"\(using TLSv1\.3 [^)]*\)\)\n\tby mail\.example\.test with LMTPS\n",
    ("opensmtpd", "none"): rb" with ESMTP id ",
    ("opensmtpd", "starttls"): rb" with ESMTPSA id \S+ \(TLSv1\.3:\S+ auth=yes user=ann\s",
}


BODIES = {
    "ASCII": b"body\n",
    "empty": b"",
    "Latin-1": bytes(range(0xA0, 0x100)) + b"\n" + b"\xe9" * 900 + b"\n",
    "UTF-8": "ü 邮 ✉ \U0001f4ec\n".encode() * 20,
    "controls": bytes(octet for octet in range(1, 32) if octet not in b"\r\n") + b"\x7f\n",
    "dots": b".\n..\n...\n.x\n. \n\n.\n",
    "blank lines": b"\n\n \n\t\n\n",
    "long lines": (b"x" * 998 + b"\n") * 40,
    "From": b"From ann\n>From bob\n",
}


@pytest.mark.parametrize("peer", EVERY_PEER)
def test_what_is_offered(peers: Peers, peer: str) -> None:
    server = peers.get(peer, secure=True)
    context = ssl.create_default_context(cafile=peers.certificate.ca_file)
    with socket.create_connection((server.address, server.port), timeout=60) as plain:
        hello = b"LHLO me.test\r\n" if peer == "dovecot lmtp" else b"EHLO me.test\r\n"
        assert dialogue(plain, b"", hello, b"STARTTLS\r\n")[-1].startswith(b"220 ")
        with context.wrap_socket(plain, server_hostname="localhost") as secure:
            lines = dialogue(secure, hello, b"QUIT\r\n")
    offered = []
    for line in lines:
        if line.startswith(b"250"):
            keyword, *words = line[4:].decode().split()
            offered.append(" ".join([keyword, *sorted(words)] if keyword == "AUTH" else [keyword]))
    # The first is the server's name.
    assert ", ".join(sorted(offered[1:])) == OFFERED[peer]


def dialogue(server: socket.socket, *commands: bytes) -> list[bytes]:
    """The lines of its replies; an empty command is for a greeting."""
    lines = []
    with server.makefile("rb") as replies:
        for command in commands:
            server.sendall(command)
            lines.append(replies.readline())
            while lines[-1][3:4] == b"-":
                lines.append(replies.readline())
    return lines


@pytest.mark.parametrize(("peer", "tls"), CELLS)
def test_messages_arrive_octet_for_octet(
    sending: Callable[..., Sending], peer: str, tls: str
) -> None:
    here = sending(peer, tls)
    given = {}
    for number, (name, body) in enumerate(BODIES.items()):
        given[b"m%d@x.test" % number] = HEADER + f"Subject: {name} é\n\n".encode() + body
    for recipient, message in given.items():
        here.program.sendmail("-i", "-f", "ann@x.test", recipient.decode(), stdin=message)
    assert here.program.flush() == (0, f"{len(given)} delivered, 0 waiting, 0 failed")
    arrived = here.arrived()
    assert {each.recipients: each.message for each in arrived} == {
        (recipient,): message for recipient, message in given.items()
    }
    assert len(arrived) == len(given)
    assert {(each.sender, each.helo) for each in arrived} == {(b"ann@x.test", HELO[peer])}
    seen = PROTOCOLS[peer, "none" if tls == "none" else "starttls"]
    assert all(re.search(seen, each.trace) for each in arrived), arrived[0].trace


@pytest.mark.parametrize("peer", EVERY_PEER)
def test_twenty_megabytes(sending: Callable[..., Sending], peer: str) -> None:
    here = sending(peer, "starttls")
    line = b".%07d \xe9\xff 0123456789 abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ .\n"
    body = b"".join(map(line.__mod__, range(20_000_000 // 80)))
    assert len(body) > 18_000_000
    message = HEADER + b"Subject: large\n\n" + body
    here.program.sendmail("-i", "bob@x.test", stdin=message)
    assert here.program.flush() == (0, "1 delivered, 0 waiting, 0 failed")
    (arrived,) = here.arrived()
    assert arrived.recipients == (b"bob@x.test",)
    assert arrived.message == message


@pytest.mark.parametrize("peer", EVERY_PEER)
def test_three_hundred_recipients(sending: Callable[..., Sending], peer: str) -> None:
    here = sending(peer, "starttls")
    recipients = [f"r{number}@x.test" for number in range(300)]
    message = HEADER + b"Subject: to many\n\nbody\n"
    here.program.sendmail(*recipients, stdin=message)
    assert here.program.flush() == (0, "1 delivered, 0 waiting, 0 failed")
    arrived = here.arrived()
    assert {each.message for each in arrived} == {message}
    reached = [recipient.decode() for each in arrived for recipient in each.recipients]
    assert sorted(reached) == sorted(recipients)


@pytest.mark.parametrize(
    ("peer", "offered"),
    [(peer, "SMTPUTF8" in OFFERED[peer]) for peer in EVERY_PEER],
)
def test_an_address_in_utf8(sending: Callable[..., Sending], peer: str, offered: bool) -> None:
    """Taken where SMTPUTF8 is offered; else its sender is told, and the other recipient has the message."""
    here = sending(peer, "starttls")
    message = HEADER + "Subject: ü\n\nü\n".encode()
    here.program.sendmail(*("-i", "-f", "ann@x.test", "bob@x.test", "jürgen@x.test"), stdin=message)
    code, _ = here.program.flush("--all")
    if not offered:
        assert code == 69
        here.program.flush("--all")
    arrived = here.arrived()
    taken = [each for each in arrived if each.sender]
    (only,) = taken
    assert only.message == message
    recipients = (b"bob@x.test", *(["jürgen@x.test".encode()] if offered else []))
    assert only.recipients == recipients
    if not offered:
        (bounce,) = (each for each in arrived if not each.sender)
        assert bounce.recipients == (b"ann@x.test",)
        ((address, action, status),) = read_report(bounce.message).fates()
        assert ("rgen@x.test" in address, action, status) == (True, "failed", "5.6.7")


@pytest.mark.parametrize("peer", ["postfix", "exim", "traced opensmtpd", "dovecot", "dovecot lmtp"])
def test_a_success_that_was_asked_for_is_told_once(
    sending: Callable[..., Sending], peer: str
) -> None:
    """By the server, in the names that were given; by the program where the server has no DSN, as Dovecot.  Nothing else is told."""
    here = sending(peer, "starttls")
    message = HEADER + b"Subject: told\n\nsecret body\n"
    options = ("-N", "success,failure", "-R", "hdrs", "-V", "QQ+1=x")
    here.program.sendmail(*options, "-f", "ann@x.test", "bob@x.test", stdin=message)
    here.program.sendmail("-N", "never", "-f", "ann@x.test", "carl@x.test", stdin=message)
    assert here.program.flush()[0] == 0
    arrived = wait_for(
        "a report", lambda: any(not each.sender for each in here.arrived()) and here.arrived()
    )
    assert here.program.queue() == []
    (report,) = (each for each in arrived if not each.sender)
    assert report.recipients == (b"ann@x.test",)
    assert sorted(each.recipients for each in arrived if each.sender) == [
        (b"bob@x.test",),
        (b"carl@x.test",),
    ]
    assert re.search(rb"^Final-Recipient: rfc822; ?bob@x\.test$", report.message, re.MULTILINE)
    assert re.search(rb"^Action: (delivered|relayed)$", report.message, re.MULTILINE)
    assert b"\nSubject: told\n" in report.message and b"secret body" not in report.message
    if peer == "traced opensmtpd":
        # Its report leaves the name out.
        log = here.peer.log()
        assert re.search(r"<<< MAIL FROM:<ann@x\.test>[^\n]* RET=HDRS ENVID=QQ\+2B1\+3Dx\b", log)
        assert "<<< RCPT TO:<bob@x.test> NOTIFY=SUCCESS,FAILURE" in log
        assert "<<< RCPT TO:<carl@x.test> NOTIFY=NEVER" in log
    else:
        # Exim leaves it in xtext.
        name = rb"^Original-Envelope-I[dD]: QQ(\+1=|\+2B1\+3D)x$"
        assert re.search(name, report.message, re.MULTILINE)
    # The program's own reports name it.
    own = b"Reporting-MTA: dns; here.test\n" in report.message
    assert own == (peer in ("dovecot", "dovecot lmtp"))


def mechanisms(peer: str) -> list[str]:
    (line,) = re.findall(r"AUTH ([^,]*)", OFFERED[peer])
    return [*line.lower().split(), "auto"]


MECHANISMS = [
    *(("exim", auth) for auth in mechanisms("exim")),
    *(("traced opensmtpd", auth) for auth in mechanisms("opensmtpd")),
]


@pytest.mark.parametrize(("peer", "auth"), MECHANISMS)
def test_the_right_login(sending: Callable[..., Sending], peer: str, auth: str) -> None:
    here = sending(peer, "starttls", auth=auth)
    mechanism = "PLAIN" if auth == "auto" else auth.upper()
    here.program.sendmail("bob@x.test", stdin=HEADER + b"\n")
    assert here.program.flush() == (0, "1 delivered, 0 waiting, 0 failed")
    (arrived,) = here.arrived()
    assert arrived.account == b"ann"
    if isinstance(here.peer, OpenSMTPD):
        assert here.peer.logins()[-1] == ("ann", mechanism)
    else:
        assert arrived.mechanism == mechanism.encode()


@pytest.mark.parametrize(
    ("peer", "auth"), [(peer, auth) for peer, auth in MECHANISMS if auth != "auto"]
)
def test_the_wrong_password(sending: Callable[..., Sending], peer: str, auth: str) -> None:
    """The message waits, and the reason says what to do; nothing has arrived.  What tells the administrator waits with it."""
    here = sending(peer, "starttls", auth=auth)
    here.secret.write_text("guess")
    here.program.sendmail("bob@x.test", stdin=HEADER + b"\n")
    assert here.program.flush() == (75, "0 delivered, 2 waiting, 0 failed")
    waiting = {
        recipient["address"]: recipient
        for message in here.program.queue()
        for recipient in message["recipients"]
    }
    assert waiting.keys() == {"bob@x.test", "admin@here.test"}
    recipient = waiting["bob@x.test"]
    assert " refused user name or password, check both in [smarthost]: 535 " in str(
        recipient["delay_reason"]
    )
    assert here.arrived() == []
