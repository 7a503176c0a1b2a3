"""Who is submitting: what only the caller's process knows, its real uid and its time zone."""

import posix
import time

from minisend.spool.account import Account, account

_MOST_MINUTES = 24 * 60 - 1


def caller() -> Account:
    """The account of the real uid."""
    return account(posix.getuid())


def zone(now: float) -> int:
    """Minutes east of UTC in the caller's time zone at ``now``, less than a day either way whatever TZ says (RFC 5322 3.3)."""
    minutes = int(time.localtime(now).tm_gmtoff) // 60
    return max(-_MOST_MINUTES, min(minutes, _MOST_MINUTES))
