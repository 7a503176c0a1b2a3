"""[submission] senders: who may send under which reverse-path and From."""

import pytest

from minisend.envelope import DROP, SOCKET, Envelope, Recipient
from minisend.message.permission import refusal

SENDERS = {
    "www-data": ("*@shop.example", "<>"),
    "1234": ("backup@example.org",),
    "*": ("{user}@example.org", "{user}+*@example.org"),
}
SUFFIX = " ([submission] senders)"


def refused(
    sender: bytes,
    header: bytes = b"",
    *,
    login: bytes = b"ann",
    uid: int = 1000,
    channel: str = SOCKET,
    senders: dict[str, tuple[str, ...]] = SENDERS,
) -> str:
    envelope = Envelope(
        "0" * 16, sender, [Recipient(b"b")], arrived=1.0, uid=uid, login=login, channel=channel
    )
    return refusal(
        envelope, header + b"\nbody\n", complete=True, senders=senders, mail_domain=b"example.org"
    )


@pytest.mark.parametrize(
    ("login", "uid", "sender", "header"),
    [
        (b"ann", 1000, b"ann@example.org", b""),
        (b"ann", 1000, b"ann", b"From: Ann <ann>\n"),
        (b"ann", 1000, b"ann+x@EXAMPLE.org", b"From: ann+y@example.org, ann@example.org\n"),
        (b"www-data", 33, b"anybody@shop.example", b"From: x@shop.example\n"),
        (b"www-data", 33, b"", b"From: x@shop.example\n"),
        (b"other", 1234, b"backup@example.org", b""),
    ],
)
def test_allowed(login: bytes, uid: int, sender: bytes, header: bytes) -> None:
    assert refused(sender, header, login=login, uid=uid) == ""


@pytest.mark.parametrize(
    ("login", "uid", "sender", "header", "why"),
    [
        (b"ann", 1000, b"bob@example.org", b"", "ann may not send as <bob@example.org>"),
        (b"ann", 1000, b"ann@other.example", b"", "ann may not send as <ann@other.example>"),
        (b"ann", 1000, b"", b"", "ann may not send as <>"),
        (
            b"ann",
            1000,
            b"ann",
            b"From: bob@example.org\n",
            "ann may not write as <bob@example.org>",
        ),
        (
            *(b"ann", 1000, b"ann", b"From: ann, root@example.org\n"),
            "ann may not write as <root@example.org>",
        ),
        (
            *(b"ann", 1000, b"ann", b"From: ann\nFrom: root\n"),
            "ann may not write as <root>",
        ),
        (b"ann", 1000, b"ann", b'From: "ann\n', "ann may not send a From that cannot be read"),
        (b"www-data", 33, b"x@example.org", b"", "www-data may not send as <x@example.org>"),
        (b"other", 1234, b"other@example.org", b"", "other may not send as <other@example.org>"),
        # A name that is a pattern would be any name.
        (b"*", 1000, b"bob@example.org", b"", "* may not send mail here"),
    ],
)
def test_refused(login: bytes, uid: int, sender: bytes, header: bytes, why: str) -> None:
    assert refused(sender, header, login=login, uid=uid) == why + SUFFIX


def test_who_is_not_named_may_send_nothing() -> None:
    senders = {"www-data": ("*",)}
    assert refused(b"ann", senders=senders) == "ann may not send mail here" + SUFFIX


def test_without_a_table_everybody_may_send_as_anybody() -> None:
    assert refused(b"root@bank.example", b"From: x@y\n", senders={}) == ""


def test_who_cannot_be_verified_has_what_anybody_has_and_no_name() -> None:
    """Not even the name that is claimed."""
    nobody = "a sender that cannot be verified"
    assert refused(b"ann", channel=DROP) == f"{nobody} may not send mail here{SUFFIX}"
    senders = {"ann": ("ann@example.org",), "*": ("{user}@example.org", "noreply@example.org")}
    assert refused(b"ann", channel=DROP, senders=senders) == (
        f"{nobody} may not send as <ann>{SUFFIX}"
    )
    assert refused(b"noreply", channel=DROP, senders=senders) == ""


def test_a_header_without_an_end_is_no_way_around() -> None:
    envelope = Envelope(
        "0" * 16, b"ann", [Recipient(b"b")], arrived=1.0, uid=1000, login=b"ann", channel=SOCKET
    )
    first = b"X: " + b"x" * (1 << 20) + b"\n"
    why = refusal(envelope, first, complete=False, senders=SENDERS, mail_domain=b"example.org")
    assert why == f"ann may not send a header that is too long to be read{SUFFIX}"
