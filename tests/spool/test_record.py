"""The octets of a queue file: what is written can be read, what is torn is told from what is damaged."""

import binascii
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisend.envelope import DELAYED, DELIVERED, FAILED, Envelope, Facts, Outcome, Recipient
from minisend.spool import record
from minisend.spool.record import (
    HEAD_LIMIT,
    MAGIC,
    OUTCOME_ROOM,
    SIZE_OFFSET,
    BrokenRecord,
    Requeue,
    Trailer,
    UnknownVersion,
    escape,
    facts_room,
    format_facts,
    format_head,
    format_line,
    format_outcomes,
    format_ranges,
    format_report,
    format_requeue,
    format_size,
    format_trailer,
    head_crc,
    head_length,
    is_about,
    parse_head,
    parse_ranges,
    parse_tail,
    unescape,
)
from spool.make import envelope

octets = st.binary(max_size=40)
text = octets.map(lambda value: value.decode("utf-8", "surrogateescape"))
times = st.integers(0, 10**13).map(lambda thousandths: thousandths / 1000)

envelopes = st.builds(
    Envelope,
    st.integers(0, 2**64 - 1).map("{:016x}".format),
    octets,
    st.lists(st.builds(Recipient, octets, octets, text), min_size=1, max_size=5),
    arrived=times,
    zone=st.integers(-900, 900),
    uid=st.integers(-1, 2**32 - 1),
    login=octets,
    full_name=octets,
    sender_given=st.booleans(),
    from_headers=st.booleans(),
    body=st.sampled_from(["", "7BIT", "8BITMIME"]),
    ret=text,
    envid=text,
    channel=st.sampled_from(("", "socket", "drop")),
)

TRAILER = Trailer(1234, 56, "0badcafe", "8L", 0x1234)
FACTS = Facts(b"host.example.org", b"example.org", b"A <a@example.org>", b"<1@host.example.org>")
OUTCOMES = [
    Outcome(
        0,
        DELAYED,
        "4.4.1",
        "connection refused",
        remote_mta="mx.example.net[192.0.2.1]:25",
        at=1700000000.125,
    ),
    Outcome(
        1,
        FAILED,
        "5.1.1",
        "no such user",
        remote_mta="mx.example.net[192.0.2.1]:25",
        diagnostic="smtp; 550 5.1.1 no such user",
        command="RCPT TO",
        at=1700000000.25,
    ),
]


@given(envelopes, st.integers(0, 10**14), st.binary(max_size=20))
def test_envelope_round_trip(given_envelope, size, message):
    """What format_head writes, parse_head reads, whatever octets the values hold and whatever follows."""
    head = format_head(given_envelope, size)
    assert head_length(head + message) == len(head)
    assert parse_head(head) == (given_envelope, size)


def test_the_head_in_full():
    given_envelope = Envelope(
        "00112233445566aa",
        b"a\\b@example.org",
        [Recipient(b"root"), Recipient(b"x@example.net", b"X@example.com", "NEVER")],
        arrived=1700000000.5,
        zone=-90,
        uid=1000,
        login=b"ann",
        full_name=b"Ann\nOther",
        sender_given=True,
        from_headers=True,
        body="8BITMIME",
        ret="HDRS",
        envid="e+20x",
        channel="drop",
    )
    assert format_head(given_envelope, 17) == (
        b"minisend-queue 1\n"
        b"size 000000000000017\n"
        b"id 00112233445566aa\n"
        b"arrived 1700000000.500000\n"
        b"zone -90\n"
        b"uid 1000\n"
        b"login ann\n"
        b"name Ann\\x0aOther\n"
        b"sender-given\n"
        b"from-headers\n"
        b"body 8BITMIME\n"
        b"ret HDRS\n"
        b"envid e+20x\n"
        b"channel drop\n"
        b"sender a\\x5cb@example.org\n"
        b"to root\n"
        b"to x@example.net\n"
        b"original X@example.com\n"
        b"notify NEVER\n"
        b"\n"
    )


def test_the_size_can_be_filled_in_later():
    patched = bytearray(format_head(envelope(), 0))
    patched[SIZE_OFFSET : SIZE_OFFSET + len(format_size(0))] = format_size(987654321)
    assert bytes(patched) == format_head(envelope(), 987654321)


def test_every_beginning_of_a_head_has_no_end_yet():
    head = format_head(envelope(recipients=3), 5)
    assert {head_length(head[:cut]) for cut in range(len(MAGIC), len(head))} == {0}


