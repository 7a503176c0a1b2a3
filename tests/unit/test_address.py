"""address.py: what is read, what is refused, and that nothing else can happen."""

import email
import email.header
import email.policy
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend import address
from minisend.address import (
    AddressError,
    Mailbox,
    check,
    parse_list,
    parse_recipients,
    parse_sender,
    qualify,
    quote_local,
    quote_phrase,
    same,
    split,
    to_ascii,
)

READ = {
    b"a@b": [(b"a@b", b"")],
    b"<a@b>": [(b"a@b", b"")],
    b"Name Here <a1@example.net>": [(b"a1@example.net", b"Name Here")],
    b'"N, H" <a@b>': [(b"a@b", b"N, H")],
    b'"N \\"H\\" \\\\" <a@b>': [(b"a@b", b'N "H" \\')],
    b"a1@example.net (x)": [(b"a1@example.net", b"x")],
    b"(x (y \\) z)) a@b": [(b"a@b", b"x (y ) z)")],
    b"a(1)@(2)b(3).(4)c": [(b"a@b.c", b"4")],
    b"<a(in)@b> (out)": [(b"a@b", b"out")],
    b"A (c) B <a@b> (out)": [(b"a@b", b"A B")],
    b'"odd name"@example.net, "a,b"@example.net': [
        (b'"odd name"@example.net', b""),
        (b'"a,b"@example.net', b""),
    ],
    b'"joe"@b, "j".o."e"@b, "j.o"@b': [(b"joe@b", b""), (b"j.o.e@b", b""), (b"j.o@b", b"")],
    b'"a\\"\\\\b"@c': [(b'"a\\"\\\\b"@c', b"")],
    b'"a@b"': [(b'"a@b"', b"")],
    b'"a@b"@c': [(b'"a@b"@c', b"")],
    b"a,b": [(b"a", b""), (b"b", b"")],
    b"a@x, b@x": [(b"a@x", b""), (b"b@x", b"")],
    b", a1@example.net,, a2@example.net, (none),": [
        (b"a1@example.net", b""),
        (b"a2@example.net", b""),
    ],
    b"a1@example.net; a2@example.net;": [(b"a1@example.net", b""), (b"a2@example.net", b"")],
    b"undisclosed-recipients:;": [],
    b'Friends: a@b, "X, Y" <c@d>;, e': [(b"a@b", b""), (b"c@d", b"X, Y"), (b"e", b"")],
    b"'Old friends': a@b": [(b"a@b", b"")],
    b'"A: B" <c@d>': [(b"c@d", b"A: B")],
    b"": [],
    b" \t ,, ; (nobody)": [],
    b"<@a,@b:user@c>": [(b"user@c", b"")],
    b"<@a.b , , @[1.2.3.4] : user@c>": [(b"user@c", b"")],
    b"Route <@a:user>": [(b"user", b"Route")],
    b"a@b,\r\n\tc@d,\n e@f": [(b"a@b", b""), (b"c@d", b""), (b"e@f", b"")],
    b'"folded\n name" <a@b>': [(b"a@b", b"folded name")],
    b"\n a@b\n": [(b"a@b", b"")],
    b"  a1@example.net ": [(b"a1@example.net", b"")],
    b"a1\t@example.net": [(b"a1@example.net", b"")],
    b"a . b @ c . d": [(b"a.b@c.d", b"")],
    b"x@[127.0.0.1], x@[IPv6:::1], x@[ 10.0.0.1 ]": [
        (b"x@[127.0.0.1]", b""),
        (b"x@[IPv6:::1]", b""),
        (b"x@[10.0.0.1]", b""),
    ],
    b"root": [(b"root", b"")],
    b"root (Cron Daemon)": [(b"root", b"Cron Daemon")],
    b'"(Cron Daemon)" <root>': [(b"root", b"(Cron Daemon)")],
    b"Anacron <root>": [(b"root", b"Anacron")],
    b"path!user, example.net!a1": [(b"path!user", b""), (b"example.net!a1", b"")],
    b"J. R. Doe <j@d>, Joe Doe Jr. <k@d>": [(b"j@d", b"J. R. Doe"), (b"k@d", b"Joe Doe Jr.")],
    b"joe@x <joe@x>": [(b"joe@x", b"joe@x")],
    b"[team] <joe@x>": [(b"joe@x", b"[team]")],
    b"[team <joe@x>": [(b"joe@x", b"[team")],
    b"=?utf-8?q?J=C3=B6rg?= <j@d>": [(b"j@d", b"=?utf-8?q?J=C3=B6rg?=")],
    "Jörg Müller <jörg@bücher.example>".encode(): [
        ("jörg@bücher.example".encode(), "Jörg Müller".encode())
    ],
    b"J\xf6rg <j@d>": [(b"j@d", b"J\xf6rg")],
    b"\\root": [(b"root", b"")],
    b"a\\,b@c": [(b'"a,b"@c', b"")],
    b"a1@example.net.": [(b"a1@example.net", b"")],
    b"a..b@c, a.@c, .a@c": [(b'"a..b"@c', b""), (b'"a."@c', b""), (b'".a"@c', b"")],
    b"-dash@example.net, -f": [(b"-dash@example.net", b""), (b"-f", b"")],
    b"a1+tag=x{y}@example.net": [(b"a1+tag=x{y}@example.net", b"")],
    b"user%host@relay": [(b"user%host@relay", b"")],
}

