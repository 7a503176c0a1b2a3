"""Reports, read back with Python's ``email``: what a person and a program find in them."""

import email
import email.policy
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisend.envelope import (
    DELAYED,
    DELIVERED,
    FAILED,
    RELAYED,
    Envelope,
    Facts,
    Outcome,
    Recipient,
)
from minisend.message.dsn import DELAY, FAILURE, RETURN_LIMIT, SUCCESS, Original, build

ID = "00112233445566aa"
ARRIVED = 1_700_000_000.25  # Tue, 14 Nov 2023 22:13:20 UTC
NOW = ARRIVED + 3600
FACTS = Facts(b"host.example.org", b"example.org", b"", b"")
HEADER = (
    b"Received: by host.example.org (minisend)\n\tid ffeeddccbbaa9988; Tue, 14 Nov 2023 23:13:20 +0100\n"
    b"From: sender@example.org\nTo: bob@example.net\nSubject: hello\nMessage-ID: <1@example.org>\n\n"
)
BODY = b"Hello.\n"

NO_SUCH_USER = Outcome(
    0,
    FAILED,
    "5.1.1",
    "host mx.example.net[192.0.2.1]:25 said: 550 5.1.1 no such user (in reply to RCPT TO)",
    remote_mta="mx.example.net[192.0.2.1]:25",
    diagnostic="smtp; 550 5.1.1 no such user",
    command="RCPT TO",
    at=ARRIVED + 5,
)

GOLDEN = b"""\
From: Mail Delivery System <MAILER-DAEMON@example.org>
To: sender@example.org
Subject: Undelivered Mail Returned to Sender
Date: Wed, 15 Nov 2023 00:13:20 +0100
Message-ID: <00112233445566aa@host.example.org>
In-Reply-To: <1@example.org>
References: <1@example.org>
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
	boundary="00112233445566aa.DIGEST"

--00112233445566aa.DIGEST
Content-Description: Notification
Content-Type: text/plain; charset=us-ascii

This is the mail system at host host.example.org.

Your message could not be delivered to the recipient below.

<bob@example.net>
    There is no such address.
    The server mx.example.net[192.0.2.1]:25 said in reply to RCPT TO:
        550 5.1.1 no such user
    What you can do: Check the address for typing errors, and send the
    message again to the right one.

The message follows at the end of this report.

--00112233445566aa.DIGEST
Content-Description: Delivery report
Content-Type: message/delivery-status

Reporting-MTA: dns; host.example.org
Arrival-Date: Tue, 14 Nov 2023 23:13:20 +0100

Final-Recipient: rfc822; bob@example.net
Action: failed
Status: 5.1.1
Remote-MTA: dns; mx.example.net
Diagnostic-Code: smtp; 550 5.1.1 no such user
Last-Attempt-Date: Tue, 14 Nov 2023 23:13:25 +0100

--00112233445566aa.DIGEST
Content-Description: Message
Content-Type: message/rfc822

Received: by host.example.org (minisend)
	id ffeeddccbbaa9988; Tue, 14 Nov 2023 23:13:20 +0100
From: sender@example.org
To: bob@example.net
Subject: hello
Message-ID: <1@example.org>

Hello.

--00112233445566aa.DIGEST--
"""


def original(
    *recipients: Recipient,
    sender: bytes = b"sender@example.org",
    header: bytes = HEADER,
    body: bytes = BODY,
    size: int | None = None,
    ret: str = "",
    envid: str = "",
    long_line: bool = False,
) -> Original:
    envelope = Envelope(
        "ffeeddccbbaa9988",
        sender,
        list(recipients) or [Recipient(b"bob@example.net")],
        arrived=ARRIVED,
        zone=60,
        ret=ret,
        envid=envid,
    )
    return Original(
        envelope,
        FACTS,
        header,
        lambda: iter([body[:3], body[3:]]),
        size=len(header + body) if size is None else size,
        eight_bit=not (header + body).isascii(),
        long_line=long_line,
    )


def octets(
    event: str = FAILURE,
    outcomes: list[Outcome] | None = None,
    about: Original | None = None,
    to: bytes = b"sender@example.org",
    retry_until: float = 0.0,
) -> bytes:
    return b"".join(
        build(
            event,
            outcomes or [NO_SUCH_USER],
            about or original(),
            queue_id=ID,
            to=to,
            at=NOW,
            retry_until=retry_until,
        )
    )


