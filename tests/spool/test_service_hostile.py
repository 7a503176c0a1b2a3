"""Clients of the socket service that are killed, lie, or speak something else: each hurts its own connection, and nothing is kept of it."""

import errno
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisend.envelope import Envelope, Recipient
from minisend.errors import DataError, PermissionDenied
from minisend.log import line
from minisend.spool import client, connections, disk, drop, ingest, protocol, quota, service
from minisend.spool.entry import Place
from minisend.spool.limits import Usage
from minisend.spool.protocol import frame
from minisend.spool.record import SUBMITTED_HEAD_LIMIT, format_head
from minisend.spool.store import Queue
from minisend.spool.trigger import Trigger
from spool.make import RecordingQueue, claimed, put
from spool.seam import Seam, fail_at
from spool.served import (
    DEADLINE,
    END,
    ENVELOPE,
    GREETING,
    HEAD,
    ID,
    LIMIT,
    MESSAGE,
    OK,
    QUEUE_ID,
    REQUEST,
    STATUS,
    WHOLE,
    Served,
    read_line,
    said,
    until,
)
from spool.system import OURS


def test_the_whole_one(served):
    """What the others are cut from and made of is a submission that is taken."""
    assert served.say(WHOLE + b"ACK\n") == GREETING + OK
    assert served.queued() == {"new": [QUEUE_ID]}


@pytest.mark.parametrize("half", [True, False], ids=["half-closed", "gone"])
def test_cut_at_every_octet(served, half):
    for length in range(len(WHOLE)):
        answer = served.say(WHOLE[:length], half=half)
        assert answer in (GREETING, b""), length
        assert served.queued() == {}, length
    assert os.listdir(f"{served.queue.spool}/queue/tmp") == []
    # Nothing of them stands in the way of the one that comes whole.
    assert served.say(WHOLE) == GREETING + OK


@pytest.mark.parametrize(
    "request_line",
    [b"STATUS " + ID.hex().encode() + b"\n", b"LIST\n", b"REMOVE 0123456789abcdef\n", b"FLUSH\n"],
)
def test_other_requests_cut_at_every_octet(served, request_line):
    assert served.say(WHOLE + b"ACK\n") == GREETING + OK
    for length in range(len(request_line)):
        for half in (True, False):
            assert served.say(request_line[:length], half=half) in (GREETING, b"")
    assert served.queued() == {"new": [QUEUE_ID]}


def test_a_flush_lists_the_queue_once(served, monkeypatch):
    """Not for each message that lies in it: of 3,000 messages of others' that was six seconds of the processor."""
    queue = served.queue
    for number in range(5):
        with claimed(queue, put(queue, f"{number:016x}")) as entry:
            entry.defer(1_900_000_000)
    states: list[str] = []
    names = queue.names
    monkeypatch.setattr(queue, "names", lambda state: states.append(state) or names(state))
    assert served.say(b"FLUSH\n") == GREETING + b"OK 5 due now\n"
    assert states == ["cur"]
    assert served.queued() == {"cur": [f"0000000000.{number:016x}" for number in range(5)]}


def test_a_look_for_a_submission_holds_up_nobody_else(served, monkeypatch):
    """It takes as long as the disk does, and anybody may ask, as often as they like."""
    looking, go_on = threading.Event(), threading.Event()
    is_known = service.is_known

    def is_slowly_known(queue: Queue, queue_id: str) -> bool:
        looking.set()
        assert go_on.wait(DEADLINE)
        return is_known(queue, queue_id)

    monkeypatch.setattr(service, "is_known", is_slowly_known)
    with served.greeted() as asking:
        asking.sendall(b"STATUS " + ID.hex().encode() + b"\n")
        assert looking.wait(DEADLINE)
        free = served.service._lock.acquire(timeout=1)
        if free:
            served.service._lock.release()
        go_on.set()
        assert read_line(asking) == b"NO 75 4.3.0 no such submission\n"
    served.ended()
    assert free
    monkeypatch.undo()
    assert served.say(WHOLE) == GREETING + b"NO 75 4.3.0 this submission was given up\n"
    assert served.queued() == {}


