"""message/date.py against the standard library's own writer."""

import datetime
import email.utils

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisend.message.date import format_date


@pytest.mark.parametrize(
    ("seconds", "zone", "text"),
    [
        (1795440259, 0, b"Mon, 23 Nov 2026 13:24:19 +0000"),
        (1795440259.999, 60, b"Mon, 23 Nov 2026 14:24:19 +0100"),
        (1795440259, -570, b"Mon, 23 Nov 2026 03:54:19 -0930"),
        (1795440259, 825, b"Tue, 24 Nov 2026 03:09:19 +1345"),
        (0, -1, b"Wed, 31 Dec 1969 23:59:00 -0001"),
        (951782400, 0, b"Tue, 29 Feb 2000 00:00:00 +0000"),
    ],
)
def test_dates(seconds: float, zone: int, text: bytes) -> None:
    assert format_date(seconds, zone) == text


@given(st.integers(0, 2**33), st.integers(-1439, 1439))
def test_as_the_standard_library_writes_it(seconds: int, zone: int) -> None:
    place = datetime.timezone(datetime.timedelta(minutes=zone))
    moment = datetime.datetime.fromtimestamp(seconds, place)
    assert format_date(seconds, zone).decode() == email.utils.format_datetime(moment)