def parsed(*arguments, **options) -> EmailMessage:
    message = email.message_from_bytes(octets(*arguments, **options), policy=email.policy.default)
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert not message.defects
    parts = list(message.iter_parts())
    assert len(parts) == 3
    assert all(not part.defects for part in parts)
    return message


def text(message: EmailMessage) -> str:
    return message.get_payload()[0].get_content()


def said(message: EmailMessage) -> str:
    """The text with its lines joined."""
    return " ".join(text(message).split())


def fields(message: EmailMessage) -> list[list[tuple[str, str]]]:
    """The groups of message/delivery-status, unfolded."""
    part = message.get_payload()[1]
    assert part.get_content_type() == "message/delivery-status"
    return [[(name, str(value)) for name, value in group.items()] for group in part.get_payload()]


def returned(message: EmailMessage) -> tuple[str, bytes]:
    part = message.get_payload()[2]
    kind = part.get_content_type()
    content = (
        part.get_payload()[0].as_bytes()
        if kind == "message/rfc822"
        else part.get_payload(decode=True)
    )
    return kind, content


def of(outcome: Outcome, **changes) -> Outcome:
    values = {name: getattr(outcome, name) for name in Outcome.__slots__} | changes
    first = [values.pop(name) for name in ("recipient", "action", "status", "reason")]
    return Outcome(*first, **values)


# -- the whole


def test_a_whole_report():
    found = octets()
    boundary = found.partition(b'boundary="')[2].partition(b'"')[0]
    assert boundary.startswith(ID.encode() + b".")
    assert len(boundary) == 16 + 1 + 32
    assert found.replace(boundary, b"00112233445566aa.DIGEST") == GOLDEN


def test_the_same_report_every_time():
    assert octets() == octets()


def test_the_header_field_by_field():
    assert [(name, str(value)) for name, value in parsed().items() if name != "Content-Type"] == [
        ("From", "Mail Delivery System <MAILER-DAEMON@example.org>"),
        ("To", "sender@example.org"),
        ("Subject", "Undelivered Mail Returned to Sender"),
        ("Date", "Wed, 15 Nov 2023 00:13:20 +0100"),
        ("Message-ID", "<00112233445566aa@host.example.org>"),
        ("In-Reply-To", "<1@example.org>"),
        ("References", "<1@example.org>"),
        ("Auto-Submitted", "auto-replied"),
        ("MIME-Version", "1.0"),
    ]


def test_a_bare_sender_and_a_bare_recipient_are_qualified():
    message = parsed(about=original(Recipient(b"bob"), sender=b"root"), to=b"root")
    assert message["To"] == "root@example.org"
    assert fields(message)[1][0] == ("Final-Recipient", "rfc822; bob@example.org")
    assert "<bob@example.org>" in text(message)


@pytest.mark.parametrize(
    "message_id",
    [
        b"",
        b"Message-ID:\n",
        b"Message-ID: none\n",
        b"Message-ID: <a b@x>\n",
        b"Message-ID: <a@x>\n <b@x>\n",
        b"Message-ID: <\xe9@x>\n",
        b"Message-ID: <\x07@x>\n",
        b"Message-ID: <%b@x>\n" % (b"a" * 1000),
    ],
)
def test_a_message_id_that_is_none_is_not_referred_to(message_id):
    message = parsed(about=original(header=b"Subject: x\n" + message_id + b"\n"))
    assert message["References"] is None
    assert message["In-Reply-To"] is None


# -- delivery-status


