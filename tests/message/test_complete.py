"""message/complete.py: the header as it goes out."""

import email
import email.policy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.envelope import Envelope, Facts, Recipient
from minisend.message.complete import complete, facts_for
from minisend.message.header import HEADER_LIMIT, Header, split

HOST, DOMAIN = b"box.example.org", b"example.org"

RECEIVED = (
    b"Received: by box.example.org (minisend, from userid 1000 (tester))\n"
    b"\tid 0123456789abcdef; Mon, 23 Nov 2026 14:24:19 +0100\n"
)
DATE = b"Date: Mon, 23 Nov 2026 14:24:19 +0100\n"
FROM = b'From: "Tess T. Ester" <tester@example.org>\n'
MESSAGE_ID = b"Message-ID: <20261123132419.0123456789abcdef@box.example.org>\n"
ADDED = DATE + FROM + MESSAGE_ID
WHOLE = b"From: a@x.example\nDate: Mon, 01 Jan 2024 00:00:00 +0000\nMessage-ID: <1@x>\n"


def envelope(
    sender: bytes = b"tester",
    login: bytes = b"tester",
    full_name: bytes = b"Tess T. Ester",
    uid: int = 1000,
    channel: str = "",
) -> Envelope:
    return Envelope(
        "0123456789abcdef",
        sender,
        [Recipient(b"bob@example.net")],
        arrived=1795440259.5,
        zone=60,
        uid=uid,
        login=login,
        full_name=full_name,
        channel=channel,
    )


def completed(data: bytes, who: Envelope | None = None) -> bytes:
    """The header that goes out for the message ``data``, our Received taken off, then its body."""
    who = who or envelope()
    header = split(data, complete=True)
    out = complete(header, who, facts_for(who, HOST, DOMAIN))
    assert out.startswith(RECEIVED)
    return out[len(RECEIVED) :] + data[header.body :]


