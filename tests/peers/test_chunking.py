"""200 messages over one connection to servers that others wrote, in each way of sending: each arrives once, as it was sent."""

import random
from collections.abc import Callable, Iterator

import pytest

from minisend.smtp.client import END_OF_DATA, MAIL, RCPT, RSET
from minisend.smtp.session import Session
from minisend.smtp.stream import connect
from minisend.smtp.transaction import Results, Transaction
from peers.exim import Exim
from peers.postfix import Postfix

pytestmark = pytest.mark.peer

WAYS = ("one by one", "one ahead", "in window")
MESSAGES = 200

# What each server refuses as a recipient, whatever else it takes.
REFUSED = {"postfix": b"no@x.test", "exim": b"no"}

# Of a message, in octets with CRLF: mostly small, some beyond what is sent unasked, one of many chunks.
SIZES = (60, 400, 3_000, 20_000, 60_000, 70_000)
LARGEST = 1_500_000


def lines(seed: int, size: int) -> Iterator[bytes]:
    """A message with dots at the head of lines, in LF and CRLF and a lone CR, and lines that look like commands."""
    chance = random.Random(seed)
    yield b"Subject: %d\n\n" % seed
    length = 16
    while length < size:
        text = chance.choice((b".", b"..", b"RSET", b".x", b"MAIL FROM:<x@x.test>", b"", b"y" * 60))
        yield text + chance.choice((b"\n", b"\r\n", b"\r"))
        # A LF right behind a lone CR would be its other half.
        yield b"z\n"
        length += len(text) + 5


def plain(seed: int, size: int) -> bytes:
    """The same with LF line ends."""
    octets = b"".join(lines(seed, size))
    return octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def transactions(refused: bytes) -> list[tuple[Transaction, int]]:
    """Every third has a recipient that is refused, every seventh has no other."""
    made = []
    for number in range(MESSAGES):
        recipients = [b"r%d.%d@x.test" % (number, each) for each in range(1 + number % 3)]
        if number % 7 == 5:
            recipients = [refused]
        elif number % 3 == 1:
            recipients.insert(number % 2, refused)
        size = LARGEST if number == 101 else SIZES[number * 5 % 11 % len(SIZES)]
        made.append((number, recipients, size))

    def content(number: int, size: int) -> Callable[[], Iterator[bytes]]:
        return lambda: lines(number, size)

    return [
        (
            Transaction(
                b"s%d@x.test" % number,
                recipients,
                content(number, size),
                size=len(plain(number, size)) + plain(number, size).count(b"\n"),
                eight_bit=False,
            ),
            size,
        )
        for number, recipients, size in made
    ]


def send(port: int, way: str, waiting: list[Transaction]) -> tuple[dict[bytes, Results], int]:
    """Results by sender, and how many sessions it took: what one was refused before it was looked at is for the next."""
    found: dict[bytes, Results] = {}
    sessions = 0
    while waiting:
        sessions += 1
        session = Session(
            connect("127.0.0.1", port, 10), hello=b"here.test", pipelining=way != "one by one"
        )
        session.open()
        assert session.extensions.pipelining and session.extensions.chunking
        if way == "one ahead":
            del session.extensions["CHUNKING"]
        upcoming = iter(waiting)
        for made, results in session.transact(lambda upcoming=upcoming: next(upcoming, None)):
            assert not isinstance(results, Exception)
            if all(getattr(result, "phase", "") in (MAIL, RSET) for result in results):
                continue
            assert made.sender not in found
            found[made.sender] = results
        session.quit()
        waiting = [made for made in waiting if made.sender not in found]
    return found, sessions


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["postfix", "exim"])
def test_each_arrives_once_and_as_it_was_sent(name: str, way: str) -> None:
    """With its own sender also where the one before it had no recipient left, and the server was in that still."""
    refused = REFUSED[name]
    made = transactions(refused)
    server = Postfix(refusals={"no@": "550 5.1.1 unknown"}) if name == "postfix" else Exim()
    with server:
        found, sessions = send(server.port, way, [each for each, _ in made])
        arrived = server.arrived()
    # Exim counts each RSET after a transaction that came to nothing, and leaves at the tenth (smtp_accept_max_nonmail).
    assert sessions == 1 or ((name, way) == ("exim", "in window") and sessions <= 4)
    for each, _ in made:
        assert [(result.command, result.reply.code // 100) for result in found[each.sender]] == [
            (RCPT, 5) if recipient == refused else (END_OF_DATA, 2) for recipient in each.recipients
        ]
    expected = {
        each.sender: (
            tuple(sorted(set(each.recipients) - {refused})),
            plain(number, size),
        )
        for number, (each, size) in enumerate(made)
        if set(each.recipients) != {refused}
    }
    assert len(arrived) == len(expected)
    assert {each.sender: (each.recipients, each.message) for each in arrived} == expected


def test_dots_at_the_head_of_lines_are_what_these_messages_have() -> None:
    """Else nothing above would notice that they are doubled where they are not to be."""
    octets = plain(3, 20_000)
    assert min(octets.count(mark) for mark in (b"\n.\n", b"\n..\n", b"\nRSET\n", b"\n.x\n")) > 50
