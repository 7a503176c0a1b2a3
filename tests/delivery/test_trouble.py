"""Every way in which a server can fail at every point of a session: what becomes of the message, and what its sender is told.

Through the program: a message to two recipients is queued, and one flush meets the trouble.  What is expected is the
standards' (RFC 5321 sections 3.2, 3.8, 4.2 and 4.5.3, RFC 3463, RFC 2034 section 4, RFC 3464) and, where they leave it
open, what Postfix's smtp_trouble.c does; the words are what the server said.

    phase                      4yz        5yz        421, no answer, connection lost, not a reply
    connect                                          wait: all
    greeting, EHLO, HELO,      wait: all  wait: all  wait: all
    AUTH
    MAIL, DATA, end of data    wait: all  fail: all  wait: all
    RCPT                       wait: one  fail: one  wait: all
"""

import re
import time
from contextlib import ExitStack
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from delivery.program import Program
from delivery.reports import Told, read_report
from delivery.scripted import CLOSE, KEYWORDS, Message, ScriptedServer, replies
from delivery.trouble import (
    SILENCE,
    WHILE_WRITTEN,
    ImpatientProgram,
    Trouble,
    port_that_never_answers,
    queue_long_ago,
    take_moments,
)
from peers.process import free_port
from spool.make import listing

from minisend.envelope import DELAYED, FAILED, RELAYED, Outcome, Recipient
from minisend.spool.entry import Entry
from minisend.spool.store import Queue

ANN, BOB = "ann@x.test", "bob@x.test"
SENDER = ("-f", "me@here.test")
MESSAGE = b"From: me@here.test\nTo: you@x.test\nDate: Mon, 2 Nov 2026 10:00:00 +0100\nMessage-ID: <1@here.test>\n\nHello.\n"
HEADER = MESSAGE.partition(b"\n\n")[0] + b"\n"
# More than the buffers of a connection hold: while the server reads nothing, it is being written.
LARGE = MESSAGE + b"line after line, without an end\n" * (12 << 15)
RECEIVED = re.compile(
    rb"Received: by here\.test \(minisend, from userid .*\)\n\tid [0-9a-f]{16}; .*\n"
)
RETRY_MAX = 4 * 3600
LIFETIME = 5 * 86400

PIPELINING = KEYWORDS
ONE_BY_ONE = tuple(word for word in KEYWORDS if word != b"PIPELINING")

LOST = r"lost connection: (closed by the server|Connection reset by peer|Broken pipe)"
TIMED_OUT = "timed out"

# What the reader of a report can do, by status: how it begins.
REMEDIES = {
    "5.0.0": "Show this report to the recipient or to the administrator of their mail system.",
    "5.1.1": "Check the address for typing errors, and send the message again to the right one.",
    "5.1.10": "Check what stands after the @ for typing errors",
    "5.1.8": "Check the sender address that your program uses",
    "5.2.2": "Send the message again later, or reach the recipient in another way.",
    "5.3.4": "Send it in smaller parts, or send a link",
    "5.7.1": "Change what the server complains of",
}


@dataclass(frozen=True)
class Case:
    """``reply`` to ``phase``, and what that comes to for all recipients, or for one where only one was refused.

    ``why``  where no reply says it: a pattern of what does
    """

    phase: str
    reply: bytes
    action: str
    status: str
    why: str = ""

    @property
    def said(self) -> str:
        """The reply as a person or a Diagnostic-Code has it: one line, its code once."""
        code = self.reply[:3].decode()
        return code + "".join(f" {line[4:].decode()}" for line in self.reply.split(b"\r\n"))

    @property
    def one(self) -> bool:
        """It is a word about bob alone."""
        return self.phase == "RCPT TO" and not self.why and self.reply[:3] != b"421"

    def reason(self, mta: str) -> str:
        """A pattern."""
        if self.why:
            phase = "DATA" if self.phase == WHILE_WRITTEN else self.phase
            twice = ": the message may be sent more than once" if phase == "end of data" else ""
            return rf"host {re.escape(mta)}: {self.why} \(during {phase}\){twice}"
        verb = "said"
        if self.phase == "greeting" and self.reply[:3] != b"421":
            verb = "refused to talk to us"
        if self.phase == "AUTH" and self.reply[:1] == b"5":
            verb = "refused user name or password, check both in [smarthost]"
        return re.escape(f"host {mta} {verb}: {self.said} (in reply to {self.phase})")

    def outcome(self, index: int, mta: str, actual: Outcome) -> Outcome:
        """What is expected; the moment, and the words of a reason that fits, are those of ``actual``."""
        reason = self.reason(mta)
        return Outcome(
            index,
            self.action,
            self.status,
            actual.reason if re.fullmatch(reason, actual.reason) else reason,
            remote_mta=mta,
            diagnostic="" if self.why else f"smtp; {self.said}",
            command="" if self.why else self.phase,
            at=actual.at,
        )