REFUSED = {
    b"bad@@example..net": '"bad@@example..net": more than one @',
    b"a@b@c": '"a@b@c": more than one @',
    b"@": '"@": no address',
    b"a@": '"a@": nothing follows the @',
    b"@b": '"@b": no name stands before the @',
    b"<>": '"<>": no address',
    b"Name <>": '"Name <>": no address',
    b'""@b': '"""@b": no name stands before the @',
    b'""': '"""": no address',
    b"a b@c": '"a b@c": two words with neither a dot nor an @ between them',
    b"x@y, Joe Doe, z@y": '"Joe Doe": two words with neither a dot nor an @ between them',
    b"a@b c": '"a@b c": two words with neither a dot nor an @ between them',
    b"a@b..c": '"a@b..c": the domain has an empty part',
    b"a@.b": '"a@.b": the domain has an empty part',
    b"a@.": '"a@.": the domain has an empty part',
    b"a@b..": '"a@b.": the domain has an empty part',
    b'a@"b"': '"a@"b"": not an address',
    b"a[b]@c": '"a[b]@c": not an address',
    b"a)b@c": '"a)b@c": not an address',
    b"a@[]": '"a@[]": not an address literal',
    b"a@[x": '"a@[x": not an address',
    b"a@b[1]": '"a@b[1]": two words with neither a dot nor an @ between them',
    b"a@[1].c": '"a@[1].c": not an address literal',
    b"a@[<>]": '"a@[<>]": not an address literal',
    b'"a1@example.net': '""a1@example.net": a quote is not closed',
    b"a@b (c (d)": '"(c (d)": a comment is not closed',
    b"Bob <bob@example.net": '"Bob <bob@example.net": a < is not closed',
    b"a@b>": '"a@b>": a > closes nothing',
    b"<<a@b>>": '"<<": a < stands inside < and >',
    b"<a@b> c": '"<a@b> c": something other than a comma follows the >',
    b"A <a@b> B <c@d>": '"A <a@b> B": something other than a comma follows the >',
    b"<a,b>": '"<a,b>": not an address',
    b"<@a:>": '"<@a:>": no address',
    b"<a:b@c>": '"<a:b@c>": not an address',
    b"<@a,@b>": '"<@a,@b>": not an address',
    b":include:/etc/passwd": '":": a group has no name',
    b"a\\": '"a\\": a backslash quotes nothing',
    b"a@b\nc@d": '"a@b\\nc@d": a line end inside',
    b"a@b>\r\nRCPT TO:<evil@example.com>": '"a@b>\\r\\nRCPT TO:<evil@example.com>": a line end inside',
    b"a@b\r c@d": '"a@b\\r c@d": a line end inside',
    b"a\x01b@c": '""a\\x01b"@c": a control character',
    b"a\x00@c": '""a\\x00"@c": a control character',
    b"a@c\x7f": '"a@c\\x7f": a control character',
    b'"a\tb"@c': '""a\\tb"@c": a control character',
    b"j\xf6rg@b": '"j\\xf6rg@b": neither ASCII nor UTF-8',
    b"a@b\xff": '"a@b\\xff": neither ASCII nor UTF-8',
    b"x" * 511 + b"@b": '"' + "x" * 100 + '...": longer than 512 octets',
}


