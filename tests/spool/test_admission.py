"""The border between accounts: what a submitter says is taken where it holds, and never what only the system knows."""

import pytest

from minisend.address import ADDRESS_LIMIT, AddressError
from minisend.envelope import DROP, SOCKET, Envelope, Recipient
from minisend.errors import DataError, UsageError
from minisend.spool.admission import admit
from minisend.spool.enqueue import new_queue_id
from spool.served import ID, OPTIONAL


def said(**changes):
    values = {
        "sender": b"ann@example.org",
        "recipients": [Recipient(b"bob@example.net", b"bob@old.example", "SUCCESS,FAILURE")],
        "arrived": 1.0,
        "uid": 0,
        "login": b"root",
        "channel": "",
        **OPTIONAL,
    } | changes
    return Envelope("0" * 16, values.pop("sender"), values.pop("recipients"), **values)


def admitted(envelope, channel=SOCKET):
    return admit(envelope, ID, uid=1000, login=b"ann", channel=channel, now=1_700_000_000.0)


def test_what_the_system_knows_is_not_taken():
    assert admitted(said()) == Envelope(
        new_queue_id(ID),
        b"ann@example.org",
        [Recipient(b"bob@example.net", b"bob@old.example", "SUCCESS,FAILURE")],
        arrived=1_700_000_000.0,
        uid=1000,
        login=b"ann",
        channel=SOCKET,
        **OPTIONAL,
    )


def test_the_reverse_path_of_who_names_none_is_the_account():
    assert admitted(said(sender=b"root", sender_given=False), DROP).sender == b"ann"


def test_the_null_reverse_path_may_be_named():
    assert admitted(said(sender=b"")).sender == b""


@pytest.mark.parametrize("zone", [-1440, 1440, 10**9])
def test_a_zone_that_is_none_is_utc(zone):
    assert admitted(said(zone=zone)).zone == 0


def test_a_name_is_one_line_and_not_endless():
    assert (
        admitted(said(full_name=b"Ann\r\nBcc: x@y" + b"z" * 2000)).full_name
        == (b"Ann Bcc: x@y" + b"z" * 2000)[:1000]
    )


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"recipients": []}, UsageError),
        ({"recipients": [Recipient(b"")]}, AddressError),
        ({"recipients": [Recipient(b"a@b> SIZE=1")]}, AddressError),
        ({"recipients": [Recipient(b"a\r\nDATA@b.example")]}, AddressError),
        ({"recipients": [Recipient(b"a@b.example", b"x\ny")]}, DataError),
        ({"recipients": [Recipient(b"a@b.example", b"x" * (ADDRESS_LIMIT + 1))]}, DataError),
        ({"recipients": [Recipient(b"a@b.example", notify="NEVER,FAILURE")]}, DataError),
        ({"recipients": [Recipient(b"a@b.example", notify="failure")]}, DataError),
        ({"sender": b"a@b> BODY=x"}, AddressError),
        ({"sender": b"a\0@b.example"}, AddressError),
        ({"body": "BINARYMIME"}, DataError),
        ({"ret": "ALL"}, DataError),
        ({"envid": "a b\nc"}, DataError),
        ({"envid": "x" * 101}, DataError),
    ],
)
def test_what_does_not_hold_is_refused(changes, error):
    with pytest.raises(error):
        admitted(said(**changes))
