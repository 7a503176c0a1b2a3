"""message/header.py: where the header ends and what its fields are, for every line end and cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.message import header
from minisend.message.header import HEADER_LIMIT, Field, Header, HeaderEnd, find, split


def shape(data: bytes) -> tuple[list[bytes], bytes]:
    """The raw fields, and the raw octets from the body on."""
    got = split(data, complete=True)
    assert not got.too_long
    return [field.raw for field in got.fields], data[got.body :]


TABLE = {
    "plain": (b"To: a\nSubject: b\n\nbody\n", [b"To: a\n", b"Subject: b\n"], b"body\n"),
    "crlf": (b"To: a\r\nSubject: b\r\n\r\nbody\r\n", [b"To: a\n", b"Subject: b\n"], b"body\r\n"),
    "lone cr": (b"To: a\rSubject: b\r\rbody\r", [b"To: a\n", b"Subject: b\n"], b"body\r"),
    "mixed": (b"To: a\rSubject: b\r\nX: c\n\r\nbody\r", [b"To: a\n", b"Subject: b\n", b"X: c\n"], b"body\r"),
    "cr then crlf": (b"To: a\r\r\nbody", [b"To: a\n"], b"body"),
    "folded": (b"To: a,\r\n\tb,\r c\n\nbody", [b"To: a,\n\tb,\n c\n"], b"body"),
    "blank fold": (b"A: 1\n \nB: 2\n\nbody", [b"A: 1\n \n", b"B: 2\n"], b"body"),
    "nul": (b"T\0o: \0a\0\n\0\nbo\0dy", [b"To: a\n"], b"bo\0dy"),
    "mbox": (b"From a@b Mon Jan  1\nTo: a\n\nbody", [b"To: a\n"], b"body"),
    "uucp mbox": (b">From a@b Mon\nFrom c@d Mon\nTo: a\n\nbody", [b"To: a\n"], b"body"),
    "mbox, no header": (b"From a@b Mon Jan  1\n\nbody", [], b"body"),
    "mbox alone": (b"From a@b Mon Jan  1", [], b""),
    "From with obsolete space": (b"From : a\nTo\t : b\n\nbody", [b"From : a\n", b"To\t : b\n"], b"body"),
    "From line after a field": (b"To: a\nFrom here on\n", [b"To: a\n"], b"From here on\n"),
    "leading empty line": (b"\nTo: a\n", [], b"To: a\n"),
    "leading crlf": (b"\r\nbody\r\n", [], b"body\r\n"),
    "no header": (b"just text\nand: more\n", [], b"just text\nand: more\n"),
    "colon in text": (b"Note to all: hello\nsecond\n", [], b"Note to all: hello\nsecond\n"),
    "no name": (b": x\n", [], b": x\n"),
    "leading fold": (b" folded?\nSubject: a\n", [], b" folded?\nSubject: a\n"),
    "byte order mark": (b"\xef\xbb\xbfTo: a\n", [], b"\xef\xbb\xbfTo: a\n"),
    "no empty line": (b"A: 1\nthis is the body\nmore: body\n", [b"A: 1\n"], b"this is the body\nmore: body\n"),
    "end of file in a field": (b"Subject: a\nTo: b", [b"Subject: a\n", b"To: b\n"], b""),
    "end of file after CR": (b"To: b\r", [b"To: b\n"], b""),
    "header only": (b"To: b\n", [b"To: b\n"], b""),
    "empty": (b"", [], b""),
    "empty value": (b"To:\n\n", [b"To:\n"], b""),
    "8-bit value": (b"To: \xff\xc3\xbc\n\n", [b"To: \xff\xc3\xbc\n"], b""),
    "8-bit name": (b"T\xc3\xb6: a\n\n", [], b"T\xc3\xb6: a\n\n"),
    "name longer than a line": (b"x" * 999 + b": a\n", [], b"x" * 999 + b": a\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_table(name: str) -> None:
    data, fields, body = TABLE[name]
    assert shape(data) == (fields, body)


def test_field() -> None:
    (field,) = split(b"rESENT-tO \t: a,\r\n b:c\r\n\r\n", complete=True).fields
    assert field == Field(b"rESENT-tO", b"rESENT-tO \t: a,\n b:c\n")
    assert (field.value, field.empty) == (b" a,\n b:c", False)
    assert field.is_(b"resent-to")
    assert not field.is_(b"to")
    assert field != Field(b"resent-to", field.raw)
    assert repr(field) == "Field(b'rESENT-tO', b'rESENT-tO \\t: a,\\n b:c\\n')"


@pytest.mark.parametrize("value", [b"", b" ", b"\n \n\t"])
def test_empty_field(value: bytes) -> None:
    assert Field(b"To", b"To:" + value + b"\n").empty


def test_find() -> None:
    got = split(b"To: a\nX: b\nTO: c\n\n", complete=True)
    assert [field.raw for field in find(got.fields, b"to")] == [b"To: a\n", b"TO: c\n"]
    assert find(got.fields, b"cc") == []
    assert repr(got) == (
        "Header([Field(b'To', b'To: a\\n'), Field(b'X', b'X: b\\n'), Field(b'TO', b'TO: c\\n')], "
        "18, too_long=False)"
    )


LONG = b"X-Long: " + b"x" * 100 + b"\n"


def test_the_limit_is_told_and_nothing_is_read() -> None:
    data = b"From a@b Mon\n" + LONG * (HEADER_LIMIT // len(LONG) + 1) + b"\nbody\n"
    told = Header([], len(b"From a@b Mon\n"), too_long=True)
    assert split(data, complete=True) == told
    assert split(data[:HEADER_LIMIT], complete=False) == told
    assert split(data[: HEADER_LIMIT + 5], complete=False) == told


def test_a_field_name_cut_by_the_limit_is_not_taken_for_body() -> None:
    """The Bcc field would go out in the body."""
    first = b"A: " + b"x" * (HEADER_LIMIT - 6) + b"\n"
    data = first + b"Bcc: secret@x\n\nbody\n"
    assert split(data, complete=True) == Header([], 0, too_long=True)
    assert split(data[:HEADER_LIMIT], complete=False) == Header([], 0, too_long=True)


def test_a_message_that_ends_at_the_limit_is_too_long_for_all() -> None:
    """A reader that has the limit's octets stops there: it cannot know that no more follow."""
    data = b"A: ".ljust(HEADER_LIMIT, b"x")
    assert split(data, complete=True) == Header([], 0, too_long=True)
    assert split(data[:-1], complete=True) == Header(
        [Field(b"A", data[:-1] + b"\n")], len(data) - 1
    )


