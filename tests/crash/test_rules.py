"""The rules of minisend-spool(5) that take the whole program to break: each is one real run, or a run that a fault ended."""

import errno
import os

import pytest
from crash.faulty import ONCE, STOP, Fault
from crash.site import Site
from delivery.reports import read_report
from spool.make import listing
from spool.seam import STOPPED

pytestmark = pytest.mark.crash

REFUSED = "refused@x.test"
LATER = "later@x.test"


def answer(command: bytes) -> bytes | None:
    if command.startswith(b"RCPT TO:<" + REFUSED.encode()):
        return b"550 5.1.1 no such user"
    if command.startswith(b"RCPT TO:<" + LATER.encode()):
        return b"450 4.2.1 later"
    return None


@pytest.fixture
def site(forks, tmp_path):
    site = Site(forks, tmp_path, answer)
    with site.server:
        yield site


def steps(done, *names):
    """The calls with these names, and the path below the queue that each was about."""
    return [(name, about.partition("/queue/")[2]) for name, about in done.calls if name in names]


def test_no_room_for_the_outcome_no_attempt(site):
    """Reserved before anybody is asked: the server hears nothing of a message whose fate could not be written down."""
    file = site.submit("-f", "me@here.test", "ann@x.test")
    octets = file.read_bytes()
    done = site.flush(fault=Fault(ONCE, 1, errno.ENOSPC, "posix_fallocate"))
    assert ("posix_fallocate", f"new/{file.name}") in steps(done, "posix_fallocate")
    assert (done.code, [session.verbs() for session in site.server.sessions]) == (75, [])
    assert listing(str(site.spool)) == {"new": [file.name]}
    assert file.read_bytes() == octets
    assert (site.flush().code, site.copies()) == (0, {"ann@x.test": 1})


def test_the_last_block_of_the_file_is_room(site):
    """No call is made for it, and a disk that has no other takes the outcome."""
    name = site.submit("-f", "me@here.test", LATER).name
    done = site.flush(reserves=False, fault=Fault(ONCE, 1, errno.ENOSPC, "posix_fallocate"))
    assert done.code == 75
    [waiting] = (site.spool / "queue/cur").iterdir()
    assert steps(done, "posix_fallocate", "pwrite", "ftruncate", "fsync", "rename", "unlink") == [
        ("pwrite", f"new/{name}"),
        ("fsync", f"new/{name}"),
        ("rename", f"new/{name}"),
        ("fsync", "cur"),
        ("fsync", "new"),
    ]
    assert b"\tdelayed\t4.2.1\t" in waiting.read_bytes()


def test_who_has_it_at_once_costs_the_disk_nothing_but_the_removal(site):
    name = site.submit("-f", "me@here.test", "ann@x.test").name
    done = site.flush(reserves=False)
    assert (done.code, site.copies()) == (0, {"ann@x.test": 1})
    assert steps(done, "posix_fallocate", "pwrite", "ftruncate", "fsync", "rename", "unlink") == [
        ("unlink", f"new/{name}"),
        ("fsync", "new"),
    ]


@pytest.mark.parametrize(
    ("recipients", "fault", "left"),
    [
        pytest.param(
            ["ann@x.test"], Fault(ONCE, 1, errno.EIO, "unlink"), "new", id="all have it: recorded"
        ),
        pytest.param(
            ["ann@x.test", LATER],
            Fault(ONCE, 1, errno.EIO, "pwrite"),
            "hold",
            id="some have it: held",
        ),
    ],
)
def test_a_delivery_that_cannot_be_written_down_as_usual(site, recipients, fault, left):
    """Nobody gets a second copy, whatever flushes follow."""
    file = site.submit("-f", "me@here.test", *recipients)
    site.flush(fault=fault)
    assert site.copies() == {"ann@x.test": 1}
    assert listing(str(site.spool)) == {left: [file.name]}
    site.flush("--all")
    site.flush("--all")
    assert site.copies() == {"ann@x.test": 1}
    assert listing(str(site.spool)) == ({"hold": [file.name]} if left == "hold" else {})


