"""sendmail -bs as a process: the dialogues of real callers, what lands in the queue, and nothing on its output but SMTP."""

import os
import re
import select
import signal
import smtplib
import socket
import subprocess
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.admin.sink import Received, Sink
from minisend.envelope import Recipient

HOST = re.escape(os.uname().nodename.encode())
GREETING = b"220 " + HOST + rb" ESMTP\r\n"
EHLO = (
    rb"250-%b\r\n250-PIPELINING\r\n250-SIZE 4194304\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n"
    rb"250-CHUNKING\r\n250 ENHANCEDSTATUSCODES\r\n" % HOST
)
HELO = rb"250 %b\r\n" % HOST
SENDER = rb"250 2\.1\.0 sender ok\r\n"
RECIPIENT = rb"250 2\.1\.5 recipient ok\r\n"
OK = rb"250 2\.0\.0 ok\r\n"
GO_AHEAD = rb"354 end with CRLF \. CRLF\r\n"
QUEUED = rb"250 2\.0\.0 Ok: queued as [0-9a-f]{16}\r\n"
BYE = rb"221 2\.0\.0 bye\r\n"
TRANSACTION = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"
ANSWERED = SENDER + RECIPIENT + GO_AHEAD
MESSAGE = b"Subject: x\r\n\r\nHello.\r\n"


