"""message/convert.py, mime.py and transport.py: what comes out is 7-bit, short-lined and means the same.

The judge is the standard library's ``email``: the tree of parts and what each leaf decodes to.
"""

import email
import email.header
import email.message
import quopri
import re
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minisend.message.convert import LINES, NOTHING, SEVEN_BIT, CannotConvert, needs, plan
from minisend.message.header import Field
from minisend.message.transport import fit, fold

UMLAUT = "Grüße".encode()
LONG = b"word " * 300 + b"end"


def converted(
    message: bytes, need: str = SEVEN_BIT, pieces: Iterable[bytes] | None = None
) -> bytes:
    """The message after conversion, or as it is when none is needed."""
    source = list(pieces) if pieces is not None else [message]
    conversion = plan(lambda: source, need)
    if conversion is None:
        return message
    result = b"".join(conversion.octets())
    assert conversion.wire_size() == len(result.replace(b"\n", b"\r\n")) + 2 * (
        not result.endswith(b"\n")
    )
    return result


def normal(octets: bytes) -> bytes:
    return octets.replace(b"\0", b"").replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def leaves(message: bytes) -> list[tuple[str, bytes]]:
    """Type and decoded content, line ends normalised, of each leaf in order; containers with their type alone."""

    def walk(part: email.message.Message) -> Iterator[tuple[str, bytes]]:
        if part.is_multipart():
            yield part.get_content_type(), b""
            for child in part.get_payload():
                yield from walk(child)
        else:
            quoted = str(part["Content-Transfer-Encoding"]).lower() == "quoted-printable"
            if quoted:
                part.replace_header("Content-Transfer-Encoding", "8bit")
            payload = part.get_payload(decode=True)
            assert isinstance(payload, bytes)
            if quoted:
                # RFC 2045 section 6.7 would have both "=" as they are; the library takes two for one.
                payload = quopri.decodestring(payload.replace(b"==", b"=3D=3D"))
            yield part.get_content_type(), normal(payload)

    return list(walk(email.message_from_bytes(normal(message))))


def longest(message: bytes) -> int:
    return max(map(len, message.split(b"\n")))