@pytest.mark.parametrize("value", READ, ids=repr)
def test_read(value: bytes) -> None:
    assert [(box.address, box.name) for box in parse_list(value)] == READ[value]


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: repr(value[:40]))
def test_refused(value: bytes) -> None:
    with pytest.raises(AddressError) as caught:
        parse_list(value)
    assert str(caught.value) == REFUSED[value]
    assert (caught.value.exit_code, caught.value.status) == (65, "5.1.3")


@pytest.mark.parametrize(
    ("value", "spans"),
    [
        (b"root", [b"root"]),
        (b" Anacron <root> (x)", [b"root"]),
        (b"root (Cron Daemon)", [b"root"]),
        (b"(c) a (d) . b (e), <@x,@y:u@z>", [b"a (d) . b", b"u@z"]),
        (b'G:"q q"@x;', [b'"q q"@x']),
    ],
)
def test_offsets_are_those_of_the_addr_spec(value: bytes, spans: list[bytes]) -> None:
    assert [value[box.start : box.end] for box in parse_list(value)] == spans


def test_mailbox_equality_and_repr() -> None:
    (box,) = parse_list(b"N <a@b>")
    assert box == Mailbox(b"a@b", b"N", 3, 6)
    assert box != Mailbox(b"a@b", b"N", 3, 7)
    assert repr(box) == "Mailbox(b'a@b', b'N', 3, 6)"


def test_recipients_of_one_argument() -> None:
    assert parse_recipients(b"Name <a@x>, b, G: c@x;") == [b"a@x", b"b", b"c@x"]


@pytest.mark.parametrize(
    ("argument", "addresses"),
    [
        (b"<a@x,b@y>", [b"a@x", b"b@y"]),
        (b" <a , far!b> ", [b"a", b"far!b"]),
        (b"<@x,@y:u@z>", [b"u@z"]),
        (b'<"a,b"@x>', [b'"a,b"@x']),
        (b"<a@x>,<b@y>", [b"a@x", b"b@y"]),
    ],
)
def test_a_list_in_one_pair_of_brackets(argument: bytes, addresses: list[bytes]) -> None:
    """rmail writes that; a route or a quoted comma is none."""
    assert parse_recipients(argument) == addresses


def test_a_field_has_no_list_in_one_pair_of_brackets() -> None:
    with pytest.raises(AddressError):
        parse_list(b"<a@x,b@y>")


@pytest.mark.parametrize("argument", [b"", b"  ", b",", b"(x)", b"undisclosed-recipients:;"])
def test_an_argument_that_names_nobody(argument: bytes) -> None:
    with pytest.raises(AddressError, match=r"no address$"):
        parse_recipients(argument)


@pytest.mark.parametrize(
    ("argument", "sender"),
    [
        (b"", b""),
        (b"<>", b""),
        (b" < > ", b""),
        (b"a@b", b"a@b"),
        (b"<a@b>", b"a@b"),
        (b"N <a@b>", b"a@b"),
        (b"alice", b"alice"),
        (b"Foo", b"Foo"),
        (b"path!user", b"path!user"),
        ("jörg@example.org".encode(), "jörg@example.org".encode()),
    ],
)
def test_sender(argument: bytes, sender: bytes) -> None:
    assert parse_sender(argument) == sender


@pytest.mark.parametrize(
    "argument",
    [b"a b", b"a, b", b",", b"a@example.org\nRCPT TO:<evil@example.com>", b"a@", b"<> x"],
)
def test_sender_refused(argument: bytes) -> None:
    with pytest.raises(AddressError):
        parse_sender(argument)


