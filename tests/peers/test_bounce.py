"""Who sent a message learns what became of it, through real Postfixes: by our report, or by theirs where they offer DSN.

Each report is read with Python's ``email``; what is expected is put together here.
"""

import re
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from delivery.program import Program
from delivery.reports import read_report

from peers.postfix import Arrived, Postfix
from peers.process import wait_for

pytestmark = pytest.mark.peer

StartPostfix = Callable[..., Postfix]

MESSAGE = b"From: me@here.test\nDate: Mon, 2 Nov 2026 10:00:00 +0100\nMessage-ID: <1@here.test>\n\n.x\n\xe9\n"
SENDER = ("-f", "me@here.test")
RECEIVED = re.compile(
    rb"Received: by here\.test \(minisend, from userid .*\)\n\tid [0-9a-f]{16}; .*\n"
)


def smarthost(postfix: Postfix) -> str:
    return f'[smarthost]\nhost = "{postfix.address}"\nport = {postfix.port}\ntls = "none"\n'


def take_dates(*fields: dict[str, str]) -> None:
    """Out of the fields those that name the moment, each of which has to be a date."""
    for each in fields:
        for name in ("Date", "Arrival-Date", "Last-Attempt-Date", "Will-Retry-Until"):
            if name in each:
                parsedate_to_datetime(each.pop(name))


def by_recipients(postfix: Postfix) -> dict[tuple[bytes, ...], Arrived]:
    """What has arrived; no two with the same recipients."""
    arrived = postfix.arrived()
    found = {each.recipients: each for each in arrived}
    assert len(found) == len(arrived)
    return found


def test_one_refused_recipient_of_three_is_told_and_the_others_have_it(
    start_postfix: StartPostfix, tmp_path: Path
) -> None:
    postfix = start_postfix(refusals={"bob@x.test": "550 5.1.1 no bob here"})
    program = Program(tmp_path, smarthost(postfix))
    program.sendmail(*SENDER, "ann@x.test", "bob@x.test", "carl@x.test", stdin=MESSAGE)
    (queued,) = program.queue()
    assert program.flush() == (69, "1 delivered, 0 waiting, 1 failed")
    assert program.flush("--all") == (0, "nothing to deliver: the queue is empty")
    assert program.queue() == []

    original, report = postfix.arrived()
    assert (original.sender, original.recipients) == (
        b"me@here.test",
        (b"ann@x.test", b"carl@x.test"),
    )
    assert (report.sender, report.recipients) == (b"", (b"me@here.test",))
    assert re.match(rb"Received: by here\.test \(minisend\)\n\tid [0-9a-f]{16}; ", report.message)
    told = read_report(report.message)
    own_id = told.header.pop("Message-ID")
    assert re.fullmatch(r"<[0-9a-f]{16}@here\.test>", own_id)
    assert str(queued["queue_id"]) not in own_id
    take_dates(told.header, told.message, *told.recipients)
    assert told.header == {
        "From": "Mail Delivery System <MAILER-DAEMON@here.test>",
        "To": "me@here.test",
        "Subject": "Undelivered Mail Returned to Sender",
        "In-Reply-To": "<1@here.test>",
        "References": "<1@here.test>",
        "Auto-Submitted": "auto-replied",
    }
    assert told.message == {"Reporting-MTA": "dns; here.test"}
    refusal = "550 5.1.1 <bob@x.test>: Recipient address rejected: no bob here"
    assert told.recipients == [
        {
            "Final-Recipient": "rfc822; bob@x.test",
            "Action": "failed",
            "Status": "5.1.1",
            "Remote-MTA": f"dns; {postfix.address}",
            "Diagnostic-Code": f"smtp; {refusal}",
        }
    ]
    assert (told.kind, told.returned) == ("message/rfc822", original.message)
    text = " ".join(told.text.split())
    server = f"{postfix.address}[{postfix.address}]:{postfix.port}"
    assert f"<bob@x.test> There is no such address. The server {server} said" in text
    assert refusal in text
    assert "ann@x.test" not in text and "carl@x.test" not in text


def test_of_a_signed_message_that_a_server_cannot_take_the_header_comes_back(
    start_postfix: StartPostfix, tmp_path: Path
) -> None:
    """The report goes to the same server, to which the message itself could not go."""
    postfix = start_postfix(smtpd_discard_ehlo_keywords="8bitmime")
    program = Program(tmp_path, smarthost(postfix))
    header = MESSAGE.partition(b"\n\n")[0] + b"\nMIME-Version: 1.0\n"
    header += b'Content-Type: multipart/signed; boundary="s"\n'
    body = "--s\n\ngrüße\n--s\nContent-Type: application/pgp-signature\n\nx\n--s--\n".encode()
    program.sendmail(*SENDER, "-R", "full", "bob@x.test", stdin=header + b"\n" + body)
    assert program.flush() == (69, "1 delivered, 0 waiting, 1 failed")
    assert program.queue() == []

    (report,) = postfix.arrived()
    assert (report.sender, report.recipients) == (b"", (b"me@here.test",))
    told = read_report(report.message)
    assert told.fates() == [("bob@x.test", "failed", "5.6.3")]
    assert told.kind == "text/rfc822-headers"
    received = RECEIVED.match(told.returned)
    assert received and told.returned[received.end() :] == header
    assert "break its signature or encryption" in " ".join(told.text.split())