def test_an_outcome_is_recorded_before_anything_acts_on_it(site):
    """Durable, and only then is the message moved, and its name made durable where it comes before where it was."""
    name = site.submit("-f", "me@here.test", LATER).name
    done = site.flush()
    assert done.code == 75
    [waiting] = os.listdir(site.spool / "queue/cur")
    assert steps(done, "posix_fallocate", "pwrite", "ftruncate", "fsync", "rename", "unlink") == [
        ("posix_fallocate", f"new/{name}"),
        ("pwrite", f"new/{name}"),
        ("ftruncate", f"new/{name}"),
        ("fsync", f"new/{name}"),
        ("rename", f"new/{name}"),
        ("fsync", "cur"),
        ("fsync", "new"),
    ]
    assert waiting.endswith(f".{name}")


def test_the_report_is_queued_before_the_original_goes(site):
    """The outcome, then the report, then the note of it, each durable, then the removal."""
    name = site.submit("-f", "me@here.test", REFUSED).name
    done = site.flush()
    assert (done.code, site.copies()) == (69, {"me@here.test": 1})
    [report] = {about for call, about in steps(done, "rename") if not about.endswith(name)}
    report = report.rpartition("/")[2]
    order = [
        ("fsync", f"new/{name}"),  # the outcome
        ("fsync", f"tmp/{report}"),
        ("rename", f"tmp/{report}"),
        ("fsync", "new"),
        ("fsync", f"new/{name}"),  # the note
        ("unlink", f"new/{name}"),
    ]
    made = steps(done, "fsync", "rename", "unlink")
    assert [step for step in made if step in order][: len(order)] == order


@pytest.mark.parametrize(
    ("fault", "in_queue"),
    [
        pytest.param(Fault(STOP, 1, call="write"), 1, id="before the report"),
        pytest.param(Fault(STOP, 2, call="pwrite"), 2, id="before the note of it"),
        pytest.param(Fault(STOP, 2, call="unlink"), 2, id="before the removal"),
    ],
)
def test_a_report_is_not_sent_twice(site, fault, in_queue):
    """Its id is made from that of the message, so that it is found in the queue after the crash."""
    site.submit("-f", "me@here.test", REFUSED)
    assert site.flush(fault=fault).code == STOPPED
    assert len(listing(str(site.spool))["new"]) == in_queue
    assert site.copies() == {}
    assert site.flush("--all").code in (0, 69)
    assert site.copies() == {"me@here.test": 1}
    assert read_report(site.server.messages[0].octets).fates() == [(REFUSED, "failed", "5.1.1")]
    assert listing(str(site.spool)).keys() <= {"tmp"}


def test_what_nobody_can_be_told_of_is_kept(site):
    """A failed message without a sender: nothing is dropped."""
    name = site.submit("-f", "<>", REFUSED).name
    assert site.flush().code == 69
    assert listing(str(site.spool)) == {"failed": [name]}
    site.flush("--all")
    assert (listing(str(site.spool)), site.copies()) == ({"failed": [name]}, {})


def test_a_clock_that_was_set_back(site):
    """The next attempt is at a time that no back-off leads to: it is due."""
    file = site.submit("-f", "me@here.test", "ann@x.test")
    far = site.spool / "queue/cur" / f"4000000000.{file.name}"
    file.rename(far)
    assert (site.flush().code, site.copies()) == (0, {"ann@x.test": 1})
    assert listing(str(site.spool)) == {}


def test_a_file_of_another_version_is_left_alone(site):
    """Not moved, not changed, and told of; the others go on."""
    file = site.submit("-f", "me@here.test", "ann@x.test")
    octets = file.read_bytes().replace(b"minisend-queue 1\n", b"minisend-queue 2\n")
    file.write_bytes(octets)
    site.submit("-f", "me@here.test", "bob@x.test")
    done = site.flush("--all")
    assert (done.code, site.copies()) == (69, {"bob@x.test": 1})
    assert listing(str(site.spool)) == {"new": [file.name]}
    assert file.read_bytes() == octets


def test_a_torn_tail_is_cut_off_and_the_message_delivered(site):
    """What a crash left half written after the last line does not count; what was recorded before it does."""
    file = site.submit("-f", "me@here.test", "ann@x.test", LATER)
    assert site.flush().code == 75
    [waiting] = (site.spool / "queue/cur").iterdir()
    with waiting.open("ab") as torn:
        torn.write(b"\noutcome\t2\t0-1\t1700000000.000\trel")
    site.flush("--all")
    assert site.copies() == {"ann@x.test": 1}
    [waiting] = (site.spool / "queue/cur").iterdir()
    assert b"\trel\n" not in waiting.read_bytes()
    assert waiting.name.endswith(file.name)