@pytest.mark.parametrize(
    "good",
    [
        b"a",
        b"a@b",
        b'"a b"@c',
        b'"<>"@c',
        b'"a\\"b"',
        b"a..b@c",
        b"a@[IPv6:::1]",
        b"x" * 510 + b"@b",
    ],
    ids=lambda value: repr(value[:20]),
)
def test_check_passes(good: bytes) -> None:
    check(good)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"", "no address"),
        (b"a b@c", "a name with such characters needs quotes"),
        (b"a>b@c", "a name with such characters needs quotes"),
        (b"a@b> SIZE=1", "a character that no domain has"),
        (b"a@b<c", "a character that no domain has"),
        (b"a@b@c", "a character that no domain has"),
        (b"<a@b>", "a name with such characters needs quotes"),
        (b'"a"b@c', "something other than @ follows the quotes"),
        (b'"a\\"@c', "a quote is not closed"),
        (b'""@c', "the quoted name is empty"),
        (b'a@"b"', "a character that no domain has"),
        (b"a\\@b", "a name with such characters needs quotes"),
        (b'"a\\', "a quote is not closed"),
        (b"@c", "nothing stands before the @"),
        (b"a@", "nothing follows the @"),
        (b"a@b.", "the domain has an empty part"),
        (b"a@[1]x", "not an address literal"),
        (b"a@[", "not an address literal"),
        (b"a@[]", "not an address literal"),
        (b"a@[a b]", "not an address literal"),
        (b"a@[a]]", "not an address literal"),
        *((b'"a' + bytes([octet]) + b'"@c', "a control character") for octet in [*range(32), 127]),
    ],
    ids=repr,
)
def test_check_refuses(bad: bytes, why: str) -> None:
    with pytest.raises(AddressError) as caught:
        check(bad)
    assert str(caught.value).endswith(": " + why)
    assert caught.value.address == bad


@pytest.mark.parametrize(
    ("whole", "parts"),
    [
        (b"a@b", (b"a", b"b")),
        (b"a", (b"a", b"")),
        (b'"a@b"', (b'"a@b"', b"")),
        (b'"a@b"@c', (b'"a@b"', b"c")),
        (b"a@[IPv6:::1]", (b"a", b"[IPv6:::1]")),
        (b'a@[x:"@y]', (b"a", b'[x:"@y]')),
        (b'"a\\"@b"@c', (b'"a\\"@b"', b"c")),
        (b"", (b"", b"")),
    ],
    ids=repr,
)
def test_split(whole: bytes, parts: tuple[bytes, bytes]) -> None:
    assert split(whole) == parts


def test_qualify() -> None:
    assert [qualify(given, b"d.example") for given in (b"a", b"a@b", b"", b'"a@b"')] == [
        b"a@d.example",
        b"a@b",
        b"",
        b'"a@b"@d.example',
    ]


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (b"a@b", b"a@b", True),
        (b"bob@example.net", b"bob@EXAMPLE.net", True),
        (b"BOB@example.net", b"bob@example.net", False),
        (b"bob", b"bob@example.net", False),
        (b"BOB", b"bob", False),
    ],
)
def test_same(a: bytes, b: bytes, equal: bool) -> None:
    assert same(a, b) is equal