class Session:
    """A running ``sendmail -bs`` whose standard output and error are one pipe, as with alpine and nmh."""

    def __init__(self, sendmail, *arguments, **options):
        self.process = subprocess.Popen(
            [*sendmail.command, "-bs", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": "/usr/bin:/bin"},
            **options,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.process.kill()
        self.process.communicate()

    def answer(self) -> bytes:
        """The next reply, whole."""
        reply = b""
        while True:
            line = self.process.stdout.readline()
            reply += line
            if line[3:4] != b"-":
                return reply

    def say(self, octets: bytes) -> bytes:
        """Send, and give the next reply."""
        self.process.stdin.write(octets)
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> tuple[int, bytes]:
        """Close its input: the exit code and what it still said."""
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output


def converse(sendmail, octets: bytes, *arguments: str, **options) -> tuple[int, bytes]:
    """All of ``octets`` in one write: the exit code and everything it said."""
    with Session(sendmail, *arguments, **options) as session:
        output, _ = session.process.communicate(octets, timeout=60)
        return session.process.returncode, output


def patched(sendmail, *lines: str) -> None:
    """From here on the program begins with these lines."""
    launcher = sendmail.launcher.read_text()
    head, main, rest = launcher.partition("from minisend.__main__")
    sendmail.launcher.write_text(head + "\n".join(lines) + "\n" + main + rest)


def matches(output: bytes, *parts: bytes) -> None:
    assert re.fullmatch(b"".join(parts), output), output


def messages(sendmail) -> list[tuple[bytes, list[bytes], bytes]]:
    """Reverse-path, recipients and octets of every message, the oldest first."""
    found = sorted(sendmail.queued(), key=lambda each: each[0].arrived)
    return [
        (envelope.sender, [recipient.address for recipient in envelope.recipients], octets)
        for envelope, octets in found
    ]


ONE = [(b"a@example.org", [b"b@example.net"], MESSAGE)]


# -- callers


ALPINE = (
    b"Date: Mon, 23 Nov 2026 12:43:17 +0000 (UTC)\r\nFrom: Alice Example <alice@stubhost.example.test>\r\n"
    b"To: a@example.org\r\nMessage-ID: <5f59acf2-2a3c-94d0-5aab-e907b275ecf3@stubhost.example.test>\r\n"
    b"MIME-Version: 1.0\r\nContent-Type: text/plain; format=flowed; charset=US-ASCII\r\n\r\nsubj\r\nbody\r\n%bend\r\n"
)


def test_alpine_2_26(sendmail):
    """-bs -odb -oem, one command at a time, output and errors on one pipe."""
    with Session(sendmail, "-oem") as session:
        matches(session.answer(), GREETING)
        matches(session.say(b"EHLO localhost\r\n"), EHLO)
        matches(session.say(b"MAIL FROM:<alice@stubhost.example.test>\r\n"), SENDER)
        matches(session.say(b"RCPT TO:<a@example.org>\r\n"), RECIPIENT)
        matches(session.say(b"DATA\r\n"), GO_AHEAD)
        matches(session.say(ALPINE % b"..\r\n" + b".\r\n"), QUEUED)
        matches(session.say(b"QUIT\r\n"), BYE)
        assert session.end() == (0, b"")
    assert messages(sendmail) == [
        (b"alice@stubhost.example.test", [b"a@example.org"], ALPINE % b".\r\n")
    ]


def test_nmh_1_8(sendmail):
    """mts sendmail/smtp: all recipients as a probe, RSET, then a transaction for the visible ones and one for Bcc."""
    with Session(sendmail, "-om") as session:
        matches(session.answer(), GREETING)
        matches(session.say(b"EHLO localhost\r\n"), EHLO)
        matches(session.say(b"MAIL FROM:<a@example.org>\r\n"), SENDER)
        matches(session.say(b"RCPT TO:<b@example.net>\r\n"), RECIPIENT)
        matches(session.say(b"RCPT TO:<c@example.net>\r\n"), RECIPIENT)
        matches(session.say(b"RSET\r\n"), OK)
        for recipient in (b"b", b"c"):
            matches(session.say(b"MAIL FROM:<a@example.org>\r\n"), SENDER)
            matches(session.say(b"RCPT TO:<%b@example.net>\r\n" % recipient), RECIPIENT)
            matches(session.say(b"DATA\r\n"), GO_AHEAD)
            matches(session.say(b"Subject: to %b\r\n\r\n.\r\n" % recipient), QUEUED)
            matches(session.say(b"RSET\r\n"), OK)
        matches(session.say(b"QUIT\r\n"), BYE)
        assert session.end() == (0, b"")
    assert messages(sendmail) == [
        (b"a@example.org", [b"b@example.net"], b"Subject: to b\r\n\r\n"),
        (b"a@example.org", [b"c@example.net"], b"Subject: to c\r\n\r\n"),
    ]


def test_symfony_mailer(sendmail):
    """HELO with an address literal, two transactions, NOOP to see whether the process still lives."""
    with Session(sendmail) as session:
        matches(session.answer(), GREETING)
        matches(session.say(b"HELO [127.0.0.1]\r\n"), HELO)
        for _ in range(2):
            matches(session.say(b"NOOP\r\n"), OK)
            matches(session.say(b"MAIL FROM:<a@example.org>\r\n"), SENDER)
            matches(session.say(b"RCPT TO:<b@example.net>\r\n"), RECIPIENT)
            matches(session.say(b"DATA\r\n"), GO_AHEAD)
            matches(session.say(MESSAGE + b"\r\n.\r\n"), QUEUED)
        matches(session.say(b"QUIT\r\n"), BYE)
        assert session.end() == (0, b"")
    assert messages(sendmail) == [(b"a@example.org", [b"b@example.net"], MESSAGE + b"\r\n")] * 2


def test_smtplib_over_a_local_socket(sendmail):
    ours, theirs = socket.socketpair()
    with ours, smtplib.SMTP(local_hostname="client.example.org", timeout=60) as client:
        with theirs:
            process = subprocess.Popen(
                [*sendmail.command, "-bs"], stdin=theirs, stdout=theirs, stderr=theirs
            )
        client.sock = ours
        assert client.getreply()[0] == 220
        refused = client.sendmail(
            "a@example.org",
            ["b@example.net", "no one@", "ä@example.net"],
            "From: a\r\n\r\n.dot\r\nü\r\n".encode(),
            mail_options=["SMTPUTF8", "BODY=8BITMIME", "RET=HDRS"],
            rcpt_options=["NOTIFY=NEVER"],
        )
        assert list(refused) == ["no one@"]
        assert client.verify("b@example.net")[0] == 252
        assert client.quit()[0] == 221
        assert process.wait(60) == 0
    [(envelope, octets)] = sendmail.queued()
    assert (envelope.sender, envelope.body, envelope.ret) == (b"a@example.org", "8BITMIME", "HDRS")
    assert envelope.recipients == [
        Recipient(b"b@example.net", b"", "NEVER"),
        Recipient("ä@example.net".encode(), b"", "NEVER"),
    ]
    assert octets == "From: a\r\n\r\n.dot\r\nü\r\n".encode()


# -- the dialogue


def test_lf_alone_and_no_hello(sendmail):
    octets = b"MAIL FROM: a\nRCPT TO:<b>\nRCPT TO:c\nDATA\nSubject: x\n\n..dot\n\xff\0\r\n.\nQUIT\nNOOP\n"
    code, output = converse(sendmail, octets)
    matches(output, GREETING, SENDER, RECIPIENT, RECIPIENT, GO_AHEAD, QUEUED, BYE)
    assert code == 0
    assert messages(sendmail) == [(b"a", [b"b", b"c"], b"Subject: x\n\n.dot\n\xff\0\r\n")]


@pytest.mark.parametrize("cut", ["one write", "octet by octet"])
def test_pipelined(sendmail, cut):
    octets = b"EHLO me\r\n" + (TRANSACTION + MESSAGE + b".\r\n") * 2 + b"QUIT\r\n"
    if cut == "one write":
        code, output = converse(sendmail, octets)
    else:
        with Session(sendmail, bufsize=0) as session:
            for i in range(len(octets)):
                session.process.stdin.write(octets[i : i + 1])
            code, output = session.end()
    matches(output, GREETING, EHLO, (ANSWERED + QUEUED) * 2, BYE)
    assert code == 0
    assert messages(sendmail) == ONE * 2


def test_replies_to_what_came_together_are_sent_together(sendmail):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.settimeout(60)
        with theirs:
            process = subprocess.Popen([*sendmail.command, "-bs"], stdin=theirs, stdout=theirs)
        matches(ours.recv(4096), GREETING)
        ours.send(b"HELO me\nMAIL FROM:<>\nRCPT TO:<b>\nDA")
        matches(ours.recv(4096), HELO, SENDER, RECIPIENT)
        ours.send(b"TA\n")
        matches(ours.recv(4096), GO_AHEAD)
    assert process.wait(60) == 0
    assert sendmail.queued() == []


def test_chunks(sendmail):
    octets = (
        b"EHLO me\nBDAT 6\nNOOP\r\nMAIL FROM:<a@example.org> BODY=8BITMIME\nRCPT TO:<b@example.net>\n"
        b"BDAT 12\nSubject: x\r\nBDAT 0\nBDAT 5 LAST\n\n.\n\n.BDAT 3 LAST\nabcQUIT\n"
    )
    code, output = converse(sendmail, octets)
    matches(
        output,
        GREETING,
        EHLO,
        rb"503 5\.5\.1 command out of order\r\n",
        SENDER,
        RECIPIENT,
        rb"250 2\.0\.0 12 octets so far\r\n" * 2,
        QUEUED,
        rb"503 5\.5\.1 command out of order\r\n",
        BYE,
    )
    assert code == 0
    assert messages(sendmail) == [(b"a@example.org", [b"b@example.net"], b"Subject: x\r\n\n.\n\n.")]


def test_the_envelope(sendmail):
    octets = (
        b'EHLO me\r\nMAIL FROM:<@relay:"a"@example.org> BODY=7BIT RET=FULL ENVID=id+2B1 SIZE=9\r\n'
        b"RCPT TO:<b@example.net> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;list+2Bx@example.net\r\n"
        b"RCPT TO:<b@EXAMPLE.net> NOTIFY=NEVER\r\n"
        b"RCPT TO:<c@example.net> ORCPT=rfc822;c@example.net\r\n"
        b'RCPT TO:<Postmaster>\r\nRCPT TO:<"x y"@[192.0.2.1]>\r\nDATA\r\n.\r\n'
    )
    code, output = converse(
        sendmail, octets, "-F", "A Name", "-f", "ignored@example.org", "ignored"
    )
    matches(output, GREETING, EHLO, SENDER, RECIPIENT * 5, GO_AHEAD, QUEUED)
    assert code == 0
    [(envelope, octets)] = sendmail.queued()
    assert octets == b""
    assert (envelope.sender, envelope.sender_given) == (b"a@example.org", True)
    assert (envelope.body, envelope.ret, envelope.envid) == ("7BIT", "FULL", "id+1")
    assert (envelope.uid, envelope.full_name) == (os.getuid(), b"A Name")
    assert envelope.recipients == [
        Recipient(b"b@example.net", b"list+x@example.net", "SUCCESS,DELAY"),
        Recipient(b"c@example.net"),
        Recipient(b"Postmaster"),
        Recipient(b'"x y"@[192.0.2.1]'),
    ]
    assert envelope.queue_id.encode() in output


def test_a_transaction_begins_anew(sendmail):
    """Nothing of one transaction is left in the next, whether it was completed or reset."""
    octets = (
        b"MAIL FROM:<x> RET=FULL ENVID=1\nRCPT TO:<y> NOTIFY=NEVER\nRSET\n"
        b"MAIL FROM:<x> BODY=8BITMIME\nRCPT TO:<y>\nEHLO me\nMAIL FROM:<>\nRCPT TO:<z>\nDATA\n.\n"
        b"MAIL FROM:<a>\nRCPT TO:<b>\nDATA\n.\n"
    )
    code, output = converse(sendmail, octets)
    assert (code, output.count(b"queued as")) == (0, 2)
    found = sorted(sendmail.queued(), key=lambda each: each[0].arrived)
    assert [(e.sender, e.recipients, e.body, e.ret, e.envid) for e, _ in found] == [
        (b"", [Recipient(b"z")], "", "", ""),
        (b"a", [Recipient(b"b")], "", "", ""),
    ]


def test_what_is_no_message(sendmail):
    octets = (
        b"HELO c\r\nNOOP\r\nVRFY root\r\nHELP\r\nFOO\r\nRSET\r\nRCPT TO:<b>\r\nDATA\r\n"
        b"MAIL FROM:<a@>\r\nMAIL FROM:<a\xff@b>\r\nMAIL FROM:<a,b>\r\nMAIL FROM:<> FOO=1\r\n"
        b"MAIL FROM:<> SIZE=4194305\r\nMAIL FROM:<>\r\nRCPT TO:<b@>\r\nRCPT TO:<b@x..y>\r\n"
        b"RCPT TO:<\xc3\xa4\xff@b>\r\nDATA\r\nSTARTTLS\r\nQUIT\r\n"
    )
    code, output = converse(sendmail, octets)
    assert code == 0
    assert [line[:9] for line in output.splitlines()[2:]] == [
        b"250 2.0.0", b"252 2.0.0", b"214 2.0.0", b"500 5.5.2", b"250 2.0.0", b"503 5.5.1", b"503 5.5.1",
        b"553 5.1.7", b"553 5.1.7", b"553 5.1.7", b"555 5.5.4",
        b"552 5.3.4", b"250 2.1.0", b"553 5.1.3", b"553 5.1.3",
        b"553 5.1.3", b"554 5.5.1", b"502 5.5.1", b"221 2.0.0",
    ]  # fmt: skip
    assert sendmail.queued() == []


def test_a_long_address_in_a_reply(sendmail):
    octets = "MAIL FROM:<{}@>\nQUIT\n".format("\U0001f600" * 110).encode()
    code, output = converse(sendmail, octets)
    matches(output, GREETING, rb"553 5\.1\.7 [ -~]{300,500}\r\n", BYE)
    assert code == 0


def test_too_many_recipients(sendmail):
    patched(sendmail, "import minisend.submit.smtp as smtp", "smtp._MOST_RECIPIENTS = 2")
    octets = b"MAIL FROM:<a>\n" + b"".join(b"RCPT TO:<%d>\n" % n for n in range(3)) + b"DATA\n.\n"
    code, output = converse(sendmail, octets)
    refused = rb"452 4\.5\.3 too many recipients\r\n"
    matches(output, GREETING, SENDER, RECIPIENT * 2, refused, GO_AHEAD, QUEUED)
    assert (code, sendmail.recipients()) == (0, [b"0", b"1"])


def test_many_recipients(sendmail):
    names = [b"r%d@example.net" % n for n in range(2_000)]
    octets = b"MAIL FROM:<a>\n" + b"".join(b"RCPT TO:<%b>\n" % name for name in names)
    code, output = converse(sendmail, octets + b"DATA\n.\nQUIT\n")
    matches(output, GREETING, SENDER, RECIPIENT * 2_000, GO_AHEAD, QUEUED, BYE)
    assert (code, sendmail.recipients()) == (0, names)


# -- the end


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"EHLO me", id="half a command"),
        pytest.param(b"EHLO me\r\n", id="before MAIL"),
        pytest.param(TRANSACTION, id="after DATA"),
        pytest.param(TRANSACTION + MESSAGE, id="in a message"),
        pytest.param(TRANSACTION + MESSAGE + b".", id="after the dot"),
        pytest.param(TRANSACTION + MESSAGE + b".\r", id="in the end of data"),
        pytest.param(TRANSACTION[:-6] + b"BDAT 5\r\nhello", id="after a chunk"),
        pytest.param(TRANSACTION[:-6] + b"BDAT 5 LAST\r\nhell", id="in the last chunk"),
        pytest.param(TRANSACTION[:-6] + b"BDAT 5\r\nhelloRSET\r\nQUIT\r\n", id="RSET"),
        pytest.param(TRANSACTION[:-6] + b"BDAT 5\r\nhelloEHLO me\r\n", id="EHLO"),
        pytest.param(TRANSACTION[:-6] + b"BDAT 5\r\nhelloQUIT\r\n", id="QUIT"),
    ],
)
def test_what_is_not_completed_is_not_kept(sendmail, octets):
    code, output = converse(sendmail, octets)
    assert re.match(GREETING, output)
    assert (code, b"queued" in output) == (0, False)
    assert sendmail.queued() == []


