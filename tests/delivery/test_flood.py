"""The same message again and again: so many pass, the rest is held, and one person is told once."""

import os
import subprocess
import sys

import pytest

from minisend.config.sections import Config, Limits, Spool
from minisend.delivery.flood import (
    FILE_LIMIT,
    WINDOW,
    Flood,
    Held,
    Verdict,
    control,
    digest,
    notice,
)
from minisend.envelope import Envelope, Recipient
from minisend.spool import disk
from minisend.spool.enqueue import enqueue, new_queue_id
from minisend.spool.entry import Place
from minisend.spool.store import Queue

PASS, HOLD, TELL = Verdict.PASS, Verdict.HOLD, Verdict.HOLD_AND_TELL
NOW = 1_795_440_600.25
TO = [b"r@example.net"]


def name(number):
    return f"{number:08x}00000000"


def judged(
    counter, numbers, *, now=NOW, uid=1000, sender=b"s@example.org", to=TO, subject=b" full"
):
    return [counter.judge(name(number), uid, sender, to, subject, now) for number in numbers]


def state(spool):
    return (spool / "state/flood").read_bytes()


# -- the verdict


def test_a_message_judged_twice_counts_once(tmp_path):
    """A flusher may be stopped between the claim and the attempt, as often as it likes."""
    assert judged(Flood(str(tmp_path), 2), [1, 1, 1, 2, 3, 3]) == [PASS] * 4 + [TELL] * 2


@pytest.mark.parametrize("limit", [1, 2, 10])
def test_so_many_pass_one_is_told_of_the_rest_is_held(tmp_path, limit):
    counter = Flood(str(tmp_path), limit)
    assert judged(counter, range(limit + 4)) == [PASS] * limit + [TELL] + [HOLD] * 3
    # Again, as after a crash: nothing changes.
    assert judged(counter, range(limit + 4)) == [PASS] * limit + [TELL] + [HOLD] * 3
    assert judged(Flood(str(tmp_path), limit), [99]) == [HOLD]


def test_the_file_whole(tmp_path):
    counter = Flood(str(tmp_path), 2)
    judged(counter, [1, 2, 3, 4])
    judged(counter, [5], subject=b" other", now=NOW + 9)
    judged(counter, [6])
    one, other = digest(1000, TO, b"full"), digest(1000, TO, b"other")
    assert state(tmp_path) == (
        b"%b 1795440609 00000005\n%b 1795440600 00000001,00000002,00000003\n" % (other, one)
    )
    assert os.listdir(tmp_path / "state") == ["flood"]
    assert (tmp_path / "state/flood").stat().st_mode == 0o100600


def test_off(tmp_path):
    assert judged(Flood(str(tmp_path), 0), range(5)) == [PASS] * 5
    assert os.listdir(tmp_path) == []


def test_null_reverse_path_is_never_held(tmp_path):
    assert judged(Flood(str(tmp_path), 1), range(5), sender=b"") == [PASS] * 5
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"uid": 1001}, False),
        ({"sender": b"other@example.org"}, True),
        ({"to": [b"R@example.net"]}, False),
        ({"to": [b"r@EXAMPLE.net"]}, True),
        ({"to": [*TO, b"a@example.net"]}, False),
        ({"subject": b"full\n \t"}, True),
        ({"subject": b"Full"}, False),
        ({"subject": b""}, False),
    ],
    ids=str,
)
def test_what_is_the_same(tmp_path, change, same):
    counter = Flood(str(tmp_path), 1)
    judged(counter, [1])
    assert judged(counter, [2], **change) == ([TELL] if same else [PASS])


def test_recipients_in_any_order(tmp_path):
    counter = Flood(str(tmp_path), 1)
    judged(counter, [1], to=[b"a", b"b@x"])
    assert judged(counter, [2], to=[b"b@X", b"a"]) == [TELL]


