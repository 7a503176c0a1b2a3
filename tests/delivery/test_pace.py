"""Pace: what the time that messages take says about further connections."""

import pytest

from minisend.delivery.pace import Pace

NEAR, FAR = 0.001, 0.05


def told(quickest: float, *messages: tuple[float, int], work: float = 0.0001) -> list[float]:
    """What each message is worth, of those that come so many seconds after one another over so many connections."""
    pace = Pace()
    now = 1000.0
    pace.let_in(now, quickest)
    worth = []
    for apart, connections in messages:
        now += apart
        worth.append(pace.more(now, connections, work))
    return worth


def test_far_away_each_delivery_is_worth_a_connection():
    assert told(FAR, *[(0.01, 5)] * 50) == [1.0] * 50


def test_near_one_delivery_of_twenty_is():
    assert told(NEAR, *[(0.002, 1)] * 45) == [0.0, *([*[0.0] * 18, 1.0, 0.0] * 2), *[0.0] * 4]


@pytest.mark.parametrize("quickest", [NEAR, FAR])
def test_twice_the_connections_for_no_more_messages_are_enough(quickest):
    few, many = [(0.01, 5)] * 20, [(0.01, 11)] * 40
    assert told(quickest, *few, *many)[39:] == [0.0] * 21
    # ... and for nearly twice as many messages they are not.
    many = [(0.0055, 10)] * 40
    assert told(quickest, *few, *many)[39::20] == [1.0, 1.0]


@pytest.mark.parametrize("quickest", [NEAR, FAR])
def test_a_time_that_was_long_at_first_is_not_what_it_is_measured_by(quickest):
    slow, quick, slow_again = [(0.5, 1)] * 20, [(0.001, 1)] * 20, [(0.005, 1)] * 20
    assert told(quickest, *slow, *quick, *slow_again)[19::20] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("quickest", [NEAR, FAR])
def test_as_many_connections_as_are_served_while_one_waits(quickest):
    assert told(quickest, *[(0.001, 1)] * 20, work=0.0002)[19] == 1.0
    assert told(quickest, *[(0.001, 1)] * 20, work=0.0003)[19] == 0.0


def test_the_pause_before_a_server_lets_in_again_counts_for_nothing():
    pace = Pace()
    pace.let_in(0.0, NEAR)
    worth = [pace.more(0.001 * number, 1, 0.0001) for number in range(1, 21)]
    pace.let_in(1000.0, NEAR)
    worth += [pace.more(1000 + 0.001 * number, 1, 0.0001) for number in range(1, 21)]
    assert worth[19::20] == [1.0, 1.0]
