"""The socket service on a queue: what it writes, whose a message is, what its owner may do with it, and when it refuses.

Clients that lie, stop or speak something else are in test_service_hostile.
"""

import os
from binascii import crc32
from types import SimpleNamespace

import pytest

from minisend.envelope import DELAYED, DROP, SOCKET, Envelope, Outcome, Recipient
from minisend.errors import PermissionDenied
from minisend.log import line
from minisend.spool import disk, drop, ingest, own_mail, quota, service
from minisend.spool.enqueue import enqueue
from minisend.spool.entry import Place
from minisend.spool.place import LEAF_MODE
from minisend.spool.protocol import frame
from minisend.spool.record import format_head, format_outcomes
from spool.make import claimed, listing
from spool.seam import fail_at
from spool.served import (
    END,
    ENVELOPE,
    GREETING,
    ID,
    LIMIT,
    MESSAGE,
    OK,
    OPTIONAL,
    QUEUE_ID,
    REQUEST,
    STATUS,
    WHOLE,
    Served,
    read_line,
    said,
)

ROOT = os.geteuid() == 0
ANN, BOB = 61002, 61003
# The first and the last uid of DynamicUser=, and "nobody".
NOBODIES = (61184, 65519, 65534)
NOW = 1_700_000_000.25
ACK = b"ACK\n"

needs_accounts = pytest.mark.skipif(not ROOT, reason="needs other accounts")


@pytest.fixture
def poked(monkeypatch):
    """What was said to who delivers."""
    found = []
    monkeypatch.setattr(service, "poke", lambda spool, octet: found.append((spool, octet)))
    return found


@pytest.fixture
def clock(monkeypatch):
    """The service's time; ``monotonic`` is what the test makes it."""
    stopped = SimpleNamespace(time=lambda: NOW, monotonic=lambda: stopped.now, now=1000.0)
    for module in (service, quota, own_mail):
        monkeypatch.setattr(module, "time", stopped)
    return stopped


def file(served, place=f"new/{QUEUE_ID}"):
    path = f"{served.queue.spool}/queue/{place}"
    with open(path, "rb") as opened:
        return opened.read(), os.stat(path).st_mode & 0o7777


# -- SUBMIT

RECORD = b"""\
minisend-queue 1
size 000000000000023
id %(id)s
arrived 1700000000.250000
zone 60
uid %(uid)d
login uid%(uid)d
name Ann Other
sender-given
from-headers
body 8BITMIME
ret HDRS
envid e1
channel socket
sender ann@example.org
to bob@example.net
original bob@old.example
notify FAILURE

Subject: hello

Hello.
"""


@needs_accounts
def test_what_is_on_the_disk(served, clock, poked):
    """The whole file: what the client may say, under what only the system knows; open until the client has heard."""
    everything = Envelope(
        "f" * 16,
        b"ann@example.org",
        [Recipient(b"bob@example.net", b"bob@old.example", "FAILURE")],
        arrived=5.0,
        uid=0,
        login=b"root",
        channel="",
        **OPTIONAL,
    )
    with served.greeted(ANN) as connection:
        connection.sendall(
            REQUEST + frame(b"E", format_head(everything, 0)) + frame(b"M", MESSAGE) + END
        )
        assert read_line(connection) == OK
        octets, mode = file(served)
        head = RECORD % {b"id": QUEUE_ID.encode(), b"uid": ANN}
        assert octets.startswith(head)
        assert octets[len(head) :].startswith(b"\nend\t23\t3\tc84d920e\t\t")
        assert mode == 0o700
        connection.sendall(ACK)
        assert connection.recv(1) == b""
    served.ended()
    assert file(served) == (octets, 0o600)
    assert served.queued() == {"new": [QUEUE_ID]}
    with claimed(served.queue, Place("new", QUEUE_ID)) as entry:
        assert b"".join(entry.verified_octets(b"", 0)) == MESSAGE
    assert poked == [(served.queue.spool, b"n")]
    assert served.log.lines == [
        line(QUEUE_ID, event="queued", uid=ANN, **{"from": b"ann@example.org"}, nrcpt=1)
    ]