def test_all_fields():
    about = original(
        Recipient(b"ann@example.net"),
        Recipient(b"bob@example.net", original=b"robert@example.com"),
        envid="QQ314159",
    )
    waits = Outcome(
        1,
        DELAYED,
        "4.2.2",
        "host mx.example.net[192.0.2.1]:25 said: 452 4.2.2 full",
        remote_mta="mx.example.net[192.0.2.1]:25",
        diagnostic="smtp; 452 4.2.2 full",
        at=ARRIVED + 60,
    )
    lost = Outcome(0, DELAYED, "4.4.1", "connection refused", at=ARRIVED + 61)
    found = fields(parsed(DELAY, [lost, waits], about, retry_until=ARRIVED + 86400))
    assert found == [
        [
            ("Reporting-MTA", "dns; host.example.org"),
            ("Original-Envelope-Id", "QQ314159"),
            ("Arrival-Date", "Tue, 14 Nov 2023 23:13:20 +0100"),
        ],
        [
            ("Final-Recipient", "rfc822; ann@example.net"),
            ("Action", "delayed"),
            ("Status", "4.4.1"),
            ("Diagnostic-Code", "x-minisend; connection refused"),
            ("Last-Attempt-Date", "Tue, 14 Nov 2023 23:14:21 +0100"),
            ("Will-Retry-Until", "Wed, 15 Nov 2023 23:13:20 +0100"),
        ],
        [
            ("Original-Recipient", "rfc822; robert@example.com"),
            ("Final-Recipient", "rfc822; bob@example.net"),
            ("Action", "delayed"),
            ("Status", "4.2.2"),
            ("Remote-MTA", "dns; mx.example.net"),
            ("Diagnostic-Code", "smtp; 452 4.2.2 full"),
            ("Last-Attempt-Date", "Tue, 14 Nov 2023 23:14:20 +0100"),
            ("Will-Retry-Until", "Wed, 15 Nov 2023 23:13:20 +0100"),
        ],
    ]


@pytest.mark.parametrize(
    ("remote_mta", "name"),
    [
        ("mx.example.net[192.0.2.1]:25", "mx.example.net"),
        ("[192.0.2.1]:25", "[192.0.2.1]"),
        ("[2001:db8::1]:25", "[2001:db8::1]"),
        ("/run/lmtp", "/run/lmtp"),
        ("", None),
    ],
)
def test_remote_mta(remote_mta, name):
    found = dict(fields(parsed(outcomes=[of(NO_SUCH_USER, remote_mta=remote_mta)]))[1])
    assert found.get("Remote-MTA") == (name and f"dns; {name}")


@pytest.mark.parametrize(
    ("address", "field"),
    [
        (b"a@b.test", "rfc822; a@b.test"),
        (b'"a  b"@b.test', 'rfc822; "a  b"@b.test'),
        ("jörg@b.test".encode(), "utf-8; j\\x{F6}rg@b.test"),
        ("ö+a=b\\c@b.test".encode(), "utf-8; \\x{F6}\\x{2B}a\\x{3D}b\\x{5C}c@b.test"),
        ("鈴@例.test".encode(), "utf-8; \\x{9234}@\\x{4F8B}.test"),
        ("😀@b.test".encode(), "utf-8; \\x{1F600}@b.test"),
    ],
)
def test_addresses(address, field):
    message = parsed(about=original(Recipient(address, original=address)))
    assert fields(message)[1][:2] == [("Original-Recipient", field), ("Final-Recipient", field)]
    assert f"<{' '.join(address.decode().split())}>" in text(message)


@pytest.mark.parametrize(
    "address", [b"a\nAction: delivered@b.test", b"a\r\n\r\n--x@b.test", b"\xff\n"]
)
def test_an_address_adds_no_field(address):
    found = octets(about=original(Recipient(address, original=address)), to=address)
    message = email.message_from_bytes(found, policy=email.policy.compat32)
    assert message.keys() == email.message_from_bytes(GOLDEN).keys()
    group = message.get_payload()[1].get_payload()[1]
    assert group.keys()[:4] == ["Original-Recipient", "Final-Recipient", "Action", "Status"]
    assert group["Action"] == "failed"


def test_a_long_address_is_folded():
    address = "é".encode() * 250 + b"@b.test"
    found = octets(about=original(Recipient(address)))
    assert max(map(len, found.split(b"\n"))) <= 998
    field = dict(fields(parsed(about=original(Recipient(address))))[1])["Final-Recipient"]
    assert field.removeprefix("utf-8;").replace(" ", "") == "\\x{E9}" * 250 + "@b.test"


def test_a_sender_that_is_not_ascii_stands_in_to():
    found = octets(to="jörg@example.org".encode())
    assert "To: jörg@example.org\n".encode() in found


def test_a_long_reply_is_folded_and_ascii():
    reply = "550 " + "größer " * 300 + "x" * 2000
    found = octets(outcomes=[of(NO_SUCH_USER, diagnostic="smtp; " + reply)])
    status = found.partition(b"message/delivery-status\n\n")[2].partition(b"\n--")[0]
    assert status.isascii()
    assert max(map(len, status.split(b"\n"))) < 998
    assert status.count(b"gr\\xf6\\xdfer") == 300
    message = email.message_from_bytes(found, policy=email.policy.default)
    assert text(message).count("größer") == 300


# -- what is said to a person


