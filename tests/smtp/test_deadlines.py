"""How long a server may take: no less than RFC 5321 section 4.5.3.2 wants of a client, for each thing that it is asked."""

import pytest

from minisend.smtp import client
from minisend.smtp.deadlines import Deadlines

MINUTE = 60.0


def test_each_command_has_the_time_that_the_standard_gives_it():
    limits = Deadlines()
    # The last chunk is awaited as the end of data.
    commands = set(client.TRANSITIONS) - {client._LAST}
    assert {command: limits.for_reply(command) for command in commands} == {
        client.GREETING: 5 * MINUTE,
        client.EHLO: 5 * MINUTE,
        client.HELO: 5 * MINUTE,
        client.LHLO: 5 * MINUTE,
        client.STARTTLS: 5 * MINUTE,
        client.AUTH: 5 * MINUTE,
        client.MAIL: 5 * MINUTE,
        client.RCPT: 5 * MINUTE,
        client.DATA: 2 * MINUTE,
        client.BDAT: 2 * MINUTE,
        client.END_OF_DATA: 10 * MINUTE,
        # Nobody loses a message by these.
        client.RSET: 20.0,
        client.QUIT: 5.0,
    }
    assert (limits.connect, limits.block) == (30.0, 3 * MINUTE)


def test_a_phase_that_there_is_not():
    assert Deadlines(data=1.0).for_reply(client.DATA) == 1.0
    with pytest.raises(TypeError, match="no such phase: dat"):
        Deadlines(dat=1.0)
