"""When a message is tried again, warned about, given up.  Pure: the clock and the jitter are arguments.

    counted attempts    wait before the next
    0, 1                retry_min
    n                   retry_min * 2^(n-1), at most retry_max

The wait grows by up to a tenth (at the ceiling it shrinks by up to a tenth), so that what failed
together does not come back together.  It is never longer than ``retry_max``: a time further away
means that the clock was stepped, and the queue takes such a message as due.

All times are seconds since the epoch, all durations seconds.  Source: RFC 5321 section 4.5.4.1.
"""

import binascii

# A lifetime can pass while the machine is off or without network: nothing goes back to its sender
# before the destination was really tried this often.
LEAST_ATTEMPTS = 3

_SPREAD = 0.1
# 2^40 times one second is beyond any retry_max, and no float overflows before it.
_MOST_DOUBLINGS = 40


def jitter(queue_id: str, attempts: int) -> float:
    """A number in [0, 1) that is the same for the same attempt of the same message."""
    return binascii.crc32(f"{queue_id} {attempts}".encode()) / (1 << 32)


def next_attempt(
    arrived: float,
    attempts: int,
    now: float,
    *,
    lifetime: float,
    retry_min: float,
    retry_max: float,
    jitter: float,
) -> float | None:
    """After an attempt that left the message waiting: the time of the next one, or None to expire it.

    ``attempts``  how many counted so far, the one just made included; a failure that lies on this
                  machine (no network) does not count
    ``jitter``    in [0, 1), see ``jitter()``

    A message that arrived in the future (the clock was stepped back) does not expire.
    """
    if attempts >= LEAST_ATTEMPTS and now - arrived >= lifetime:
        return None
    return wait_after(attempts, now, retry_min=retry_min, retry_max=retry_max, jitter=jitter)


def wait_after(
    attempts: int, now: float, *, retry_min: float, retry_max: float, jitter: float
) -> float:
    """The time of the next attempt, expired or not; arguments as ``next_attempt``."""
    doublings = min(max(attempts - 1, 0), _MOST_DOUBLINGS)
    wait = min(retry_min * 2.0**doublings, retry_max)
    spread = wait * _SPREAD * jitter
    return now + (wait + spread if wait + spread <= retry_max else wait - spread)


def warn_due(arrived: float, now: float, *, warn_after: float, warned: bool) -> bool:
    """True when the sender is to be told, once, that the message is late (RFC 3464 action "delayed")."""
    return not warned and now - arrived >= warn_after