@pytest.mark.parametrize(
    ("status", "meaning", "remedy"),
    [
        ("5.1.1", "There is no such address.", "Check the address for typing errors, and"),
        ("5.1.2", "The domain of the address does not exist", "Check what stands after the @"),
        ("5.4.4", "The domain of the address does not exist", "Check what stands after the @"),
        ("5.1.10", "The domain of the address does not exist", "Check what stands after the @"),
        ("5.1.8", "Your own address was refused", "Check the sender address"),
        ("5.2.1", "The mailbox takes no mail.", "Reach the recipient in another way"),
        ("5.2.2", "The mailbox is full.", "Send the message again later, or reach"),
        ("5.3.4", "The message is too large.", "Send it in smaller parts"),
        ("5.2.3", "The message is too large.", "Send it in smaller parts"),
        ("5.4.6", "The message went round in circles", "the administrator of this system"),
        ("5.6.0", "The form or the content", "Send it in a simpler form"),
        ("5.6.7", "The address has letters that are not ASCII", "Ask the recipient for an address"),
        ("5.7.1", "A rule of the recipient's mail system", "Change what the server complains of"),
        ("4.7.8", "This system could not log in", "the administrator of this system"),
        ("4.4.1", "could not be reached", "send the message again later"),
        ("4.3.2", "could not take the message", "Send it again later"),
        ("5.0.0", "refused the message", "the administrator of their mail system"),
        ("5.5.2", "refused the message", "the administrator of their mail system"),
    ],
)
def test_meaning_and_remedy(status, meaning, remedy):
    words = said(parsed(outcomes=[of(NO_SUCH_USER, status=status)]))
    assert meaning in words
    assert f"What you can do: {remedy}" in words or remedy in words.partition("What you can do:")[2]
    assert ("until its time in the queue was over" in words) is status.startswith("4")


def test_what_no_server_said_is_told_as_it_is():
    unroutable = Outcome(0, FAILED, "5.1.2", "example.invalid: no such domain", at=NOW)
    words = said(parsed(outcomes=[unroutable]))
    assert "The reason: example.invalid: no such domain What you can do:" in words


def test_a_delay_says_that_nothing_need_be_done():
    late = of(NO_SUCH_USER, action=DELAYED, status="4.2.2", diagnostic="smtp; 452 full")
    message = parsed(DELAY, [late], retry_until=ARRIVED + 86400)
    assert message["Subject"] == "Delayed Mail (still being retried)"
    words = said(message)
    assert (
        "You need not send it again: it will be tried until Wed, 15 Nov 2023 23:13:20 +0100."
        in words
    )
    assert "452 full" in words
    assert "What you can do" not in words


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (DELIVERED, "It is in the mailbox."),
        (RELAYED, "It was handed over to mx.example.net[192.0.2.1]:25, which will not confirm"),
    ],
)
def test_success(action, words):
    done = of(NO_SUCH_USER, action=action, status="2.1.5", diagnostic="smtp; 250 2.1.5 ok")
    message = parsed(SUCCESS, [done], original(ret="FULL"))
    assert message["Subject"] == "Successful Mail Delivery Report"
    assert words in said(message)
    assert dict(fields(message)[1])["Action"] == action
    assert returned(message)[0] == "text/rfc822-headers"


def test_a_success_without_a_reply_has_no_diagnostic_code():
    done = Outcome(0, DELIVERED, "2.0.0", "delivered to mailbox", at=NOW)
    assert "Diagnostic-Code" not in dict(fields(parsed(SUCCESS, [done]))[1])


def test_a_double_bounce_tells_the_admin_what_it_is():
    message = parsed(about=original(sender=b""), to=b"admin@example.org")
    assert message["To"] == "admin@example.org"
    assert message["Subject"] == "Undelivered Mail (its sender cannot be told)"
    assert "You get this report as the administrator of this system." in said(message)


def test_recipients_with_the_same_outcome_share_its_explanation():
    about = original(*(Recipient(b"r%d@example.net" % n) for n in range(4)))
    outcomes = [
        NO_SUCH_USER,
        of(NO_SUCH_USER, recipient=1),
        of(NO_SUCH_USER, recipient=3, status="5.2.2"),
    ]
    message = parsed(outcomes=outcomes, about=about)
    assert "<r0@example.net>\n<r1@example.net>\n    There is no such address.\n" in text(message)
    assert "<r3@example.net>\n    The mailbox is full.\n" in text(message)
    assert "delivered to the recipients below." in text(message)
    assert "This report says nothing of recipients who are not named in it." in text(message)
    assert len(fields(message)) == 4