def test_one_whose_delivery_waits(served, poked):
    assert served.say(WHOLE.replace(REQUEST, REQUEST[:-1] + b" later\n")) == GREETING + OK
    assert served.queued() == {"new": [QUEUE_ID]}
    assert poked == []


def test_without_an_acknowledgement_it_keeps_its_mark(served):
    assert served.say(WHOLE) == GREETING + OK
    assert file(served)[1] == 0o700


def test_an_acknowledgement_of_the_status_counts(served):
    assert served.say(WHOLE) == GREETING + OK
    assert served.say(STATUS + ACK) == GREETING + OK
    assert file(served)[1] == 0o600


@pytest.mark.parametrize("state", ["new", "cur", "hold", "failed"])
def test_a_second_copy_changes_nothing(served, poked, state):
    """Wherever the first one is by now; of the second neither envelope nor message are read."""
    assert served.say(WHOLE) == GREETING + OK
    with claimed(served.queue, Place("new", QUEUE_ID)) as entry:
        if state == "cur":
            entry.defer(NOW)
        elif state != "new":
            entry.move_to(state)
        place = f"{entry.place.state}/{entry.place.name}"
    before = file(served, place)
    another = REQUEST + frame(b"E", format_head(said(zone=1), 0)) + frame(b"Z", b"0 00000000")
    assert served.say(another) == GREETING + OK
    assert file(served, place) == before
    assert list(served.queued()) == [state]
    assert len(served.log.lines) == 1


def sized(octets, size=0):
    pieces = [octets[at : at + 65536] for at in range(0, len(octets), 65536)]
    return (
        REQUEST
        + frame(b"E", format_head(said(), size))
        + b"".join(frame(b"M", piece) for piece in pieces)
        + frame(b"Z", b"%d %08x" % (len(octets), crc32(octets)))
    )


TOO_BIG = b"NO 69 5.3.4 message larger than max_message_size (100000 octets)\n"


@pytest.mark.parametrize("announced", [False, True])
def test_as_large_as_allowed(served, announced):
    assert served.say(sized(b"x" * LIMIT, LIMIT * announced) + ACK) == GREETING + OK
    [entry] = served.queued()["new"]
    assert entry == QUEUE_ID


def test_one_octet_more(served):
    assert served.say(sized(b"x" * (LIMIT + 1))) == GREETING + TOO_BIG
    assert served.queued() == {}


def test_one_octet_more_that_is_announced(served):
    """Before anything of it is sent."""
    with served.greeted() as connection:
        connection.sendall(REQUEST + frame(b"E", format_head(said(), LIMIT + 1)))
        assert read_line(connection) == TOO_BIG
    served.ended()
    assert served.queued() == {}


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"recipients": [Recipient(b"a b@c@d")]}, b"NO 65 5.1.3 "),
        ({"recipients": [Recipient(b"a@b.example", notify="failure")]}, b"NO 65 5.6.0 NOTIFY: "),
        ({"recipients": [Recipient(b"")]}, b"NO 65 "),
        ({"sender": b"a@b> BODY=x"}, b"NO 65 "),
        ({"ret": "ALL"}, b"NO 65 5.6.0 RET: "),
        ({"envid": "x" * 101}, b"NO 65 5.6.0 ENVID: "),
    ],
)
def test_what_is_not_admitted(served, changes, answer):
    values = {"sender": b"a@b.example", "recipients": [Recipient(b"c@d.example")]} | changes
    envelope = Envelope(
        "0" * 16, values.pop("sender"), values.pop("recipients"), arrived=1.0, sender_given=True, **values
    )  # fmt: skip
    told = served.say(REQUEST + frame(b"E", format_head(envelope, 0)) + frame(b"M", MESSAGE) + END)
    assert told.startswith(GREETING + answer)
    assert told.endswith(b"\n")
    assert served.queued() == {}
    # It is the message that is refused, not its id.
    assert served.say(WHOLE + ACK) == GREETING + OK


