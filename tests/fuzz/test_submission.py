"""Whole submissions, in this process and as processes: who gets the message, and that nothing else slips in.

Well-formed input is generated together with the addresses that have to come out of it; the structure that made the text
is the oracle, not another parser.  Any other input ends in a clean envelope or in a MinisendError.  Whatever was
accepted goes out without Bcc, without a header field that nobody gave, and with CRLF for every line end.
"""

import os
import posix
import time
from typing import NamedTuple

import pytest
from delivery.program import Program
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minisend.address import check
from minisend.config.load import load
from minisend.config.submission import SubmissionFacts
from minisend.delivery.outgoing import Outgoing
from minisend.envelope import Envelope
from minisend.errors import DataError, UsageError
from minisend.message.complete import complete, facts_for
from minisend.message.header import split
from minisend.smtp.wire import wire
from minisend.spool.record import format_head, parse_head
from minisend.spool.store import Queue
from minisend.submit import command
from minisend.submit.options import parse

_ALL = settings.default.max_examples
_MANY = settings(max_examples=6 * _ALL, suppress_health_check=[HealthCheck.too_slow])
_PROCESSES = settings(max_examples=_ALL // 2, suppress_health_check=[HealthCheck.too_slow])

_FACTS = SubmissionFacts(
    None,
    "/nowhere",
    max_message_size=50 << 20,
    min_free=16 << 20,
    min_free_inodes=100,
    sync="group",
    socket=None,
    drop=None,
)


def submitted(
    arguments: list[bytes], pieces: list[bytes], name: bytes = b""
) -> tuple[Envelope, bytes]:
    """Envelope and octets that would be queued; all of a submission but the system calls around it."""
    taken: list[tuple[Envelope, bytes]] = []

    def take(
        facts: SubmissionFacts,
        submission: bytes,
        envelope: Envelope,
        message: "list[bytes]",
        size: int,
        *,
        later: bool,
    ) -> None:
        taken.append((envelope, b"".join(message)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(posix, "umask", lambda mask: 0)
        patch.setattr(time, "time", lambda: 1_700_000_000.25)
        patch.setitem(posix.environ, b"NAME", name)
        patch.setattr(command, "submission_facts", lambda *_: _FACTS)
        patch.setattr(command, "stop_on_signals", list)
        patch.setattr(command, "pieces", lambda: iter(pieces))
        patch.setattr(command, "hand_over", take)
        patch.setattr(command, "start_delivery", lambda *_: None)
        assert command.submit(parse([os.fsdecode(each) for each in arguments]), None) == 0
    [(envelope, octets)] = taken
    return envelope, octets


# -- what holds for every message that was accepted


def assert_clean(envelope: Envelope, stored: bytes) -> None:
    """``stored`` is the queue file up to the empty line: one line a value, none of which holds a line end or NUL."""
    values = [envelope.sender, envelope.login, envelope.full_name]
    values += [text.encode() for text in (envelope.body, envelope.ret, envelope.envid)]
    for recipient in envelope.recipients:
        check(recipient.address)
        values += [recipient.address, recipient.original, recipient.notify.encode()]
    if envelope.sender:
        check(envelope.sender)
    for value in values:
        assert not set(value) & set(b"\r\n\0")
    assert not set(stored) & set(b"\r\0")
    lines = stored.removesuffix(b"\n\n").split(b"\n")
    optional = (b"sender-given", b"from-headers", b"body", b"ret", b"envid", b"notify")
    keys = [line.partition(b" ")[0] for line in lines]
    assert [key for key in keys if key not in optional] == [
        *(b"minisend-queue", b"size", b"id", b"arrived", b"zone", b"uid", b"login", b"name", b"sender"),
        *[b"to"] * len(envelope.recipients),
    ]  # fmt: skip


_REMOVED = {b"bcc", b"resent-bcc", b"return-path", b"content-length"}
_REQUIRED = (b"date", b"from", b"message-id")


def assert_pure(octets: bytes, header: bytes, body: bytes) -> None:
    """``header`` and ``body`` go out for ``octets``: see the first paragraph of this file."""
    came = split(octets, complete=True)
    out = split(header, complete=True)
    assert not set(header) & set(b"\r\0")
    if not came.too_long:
        assert header.endswith(b"\n\n") and out.body == len(header)
        kept = [
            field
            for field in came.fields
            if field.name.lower() not in _REMOVED
            and not (field.empty and field.name.lower().removeprefix(b"resent-") in _REQUIRED)
        ]
        added = [b"received"]
        has = {field.name.lower() for field in kept}
        added += [name for name in _REQUIRED if name not in has]
        if any(field.name.lower().startswith(b"resent-") for field in came.fields):
            resent = [b"resent-" + name for name in _REQUIRED]
            added += [name for name in resent if name not in has]
        names = [field.name.lower() for field in out.fields]
        assert sorted(names) == sorted(added + [field.name.lower() for field in kept])
        assert not _REMOVED & set(names)
    sent = b"".join(wire([header, body]))
    assert not set(sent.replace(b"\r\n", b"")) & set(b"\r\n\0")
    assert sent.endswith(b"\r\n.\r\n") and sent.count(b"\r\n.\r\n") == 1


def assert_goes_out(envelope: Envelope, octets: bytes) -> None:
    stored = format_head(envelope, len(octets))
    assert_clean(envelope, stored)
    assert parse_head(stored) == (envelope, len(octets))
    header = split(octets, complete=True)
    facts = facts_for(envelope, b"host.example", b"example.org")
    assert_pure(octets, complete(header, envelope, facts), octets[header.body :])


# -- a generator of well-formed messages: each piece knows what has to come out of it


class Wanted(NamedTuple):
    """An address as it has to come out; ``domain`` is b"" for a bare name."""

    local: bytes
    domain: bytes

    @property
    def address(self) -> bytes:
        return self.local + b"@" + self.domain if self.domain else self.local


def each_once(wanted: list[Wanted]) -> list[bytes]:
    """The first of each mailbox, domains compared case-blind."""
    first: dict[tuple[bytes, bytes], bytes] = {}
    for one in wanted:
        first.setdefault((one.local, one.domain.lower()), one.address)
    return list(first.values())


_FOLDED = st.sampled_from(
    [
        *(b"", b"", b"", b"", b" ", b"\t", b"\n ", b"\r\n\t", b"\r\n  \n "),
        *(b"(c)", b" (a (b\\)) , <x@y>; \\( (\xc3\xbc)) ", b"\n (:;\n @z) "),
    ]
)
_ATOMS = st.sampled_from([b"a", b"b", b"A", b"-x", b"=?utf-8?q?x?=", "jö".encode()]) | st.text(
    "abXY019!#$%&'*+-/=?^_`{|}~", min_size=1, max_size=5
).map(str.encode)
_DOTTED = st.lists(_ATOMS, min_size=1, max_size=3)
_LITERALS = [b"[127.0.0.1]", b"[x:1,a@b]", b"[IPv6:2001:db8::1]", b'[x:"@,;]']


@st.composite
def _words(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A local part: (as written, as it has to come out)"""
    if draw(st.integers(0, 3)):
        words = draw(_DOTTED)
        written = [b'"' + word + b'"' if not draw(st.integers(0, 3)) else word for word in words]
        return (draw(_FOLDED) + b"." + draw(_FOLDED)).join(written), b".".join(words)
    inside = draw(
        st.sampled_from([b"x@A", b"x@a", b"o d", b"a,b", b'"', b"\\", b">", b".", b"a..b", b"Bcc:"])
    )
    wanted = b'"' + inside.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
    every = b'"' + b"".join(b"\\%c" % octet for octet in inside) + b'"'
    return draw(st.sampled_from([wanted, every])), wanted


@st.composite
def _specs(draw: st.DrawFn) -> tuple[bytes, Wanted]:
    written, local = draw(_words())
    kind = draw(st.sampled_from(["bare", "name", "name", "name", "literal"]))
    if kind == "bare":
        return written, Wanted(local, b"")
    at = draw(_FOLDED) + b"@" + draw(_FOLDED)
    if kind == "literal":
        literal = draw(st.sampled_from(_LITERALS))
        spaced = literal[:1] + b" " + literal[1:-1] + b"\t]"
        return written + at + draw(st.sampled_from([literal, spaced])), Wanted(local, literal)
    labels = draw(st.sampled_from([[b"c", b"example"], [b"C", b"Example"]]) | _DOTTED)
    final = b"." if not draw(st.integers(0, 5)) else b""
    dot = draw(_FOLDED) + b"." + draw(_FOLDED)
    return written + at + dot.join(labels) + final, Wanted(local, b".".join(labels))


_PHRASES = [
    *(b"Joe", b"J. R. Doe", b'"Doe, J <x@y>; \\" ("', b"=?utf-8?q?=C3=BC=2C_x=40y?=", b"a@b"),
    *(b"=?iso-8859-1?B?PGFAYj4=?=\n =?utf-8?Q?=2C_y?= x", "Zoë ü".encode(), b"\xe9", b'""', b'A"b"c'),
]  # fmt: skip


@st.composite
def _members(draw: st.DrawFn) -> tuple[bytes, list[Wanted]]:
    spec, wanted = draw(_specs())
    shape = draw(st.sampled_from(["bare", "bare", "angle", "named", "route"]))
    if shape != "bare":
        route = b"@r1.example , @[10.0.0.1]:" if shape == "route" else b""
        spec = b"<" + draw(_FOLDED) + route + draw(_FOLDED) + spec + draw(_FOLDED) + b">"
    if shape == "named":
        spec = draw(st.sampled_from(_PHRASES)) + draw(_FOLDED) + b" " + spec
    return draw(_FOLDED) + spec + draw(_FOLDED), [wanted]


_EMPTY = _FOLDED.map(lambda space: (space, list[Wanted]()))


@st.composite
def _lists(draw: st.DrawFn, at_least: int = 0) -> tuple[bytes, list[Wanted]]:
    """An address list: (as written, who is in it); ``at_least`` that many members that are an address."""
    pieces = [draw(_members()) for _ in range(at_least)]
    for _ in range(draw(st.integers(0, 2))):
        if draw(st.integers(0, 4)):
            pieces.append(draw(_members() | _EMPTY))
        else:
            inner = draw(st.lists(_members() | _EMPTY, max_size=2))
            name = draw(st.sampled_from([b"undisclosed-recipients", b'"My, friends"', b"A B."]))
            text = name + draw(_FOLDED) + b":" + b",".join(text for text, _ in inner) + b";"
            pieces.append((text + draw(_FOLDED), [one for _, wanted in inner for one in wanted]))
    pieces = draw(st.permutations(pieces))
    joined = b",".join(text for text, _ in pieces)
    return joined, [one for _, wanted in pieces for one in wanted]


_RECIPIENT_FIELDS = [b"To", b"Cc", b"BCC", b"bcc", b"to", b"To ", b"Bcc\t"]
_RESENT_FIELDS = [b"Resent-To", b"resent-cc", b"Resent-Bcc", b"Resent-BCC "]
_OTHERS = [
    *(b"Subject: To: z@z", b"From: f@z", b"From: f, root", b"Reply-To: z@z", b"X-To: z@z", b"Sender: z"),
    *(b"Apparently-To: z@z", b"Received: from z", b"Resent-From: z@z", b"Message-ID: <z@z>", b"Date:"),
    *(b"Return-Path: <z@z>", b"Content-Length: 3", b"X: a\n b\r\n\tBcc: z@z", b"To-Do: \xff\xfe", b"From:"),
]  # fmt: skip


class Case(NamedTuple):
    """``recipients``  those that have to come out, in order"""

    arguments: list[bytes]
    pieces: list[bytes]
    recipients: list[bytes]


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    """A command line and a message that together name at least one recipient."""
    from_headers = draw(st.booleans())
    named = [
        draw(_lists(at_least=1)) for _ in range(draw(st.integers(0 if from_headers else 1, 3)))
    ]
    header: list[bytes] = []
    plain: list[Wanted] = []
    resent: list[Wanted] | None = None
    kinds = st.lists(st.sampled_from(["plain", "plain", "other", "resent"]), max_size=4)
    for kind in [*draw(kinds), *([] if named else ["last"])]:
        if kind == "other":
            header.append(draw(st.sampled_from(_OTHERS)))
            continue
        if kind == "last":
            kind = "plain" if resent is None else "resent"
            text, wanted = draw(_lists(at_least=1))
        else:
            text, wanted = draw(_lists())
        field = draw(st.sampled_from(_RECIPIENT_FIELDS if kind == "plain" else _RESENT_FIELDS))
        header.append(field + b":" + draw(st.sampled_from([b"", b" ", b"\n "])) + text)
        if kind == "plain":
            plain += wanted
        else:
            resent = (resent or []) + wanted
    line_end = draw(st.sampled_from([b"\n", b"\r\n"]))
    message = b"".join(line + line_end for line in header)
    if draw(st.booleans()):
        message = b"From root Mon Nov 23 2026" + line_end + message
    if draw(st.integers(0, 4)):
        message += line_end + draw(st.sampled_from(_BODIES))
    else:
        message = message.removesuffix(line_end)

    recipients = [one for _, wanted in named for one in wanted]
    if from_headers:
        recipients += plain if resent is None else resent
    arguments = draw(st.sampled_from([[b"-ti"], [b"-t", b"-oi"]] if from_headers else [[b"-i"]]))
    return Case(
        [*arguments, b"--", *(text for text, _ in named)],
        draw(_cut(message)),
        each_once(recipients),
    )


_BODIES = [
    *(b"", b"To: z@z\nBcc: z@z\n", b".\nDATA\r\n.\r\n", b"a\r\n.\r\nMAIL FROM:<z@z>\r\n", b"a\n..\n.b\n"),
    *(b"bare\rCR\r.\r", b"N\0UL\0\n\0.\n", b"\n.\0\n", b"\r\0\n.\r\0\n", b"no end", b"\xff" * 1200, b"\n\n\n"),
]  # fmt: skip


@st.composite
def _cut(draw: st.DrawFn, octets: bytes) -> list[bytes]:
    """The octets as read calls may give them."""
    cuts = sorted(draw(st.lists(st.integers(0, len(octets)), max_size=4)))
    bounds = zip([0, *cuts], [*cuts, len(octets)], strict=True)
    return [octets[start:end] for start, end in bounds if end > start]


@_MANY
@given(_cases())
@example(Case([b"--", b'"x@A"', b'"x@a", "x@A"'], [], [b'"x@A"', b'"x@a"']))
@example(Case([b"-t"], [b'To: a@[x:"@A]\nCc: a@[X:"@a]\n'], [b'a@[x:"@A]']))
def test_exactly_the_addresses_that_were_put_in(case: Case) -> None:
    envelope, octets = submitted(case.arguments, case.pieces)
    assert [recipient.address for recipient in envelope.recipients] == case.recipients
    assert octets == b"".join(case.pieces)
    assert_goes_out(envelope, octets)


@_MANY
@given(_specs(), _FOLDED, st.sampled_from([b"-f", b"-r"]))
def test_exactly_the_sender_that_was_put_in(
    spec: tuple[bytes, Wanted], space: bytes, option: bytes
) -> None:
    text, wanted = spec
    for written in (text, space + b"<" + text + b">", b"Joe (x) <" + text + b">" + space):
        envelope, octets = submitted([option, written, b"b@c"], [b"Hello.\n"])
        assert (envelope.sender, envelope.sender_given) == (wanted.address, True)
        assert_goes_out(envelope, octets)


# -- hostile input

_INJECTIONS = st.sampled_from(
    [
        *(b"a@b", b"<a@b>", b"a@b>\r\nRCPT TO:<z@z", b"a@b\nto z@z", b"a@b\n\nBcc: z@z", b"a\0@b", b"\r"),
        *(b'"a\r\nb"@c', b'"a\n b"@c', b'"\\\n"@c', b"(\n)a@b", b"a@[\r\n ]", b"a@[1\r\n 2]", b"\\\r@b"),
        *(b"x\nBcc: z@z", b"x\r\n\r\nbody", b"x\rBcc: z@z", b"a@b\xe2\x80\xa8", b"\xc2\x85", b"\x0b\x0c\x1c"),
        *(b"<>", b"", b" ", b"-", b"a:;", b"@a:b@c", b"<@a:b@c>", b"=?utf-8?q?=0D=0ABcc:_z=40z?= <a@b>"),
    ]
)  # fmt: skip
_OCTETS = _INJECTIONS | st.binary(max_size=20)
_HEADS = st.lists(
    st.sampled_from(
        [
            *(b"To", b"Cc", b"Bcc", b"Resent-To", b"From", b"Resent-Bcc", b"Date", b"Resent-Date", b"X"),
            *(b":", b": ", b" : ", b"\n", b"\r\n", b"\r", b"\n ", b"\0", b"\n\n", b"From x\n", b"a@b", b","),
            *(b"(", b")", b'"', b"\\", b"<", b">", b"@", b";", b".", b"\n.\n", b"\r.\r", b"[", b"]"),
        ]
    )
    | _OCTETS,
    max_size=20,
)  # fmt: skip


@_MANY
@given(
    st.lists(st.sampled_from([b"-t", b"-i", b"-oi", b"-v", b"-oeq"]), max_size=2),
    st.lists(
        st.tuples(st.sampled_from([b"-f", b"-r", b"-F", b"-V", b"-N", b"-R", b"-B"]), _OCTETS),
        max_size=2,
    ),
    st.lists(_OCTETS, max_size=2),
    _HEADS,
    _OCTETS,
)
@example([b"-t"], [(b"-F", b"x\r\nBcc: z@z")], [], [b"To: a@b\n"], b"")
@example([], [], [b"a@b"], [], b"x\nBcc: z@z")
def test_whatever_the_octets(
    flags: list[bytes],
    values: list[tuple[bytes, bytes]],
    words: list[bytes],
    pieces: list[bytes],
    name: bytes,
) -> None:
    """A refusal in words, or a message that holds what this file begins with."""
    arguments = [*flags, *(each for pair in values for each in pair), b"--", *words]
    pieces = [piece for piece in pieces if piece]
    try:
        envelope, octets = submitted(arguments, pieces, name)
    except (UsageError, DataError):
        return
    assert_goes_out(envelope, octets)


# -- as processes, through the queue


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(tmp_path_factory.mktemp("submission"), "")


@_PROCESSES
@given(_cases())
def test_as_a_process(program: Program, case: Case) -> None:
    """What the queue holds and what an attempt would send."""
    message = b"".join(case.pieces)
    program.sendmail(*case.arguments, stdin=message)
    config = load(str(program.config), {}, os.getuid(), os.geteuid())
    with Queue(str(program.spool)) as queue:
        [place] = queue.places("new")
        path = f"{program.spool}/queue/new/{place.name}"
        with open(path, "rb") as file:
            stored = file.read().partition(b"\n\n")[0]
        entry = queue.claim(place)
        assert entry is not None
        with entry:
            outgoing = Outgoing(entry, config)
            octets = b"".join(outgoing.octets())
            envelope = entry.envelope
        os.unlink(path)
    assert [recipient.address for recipient in envelope.recipients] == case.recipients
    assert_clean(envelope, stored)
    assert octets.startswith(outgoing.header)
    assert_pure(message, outgoing.header, octets.removeprefix(outgoing.header))
