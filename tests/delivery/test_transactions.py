"""One message with 1,000 recipients: how many go in a transaction, and that each is on record before the next begins."""

from pathlib import Path

import pytest
from delivery.program import Program
from delivery.scripted import CLOSE, CONNECT, END_OF_DATA, KEYWORDS, ScriptedServer, replies

EVERYBODY = tuple(b"r%04d@x.test" % number for number in range(1000))


def submit(directory: Path, port: int) -> Program:
    program = Program(directory, f'[smarthost]\nhost = "127.0.0.1"\nport = {port}\ntls = "none"\n')
    program.sendmail(*(each.decode() for each in EVERYBODY), stdin=b"Subject: s\n\nbody\n")
    return program


@pytest.mark.parametrize(
    ("keywords", "most"),
    [
        pytest.param(KEYWORDS, 100, id="RFC 5321 section 4.5.3.1.8"),
        pytest.param((*KEYWORDS, b"LIMITS RCPTMAX=250"), 250, id="LIMITS"),
    ],
)
def test_a_thousand_recipients_take_as_many_transactions_as_the_server_needs(
    tmp_path: Path, keywords: tuple[bytes, ...], most: int
) -> None:
    with ScriptedServer(keywords=keywords) as server:
        assert submit(tmp_path, server.port).flush() == (0, "1 delivered, 0 waiting, 0 failed")
        assert [message.recipients for message in server.messages] == [
            EVERYBODY[at : at + most] for at in range(0, 1000, most)
        ]


def test_each_transaction_is_on_record_before_the_next(tmp_path: Path) -> None:
    """The server is lost after the third: the 300 that have it do not get it again, and everybody else does, once."""
    answer = replies({CONNECT: [b"220 ready", CLOSE], END_OF_DATA: [b"250 ok"] * 3 + [CLOSE]})
    with ScriptedServer(answer) as server:
        program = submit(tmp_path, server.port)
        assert program.flush() == (75, "0 delivered, 1 waiting, 0 failed")
        (message,) = program.queue()
        recipients = message["recipients"]
        assert isinstance(recipients, list)
        assert len(recipients) == 700
        assert program.flush("--all") == (0, "1 delivered, 0 waiting, 0 failed")
        taken = [each for message in server.messages for each in message.recipients]
        assert taken == list(EVERYBODY)