TABLE = {
    "complete": (WHOLE + b"To: b@x\n\nbody\n", WHOLE + b"To: b@x\n\nbody\n"),
    "only a subject": (b"Subject: a\n\nbody\n", b"Subject: a\n" + ADDED + b"\nbody\n"),
    "no header": (b"just text\nand: more\n", ADDED + b"\njust text\nand: more\n"),
    "leading empty line": (b"\ntext\n", ADDED + b"\ntext\n"),
    "no empty line": (b"Subject: a\nthe body\n", b"Subject: a\n" + ADDED + b"\nthe body\n"),
    "empty message": (b"", ADDED + b"\n"),
    "end of file in a field": (b"Subject: a", b"Subject: a\n" + ADDED + b"\n"),
    "mbox line": (b"From x Mon\n" + WHOLE + b"\nb", WHOLE + b"\nb"),
    "crlf, nul": (WHOLE.replace(b"\n", b"\r\n") + b"X: a\0b\r\n\r\nb", WHOLE + b"X: ab\n\nb"),
    "names in any case": (
        b"fROM: a@x\ndATE: d\nmESSAGE-iD: <i>\nbCC: s@x\nrETURN-pATH: <r@x>\nX:1\n\n",
        b"fROM: a@x\ndATE: d\nmESSAGE-iD: <i>\nX:1\n\n",
    ),
    "Bcc in all forms": (
        WHOLE + b"Bcc: s1@x,\n s2@x\nX: y\nBcc : s3@x\nBCC:\n\ts4@x\nResent-Bcc:\n\n",
        WHOLE + b"X: y\n"
        b"Resent-Date: Mon, 23 Nov 2026 14:24:19 +0100\n"
        b'Resent-From: "Tess T. Ester" <tester@example.org>\n'
        b"Resent-Message-ID: <20261123132419.0123456789abcdef@box.example.org>\n\n",
    ),
    "return path, content length": (
        b"Return-Path: <r@x>\nContent-Length: 5\n" + WHOLE + b"Content-Type: text/plain\n\n",
        WHOLE + b"Content-Type: text/plain\n\n",
    ),
    "required fields without a value": (
        b"From:\nSubject: a\nDate: \n \nMessage-ID:\t\n\n",
        b"Subject: a\n" + ADDED + b"\n",
    ),
    "an empty From beside a full one": (
        b"From:\n" + WHOLE + b"\n",
        WHOLE + b"\n",
    ),
    "two Froms (bsd-mailx)": (
        WHOLE + b"From: Foo <foo@x>\n\n",
        WHOLE + b"From: Foo <foo@x>\n\n",
    ),
    "no To is added": (WHOLE + b"\nb", WHOLE + b"\nb"),
    "order, spelling, folding": (
        b"x-FIRST:1\nTO:b@x,\n\tc@x\n" + WHOLE + b"Subject : a  \n b\nReceived: old\nX-8: \xff\n\n",
        b"x-FIRST:1\nTO:b@x,\n\tc@x\n" + WHOLE + b"Subject : a  \n b\nReceived: old\nX-8: \xff\n\n",
    ),
    "resent, bare": (
        b"Received: old\nResent-To: r@x\n" + WHOLE + b"To: b@x\n\n",
        b"Received: old\n"
        b"Resent-Date: Mon, 23 Nov 2026 14:24:19 +0100\n"
        b'Resent-From: "Tess T. Ester" <tester@example.org>\n'
        b"Resent-Message-ID: <20261123132419.0123456789abcdef@box.example.org>\n"
        b"Resent-To: r@x\n" + WHOLE + b"To: b@x\n\n",
    ),
    "resent, complete": (
        WHOLE + b"Resent-From: r@x\nResent-Date: d\nResent-Message-ID: <i>\nResent-To: t@x\n\n",
        WHOLE + b"Resent-From: r@x\nResent-Date: d\nResent-Message-ID: <i>\nResent-To: t@x\n\n",
    ),
    "resent, the rest missing too": (
        b"Resent-From: r@x\nResent-Date:\n\n",
        b"Resent-Date: Mon, 23 Nov 2026 14:24:19 +0100\n"
        b"Resent-Message-ID: <20261123132419.0123456789abcdef@box.example.org>\n"
        b"Resent-From: r@x\n" + ADDED + b"\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_table(name: str) -> None:
    data, wanted = TABLE[name]
    assert completed(data) == wanted


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        (b"From: root (Cron Daemon)\n", b"From: root@example.org (Cron Daemon)\n"),
        (b'From: "(Cron Daemon)" <root>\n', b'From: "(Cron Daemon)" <root@example.org>\n'),
        (b"from:Anacron <root>\n", b"from:Anacron <root@example.org>\n"),
        (b"From: Task Spooler <taskspooler>\n", b"From: Task Spooler <taskspooler@example.org>\n"),
        (b"To : a, b@x,\n\t\"C, D\" <c>\n", b"To : a@example.org, b@x,\n\t\"C, D\" <c@example.org>\n"),
        (b"Cc: Group: a, b@x;, (c) d\n", b"Cc: Group: a@example.org, b@x;, (c) d@example.org\n"),
        (b"Sender: a\n", b"Sender: a@example.org\n"),
        (b"REPLY-TO: a . b (c)\n", b"REPLY-TO: a . b@example.org (c)\n"),
        (b'To: "odd name"\n', b'To: "odd name"@example.org\n'),
        (b"To: <@x,@y:u>\n", b"To: <@x,@y:u@example.org>\n"),
        (b"To: \xff <u>\n", b"To: \xff <u@example.org>\n"),
        (b"To: undisclosed-recipients:;\n", b"To: undisclosed-recipients:;\n"),
        (b"To: a, b@x, two words\n", b"To: a, b@x, two words\n"),
        (b"To: MAILER-DAEMON <>\n", b"To: MAILER-DAEMON <>\n"),
        (b"To: Joe Doe, Jr. <j>\n", b"To: Joe Doe, Jr. <j>\n"),
        (b"To:\n", b"To:\n"),
        (b"Subject: root\n", b"Subject: root\n"),
        (b"X-To: root\n", b"X-To: root\n"),
        (b"Errors-To: root\n", b"Errors-To: root\n"),
    ],
    ids=repr,
)  # fmt: skip
def test_bare_names_are_qualified_in_place(field: bytes, wanted: bytes) -> None:
    rest = WHOLE if not field.lower().startswith(b"from") else WHOLE[len(b"From: a@x.example\n") :]
    assert completed(field + rest + b"\n") == wanted + rest + b"\n"


@pytest.mark.parametrize("name", [b"Resent-From", b"Resent-Sender", b"Resent-To", b"Resent-Cc"])
def test_bare_names_of_resent_fields(name: bytes) -> None:
    resent = b"Resent-From: f@x\nResent-Date: d\nResent-Message-ID: <i>\n"
    assert completed(WHOLE + resent + name + b": a\n\n") == (
        WHOLE + resent + name + b": a@example.org\n\n"
    )