def test_quote_local() -> None:
    assert [
        quote_local(local) for local in (b"joe", b"j.d", b".j", b"DOM\\joe", b'a"b c', b"")
    ] == [
        b"joe",
        b"j.d",
        b'".j"',
        b'"DOM\\\\joe"',
        b'"a\\"b c"',
        b'""',
    ]


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        (b"", b""),
        (b" \r\n\x00", b""),
        (b"Tess Ester", b"Tess Ester"),
        (b"Tess T. Ester", b'"Tess T. Ester"'),
        (b"Doe, Jane", b'"Doe, Jane"'),
        (b'Joe "Q" Public', b'"Joe \\"Q\\" Public"'),
        (b"Doe (Jr)", b'"Doe (Jr)"'),
        (b"A\\B", b'"A\\\\B"'),
        (b"X <y@z>", b'"X <y@z>"'),
        (b"Cron: Daemon", b'"Cron: Daemon"'),
        (b"Name\r\nX-Evil: yes", b'"Name X-Evil: yes"'),
        (b"a\x07\tb", b"a b"),
        ("Jürgen Müller".encode(), b"=?utf-8?q?J=C3=BCrgen_M=C3=BCller?="),
        (b"J\xfcrgen", b"=?iso-8859-1?q?J=FCrgen?="),
        (
            "ü".encode() * 10,
            b"=?utf-8?q?" + b"=C3=BC" * 8 + b"?=\n =?utf-8?q?" + b"=C3=BC" * 2 + b"?=",
        ),
    ],
    ids=repr,
)
def test_quote_phrase(name: bytes, phrase: bytes) -> None:
    assert quote_phrase(name) == phrase


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=120).map(lambda text: text.encode()))
def test_a_phrase_is_one_name_whatever_the_octets(name: bytes) -> None:
    """No line that a name makes can begin a field, none is too long, and the name comes back."""
    phrase = quote_phrase(name)
    plain = b" ".join(bytes(o if o > 31 and o != 127 else 32 for o in name).split())
    lines = phrase.split(b"\n")
    assert all(line.startswith(b" =?") for line in lines[1:])
    assert phrase.translate(None, bytes(range(32)) + b"\x7f") == b"".join(lines)
    if phrase:
        (box,) = parse_list(phrase + b" <a@b>")
        assert box.address == b"a@b"
        if plain.isascii() and len(plain) <= 200:
            assert box.name == plain
        else:
            assert all(len(line) <= 61 for line in lines)
            assert plain in (_decoded(lines).encode(), _decoded(lines).encode("latin-1", "ignore"))


def _decoded(lines: list[bytes]) -> str:
    """RFC 2047 by hand: the charset and octets of each word, quoted-printable undone."""
    text = ""
    for line in lines:
        _, charset, _, quoted, _ = line.strip().split(b"?")
        octets = bytearray()
        at = 0
        while at < len(quoted):
            if quoted[at : at + 1] == b"=":
                octets.append(int(quoted[at + 1 : at + 3], 16))
                at += 3
            else:
                octets += quoted[at : at + 1].replace(b"_", b" ")
                at += 1
        text += octets.decode(charset.decode())
    return text


@pytest.mark.parametrize("name", ["Doe, Jane", 'Joe "Q" Public', "A\\B", "Jürgen Müller"])
def test_the_standard_library_reads_our_phrases(name: str) -> None:
    raw = b"From: " + quote_phrase(name.encode()) + b" <a@b.example>\n\n"
    (sender,) = email.message_from_bytes(raw, policy=email.policy.default)["From"].addresses
    assert (sender.display_name, sender.addr_spec) == (name, "a@b.example")


def test_the_standard_library_joins_our_words() -> None:
    """Adjacent encoded words are one text (RFC 2047 section 6.2), cut between characters."""
    name = "Ünïcödé 日本語 " * 12
    ((octets, charset),) = email.header.decode_header(quote_phrase(name.encode()).decode())
    assert (octets, charset) == (name.strip().encode(), "utf-8")


# A generator of well-formed lists: each piece knows what has to come out of it.

ATOMS = st.text("abcXYZ019!#$%&'*+-/=?^_`{|}~", min_size=1, max_size=6).map(str.encode) | st.just(
    "jö".encode()
)
SPACE = st.sampled_from(
    [b"", b"", b"", b" ", b"\t", b"\n ", b"\r\n\t", b"(c)", b" (a (b\\)) , <x@y>) ", b"\n (:;) "]
)
DOTTED = st.lists(ATOMS, min_size=1, max_size=3)


