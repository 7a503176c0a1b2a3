"""What minisend-submit(7) says of the socket is what both sides do: words, numbers, answers, and the example, octet by octet."""

import inspect
import pathlib
import re

import pytest

from minisend.address import AddressError
from minisend.envelope import Envelope, Recipient
from minisend.errors import (
    DataError,
    MessageTooBig,
    PermissionDenied,
    SpoolError,
    SpoolFull,
    UsageError,
)
from minisend.spool import client, connections, own_mail, protocol, service, tombstone
from minisend.spool.enqueue import ID_OCTETS
from minisend.spool.record import SUBMITTED_HEAD_LIMIT
from minisend.submit import handover
from spool.scripted import Scripted
from spool.served import ID, MESSAGE, QUEUE_ID, Served

TEXT = (pathlib.Path(__file__).resolve().parents[2] / "man" / "minisend-submit.7").read_text()
SAID = Envelope(
    QUEUE_ID,
    b"ann@example.org",
    [Recipient(b"bob@example.net")],
    arrived=1700000000.25,
    zone=60,
    uid=1000,
    login=b"ann",
    full_name=b"Ann Other",
    sender_given=True,
)


def section(name):
    return TEXT.partition(f"\n.Sh {name}\n")[2].partition("\n.Sh ")[0]


def subsection(name):
    return TEXT.partition(f"\n.Ss {name}\n")[2].partition("\n.S")[0]


def flowed(text):
    """Without macros and line ends."""
    return " ".join(re.sub(r"^\.(\w\w) ", "", text, flags=re.MULTILINE).split())


# -- words


def test_the_requests():
    requests = re.findall(r"^\.It Cm ([A-Z]+)", subsection("Requests"), re.MULTILINE)
    assert requests == re.findall(r'case b"(\w+)":', inspect.getsource(service.Service._answer))


def test_the_frames():
    frames = re.findall(r"^\.It Cm (.)$", subsection("Lines and frames"), re.MULTILINE)
    kinds = (protocol.ENVELOPE, protocol.MESSAGE, protocol.END, protocol.LISTED)
    assert frames == [kind.decode() for kind in kinds]


def test_the_greeting():
    said = re.findall(r"Li (minisend \d+|busy)$|Li (minisend \d+) Ta", TEXT, re.MULTILINE)
    assert {a or b for a, b in said} == {protocol.GREETING.decode(), protocol.BUSY.decode()}


@pytest.mark.parametrize("option", [b"", b"later", b"now", b"later "])
def test_the_option(option):
    request = ID.hex().encode() + (b" " + option if option else b"")
    if option in (b"", b"later"):
        assert service._submission(request) == (ID, option == b"later")
        assert ".It Cm SUBMIT Ar id Op Cm later\n" in TEXT
    else:
        with pytest.raises(DataError):
            service._submission(request)


def test_the_refusals():
    rows = re.findall(r"^\.It (\d\d) Ta (\S+) Ta ", subsection("Refusals"), re.MULTILINE)
    errors = (
        *(UsageError, AddressError, DataError, MessageTooBig, SpoolError, SpoolFull),
        PermissionDenied,
    )
    assert rows == [(str(each.exit_code), each.status) for each in errors]
    lowest, highest = client._CODES[0], client._CODES[-1]
    assert (
        f"A code that is not from {lowest} to {highest} is taken for {SpoolError.exit_code}."
        in flowed(subsection("Refusals"))
    )


# -- numbers


def test_the_limits():
    rows = re.findall(r"^\.It (?!Sy)(.+)$", section("LIMITS"), re.MULTILINE)
    assert [tuple(row.split(" Ta ")) for row in rows] == [
        ("client", "connection and greeting, each", f"{client._GREETING:g}"),
        ("client", "its turn, where it hears busy", f"{client._TURN:g}"),
        ("client", "what it says to be taken", f"{client._WRITE:g}"),
        ("client", "the answer", f"{client._ANSWER:g}"),
        ("service", "the request", f"{service._REQUEST:g}"),
        ("service", "the next frame", f"{service._NEXT_FRAME:g}"),
        ("service", "what it says to be taken", f"{service._ANSWER:g}"),
        ("service", "the acknowledgement", f"{service._ACKNOWLEDGE:g}"),
        (
            "service",
            "the same submission's end elsewhere",
            f"{service._BUSY:g}",
        ),
        ("octets of a line", str(protocol.LINE)),
        ("octets of a frame E", str(SUBMITTED_HEAD_LIMIT)),
        ("octets of a frame M", str(protocol.PIECE)),
        ("octets of a frame Z", str(protocol.LONGEST_END)),
        ("octets of a frame L", str(protocol.LONGEST_LISTED)),
        ("connections", str(connections.MOST)),
        ("connections of one account, but for root", str(connections.MOST_OF_ONE)),
        ("void submissions that are remembered", str(service._VOID)),
    ]


@pytest.mark.parametrize(
    "sentence",
    [
        f"An account may flush once in {own_mail._FLUSH_PAUSE:g} seconds",
        f"stays for {tombstone.AGE // 3600} hours, and as long as a copy lies in the drop",
        f"{2 * ID_OCTETS} hexadecimal digits in small letters: {8 * ID_OCTETS} bits",
        f"the whole message, at most {handover._KEPT_OCTETS} octets,",
        f"up to {connections.MOST_OF_ONE} connections open",
        f"goes no other way within {protocol.PATIENCE:g} seconds.",
        f"User ids from {own_mail._DYNAMIC[0]} to {own_mail._DYNAMIC[-1]},",
        f"and {own_mail.OVERFLOW_UID} are another's tomorrow",
    ],
)
def test_what_is_said_in_the_text(sentence):
    assert sentence in flowed(TEXT)


# -- the example


def example():
    """What each side says in it, and the octets of both."""
    block = re.search(r"^\.Bd .*\n(S (?:.*\n)+?)\.Ed$", section("EXAMPLES"), re.MULTILINE)
    assert block is not None
    octets = {"S": [], "C": []}
    side = ""
    for line in block.group(1).splitlines():
        if line[:1] != " ":
            side = line[0]
            octets[side].append(b"")
        text = re.sub(r"<([^>]+)>", in_brackets, line[2:])
        octets[side][-1] += text.encode("latin-1")
    return octets["S"], octets["C"]


def in_brackets(found):
    return "\n" if found[1] == "LF" else bytes.fromhex(found[1]).decode("latin-1")


def test_the_client_of_the_example(tmp_path):
    (greeting, answer), said = example()
    scripted = Scripted(tmp_path)
    scripted.follow([greeting, len(b"".join(said[:-1])), answer, None])
    assert client.submit(scripted.path, ID, SAID, [MESSAGE]) == QUEUE_ID
    scripted.close()
    assert scripted.heard == [b"".join(said)]


def test_the_service_of_the_example(queue):
    answers, said = example()
    served = Served(queue)
    assert served.say(b"".join(said)) == b"".join(answers)
    assert served.queued() == {"new": [QUEUE_ID]}