# SEMANTICS 39: the names of the nine accounts and of the -F cases.
NAMES = {
    b"Tess T. Ester": b'"Tess T. Ester" <tester@example.org>',
    b'Joe "Q" Public': b'"Joe \\"Q\\" Public" <tester@example.org>',
    b"J. R. Doe": b'"J. R. Doe" <tester@example.org>',
    b"Doe (Jr)": b'"Doe (Jr)" <tester@example.org>',
    b"Gamp Smith": b"Gamp Smith <tester@example.org>",
    "Jürgen Müller".encode(): b"=?utf-8?q?J=C3=BCrgen_M=C3=BCller?= <tester@example.org>",
    b"": b"tester@example.org",
    b"Doe, Jane": b'"Doe, Jane" <tester@example.org>',
    b"A\\B": b'"A\\\\B" <tester@example.org>',
    b"X <y@z>": b'"X <y@z>" <tester@example.org>',
    b"Cron: Daemon": b'"Cron: Daemon" <tester@example.org>',
    b"Name\nBcc: evil@example.com": b'"Name Bcc: evil@example.com" <tester@example.org>',
    b"Name\r\nX-Evil: yes": b'"Name X-Evil: yes" <tester@example.org>',
    b"J\xfcrgen": b"=?iso-8859-1?q?J=FCrgen?= <tester@example.org>",
    b"A" * 42: b"A" * 42 + b"\n <tester@example.org>",
}


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_the_full_name_in_a_made_up_from(name: bytes) -> None:
    who = envelope(full_name=name)
    assert facts_for(who, HOST, DOMAIN).from_field == NAMES[name]
    out = completed(b"Subject: a\n\n", who)
    assert out == b"Subject: a\n" + DATE + b"From: " + NAMES[name] + b"\n" + MESSAGE_ID + b"\n"
    (sender,) = email.message_from_bytes(out, policy=email.policy.default)["From"].addresses
    shown = name.decode("utf-8" if b"\xc3" in name else "latin-1").replace("\r", "")
    assert (sender.display_name, sender.addr_spec) == (
        shown.replace("\n", " "),
        "tester@example.org",
    )


@pytest.mark.parametrize(
    ("who", "wanted"),
    [
        (envelope(b"alice@example.net", full_name=b"Alice A"), b"Alice A <alice@example.net>"),
        (envelope(b"", full_name=b"Alice A"), b"Alice A <tester@example.org>"),
        (envelope(b"", full_name=b""), b"tester@example.org"),
        (envelope(b"", b"", b""), b"uid1000@example.org"),
        (envelope(b"", b"DOM\\joe", b""), b'"DOM\\\\joe"@example.org'),
        (envelope(b"", b"a\r\nBcc: x", b""), b"uid1000@example.org"),
        (envelope(b"a\r\n@b", b"", b""), b"uid1000@example.org"),
        (envelope(b'"odd name"', full_name=b""), b'"odd name"@example.org'),
    ],
    ids=["-f", "null sender", "no name", "no account", "domain login", "hostile login", "hostile sender", "quoted"],
)  # fmt: skip
def test_whose_address_a_made_up_from_has(who: Envelope, wanted: bytes) -> None:
    assert facts_for(who, HOST, DOMAIN).from_field == wanted


@pytest.mark.parametrize(
    ("who", "origin"),
    [
        (envelope(), b"minisend, from userid 1000 (tester)"),
        (envelope(login=b""), b"minisend, from userid 1000"),
        (envelope(login=b"odd)name"), b"minisend, from userid 1000"),
        (envelope(login=b"j\xf6rg"), b"minisend, from userid 1000"),
        (envelope(login=b"", uid=0), b"minisend, from userid 0"),
        (envelope(channel="socket"), b"minisend, from userid 1000 (tester)"),
        (envelope(channel="drop"), b"minisend, from userid 1000 (unverified)"),
        (envelope(login=b"", uid=-1), b"minisend"),
    ],
)
def test_received(who: Envelope, origin: bytes) -> None:
    header = split(WHOLE + b"\n", complete=True)
    out = complete(header, who, facts_for(who, HOST, DOMAIN))
    assert out == RECEIVED.replace(b"minisend, from userid 1000 (tester)", origin) + WHOLE + b"\n"