@pytest.mark.parametrize(
    "octets_read", [b"", b"minisend-queu", b"From root\n", b"\0" * 100, b"\nminisend-queue 1\n"]
)
def test_what_is_no_queue_file(octets_read):
    with pytest.raises(BrokenRecord, match="does not begin like a queue file"):
        head_length(octets_read)


@pytest.mark.parametrize("version", [b"2", b"10", b"1.1", b"x"])
def test_another_version_is_not_called_broken(version):
    with pytest.raises(UnknownVersion, match=version.decode()):
        head_length(MAGIC + version + b"\nsize 1\n\n")


def _without(line: bytes) -> bytes:
    return format_head(envelope(), 5).replace(line, b"")


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(_without(b"sender sender@example.org\n"), id="no sender"),
        pytest.param(_without(b"size 000000000000005\n"), id="no size"),
        pytest.param(_without(b"to r0@example.net\n"), id="no recipient"),
        pytest.param(
            format_head(envelope(), 5).replace(b"\nuid 1000\n", b"\nuid 0\nuid 1000\n"),
            id="a line twice above the recipients",
        ),
        pytest.param(
            format_head(envelope(), 5).replace(b"\n\n", b"\nbody 7BIT\n\n"),
            id="a fact below the recipients",
        ),
        pytest.param(_without(b"arrived 1700000000.250000\n"), id="no time"),
        pytest.param(_without(b"5\n"), id="two lines run into one"),
        pytest.param(format_head(envelope(), 5)[:-1] + b"colour red\n\n", id="unknown key"),
        pytest.param(format_head(envelope(), 5)[:-1] + b"uid 0\n\n", id="a key twice"),
        pytest.param(format_head(envelope(), 5)[:-1] + b"to a\\zz\n\n", id="broken escape"),
        pytest.param(
            format_head(envelope(), 5).replace(b"to r0", b"original x\nto r0"),
            id="original of none",
        ),
        pytest.param(format_head(envelope(), 5).replace(b"uid 1000", b"uid root"), id="no number"),
        pytest.param(format_head(envelope(), -5), id="negative size"),
        *[
            pytest.param(
                re.sub(rb"\n%b .*" % key, b"\n%b %b" % (key, value), format_head(envelope(), 5)),
                id=f"{key} {value}",
            )
            for key, value in [
                (b"size", b"1" + b"0" * 15),
                (b"arrived", b"nan"),
                (b"arrived", b"inf"),
                (b"arrived", b"-inf"),
                (b"arrived", b"1e300"),
                (b"arrived", b"1e12"),
                (b"arrived", b"-1"),
                (b"zone", b"1440"),
                (b"zone", b"-1440"),
                (b"zone", b"9" * 100),
                (b"uid", b"-2"),
                (b"uid", b"4294967297"),
                (b"uid", b"9" * 5000),
            ]
        ],
    ],
)
def test_a_head_that_is_not_ours(head):
    with pytest.raises(BrokenRecord):
        parse_head(head)


@given(octets)
def test_escape(value):
    """No control octet and no line end comes out, and nothing is lost."""
    escaped = escape(value)
    assert min(escaped, default=0x20) >= 0x20
    assert 0x7F not in escaped
    assert unescape(escaped) == value


@pytest.mark.parametrize("value", [b"\\", b"\\x", b"\\x1", b"\\n", b"a\\xzzb", b"\\X41", b"x\\"])
def test_unescape_refuses_what_escape_does_not_write(value):
    with pytest.raises(BrokenRecord):
        unescape(value)


@pytest.mark.parametrize(
    ("numbers", "form"),
    [
        ([0], b"0"),
        ([0, 1], b"0-1"),
        ([3, 1, 2, 0], b"0-3"),
        ([0, 1, 2, 3, 7], b"0-3,7"),
        ([1, 3, 5], b"1,3,5"),
        ([9, 10, 99, 100, 101], b"9-10,99-101"),
    ],
)
def test_ranges(numbers, form):
    assert format_ranges(numbers) == form
    assert parse_ranges(form, 102) == sorted(numbers)


@given(st.sets(st.integers(0, 300), min_size=1))
def test_ranges_round_trip(numbers):
    assert parse_ranges(format_ranges(numbers), 301) == sorted(numbers)


def test_a_thousand_recipients_stay_small():
    assert format_ranges(range(1000)) == b"0-999"


@pytest.mark.parametrize("form", [b"5", b"0-5", b"3-2", b"0,5", b"-1", b"0-1-2", b"x", b"", b"1,"])
def test_ranges_outside_the_recipients(form):
    with pytest.raises((BrokenRecord, ValueError)):
        parse_ranges(form, 5)


def _tail(*lines: bytes) -> bytes:
    return format_trailer(TRAILER) + b"".join(lines)