TABLE = {
    "utf-8 without MIME": (
        b"Subject: x\n\n" + UMLAUT + b"\n",
        b"Subject: x\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n"
        b"Content-Transfer-Encoding: quoted-printable\n\nGr=C3=BC=C3=9Fe\n",
    ),
    "latin-1 without MIME": (
        b"Subject: x\n\nGr\xfc\xdfe\n",
        b"Subject: x\nMIME-Version: 1.0\nContent-Type: text/plain; charset=unknown-8bit\n"
        b"Content-Transfer-Encoding: quoted-printable\n\nGr=FC=DFe\n",
    ),
    "cut UTF-8": (
        b"Subject: x\n\n\xc3",
        b"Subject: x\nMIME-Version: 1.0\nContent-Type: text/plain; charset=unknown-8bit\n"
        b"Content-Transfer-Encoding: quoted-printable\n\n=C3",
    ),
    "label replaced, line ends and NUL": (
        b"MIME-Version: 1.0\nContent-Type: text/html; charset=utf-8\ncontent-transfer-encoding: 8bit (so)\n"
        b"X: y\n\na\r\n\xc3\xa4\0 \rb=\n",
        b"MIME-Version: 1.0\nContent-Type: text/html; charset=utf-8\nX: y\n"
        b"Content-Transfer-Encoding: quoted-printable\n\na\n=C3=A4=20\nb=3D\n",
    ),
    "no text: base64 of the octets as they came": (
        b"MIME-Version: 1.0\nContent-Type: application/x\n\n\0\xff\r\n\r\x01",
        b"MIME-Version: 1.0\nContent-Type: application/x\nContent-Transfer-Encoding: base64\n\nAP8NCg0B\n",
    ),
    "parts": (
        b'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="b"\nContent-Transfer-Encoding: 8bit\n\n'
        b"pre \xc3\xa4\n--b\n\n\xc3\xa4\n--b \nContent-Type: image/png\n\n\xff\n\n--b\nContent-Type: text/plain\n"
        b"Content-Transfer-Encoding: 8bit\n\nplain\n--b\nno header \xc3\xa4\n--b--\nepi \xc3\xa4\n",
        b'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="b"\nContent-Transfer-Encoding: 7bit\n\n'
        b"pre **\n--b\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n=C3=A4\n"
        b"--b\nContent-Type: image/png\nContent-Transfer-Encoding: base64\n\n/wo=\n--b\nContent-Type: text/plain\n"
        b"Content-Transfer-Encoding: 7bit\n\nplain\n--b\nContent-Type: text/plain; charset=utf-8\n"
        b"Content-Transfer-Encoding: quoted-printable\n\nno header =C3=A4\n--b--\nepi **\n",
    ),
    "a message inside, digest": (
        b"Content-Type: multipart/digest; boundary=b\n\n--b\n\nSubject: in\n\n\xc3\xa4\n--b--\n",
        b"Content-Type: multipart/digest; boundary=b\n\n--b\n\nSubject: in\nMIME-Version: 1.0\n"
        b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n=C3=A4\n--b--\n",
    ),
    'two "=" in quoted-printable that is none': (
        b"Content-Type: text/plain\nContent-Transfer-Encoding: quoted-printable\n\n"
        b"\xa4==\n\xa4===\nb\xa4==41==\xa4=4\n==\n",
        b"Content-Type: text/plain\nContent-Transfer-Encoding: quoted-printable\n\n"
        b"=A4=3D=3D\n=A4=3D=3D=\nb=A4=3D=3D41=3D=3D=A4=3D4\n==\n",
    ),
    "quoted-printable that is none": (
        b"Content-Type: text/plain\nContent-Transfer-Encoding: quoted-printable\n\na=\n=C3\xa4=3D=\n=0D=0A\xff\n",
        b"Content-Type: text/plain\nContent-Transfer-Encoding: quoted-printable\n\na=\n=C3=A4=3D=\n=0D=0A=FF\n",
    ),
    "base64 that is none": (
        b"Content-Type: x/y\nContent-Transfer-Encoding: BASE64\n\nYWJj\nYW\xffJj\n" + b"YWJj" * 300 + b"\n",
        b"Content-Type: x/y\nContent-Transfer-Encoding: BASE64\n\nYWJj\nYWJj\n"
        + b"".join(b"YWJj" * 19 + b"\n" for _ in range(15)) + b"YWJj" * 15 + b"\n",
    ),
    "an inner boundary outside its multipart is text": (
        b"Content-Type: multipart/mixed; boundary=o\n\n--o\nContent-Type: multipart/mixed; boundary=i\n\n--i\n\n\xc3\xa4\n"
        b"--o\n\n\xc3\xa4\n--i\n\n\xc3\xa4\n--o--\n",
        b"Content-Type: multipart/mixed; boundary=o\n\n--o\nContent-Type: multipart/mixed; boundary=i\n\n--i\n"
        b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n=C3=A4\n"
        b"--o\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n"
        b"=C3=A4\n--i\n\n=C3=A4\n--o--\n",
    ),
    "a break makes no delimiter": (
        b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\n" + b"\xc3\xa4" * 12 + b"xxx--b\n--b--\n",
        b"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/plain; charset=utf-8\n"
        b"Content-Transfer-Encoding: quoted-printable\n\n" + b"=C3=A4" * 12 + b"xxx=\n=2D-b\n--b--\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_table(name: str) -> None:
    message, expected = TABLE[name]
    assert converted(message) == expected
    assert (
        converted(message, pieces=(message[at : at + 1] for at in range(len(message)))) == expected
    )
    assert converted(expected) == expected


def test_what_is_fit_is_left_alone() -> None:
    message = b"Subject: x\r\nContent-Transfer-Encoding: 8bit\n\n" + b"x" * 998 + b"\r\nno end"
    assert plan(lambda: [message], SEVEN_BIT) is None
    assert plan(lambda: [b"Subject: x\n\n" + UMLAUT], LINES) is None


def test_long_lines_where_8_bit_may_go() -> None:
    message = (
        b"Subject: " + UMLAUT + b"\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n"
        b"Content-Transfer-Encoding: 8bit\n\n--b\n\n"
        + UMLAUT
        + b"\n--b\n\n"
        + LONG
        + b"\n--b--\n"
        + LONG
    )
    result = converted(message, LINES)
    assert longest(result) <= 998
    assert b"Subject: " + UMLAUT + b"\n" in result
    assert (
        b"Encoding: 8bit\n\n--b\n\n"
        + UMLAUT
        + b"\n--b\nContent-Type: text/plain; charset=us-ascii\n"
        in result
    )
    assert leaves(result)[1:] == [("text/plain", UMLAUT), ("text/plain", LONG)]
    assert result.endswith(b"--b--\n" + LONG[:998])


SIGNED = (
    b"MIME-Version: 1.0\nContent-Type: multipart/%b; boundary=s\nContent-Transfer-Encoding: 8bit\n\n"
    b"--s\nContent-Type: text/plain\nContent-Transfer-Encoding: 8bit\n\n%b\n--s\n"
    b"Content-Type: application/pgp-signature\n\nsig\n--s--\n"
)


@pytest.mark.parametrize("kind", [b"signed", b"encrypted", b'SIGNED (x); x=";"'])
@pytest.mark.parametrize(
    ("content", "need"), [(UMLAUT, SEVEN_BIT), (LONG, SEVEN_BIT), (LONG, LINES)]
)
def test_a_signed_message_is_refused_before_an_octet_is_given(
    kind: bytes, content: bytes, need: str
) -> None:
    for message in (
        SIGNED % (kind, content),
        b"Content-Type: multipart/mixed; boundary=o\n\n--o\nContent-Type: message/rfc822\n\n"
        + SIGNED % (kind, content)
        + b"--o--\n",
    ):
        with pytest.raises(CannotConvert) as caught:
            plan(lambda message=message: [message], need)
        assert caught.value.status == "5.6.3"
        assert "multipart/" in str(caught.value)
        assert "signature" in str(caught.value)


def test_a_signed_part_that_is_fit_goes_unchanged_beside_one_that_is_not() -> None:
    signed = SIGNED[SIGNED.index(b"--s") :] % b"7-bit"
    message = (
        b"Content-Type: multipart/mixed; boundary=o\n\n--o\nContent-Type: multipart/signed; boundary=s\n\n"
        + signed + b"--o\n\n" + UMLAUT + b"\n--o--\n"
    )  # fmt: skip
    assert signed in converted(message)
    assert leaves(converted(message)) == leaves(message)


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b"Content-Type: message/partial; id=a; number=1\n", UMLAUT),
        (b"Content-Type: multipart/mixed\n", UMLAUT),
        (b"Content-Type: multipart/mixed; boundary=\n", UMLAUT),
        (b"Content-Type: multipart/mixed; boundary=b\n", UMLAUT + b"\n--c\n\nx\n"),
        (b"Content-Type: x/y\nContent-Transfer-Encoding: x-uuencode\n", UMLAUT),
        (b"X: y\n" * 300_000, UMLAUT),
    ],
    ids=[
        "partial",
        "no boundary",
        "empty boundary",
        "no delimiter",
        "unknown encoding",
        "endless header",
    ],
)
def test_what_else_cannot_be_converted(header: bytes, body: bytes) -> None:
    with pytest.raises(CannotConvert):
        converted(header + b"\n" + body)
    assert converted(header + b"\nplain\n") == header + b"\nplain\n"