def case_id(case: Case) -> str:
    said = {CLOSE: "dropped", SILENCE: "silence"}.get(case.reply)
    return f"{case.phase}-{said or case.reply.decode().replace(chr(13) + chr(10), '_')}"


def no_reply(phase: str) -> list[Case]:
    """The connection closed, nothing at all, and what is no reply: nobody knows more than that it did not work."""
    return [
        Case(phase, CLOSE, DELAYED, "4.4.2", LOST),
        Case(phase, SILENCE, DELAYED, "4.4.2", TIMED_OUT),
        Case(
            phase,
            b"hello there",
            DELAYED,
            "4.5.0",
            # It may be an echo of the password.
            "not an SMTP reply" + ("" if phase == "AUTH" else ": 'hello there'"),
        ),
    ]


BEFORE_THE_MESSAGE = [
    Case("greeting", b"421 4.3.2 going down", DELAYED, "4.3.2"),
    Case("greeting", b"450 4.7.1 too often", DELAYED, "4.7.1"),
    Case("greeting", b"450 later", DELAYED, "4.3.2"),
    Case("greeting", b"554 5.7.1 your address is listed", DELAYED, "4.7.1"),
    Case("greeting", b"554-no\r\n554 service here", DELAYED, "4.3.2"),
    Case("greeting", b"521 no mail here", DELAYED, "4.3.2"),
    *no_reply("greeting"),
    Case("EHLO", b"421 bye", DELAYED, "4.3.2"),
    Case("EHLO", b"450 4.7.1 who is that", DELAYED, "4.7.1"),
    Case("EHLO", b"451 later", DELAYED, "4.0.0"),
    *no_reply("EHLO"),
    Case("HELO", b"451 later", DELAYED, "4.0.0"),
    Case("HELO", b"550 5.7.1 no such host", DELAYED, "4.7.1"),
    Case("HELO", CLOSE, DELAYED, "4.4.2", LOST),
    Case("HELO", SILENCE, DELAYED, "4.4.2", TIMED_OUT),
]
LOGGING_IN = [
    Case("AUTH", b"421 4.3.2 going down", DELAYED, "4.3.2"),
    Case("AUTH", b"454 4.7.0 no database", DELAYED, "4.7.0"),
    Case("AUTH", b"535 5.7.8 wrong password", DELAYED, "4.7.8"),
    Case("AUTH", b"535 wrong password", DELAYED, "4.7.8"),
    *no_reply("AUTH"),
]
# What depends on how the replies come, one by one or in a row.
EITHER_WAY = [
    Case("MAIL FROM", b"421 4.3.2 going down", DELAYED, "4.3.2"),
    Case("MAIL FROM", b"451 4.3.0 later", DELAYED, "4.3.0"),
    Case("MAIL FROM", b"550 5.7.1 not from you", FAILED, "5.7.1"),
    *no_reply("MAIL FROM"),
    Case("RCPT TO", b"421 4.3.2 going down", DELAYED, "4.3.2"),
    Case("RCPT TO", b"450 4.2.0 greylisted", DELAYED, "4.2.0"),
    Case("RCPT TO", b"550 5.1.1 no bob", FAILED, "5.1.1"),
    *no_reply("RCPT TO"),
    Case("DATA", b"421 4.3.2 going down", DELAYED, "4.3.2"),
    Case("DATA", b"451 4.3.0 later", DELAYED, "4.3.0"),
    Case("DATA", b"554 5.7.1 no message from you", FAILED, "5.7.1"),
    *no_reply("DATA"),
    Case("end of data", b"421 4.3.2 going down", DELAYED, "4.3.2"),
    Case("end of data", b"451 4.7.1 later", DELAYED, "4.7.1"),
    Case("end of data", b"554 5.7.1 spam", FAILED, "5.7.1"),
    *no_reply("end of data"),
]
WORDS = [
    # Without a status: what the code itself says, else no more than its class.
    Case("MAIL FROM", b"451 later", DELAYED, "4.0.0"),
    Case("MAIL FROM", b"452 disk full", DELAYED, "4.3.1"),
    Case("MAIL FROM", b"550 no", FAILED, "5.0.0"),
    Case("MAIL FROM", b"552 too big", FAILED, "5.3.4"),
    Case("RCPT TO", b"421 bye", DELAYED, "4.3.2"),
    Case("RCPT TO", b"450 later", DELAYED, "4.0.0"),
    Case("RCPT TO", b"550 no", FAILED, "5.0.0"),
    Case("RCPT TO", b"556 no mail there", FAILED, "5.1.10"),
    Case("DATA", b"451 later", DELAYED, "4.0.0"),
    Case("DATA", b"554 no", FAILED, "5.0.0"),
    Case("end of data", b"452 disk full", DELAYED, "4.3.1"),
    Case("end of data", b"554 no", FAILED, "5.0.0"),
    Case("end of data", b"552 too big", FAILED, "5.3.4"),
    # A status of another class than the code: the code counts.
    Case("MAIL FROM", b"451 5.7.1 later", DELAYED, "4.0.0"),
    Case("MAIL FROM", b"553 4.1.8 who", FAILED, "5.0.0"),
    Case("RCPT TO", b"450 5.1.1 later", DELAYED, "4.0.0"),
    Case("RCPT TO", b"550 4.1.1 no bob", FAILED, "5.0.0"),
    Case("DATA", b"554 2.0.0 no", FAILED, "5.0.0"),
    Case("end of data", b"451 5.7.1 later", DELAYED, "4.0.0"),
    Case("end of data", b"554 4.7.1 spam", FAILED, "5.0.0"),
    # The session lacks something (RFC 4954 section 6), which is not the message's fault; of one recipient it is a refusal.
    Case("MAIL FROM", b"530 5.7.0 log in first", DELAYED, "4.7.0"),
    Case("RCPT TO", b"530 5.7.1 members only", FAILED, "5.7.1"),
    # A mailbox is full for now or for good.
    Case("RCPT TO", b"452 4.2.2 full", DELAYED, "4.2.2"),
    Case("RCPT TO", b"552 5.2.2 full", FAILED, "5.2.2"),
    # Several lines.
    Case("MAIL FROM", b"550-5.1.8 who\r\n550 5.1.8 are you", FAILED, "5.1.8"),
    Case("RCPT TO", b"450-4.2.0 not\r\n450 4.2.0 now", DELAYED, "4.2.0"),
    Case("RCPT TO", b"550-no bob\r\n550-\r\n550 5.1.1 here", FAILED, "5.1.1"),
    Case("DATA", b"554-5.7.1 not\r\n554 5.7.1 this", FAILED, "5.7.1"),
    Case("end of data", b"554-5.7.1 spam\r\n554 5.7.1 see above", FAILED, "5.7.1"),
    # A reply that the command does not have.
    Case("MAIL FROM", b"354 go ahead", DELAYED, "4.5.0", ".*354 go ahead.*"),
    Case("DATA", b"250 2.0.0 ok", DELAYED, "4.5.0", ".*250 2.0.0 ok.*"),
]
WRITING = [
    Case(WHILE_WRITTEN, CLOSE, DELAYED, "4.4.2", LOST),
    Case(WHILE_WRITTEN, SILENCE, DELAYED, "4.4.2", TIMED_OUT),
]


