"""Each system call of the spool failing in turn, or the last that is made, in real runs of sendmail and ``minisend flush``.

What must hold after each: nothing is lost, a later run without the fault completes the work, nobody has a message twice
but what was in flight when the process stopped or the disk took nothing more, the exit code is one of the documented.
"""

import errno
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from crash.faulty import CHANGES, ERRORS, FROM_THEN_ON, ONCE, STOP, Fault, Forks
from crash.site import MESSAGE, Site
from delivery.reports import read_report
from spool.make import RecordingQueue, listing
from spool.seam import STOPPED

pytestmark = pytest.mark.crash

LATER, REFUSED = "later@x.test", "refused@x.test"
# Sender → recipients and options.  One is taken; one in part, the rest the next time; one refused, and the sender is told;
# of one the sender wants to know that it arrived.
MESSAGES = {
    "one@here.test": ["ann@x.test"],
    "two@here.test": ["bob@x.test", LATER],
    "three@here.test": [REFUSED],
    "four@here.test": ["-N", "success", "carl@x.test"],
}
REPORTS = {
    "three@here.test": [(REFUSED, "failed", "5.1.1")],
    "four@here.test": [("carl@x.test", "relayed", "2.0.0")],
}
# Who has a message in the end.
EVERYBODY = {"ann@x.test", "bob@x.test", LATER, "carl@x.test", *REPORTS}


class Four(Site):
    """MESSAGES in the queue, as often as they are needed."""

    def __init__(self, forks: Forks, directory: Path) -> None:
        super().__init__(forks, directory, self._answer)
        self.puts_off = True  # the one of LATER
        for sender, arguments in MESSAGES.items():
            self.submit("-f", sender, *arguments)
        self.spool.rename(directory / "prepared")

    def _answer(self, command: bytes) -> bytes | None:
        if command.startswith(b"RCPT TO:<" + REFUSED.encode()):
            return b"550 5.1.1 no such user"
        if command.startswith(b"RCPT TO:<" + LATER.encode()):
            return b"450 4.2.1 later" if self.puts_off else None
        return None

    def prepare(self) -> None:
        """The queue as it was, and a server that knows nothing."""
        shutil.rmtree(self.spool, ignore_errors=True)
        shutil.copytree(self.directory / "prepared", self.spool)
        self.server.messages.clear()
        self.puts_off = True

    def held(self) -> set[str]:
        """Everybody concerned by a message in ``hold``: its recipients, and the sender."""
        concerned = set()
        with RecordingQueue(str(self.spool)) as queue:
            for place in queue.places("hold"):
                entry = queue.claim(place)
                assert entry is not None, queue.reported
                with entry:
                    who = {each.address.decode() for each in entry.envelope.recipients}
                    # It was delivered, which could not be written down.
                    assert who & set(self.copies())
                    concerned |= who | {entry.envelope.sender.decode()}
        return concerned


@pytest.fixture
def site(forks, tmp_path):
    site = Four(forks, tmp_path)
    with site.server:
        yield site


def check_and_complete(site: Four, twice: int, *, may_hold: bool) -> tuple[set[str], set[str]]:
    """A clean run after the one with the fault.  Returns who has it twice, and who is concerned by what is held.

    ``twice``  the most messages (transactions) that may have gone out again
    """
    before = [message.recipients for message in site.server.messages]
    held = site.held()
    assert may_hold or not held
    site.puts_off = False
    done = site.flush("--all")
    assert (done.code in (0, 69), done.stderr) == (True, "")
    copies = site.copies()
    assert {to for to in EVERYBODY - held if not copies[to]} == set()
    assert set(copies) <= EVERYBODY
    for message in site.server.messages:
        if not message.sender:
            assert read_report(message.octets).fates() == REPORTS[message.recipients[0].decode()]
    assert not listing(str(site.spool)).keys() - {"tmp", "hold"}
    again = {to for to, count in copies.items() if count > 1}
    assert set(copies.values()) <= {1, 2}
    assert sum(bool(again.intersection(each.decode() for each in to)) for to in before) <= twice
    return again, held


def calls_of_a_flush(site: Four) -> list[str]:
    """The calls of an undisturbed run, which does all that can be done the first time."""
    site.prepare()
    done = site.flush()
    assert (done.code, done.stderr) == (75, "")
    assert set(site.copies()) == EVERYBODY - {LATER}
    names = [name for name, _ in done.calls]
    assert {*names} >= {
        *("open", "write", "pwrite", "posix_fallocate", "ftruncate", "fsync", "rename", "unlink"),
        *("close", "stat", "fstat"),
    }
    return names


