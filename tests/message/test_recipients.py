"""message/recipients.py: whom -t mails."""

import pytest

from minisend.address import AddressError
from minisend.message.header import split
from minisend.message.recipients import header_recipients


def named(data: bytes) -> list[bytes]:
    return header_recipients(split(data, complete=True).fields)


@pytest.mark.parametrize(
    ("data", "recipients"),
    [
        (b"To: bob@x\n\n", [b"bob@x"]),
        (b"To: bob@x", [b"bob@x"]),
        (b"Cc: c@x\nTO: a@x\nbCC: d@x\n\n", [b"c@x", b"a@x", b"d@x"]),
        (b"To: a@x\nTo: b@x\n\n", [b"a@x", b"b@x"]),
        (b"Bcc: d1@x,\r\n d2@x,\r\n\td3@x\r\n\r\n", [b"d1@x", b"d2@x", b"d3@x"]),
        (b"Bcc:\n d1@x\n\n", [b"d1@x"]),
        (b"Bcc : d1@x\n\n", [b"d1@x"]),
        (b"To: bob@x\nBcc:\n\n", [b"bob@x"]),
        (b"To:\nSubject: a\n\n", []),
        (b"To: undisclosed-recipients:;\nBcc: d@x\n\n", [b"d@x"]),
        (b'To: "odd name"@x, "a,b"@x\n\n', [b'"odd name"@x', b'"a,b"@x']),
        (b"To: a@x, A <a@x>\nCc: a@X\n\n", [b"a@x", b"a@x", b"a@X"]),
        (b"To: root\n\n", [b"root"]),
        (b"Subject: a\n\nTo: bob@x\n", []),
        (b"From: f@x\nReply-To: r@x\nX-To: x@x\nApparently-To: y@x\n\n", []),
        (b"Resent-To: r1@x\nTo: a@x\nBcc: b@x\nResent-Cc: r2@x\n\n", [b"r1@x", b"r2@x"]),
        (b"resent-bcc : r@x\nTo: a@x\n\n", [b"r@x"]),
        (b"Resent-To:\nTo: a@x\n\n", []),
        (b"Resent-From: f@x\nResent-Date: d\nTo: a@x\n\n", [b"a@x"]),
        (b"To: -f, -FName, a@x\n\n", [b"-f", b"-FName", b"a@x"]),
    ],
    ids=repr,
)
def test_who_is_named(data: bytes, recipients: list[bytes]) -> None:
    assert named(data) == recipients


def test_a_thousand_on_one_line() -> None:
    wanted = [b"user%04d@example.net" % number for number in range(1000)]
    assert named(b"To: " + b", ".join(wanted) + b"\n\n") == wanted


def test_an_unusable_address_is_named() -> None:
    with pytest.raises(AddressError) as caught:
        named(b"To: a@x, bad@@example..net, b@x\n\n")
    assert str(caught.value) == '"bad@@example..net": more than one @'


def test_one_that_is_not_asked_for_does_not_matter() -> None:
    assert named(b"Resent-To: a@x\nTo: bad@@example..net\nReply-To: @\n\n") == [b"a@x"]
