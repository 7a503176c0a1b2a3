"""The three ways of a submission: which is gone, in which order, and what the user is told when none can be."""

import errno
import os
import stat
from binascii import crc32
from types import SimpleNamespace

import pytest
from spool.scripted import Scripted
from spool.system import OURS

from minisend.config.submission import SubmissionFacts
from minisend.envelope import DROP, Envelope, Recipient
from minisend.errors import SpoolError
from minisend.spool import client, disk, drop
from minisend.spool.enqueue import new_queue_id
from minisend.spool.protocol import frame
from minisend.spool.record import format_head, head_length, parse_head
from minisend.spool.store import Queue
from minisend.submit import handover

ID = bytes(range(16))
NAME = ID.hex()
QUEUE_ID = new_queue_id(ID)
MESSAGE = b"Subject: hello\n\nHello.\n"
LARGE = [b"x" * 65536] * 17
GREETING = b"minisend 1\n"
STATUS = len(b"STATUS " + NAME.encode() + b"\n")
SAID = Envelope(
    QUEUE_ID,
    b"ann@example.org",
    [Recipient(b"bob@example.net")],
    arrived=1.0,
    login=b"ann",
    sender_given=True,
)


@pytest.fixture
def service(tmp_path):
    made = Scripted(tmp_path)
    yield made
    made.close()


@pytest.fixture
def facts(system, monkeypatch):
    """What a caller knows whose system has a queue of another account's; nobody listens."""
    monkeypatch.setattr(handover, "is_own", lambda spool: False)
    return SimpleNamespace(
        spool_path=system.spool,
        max_message_size=100_000_000,
        min_free=0,
        min_free_inodes=0,
        socket=f"{system.top}/nobody.sock",
        drop=system.drop,
    )


@pytest.fixture(autouse=True)
def no_turn(monkeypatch):
    """Who is told "busy" goes on at once."""
    monkeypatch.setattr(client, "_TURN", 0.0)


def hand_over(facts, message=(MESSAGE,)):
    said = Envelope(**{name: getattr(SAID, name) for name in SAID.__slots__})
    return handover.hand_over(facts, ID, said, iter(message), 0, later=False)


def told(facts, message=(MESSAGE,)):
    with pytest.raises(SpoolError) as caught:
        hand_over(facts, message)
    return str(caught.value)


def sent(message):
    """What goes over the socket, but for the acknowledgement."""
    octets = b"".join(message)
    return (
        b"SUBMIT %b\n" % NAME.encode()
        + frame(b"E", format_head(SAID, 0))
        + b"".join(frame(b"M", piece) for piece in message)
        + frame(b"Z", b"%d %08x" % (len(octets), crc32(octets)))
    )


def dropped(system):
    """Octets of the message in the drop directory; None when it is empty, as it must be otherwise."""
    assert system.leaf("tmp") == []
    if not system.leaf("new"):
        return None
    assert system.leaf("new") == [NAME]
    with open(f"{system.drop}/new/{NAME}", "rb") as file:
        octets = file.read()
    length = head_length(octets)
    envelope, size = parse_head(octets[:length])
    assert (envelope.queue_id, envelope.channel) == (QUEUE_ID, DROP)
    return octets[length : length + size]


# -- the order


def test_one_s_own_queue_is_the_first(facts, service, system, spool, monkeypatch):
    """Whoever has one asks nobody: the service has no client, the drop no file."""
    monkeypatch.setattr(handover, "is_own", lambda path: path == spool)
    facts.spool_path, facts.socket = spool, service.path
    monkeypatch.setattr(client, "submit", None)
    monkeypatch.setattr(drop, "put", None)
    assert hand_over(facts) is True
    with Queue(spool) as queue, queue.claim(next(iter(queue.places("new")))) as entry:
        assert entry.envelope == SAID
        assert b"".join(entry.verified_octets(b"", 0)) == MESSAGE
    assert dropped(system) is None