def test_a_submission_takes_no_listing(served, monkeypatch):
    """Of 100,000 messages that wait, it would take a tenth of a second of each."""
    monkeypatch.setattr(served.queue, "names", None)
    assert (
        served.say(STATUS.replace(b"00", b"ff")) == GREETING + b"NO 75 4.3.0 no such submission\n"
    )
    assert served.say(WHOLE) == GREETING + OK
    monkeypatch.undo()
    [place] = served.queue.places("new")
    with claimed(served.queue, place) as entry:
        entry.defer(1_900_000_000)
    monkeypatch.setattr(served.queue, "names", None)
    assert [served.say(each) for each in (WHOLE, STATUS)] == [GREETING + OK] * 2
    assert served.queued() == {"cur": [f"1900000000.{QUEUE_ID}"]}


@pytest.mark.parametrize("request_line", [STATUS, WHOLE], ids=["status", "submit"])
def test_a_disk_that_does_not_say_what_is_known(served, monkeypatch, request_line):
    """No answer, as neither would be true, but a line in the log."""
    monkeypatch.setattr(disk, "open_reading", fail_at(1, errno.EIO).open)
    assert served.say(request_line) == GREETING
    assert served.log.lines == [line(QUEUE_ID, event="refused", reason="queue: Input/output error")]
    assert served.queued() == {}


def test_what_is_said_to_be_known_is_durable(served, monkeypatch):
    """Who gave it its name may have been killed before the fsync; its client sends it no other way."""
    assert served.say(WHOLE) == GREETING + OK
    seam = Seam()
    monkeypatch.setattr(disk, "posix", seam)
    with served.greeted() as connection:
        connection.sendall(STATUS)
        assert read_line(connection) == OK
        synced = seam.about("fsync")
    served.ended()
    assert synced == [("fsync", f"{served.queue.spool}/queue/new")]


def test_recipients_that_would_fill_the_memory(served):
    """Of one octet each an envelope has room for 200,000, which take 30 MB, as often as an account may connect."""
    one = b"\nto a"
    fits = HEAD[:-2] + one * (protocol.MOST_RECIPIENTS - 1) + b"\n\n"
    whole = REQUEST + frame(b"E", fits) + WHOLE[len(REQUEST + ENVELOPE) :]
    assert served.say(whole) == GREETING + OK
    served.queue.discard(Place("new", QUEUE_ID))
    more = HEAD[:-2] + one * protocol.MOST_RECIPIENTS + b"\n\n"
    answer = served.say(REQUEST.replace(b"00", b"ff") + frame(b"E", more))
    assert answer == GREETING + b"NO 65 5.6.0 more recipients than the service takes\n"


def test_recipients_that_no_service_takes_are_no_reason_to_try_again(tmp_path):
    envelope = said()
    envelope.recipients *= protocol.MOST_RECIPIENTS + 1
    with pytest.raises(DataError) as caught:
        client.submit(f"{tmp_path}/no.sock", ID, envelope, [MESSAGE])
    assert (str(caught.value), caught.value.exit_code) == (
        "more recipients than the service takes: 50001",
        65,
    )


def test_the_message_of_a_client_that_is_gone_wakes_who_delivers(served, monkeypatch):
    def confirm(stream: protocol.Stream, queue_id: str) -> None:
        stream.close()
        stream.send(b"", 1)

    monkeypatch.setattr(served.service, "_confirm", confirm)
    trigger = Trigger(served.queue.spool)
    try:
        assert served.say(WHOLE) == GREETING
        assert served.queued() == {"new": [QUEUE_ID]}
        assert trigger.wait(0) == b"n"
    finally:
        trigger.close()


def test_who_is_over_a_limit_does_not_have_the_queue_counted_all_the_time(queue, monkeypatch):
    """A count that takes 10 s, in which all others wait, is not begun anew 5 s after the last one."""
    clock = [1000.0]
    counts: list[float] = []

    def count(queue: object, usage: Usage) -> None:
        counts.append(clock[0])
        clock[0] += 10

    monkeypatch.setattr(quota, "count", count)
    monkeypatch.setattr(quota.time, "monotonic", lambda: clock[0])
    quotas = quota.Quotas(queue, Usage(messages=0, octets=0, rate=1, clock=lambda: clock[0]))
    assert quotas.admit(1, 1) is None
    for _ in range(40):
        assert quotas.admit(1, 1) is not None
        clock[0] += 6
    assert counts == [1000.0, 1214.0]