def test_the_tail_in_full():
    tail = _tail(format_facts(FACTS), format_outcomes(1, OUTCOMES))
    assert [line[:-9] for line in tail.split(b"\n")[1::2]] == [
        b"end\t1234\t56\t0badcafe\t8L\t00001234",
        b"facts\thost.example.org\texample.org\tA <a@example.org>\t<1@host.example.org>",
        b"outcome\t1\t0\t1700000000.125\tdelayed\t4.4.1\tmx.example.net[192.0.2.1]:25\t\t\tconnection refused",
        b"outcome\t1\t1\t1700000000.250\tfailed\t5.1.1\tmx.example.net[192.0.2.1]:25\tRCPT TO"
        b"\tsmtp; 550 5.1.1 no such user\tno such user",
    ]
    parsed = parse_tail(tail, envelope(recipients=2))
    assert (parsed.trailer, parsed.facts, parsed.torn, parsed.length) == (
        TRAILER,
        FACTS,
        False,
        len(tail),
    )
    assert parsed.outcomes == [(1, OUTCOMES[0]), (1, OUTCOMES[1])]


# What has less room than others, where an escaped octet takes four.
statuses = st.binary(max_size=4).map(lambda value: value.decode("utf-8", "surrogateescape"))
commands = st.binary(max_size=8).map(lambda value: value.decode("utf-8", "surrogateescape"))
outcomes = st.builds(
    Outcome,
    st.integers(0, 9),
    st.sampled_from([DELAYED, DELIVERED, FAILED]),
    statuses,
    text,
    remote_mta=text,
    diagnostic=text,
    command=commands,
    at=times,
)


@given(
    st.lists(outcomes, unique_by=lambda outcome: outcome.recipient),
    st.builds(Facts, octets, octets, octets, octets),
    st.integers(1, 1000),
)
def test_tail_round_trip(given_outcomes, facts, attempt):
    tail = _tail(format_facts(facts), format_outcomes(attempt, given_outcomes))
    assert len(format_facts(facts)) <= facts_room(facts)
    parsed = parse_tail(tail, envelope(recipients=10))
    assert (parsed.trailer, parsed.facts, parsed.torn, parsed.length) == (
        TRAILER,
        facts,
        False,
        len(tail),
    )
    assert sorted(parsed.outcomes, key=lambda pair: pair[1].recipient) == sorted(
        ((attempt, outcome) for outcome in given_outcomes), key=lambda pair: pair[1].recipient
    )


@pytest.mark.parametrize("octet", [b"x", b"\\"])
def test_facts_take_no_more_room_than_was_said(octet):
    facts = Facts(*[octet * 100] * 4)
    room = len(format_facts(Facts(b"", b"", b"", b""))) + 4 * 400
    assert facts_room(facts) == room
    assert (len(format_facts(facts)) == room) == (octet == b"\\")


def test_a_requeue_in_full():
    """What stands before it stays in the history, in its place."""
    requeue = Requeue(1_700_000_009.5, [0, 1, 2, 4])
    line = format_requeue(requeue)
    assert line[:-10] == b"\nrequeue\t1700000009.500\t0-2,4"
    tail = _tail(
        format_outcomes(1, OUTCOMES[:1]),
        format_report("failure 0"),
        line,
        format_outcomes(1, OUTCOMES[1:]),
    )
    parsed = parse_tail(tail, envelope(recipients=5))
    assert parsed.history == [(1, OUTCOMES[0]), "failure 0", requeue, (1, OUTCOMES[1])]
    assert parsed.outcomes == [(1, OUTCOMES[0]), (1, OUTCOMES[1])]
    assert (parsed.length, parsed.torn) == (len(tail), False)


@pytest.mark.parametrize(
    ("note", "recipients", "about"),
    [
        ("failure 0-3,7", [7], True),
        ("failure 0-3,7", [4, 5, 6], False),
        ("failure 0-3,7", [], False),
        ("delay 0", range(8), True),
    ],
)
def test_whom_a_report_is_about(note, recipients, about):
    assert is_about(note, recipients, 8) == about


@pytest.mark.parametrize("note", ["failure", "failure x", "", "failure 8", "failure \udcff"])
def test_a_report_about_nobody(note):
    with pytest.raises(BrokenRecord):
        is_about(note, [0], 8)


def test_same_outcome_of_many_is_one_line():
    many = [Outcome(n, DELAYED, "4.4.1", "connection refused", at=1.0) for n in range(1000)]
    lines = format_outcomes(7, many)
    assert lines.count(b"outcome") == 1
    assert parse_tail(_tail(lines), envelope(recipients=1000)).outcomes == [
        (7, outcome) for outcome in many
    ]