@pytest.mark.parametrize("message", [[MESSAGE], LARGE], ids=["small", "large"])
def test_the_socket_is_the_second(facts, service, system, message):
    facts.socket = service.path
    service.follow([GREETING, len(sent(message)), b"OK " + QUEUE_ID.encode() + b"\n", None])
    assert hand_over(facts, message) is False
    service.close()
    assert service.heard == [sent(message) + b"ACK\n"]
    assert dropped(system) is None


@pytest.mark.parametrize("message", [[MESSAGE], LARGE], ids=["small", "large"])
@pytest.mark.parametrize("greeting", [None, b"busy\n", b"220 hello\r\n", b""], ids=str)
def test_the_drop_is_the_third(facts, service, system, greeting, message):
    """Of a service that does not greet nothing was read: it goes there whole, whatever its size."""
    if greeting is not None:
        facts.socket = service.path
        service.follow([greeting])
    assert hand_over(facts, message) is False
    assert dropped(system) == b"".join(message)


@pytest.mark.parametrize(
    "then",
    [[GREETING, STATUS, b"NO 75 4.3.0 no such submission\n"], [GREETING, STATUS], [b"busy\n"]],
    ids=["no", "lost too", "busy"],
)
def test_a_small_message_whose_answer_is_lost_goes_there_too(facts, service, system, then):
    """It may be in the queue by now: it has the same id there, and enters it once."""
    facts.socket = service.path
    service.follow([GREETING, len(sent([MESSAGE]))], then)
    assert hand_over(facts) is False
    assert dropped(system) == MESSAGE


def test_an_answer_that_was_lost_and_is_found(facts, service, system):
    facts.socket = service.path
    service.follow([GREETING, len(sent([MESSAGE]))], [GREETING, STATUS, b"OK x\n", None])
    assert hand_over(facts) is False
    assert dropped(system) is None


@pytest.mark.parametrize(
    ("then", "words"),
    [
        ([GREETING, STATUS, b"NO 75 4.3.0 no such submission\n"], "closed by the other side"),
        (
            [GREETING, STATUS],
            "closed by the other side; then closed by the other side: it may have been queued",
        ),
    ],
    ids=["no", "lost too"],
)
def test_a_large_one_whose_answer_is_lost_is_refused(facts, service, system, then, words):
    """Its first octets have gone, and its caller has them."""
    facts.socket = service.path
    service.follow([GREETING, len(sent(LARGE))], then)
    assert told(facts, LARGE) == f"{service.path}: {words}"
    assert dropped(system) is None


def test_a_refusal_is_an_answer(facts, service, system):
    """What the service will not take is not put where it would be taken from."""
    facts.socket = service.path
    service.follow([GREETING, len(sent([MESSAGE])), b"NO 77 5.7.0 not yours\n", None])
    with pytest.raises(client.Refused) as caught:
        hand_over(facts)
    assert (caught.value.exit_code, str(caught.value)) == (77, "not yours")
    assert dropped(system) is None


def test_who_owns_the_queue_is_asked_of_the_drop(facts, system, monkeypatch):
    """A leaf that a stranger has put into its place is none of the queue's."""
    asked = []
    monkeypatch.setattr(drop, "put", lambda *what, owner: asked.append(owner))
    assert hand_over(facts) is False
    facts.spool_path = f"{system.top}/hidden"
    monkeypatch.setattr(handover, "is_absent", lambda spool: True)
    assert hand_over(facts) is False
    assert asked == [OURS, None]


# -- what the user is told