def test_later_attempts_use_the_facts_they_are_given() -> None:
    """A configuration changed between two attempts changes no octet of what goes out."""
    facts = Facts(b"h", b"d", b"F <f@d>", b"<i@h>")
    assert facts != facts_for(envelope(), HOST, DOMAIN)
    assert repr(facts) == (
        "Facts(from_field=b'F <f@d>', hostname=b'h', mail_domain=b'd', message_id=b'<i@h>')"
    )
    header = split(b"To: a\n\n", complete=True)
    assert complete(header, envelope(), facts) == (
        RECEIVED.replace(HOST, b"h") + b"To: a@d\n" + DATE + b"From: F <f@d>\nMessage-ID: <i@h>\n\n"
    )


def test_a_header_too_long_to_read_gets_a_received_field_and_nothing_else() -> None:
    data = b"From x Mon\n" + b"Bcc: a\n" * (HEADER_LIMIT // 7)
    header = split(data, complete=True)
    assert header == Header([], 11, too_long=True)
    assert complete(header, envelope(), facts_for(envelope(), HOST, DOMAIN)) == RECEIVED


FIELDS = st.sampled_from(
    [
        b"From: a\n", b"From:\n", b"from: A <a@b>\n", b"To: root, b@x\n", b"Cc: two words\n",
        b"Bcc: secret@x,\n secret2@x\n", b"bcc : secret@x\n", b"Resent-Bcc: secret@x\n", b"Resent-To: r\n",
        b"Resent-Date:\n", b"Resent-From: (x) y\n", b"Date: now\n", b"Date:\t\n", b"Message-ID: <x>\n",
        b"Return-Path: <secret@x>\n", b"Content-Length: 7\n", b"Sender: \"a\n", b"To\0: x\0y\n",
    ]
)  # fmt: skip
OTHER = st.binary(max_size=20).map(
    lambda value: b"X-Other:" + value.translate(None, b"\r\n\0") + b"\n\tfold \n"
)
HEADERS = st.lists(FIELDS | OTHER, max_size=10)
NAME = st.binary(max_size=30)


@settings(max_examples=150, deadline=None)
@given(
    HEADERS, st.sampled_from([b"\n", b"\r\n", b"\r"]), NAME, NAME, st.sampled_from([b"", b"a@b"])
)
def test_what_every_completed_header_has(
    fields: list[bytes], line_end: bytes, name: bytes, login: bytes, sender: bytes
) -> None:
    """One From, Date and Message-ID at least, no secret, no CR or NUL, other fields as they came,
    and a second pass over the result adds its Received and changes nothing."""
    who = envelope(sender, login, name)
    facts = facts_for(who, HOST, DOMAIN)
    data = b"".join(fields).replace(b"\n", line_end) + line_end + b"body"
    header = split(data, complete=True)
    out = complete(header, who, facts)

    assert b"\r" not in out
    assert b"\0" not in out
    assert out.endswith(b"\n\n")
    assert b"\n\n" not in out[:-2]
    assert b"secret" not in out
    again = split(out + b"body", complete=True)
    assert again.body == len(out)
    names = [field.name.lower() for field in again.fields]
    assert names[0] == b"received"
    assert names.count(b"date") == max(1, fields.count(b"Date: now\n"))
    assert names.count(b"message-id") == max(1, fields.count(b"Message-ID: <x>\n"))
    assert names.count(b"from") == max(
        1, fields.count(b"From: a\n") + fields.count(b"from: A <a@b>\n")
    )
    assert [f.raw for f in again.fields if f.is_(b"x-other")] == [
        f for f in fields if f.startswith(b"X-Other")
    ]
    received = again.fields[0].raw
    assert complete(again, who, facts) == received + out


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=80)
    | st.lists(st.sampled_from(b'a@b :,\n\r\t\0<>()"\\;F'), max_size=60).map(bytes)
)
def test_any_octets_complete(data: bytes) -> None:
    """Nothing is raised, no CR or NUL leaves, the header ends where it says, the body is all there."""
    header = split(data, complete=True)
    out = complete(header, envelope(), facts_for(envelope(), HOST, DOMAIN))
    assert b"\r" not in out
    assert b"\0" not in out
    again = split(out + b"-", complete=True)
    assert again.body == len(out)
    assert 0 <= header.body <= len(data)