@st.composite
def locals_(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """(as written, as it has to come out)"""
    if draw(st.booleans()):
        words = draw(DOTTED)
        dot = draw(SPACE) + b"." + draw(SPACE)
        written = [b'"' + word + b'"' if draw(st.booleans()) else word for word in words]
        return dot.join(written), b".".join(words)
    inside = draw(st.text('ab ,;:<>@[]()"\\.', min_size=1, max_size=6)).encode() + draw(
        st.sampled_from([b" ", b",", b"@", b'"', b"\\", b">"])
    )
    wanted = b'"' + inside.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
    written_all = b"".join(b"\\" + bytes([o]) for o in inside)
    return draw(st.sampled_from([wanted, b'"' + written_all + b'"'])), wanted


@st.composite
def specs(draw: st.DrawFn) -> tuple[bytes, bytes]:
    local, wanted = draw(locals_())
    if draw(st.booleans()) and draw(st.booleans()):
        return local, wanted
    literal = draw(st.sampled_from([b"", b"", b"[127.0.0.1]", b"[IPv6:2001:db8::1]"]))
    labels = [literal] if literal else draw(DOTTED)
    at = draw(SPACE) + b"@" + draw(SPACE)
    dot = draw(SPACE) + b"." + draw(SPACE)
    return local + at + dot.join(labels), wanted + b"@" + b".".join(labels)


@st.composite
def members(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    spec, wanted = draw(specs())
    shape = draw(st.sampled_from(["bare", "angle", "named", "route"]))
    if shape != "bare":
        route = b"@r1.example , @[10.0.0.1]:" if shape == "route" else b""
        spec = b"<" + draw(SPACE) + route + draw(SPACE) + spec + draw(SPACE) + b">"
    if shape == "named":
        phrase = draw(
            st.sampled_from(
                [
                    b"Joe",
                    b"J. R. Doe",
                    b'"Doe, J <x@y>; \\" ("',
                    b"=?utf-8?q?=C3=BC?=",
                    b"a@b",
                    b"\xf6",
                ]
            )
        )
        spec = phrase + draw(SPACE) + b" " + spec
    return draw(SPACE) + spec + draw(SPACE), [wanted]


EMPTY = SPACE.map(lambda space: (space, list[bytes]()))


@st.composite
def lists(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    pieces = []
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.integers(0, 4)):
            pieces.append(draw(members() | EMPTY))
        else:
            inner = draw(st.lists(members() | EMPTY, max_size=3))
            name = draw(st.sampled_from([b"undisclosed-recipients", b'"My, friends"', b"A B."]))
            text = name + draw(SPACE) + b":" + b",".join(text for text, _ in inner) + b";"
            pieces.append((text + draw(SPACE), [one for _, wanted in inner for one in wanted]))
    joined = b",".join(text for text, _ in pieces)
    return joined, [one for _, wanted in pieces for one in wanted]


@settings(max_examples=200, deadline=None)
@given(lists())
def test_well_formed_lists(case: tuple[bytes, list[bytes]]) -> None:
    """The structure that made the text is what is read, and each span is its own address."""
    text, wanted = case
    boxes = parse_list(text)
    assert [box.address for box in boxes] == wanted
    for box in boxes:
        check(box.address)
        assert [b.address for b in parse_list(text[box.start : box.end])] == [box.address]
        assert [b.address for b in parse_list(box.address)] == [box.address]
        assert qualify(box.address, b"d") == b"@".join(
            (split(box.address)[0], split(box.address)[1] or b"d")
        )


HOSTILE = st.lists(
    st.sampled_from([bytes([o]) for o in b'a@.,;:<>()[]"\\ \t\r\n\0\x01\xff']), max_size=40
).map(b"".join)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | HOSTILE)
def test_any_octets_are_read_or_refused(octets: bytes) -> None:
    """Nothing but AddressError is raised, its text is one printable line, what passes is harmless."""
    for parse in (parse_list, parse_recipients, parse_sender, check):
        text = ""
        try:
            parse(octets)
        except AddressError as error:
            text = str(error)
        assert text.isprintable()
    try:
        addresses = parse_recipients(octets)
    except AddressError:
        addresses = []
    for one in addresses:
        check(one)
        assert not any(o < 32 or o == 127 for o in one)
        bare = _without_quoted(one)
        assert not any(o in b' <>"\\(),;' for o in bare)
        assert bare.count(b"@") <= 1


def _without_quoted(one: bytes) -> bytes:
    if not one.startswith(b'"'):
        return one
    at = 1
    while one[at] != ord('"'):
        at += 2 if one[at] == ord("\\") else 1
    return one[at + 1 :]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(lambda size: b"[" * size, id="brackets"),
        pytest.param(lambda size: b"(" * size, id="open comments"),
        pytest.param(lambda size: b"(" * size + b")" * size + b"a", id="nested comments"),
        pytest.param(lambda size: b"(c)" * size + b"a", id="comments"),
        pytest.param(lambda size: b"(\\))" * size + b"a", id="comments with a backslash"),
        pytest.param(lambda size: b'"\\"' * size, id="quotes of quotes"),
        pytest.param(lambda size: b"<" * size, id="angles"),
        pytest.param(lambda size: b"<a>" * size, id="angles that close"),
        pytest.param(lambda size: b"," * size, id="commas"),
        pytest.param(lambda size: b"a," * size, id="names"),
        pytest.param(lambda size: b"a@b," * size, id="addresses"),
        pytest.param(lambda size: b"n <a@b>, " * size, id="mailboxes"),
        pytest.param(lambda size: b"a." * size + b"a", id="words and dots"),
        pytest.param(lambda size: b"." * size + b"@x", id="dots before the @"),
        pytest.param(lambda size: b"a@x" + b"." * size, id="dots after the @"),
        pytest.param(lambda size: b'"a".' * size + b"a", id="quoted words and dots"),
        pytest.param(lambda size: b"a " * size, id="words"),
        pytest.param(lambda size: b"a " * size + b"<a@b>", id="a long name"),
        pytest.param(lambda size: b'"a" ' * size + b"<a@b>", id="a long quoted name"),
        pytest.param(lambda size: b"<@a," + b"@a," * size + b"@a:b@c>", id="a long route"),
        pytest.param(lambda size: b"\\a" * size, id="backslashes"),
        pytest.param(lambda size: b'"a"' * size, id="quoted"),
        pytest.param(lambda size: b":" * size, id="colons"),
        pytest.param(lambda size: b"a:" * size + b"a", id="groups"),
        pytest.param(lambda size: b"a:;" * size, id="empty groups"),
        pytest.param(lambda size: b"\r" * size, id="carriage returns"),
        pytest.param(lambda size: b"a@b" + b"\n " * size, id="folding"),
        pytest.param(lambda size: b"a@b,\r\n\t" * size, id="folded addresses"),
        pytest.param(lambda size: b"@" * size, id="ats"),
        pytest.param(lambda size: b"\xff" * size, id="octets above 127"),
    ],
)
def test_long_input_costs_what_it_is_long(value: Callable[[int], bytes]) -> None:
    """Octets looked at and octets copied grow with the input, not its square: counted, not timed."""
    counts = []
    for size in (1000, 2000):
        work = 0

        class Counted(bytes):
            """Octets that count what is taken out of them and what they are appended to; so do their parts."""

            def __getitem__(self, at):  # type: ignore[no-untyped-def]
                nonlocal work
                got = super().__getitem__(at)
                if isinstance(got, int):
                    work += 1
                    return got
                work += len(got)
                return Counted(got)

            def __radd__(self, before):  # type: ignore[no-untyped-def]
                nonlocal work
                work += len(before) + len(self)
                return bytes(before) + bytes(self)

        try:
            address.parse_list(Counted(value(size)))
        except AddressError:
            pass
        counts.append(work)
    assert counts[1] <= counts[0] * 2 + 500