def test_one_listing_at_a_time_of_each_account(served, monkeypatch):
    """Each holds the names of the whole queue and opens every message; an account may have 50 connections."""
    monkeypatch.setattr(connections, "_TURN", 0.2)
    listing, go_on = threading.Event(), threading.Event()
    places = served.queue.places

    def slow(*states: str) -> Iterator[Place]:
        listing.set()
        assert go_on.wait(DEADLINE)
        return places(*states)

    monkeypatch.setattr(served.queue, "places", slow)
    end = frame(b"Z", b"")
    with served.greeted() as first, served.greeted() as second:
        first.sendall(b"LIST\n")
        assert listing.wait(DEADLINE)
        second.sendall(b"LIST\n")
        why = b"another request of this account goes through the queue, try again"
        assert read_line(second) == b"NO 75 4.3.0 " + why + b"\n"
        go_on.set()
        assert read_line(first) == b"OK\n"
        assert first.recv(100) == end
    served.ended()
    assert served.say(b"LIST\n") == GREETING + b"OK\n" + end


def test_a_refusal_in_any_letters_is_a_refusal(queue):
    """Longer than a line it would be no answer, and a client without one goes to the drop with what it may not send."""

    def permit(envelope: Envelope, first: bytes, complete: bool) -> None:
        raise PermissionDenied("\N{PILE OF POO}" * 2000)

    served = Served(queue, settings={"permit": permit})
    with path_to(served) as path, pytest.raises(client.Refused) as caught:
        client.submit(path, ID, said(), [MESSAGE])
    assert caught.value.exit_code == 77
    assert set(str(caught.value)) == {"\N{PILE OF POO}"}
    served.ended()
    assert len(served.say(REQUEST + ENVELOPE + END)) <= len(GREETING) + protocol.LINE
    assert served.queued() == {}


NOT_A_REQUEST = b"NO 65 5.6.0 not a request\n"
NO_ID = b"NO 65 5.6.0 not a submission id\n"
WRONG_SUM = b"NO 65 5.6.0 the message is not the one that was announced\n"