@pytest.mark.parametrize("complete", [True, False])
def test_a_header_just_below_the_limit_is_read(complete: bool) -> None:
    fields = b"A: " + b"x" * (HEADER_LIMIT - 6) + b"\n"
    data = fields + b"\n" + b"body" * 1000
    assert len(fields) == HEADER_LIMIT - 2
    assert split(data, complete=complete) == Header([Field(b"A", fields)], HEADER_LIMIT - 1)


@pytest.mark.parametrize("text", [b"one line without a colon ", b"A" * 25, b"\n" + b"A: b\n" * 5])
def test_a_long_text_without_header_is_all_body(text: bytes) -> None:
    data = text + text[-25:] * (HEADER_LIMIT // 20)
    start = 1 if text.startswith(b"\n") else 0
    assert split(data, complete=True) == Header([], start)
    assert split(data[:HEADER_LIMIT], complete=False) == Header([], start)


class Counted(bytearray):
    """Octets that count how many of them are searched."""

    searched = 0

    def find(self, wanted, start=0, end=None):  # type: ignore[no-untyped-def]
        end = len(self) if end is None else end
        found = super().find(wanted, start, end)
        self.searched += max((found if found >= 0 else end) - start, 0) + 1
        return found


@pytest.mark.parametrize("line", [b"A: b\r", b"A: b\n", b"A: b\r\n", b"\0\r", b"A: " + b"b" * 400])
def test_lines_cost_what_they_are_long(line: bytes) -> None:
    """A row of one kind of line end must not make each search run to the end of the data."""
    data = Counted(line * 500)
    for _ in header._lines(data, 0, True):
        pass
    assert data.searched <= 3 * len(data) + 10


@pytest.mark.parametrize("line", [b"A: b\r", b"A: b\n", b"A: b\r\n", b"A: " + b"b" * 400])
def test_a_reader_that_gets_single_octets_searches_each_once(line: bytes) -> None:
    end = HeaderEnd()
    data = Counted()
    for octet in line * 20:
        data.append(octet)
        assert not end.reached(data)
    assert data.searched <= 20 * len(data)


@pytest.mark.parametrize(
    ("pieces", "reached"),
    [
        ([b"To: a\n", b"\n"], 2),
        ([b"To: a\r\n", b"\r", b"\n"], 3),
        ([b"To: a\r", b"\r", b"b"], 3),
        ([b"To: a\r\n\r\nbody"], 1),
        ([b"To: a", b"\ntext", b" goes on", b"\n"], 4),
        ([b"To: a\n", b" text", b"\n", b"X: b\r", b"\n"], 0),
        ([b"From a@b\n", b"Su", b"bject: c\n", b"\0", b"\n"], 5),
        ([b"\n"], 1),
        ([b"no header\n"], 1),
        ([b"no header"], 0),
    ],
    ids=repr,
)
def test_reader_stops_as_soon_as_it_can(pieces: list[bytes], reached: int) -> None:
    """``reached``: the number of pieces after which the header is known, 0 when it never is."""
    end = HeaderEnd()
    read = bytearray()
    told = 0
    for number, piece in enumerate(pieces, 1):
        read += piece
        if end.reached(read):
            told = number
            break
    assert told == reached


def test_the_reader_stops_at_the_limit() -> None:
    end = HeaderEnd()
    data = bytearray(b"A: ".ljust(HEADER_LIMIT - 1, b"x"))
    assert not end.reached(data)
    data += b"x"
    assert end.reached(data)


PIECES = [
    b"\n",
    b"\r",
    b"\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b"A",
    b"To: a",
    b"From x",
    b">From x",
    b"\xff",
    b"\n\n",
]
MESSAGES = st.lists(st.sampled_from(PIECES), max_size=16).map(b"".join)


def model(data: bytes) -> tuple[list[bytes], bytes]:
    """The table of the module's docstring, on text whose line ends are already one LF each."""
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\0", b"").split(b"\n")
    last = lines.pop()
    lines = [line + b"\n" for line in lines] + ([last] if last else [])
    fields: list[bytes] = []
    for at, line in enumerate(lines):
        text = line.rstrip(b"\n")
        name, colon, _ = text.partition(b":")
        name = name.rstrip(b" \t")
        if not text:
            return fields, b"".join(lines[at + 1 :])
        if text[:1] in (b" ", b"\t") and fields:
            fields[-1] += text + b"\n"
        elif colon and name and all(32 < octet < 127 for octet in name):
            fields.append(text + b"\n")
        elif not fields and text.removeprefix(b">").startswith(b"From "):
            continue
        else:
            return fields, b"".join(lines[at:])
    return fields, b""


@settings(max_examples=200, deadline=None)
@given(MESSAGES)
def test_equal_to_the_model(data: bytes) -> None:
    fields, body = shape(data)
    body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\0", b"")
    assert (fields, body) == model(data)


LINES = [
    b"To: a",
    b"Cc :b",
    b"X-Y:",
    b" c",
    b"\td",
    b"",
    b"A\0: b",
    b"A: b\r",
    b"\xc3\xa4: b",
    b"From x",
    b":",
]


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.one_of(st.just(LINES[0]), st.sampled_from(LINES)), max_size=6),
    st.lists(st.sampled_from([b"\n", b"\r\n"]), min_size=8, max_size=8),
    st.booleans(),
    st.integers(4, 40),
)
def test_the_short_way_leads_where_the_long_one_does(
    lines: list[bytes], ends: list[bytes], same: bool, limit: int
) -> None:
    ends = ends[:1] * 8 if same else ends
    data = b"".join(line + end for line, end in zip([*lines, b"", b"body"], ends, strict=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(header, "HEADER_LIMIT", limit)
        patch.setattr(header, "LINE_LIMIT", 4)
        assert split(data, complete=True) == header._split_any(data, complete=True)


def test_most_headers_take_the_short_way() -> None:
    for end in (b"\n", b"\r\n"):
        data = end.join([b"To: a", b"Subject: b", b" c", b"", b"body\0", b"\r", b""])
        found = header._split_plain(data)
        assert found is not None
        assert found == Header(
            [Field(b"To", b"To: a\n"), Field(b"Subject", b"Subject: b\n c\n")],
            data.index(b"body"),
        )


@settings(max_examples=200, deadline=None)
@given(MESSAGES, st.lists(st.integers(1, 5), max_size=40), st.integers(4, 60))
def test_the_reader_and_the_limit_do_not_depend_on_the_pieces(
    data: bytes, cuts: list[int], limit: int
) -> None:
    """What -t sees after reading just enough is what delivery sees with the whole message at hand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(header, "HEADER_LIMIT", limit)
        patch.setattr(header, "LINE_LIMIT", 6)
        whole = split(data, complete=True)
        end = HeaderEnd()
        read = bytearray()
        for size in [*cuts, len(data) or 1]:
            read += data[len(read) : len(read) + size]
            if end.reached(read):
                assert split(bytes(read), complete=False) == whole
                return
        assert bytes(read) == data
        assert len(data) < limit
        assert not whole.too_long