def test_a_disk_that_fails(served, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(disk, "fsync", lambda fd: fail_at(1, 28).fsync(fd))
        assert served.say(WHOLE) == GREETING + b"NO 75 4.3.0 queue: No space left on device\n"
    assert served.queued() == {}
    assert served.say(WHOLE + ACK) == GREETING + OK


# -- who may send what


def test_who_may_not_send_it(queue):
    """It is asked once the message is whole, with as much of it as is wanted."""
    asked = []

    def permit(envelope, first, complete):
        asked.append((envelope.uid, envelope.sender, first, complete))
        raise PermissionDenied("not under this\naddress")

    served = Served(queue, settings={"permit": permit, "header": 8})
    assert served.say(WHOLE) == GREETING + b"NO 77 5.7.0 not under this address\n"
    assert served.say(WHOLE[: -len(END)]) == GREETING
    assert asked == [(os.geteuid(), b"ann@example.org", b"Subject:", False)]
    assert served.queued() == {}


def test_who_may_send_it(queue):
    asked = []
    served = Served(queue, settings={"permit": lambda *what: asked.append(what[1:]), "header": 100})
    assert served.say(WHOLE + ACK) == GREETING + OK
    assert asked == [(MESSAGE, True)]


# -- limits


def submission(number):
    return WHOLE.replace(ID.hex().encode(), b"%032x" % number)


def remove(queue):
    for place in list(queue.places("new")):
        with claimed(queue, place) as entry:
            entry.remove()


def full(uid):
    limit = "[limits] messages_per_uid is 1"
    return GREETING + f"NO 75 4.3.0 uid {uid} has 1 messages in the queue: {limit}\n".encode()


@needs_accounts
def test_each_account_has_its_share(queue, clock):
    served = Served(queue, messages=1)
    assert served.say(submission(1) + ACK, uid=ANN).startswith(GREETING + b"OK ")
    assert served.say(submission(2) + ACK, uid=ANN) == full(ANN)
    assert served.say(submission(3) + ACK, uid=BOB).startswith(GREETING + b"OK ")
    assert len(served.queued()["new"]) == 2


def test_what_has_left_is_seen_at_the_next_count(queue, clock):
    """Who delivers does not tell; it is counted before anybody is refused, and not more than every five seconds."""
    served = Served(queue, messages=1)
    uid = os.geteuid()
    assert served.say(submission(1) + ACK).startswith(GREETING + b"OK ")
    remove(queue)
    clock.now += 4.9
    assert served.say(submission(2) + ACK) == full(uid)
    clock.now += 0.1
    assert served.say(submission(2) + ACK).startswith(GREETING + b"OK ")
    clock.now += 100
    assert served.say(submission(3) + ACK) == full(uid)


def test_what_was_there_before_counts(queue, clock):
    assert Served(queue).say(submission(1) + ACK).startswith(GREETING + b"OK ")
    assert Served(queue, messages=1).say(submission(2) + ACK) == full(os.geteuid())


def test_what_is_not_taken_counts_for_nothing(queue, clock, monkeypatch):
    served = Served(queue, messages=1, rate=1)
    for octets in (WHOLE[:-1], WHOLE.replace(b"Hello.", b"Hullo."), REQUEST + ENVELOPE + END):
        assert b"OK" not in served.say(octets)
    with monkeypatch.context() as patched:
        patched.setattr(disk, "fsync", lambda fd: fail_at(1, 28).fsync(fd))
        assert b"NO 75" in served.say(WHOLE)
    assert served.say(WHOLE + ACK) == GREETING + OK


def test_messages_an_hour(queue, clock):
    served = Served(queue, rate=1)
    assert served.say(submission(1) + ACK).startswith(GREETING + b"OK ")
    remove(queue)
    clock.now += 100
    assert served.say(submission(2) + ACK) == GREETING + (
        b"NO 75 4.3.0 uid %d has sent 1 messages this hour: [limits] rate_per_uid is 1\n"
        % os.geteuid()
    )


# -- beside the drop


@pytest.fixture
def leaves(queue, tmp_path):
    """A drop directory of the queue's owner."""
    path = f"{tmp_path}/drop"
    for leaf in ("", "/tmp", "/new"):
        os.mkdir(path + leaf)
        os.chmod(path + leaf, LEAF_MODE if leaf else 0o755)
    return path


def drop_one(leaves):
    drop.put(leaves, os.urandom(16), said(), [MESSAGE], LIMIT, owner=os.geteuid())


def pick_up(served, leaves):
    """What is left there, by reason."""
    found = ingest.Ingest(
        *(served.queue.spool, leaves),
        limit=LIMIT,
        usage=served.service.quotas,
        keep_rates=True,
        clock=lambda: NOW,
    ).run()
    return found.left


def test_the_socket_and_the_drop_share_one_count(queue, clock, leaves):
    served = Served(queue, rate=3)
    assert served.say(submission(1) + ACK).startswith(GREETING + b"OK ")
    for _ in range(3):
        drop_one(leaves)
    assert pick_up(served, leaves) == {ingest.LIMIT: 1}
    too_many = GREETING + (
        b"NO 75 4.3.0 uid %d has sent 3 messages this hour: [limits] rate_per_uid is 3\n"
        % os.geteuid()
    )
    assert served.say(submission(2) + ACK) == too_many
    # ... also in the service that follows, until the hour is over.
    following = Served(queue, rate=3)
    assert pick_up(following, leaves) == {ingest.LIMIT: 1}
    assert following.say(submission(2) + ACK) == too_many
    clock.now += 3600
    assert following.say(submission(2) + ACK).startswith(GREETING + b"OK ")


def test_what_one_that_came_by_the_socket_counts_outlives_the_service(queue, clock, leaves):
    served = Served(queue, rate=1)
    assert pick_up(served, leaves) == {}
    assert served.say(submission(1) + ACK).startswith(GREETING + b"OK ")
    # What the service does at its end; there is nothing in the drop.
    assert pick_up(served, leaves) == {}
    following = Served(queue, rate=1)
    assert pick_up(following, leaves) == {}
    assert following.say(submission(2) + ACK).startswith(GREETING + b"NO 75 ")


# -- the caller's own


def put(queue, queue_id, uid, channel=SOCKET):
    envelope = Envelope(
        queue_id, b"a@b.example", [Recipient(b"c@d.example")], arrived=1.0, uid=uid, channel=channel
    )
    enqueue(queue.fd, envelope, [MESSAGE], 0)


def listed(served, uid):
    """The first line of each frame of a listing."""
    octets = served.say(b"LIST\n", uid=uid)
    assert octets.startswith(GREETING + b"OK\n")
    octets = octets[len(GREETING) + 3 :]
    found = []
    while octets[:1] == b"L":
        end = 5 + int.from_bytes(octets[1:5], "big")
        found.append(octets[5:end].partition(b"\n")[0].decode())
        octets = octets[end:]
    assert octets == b"Z\0\0\0\0"
    return found


A, B, C, D, E = ("%016x" % number for number in range(0xA, 0xF))


@pytest.fixture
def mixed(served):
    """A is Ann's, B is Bob's, C came by the drop and claims to be Ann's, D is of a DynamicUser=, E of "nobody"."""
    put(served.queue, A, ANN)
    put(served.queue, B, BOB)
    put(served.queue, C, ANN, DROP)
    put(served.queue, D, NOBODIES[0])
    put(served.queue, E, NOBODIES[-1], DROP)
    return served


@needs_accounts
def test_who_sees_what(mixed):
    """What came by the drop is shown to whom it claims; to an account that is another's tomorrow, nothing."""
    with claimed(mixed.queue, Place("new", B)) as entry:
        entry.defer(NOW)
    with claimed(mixed.queue, Place("new", A)):
        seen = {uid: listed(mixed, uid) for uid in (ANN, BOB, *NOBODIES, 61004)}
    due = f"cur {int(NOW)}.{B} 0"
    assert seen == {
        ANN: [f"new {A} 1", f"new {C} 0"],
        BOB: [due],
        **{uid: [] for uid in (*NOBODIES, 61004)},
    }
    assert listed(mixed, 0) == [f"new {A} 0", *(f"new {each} 0" for each in (C, D, E)), due]


def test_what_is_told_of_a_message(queue):
    """Head and tail of its file, and why it waits where no server was asked."""
    why = Outcome(0, DELAYED, "4.4.1", "no server answers", at=NOW)
    served = Served(queue, settings={"reasons": lambda: lambda entry: [why]})
    assert served.say(WHOLE + ACK) == GREETING + OK
    octets = file(served)[0]
    head, _, tail = octets.partition(MESSAGE)

    def told():
        answer = served.say(b"LIST\n")
        start = GREETING + b"OK\nL"
        assert answer.startswith(start)
        return answer[len(start) + 4 : -5]

    assert told() == f"new {QUEUE_ID} 0\n".encode() + head + tail
    with claimed(queue, Place("new", QUEUE_ID)) as entry:
        entry.defer(NOW)
    assert told() == f"cur {int(NOW)}.{QUEUE_ID} 0\n".encode() + head + tail + format_outcomes(
        0, [why]
    )


@needs_accounts
def test_who_removes_what(mixed):
    """Another's message, and one that only claims to be one's own, are like none: the same words."""

    def answer(uid, queue_id):
        return mixed.say(f"REMOVE {queue_id}\n".encode(), uid=uid).removeprefix(GREETING)

    def absent(queue_id):
        return f"NO 64 5.3.0 {queue_id}: not in the queue\n".encode()

    none = "f" * 16
    for uid, queue_ids in {
        ANN: (B, C, D, none),
        BOB: (A, C, E, none),
        NOBODIES[0]: (A, D),
        NOBODIES[-1]: (E,),
    }.items():
        for queue_id in queue_ids:
            assert answer(uid, queue_id) == absent(queue_id)
    assert mixed.queued() == {"new": [A, B, C, D, E]}
    assert answer(ANN, A) == b"OK removed\n"
    assert answer(0, C) == b"OK removed\n"
    assert answer(ANN, A) == absent(A)
    assert mixed.queued() == {"new": [B, D, E]}
    assert mixed.log.lines == [
        line(A, event="removed", uid=ANN),
        line(C, event="removed", uid=0),
    ]


def test_one_that_is_being_delivered_is_not_removed(served):
    put(served.queue, A, os.geteuid())
    with claimed(served.queue, Place("new", A)):
        assert served.say(f"REMOVE {A}\n".encode()) == (
            GREETING + f"NO 75 4.3.0 {A}: is being delivered, try again\n".encode()
        )
    assert served.queued() == {"new": [A]}


@pytest.mark.parametrize("queue_id", ["", "a", "../../etc/passwd", "0" * 15 + "/", "\xff" * 8])
def test_what_is_no_queue_id(served, queue_id):
    answer = served.say(f"REMOVE {queue_id}\n".encode())
    assert answer.startswith(GREETING + b"NO 64 5.3.0 ")
    assert answer.endswith(b": not in the queue\n")


@needs_accounts
def test_who_flushes_what(mixed, clock, poked):
    later = NOW + 3600
    for queue_id in (A, B, C, D):
        with claimed(mixed.queue, Place("new", queue_id)) as entry:
            entry.defer(later)
    waiting = {f"{int(later)}.{each}" for each in (A, B, C, D)}
    assert mixed.say(b"FLUSH\n", uid=ANN) == GREETING + b"OK 1 due now\n"
    waiting = waiting - {f"{int(later)}.{A}"} | {f"0000000000.{A}"}
    assert set(mixed.queued()["cur"]) == waiting
    assert poked == [(mixed.queue.spool, b"a")]
    # Each account once a minute, root as often as it likes.
    wait = b"NO 75 4.3.0 flushed less than 60 s ago: wait a moment\n"
    assert mixed.say(b"FLUSH\n", uid=ANN) == GREETING + wait
    assert mixed.say(b"FLUSH\n", uid=NOBODIES[0]) == GREETING + b"OK 0 due now\n"
    assert [mixed.say(b"FLUSH\n", uid=0) for _ in range(2)] == [GREETING + b"OK 4 due now\n"] * 2
    clock.now += 60
    assert mixed.say(b"FLUSH\n", uid=ANN) == GREETING + b"OK 1 due now\n"
    assert mixed.queued() == {"cur": [f"0000000000.{each}" for each in (A, B, C, D)], "new": [E]}


def test_a_broken_file_is_nobody_s(served):
    put(served.queue, A, os.geteuid())
    with open(f"{served.queue.spool}/queue/new/{A}", "r+b") as opened:
        opened.truncate(60)
    assert listed(served, -1) == []
    assert b"not in the queue" in served.say(f"REMOVE {A}\n".encode())
    assert listing(served.queue.spool) == {"new": [A]}
