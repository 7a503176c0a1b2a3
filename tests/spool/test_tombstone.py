"""What is gone before its submitter has spoken leaves its digest, durable, before it goes; anything else leaves nothing."""

import errno
import os

import pytest
from crash.faulty import ERRORS

from minisend.spool import disk, tombstone
from minisend.spool.enqueue import acknowledge, enqueue
from minisend.spool.entry import Place
from minisend.spool.store import Queue
from spool.make import ID, MESSAGE, claimed, envelope, listing
from spool.seam import Seam, fail_at, in_child, stop_after

PLACE = Place("new", ID)
KNOWN = (len(MESSAGE), "c84d920e")


def put(queue):
    enqueue(queue.fd, envelope(), [MESSAGE], 0, acknowledged=False)


def mode(queue, place=PLACE):
    return os.stat(f"{queue.spool}/queue/{place.state}/{place.name}").st_mode & 0o777


def remove(queue):
    with claimed(queue, PLACE) as entry:
        entry.remove()


def discard(queue):
    assert queue.discard(PLACE)


REMOVALS = pytest.mark.parametrize("removal", [remove, discard])


@REMOVALS
def test_it_says_what_the_message_was(queue, removal):
    put(queue)
    assert mode(queue) == 0o700
    assert tombstone.find(queue.fd, ID) is None
    removal(queue)
    assert tombstone.find(queue.fd, ID) == KNOWN
    assert listing(queue.spool) == {}


@REMOVALS
def test_an_acknowledged_one_leaves_nothing(queue, removal):
    put(queue)
    acknowledge(queue.fd, ID)
    assert mode(queue) == 0o600
    removal(queue)
    assert not os.path.exists(f"{queue.spool}/queue/tombstones")


def test_an_acknowledgement_after_the_claim(queue):
    put(queue)
    with claimed(queue, PLACE) as entry:
        acknowledge(queue.fd, ID)
        entry.remove()
    assert tombstone.find(queue.fd, ID) is None


def test_an_acknowledgement_of_what_has_moved_on(queue):
    """Neither an error nor heard: it costs a tombstone."""
    put(queue)
    with claimed(queue, PLACE) as entry:
        entry.defer(1_700_000_600)
        acknowledge(queue.fd, ID)
        assert mode(queue, entry.place) == 0o700
        assert tombstone.find(queue.fd, ID) == KNOWN
        tombstone.remove(queue.fd, {ID})
        entry.remove()
    assert tombstone.find(queue.fd, ID) == KNOWN


def test_what_is_put_off_is_known_without_a_listing(queue, monkeypatch):
    """Durable before it has another name; no more than once; and of one that was acknowledged there is none."""
    put(queue)
    top = f"{queue.spool}/queue"
    with claimed(queue, PLACE) as entry, monkeypatch.context() as patched:
        seam = Seam()
        patched.setattr(disk, "posix", seam)
        for time in (1_700_000_600, 1_700_000_700):
            entry.defer(time)
    assert seam.about("pwrite", "fsync", "rename") == [
        ("fsync", top),
        ("pwrite", f"{top}/tombstones/{ID}"),
        ("fsync", f"{top}/tombstones/{ID}"),
        ("fsync", f"{top}/tombstones"),
        ("rename", f"{top}/new/{ID}"),
        ("rename", f"{top}/cur/1700000600.{ID}"),
    ]
    assert tombstone.find(queue.fd, ID) == KNOWN
    tombstone.remove(queue.fd, {ID})
    queue.discard(Place("cur", f"1700000700.{ID}"))
    tombstone.remove(queue.fd, {ID})
    put(queue)
    acknowledge(queue.fd, ID)
    with claimed(queue, PLACE) as entry:
        entry.defer(1_700_000_600)
    assert tombstone.find(queue.fd, ID) is None


def test_the_usual_one_costs_no_call(queue, monkeypatch):
    queue.directory("new")

    def calls(acknowledged):
        enqueue(queue.fd, envelope(), [MESSAGE], 0, acknowledged=acknowledged)
        seam = Seam()
        with monkeypatch.context() as patched:
            patched.setattr(disk, "posix", seam)
            for module in ("entry", "store"):
                patched.setattr(f"minisend.spool.{module}.posix", seam)
            remove(queue)
        # What was removed is closed by a thread, in its own time.
        return [call for call in seam.calls if call != "close"]

    assert calls(acknowledged=True) == ["open", "stat", "fstat", "unlink"]
    assert calls(acknowledged=False).count("fsync") == 3


@REMOVALS
def test_durable_before_the_message_goes(queue, monkeypatch, removal):
    put(queue)
    seam = Seam()
    monkeypatch.setattr(disk, "posix", seam)
    removal(queue)
    top = f"{queue.spool}/queue"
    assert seam.about("pwrite", "fsync", "unlink") == [
        ("fsync", top),
        ("pwrite", f"{top}/tombstones/{ID}"),
        ("fsync", f"{top}/tombstones/{ID}"),
        ("fsync", f"{top}/tombstones"),
        ("unlink", f"{top}/new/{ID}"),
    ]


def test_a_broken_file_equals_nothing(queue):
    put(queue)
    with open(f"{queue.spool}/queue/new/{ID}", "r+b") as file:
        file.truncate(100)
    discard(queue)
    assert tombstone.find(queue.fd, ID) == (-1, "") or tombstone.find(queue.fd, ID)[0] < 0


@pytest.mark.crash
def test_stopped_after_each_call(tmp_path):
    """The message is there, or its tombstone, or both."""
    counted = Seam()
    with Queue(str(tmp_path / "count"), create=True) as queue:
        put(queue)
        disk.posix, real = counted, disk.posix
        try:
            remove(queue)
        finally:
            disk.posix = real
    left = set()
    for number in range(1, len(counted.calls) + 1):
        with Queue(str(tmp_path / str(number)), create=True) as queue:
            put(queue)
            seam = stop_after(number)

            def stopped(queue=queue, seam=seam):
                disk.posix = seam
                remove(queue)

            assert in_child(stopped) == 99
            there = listing(queue.spool) == {"new": [ID]}
            known = tombstone.find(queue.fd, ID) == KNOWN
            assert there or known
            left.add((there, known))
            if there:
                remove(queue)
            assert (listing(queue.spool), tombstone.find(queue.fd, ID)) == ({}, KNOWN)
    assert left == {(True, False), (True, True), (False, True)}


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_a_disk_that_takes_none_keeps_no_message(queue, monkeypatch, error):
    """What everybody has must not go out again for want of a trace against a second copy."""
    put(queue)
    with claimed(queue, PLACE) as entry:
        monkeypatch.setattr(disk, "make_directory_at", fail_at(1, error).mkdir)
        entry.remove()
    assert queue.reported == [(ID, f"leaves no trace against a second copy: {os.strerror(error)}")]
    assert listing(queue.spool) == {}


def test_it_goes_after_36_hours(queue):
    put(queue)
    remove(queue)
    made = os.stat(f"{queue.spool}/queue/tombstones/{ID}").st_mtime
    queue.sweep(made + tombstone.AGE)
    assert tombstone.find(queue.fd, ID) == KNOWN
    queue.sweep(made + tombstone.AGE + 1)
    assert tombstone.find(queue.fd, ID) is None
    assert queue.reported == []