# -- what is returned


@pytest.mark.parametrize(
    ("ret", "size", "event", "status", "kind"),
    [
        ("", RETURN_LIMIT, FAILURE, "5.1.1", "message/rfc822"),
        ("", RETURN_LIMIT + 1, FAILURE, "5.1.1", "text/rfc822-headers"),
        ("FULL", 10**9, FAILURE, "5.1.1", "message/rfc822"),
        ("full", 10**9, FAILURE, "5.1.1", "message/rfc822"),
        ("HDRS", 10, FAILURE, "5.1.1", "text/rfc822-headers"),
        ("hdrs", 10, FAILURE, "5.1.1", "text/rfc822-headers"),
        ("FULL", 10, FAILURE, "5.3.4", "text/rfc822-headers"),
        ("FULL", 10, FAILURE, "5.2.3", "text/rfc822-headers"),
        ("FULL", 10, DELAY, "4.1.1", "text/rfc822-headers"),
        ("", 10, SUCCESS, "2.1.5", "text/rfc822-headers"),
    ],
)
def test_what_is_returned(ret, size, event, status, kind):
    message = parsed(event, [of(NO_SUCH_USER, status=status)], original(ret=ret, size=size))
    whole = kind == "message/rfc822"
    assert returned(message) == (kind, HEADER + BODY if whole else HEADER.removesuffix(b"\n"))
    assert f"The {'message' if whole else 'header of the message'} follows" in text(message)


SIGNED = (
    b'Content-Type: multipart/signed; boundary="s"\n\n--s\n\n%b\n--s\n'
    b"Content-Type: application/pgp-signature\n\nxxxx\n--s--\n"
)


@pytest.mark.parametrize(
    ("body", "long_line", "kind"),
    [
        ("grüße".encode(), False, "text/rfc822-headers"),
        (b"x" * 999, True, "text/rfc822-headers"),
        (b"hello", False, "message/rfc822"),
    ],
)
@pytest.mark.parametrize("ret", ["", "FULL"])
def test_what_could_not_go_everywhere_comes_back_as_its_header(ret, body, long_line, kind):
    """A signed message that no server may re-encode: the report of its failure would fail as it did."""
    header = HEADER.removesuffix(b"\n") + b"MIME-Version: 1.0\n"
    top, _, rest = (SIGNED % body).partition(b"\n\n")
    about = original(header=header + top + b"\n\n", body=rest, ret=ret, long_line=long_line)
    message = parsed(FAILURE, about=about)
    *_, last = message.iter_parts()
    assert last.get_content_type() == kind
    returned = "message" if kind == "message/rfc822" else "header of the message"
    assert f"The {returned} follows at the end of this report." in text(message)
    if kind != "message/rfc822":
        assert octets(about=about).isascii()
        assert last.get_content() == (header + top).decode() + "\n"


def test_octets_above_127_outside_a_signature_come_back():
    about = original(body="grüße\n".encode())
    message = parsed(FAILURE, about=about)
    *_, last = message.iter_parts()
    assert last.get_content_type() == "message/rfc822"
    assert "grüße\n".encode() in octets(about=about)


@pytest.mark.parametrize("body", [b"", b"\n", b"no line end", b"a\n\n\n", b"--\n-- \n"])
def test_the_body_comes_back_as_it_is(body):
    found = octets(about=original(body=body))
    boundary = found.partition(b'boundary="')[2].partition(b'"')[0]
    rest = found.partition(b"message/rfc822\n\n")[2]
    assert rest == HEADER + body + b"\n--" + boundary + b"--\n"


def test_a_large_body_is_read_in_pieces_and_never_held():
    piece = b"x" * 76 + b"\n"
    made = []

    def body():
        made.append(0)
        for _ in range(1000):
            made[-1] += 1
            yield piece

    about = original(ret="FULL")
    about.body = body
    pieces = build(FAILURE, [NO_SUCH_USER], about, queue_id=ID, to=b"a@b.test", at=NOW)
    next(pieces)
    assert next(pieces) == HEADER
    assert made == [1000]
    next(pieces)
    assert made == [1000, 1]
    assert sum(map(len, pieces)) == 999 * 77 + len("\n----\n") + 49


