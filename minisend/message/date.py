"""A moment as a Date field shows it.

Never: no locale and no clock; the caller says when and in which zone.

Source: RFC 5322 section 3.3, ``Mon, 23 Nov 2026 13:24:19 +0000``.
"""

import time

from minisend.kept import Kept

_DAYS = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
_MONTHS = (
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
)  # fmt: skip


def format_date(seconds: float, zone_minutes: int) -> bytes:
    """The date-time of RFC 5322 section 3.3.

    ``seconds``       since the epoch, UTC; a fraction is cut off
    ``zone_minutes``  east of UTC, less than a day either way
    """
    return _moments[int(seconds // 1), zone_minutes]


def _formatted(seconds: int, zone_minutes: int) -> bytes:
    moment = time.gmtime(seconds + zone_minutes * 60)
    hours, minutes = divmod(abs(zone_minutes), 60)
    return b"%b, %02d %b %04d %02d:%02d:%02d %c%02d%02d" % (
        _DAYS[moment.tm_wday],
        moment.tm_mday,
        _MONTHS[moment.tm_mon - 1],
        moment.tm_year,
        moment.tm_hour,
        moment.tm_min,
        moment.tm_sec,
        b"-" if zone_minutes < 0 else b"+",
        hours,
        minutes,
    )


_moments: "Kept[bytes]" = Kept(_formatted, 64)
