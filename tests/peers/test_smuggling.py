"""SMTP smuggling: whatever ends of lines and dots a message holds, it arrives as that one message.

Each message here has what some server might take for the end of data, and behind it a whole transaction to another
recipient.  The messages come into the queue by every way that takes octets as they are, and go to servers that differ
in what they let end a message: OpenSMTPD, Exim, and Postfix strict and as lenient as it was before 2023.

Source: RFC 5321 sections 2.3.8 and 4.1.1.4; CVE-2023-51764 (Postfix), CVE-2023-51766 (Exim).
"""

import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import pytest
from delivery.program import Program

from peers.exim import Exim
from peers.opensmtpd import OpenSMTPD
from peers.postfix import Postfix
from peers.process import Server

pytestmark = pytest.mark.peer

LINE_ENDS = (b"\n", b"\r", b"\r\n")
# What may stand for the dot that ends a message, where NULs go.
DOTS = (b".", b"..", b"\0.", b".\0")
HEADER = b"From: ann@x.test\nDate: Mon, 2 Nov 2026 10:00:00 +0100\nMessage-ID: <1@x.test>\n\n"
TRANSACTION = (
    b"MAIL FROM:<evil@x.test>",
    b"RCPT TO:<smuggled@x.test>",
    b"DATA",
    b"Subject: smuggled",
    b"",
    b"smuggled",
    b".",
    b"",
)


def smuggled(before: bytes, dots: bytes, after: bytes) -> bytes:
    return b"x" + before + dots + after + after.join(TRANSACTION)


BODIES = [
    *(smuggled(*each) for each in product(LINE_ENDS, DOTS, LINE_ENDS)),
    smuggled(b"\r\n", b"\r\n.", b"\r"),
    smuggled(b"\r\r\n", b".", b"\r\r\n"),
    smuggled(b"\n\r", b".", b"\n\r"),
    # At the very beginning of the body.
    b".\r\n" + b"\r\n".join(TRANSACTION),
    # Of an odd length, so that the pieces that are read and written are cut at each of its places.
    b"\r\n.\r\n.\n" * 70_000,
    b"\r.\n..\r" * 80_000,
]


def normalised(octets: bytes) -> bytes:
    """Without NULs, each line end a LF, the last one added."""
    lines = octets.replace(b"\0", b"").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return lines if lines.endswith(b"\n") else lines + b"\n"


def way_and_body(recipient: bytes) -> tuple[str, int]:
    way, _, number = recipient.partition(b"@")[0].rpartition(b"-")
    return way.decode(), int(number)


def by_argument(program: Program) -> None:
    """sendmail -i with the message on standard input."""
    for number, body in enumerate(BODIES):
        program.sendmail("-i", f"argument-{number}@x.test", stdin=HEADER + body)


def dialogue(way: str, contents: Sequence[bytes]) -> bytes:
    """One session; each message to its own recipient."""
    session = [b"EHLO client.test\r\n"]
    for number, content in enumerate(contents):
        session.append(b"MAIL FROM:<ann@x.test>\r\n")
        session.append(f"RCPT TO:<{way}-{number}@x.test>\r\n".encode())
        session.append(content)
    return b"".join([*session, b"QUIT\r\n"])


def by_chunks(program: Program) -> None:
    """sendmail -bs with BDAT, where nothing in the message means anything."""
    contents = [b"BDAT %d LAST\r\n" % len(HEADER + body) + HEADER + body for body in BODIES]
    done = program.run("sendmail", "-odq", "-bs", stdin=dialogue("chunks", contents))
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\r\n250 2.0.0 ") == len(BODIES)


def by_network(program: Program) -> None:
    """sendmail -bs for inetd with DATA: the client doubles dots after CRLF alone, and ends the message so."""
    contents = []
    for body in BODIES:
        message = HEADER.replace(b"\n", b"\r\n") + body + b"\r\n"
        contents.append(b"DATA\r\n" + message.replace(b"\r\n.", b"\r\n..") + b".\r\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    with accepted, client:
        with subprocess.Popen(
            program.command("sendmail", "-odq", "-bs"),
            stdin=accepted,
            stdout=accepted,
            env={},
        ) as process:
            accepted.close()
            client.settimeout(60)
            client.sendall(dialogue("network", contents))
            said = b"".join(iter(lambda: client.recv(65536), b""))
    assert process.returncode == 0
    assert said.count(b"\r\n354 ") == len(BODIES)


WAYS = {"argument": by_argument, "chunks": by_chunks, "network": by_network}


@pytest.fixture(scope="module")
def queued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spool with every message by every way."""
    directory = tmp_path_factory.mktemp("queued")
    program = Program(directory, "")
    for submit in WAYS.values():
        submit(program)
    assert len(program.queue()) == len(WAYS) * len(BODIES)
    return program.spool


LENIENT = {"smtpd_forbid_bare_newline": "no", "smtpd_discard_ehlo_keywords": "chunking"}


@pytest.fixture(params=["postfix", "lenient postfix", "exim", "opensmtpd"])
def server(request: pytest.FixtureRequest) -> Iterator[Postfix | Exim | OpenSMTPD]:
    started: Server = {
        "postfix": Postfix,
        "lenient postfix": lambda: Postfix(**LENIENT),
        "exim": Exim,
        "opensmtpd": OpenSMTPD,
    }[request.param]()
    with started as running:
        yield running
        print(f"--- log of {running.name}\n{running.log()[-20_000:]}")


def test_nothing_is_smuggled(
    queued: Path, server: Postfix | Exim | OpenSMTPD, tmp_path: Path
) -> None:
    shutil.copytree(queued, tmp_path / "spool")
    program = Program(
        tmp_path, f'[smarthost]\nhost = "{server.address}"\nport = {server.port}\ntls = "none"\n'
    )
    count = len(WAYS) * len(BODIES)
    assert program.flush() == (0, f"{count} delivered, 0 waiting, 0 failed")
    arrived = server.arrived()
    assert len(arrived) == count
    assert {each.recipients for each in arrived} == {
        (f"{way}-{number}@x.test".encode(),) for way in WAYS for number in range(len(BODIES))
    }
    for each in arrived:
        assert each.sender != b"evil@x.test"
        way, number = way_and_body(each.recipients[0])
        body = BODIES[number]
        if way == "network":
            # What followed the message there, and its first line end when it ended in a CR.
            body += b"\r\n"
        received, _, message = each.message.partition(b"From: ann@x.test\n")
        assert received.startswith(b"Received: by here.test ") and received.count(b"\n") == 2
        assert b"From: ann@x.test\n" + message == normalised(HEADER + body), (way, body[:80])


def test_it_would_be_seen() -> None:
    """The lenient Postfix is deceived by a client that lets a bare LF through."""
    with Postfix(**LENIENT) as server:
        with socket.create_connection((server.address, server.port), timeout=60) as client:
            session = dialogue("network", [b"DATA\r\n" + smuggled(b"\n", b".", b"\r\n")])
            replies = client.makefile("rb")
            for line in (b"", *session.splitlines(keepends=True)):
                client.sendall(line)
                if line in (b"", b"DATA\r\n", b".\r\n", b"QUIT\r\n") or b":<" in line:
                    assert replies.readline()[:1] in b"23", line
                if line.startswith(b"EHLO "):
                    while replies.readline()[3:4] == b"-":
                        pass
            replies.close()
        assert [each.recipients for each in server.arrived()] == [
            (b"network-0@x.test",),
            (b"smuggled@x.test",),
        ]
