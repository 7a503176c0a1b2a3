"""How many connections a service has open: an account's share is its own, and gets smaller as the room does."""

import pytest

from minisend.spool.connections import MOST, MOST_OF_ONE, Connections


@pytest.fixture
def connections():
    return Connections()


def taken(connections, uid):
    """As many as this account gets."""
    count = 0
    while connections.enter(uid):
        count += 1
    return count


def test_accounts_that_take_all_they_get(connections):
    """Five of them do not shut out a sixth, which would then be shut out of verified mail altogether."""
    shares = [taken(connections, 1000 + number) for number in range(11)]
    assert shares == [50, 50, 50, 50, 25, 13, 6, 3, 2, 1, 0]
    assert sum(shares) == MOST


def test_who_has_none_gets_one_as_long_as_there_is_one(connections):
    for uid in range(1000, 1005):
        taken(connections, uid)
    assert [connections.enter(uid) for uid in range(2000, 2000 + MOST)] == [
        *[True] * 25,
        *[False] * (MOST - 25),
    ]
    connections.leave(1000)
    assert [connections.enter(uid) for uid in (1000, 3000)] == [False, True]


def test_root_has_no_share(connections):
    assert taken(connections, 1000) == MOST_OF_ONE
    assert taken(connections, 0) == MOST - MOST_OF_ONE


def test_what_is_left_of_nobody_is_nothing(connections):
    assert connections.wait(0)
    for _ in range(2):
        assert connections.enter(1000)
    turns = connections.turns(1000)
    assert connections.turns(1000) is turns
    connections.leave(1000)
    assert not connections.wait(0)
    connections.leave(1000)
    assert connections.wait(0)
    assert connections.enter(1000)
    assert connections.turns(1000) is not turns
