"""The whole main path to a real Postfix as smarthost: processes of ``sendmail``, one ``minisend flush``, and what arrived.

What is expected is put together here, not by minisend's own modules: the fields as they were given, those that were
added, and the body with LF line ends, as the server's records have it.
"""

import os
import pwd
import quopri
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from delivery.program import Program

from peers.certificate import Certificate
from peers.postfix import Arrived, Postfix
from peers.process import wait_for

pytestmark = pytest.mark.peer

StartPostfix = Callable[..., Postfix]

ACCOUNT = pwd.getpwuid(os.getuid())
FULL_NAME = ACCOUNT.pw_gecos.partition(",")[0].replace("&", ACCOUNT.pw_name.capitalize()).encode()

# Where in a header the fields of a resent message are added.
RESENT = b"(Resent-Date, Resent-From, Resent-Message-ID)\n"


@dataclass(frozen=True)
class Shape:
    """A message and what becomes of it.

    ``fields``  what is left of its own header, in order, RESENT in place of what is added there
    ``to``      what -t finds, qualified
    ``body_to_dot``  the body where a line with a lone dot ends the message (no -i), if that is another
    """

    given: bytes
    fields: bytes
    body: bytes
    to: tuple[bytes, ...] = ()
    body_to_dot: bytes | None = None


FULL = b"Date: Mon, 2 Nov 2026 10:00:00 +0100\nFrom: ann@x.test\nMessage-ID: <1@x.test>\n"
MIB = b"".join(b"%07d 0123456789 abcdefghijklmnopqrstuvwxyz .\n" % n for n in range(22_800))
REFERENCES = b"References:" + b"".join(b"\n <%06d@x.test>" % n for n in range(12_000)) + b"\n"