@given(
    st.lists(st.integers(0, 10**6), unique=True, min_size=1, max_size=8),
    st.booleans(),
    st.sampled_from(["\n", "\\", "é", "x", "\udcff", "€", "\x7f"]),
    st.integers(395, 5000),
    st.integers(1, 10**5),
)
def test_outcome_lines_fit_into_the_room_reserved(recipients, same, letter, length, attempt):
    """However long a reply is: otherwise an attempt could succeed with no room to say so."""
    long = letter * length
    lines = format_outcomes(
        attempt,
        [
            Outcome(
                n,
                DELIVERED,
                long,
                long + ("" if same else str(n)),
                remote_mta=long,
                diagnostic=long,
                command=long,
                at=99998999999.9 + (0 if same else n),
            )
            for n in recipients
        ],
    )
    assert len(lines) <= OUTCOME_ROOM * len(recipients)
    count = max(recipients) + 1
    parsed = parse_tail(_tail(lines), envelope()) if count == 1 else None
    if parsed is not None:
        assert parsed.outcomes[0][1].reason == long[: len(parsed.outcomes[0][1].reason)]


@pytest.mark.parametrize("letter", ["\n", "\\", "é", "x", "€"])
@pytest.mark.parametrize("before", range(5))
def test_a_long_text_is_cut_between_characters(letter, before):
    reason = "x" * before + letter * 500
    line = format_outcomes(1, [Outcome(0, FAILED, "5.0.0", reason, at=1.0)])
    kept = parse_tail(_tail(line), envelope()).outcomes[0][1].reason
    assert reason.startswith(kept)
    assert len(escape(kept.encode())) > 396 - 4


def test_each_text_of_an_outcome_has_a_limit_of_its_own():
    """In octets, escapes included."""
    long = "x" * 1000
    line = format_outcomes(
        1, [Outcome(0, FAILED, long, long, remote_mta=long, diagnostic=long, command=long, at=1.0)]
    )
    [(_, outcome)] = parse_tail(_tail(line), envelope()).outcomes
    assert outcome.action == FAILED
    assert {name: len(getattr(outcome, name)) for name in ("status", "remote_mta", "command")} == {
        "status": 16,
        "remote_mta": 320,
        "command": 32,
    }
    assert (len(outcome.diagnostic), len(outcome.reason)) == (400, 400)


@pytest.mark.parametrize("name", ["a" * 63 + ".b" * 95, "_unix"])
def test_a_server_is_named_in_full(name):
    """A host name of 253 octets, with address and port."""
    server = f"{name}[{'ffff:' * 7}ffff]:65535"
    line = format_outcomes(1, [Outcome(0, FAILED, "5.999.999", "no", remote_mta=server, at=1.0)])
    [(_, outcome)] = parse_tail(_tail(line), envelope()).outcomes
    assert (outcome.remote_mta, outcome.status) == (server, "5.999.999")


def test_what_is_cut_off_is_not_escaped_first(monkeypatch):
    """64 KiB for each of six fields and a thousand recipients would be seconds of work for nothing."""
    seen = []
    monkeypatch.setattr(record, "escape", lambda value: seen.append(len(value)) or escape(value))
    said = "\0" * 65536
    line = format_outcomes(1, [Outcome(0, FAILED, "5.0.0", said, diagnostic=said, at=1.0)])
    assert parse_tail(_tail(line), envelope()).outcomes[0][1].reason == "\0" * 100
    assert max(seen) == 400


def test_torn_at_every_octet():
    """A file cut anywhere is the file before the line that was being written, and can be continued."""
    lines = [
        format_trailer(TRAILER),
        format_facts(FACTS),
        format_outcomes(1, OUTCOMES[:1]),
        format_outcomes(2, OUTCOMES[1:]),
    ]
    tail = b"".join(lines)
    ends = [sum(map(len, lines[:n])) for n in range(len(lines) + 1)]
    given_envelope = envelope(recipients=2)
    for cut in range(len(tail)):
        whole = max(end for end in ends if end <= cut)
        if whole == 0:
            with pytest.raises(BrokenRecord, match="no end mark"):
                parse_tail(tail[:cut], given_envelope)
            continue
        parsed = parse_tail(tail[:cut], given_envelope)
        assert (parsed.length, parsed.torn) == (whole, cut > whole)
        assert parsed.facts == (FACTS if whole >= ends[2] else None)
        assert [attempt for attempt, _ in parsed.outcomes] == [1][: whole >= ends[3]]
        # both ways of going on: after the torn line was cut off, and straight after it
        again = parse_tail(tail[: parsed.length] + lines[3], given_envelope)
        assert again.outcomes[-1] == (2, OUTCOMES[1])