def smarthost(port: int, more: str = "") -> str:
    return f'[smarthost]\nhost = "127.0.0.1"\nport = {port}\ntls = "none"\n{more}'


def mta(port: int) -> str:
    return f"127.0.0.1[127.0.0.1]:{port}"


def the_one_entry(program: Program) -> Entry:
    """The one message of the queue, with what is recorded of it."""
    with Queue(str(program.spool)) as queue:
        (place,) = queue.places("new", "cur", "hold", "failed", "tmp")
        entry = queue.read(place)
    assert entry is not None
    with entry:
        return entry


def taken(index: int, port: int, actual: Outcome) -> Outcome:
    """What is expected of a recipient whose message the server took; the moment is that of ``actual``."""
    return Outcome(
        index,
        RELAYED,
        "2.0.0",
        f"host {mta(port)} said: 250 2.0.0 taken (in reply to end of data)",
        remote_mta=mta(port),
        diagnostic="smtp; 250 2.0.0 taken",
        command="end of data",
        at=actual.at,
    )


def waits(entry: Entry, before: float) -> None:
    """It waits, and not for longer than it may."""
    assert entry.place.state == "cur"
    assert before < entry.place.due <= time.time() + RETRY_MAX


def reports(server: ScriptedServer) -> list[Message]:
    return [message for message in server.messages if not message.sender]


def the_one_report(server: ScriptedServer) -> Told:
    """The report that the sender was sent, alone and with the null reverse-path, as a report is."""
    (message,) = reports(server)
    assert message.recipients == (b"me@here.test",)
    return read_report(message.octets)


def without_received(octets: bytes) -> bytes:
    """A message as it was given to us, of one that went out."""
    found = RECEIVED.match(octets)
    assert found, octets[:200]
    return octets[found.end() :]


def check_report_header(told: Told, subject: str) -> None:
    assert re.fullmatch(r"<[0-9a-f]{16}@here\.test>", told.header.pop("Message-ID"))
    assert told.header == {
        "From": "Mail Delivery System <MAILER-DAEMON@here.test>",
        "To": "me@here.test",
        "Subject": subject,
        "In-Reply-To": "<1@here.test>",
        "References": "<1@here.test>",
        "Auto-Submitted": "auto-replied",
    }


ENVELOPE = ("MAIL FROM", "RCPT TO", "DATA")