SHAPES = {
    "complete": Shape(FULL + b"Subject: s\n\nbody\n", FULL + b"Subject: s\n", b"body\n"),
    "CRLF": Shape(b"Subject: s\r\nX: 1\r\n 2\r\n\r\na\r\n\r\nb\r\n", b"Subject: s\nX: 1\n 2\n", b"a\n\nb\n"),
    "mixed line ends": Shape(b"Subject: s\rX: 1\r\n\na\rb\r\r\nc\n\rd\n", b"Subject: s\nX: 1\n", b"a\nb\n\nc\n\nd\n"),
    "no header": Shape(b"just text\nSubject: not one\n\nmore\n", b"", b"just text\nSubject: not one\n\nmore\n"),
    "no blank line": Shape(b"Subject: s\nHere it begins\n\nmore\n", b"Subject: s\n", b"Here it begins\n\nmore\n"),
    "mbox line": Shape(b"From ann Mon Nov  2 10:00:00 2026\nSubject: s\n\nbody\n", b"Subject: s\n", b"body\n"),
    "From lines below": Shape(b"Subject: s\n\nFrom ann\n>From bob\n", b"Subject: s\n", b"From ann\n>From bob\n"),
    "folded": Shape(b"Subject: a\n b\n\tc\nX:\n  y\n\nbody\n", b"Subject: a\n b\n\tc\nX:\n  y\n", b"body\n"),
    "Latin-1": Shape(b"Subject: \xe9\xff\n\n\xe9\xfe\n", b"Subject: \xe9\xff\n", b"\xe9\xfe\n"),
    "UTF-8": Shape("Subject: ü 邮\n\nü 邮\n".encode(), "Subject: ü 邮\n".encode(), "ü 邮\n".encode()),
    "no final newline": Shape(b"Subject: s\n\nbody", b"Subject: s\n", b"body\n"),
    "dots": Shape(b"Subject: s\n\n.x\n..\n...\n. \n.\t\n", b"Subject: s\n", b".x\n..\n...\n. \n.\t\n"),
    "lone dot": Shape(b"Subject: s\n\na\n.\nb\n", b"Subject: s\n", b"a\n.\nb\n", body_to_dot=b"a\n"),
    "lone dot, CRLF": Shape(b"Subject: s\r\n\r\na\r\n.\r\nb\r\n", b"Subject: s\n", b"a\n.\nb\n", body_to_dot=b"a\n"),
    "smuggling": Shape(b"Subject: s\n\na\r.\rMAIL FROM:<x>\n", b"Subject: s\n", b"a\n.\nMAIL FROM:<x>\n"),
    "NULs": Shape(b"Subj\0ect: a\0b\n\na\0b\n\0.\n", b"Subject: ab\n", b"ab\n.\n"),
    "long line": Shape(b"Subject: s\n\n" + b"x" * 10_000 + b"\nb\n", b"Subject: s\n", b"x" * 10_000 + b"\nb\n"),
    "empty body": Shape(b"Subject: s\n\n", b"Subject: s\n", b""),
    "header alone": Shape(b"Subject: s\n", b"Subject: s\n", b""),
    "nothing": Shape(b"", b"", b""),
    "blank lines": Shape(b"\n\n\nbody \n \t\n\n\n", b"", b"\n\nbody \n \t\n\n\n"),
    "1 MiB": Shape(b"Subject: s\n\n" + MIB, b"Subject: s\n", MIB),
    "long header": Shape(REFERENCES + b"\nbody\n", REFERENCES, b"body\n"),
    "Bcc": Shape(
        b"To: bob@x.test\nbcc: eve@x.test,\n mal@x.test\nCc: carl@x.test (C)\nBcc:\n\nbody\n",
        b"To: bob@x.test\nCc: carl@x.test (C)\n",
        b"body\n",
        (b"bob@x.test", b"eve@x.test", b"mal@x.test", b"carl@x.test"),
    ),
    "resent": Shape(
        FULL + b"To: bob@x.test\nResent-To: dan@x.test\nResent-Bcc: eve@x.test\nSubject: s\n\nbody\n",
        FULL + b"To: bob@x.test\n" + RESENT + b"Resent-To: dan@x.test\nSubject: s\n",
        b"body\n",
        (b"dan@x.test", b"eve@x.test"),
    ),
    "repeated and strange": Shape(
        b"From: ann@x.test\nFrom: bob@x.test\nDate:\nReturn-Path: <x>\nContent-Length: 3\ntO:a@x.test\n"
        b"x-\xe9: no field\nbody\n",
        b"From: ann@x.test\nFrom: bob@x.test\ntO:a@x.test\n",
        b"x-\xe9: no field\nbody\n",
        (b"a@x.test",),
    ),
    "bare names": Shape(
        b'To: root, "Bob, the" <bob> (b), team: carl, dan@x.test;\nReply-To: me\nSubject: root\n\nbody\n',
        b'To: root@here.test, "Bob, the" <bob@here.test> (b), team: carl@here.test, dan@x.test;\n'
        b"Reply-To: me@here.test\nSubject: root\n",
        b"body\n",
        (b"root@here.test", b"bob@here.test", b"carl@here.test", b"dan@x.test"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """Options; ``sender`` and ``name`` are what they say, None for the account's."""

    options: tuple[str, ...]
    sender: bytes | None = None
    name: bytes | None = None
    dot_ends: bool = False
    from_headers: bool = False


WAYS = (
    Way(("-i",)),
    Way(("-oi", "-f", "ann@x.test"), sender=b"ann@x.test"),
    Way(("-i", "-r", "ann", "-F", "Ann O. Ther"), sender=b"ann@here.test", name=b'"Ann O. Ther"'),
    Way(("-i", "-f", "<>"), sender=b""),
    Way(("-fann@x.test", "-F", "Änn"), sender=b"ann@x.test", name=b"=?utf-8?q?=C3=84nn?=", dot_ends=True),
    Way((), dot_ends=True),
    Way(("-ti",), from_headers=True),
    Way(("-t", "-oi", "-B8BITMIME", "-oem", "-f", "ann@x.test"), sender=b"ann@x.test", from_headers=True),
)  # fmt: skip

RECEIVED = re.compile(
    rb"Received: by here\.test \(minisend, from userid %d \(%b\)\)\n\tid ([0-9a-f]{16}); (.*)\n"
    % (os.getuid(), ACCOUNT.pw_name.encode())
)


def expected(shape: Shape, way: Way, received: bytes, queue_id: bytes, date: bytes) -> bytes:
    """The message as the server has it, Received included."""
    stamp = parsedate_to_datetime(date.decode()).astimezone(UTC).strftime("%Y%m%d%H%M%S").encode()
    # The null sender says nothing about who wrote it.
    address = way.sender or ACCOUNT.pw_name.encode() + b"@here.test"
    name = FULL_NAME if way.name is None else way.name
    added = {
        b"Date": date,
        b"From": b"%b <%b>" % (name, address) if name else address,
        b"Message-ID": b"<%b.%b@here.test>" % (stamp, queue_id),
    }
    resent = b"".join(b"Resent-%b: %b\n" % field for field in added.items())
    fields = shape.fields.replace(RESENT, resent)
    present = {line.partition(b":")[0] for line in fields.split(b"\n")}
    missing = b"".join(b"%b: %b\n" % field for field in added.items() if field[0] not in present)
    body = shape.body
    if way.dot_ends and shape.body_to_dot is not None:
        body = shape.body_to_dot
    if max(map(len, body.split(b"\n"))) > 998:
        # No line of a message may be longer (RFC 5322 section 2.1.1).
        missing += b"MIME-Version: 1.0\nContent-Type: text/plain; charset=us-ascii\n"
        missing += b"Content-Transfer-Encoding: quoted-printable\n"
        body = quopri.encodestring(body)
    return received + fields + missing + b"\n" + body


def secret(directory: Path, password: str) -> Path:
    path = directory / "secret"
    path.write_text(password + "\n")
    path.chmod(0o600)
    return path


def submission(
    postfix: Postfix, certificate: Certificate, password_file: Path, **more: object
) -> str:
    """[smarthost] with STARTTLS and AUTH."""
    settings = {
        "host": "localhost",
        "port": postfix.port,
        "tls_ca_file": str(certificate.ca_file),
        "username": "ann",
        "password_file": str(password_file),
        **more,
    }
    return "[smarthost]\n" + "".join(
        f'{key} = "{value}"\n' if isinstance(value, str) else f"{key} = {value}\n"
        for key, value in settings.items()
    )


def plain(postfix: Postfix) -> str:
    return f'[smarthost]\nhost = "{postfix.address}"\nport = {postfix.port}\ntls = "none"\n'


def test_messages_of_all_shapes_arrive_octet_for_octet(
    start_postfix: StartPostfix, certificate: Certificate, tmp_path: Path
) -> None:
    """Each shape in each way, over one verified connection with authentication."""
    postfix = start_postfix(certificate=certificate, accounts={"ann": "se cret"})
    program = Program(tmp_path, submission(postfix, certificate, secret(tmp_path, "se cret")))
    cases = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        for which, way in enumerate(WAYS):
            recipient = f"m{number}.{which}@x.test"
            program.sendmail(*way.options, "--", recipient, stdin=shape.given)
            cases[recipient.encode()] = (name, shape, way)
    assert len(cases) >= 200
    assert program.flush() == (0, f"{len(cases)} delivered, 0 waiting, 0 failed")

    different = []
    for arrived in postfix.arrived():
        (own,) = cases.keys() & set(arrived.recipients)
        name, shape, way = cases.pop(own)
        received = RECEIVED.match(arrived.message)
        assert received, arrived.message[:200]
        sender = ACCOUNT.pw_name.encode() + b"@here.test" if way.sender is None else way.sender
        assert (arrived.sender, arrived.mechanism, arrived.account) == (
            sender,
            b"PLAIN",
            b"ann@accounts.test",
        )
        also_to = shape.to if way.from_headers else ()
        assert arrived.recipients == tuple(sorted((own, *also_to))), (name, way)
        if arrived.message != expected(shape, way, received[0], received[1], received[2]):
            different.append((name, way, arrived.message[:500]))
    assert different == []
    assert cases == {}
    # The first is the fixture's, to see that it answers; the others are connections_per_host.
    assert 2 <= postfix.log().count("]: connect from ") <= 1 + 20
    assert program.queue() == []


@pytest.mark.parametrize(
    ("auth", "offered", "used"),
    [
        pytest.param("auto", ["PLAIN", "LOGIN"], b"PLAIN", id="the stronger"),
        pytest.param("auto", ["LOGIN"], b"LOGIN", id="what there is"),
        pytest.param("login", ["PLAIN", "LOGIN"], b"LOGIN", id="what is wanted"),
    ],
)
def test_authentication(
    start_postfix: StartPostfix,
    certificate: Certificate,
    tmp_path: Path,
    auth: str,
    offered: list[str],
    used: bytes,
) -> None:
    postfix = start_postfix(
        certificate=certificate, accounts={"ann": "pässwörd"}, mechanisms=offered
    )
    program = Program(
        tmp_path, submission(postfix, certificate, secret(tmp_path, "pässwörd"), auth=auth)
    )
    program.sendmail("bob@x.test", stdin=b"Subject: s\n\n")
    assert program.flush() == (0, "1 delivered, 0 waiting, 0 failed")
    (arrived,) = postfix.arrived()
    assert (arrived.mechanism, arrived.account) == (used, b"ann@accounts.test")
    assert b"(using TLSv1.3 " in arrived.trace and b" with ESMTPSA id " in arrived.trace


def test_tls_from_the_first_octet(
    start_postfix: StartPostfix, certificate: Certificate, tmp_path: Path
) -> None:
    postfix = start_postfix(certificate=certificate, accounts={"ann": "secret"})
    assert postfix.implicit_port is not None
    program = Program(
        tmp_path,
        submission(
            postfix,
            certificate,
            secret(tmp_path, "secret"),
            tls="implicit",
            port=postfix.implicit_port,
        ),
    )
    program.sendmail("bob@x.test", stdin=b"Subject: s\n\n")
    assert program.flush() == (0, "1 delivered, 0 waiting, 0 failed")
    (arrived,) = postfix.arrived()
    assert b" with ESMTPSA id " in arrived.trace


def reasons(program: Program) -> list[str]:
    """Of all recipients that wait, each once."""
    found = {
        str(recipient["delay_reason"])
        for message in program.queue()
        for recipient in message["recipients"]
    }
    return sorted(found)


@pytest.mark.parametrize(
    ("names", "expired", "trusts", "why"),
    [
        pytest.param(
            ["localhost"],
            False,
            False,
            "certificate of localhost is from a CA that is not trusted here: "
            "[smarthost] tls_ca_file can name the CA's own certificate",
            id="CA",
        ),
        pytest.param(
            ["other.test"],
            False,
            True,
            "certificate is not for localhost, the name expected, but for other.test: [smarthost] "
            "host is to be a name that it bears, or tls_fingerprint its fingerprint",
            id="name",
        ),
        pytest.param(
            ["localhost"],
            True,
            True,
            "certificate of localhost has expired on DATE: the server needs a new one; "
            "until then [smarthost] tls_fingerprint can name this one",
            id="expired",
        ),
    ],
)
def test_a_certificate_that_does_not_hold_puts_off(
    start_postfix: StartPostfix,
    certificate: Certificate,
    tmp_path: Path,
    names: list[str],
    expired: bool,
    trusts: bool,
    why: str,
) -> None:
    """Neither the message nor the password goes out, over TLS or without."""
    expires = datetime.now(UTC) - timedelta(days=1) if expired else None
    shown = Certificate(tmp_path, *names, expires=expires)
    postfix = start_postfix(certificate=shown, accounts={"ann": "secret"})
    program = Program(
        tmp_path,
        submission(postfix, shown if trusts else certificate, secret(tmp_path, "secret")),
    )
    program.sendmail("bob@x.test", stdin=b"Subject: s\n\n")
    assert program.flush() == (75, "0 delivered, 1 waiting, 0 failed")
    (reason,) = reasons(program)
    said = re.escape(why).replace("DATE", "[A-Z][a-z]{2} +[0-9]+ [0-9:]+ [0-9]+ GMT")
    assert re.fullmatch(
        rf"host localhost\[[0-9.:]+\]:{postfix.port}: {said} \(during STARTTLS\)", reason
    )
    assert postfix.arrived() == []
    # What this client said, by Postfix's own count: EHLO, and STARTTLS as far as it came.
    assert re.findall(r"disconnect from .*?((?: \w+=\S+)+)$", postfix.log(), re.MULTILINE)[1:] == [
        " ehlo=1 starttls=0/1 commands=1/2"
    ]


def test_a_wrong_password_puts_off_and_is_said_once(
    start_postfix: StartPostfix, certificate: Certificate, tmp_path: Path
) -> None:
    postfix = start_postfix(certificate=certificate, accounts={"ann": "secret"})
    program = Program(tmp_path, submission(postfix, certificate, secret(tmp_path, "guess")))
    for _ in range(3):
        program.sendmail("bob@x.test", stdin=b"Subject: s\n\n")
    assert program.flush() == (75, "0 delivered, 3 waiting, 0 failed")
    (reason,) = reasons(program)
    assert " refused user name or password, check both in [smarthost]: 535 5.7.8 " in reason
    assert postfix.log().count("authentication failed") == 1
    # Put right, all of them go.
    secret(tmp_path, "secret")
    assert program.flush("--all") == (0, "3 delivered, 0 waiting, 0 failed")
    assert len(postfix.arrived()) == 3


def test_a_password_file_that_others_can_read_puts_off(
    start_postfix: StartPostfix, certificate: Certificate, tmp_path: Path
) -> None:
    postfix = start_postfix(certificate=certificate, accounts={"ann": "secret"})
    path = secret(tmp_path, "secret")
    path.chmod(0o644)
    program = Program(tmp_path, submission(postfix, certificate, path))
    program.sendmail("bob@x.test", stdin=b"Subject: s\n\n")
    assert program.flush() == (75, "0 delivered, 1 waiting, 0 failed")
    assert reasons(program) == [
        f"[smarthost] password_file: {path}: mode 0644 lets every user in: "
        "chmod o= it, or set secret_mode_check = false"
    ]


def test_a_refusal_that_nobody_can_be_told_is_kept_and_shown(
    start_postfix: StartPostfix, tmp_path: Path
) -> None:
    postfix = start_postfix(refusals={"bob@x.test": "550 5.1.1 no bob here"})
    program = Program(tmp_path, plain(postfix))
    program.sendmail(
        *("-f", "<>", "ann@x.test", "bob@x.test", "carl@x.test"), stdin=b"Subject: s\n\n"
    )
    assert program.flush() == (69, "0 delivered, 0 waiting, 1 failed")
    assert program.flush("--all") == (0, "nothing to deliver: the queue is empty")
    assert [(arrived.sender, arrived.recipients) for arrived in postfix.arrived()] == [
        (b"", (b"ann@x.test", b"carl@x.test"))
    ]
    (message,) = program.queue()
    assert message["queue_name"] == "failed"
    assert [
        (recipient["address"], recipient["action"], recipient["status"])
        for recipient in message["recipients"]
    ] == [("bob@x.test", "failed", "5.1.1")]
    listed = program.run("mailq").stdout.decode()
    assert "no bob here" in listed and "bob@x.test" in listed and "ann@x.test" not in listed


def test_a_recipient_put_off_waits_alone_and_is_delivered_once(
    start_postfix: StartPostfix, tmp_path: Path
) -> None:
    postfix = start_postfix(refusals={"bob@x.test": "450 4.2.1 later"})
    program = Program(tmp_path, plain(postfix))
    program.sendmail("ann@x.test", "bob@x.test", stdin=b"Subject: s\n\n")
    assert program.flush() == (75, "0 delivered, 1 waiting, 0 failed")
    (message,) = program.queue()
    assert [recipient["address"] for recipient in message["recipients"]] == ["bob@x.test"]
    willing = start_postfix()
    program.configure(plain(willing))
    program.make_due()
    assert program.flush() == (0, "1 delivered, 0 waiting, 0 failed")
    (first,), (second,) = postfix.arrived(), willing.arrived()
    assert (first.recipients, second.recipients) == ((b"ann@x.test",), (b"bob@x.test",))
    assert first.message == second.message


def test_a_smarthost_that_is_down(start_postfix: StartPostfix, tmp_path: Path) -> None:
    """Accepted all the same; why and until when is shown; up again and due, it is delivered once."""
    postfix = start_postfix()
    program = Program(tmp_path, plain(postfix), retry_min="1h")
    postfix.stop()
    before = datetime.now()
    done = program.run("sendmail", "-odi", "ann@x.test", stdin=b"Subject: s\n\n")
    assert (done.returncode, done.stderr) == (0, b"")
    shown = re.search(
        rf"\(connect to \[127\.0\.0\.1\]:{postfix.port}: Connection refused; next attempt (.*)\)\n +ann@x\.test\n",
        program.run("mailq").stdout.decode(),
    )
    assert shown
    (message,) = program.queue()
    wait = datetime.fromtimestamp(message["next_attempt"]) - before
    assert timedelta(hours=1) <= wait <= timedelta(hours=1.2)
    assert f"{datetime.fromtimestamp(message['next_attempt']):%H:%M}" in shown[1]

    postfix.start()
    assert program.flush()[0] == 0
    assert postfix.arrived() == []
    program.make_due()
    assert program.flush() == (0, "1 delivered, 0 waiting, 0 failed")
    assert program.flush("--all") == (0, "nothing to deliver: the queue is empty")
    assert len(postfix.arrived()) == 1


def arrivals(postfix: Postfix, count: int) -> list[Arrived]:
    return wait_for(f"{count} messages", lambda: len(found := postfix.arrived()) >= count and found)


def test_sendmail_sees_to_the_delivery_itself(start_postfix: StartPostfix, tmp_path: Path) -> None:
    """In the background, unless told otherwise: a burst of submissions, nobody flushes, each arrives once."""
    postfix = start_postfix()
    program = Program(tmp_path, plain(postfix))
    for number in range(20):
        done = program.run("sendmail", f"r{number}@x.test", stdin=b"Subject: s\n\n")
        assert (done.returncode, done.stderr) == (0, b"")
    arrived = arrivals(postfix, 20)
    assert sorted(each.recipients[0] for each in arrived) == sorted(
        b"r%d@x.test" % number for number in range(20)
    )
    wait_for("the queue is empty", lambda: not program.queue())