def test_deep_nesting_ends() -> None:
    message = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(101)
    )
    assert converted(message + b"\n" + b"x") == message + b"\n" + b"x"
    with pytest.raises(CannotConvert):
        converted(message + b"\n" + UMLAUT)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b""])
@pytest.mark.parametrize("extra", range(-2, 3))
@pytest.mark.parametrize("encoding", [b"8bit", b"quoted-printable", b"base64"])
def test_lines_of_many_blocks(encoding: bytes, extra: int, end: bytes) -> None:
    """However the octets are cut, a line longer than any block gives the same result, and the same content."""
    header = b"Content-Type: text/plain\nContent-Transfer-Encoding: " + encoding + b"\n\n"
    line = b"=C3=A4A" * 20_000
    message = header + line[: 98_304 + extra] + end + b"next" + end
    expected = converted(message)
    assert longest(expected) <= 76
    assert leaves(expected) == leaves(message)
    for size in (4_096, 65_536, 65_537, 100_000):
        pieces = [message[at : at + size] for at in range(0, len(message), size)]
        assert converted(message, pieces=pieces) == expected


@pytest.mark.parametrize("at", [32_768, 65_536])
def test_no_delimiter_begins_inside_a_line(at: int) -> None:
    message = (
        b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\n"
        + b"x" * at
        + b"--b\n"
        + UMLAUT
        + b"\n--b--\n"
    )
    for size in (1_000, 32_768, 200_000):
        pieces = [message[cut : cut + size] for cut in range(0, len(message), size)]
        assert leaves(converted(message, pieces=pieces)) == leaves(message)