def test_end_of_input_after_a_message(sendmail):
    code, output = converse(sendmail, TRANSACTION + MESSAGE + b".\r\n")
    matches(output, GREETING, ANSWERED, QUEUED)
    assert (code, messages(sendmail)) == (0, ONE)


def test_a_client_that_does_not_listen(sendmail):
    """What it was told of is kept; what it sends after that is not taken."""
    with Session(sendmail) as session:
        session.answer()
        session.say(TRANSACTION)
        assert session.answer() and session.answer()
        session.process.stdout.close()
        session.process.stdin.write(MESSAGE + b".\r\n" + TRANSACTION)
        session.process.stdin.flush()
        assert session.process.wait(60) == 0
        session.process.stdin.close()
        session.process.stdin = session.process.stdout = None
    assert messages(sendmail) == ONE


@pytest.mark.parametrize("octets", [b"", TRANSACTION], ids=["idle", "in a message"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal(sendmail, octets, number):
    with Session(sendmail) as session:
        session.answer()
        session.process.stdin.write(octets)
        session.process.stdin.flush()
        for _ in octets.splitlines():
            session.answer()
        session.process.send_signal(number)
        matches(session.answer(), rb"421 4\.3\.2 shutting down\r\n")
        assert session.end() == (128 + number, b"")
    assert sendmail.queued() == []


def test_a_signal_that_the_caller_ignores(sendmail):
    def ignoring():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with Session(sendmail, preexec_fn=ignoring) as session:
        session.answer()
        session.process.send_signal(signal.SIGHUP)
        matches(session.say(b"NOOP\n"), OK)
        assert session.end() == (0, b"")


def test_a_signal_while_the_message_becomes_durable(sendmail):
    """It is told first, then the session ends: who sees it end knows whether to send again."""
    patched(
        sendmail,
        "import posix",
        "from minisend.spool import disk",
        "sync = disk.fsync",
        "disk.fsync = lambda fd: (posix.kill(posix.getpid(), 15), sync(fd))",
    )
    sendmail.run("b")  # makes the queue
    with Session(sendmail) as session:
        session.answer()
        session.process.stdin.write(TRANSACTION + MESSAGE + b".\r\n")
        session.process.stdin.flush()
        output = b"".join(session.answer() for _ in range(5))
        matches(output, ANSWERED, QUEUED, rb"421 4\.3\.2 shutting down\r\n")
        assert session.end() == (143, b"")


def test_a_signal_before_the_greeting(sendmail):
    patched(
        sendmail,
        "import posix, minisend.submit.smtp as smtp",
        "smtp.caller = lambda caller=smtp.caller: (posix.kill(posix.getpid(), 15), caller())[1]",
    )
    with Session(sendmail) as session:
        matches(session.answer(), GREETING)
        matches(session.answer(), rb"421 4\.3\.2 shutting down\r\n")
        assert session.end() == (143, b"")


def test_a_signal_that_the_client_does_not_hear_of(sendmail):
    """There is no room for a 421 in its pipe: it is not waited for."""
    with Session(sendmail) as session:
        session.answer()
        end = os.open(f"/proc/{session.process.pid}/fd/1", os.O_WRONLY | os.O_NONBLOCK)
        try:
            assert 0 < os.write(end, b"x" * (1 << 20)) < 1 << 20
        finally:
            os.close(end)
        session.process.terminate()
        assert session.process.wait(20) == 143


def test_a_signal_while_the_client_does_not_read(sendmail):
    """It neither waits for the client nor for a write to return."""
    with Session(sendmail) as session:
        session.process.stdin.write(b"NOOP\r\n" * 10_000)
        session.process.stdin.flush()
        end = os.open(f"/proc/{session.process.pid}/fd/1", os.O_WRONLY)
        try:
            poller = select.poll()
            poller.register(end, select.POLLOUT)
            while poller.poll(0):  # until no reply goes in any more
                assert session.process.poll() is None
        finally:
            os.close(end)
        session.process.terminate()
        assert session.process.wait(20) == 143


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_more_replies_than_a_pipe_holds(sendmail, blocking):
    """It waits until the client reads, in either mode of its descriptors."""
    commands = (
        10_000  # 60,000 octets, which a pipe holds; 140,000 octets of replies, which it does not
    )
    their_input, our_output = os.pipe()
    our_input, their_output = os.pipe()
    os.set_blocking(their_input, blocking)
    os.set_blocking(their_output, blocking)
    process = subprocess.Popen(
        [*sendmail.command, "-bs"], stdin=their_input, stdout=their_output, stderr=their_output
    )
    os.close(their_input)
    os.close(their_output)
    with open(our_input, "rb") as replies, open(our_output, "wb", buffering=0) as output:
        matches(replies.readline(), GREETING)  # so that it has to wait for the next
        assert output.write(b"NOOP\r\n" * commands) == commands * 6
        for _ in range(commands):
            assert replies.readline() == b"250 2.0.0 ok\r\n"
        output.close()
        assert replies.read() == b""
    assert process.wait(60) == 0


# -- what goes wrong


FAILING = (
    "import errno, minisend.spool.disk as disk",
    "def fsync(fd): raise OSError(errno.{0}, 'planted')",
    "disk.fsync = fsync",
)


@pytest.mark.parametrize(
    ("error", "reply"),
    [("ENOSPC", b"452 4.3.1 "), ("EDQUOT", b"452 4.3.1 "), ("EIO", b"451 4.3.0 ")],
)
def test_a_disk_that_fails(sendmail, error, reply):
    """No 250 before the message is on the disk; and the session goes on."""
    sendmail.run("b")
    [(first, _)] = sendmail.queued()
    patched(sendmail, *(line.format(error) for line in FAILING))
    octets = (TRANSACTION + MESSAGE + b".\r\n") * 2 + b"QUIT\r\n"
    code, output = converse(sendmail, octets)
    refused = re.escape(reply) + rb"queue: planted\r\n"
    matches(output, GREETING, (ANSWERED + refused) * 2, BYE)
    assert code == 0
    assert [envelope for envelope, _ in sendmail.queued()] == [first]


def test_no_queue(sendmail):
    sendmail.configure('[spool]\npath = "/dev/null/spool"\n')
    code, output = converse(sendmail, TRANSACTION + MESSAGE + b".\r\nQUIT\r\n")
    matches(output, GREETING, ANSWERED, rb"451 4\.3\.0 /dev/null/spool/queue: .*\r\n", BYE)
    assert code == 0


@pytest.mark.parametrize("way", ["DATA", "BDAT"])
def test_too_big(sendmail, way):
    """It is read to its end, and the next one is taken."""
    big = b"x" * 99 + b"\n"
    if way == "DATA":
        octets = TRANSACTION + big * 50_000 + b".\r\n"
        said = ANSWERED
    else:
        octets = TRANSACTION[:-6] + (b"BDAT 2500000\r\n" + big * 25_000) * 2 + b"BDAT 0 LAST\r\n"
        said = SENDER + RECIPIENT + rb"250 2\.0\.0 \d+ octets so far\r\n" * 2
    code, output = converse(sendmail, octets + TRANSACTION + MESSAGE + b".\r\nQUIT\r\n")
    refused = rb"552 5\.3\.4 message larger than max_message_size \(4194304 octets\)\r\n"
    matches(output, GREETING, said, refused, ANSWERED, QUEUED, BYE)
    assert (code, messages(sendmail)) == (0, ONE)


def test_a_wrong_configuration(sendmail):
    sendmail.config.write_text('[spool]\npath = "ä\n')
    code, output = converse(sendmail, b"EHLO me\r\n")
    assert code == 78
    assert re.fullmatch(rb"421 4\.3\.5 [ -~]*config\.toml[ -~]*\r\n", output), output


def test_input_that_cannot_be_read(sendmail):
    fd = os.open("/dev/null", os.O_WRONLY)
    try:
        done = sendmail.run("-bs", stdin=fd)
    finally:
        os.close(fd)
    matches(done.stdout, GREETING, rb"421 4\.3\.0 cannot read: Bad file descriptor\r\n")
    assert (done.returncode, done.stderr) == (74, b"")


def test_a_bug_closes_the_session(sendmail):
    patched(sendmail, "import minisend.submit.smtp as smtp", "smtp._address = lambda path: 1 / 0")
    done = sendmail.run("-bs", message=b"MAIL FROM:<a>\nNOOP\n")
    matches(done.stdout, GREETING, rb"421 4\.3\.0 internal error\r\n")
    assert (done.returncode, done.stderr.count(b"\n")) == (70, 1)


def test_memory_stays_flat(sendmail):
    sendmail.configure(f'[spool]\npath = "{sendmail.spool}"\nmax_message_size = "100M"\n')
    block = (b"x" * 70 + b"\n..\n") * 3_000
    with Session(sendmail) as session:
        session.answer()

        def peak() -> int:
            with open(f"/proc/{session.process.pid}/status", "rb") as status:
                return int(re.search(rb"VmHWM:\s+(\d+) kB", status.read())[1])

        matches(session.say(b"MAIL FROM:<>\n"), SENDER)
        matches(session.say(b"RCPT TO:<b>\n"), RECIPIENT)
        matches(session.say(b"DATA\n"), GO_AHEAD)
        before = peak()
        for _ in range(200):
            session.process.stdin.write(block)
        matches(session.say(b".\n"), QUEUED)
        assert peak() - before < 4_000
    [(_, octets)] = sendmail.queued()
    assert octets == block.replace(b"\n..", b"\n.") * 200


# -- delivery


class WaitingSink(Sink):
    """Takes a message when ``may_take`` is set, and sets ``taken`` with the first."""

    def __init__(self):
        super().__init__(b"mail.example.org")
        self.taken = threading.Event()
        self.may_take = threading.Event()
        self.in_time = True

    def take(self, message: Received) -> None:
        self.in_time = self.may_take.wait(20) and self.in_time
        super().take(message)
        self.taken.set()


@pytest.fixture
def sink(sendmail):
    with WaitingSink() as running:
        sendmail.config.write_text(
            f'hostname = "host.example.org"\n[spool]\npath = "{sendmail.spool}"\n'
            f'[smarthost]\nhost = "127.0.0.1"\nport = {running.port}\ntls = "none"\n'
        )
        yield running


def test_each_message_is_delivered(sendmail, sink):
    """-odi: also the second, when the configuration was named from a directory that is left with the first."""
    sendmail.command = [*sendmail.program, "-C", "config.toml", "-odi"]
    with Session(sendmail, cwd=sendmail.directory) as session:
        session.answer()
        for number in (1, 2):
            session.say(b"MAIL FROM:<a@example.org>\n")
            session.say(b"RCPT TO:<b%d@example.net>\n" % number)
            session.say(b"DATA\n")
            sink.may_take.clear()
            matches(session.say(b"Subject: %d\n\n.\n" % number), QUEUED)  # before the attempt
            sink.may_take.set()
            matches(session.say(b"NOOP\n"), OK)  # comes when the attempt is over
            assert sink.in_time
            assert [each.recipients for each in sink.received] == [
                (b"b%d@example.net" % n,) for n in range(1, number + 1)
            ]
        assert session.end() == (0, b"")
    assert sendmail.queued() == []


def test_in_the_background(sendmail, sink):
    """-odb: the session goes on at once, and a delivery that has ended leaves no zombie."""
    sendmail.command = [*sendmail.program, "-C", str(sendmail.config)]
    with Session(sendmail) as session:
        session.answer()
        session.process.stdin.write(TRANSACTION + MESSAGE + b".\r\n")
        session.process.stdin.flush()
        matches(b"".join(session.answer() for _ in range(4)), ANSWERED, QUEUED)
        matches(session.say(b"NOOP\n"), OK)  # while the sink waits
        sink.may_take.set()
        with open(f"/proc/{session.process.pid}/status", "rb") as status:
            ignored = int(re.search(rb"SigIgn:\s+([0-9a-f]+)", status.read())[1], 16)
        assert ignored >> (signal.SIGCHLD - 1) & 1
        assert sink.taken.wait(60)
        assert session.end() == (0, b"")
    assert sink.received[0].sender == b"a@example.org"


# -- a network


class Network:
    """``sendmail -bs`` on an accepted TCP connection, as inetd and socket units start it."""

    def __init__(self, sendmail, family=socket.AF_INET):
        address = "127.0.0.1" if family == socket.AF_INET else "::1"
        with socket.create_server((address, 0), family=family) as listener:
            self.client = socket.create_connection(listener.getsockname()[:2], timeout=60)
            accepted, _ = listener.accept()
        with accepted:
            self.process = subprocess.Popen(
                [*sendmail.command, "-bs"], stdin=accepted, stdout=accepted, stderr=accepted
            )

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.client.close()
        self.process.kill()
        self.process.wait()

    def converse(self, octets: bytes) -> bytes:
        """Send all, end the input; all that was said, once the process has ended with 0."""
        self.client.sendall(octets)
        self.client.shutdown(socket.SHUT_WR)
        output = b""
        while piece := self.client.recv(65536):
            output += piece
        assert self.process.wait(60) == 0
        return output


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def network(request, sendmail):
    try:
        with Network(sendmail, request.param) as running:
            yield running
    except OSError:
        pytest.skip("no such address on this machine")


def test_over_a_network(sendmail, network):
    output = network.converse(b"EHLO me\r\n" + TRANSACTION + MESSAGE + b".\r\nQUIT\r\n")
    matches(output, GREETING, EHLO, ANSWERED, QUEUED, BYE)
    assert messages(sendmail) == ONE


@pytest.mark.parametrize(
    "end",
    [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r\n\0.\r\n", b"\r.\r\n"],
    ids=repr,
)
def test_nothing_is_smuggled_over_a_network(sendmail, end):
    """What is no end of data is part of the one message, with the commands that follow it."""
    hidden = (
        b"x" + end + b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<c@example.net>\r\nDATA\r\nhidden"
    )
    octets = b"EHLO me\r\n" + TRANSACTION + hidden + b"\r\n.\r\nQUIT\r\n"
    with Network(sendmail) as network:
        matches(network.converse(octets), GREETING, EHLO, ANSWERED, QUEUED, BYE)
    [(sender, recipients, message)] = messages(sendmail)
    assert (sender, recipients) == (b"a@example.org", [b"b@example.net"])
    # A dot after CRLF was added by the client, whatever follows it.
    assert message == hidden.replace(b"\r\n.", b"\r\n") + b"\r\n"


def test_a_network_is_held_to_the_letter(sendmail):
    with Network(sendmail) as network:
        output = network.converse(
            b"MAIL FROM:<a>\r\nNOOP\nHELO me\r\nMAIL FROM:a\r\nMAIL FROM:<a>\r\n"
        )
    matches(
        output,
        GREETING,
        rb"503 5\.5\.1 command out of order\r\n",
        rb"500 5\.5\.2 line does not end with CRLF\r\n",
        HELO,
        rb"501 5\.5\.4 expected FROM:<address>\r\n",
        SENDER,
    )


def test_silence_on_a_network(sendmail):
    patched(sendmail, "import minisend.submit.smtp as smtp", "smtp._PATIENCE = 100")
    with Network(sendmail) as network:
        network.client.sendall(b"HELO me\r\n" + TRANSACTION + MESSAGE)
        output = b""
        while piece := network.client.recv(65536):
            output += piece
        matches(output, GREETING, HELO, ANSWERED, rb"421 4\.4\.2 nothing came for too long\r\n")
        assert network.process.wait(60) == 0
    assert sendmail.queued() == []


def test_silence_on_a_pipe(sendmail):
    patched(
        sendmail,
        "import minisend.submit.smtp as smtp",
        "smtp._PATIENCE, smtp._TURN = 20, 20",
    )
    with Session(sendmail) as session:
        session.answer()
        assert select.select([session.process.stdout], [], [], 0.2)[0] == []
        matches(session.say(b"NOOP\n"), OK)
        assert session.end() == (0, b"")


def test_a_connection_that_is_reset(sendmail):
    with Network(sendmail) as network:
        network.client.sendall(b"HELO me\r\n" + TRANSACTION + MESSAGE)
        output = b""
        while not output.endswith(b"354 end with CRLF . CRLF\r\n"):
            output += network.client.recv(4096)
        network.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        network.client.close()
        assert network.process.wait(60) == 0
    assert sendmail.queued() == []


# -- anything


PIECES = st.one_of(
    st.binary(max_size=20),
    st.sampled_from(
        [
            b"EHLO me\r\n",
            b"MAIL FROM:<a@example.org>\n",
            b"MAIL FROM:<",
            b"RCPT TO:<b>\n",
            b"RCPT TO:<\xc3\xa4@b> NOTIFY=NEVER\r\n",
            b"RCPT TO:<" + "\U0001f600".encode() * 120 + b"@>\n",
            b"DATA\r\n",
            b"BDAT 10\n",
            b"BDAT 4 LAST\n",
            b".\r\n",
            b"\n.\n",
            b"RSET\n",
            b"x" * 3000,
        ]
    ),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(PIECES, max_size=12))
def test_any_octets_give_smtp_and_nothing_else(tmp_path_factory, pieces):
    """Every line is a reply that RFC 5321 allows, the exit code is 0, and the queue holds what was answered with 250."""
    from submit.conftest import Sendmail

    sendmail = Sendmail(tmp_path_factory.mktemp("any"))
    code, output = converse(sendmail, b"".join(pieces))
    assert code == 0
    lines = output.split(b"\r\n")
    assert lines.pop() == b""
    for line in lines:
        assert re.fullmatch(rb"[245][0-9]{2}[ -][ -~]*|354 [ -~]*", line), line
        assert len(line) <= 510
    assert len(sendmail.queued()) == output.count(b"queued as")