def fail_socket(monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(client._socket, "socket", refuse)


def fail_drop(monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk, "create", refuse)


SOCKET_WORDS = {
    errno.ENOENT: "No such file or directory (no service is installed: start minisend-submit.socket)",
    errno.ECONNREFUSED: "Connection refused (nobody listens: start minisend-submit.socket)",
    errno.EACCES: "Permission denied (InaccessiblePaths= or a security module hides it)",
    errno.EPERM: "Operation not permitted (a security module forbids it)",
    errno.EAFNOSUPPORT: "Address family not supported by protocol (RestrictAddressFamilies= needs AF_UNIX)",
    errno.ETIMEDOUT: "no greeting within 10 s (look at minisend-accept.service)",
    errno.EMFILE: "Too many open files",
}
DROP_WORDS = {
    errno.ENOENT: "No such file or directory (run minisend setup --system)",
    errno.EROFS: "Read-only file system (ProtectSystem= or a read-only mount: add ReadWritePaths={drop}, "
    "or start minisend-submit.socket)",
    errno.EACCES: "Permission denied (InaccessiblePaths=, a security module, or wrong modes: see minisend doctor)",
    errno.ENOSPC: "No space left on device (the disk is full)",
    errno.EDQUOT: "Disk quota exceeded (the quota is used up)",
    errno.EIO: "Input/output error",
}


def test_each_remedy_is_here():
    """Those without one are the last of each."""
    assert list(SOCKET_WORDS)[:-1] == list(handover._SOCKET_REMEDIES)
    assert list(DROP_WORDS)[:-1] == list(handover._DROP_REMEDIES)


@pytest.mark.parametrize("number", SOCKET_WORDS, ids=errno.errorcode.get)
def test_what_stops_the_socket(facts, monkeypatch, number):
    facts.drop = None
    fail_socket(monkeypatch, number)
    if number == errno.ETIMEDOUT:
        monkeypatch.setattr(client, "_connect", too_late)
    assert told(facts) == f"{facts.socket}: {SOCKET_WORDS[number]}"


def too_late(path):
    raise client.NotServed(errno.ETIMEDOUT, "no greeting within 10 s")


@pytest.mark.parametrize("number", DROP_WORDS, ids=errno.errorcode.get)
def test_what_stops_the_drop(facts, system, monkeypatch, number):
    facts.socket = None
    fail_drop(monkeypatch, number)
    assert told(facts) == f"{facts.drop}: {DROP_WORDS[number].format(drop=facts.drop)}"
    assert dropped(system) is None


def test_each_way_is_told_in_its_order(facts, service, system, monkeypatch):
    """First one's own queue, where that was tried: there was none, and it could not be made."""
    monkeypatch.setattr(handover, "is_own", lambda spool: True)
    (system.top / "file").touch()
    facts.spool_path = f"{system.top}/file/spool"
    monkeypatch.setattr(handover, "is_absent", lambda spool: True)
    facts.socket = service.path
    service.follow([b"busy\n"])
    fail_drop(monkeypatch, errno.EROFS)
    assert told(facts) == "; ".join(
        (
            f"{facts.spool_path}/queue: Not a directory",
            f"{service.path}: the service is busy",
            f"{facts.drop}: {DROP_WORDS[errno.EROFS].format(drop=facts.drop)}",
        )
    )


def test_a_queue_of_one_s_own_that_fails_is_not_passed_over(facts, system, monkeypatch):
    """A message for it goes nowhere else."""
    monkeypatch.setattr(handover, "is_own", lambda spool: True)
    os.chmod(f"{system.spool}/queue", 0o777)
    os.chown(f"{system.spool}/queue", os.geteuid(), os.getegid())
    assert told(facts) == (
        f"{system.spool}/queue: others can write there (mode 0777): chmod go-w it"
    )
    assert dropped(system) is None


@pytest.mark.parametrize("other", ["socket", "drop"])
def test_a_way_that_is_closed_is_not_told_of(facts, service, other, monkeypatch):
    setattr(facts, other, None)
    fail_socket(monkeypatch, errno.ENOENT)
    fail_drop(monkeypatch, errno.ENOSPC)
    assert (other == "drop") == told(facts).startswith(f"{facts.socket}: ")
    assert "; " not in told(facts)


def test_a_leaf_of_a_stranger_s(facts, system):
    """The queue's owner can be seen, so that a leaf of anybody else's takes nothing."""
    if os.geteuid():
        pytest.skip("needs another account")
    os.chown(f"{system.drop}/new", 61009, 61009)
    os.chmod(f"{system.drop}/new", stat.S_ISVTX | 0o733)
    assert told(facts).endswith(f"; {system.drop}/new: belongs to uid 61009, not to uid {OURS}")


def test_the_facts_that_it_reads_are_there(facts):
    assert set(vars(facts)) <= set(SubmissionFacts.__slots__)