def test_a_million_dots_are_given_up_early() -> None:
    with pytest.raises(AddressError, match=r"^\"\.{100}\.\.\.\": longer than 512 octets$"):
        parse_list(b"." * 1_000_000 + b"@x")


def test_the_longest_address() -> None:
    assert parse_list(b"a." * 250 + b"b@" + b"c" * 10)[0].address == b"a." * 250 + b"b@" + b"c" * 10
    assert parse_recipients(b"l" * 508 + b"@abc") == [b"l" * 508 + b"@abc"]
    for long in (b"l" * 509 + b"@abc", b"a." * 256 + b"b", b"l@" + b"a." * 256 + b"b"):
        with pytest.raises(AddressError, match="longer than 512 octets"):
            parse_list(long)


@pytest.mark.parametrize(
    ("domain", "label"),
    [
        ("bücher", b"xn--bcher-kva"),
        ("BÜCHER", b"xn--bcher-kva"),
        ("bu\u0308cher", b"xn--bcher-kva"),
        ("İstanbul", b"xn--istanbul-o0e"),
        ("例え", b"xn--r8jz45g"),
        ("\uff42ücher", b"xn--bcher-kva"),
        ("\uff42\uff43", b"bc"),
        ("\ufa2e", b"xn--7f4a"),
        ("faß", b"xn--fa-hia"),
        ("königsgäßchen", b"xn--knigsgchen-b4a3dun"),
        ("βόλος", b"xn--nxasmm1c"),
        ("βόλοσ", b"xn--nxasmq6b"),
        ("ΒΌΛΟΣ", b"xn--nxasmq6b"),
        ("FAẞ", b"xn--fa-hia"),
        ("\u0646\u0627\u0645\u0647\u200c\u0627\u06cc", b"xn--mgba3gch31f060k"),
        ("ශ\u0dca\u200dර\u0dd3", b"xn--10cl1a0b660p"),
        ("ü" * 57, b"xn--tda" + b"a" * 56),
    ],
    ids=ascii,
)
def test_to_ascii(domain: str, label: bytes) -> None:
    """The labels of RFC 5891, also where RFC 3490 has another one: that is another domain."""
    one = b"J\xc3\xbcrgen@" + domain.encode() + b".Example"
    assert to_ascii(one) == b"J\xc3\xbcrgen@" + label + b".example"
    assert to_ascii(to_ascii(one)) == to_ascii(one)