def check(case: Case, tmp_path: Path, keywords: tuple[bytes, ...], more: str = "") -> None:
    """The whole way: queued, tried, recorded or told."""
    # A server that breaks off in the middle of a flight is spoken to once more, one command at a time.
    breaks_off = not case.reply.startswith((b"4", b"5")) and case.phase in ENVELOPE
    trouble = Trouble(case.phase, case.reply, 2 if breaks_off and keywords == PIPELINING else 1)
    large = case.phase == WHILE_WRITTEN
    with ScriptedServer(trouble, keywords=keywords) as server, trouble:
        settings = smarthost(server.port, more)
        if case.reply == SILENCE:
            program: Program = ImpatientProgram(tmp_path, settings, case.phase)
        else:
            program = Program(tmp_path, settings)
        before = time.time()
        program.sendmail(*SENDER, ANN, BOB, stdin=LARGE if large else MESSAGE)
        flushed = program.flush()
        after = time.time()
    assert trouble.failed
    own = [message for message in server.messages if message.sender]
    assert [each.recipients for each in own] == ([(ANN.encode(),)] if case.one else [])

    if case.action == DELAYED:
        assert flushed == (75, "0 delivered, 1 waiting, 0 failed")
        entry = the_one_entry(program)
        waits(entry, before)
        assert entry.latest == {
            index: taken(0, server.port, outcome)
            if case.one and index == 0
            else case.outcome(index, mta(server.port), outcome)
            for index, outcome in entry.latest.items()
        }
        assert sorted(entry.latest) == [0, 1]
        assert all(before <= outcome.at <= after for outcome in entry.latest.values())
        assert reports(server) == []
    else:
        # The report is one more message that was delivered.
        assert flushed == (69, "1 delivered, 0 waiting, 1 failed")
        assert listing(str(program.spool)) == {}
        check_failure(case, the_one_report(server), mta(server.port), before, after)


def check_failure(case: Case, told: Told, mta: str, before: float, after: float) -> None:
    assert take_moments(told, before, after) == {"Date", "Arrival-Date", "Last-Attempt-Date"}
    check_report_header(told, "Undelivered Mail Returned to Sender")
    assert told.message == {"Reporting-MTA": "dns; here.test"}
    addresses = [BOB] if case.one else [ANN, BOB]
    said = " ".join(case.said.split())
    assert told.recipients == [
        {
            "Final-Recipient": f"rfc822; {address}",
            "Action": "failed",
            "Status": case.status,
            "Remote-MTA": "dns; 127.0.0.1",
            "Diagnostic-Code": f"smtp; {said}",
        }
        for address in addresses
    ]
    text = " ".join(told.text.split())
    assert [address for address in (ANN, BOB) if f"<{address}>" in text] == addresses
    assert f"The server {mta} said in reply to {case.phase}: {said} What you can do: " in text
    assert f"What you can do: {REMEDIES[case.status]}" in text
    # A message refused for its size is not sent back: that would be refused as well.
    if case.status == "5.3.4":
        kind, returned = "text/rfc822-headers", HEADER
    else:
        kind, returned = "message/rfc822", MESSAGE
    assert (told.kind, without_received(told.returned)) == (kind, returned)


@pytest.mark.parametrize("case", [*BEFORE_THE_MESSAGE, *WORDS], ids=case_id)
def test_a_reply(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, PIPELINING)


@pytest.mark.parametrize("keywords", [PIPELINING, ONE_BY_ONE], ids=["pipelining", "one by one"])
@pytest.mark.parametrize("case", [*EITHER_WAY, *WRITING], ids=case_id)
def test_a_reply_either_way(case: Case, keywords: tuple[bytes, ...], tmp_path: Path) -> None:
    check(case, tmp_path, keywords)