def test_a_report_that_comes_back_refused_goes_to_admin(
    start_postfix: StartPostfix, tmp_path: Path
) -> None:
    postfix = start_postfix(
        refusals={"bob@x.test": "550 5.1.1 no bob", "gone@x.test": "550 5.1.1 gone"}
    )
    program = Program(tmp_path, smarthost(postfix), admin="root@x.test")
    program.sendmail("-f", "gone@x.test", "bob@x.test", stdin=MESSAGE)
    assert program.flush() == (69, "1 delivered, 0 waiting, 2 failed")
    (report,) = postfix.arrived()
    assert (report.sender, report.recipients) == (b"", (b"root@x.test",))
    told = read_report(report.message)
    assert told.fates() == [("gone@x.test", "failed", "5.1.1")]
    # What comes back is the report that its reader did not get, and in that the message.
    assert RECEIVED.search(read_report(told.returned).returned)
    assert read_report(told.returned).fates() == [("bob@x.test", "failed", "5.1.1")]
    assert program.queue() == []


def test_a_postfix_that_offers_dsn_reports_success_itself(
    start_postfix: StartPostfix, tmp_path: Path
) -> None:
    """What was asked for has come to it: its report shows each of the four parameters."""
    postfix = start_postfix()
    program = Program(tmp_path, smarthost(postfix))
    done = program.run(
        *("sendmail", "-bs", "-odq"),
        stdin=b"EHLO c\r\nMAIL FROM:<me@here.test> RET=HDRS ENVID=QQ+2B1\r\n"
        b"RCPT TO:<ann@x.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Ann+2Bnews@lists.test\r\n"
        b"RCPT TO:<bob@x.test> NOTIFY=NEVER\r\n"
        b"RCPT TO:<carl@x.test>\r\nDATA\r\n"
        + MESSAGE.replace(b"\n.", b"\n..").replace(b"\n", b"\r\n")
        + b".\r\nQUIT\r\n",
    )
    assert (done.returncode, done.stderr) == (0, b""), done.stdout
    assert program.flush() == (0, "1 delivered, 0 waiting, 0 failed")
    assert program.queue() == []
    # Which is a message of its own, made when the other has been delivered.
    wait_for("the report of Postfix", lambda: len(postfix.arrived()) == 2)
    arrived = by_recipients(postfix)
    original = arrived.pop((b"ann@x.test", b"bob@x.test", b"carl@x.test"))
    report = arrived.pop((b"me@here.test",))
    assert (original.sender, report.sender) == (b"me@here.test", b"")
    assert original.message.endswith(b"\n\n.x\n\xe9\n")
    told = read_report(report.message)
    take_dates(told.message, *told.recipients)
    assert told.message == {
        "Reporting-MTA": "dns; mail.example.test",
        "Original-Envelope-Id": "QQ+1",
        "X-Postfix-Queue-ID": original.queue_id.decode(),
        "X-Postfix-Sender": "rfc822; me@here.test",
    }
    assert told.recipients == [
        {
            "Final-Recipient": "rfc822; ann@x.test",
            "Original-Recipient": "rfc822;Ann+news@lists.test",
            "Action": "relayed",
            "Status": "2.0.0",
            "Diagnostic-Code": "X-Postfix; delivery via record: delivered via record service",
        }
    ]
    assert told.kind == "text/rfc822-headers"


def test_of_a_postfix_that_offers_no_dsn_we_report_success(
    start_postfix: StartPostfix, tmp_path: Path
) -> None:
    postfix = start_postfix(smtpd_discard_ehlo_keywords="dsn")
    program = Program(tmp_path, smarthost(postfix))
    program.sendmail(
        *(*SENDER, "-N", "success,failure", "-R", "hdrs", "-V", "QQ+1", "ann@x.test"),
        stdin=MESSAGE,
    )
    assert program.flush() == (0, "2 delivered, 0 waiting, 0 failed")
    original, report = postfix.arrived()
    assert (original.recipients, report.recipients) == ((b"ann@x.test",), (b"me@here.test",))
    told = read_report(report.message)
    take_dates(told.header, told.message, *told.recipients)
    assert told.header["Subject"] == "Successful Mail Delivery Report"
    assert told.message == {"Reporting-MTA": "dns; here.test", "Original-Envelope-Id": "QQ+1"}
    (recipient,) = told.recipients
    # As Postfix says it after BDAT.
    queued_as = f"smtp; 250 2.0.0 Ok: SIZE bytes queued as {original.queue_id.decode()}"
    said = re.sub(r"\d+ bytes", "SIZE bytes", recipient.pop("Diagnostic-Code"))
    assert said == queued_as
    assert recipient == {
        "Final-Recipient": "rfc822; ann@x.test",
        "Action": "relayed",
        "Status": "2.0.0",
        "Remote-MTA": f"dns; {postfix.address}",
    }
    header, _, _ = original.message.partition(b"\n\n")
    assert (told.kind, told.returned) == ("text/rfc822-headers", header + b"\n")