@pytest.mark.parametrize(
    "one",
    [
        b"",
        b"a",
        b"j\xc3\xbc",
        b"j\xc3\xbc@X.Example",
        b"\xff@x",
        b"a@[10.0.0.1]",
        b'"a@\xc3\xbc"',
        b"a@xn--bcher-kva.Example",
    ],
    ids=repr,
)
def test_to_ascii_leaves_what_has_no_domain_to_put_in_ascii(one: bytes) -> None:
    assert to_ascii(one) == one


def test_to_ascii_gives_a_capital_sigma_one_small_letter_wherever_it_stands() -> None:
    assert to_ascii("a@ΒΌΛΟΣ".encode()) == b"a@xn--nxasmq6b"


def test_to_ascii_cuts_where_the_domain_begins_and_at_every_full_stop() -> None:
    assert to_ascii('"a@ü"@b_1.ü\u3002c\uff0eé\uff61d'.encode()) == (
        '"a@ü"'.encode() + b"@b_1.xn--tda.c.xn--9ca.d"
    )


@pytest.mark.parametrize(
    "domain",
    [
        b"\xfc.example",
        b"\xed\xa0\x80.example",
        *(
            text.encode()
            for text in (
                "ü..example",
                ".ü",
                "ü\u3002",
                "x\uff1e\uff1ca",
                "a\uff20b",
                "ü\u00a0x",
                "ü!x",
                "x!y.ü",
                "x" * 64 + ".ü",
                "a\u2028b",
                "xn--ü",
                "XN--Ü",
                "\u00ad",
                "אa",
                "ü" * 58,
                "ß" * 58,
            )
        ),
    ],
    ids=repr,
)
def test_to_ascii_refuses(domain: bytes) -> None:
    with pytest.raises(AddressError) as caught:
        to_ascii(b"a@" + domain)
    assert str(caught.value).endswith(": the domain has no form in ASCII")
    assert caught.value.address == b"a@" + domain


@settings(max_examples=200, deadline=None)
@given(
    st.text(
        st.characters(min_codepoint=0x80, exclude_categories=("Cs",)) | st.just("."),
        min_size=1,
        max_size=12,
    )
)
def test_to_ascii_gives_a_domain_or_refuses(text: str) -> None:
    """What it gives is fit for SMTP; where no letter deviates it is what the standard library gives."""
    try:
        done = to_ascii(f"a@ü.{text}.c".encode())
    except AddressError:
        return
    check(done)
    labels = done.removeprefix(b"a@").split(b".")
    assert (labels[0], labels[-1]) == (b"xn--tda", b"c")
    assert all(len(label) <= 63 and not label.translate(None, LABEL) for label in labels)
    text = "".join(letter.lower() for letter in text)
    if not set(text) & set("ß\u03c2\u200c\u200d"):
        assert done == b"a@" + f"ü.{text}.c".encode("idna")


LABEL = b"abcdefghijklmnopqrstuvwxyz0123456789-_"