@pytest.mark.parametrize("zeros", [1, 100, 5000])
def test_room_reserved_but_not_used_is_a_torn_tail(zeros):
    tail = _tail(format_outcomes(1, OUTCOMES[:1]))
    parsed = parse_tail(tail + b"\0" * zeros, envelope())
    assert (parsed.length, parsed.torn, len(parsed.outcomes)) == (len(tail), True, 1)
    parsed = parse_tail(tail + b"\noutcome\t2\t0\t17" + b"\0" * zeros, envelope())
    assert (parsed.length, parsed.torn, len(parsed.outcomes)) == (len(tail), True, 1)


def test_a_page_that_never_reached_the_disk_is_a_torn_tail():
    """Power can fail with a later page of one append on the disk and an earlier one not: nothing was fsynced."""
    tail = _tail(format_outcomes(1, OUTCOMES[:1]))
    lost = (
        tail + b"\noutcome\t2\t0\t17" + b"\0" * 4096 + b"rest\n" + format_outcomes(2, OUTCOMES[1:])
    )
    parsed = parse_tail(lost, envelope(recipients=2))
    assert (parsed.length, parsed.torn) == (len(tail), True)
    assert parsed.outcomes == [(1, OUTCOMES[0])]


def test_damage_is_not_taken_for_a_torn_line():
    """One wrong octet in a line with good ones behind it: cutting there would throw records away."""
    first, second = format_outcomes(1, OUTCOMES[:1]), format_outcomes(2, OUTCOMES[1:])
    start = len(format_trailer(TRAILER))
    for at in range(start, start + len(first)):
        tail = bytearray(_tail(first, second))
        tail[at] ^= 1
        with pytest.raises(BrokenRecord):
            parse_tail(bytes(tail), envelope(recipients=2))


def test_a_damaged_last_line_counts_for_nothing():
    first, second = format_outcomes(1, OUTCOMES[:1]), format_outcomes(2, OUTCOMES[1:])
    start = len(_tail(first))
    for at in range(start, start + len(second)):
        tail = bytearray(_tail(first, second))
        tail[at] ^= 1
        parsed = parse_tail(bytes(tail), envelope(recipients=2))
        assert (parsed.length, parsed.torn, len(parsed.outcomes)) == (start, True, 1)


def test_damage_to_the_end_mark():
    for at in range(len(format_trailer(TRAILER))):
        tail = bytearray(_tail(format_outcomes(1, OUTCOMES[:1])))
        tail[at] ^= 1
        with pytest.raises(BrokenRecord):
            parse_tail(bytes(tail), envelope())


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(format_line(b"colour\tred"), id="unknown kind"),
        pytest.param(format_trailer(TRAILER), id="a second end"),
        pytest.param(format_line(b"outcome\t1"), id="too few fields"),
        pytest.param(format_line(b"outcome\t1\t7\t0\tfailed\t5\t\t\t\tx"), id="no such recipient"),
        *[
            pytest.param(format_line(b"outcome\t1\t0\t%b\t5.0.0\t\t\t\tx" % what), id=str(what))
            for what in [
                b"0\tkept",
                b"0\t",
                b"0\tDelivered",
                b"nan\tdelivered",
                b"inf\tdelivered",
                b"-1\tdelivered",
                b"1e300\tdelivered",
            ]
        ],
        pytest.param(format_line(b"outcome\tx\t0\t0\tfailed\t5\t\t\t\tx"), id="no number"),
        pytest.param(format_line(b"facts\ta\tb\tc"), id="facts too few"),
        *[
            pytest.param(format_line(b"requeue\t" + what), id=f"requeue {what!r}")
            for what in (
                b"1",
                b"1\t",
                b"1\t7",
                b"x\t0",
                b"nan\t0",
                b"-1\t0",
                b"1e12\t0",
                b"1\t0\t0",
            )
        ],
        pytest.param(format_line(b"facts\ta\tb\tc\t\\q"), id="broken escape"),
    ],
)
def test_a_valid_line_that_makes_no_sense(line):
    with pytest.raises(BrokenRecord):
        parse_tail(_tail(line), envelope())


def test_a_line_is_closed_by_its_checksum():
    assert format_line(b"text") == b"\ntext %08x\n" % binascii.crc32(b"text")
    assert head_crc(b"text") == binascii.crc32(b"text")


def test_the_largest_envelope_is_beyond_any_command_line():
    """ARG_MAX is 2 MiB, a header with -t 1 MiB; escapes make an octet four."""
    assert HEAD_LIMIT > 4 * (2 + 1) * 1024 * 1024