@pytest.mark.parametrize(
    ("later", "verdict"),
    [
        (WINDOW - 1, HOLD),
        (WINDOW, PASS),
        (-60, HOLD),
        (-WINDOW - 1, PASS),
    ],
    ids=[
        "in the hour",
        "the hour is over",
        "another process's clock",
        "the clock was stepped back",
    ],
)
def test_the_hour_begins_with_the_first(tmp_path, later, verdict):
    counter = Flood(str(tmp_path), 1)
    judged(counter, [1, 2])
    assert judged(counter, [3], now=NOW + later) == [verdict]
    if verdict is PASS:
        assert judged(counter, [4, 5], now=NOW + later) == [TELL, HOLD]


# -- the file


def lines(count, marks=b"00000001"):
    return [b"%032x 1795440600 %b\n" % (number, marks) for number in range(count)]


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\0" * 1000,
        b"\n\n\n",
        b"KEY",
        b"KEY \n",
        b"KEY 1795440600\n",
        b"KEY x 00000001,00000002\n",
        b"KEY 1795440600 0000000g,00000002\n",
        b"KEY 1795440600 000001,000002\n",
        b"KEY 1795440600 00000001,00000002 more\n",
        b"KEY " + b"9" * 5000 + b" 00000001,00000002\n",
        b"KEY 1795440600 00000001,\xff",
    ],
)
def test_a_broken_line_is_none(tmp_path, broken):
    key = digest(1000, TO, b"full")
    (tmp_path / "state").mkdir()
    (tmp_path / "state/flood").write_bytes(broken.replace(b"KEY", key))
    assert judged(Flood(str(tmp_path), 1), [3, 4]) == [PASS, TELL]
    assert b"%b 1795440600 00000003,00000004\n" % key in state(tmp_path)