@pytest.mark.parametrize(
    ("octets", "answer"),
    [
        pytest.param(b"\n", NOT_A_REQUEST, id="empty line"),
        pytest.param(b"EHLO x\r\n", NOT_A_REQUEST, id="smtp"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", NOT_A_REQUEST, id="http"),
        pytest.param(b"submit " + ID.hex().encode() + b"\n", NOT_A_REQUEST, id="small letters"),
        pytest.param(b"\0\xff\n", NOT_A_REQUEST, id="no text"),
        pytest.param(b"SUBMIT\n", NO_ID, id="no id"),
        pytest.param(b"SUBMIT  \n", NO_ID, id="blanks"),
        pytest.param(b"SUBMIT " + b"0" * 31 + b"\n", NO_ID, id="short id"),
        pytest.param(b"SUBMIT " + b"0" * 33 + b"\n", NO_ID, id="long id"),
        pytest.param(b"SUBMIT " + b"A" * 32 + b"\n", NO_ID, id="capitals"),
        pytest.param(b"SUBMIT " + b"\xd9\xa0" * 16 + b"\n", NO_ID, id="other digits"),
        pytest.param(b"STATUS " + b"../" * 10 + b"..\n", NO_ID, id="a path"),
        pytest.param(
            REQUEST[:-1] + b" now\n", b"NO 65 5.6.0 an option that nobody knows\n", id="option"
        ),
        pytest.param(b"x" * 3000, b"", id="line without an end"),
        pytest.param(REQUEST + frame(b"M", MESSAGE), b"", id="message first"),
        pytest.param(REQUEST + END, b"", id="end first"),
        pytest.param(REQUEST + frame(b"L", b""), b"", id="a frame of the service"),
        pytest.param(REQUEST + b"e" + ENVELOPE[1:], b"", id="kind in small letters"),
        pytest.param(REQUEST + b"E\xff\xff\xff\xff", b"", id="four gigabytes of envelope"),
        pytest.param(
            REQUEST + b"E" + (SUBMITTED_HEAD_LIMIT + 1).to_bytes(4, "big") + b"x" * 100_000,
            b"",
            id="envelope too long by one",
        ),
        pytest.param(
            REQUEST + frame(b"E", b""),
            b"NO 65 5.6.0 envelope: ",
            id="empty envelope",
        ),
        pytest.param(REQUEST + frame(b"E", b"\0" * 500), b"NO 65 5.6.0 envelope: ", id="zeros"),
        pytest.param(
            REQUEST + frame(b"E", HEAD + b"x"),
            b"NO 65 5.6.0 envelope: it does not end where its frame does\n",
            id="more behind the envelope",
        ),
        pytest.param(
            REQUEST + frame(b"E", HEAD[:-1]), b"NO 65 5.6.0 envelope: ", id="less of the envelope"
        ),
        pytest.param(REQUEST + ENVELOPE + ENVELOPE, b"", id="two envelopes"),
        pytest.param(
            REQUEST + ENVELOPE + b"M" + (protocol.PIECE + 1).to_bytes(4, "big") + b"x" * 70_000,
            b"",
            id="piece too long by one",
        ),
        pytest.param(REQUEST + ENVELOPE + b"Z\0\0\0\x29" + b"0" * 41, b"", id="end too long"),
        pytest.param(REQUEST + ENVELOPE + frame(b"Z", b""), WRONG_SUM, id="empty end"),
        pytest.param(
            REQUEST + ENVELOPE + frame(b"M", MESSAGE[:-1]) + END, WRONG_SUM, id="an octet short"
        ),
        pytest.param(
            REQUEST + ENVELOPE + frame(b"M", MESSAGE[:-1] + b"x") + END, WRONG_SUM, id="another sum"
        ),
        pytest.param(
            REQUEST + ENVELOPE + frame(b"M", MESSAGE) + frame(b"Z", b"23 C84D920E"),
            WRONG_SUM,
            id="sum in capitals",
        ),
        pytest.param(
            REQUEST + ENVELOPE + frame(b"M", b"x" * 60_000) * 2,
            b"NO 69 5.3.4 message larger than max_message_size (100000 octets)\n",
            id="larger than is taken",
        ),
        pytest.param(
            REQUEST + frame(b"E", format_head(said(), LIMIT + 1)),
            b"NO 69 5.3.4 message larger than max_message_size (100000 octets)\n",
            id="announced larger",
        ),
        pytest.param(
            REQUEST + frame(b"E", format_head(said(body="9BIT"), 0)),
            b"NO 65 5.6.0 BODY: not a value it has: '9BIT'\n",
            id="a parameter that is none",
        ),
    ],
)
def test_what_is_no_submission(served, octets, answer):
    heard = served.say(octets)
    if answer.endswith(b"\n") or not answer:
        assert heard == GREETING + answer
    else:
        assert heard.startswith(GREETING + answer)
        assert heard.count(b"\n") == 2
    assert served.queued() == {}


def test_what_stands_behind_the_end_is_not_read_as_anything(served):
    assert served.say(WHOLE + frame(b"M", b"more") + b"REMOVE x\n") == GREETING + OK
    assert served.queued() == {"new": [QUEUE_ID]}


def test_empty_pieces_without_end_are_the_client_s_own_time(served):
    assert served.say(REQUEST + ENVELOPE + frame(b"M", b"") * 5000) == GREETING
    assert served.queued() == {}


def test_who_has_gone_before_it_was_its_turn(served):
    """Costs no thread, and no line of the log, however many there are."""
    for _ in range(1000):
        ours, theirs = socket.socketpair()
        ours.close()
        served.service.take(theirs)
        assert served.service._connections._open == {}
        assert theirs.fileno() == -1
    assert served.log.lines == []


# -- time


def test_who_says_nothing(served, monkeypatch):
    monkeypatch.setattr(service, "_REQUEST", 0.2)
    with served.greeted() as connection:
        assert connection.recv(1) == b""
    served.ended()


def test_an_octet_now_and_then_gains_no_time(served, monkeypatch):
    monkeypatch.setattr(service, "_REQUEST", 0.5)
    began = time.monotonic()
    with served.greeted() as connection:
        try:
            while time.monotonic() < began + DEADLINE:
                connection.sendall(b"S")
                connection.settimeout(0.05)
                try:
                    if not connection.recv(1):
                        break
                except TimeoutError:
                    pass
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert time.monotonic() < began + DEADLINE
    served.ended()


SILENT = b"NO 75 4.3.0 nothing came from the client for 0.2 s\n"


@pytest.mark.parametrize(
    ("begun", "answer"),
    [
        pytest.param(REQUEST, b"", id="envelope"),
        pytest.param(REQUEST + ENVELOPE[:20], b"", id="in the envelope"),
        pytest.param(REQUEST + ENVELOPE, SILENT, id="message"),
        pytest.param(REQUEST + ENVELOPE + b"M\0\0\1\0xx", SILENT, id="in the message"),
    ],
)
def test_who_stops_in_the_middle(served, monkeypatch, begun, answer):
    monkeypatch.setattr(service, "_NEXT_FRAME", 0.2)
    with served.greeted() as connection:
        connection.sendall(begun)
        assert read_line(connection) == answer
    served.ended()
    assert served.queued() == {}


def test_a_client_whose_own_input_is_slow_says_that_it_is_there(served, monkeypatch):
    """However long a pause it makes: an empty piece now and then is all that is needed."""
    monkeypatch.setattr(service, "_NEXT_FRAME", 1.5)

    def slow() -> Iterator[bytes]:
        yield MESSAGE[:5]
        for _ in range(20):
            time.sleep(0.1)
            yield b""
        yield MESSAGE[5:]

    with path_to(served) as path:
        assert client.submit(path, ID, said(), slow()) == QUEUE_ID
    served.ended()
    assert served.queued() == {"new": [QUEUE_ID]}


@contextmanager
def path_to(served: Served) -> Iterator[str]:
    """A socket on which one client is served."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{directory}/s")
        listening.listen()
        thread = threading.Thread(target=lambda: served.service.take(listening.accept()[0]))
        thread.start()
        yield f"{directory}/s"
        thread.join()


def test_who_never_reads(served, monkeypatch):
    """A listing that does not fit into the socket, to somebody who does not take it."""
    monkeypatch.setattr(service, "_ANSWER", 0.3)
    wide = said()
    wide.recipients = [Recipient(b"%040d@example.net" % n) for n in range(10_000)]
    octets = REQUEST + frame(b"E", format_head(wide, 0)) + frame(b"Z", b"0 00000000")
    assert served.say(octets) == GREETING + OK
    with served.greeted() as connection:
        connection.sendall(b"LIST\n")
        served.ended()


@pytest.mark.parametrize("late", [False, True], ids=["in time", "late"])
def test_a_service_that_was_frozen_brings_nothing_in_a_second_time(system, late):
    """Its client went to the drop meanwhile, and the message has come from there, been delivered, and left no trace."""
    clock = [1000.0]

    def frozen() -> None:
        service.time = SimpleNamespace(monotonic=lambda: clock[0], time=time.time)
        with RecordingQueue(system.spool) as queue:
            served = Served(queue)
            with served.greeted() as connection:
                if late:
                    drop.put(system.drop, ID, said(), [MESSAGE], LIMIT, owner=OURS)
                    came = ingest.Ingest(system.spool, system.drop, limit=LIMIT).run().ingested
                    assert came == [(QUEUE_ID, OURS, len(MESSAGE))]
                    deliver(served)
                clock[0] += protocol.PATIENCE + (0.1 if late else -0.1)
                connection.sendall(WHOLE)
                # No answer: a client that still waits asks, hears "no", and goes another way.
                assert read_line(connection) == (b"" if late else OK)
            served.ended()
            assert served.queued() == ({} if late else {"new": [QUEUE_ID]})

    system.as_user(OURS, frozen)


def test_no_client_goes_another_way_before_a_service_expects_it():
    assert min(client._WRITE, client._ANSWER) >= protocol.PATIENCE


# -- the same submission more than once


def test_many_copies_at_once_are_one_message(served):
    answers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: answers.append(served_say(served, WHOLE + b"ACK\n")))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    served.ended()
    assert answers == [GREETING + OK] * 16
    assert served.queued() == {"new": [QUEUE_ID]}
    assert len([line for line in served.log.lines if "event=queued" in line]) == 1


def served_say(served: Served, octets: bytes) -> bytes:
    """As ``say``, beside others."""
    with served.connect() as connection:
        connection.sendall(octets)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass  # not all that was said was read
    return answer


def test_one_that_is_under_way_is_waited_for(served):
    with served.greeted() as first, served.greeted() as second:
        first.sendall(WHOLE[: -len(END)])
        until(lambda: served.service._under_way)
        second.sendall(STATUS)
        first.sendall(END)
        assert read_line(first) == OK
        assert read_line(second) == OK
    served.ended()
    assert served.queued() == {"new": [QUEUE_ID]}


def test_one_that_is_under_way_for_too_long_is_void(served, monkeypatch):
    """Who hears "no" may send it another way, so it is not taken after that: not by this connection, nor by a new one."""
    # Also of the time in which the end is to be taken in, once the other one has given up on it.
    monkeypatch.setattr(service, "_BUSY", 2.0)
    with served.greeted() as first, served.greeted() as second:
        first.sendall(WHOLE[: -len(END)])
        until(lambda: served.service._under_way)
        second.sendall(STATUS)
        # The one that asks waits for the end of the other one, which has to come.
        until(lambda: any(each.void for each in served.service._under_way.values()))
        first.sendall(END)
        assert read_line(first) == b"NO 75 4.3.0 this submission was given up\n"
        assert read_line(second) == b"NO 75 4.3.0 no such submission\n"
    served.ended()
    assert served.say(WHOLE) == GREETING + b"NO 75 4.3.0 this submission was given up\n"
    assert served.queued() == {}


def test_one_that_does_not_end_is_told_neither_way(served, monkeypatch):
    monkeypatch.setattr(service, "_BUSY", 0.1)
    with served.greeted() as first, served.greeted() as second:
        first.sendall(WHOLE[: -len(END)])
        until(lambda: served.service._under_way)
        second.sendall(STATUS)
        assert second.recv(1) == b""
    served.ended()
    assert served.queued() == {}


def test_one_that_is_not_known_is_void(served):
    assert served.say(STATUS) == GREETING + b"NO 75 4.3.0 no such submission\n"
    assert served.say(WHOLE) == GREETING + b"NO 75 4.3.0 this submission was given up\n"
    assert served.queued() == {}


def test_one_that_was_delivered_is_not_taken_again(served):
    assert served.say(WHOLE) == GREETING + OK
    deliver(served)
    assert served.queued() == {}
    assert served.say(WHOLE) == GREETING + OK
    assert served.say(STATUS) == GREETING + OK
    assert served.queued() == {}


def test_one_that_was_acknowledged_leaves_nothing(served):
    assert served.say(WHOLE + b"ACK\n") == GREETING + OK
    deliver(served)
    tombstones = f"{served.queue.spool}/queue/tombstones"
    assert not os.path.exists(tombstones)
    assert served.say(STATUS) == GREETING + b"NO 75 4.3.0 no such submission\n"


def test_half_an_acknowledgement_is_none(served):
    for heard in (b"", b"AC", b"ACK", b"NAK\n", b"x" * 5000):
        assert served.say(WHOLE + heard) == GREETING + OK
        deliver(served)
        assert os.listdir(f"{served.queue.spool}/queue/tombstones") == [QUEUE_ID]


def deliver(served: Served) -> None:
    for place in list(served.queue.places("new")):
        with served.queue.claim(place) as entry:
            entry.remove()


# -- many


def test_of_one_account_so_many(served, monkeypatch):
    monkeypatch.setattr(connections, "MOST_OF_ONE", 3)
    uid = [1000]
    monkeypatch.setattr(service, "_peer", lambda connection: uid[0])
    held = [served.connect() for _ in range(3)]
    assert [read_line(each) for each in held] == [GREETING] * 3
    with served.connect() as another:
        assert another.recv(100) == b"busy\n"
        assert another.recv(1) == b""
    uid[0] = 1001
    assert served_say(served, WHOLE + b"ACK\n") == GREETING + OK
    uid[0] = 1000
    held.pop().close()
    until(lambda: served.service._connections._open.get(1000) == 2)
    assert served_say(served, STATUS) == GREETING + b"OK " + OK[3:]
    for each in held:
        each.close()
    served.ended()


def test_of_all_accounts_so_many(served, monkeypatch):
    monkeypatch.setattr(connections, "MOST", 4)
    numbers = iter(range(1000, 2000))
    monkeypatch.setattr(service, "_peer", lambda connection: next(numbers))
    held = [served.connect() for _ in range(4)]
    assert [read_line(each) for each in held] == [GREETING] * 4
    with served.connect() as another:
        assert another.recv(100) == b"busy\n"
    for each in held:
        each.close()
    served.ended()


def test_a_client_that_is_told_busy_has_handed_nothing_over(served, monkeypatch):
    monkeypatch.setattr(connections, "MOST", 0)
    monkeypatch.setattr(client, "_TURN", 0.0)
    with path_to(served) as path, pytest.raises(client.NotServed, match=r"^the service is busy$"):
        client.submit(path, ID, said(), [MESSAGE])
    served.ended()
    assert served.queued() == {}


def test_of_one_account_one_large_envelope_at_a_time(served, monkeypatch):
    monkeypatch.setattr(connections, "_TURN", 0.2)
    wide = said()
    wide.recipients = [Recipient(b"%d@example.net" % n) for n in range(5000)]

    def begun(digit: bytes) -> bytes:
        return b"SUBMIT " + digit * 32 + b"\n" + frame(b"E", format_head(wide, 0))

    end = frame(b"Z", b"0 00000000")
    with served.greeted() as first:
        first.sendall(begun(b"1"))
        until(
            lambda: any(
                each._large.locked() for each in served.service._connections._turns.values()
            )
        )
        refusal = b"NO 75 4.3.0 another message of so many recipients is under way: try again\n"
        assert served_say(served, begun(b"2") + end) == GREETING + refusal
        # Others of the account go on beside it.
        assert served_say(served, WHOLE + b"ACK\n") == GREETING + OK
        monkeypatch.setattr(connections, "_TURN", DEADLINE)
        with served.greeted() as second:
            second.sendall(begun(b"3"))
            first.sendall(end)
            assert read_line(first).startswith(b"OK ")
            second.sendall(end)
            assert read_line(second).startswith(b"OK ")
    served.ended()
    assert served.service._connections._turns == {}
    assert len(served.queued()["new"]) == 3


def test_one_that_is_over_a_limit_is_not_kept(queue):
    served = Served(queue, octets=30)
    assert served.say(WHOLE + b"ACK\n") == GREETING + OK
    second = WHOLE.replace(ID.hex().encode(), b"f" * 32)
    answer = served.say(second)
    assert answer.startswith(GREETING + b"NO 75 4.3.0 uid ")
    assert b"octets_per_uid" in answer
    assert served.queued() == {"new": [QUEUE_ID]}


# -- anything

WORDS = [b"SUBMIT ", b"STATUS ", b"LIST", b"REMOVE ", b"FLUSH", b"ACK", b" later", b"\n", b"\0"]
PARTS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [*WORDS, ID.hex().encode(), REQUEST, ENVELOPE, END, frame(b"M", MESSAGE), WHOLE, STATUS]
    ),
    st.builds(frame, st.sampled_from([b"E", b"M", b"Z", b"L", b"x"]), st.binary(max_size=60)),
    st.builds(
        lambda at, octet: ENVELOPE[:at] + bytes([octet]) + ENVELOPE[at + 1 :],
        st.integers(0, len(ENVELOPE) - 1),
        st.integers(0, 255),
    ),
)


@given(st.lists(PARTS, max_size=8).map(b"".join), st.booleans())
def test_whatever_is_said(octets, half):
    with tempfile.TemporaryDirectory() as directory:
        with RecordingQueue(f"{directory}/spool") as queue:
            served = Served(queue)
            answer = served.say(octets, half=half)
            assert not half or answer.startswith(GREETING)
            kept = served.queued()
            assert set(kept) <= {"new"}
            for name in kept.get("new", []):
                place = next(iter(queue.places("new")))
                with queue.claim(place) as entry:
                    assert b"".join(entry.verified_octets(b"", 0)) is not None
                assert not half or b"OK " + name.encode() in answer