@pytest.mark.parametrize("case", LOGGING_IN, ids=case_id)
def test_a_login(case: Case, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("pass\n")
    secret.chmod(0o600)
    account = f'username = "me"\npassword_file = "{secret}"\n'
    check(case, tmp_path, (*PIPELINING, b"AUTH PLAIN"), account)


def test_no_login_at_all(tmp_path: Path) -> None:
    """The password goes nowhere where it was not asked for; nobody was refused, so everybody waits."""
    secret = tmp_path / "secret"
    secret.write_text("pass\n")
    secret.chmod(0o600)
    account = f'username = "me"\npassword_file = "{secret}"\n'
    with ScriptedServer() as server:
        program = Program(tmp_path, smarthost(server.port, account))
        before = time.time()
        program.sendmail(*SENDER, ANN, stdin=MESSAGE)
        assert program.flush() == (75, "0 delivered, 1 waiting, 0 failed")
        (session,) = server.sessions
        assert session.verbs() == [b"EHLO", b"QUIT"]
    entry = the_one_entry(program)
    waits(entry, before)
    (outcome,) = entry.latest.values()
    assert (outcome.action, outcome.status) == (DELAYED, "4.7.0")


@pytest.mark.parametrize(
    ("answers", "why"),
    [(False, "timed out"), (True, "Connection refused")],
    ids=["silence", "refused"],
)
def test_no_connection(answers: bool, why: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        port = free_port("127.0.0.1") if answers else stack.enter_context(port_that_never_answers())
        program = ImpatientProgram(tmp_path, smarthost(port), "connect")
        before = time.time()
        program.sendmail(*SENDER, ANN, BOB, stdin=MESSAGE)
        assert program.flush() == (75, "0 delivered, 1 waiting, 0 failed")
    entry = the_one_entry(program)
    waits(entry, before)
    assert entry.latest == {
        index: Outcome(
            index,
            DELAYED,
            "4.4.1",
            f"connect to [127.0.0.1]:{port}: {why}",
            remote_mta=mta(port),
            at=outcome.at,
        )
        for index, outcome in entry.latest.items()
    }
    assert sorted(entry.latest) == [0, 1]


# -- some of several recipients

ANN_TO_EVE = [f"{name}@x.test" for name in ("ann", "bob", "carl", "dora", "eve")]


def refused(index: int, action: str, reply: str, port: int, actual: Outcome) -> Outcome:
    """What is expected of a recipient who was refused with this reply, its status given in it."""
    return Outcome(
        index,
        action,
        reply.split(" ")[1],
        f"host {mta(port)} said: {reply} (in reply to RCPT TO)",
        remote_mta=mta(port),
        diagnostic=f"smtp; {reply}",
        command="RCPT TO",
        at=actual.at,
    )


@pytest.mark.parametrize("keywords", [PIPELINING, ONE_BY_ONE], ids=["pipelining", "one by one"])
@pytest.mark.parametrize("gives_way", [True, False], ids=["too many once", "too many always"])
def test_each_of_five_has_a_fate_of_its_own(
    keywords: tuple[bytes, ...], gives_way: bool, tmp_path: Path
) -> None:
    """Taken, put off, refused, one too many for this transaction, taken; then the rest, and nobody twice."""
    too_many = b"452 4.5.3 too many recipients"
    script = replies(
        {
            b"RCPT TO:<bob@": [b"450 4.2.1 later"],
            b"RCPT TO:<carl@": b"550 5.1.1 no carl",
            b"RCPT TO:<dora@": [too_many] if gives_way else [too_many, too_many],
        }
    )
    ann, bob, _, dora, eve = (address.encode() for address in ANN_TO_EVE)
    with ScriptedServer(script, keywords=keywords) as server:
        port = server.port
        program = Program(tmp_path, smarthost(port))
        before = time.time()
        program.sendmail(*SENDER, *ANN_TO_EVE, stdin=MESSAGE)
        assert program.flush() == (75, "1 delivered, 1 waiting, 0 failed")
        entry = the_one_entry(program)
        waits(entry, before)
        fates = entry.latest
        assert sorted(fates) == [0, 1, 2, 3, 4]
        assert fates == {
            0: taken(0, port, fates[0]),
            1: refused(1, DELAYED, "450 4.2.1 later", port, fates[1]),
            2: refused(2, FAILED, "550 5.1.1 no carl", port, fates[2]),
            3: taken(3, port, fates[3])
            if gives_way
            else refused(3, DELAYED, too_many.decode(), port, fates[3]),
            4: taken(4, port, fates[4]),
        }
        assert told_of(server) == [[("carl@x.test", "failed", "5.1.1")]]
        (shown,) = program.queue()
        assert (shown["queue_name"], shown["state"]) == ("deferred", "deferred")
        assert {each["address"]: each["diagnostic"] for each in shown["recipients"]} == {
            "bob@x.test": "smtp; 450 4.2.1 later",
            **({} if gives_way else {"dora@x.test": f"smtp; {too_many.decode()}"}),
        }
        assert own_recipients(server) == [(ann, eve), *([(dora,)] if gives_way else [])]

        assert program.flush("--all") == (69, "0 delivered, 0 waiting, 1 failed")
        assert listing(str(program.spool)) == {}
        assert len(reports(server)) == 1
        rest = (bob,) if gives_way else (bob, dora)
        assert own_recipients(server)[-1] == rest
        assert len(own_recipients(server)) == (3 if gives_way else 2)
    octets = {message.octets for message in server.messages if message.sender}
    assert len(octets) == 1


def told_of(server: ScriptedServer) -> list[list[tuple[str, str, str]]]:
    """Address, action and status of each, report by report."""
    return [read_report(message.octets).fates() for message in reports(server)]


def own_recipients(server: ScriptedServer) -> list[tuple[bytes, ...]]:
    """Who were the recipients of each transaction that was not a report's."""
    return [message.recipients for message in server.messages if message.sender]


@pytest.mark.parametrize(
    ("keywords", "verbs", "at_data"),
    [
        (PIPELINING, [b"EHLO", b"MAIL", b"RCPT", b"RCPT", b"DATA"], b"503 5.5.1 no recipients"),
        (PIPELINING, [b"EHLO", b"MAIL", b"RCPT", b"RCPT", b"DATA"], b"354 go ahead all the same"),
        (ONE_BY_ONE, [b"EHLO", b"MAIL", b"RCPT", b"RCPT"], b"354 never asked for"),
    ],
    ids=["pipelining", "pipelining, 354 nevertheless", "one by one"],
)
def test_all_refused_is_told_in_the_words_for_each(
    keywords: tuple[bytes, ...], verbs: list[bytes], at_data: bytes, tmp_path: Path
) -> None:
    """What a server says to DATA when it has refused everybody settles nobody (RFC 2920 section 3.1)."""
    script = replies(
        {
            b"RCPT TO:<ann@": b"550 5.1.1 no ann",
            b"RCPT TO:<bob@": b"553 5.7.1 not for you",
            b"DATA": [at_data] if keywords == PIPELINING else [],
        }
    )
    with ScriptedServer(script, keywords=keywords) as server:
        program = Program(tmp_path, smarthost(server.port))
        program.sendmail(*SENDER, ANN, BOB, stdin=MESSAGE)
        assert program.flush() == (69, "1 delivered, 0 waiting, 1 failed")
        assert listing(str(program.spool)) == {}
    told = the_one_report(server)
    assert told.fates() == [(ANN, "failed", "5.1.1"), (BOB, "failed", "5.7.1")]
    assert [each["Diagnostic-Code"] for each in told.recipients] == [
        "smtp; 550 5.1.1 no ann",
        "smtp; 553 5.7.1 not for you",
    ]
    text = " ".join(told.text.split())
    assert f"<{ANN}> There is no such address. The server {mta(server.port)} said" in text
    assert f"<{BOB}> A rule of the recipient's mail system refused the message." in text
    # If anything was sent after 354, it was nothing.
    assert {each.octets for each in server.messages if each.sender} <= {b""}
    assert server.sessions[0].verbs()[: len(verbs)] == verbs
    assert server.sessions[0].verbs()[len(verbs)] != b"DATA"


def test_an_ehlo_refused_is_a_server_from_before_it(tmp_path: Path) -> None:
    """RFC 5321 section 3.2: HELO, and the message goes."""
    with ScriptedServer(replies({b"EHLO": b"502 5.5.1 what"})) as server:
        program = Program(tmp_path, smarthost(server.port))
        program.sendmail(*SENDER, ANN, stdin=MESSAGE)
        assert program.flush() == (0, "1 delivered, 0 waiting, 0 failed")
        assert listing(str(program.spool)) == {}
    assert server.sessions[0].verbs() == [
        *(b"EHLO", b"HELO", b"MAIL", b"RCPT", b"DATA", b"QUIT"),
    ]
    (message,) = server.messages
    assert without_received(message.octets.replace(b"\r\n", b"\n")) == MESSAGE


# -- the report: what was asked for, and when


def test_what_was_asked_for_comes_back_in_the_report(tmp_path: Path) -> None:
    """ENVID, ORCPT and RET=HDRS; who asked for NEVER, or for other reports, is not in it."""
    script = replies({b"RCPT TO:<me@": b"250 2.1.5 ok", b"RCPT": b"550 5.1.1 no such user"})
    with ScriptedServer(script) as server:
        program = Program(tmp_path, smarthost(server.port))
        before = time.time()
        done = program.run(
            *("sendmail", "-bs", "-odq"),
            stdin=b"EHLO c\r\nMAIL FROM:<me@here.test> RET=HDRS ENVID=QQ+2B1\r\n"
            b"RCPT TO:<ann@x.test> NOTIFY=FAILURE ORCPT=rfc822;Ann+2Bnews@lists.test\r\n"
            b"RCPT TO:<bob@x.test> NOTIFY=NEVER\r\n"
            b"RCPT TO:<carl@x.test> NOTIFY=DELAY,SUCCESS\r\n"
            b"RCPT TO:<dora@x.test>\r\nDATA\r\n"
            + MESSAGE.replace(b"\n", b"\r\n")
            + b".\r\nQUIT\r\n",
        )
        assert (done.returncode, done.stderr) == (0, b""), done.stdout
        assert program.flush() == (69, "1 delivered, 0 waiting, 1 failed")
        after = time.time()
        assert listing(str(program.spool)) == {}
    told = the_one_report(server)
    take_moments(told, before, after)
    assert told.message == {"Reporting-MTA": "dns; here.test", "Original-Envelope-Id": "QQ+1"}
    why = {
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; 127.0.0.1",
        "Diagnostic-Code": "smtp; 550 5.1.1 no such user",
    }
    assert told.recipients == [
        {
            "Original-Recipient": "rfc822; Ann+news@lists.test",
            "Final-Recipient": "rfc822; ann@x.test",
            **why,
        },
        {"Final-Recipient": "rfc822; dora@x.test", **why},
    ]
    assert (told.kind, without_received(told.returned)) == ("text/rfc822-headers", HEADER)
    text = " ".join(told.text.split())
    assert "bob@x.test" not in text
    assert "carl@x.test" not in text
    assert "This report says nothing of recipients who are not named in it." in text


@pytest.mark.parametrize(
    ("size", "ret", "whole"),
    [
        (1_000, (), True),
        (1_000, ("-R", "hdrs"), False),
        (1_000, ("-R", "full"), True),
        (60_000, (), False),
        (60_000, ("-R", "hdrs"), False),
        (60_000, ("-R", "full"), True),
    ],
)
def test_how_much_of_the_message_comes_back(
    size: int, ret: tuple[str, ...], whole: bool, tmp_path: Path
) -> None:
    message = MESSAGE + b"One line of many.\n" * (size // 18)
    with ScriptedServer(replies({b"RCPT TO:<bob@": b"550 5.1.1 no bob"})) as server:
        program = Program(tmp_path, smarthost(server.port))
        program.sendmail(*SENDER, *ret, BOB, stdin=message)
        assert program.flush() == (69, "1 delivered, 0 waiting, 1 failed")
    told = the_one_report(server)
    kind, returned = ("message/rfc822", message) if whole else ("text/rfc822-headers", HEADER)
    assert (told.kind, without_received(told.returned)) == (kind, returned)


def check_moment(value: str, expected: float) -> None:
    assert parsedate_to_datetime(value).timestamp() == int(expected)


@pytest.mark.parametrize("notify", ["", "DELAY", "FAILURE", "NEVER"])
def test_a_delay_is_told_once_to_who_wants_to_know(notify: str, tmp_path: Path) -> None:
    with ScriptedServer(replies({b"RCPT TO:<bob@": b"450 4.2.2 mailbox full"})) as server:
        program = Program(tmp_path, smarthost(server.port))
        before = time.time()
        arrived = before - 5 * 3600
        queue_long_ago(
            program,
            arrived,
            MESSAGE,
            Recipient(b"ann@x.test"),
            Recipient(b"bob@x.test", notify=notify),
        )
        wanted = notify in ("", "DELAY")
        assert program.flush() == (75, f"{wanted:d} delivered, 1 waiting, 0 failed")
        after = time.time()
        waits(the_one_entry(program), before)
        assert program.flush("--all") == (75, "0 delivered, 1 waiting, 0 failed")
    if not wanted:
        assert reports(server) == []
        return
    told = the_one_report(server)
    check_moment(told.message.pop("Arrival-Date"), arrived)
    until = told.recipients[0].pop("Will-Retry-Until")
    check_moment(until, arrived + LIFETIME)
    assert take_moments(told, before, after) == {"Date", "Last-Attempt-Date"}
    check_report_header(told, "Delayed Mail (still being retried)")
    assert told.message == {"Reporting-MTA": "dns; here.test"}
    assert told.recipients == [
        {
            "Final-Recipient": f"rfc822; {BOB}",
            "Action": "delayed",
            "Status": "4.2.2",
            "Remote-MTA": "dns; 127.0.0.1",
            "Diagnostic-Code": "smtp; 450 4.2.2 mailbox full",
        }
    ]
    # Of what is no failure the header is enough (RFC 3461 section 4.3).
    assert (told.kind, without_received(told.returned)) == ("text/rfc822-headers", HEADER)
    text = " ".join(told.text.split())
    assert f"You need not send it again: it will be tried until {until}." in text
    assert (
        f"<{BOB}> The server {mta(server.port)} said in reply to RCPT TO: 450 4.2.2 mailbox full"
        in text
    )
    assert ANN not in text


def test_what_has_waited_too_long_fails_with_what_it_waited_for(tmp_path: Path) -> None:
    """The status stays of class 4 (RFC 3463, X.4.7); the delay was told before, and is not told again."""
    with ScriptedServer(replies({b"RCPT TO:<bob@": b"450 4.2.2 mailbox full"})) as server:
        program = Program(tmp_path, smarthost(server.port))
        before = time.time()
        queue_long_ago(
            program,
            before - LIFETIME - 60,
            MESSAGE,
            Recipient(b"ann@x.test"),
            Recipient(b"bob@x.test"),
        )
        assert program.flush() == (75, "1 delivered, 1 waiting, 0 failed")
        assert program.flush("--all") == (75, "0 delivered, 1 waiting, 0 failed")
        assert program.flush("--all") == (69, "1 delivered, 0 waiting, 1 failed")
        after = time.time()
        assert listing(str(program.spool)) == {}
    delay, failure = (read_report(message.octets) for message in reports(server))
    assert delay.fates() == [(BOB, "delayed", "4.2.2")]
    check_moment(failure.message.pop("Arrival-Date"), before - LIFETIME - 60)
    assert take_moments(failure, before, after) == {"Date", "Last-Attempt-Date"}
    check_report_header(failure, "Undelivered Mail Returned to Sender")
    assert failure.recipients == [
        {
            "Final-Recipient": f"rfc822; {BOB}",
            "Action": "failed",
            "Status": "4.2.2",
            "Remote-MTA": "dns; 127.0.0.1",
            "Diagnostic-Code": "smtp; 450 4.2.2 mailbox full",
        }
    ]
    assert (failure.kind, without_received(failure.returned)) == ("message/rfc822", MESSAGE)
    text = " ".join(failure.text.split())
    assert (
        f"<{BOB}> It was tried until its time in the queue was over. The mailbox is full." in text
    )
    assert f"What you can do: {REMEDIES['5.2.2']}" in text


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        pytest.param(
            '[smarthost]\nhost = "127.0.0.1"\nusername = "me"\npassword_file = "/nowhere/secret"\n',
            "[smarthost] password_file: /nowhere/secret: cannot be opened: No such file or directory",
            id="password",
        ),
        pytest.param(
            '[smarthost]\nhost = "127.0.0.1"\ntls_ca_file = "/nowhere/ca.pem"\n',
            "[smarthost] tls_ca_file: /nowhere/ca.pem: No such file or directory",
            id="authorities",
        ),
        pytest.param(
            '[smarthost]\nhost = "127.0.0.1"\nusername = "me"\noauth2_provider = "google"\n'
            'oauth2_client_id = "x"\noauth2_token_file = "/nowhere/t.json"\n',
            "no tokens of me in /nowhere/t.json: run: minisend login",
            id="token",
        ),
    ],
)
def test_what_a_setting_keeps_from_being_sent_has_no_longer_time_than_other_mail(
    settings: str, why: str, tmp_path: Path
) -> None:
    """The senders must learn that their mail did not go out, also when no administrator does anything."""
    program = Program(tmp_path, settings)
    queue_long_ago(program, time.time() - LIFETIME - 60, MESSAGE, Recipient(b"ann@x.test"))
    for _ in range(2):
        before = time.time()
        assert program.flush("--all")[0] == 75
    (waits,) = (message for message in program.queue() if message["sender"] == "me@here.test")
    # It is looked at again as soon as after a first failure.
    assert waits["next_attempt"] in range(int(before) + 300, int(time.time()) + 301)
    assert str(reason_of(waits)).startswith(why)
    assert program.flush("--all")[0] == 75
    # What is there now is told by nothing but mail: the report, and to whose queue it is the notice.
    assert {message["sender"] for message in program.queue()} == {"MAILER-DAEMON"}
    with Queue(str(program.spool)) as queue:
        texts = [
            entry.first_octets(1 << 20).decode()
            for place in queue.places("new", "cur")
            if (entry := queue.read(place)) is not None
        ]
    (told,) = (text for text in texts if "Subject: Undelivered Mail Returned to Sender" in text)
    assert f"Final-Recipient: rfc822; {ANN}\n" in told


def reason_of(message: dict[str, object]) -> object:
    recipients = message["recipients"]
    assert isinstance(recipients, list)
    return recipients[0]["delay_reason"]


def test_a_server_that_was_never_reached_is_told_of_in_our_own_words(tmp_path: Path) -> None:
    """Without a reply there is no Diagnostic-Code of type smtp, and without a server no Remote-MTA (RFC 3464 section 2.3.5)."""
    port = free_port("127.0.0.1")
    program = Program(tmp_path, smarthost(port))
    before = time.time()
    queue_long_ago(
        program,
        before - LIFETIME - 60,
        MESSAGE,
        Recipient(b"ann@x.test", notify="FAILURE"),
        Recipient(b"bob@x.test", notify="NEVER"),
    )
    for _ in range(3):
        assert program.flush("--all")[0] == 75
    # The message has gone, and its report waits for the same server.
    (place,) = listing(str(program.spool)).items()
    assert (place[0], len(place[1])) == ("cur", 1)
    with ScriptedServer(port=port) as server:
        assert program.flush("--all") == (0, "1 delivered, 0 waiting, 0 failed")
    told = the_one_report(server)
    assert take_moments(told, before - LIFETIME - 60, time.time()) == {
        *("Date", "Arrival-Date", "Last-Attempt-Date"),
    }
    check_report_header(told, "Undelivered Mail Returned to Sender")
    why = f"connect to [127.0.0.1]:{port}: Connection refused"
    assert told.recipients == [
        {
            "Final-Recipient": f"rfc822; {ANN}",
            "Action": "failed",
            "Status": "4.4.1",
            "Diagnostic-Code": f"x-minisend; delivery time expired: {why}",
        }
    ]
    text = " ".join(told.text.split())
    assert "The recipient's mail system could not be reached. The reason:" in text
    assert why in text