def test_its_size_has_a_limit_and_the_one_seen_longest_ago_goes(tmp_path):
    before = lines(FILE_LIMIT // 53 + 100)
    (tmp_path / "state").mkdir()
    (tmp_path / "state/flood").write_bytes(b"".join(before))
    judged(Flood(str(tmp_path), 1), [1])
    after = state(tmp_path)
    assert FILE_LIMIT - 53 < len(after) <= FILE_LIMIT
    own = b"%b 1795440600 00000001\n" % digest(1000, TO, b"full")
    assert after == b"".join(before[-(FILE_LIMIT // 53 - 1) :]) + own


def test_a_file_of_any_size_is_not_read_whole(tmp_path):
    (tmp_path / "state").mkdir()
    with open(tmp_path / "state/flood", "wb") as file:
        file.truncate(1 << 40)
    assert judged(Flood(str(tmp_path), 1), [3, 4]) == [PASS, TELL]
    assert len(state(tmp_path)) <= FILE_LIMIT


def test_what_a_killed_process_left_is_replaced(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state/flood.new").write_bytes(b"x")
    assert judged(Flood(str(tmp_path), 1), [3, 4]) == [PASS, TELL]
    assert os.listdir(tmp_path / "state") == ["flood"]


@pytest.mark.parametrize("missing", ["no spool", "a directory", "no writing"])
def test_where_there_is_no_file_messages_pass(tmp_path, monkeypatch, missing):
    spool = tmp_path / "spool"
    if missing != "no spool":
        spool.mkdir()
    if missing == "a directory":
        (spool / "state/flood").mkdir(parents=True)
    if missing == "no writing":

        def refused(fd, octets):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(disk, "write", refused)
    assert judged(Flood(str(spool), 1), [1, 2, 3]) == [PASS] * 3


def test_several_processes_at_once(tmp_path):
    """None is lost and none counted twice: of 8 processes with 25 messages each, 20 pass and one is told of."""
    program = (
        "import sys; from minisend.delivery.flood import Flood\n"
        "sys.stdin.read(1)\n"
        "for n in range(25):\n"
        "    v = Flood(sys.argv[1], 20).judge(f'{int(sys.argv[2]) * 100 + n:08x}', 1, b's', [b'r'], b'x', 1e9)\n"
        "    print(v)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    running = [
        subprocess.Popen(
            [*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(8)
    ]
    for process in running:
        process.stdin.write("x")
        process.stdin.flush()
    said = "".join(process.communicate(timeout=60)[0] for process in running).splitlines()
    assert [process.returncode for process in running] == [0] * 8
    counts = {verdict: said.count(verdict) for verdict in (PASS, TELL, HOLD)}
    assert counts == {PASS: 20, TELL: 1, HOLD: 179}


# -- the notice


def config_for(spool, admin="", limit=2):
    return Config(
        file=None,
        spool=Spool(str(spool)),
        hostname="host.example.org",
        mail_domain="example.org",
        admin=admin,
        limits=Limits(flood=limit),
    )


def envelope(number=3, *, login=b"backup", to=TO, sender=b"cron@example.org"):
    return Envelope(
        name(number),
        sender,
        [Recipient(address) for address in to],
        arrived=NOW,
        zone=60,
        uid=1000,
        login=login,
    )


TEXT = b"""\
This is the mail system at host host.example.org.

uid 1000 (backup) has sent the same message more than 2 times within an
hour. What came after message 2 is held, and so is every further one until
the hour is over; nothing is lost. You are told of this once an hour.

    Subject: disk full
    To: r@example.net
    The first that is held: 0000000300000000

Stop the program that sends them, if that is not what it should do. Then:

    minisend queue --state held    shows what is held
    minisend release ID ...        lets it go out
    minisend rm ID ...             removes it

The limit is the key flood of [limits], now 2.
"""


def test_the_notice_whole(tmp_path):
    told, octets = notice(envelope(), b" disk full", config_for(tmp_path, "admin"), NOW + 5)
    assert told == Envelope(
        new_queue_id(b"0000000300000000 flood"),
        b"",
        [Recipient(b"admin@example.org")],
        arrived=NOW + 5,
        zone=60,
        uid=-1,
    )
    assert octets == (
        b"From: Mail Delivery System <MAILER-DAEMON@example.org>\n"
        b"To: admin@example.org\n"
        b"Subject: Mail held: the same message more than 2 times in an hour\n"
        b"Auto-Submitted: auto-generated\n"
        b"MIME-Version: 1.0\n"
        b"Content-Type: text/plain; charset=us-ascii\n\n" + TEXT
    )


@pytest.mark.parametrize(
    ("admin", "login", "to"),
    [
        ("a@b.example", b"backup", b"a@b.example"),
        ("", b"backup", b"backup@example.org"),
        ("", b"a b", b'"a b"@example.org'),
        ("", b"", b"cron@example.org"),
    ],
)
def test_who_is_told(tmp_path, admin, login, to):
    told, octets = notice(envelope(login=login), b"", config_for(tmp_path, admin), NOW)
    assert [recipient.address for recipient in told.recipients] == [to]
    assert b"\nTo: %b\n" % to in octets


@pytest.mark.parametrize(
    ("subject", "shown"),
    [
        (b"", "(none)"),
        (b" =?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
        (b" Gr\xc3\xbc\xc3\x9fe", "Grüße"),
        (b" =?nonsense?q?x?=", "=?nonsense?q?x?="),
        (b" =?utf-8?b?a?=", "=?utf-8?b?a?="),
        (b" \xff a\n b", "\\xff a b"),
        (b" a\x1b[31mb", "a\\x1b[31mb"),
    ],
)
def test_a_subject_is_shown_as_it_is_read(tmp_path, subject, shown):
    from email import message_from_bytes

    _, octets = notice(envelope(), subject, config_for(tmp_path, "admin"), NOW)
    assert octets.isascii()
    message = message_from_bytes(octets)
    text = message.get_payload(decode=True).decode(message.get_content_charset())
    assert f"\n    Subject: {shown}\n    To: r@example.net\n" in text


def test_of_many_recipients_some_are_shown(tmp_path):
    many = [b"r%d@x.example" % number for number in range(12)]
    _, octets = notice(envelope(to=many), b"x", config_for(tmp_path, "admin"), NOW)
    *_, text = octets.partition(b"    To: r0@x.example, ")
    shown, *_ = text.partition(b"    The first")
    assert shown.split() == [b"r%d@x.example," % n for n in range(1, 10)] + [b"and", b"2", b"more"]


# -- what is done


@pytest.fixture
def queue(tmp_path):
    with Queue(str(tmp_path), create=True) as opened:
        yield opened


def put(queue, number, message=b"Subject: disk full\n\nHelp.\n", **values):
    enqueue(queue.fd, envelope(number, **values), [message], 0)
    return Place("new", name(number))


def controlled(queue, place, config):
    entry = queue.claim(place)
    assert entry is not None
    with entry:
        counter = Flood(config.spool.path, config.limits.flood)
        return control(counter, queue, entry, config, NOW)


def where(queue):
    return {s: sorted(p.queue_id for p in queue.places(s)) for s in ("new", "cur", "hold", "tmp")}


NOTICE = new_queue_id(b"0000000300000000 flood")


def test_held_and_told_once(queue, tmp_path):
    config = config_for(tmp_path, "admin@example.org")
    found = [controlled(queue, put(queue, number), config) for number in range(1, 6)]
    assert found == [None, None, Held(b"admin@example.org", NOTICE), Held(), Held()]
    assert where(queue) == {
        "new": sorted([name(1), name(2), NOTICE]),
        "cur": [],
        "hold": [name(3), name(4), name(5)],
        "tmp": [],
    }
    with queue.claim(Place("new", NOTICE)) as entry:
        assert entry.envelope.sender == b""
        assert b"".join(entry.octets()).endswith(b"\n\n" + TEXT)
    assert controlled(queue, Place("new", NOTICE), config) is None


def test_what_was_released_goes_out(queue, tmp_path):
    config = config_for(tmp_path)
    for number in range(1, 5):
        controlled(queue, put(queue, number, to=[b"a", b"b"]), config)
    with queue.claim(Place("hold", name(4))) as entry:
        assert entry.history == ["flood 0-1"]
        entry.move_to("new")
    assert controlled(queue, Place("new", name(4)), config) is None


def test_what_was_attempted_is_not_judged(queue, tmp_path):
    config = config_for(tmp_path, limit=1)
    controlled(queue, put(queue, 1), config)
    with queue.claim(put(queue, 2)) as entry:
        entry.defer(NOW)
        place = entry.place
    assert controlled(queue, place, config) is None


@pytest.mark.parametrize("call", ["rename", "note"])
def test_a_crash_after_the_notice_does_not_tell_twice(queue, tmp_path, monkeypatch, call):
    config = config_for(tmp_path, "admin")
    for number in (1, 2):
        controlled(queue, put(queue, number), config)
    place = put(queue, 3)

    def crash(*_):
        raise OSError(5, "planted")

    with monkeypatch.context() as patched:
        if call == "note":
            patched.setattr("minisend.spool.entry.Entry.note_reported", crash)
        else:
            # Under the notice's own name, in tmp: as a crash inside of enqueue leaves it.
            patched.setattr("minisend.delivery.notice.enqueue", crash)
            with open(tmp_path / "queue" / "tmp" / NOTICE, "wb"):
                pass
        with pytest.raises(OSError, match="planted"):
            controlled(queue, place, config)
    assert controlled(queue, place, config) == Held(b"admin@example.org", NOTICE)
    assert where(queue) == {
        "new": sorted([name(1), name(2), NOTICE]),
        "cur": [],
        "hold": [name(3)],
        "tmp": [],
    }


@pytest.mark.parametrize(
    "message",
    [b"", b"no header\n", b"Subject:\n disk\n\tfull\n\nx", b"Subject: disk full\r\n\r\n" + b"x" * 2_000_000],
    ids=["empty", "no header", "folded", "large"],
)  # fmt: skip
def test_any_message(queue, tmp_path, message):
    config = config_for(tmp_path, limit=1)
    first = put(queue, 1, b"" if message[:7] != b"Subject" else b"Subject: disk full\n\n")
    assert controlled(queue, first, config) is None
    assert controlled(queue, put(queue, 2, message), config) is not None