def errors(number: int) -> tuple[int, ...]:
    """What to try at the call of this number: one after the other, in CI all of them."""
    first = number % len(ERRORS)
    return ERRORS if os.environ.get("CI") else ERRORS[first : first + 1]


def changes(calls: list[str]) -> list[int]:
    """The numbers of those that change something."""
    return [number for number, call in enumerate(calls, 1) if call in CHANGES]


def test_each_call_of_a_flush_fails_once(site):
    """Nothing goes out twice; what was delivered and could not be recorded is held."""
    calls = calls_of_a_flush(site)
    kept_back = set()
    for number, call in enumerate(calls, 1):
        for error in errors(number):
            site.prepare()
            fault = Fault(ONCE, number, error)
            done = site.flush(fault=fault)
            what = (fault, call, done)
            assert done.reached(fault), what
            assert (done.code in (0, 69, 75), "internal error" in done.stderr) == (True, False), (
                what
            )
            again, held = check_and_complete(site, 0, may_hold=True)
            assert again == set(), what
            if held:
                kept_back.add(call)
    assert kept_back
    assert kept_back <= {"pwrite", "ftruncate", "fsync"}


def test_the_disk_takes_nothing_more_from_a_change_of_a_flush_on(site):
    """The one message that was being sent at that moment may go out again: there was no way to note that it had.

    The next one had been announced to the server by then, with room for its outcome; its content is not sent.
    """
    calls = calls_of_a_flush(site)
    twice = set()
    for number in changes(calls):
        for error in errors(number):
            site.prepare()
            fault = Fault(FROM_THEN_ON, number, error)
            done = site.flush(fault=fault)
            assert (done.code in (0, 69, 75), "internal error" in done.stderr) == (True, False), (
                fault,
                done,
            )
            again, _ = check_and_complete(site, 1, may_hold=False)
            twice |= again
    assert "ann@x.test" in twice


def test_a_flush_stops_before_each_change(site):
    """As with kill -9: the one message in flight may go out again, and reports are no exception."""
    calls = calls_of_a_flush(site)
    twice = set()
    stopped = 0
    for number in changes(calls):
        site.prepare()
        fault = Fault(STOP, number)
        done = site.flush(fault=fault)
        assert done.code == STOPPED or not done.reached(fault), (fault, done)
        stopped += done.code == STOPPED
        again, _ = check_and_complete(site, 1, may_hold=False)
        twice |= again
    assert stopped > len(changes(calls)) * 0.9
    assert twice >= {"ann@x.test", "three@here.test"}


@pytest.mark.parametrize("new", [True, False], ids=["new spool", "old spool, large message"])
@pytest.mark.parametrize("error", [*ERRORS, 0], ids=[*map(errno.errorcode.get, ERRORS), "stop"])
def test_each_call_of_a_submission(site, error, new):
    """Exit 0 and it is there, or 75 and one line and nothing; a process that stops may have left it, whole."""
    submit = ("sendmail", "-odq", "-f", "me@here.test", "ann@x.test")
    message = MESSAGE if new else MESSAGE + b"x" * 3_000_000
    kept = Counter()

    def submit_into_empty(fault: Fault):
        shutil.rmtree(site.spool, ignore_errors=True)
        if not new:
            RecordingQueue(str(site.spool)).close()
        return site.run(*submit, stdin=message, fault=fault)

    calls = [name for name, _ in submit_into_empty(Fault()).calls]
    assert ("mkdir" in calls) is new
    assert set(calls) >= {"open", "write", "fsync", "stat", "rename", "close"}
    harmless = {"close"} if new else {"close", "posix_fadvise"}
    assert set(calls) >= harmless
    for number, call in enumerate(calls, 1):
        fault = Fault(ONCE if error else STOP, number, error)
        done = submit_into_empty(fault)
        assert done.reached(fault)
        with RecordingQueue(str(site.spool)) as queue:
            messages = list(queue.places("new", "cur", "hold", "failed"))
            for place in messages:
                entry = queue.claim(place)
                assert entry is not None
                with entry:
                    assert b"".join(entry.verified_octets(b"", 0)) == message
        if done.code == STOPPED:
            assert not error
            kept[call] += len(messages)
            continue
        assert error
        assert (done.code, len(messages)) in ((0, 1), (75, 0)), (fault, call, done)
        assert done.stderr.count("\n") == (done.code == 75)
        assert done.stderr.startswith("sendmail: ") or not done.stderr
        # whoever is told to try again can
        assert site.run(*submit, stdin=MESSAGE).code == 0
        kept[call] += len(messages)
    # it is there from the rename on; of what fails nothing but advice and close is harmless
    assert set(+kept) == (harmless if error else {"fsync", "close"})