@pytest.mark.parametrize(
    ("header", "body", "ret", "encoding"),
    [
        (HEADER, "ö\n".encode(), "", "8bit"),
        ("Subject: ö\n\n".encode(), b"x\n", "", "8bit"),
        ("Subject: ö\n\n".encode(), b"x\n", "HDRS", "8bit"),
        (HEADER, "ö\n".encode(), "HDRS", None),
        (HEADER, b"x\n", "", None),
    ],
)
def test_a_message_with_octets_above_127_is_declared(header, body, ret, encoding):
    message = parsed(about=original(header=header, body=body, ret=ret))
    assert message["Content-Transfer-Encoding"] == encoding
    assert message.get_payload()[2]["Content-Transfer-Encoding"] == encoding


def test_a_text_that_is_not_ascii_stays_seven_bit():
    found = octets(outcomes=[of(NO_SUCH_USER, diagnostic="smtp; 550 größer")])
    assert found.isascii()
    message = email.message_from_bytes(found, policy=email.policy.default)
    assert message["Content-Transfer-Encoding"] is None
    assert message.get_payload()[0]["Content-Transfer-Encoding"] == "quoted-printable"
    assert "550 größer" in text(message)


def test_a_header_that_could_not_be_read_is_returned_as_far_as_it_is_known():
    received = HEADER.partition(b"From:")[0]
    message = parsed(about=original(header=received, body=b"a" * 100, ret="HDRS"))
    assert returned(message) == ("text/rfc822-headers", received)


# -- nothing from outside makes structure


def test_a_message_cannot_close_its_part():
    """Not even one that holds the boundary of the report about another message, or guesses at its own."""
    first = octets()
    boundary = first.partition(b'boundary="')[2].partition(b'"')[0]
    forged = b"x\n--" + boundary + b"--\n\n--" + boundary + b"\nContent-Type: text/html\n\nevil\n"
    message = parsed(about=original(body=forged))
    assert returned(message) == ("message/rfc822", HEADER + forged)


_reply = st.text(
    st.characters() | st.sampled_from("\r\n\t\0\x0b\x85\u2028:- \udc80"), max_size=300
) | st.sampled_from(
    [
        "550 x\nAction: delivered",
        "550 x\r\n\r\n--00112233445566aa",
        "550 x\n--00112233445566aa--\n",
        "\n\n",
        "a" * 3000,
    ]
)
_lines = st.lists(st.binary(max_size=60).map(lambda b: b.translate(None, b"\r\n\0")), max_size=5)


@given(
    diagnostic=_reply,
    reason=_reply,
    remote_mta=_reply,
    command=_reply,
    envid=_reply,
    address=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=600),
    body=_lines,
    event=st.sampled_from([FAILURE, DELAY, SUCCESS]),
    ret=st.sampled_from(["", "FULL", "HDRS"]),
)
def test_nothing_said_or_sent_changes_the_structure(
    diagnostic, reason, remote_mta, command, envid, address, body, event, ret
):
    """Three parts, one field group a recipient, these fields and no other; lines that every server takes."""
    about = original(
        Recipient(address.encode(), original=address.encode()),
        Recipient(b"bob@example.net"),
        body=b"".join(line + b"\n" for line in body),
        envid=envid,
        ret=ret,
    )
    odd = Outcome(
        0,
        FAILED,
        "5.1.1",
        reason,
        remote_mta=remote_mta,
        diagnostic=diagnostic,
        command=command,
        at=NOW,
    )
    found = octets(event, [odd, of(NO_SUCH_USER, recipient=1)], about, address.encode())
    assert b"\r" not in found
    assert b"\0" not in found
    assert max(map(len, found.split(b"\n"))) <= 998
    boundary = found.partition(b'boundary="')[2].partition(b'"')[0]
    assert found.count(b"\n--" + boundary) == 4

    message = email.message_from_bytes(found, policy=email.policy.compat32)
    _, status, _ = message.get_payload()
    about_message, first, second = status.get_payload()
    assert set(about_message.keys()) - {"Original-Envelope-Id"} == {"Reporting-MTA", "Arrival-Date"}
    optional = {"Remote-MTA", "Diagnostic-Code", "Will-Retry-Until"}
    expected = ["Original-Recipient", "Final-Recipient", "Action", "Status", "Last-Attempt-Date"]
    assert [name for name in first if name not in optional] == expected
    assert [name for name in second if name not in optional] == expected[1:]
    assert first["Action"] == "failed"