def field(raw: bytes) -> Field:
    return Field(raw.partition(b":")[0], raw)


FIELDS = {
    "subject": (b"Subject: a \xc3\xa4  \xc3\xbc b\n", b"Subject: a =?utf-8?q?=C3=A4=20=20=C3=BC?= b\n"),
    "not utf-8": (b"X-Any: \xfc\n", b"X-Any: =?iso-8859-1?q?=FC?=\n"),
    "beside an encoded word": (
        b"Subject: =?utf-8?q?a?= \xc3\xa4 =?utf-8?q?b?=\n",
        b"Subject: =?utf-8?q?a?= =?utf-8?q?_=C3=A4_?= =?utf-8?q?b?=\n",
    ),
    "folded": (b"Subject: a\n\t\xc3\xa4\n", b"Subject: a\t=?utf-8?q?=C3=A4?=\n"),
    "names": (
        b'To: "M\xc3\xbcller, J." <a@b>, c@d (\xc3\xa4), e@f\n',
        b"To: =?utf-8?q?M=C3=BCller=2C_J=2E?= <a@b>, =?utf-8?q?=C3=A4?= <c@d>, e@f\n",
    ),
    "address": (b"To: j\xc3\xb6@x\n", b"To: j\xc3\xb6@x\n"),
    "name and address": (b"To: \xc3\xa4 <j\xc3\xb6@x>\n", b"To: \xc3\xa4 <j\xc3\xb6@x>\n"),
    "group": (b"To: \xc3\xa4: a@b;\n", b"To: \xc3\xa4: a@b;\n"),
    "broken list": (b"To: \xc3\xa4 <a@b\n", b"To: \xc3\xa4 <a@b\n"),
    "parameter": (
        b'Content-Disposition: attachment; filename="a;\xc3\xa4.txt"; size=3\n',
        b"Content-Disposition: attachment; filename*=utf-8''a%3B%C3%A4.txt; size=3\n",
    ),
    "structured": (b"Message-ID: <\xc3\xa4@x>\n", b"Message-ID: <\xc3\xa4@x>\n"),
    "a long word": (b"X: " + b"y" * 999 + b"\n", None),
    "a long structured word": (b"Message-ID: " + b"y" * 999 + b"\n", b"Message-ID:\n " + b"y" * 999 + b"\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name: str) -> None:
    raw, expected = FIELDS[name]
    result = fit(field(raw), seven_bit=True)
    if expected is not None:
        assert result == expected.replace(b"=20=20", b"__")
    else:
        assert longest(result) <= 76
        assert (
            str(email.header.make_header(email.header.decode_header(result.decode()[3:].strip())))
            == "y" * 999
        )
    assert fit(field(result), seven_bit=True) == result


@given(
    st.lists(st.sampled_from([b" ", b"\t", b"  ", b"a", b"bc", b"d" * 60, b"e" * 90])).map(b"".join)
)
@settings(max_examples=200, deadline=None)
def test_folding_changes_no_text(value: bytes) -> None:
    line = b"Name:" + value + b"\n"
    folded = fold(line)
    assert folded.replace(b"\n", b"") == line.rstrip()
    assert all(part.strip() for part in folded.split(b"\n")[:-1])
    for part in folded.split(b"\n"):
        assert len(part) <= 76 or not (b" " in part.lstrip() or b"\t" in part.lstrip())


@pytest.mark.parametrize(
    ("eight_bit", "long_line", "eightbitmime", "expected"),
    [
        (False, False, False, NOTHING),
        (True, False, True, NOTHING),
        (True, False, False, SEVEN_BIT),
        (True, True, False, SEVEN_BIT),
        (True, True, True, LINES),
        (False, True, True, LINES),
    ],
)
def test_needs(eight_bit: bool, long_line: bool, eightbitmime: bool, expected: str) -> None:
    needed = needs(b"A: b\n\n", eight_bit=eight_bit, long_line=long_line, eightbitmime=eightbitmime)
    assert needed == expected


def test_needs_looks_at_the_header() -> None:
    assert (
        needs(b"A: " + b"b" * 996 + b"\n\n", eight_bit=False, long_line=False, eightbitmime=True)
        == LINES
    )


# -- messages made at random

ENDS = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r"])
WORDS = st.sampled_from(
    [b"plain", UMLAUT, b"\xff\xfe", b"x" * 76, b"long " * 250, b" ", b"\t", b".", b"=", b"=3D", b"--", b"From ",
     b"a: b", b"-", b"--b", b"--b--", b"--bb", b"--c", b"x\0y", b"\xc3"]
)  # fmt: skip
BOUNDARIES = (b"b", b"bb", b"b--", b"c", b"=_c", b"b c")
TYPES = st.sampled_from(
    [b"", b"Content-Type: text/plain\n", b"Content-Type: text/html; charset=utf-8\n", b"Content-Type: image/x\n",
     b"Content-Type: nonsense\n", b"Content-Type: application/pgp-signature; name=\xc3\xa4\n"]
)  # fmt: skip
LABELS = st.sampled_from(
    [b""] * 4 + [b"Content-Transfer-Encoding: " + word + b"\n" for word in (b"8bit", b"binary", b"7bit", b"utf-8", b"quoted-printable")]
)  # fmt: skip


@st.composite
def bodies(draw: Callable) -> bytes:
    return b"".join(draw(st.lists(st.one_of(WORDS, ENDS), max_size=8)))


@st.composite
def parts(draw: Callable, depth: int = 3) -> bytes:
    """Header and body of a part, without the line end before a delimiter."""
    kind = draw(st.sampled_from("llmr" if depth else "l"))
    label = draw(LABELS)
    if kind == "l":
        return draw(TYPES) + label + b"\n" + draw(bodies())
    label = label if b"quoted" not in label else b""
    if kind == "r":
        return (
            b"Content-Type: message/rfc822\n" + label + b"\nSubject: in\n" + draw(parts(depth - 1))
        )
    boundary = draw(st.sampled_from(BOUNDARIES))
    subtype = draw(st.sampled_from([b"mixed", b"mixed", b"alternative", b"signed"]))
    text = (
        b"Content-Type: multipart/" + subtype + b'; boundary="' + boundary + b'"\n' + label + b"\n"
    )
    text += draw(st.sampled_from([b"", b"preamble\n", b"preamble " + UMLAUT + b"\n"]))
    for part in draw(st.lists(parts(depth - 1), max_size=3)):
        text += (
            b"--" + boundary + draw(st.sampled_from([b"", b"", b" \t"])) + b"\n" + part + draw(ENDS)
        )
    if draw(st.booleans()) or draw(st.booleans()):
        text += (
            b"--"
            + boundary
            + b"--"
            + draw(st.sampled_from([b"", b"\n", b"\nepilogue " + UMLAUT + b"\n"]))
        )
    return text


@given(parts(), st.sampled_from([SEVEN_BIT, LINES]), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_any_message(part: bytes, need: str, size: int) -> None:
    """Fit for the server, the same for every reader, the same however it is cut; never another exception."""
    message = b"Subject: x\nMIME-Version: 1.0\n" + part
    # The library takes a closing delimiter right after another one for a second of that: to it, the multipart goes on.
    assume(not re.search(rb"\n--[^\n]*\n--[^\n]*--[ \t]*(\n|$)", normal(message)))
    # It drops a line that begins with white space where a header was to begin; to us the body has begun.
    assume(not re.search(rb"\n--[^\n]*\n[ \t]", normal(message)))
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    try:
        result = converted(message, need)
    except CannotConvert:
        with pytest.raises(CannotConvert):
            converted(message, need, pieces)
        return
    assert converted(message, need, pieces) == result
    assert longest(normal(result)) <= 998
    if need == SEVEN_BIT:
        assert result.isascii()
    assert leaves(result) == leaves(message)
    assert converted(result, need) == result


@given(
    st.lists(
        st.one_of(
            WORDS,
            ENDS,
            st.just(b"Content-Type: multipart/mixed; boundary=b\n"),
            st.binary(max_size=5),
        )
    )
)
@settings(max_examples=200, deadline=None)
def test_any_octets(words: list[bytes]) -> None:
    message = b"".join(words)
    try:
        result = converted(message)
    except CannotConvert:
        return
    assert converted(result) == result
    assert converted(message, pieces=words) == result


# -- messages as callers make them

PATCH = (
    "From: =?utf-8?q?J=C3=B6rg?= <j@example.org>\nSubject: [PATCH] Grüße\nMIME-Version: 1.0\n"
    "Content-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n\n"
    "Signed-off-by: Jörg <j@example.org>\n---\n a.c | 2 +-\n\ndiff --git a/a.c b/a.c\n--- a/a.c\n+++ b/a.c\n"
    "@@ -1 +1 @@\n-// \t\n+// größer = besser  \n-- \n2.39.5\n"
).encode()
ATTACHMENT = (
    'From: root\nSubject: Bericht\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="=_5f3a.x"\n\n'
    "This is a multi-part message in MIME format.\n\n--=_5f3a.x\nContent-Type: text/plain; charset=utf-8\n"
    "Content-Transfer-Encoding: 8bit\nContent-Disposition: inline\n\nSiehe Anhang: Übersicht\n\n--=_5f3a.x\n"
    'Content-Type: application/json; name="übersicht.json"\nContent-Transfer-Encoding: 8bit\n'
    'Content-Disposition: attachment; filename="übersicht.json"\n\n{"größe": 1}\n\n--=_5f3a.x--\n'
).encode()
LOGWATCH = (
    b"To: root\nFrom: logwatch@host\nSubject: Logwatch for host (Linux)\nMIME-Version: 1.0\n"
    b'Content-Transfer-Encoding: 7bit\nContent-Type: text/plain; charset="iso-8859-1"\n\n'
    b" ################### Logwatch ####################\n GET " + b"/a?b=c&" * 600 + b" 404\n\n ---- end ----\n"
)  # fmt: skip
FORWARDED = (
    b"Subject: Fwd\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=fwd\n\n--fwd\n\nsee below\n--fwd\n"
    b"Content-Type: message/rfc822\nContent-Transfer-Encoding: 8bit\n\n" + ATTACHMENT + b"\n--fwd--\n"
)  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [PATCH, ATTACHMENT, LOGWATCH, FORWARDED],
    ids=["patch", "mailx", "logwatch", "forward"],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_real_messages(message: bytes, end: bytes) -> None:
    message = message.replace(b"\n", end)
    result = converted(message)
    assert result.isascii()
    assert longest(result) <= 998
    assert leaves(result) == leaves(message)
    before, after = map(email.message_from_bytes, (normal(message), result))
    subject = str(email.header.make_header(email.header.decode_header(after["Subject"])))
    assert subject.encode() == normal(message).partition(b"Subject: ")[2].partition(b"\n")[0]
    assert [part.get_content_charset() for part in after.walk()] == [
        part.get_content_charset() for part in before.walk()
    ]


def test_the_name_of_an_attachment_stays() -> None:
    part = email.message_from_bytes(converted(ATTACHMENT)).get_payload()[1]
    assert part.get_filename() == "übersicht.json"
    assert part["Content-Transfer-Encoding"] == "base64"


def test_clear_signed_text_stays_verifiable() -> None:
    """RFC 9580 section 7: what is signed is the text, and quoted-printable gives it back."""
    body = (
        b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n- -- "
        + UMLAUT
        + b"\n-----BEGIN PGP SIGNATURE-----\n"
    )
    message = b"Content-Type: text/plain; charset=utf-8\n\n" + body
    assert leaves(converted(message)) == [("text/plain", body)]


def test_a_message_with_a_dkim_signature_is_converted() -> None:
    message = b"DKIM-Signature: v=1; bh=x;\n b=y\nSubject: x\n\n" + UMLAUT
    assert converted(message).startswith(
        b"DKIM-Signature: v=1; bh=x;\n b=y\nSubject: x\nMIME-Version"
    )


def test_memory_does_not_grow_with_the_message() -> None:
    import tracemalloc

    def octets() -> Iterator[bytes]:
        yield b"Subject: x\n\n"
        for _ in range(200):
            yield (UMLAUT + b" ") * 30_000  # 250 KiB
            yield b"\n"

    tracemalloc.start()
    try:
        conversion = plan(octets, SEVEN_BIT)
        assert conversion is not None
        assert sum(map(len, conversion.octets())) > 90_000_000
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()


def test_what_reading_raises_goes_through() -> None:
    def octets() -> Iterator[bytes]:
        yield b"Subject: x\n\n" + UMLAUT
        raise EOFError

    with pytest.raises(EOFError):
        plan(octets, SEVEN_BIT)
