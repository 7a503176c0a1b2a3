"""Retry: the whole schedule of a message, and the ends of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.delivery.retry import jitter, next_attempt, warn_due

MINUTE, HOUR, DAY = 60, 3600, 86400
DEFAULTS = {"lifetime": 5 * DAY, "retry_min": 5 * MINUTE, "retry_max": 4 * HOUR}


def test_the_default_schedule() -> None:
    """5 minutes, doubling to 4 hours, and a bounce at the first failure after five days."""
    now, attempts, waits = 0.0, 0, []
    while True:
        attempts += 1
        due = next_attempt(0.0, attempts, now, **DEFAULTS, jitter=0.0)
        if due is None:
            break
        waits.append((due - now) / MINUTE)
        now = due
    assert waits == [5, 10, 20, 40, 80, 160] + [240] * 29
    assert now == 5 * DAY + HOUR + 15 * MINUTE


@pytest.mark.parametrize(
    ("attempts", "fraction", "wait"),
    [
        pytest.param(0, 0.0, 300.0, id="only uncounted attempts"),
        pytest.param(1, 0.0, 300.0, id="first"),
        pytest.param(1, 0.5, 315.0, id="first, half the jitter"),
        pytest.param(2, 0.5, 630.0, id="second"),
        pytest.param(3, 0.5, 1000.0 - 50.0, id="ceiling"),
        pytest.param(10**9, 0.0, 1000.0, id="no overflow"),
    ],
)
def test_waits(attempts: int, fraction: float, wait: float) -> None:
    due = next_attempt(
        0.0, attempts, 50.0, lifetime=DAY, retry_min=300, retry_max=1000, jitter=fraction
    )
    assert due == 50.0 + wait


@pytest.mark.parametrize(
    ("attempts", "age", "expired"),
    [
        pytest.param(3, 100.0, True, id="at the lifetime"),
        pytest.param(3, 99.9, False, id="just before"),
        pytest.param(2, 10**9, False, id="old, but tried twice only"),
        pytest.param(0, 10**9, False, id="old, never really tried"),
        pytest.param(50, 1.0, False, id="often tried, but young"),
        pytest.param(50, -5.0, False, id="the clock was stepped back"),
    ],
)
def test_expiry_needs_age_and_attempts(attempts: int, age: float, expired: bool) -> None:
    due = next_attempt(
        1000.0, attempts, 1000.0 + age, lifetime=100, retry_min=1, retry_max=1, jitter=0.0
    )
    assert (due is None) == expired


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 200),
    st.floats(1, 10**6),
    st.floats(1, 10**4),
    st.floats(0, 1, exclude_max=True),
)
def test_never_later_than_retry_max_nor_much_sooner_than_retry_min(
    attempts: int, retry_min: float, factor: float, fraction: float
) -> None:
    """A time beyond now + retry_max would be taken for a stepped clock, that is, as due at once."""
    retry_max = retry_min * factor
    due = next_attempt(
        0.0,
        attempts,
        0.0,
        lifetime=1,
        retry_min=retry_min,
        retry_max=retry_max,
        jitter=fraction,
    )
    assert due is not None
    assert 0.9 * retry_min <= due <= retry_max


def test_jitter_is_the_same_for_the_same_attempt_and_spreads() -> None:
    values = [jitter(f"{i:016x}", 1) for i in range(1000)]
    assert values == [jitter(f"{i:016x}", 1) for i in range(1000)]
    assert all(0 <= value < 1 for value in values)
    assert [sum(i / 4 <= v < (i + 1) / 4 for v in values) for i in range(4)] == pytest.approx(
        [250] * 4, abs=60
    )
    assert jitter("0" * 16, 1) != jitter("0" * 16, 2)


@pytest.mark.parametrize(
    ("age", "warned", "due"),
    [
        pytest.param(3599.0, False, False, id="young"),
        pytest.param(3600.0, False, True, id="late"),
        pytest.param(3600.0, True, False, id="told before"),
    ],
)
def test_warn_due(age: float, warned: bool, due: bool) -> None:
    assert warn_due(1000.0, 1000.0 + age, warn_after=3600, warned=warned) is due
