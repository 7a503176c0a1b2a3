"""kill -9 of the real flush: the short form of tests/soak/flush_kill.py, which says what is asserted."""

import os
import shutil

import pytest
from soak.flush_kill import Storm, in_flight, sample, whole

pytestmark = [
    pytest.mark.crash,
    pytest.mark.peer,
    pytest.mark.skipif(
        shutil.which("strace") is None and not os.environ.get("CI"),
        reason="strace is not installed",
    ),
]


def test_killed_at_system_calls_of_every_kind(tmp_path):
    with Storm(tmp_path) as storm:
        points = storm.points()
        kinds = {point.kind for point in points}
        assert kinds >= {"sendto", "recvfrom", "fallocate", "pwrite64", "ftruncate", "fsync"}
        assert kinds & {"rename", "renameat", "renameat2"}
        assert kinds & {"unlink", "unlinkat"}
        results = [storm.kill(point) for point in sample(points, of_each=3)]
        storm.check(results)
    # recvfrom is called as often as the server makes it wait, and how many fsyncs of a directory are one depends on the
    # order of the messages; the others are called as often each time.
    missed = {result.round.point.kind for result in results if not result.reached}
    assert missed <= {"recvfrom", "fsync"}
    assert any(result.in_flight for result in results)


MAIL = r"MAIL FROM:<>\r\nRCPT TO:<a@x>\r\nRCPT TO:<b@x>\r\n"
NEXT_MAIL = r"MAIL FROM:<>\r\nRCPT TO:<c@x>\r\n"
CONTENT = r"Received: by x (minisend)\r\n\tid 1a; now\r\n\r\n"
NEXT_CONTENT = r"Received: by x (minisend)\r\n\tid 2b; now\r\n\r\n"


@pytest.mark.parametrize(
    ("calls", "recipients"),
    [
        pytest.param(0, set(), id="nothing yet"),
        pytest.param(2, set(), id="the message is being sent"),
        pytest.param(3, {"a@x", "b@x"}, id="sent"),
        pytest.param(4, {"a@x", "b@x"}, id="acknowledged"),
        pytest.param(5, set(), id="recorded"),
        pytest.param(6, set(), id="durably"),
    ],
)
def test_what_is_in_flight_is_read_from_the_trace(calls, recipients):
    trace = [
        rf'7 sendto(6<socket:[1]>, "{MAIL}DATA\r\n", 9, 0) = 9',
        r'7 recvfrom(6<socket:[1]>, "250 2.1.0 Ok\r\n354 go\r\n", 65536, 0, NULL, NULL) = 65',
        rf'7 sendto(6<socket:[1]>, "{CONTENT}.\r\n", 257, 0, NULL, 0) = 257',
        r'7 recvfrom(6<socket:[1]>, "250 2.0.0 Ok\r\n", 65536, 0, NULL, NULL) = 41',
        r'7 pwrite64(5</queue/new/1a>, "\noutcome\t1\t0-1\t"..., 240, 319) = 240',
        r"7 fsync(5</queue/new/1a>) = 0",
    ]
    killed = [killed_at(trace[calls])] if calls < len(trace) else []
    assert in_flight([*trace[:calls], *killed]) == recipients


@pytest.mark.parametrize(
    ("calls", "recipients"),
    [
        pytest.param(0, set(), id="the first is being sent"),
        pytest.param(1, {"a@x", "b@x"}, id="the second is being sent"),
        pytest.param(2, {"a@x", "b@x", "c@x"}, id="both sent"),
        pytest.param(3, {"c@x"}, id="one removed"),
        pytest.param(4, set(), id="the other recorded"),
    ],
)
def test_several_in_flight(calls, recipients):
    trace = [
        rf'7 sendto(6<socket:[1]>, "{MAIL}BDAT 9 LAST\r\n{CONTENT}RSET\r\n{NEXT_MAIL}", 9, 0) = 9',
        rf'7 sendto(6<socket:[1]>, "BDAT 9 LAST\r\n{NEXT_CONTENT}", 9, 0) = 9',
        r'7 unlinkat(4</queue/new>, "1a", 0) = 0',
        r'7 pwrite64(5</queue/cur/1795479900.2b>, "\noutcome\t1\t0\t"..., 240, 319) = 240',
    ]
    killed = [killed_at(trace[calls])] if calls < len(trace) else []
    assert in_flight([*trace[:calls], *killed]) == recipients


def test_a_thread_that_was_sending_when_another_was_killed_may_have_sent():
    trace = whole(
        [
            rf'8 sendto(6<socket:[1]>, "{NEXT_MAIL}DATA\r\n", 9, 0) = 9',
            rf'8 sendto(6<socket:[1]>, "{NEXT_CONTENT}.\r\n", 257, 0, NULL, 0 <unfinished ...>',
            r"7 flock(5</queue/new/1>, LOCK_EX|LOCK_NB) = ?",
            r"8 <... sendto resumed> <unfinished ...>) = ?",
            r"8 +++ killed by SIGKILL +++",
        ]
    )
    assert in_flight(trace) == {"c@x"}


def killed_at(line):
    """As strace writes a call at whose beginning the process is killed."""
    return line.rpartition(" = ")[0] + " = ?"
