"""The argument vector of sendmail, whatever is in it: options in every mixture of forms, and octets that are none.

The options are read by a model of getopt(3) on the letters of sendmail 8.17 and of the other agents, which shares
nothing with the program's.
"""

import os
import string

import pytest
from delivery.program import Program
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from minisend.errors import UsageError
from minisend.spool.store import Queue
from minisend.submit.options import Options, parse

_ALL = settings.default.max_examples
_MANY = settings(max_examples=5 * _ALL)
_PROCESSES = settings(max_examples=_ALL, suppress_health_check=[HealthCheck.too_slow])

# option → what it sets; the last one of a kind wins
_FLAGS = {
    "t": ("from_headers", True),
    "i": ("dot_is_data", True),
    "I": ("mode", "newaliases"),
    **dict.fromkeys("46GTUcmnsvx", ("", None)),
    "P": ("mode", "verify"),
}
_VALUES = {
    "f": "sender",
    "r": "sender",
    "F": "full_name",
    "e": "errors",
    "V": "envid",
    **dict.fromkeys("ACDLMQSXhpz", ""),
}
# With values of their own; what each sets is in its row.
_WORDS = {
    ("B", "8BITMIME"): ("body", "8BITMIME"),
    ("B", "7bit"): ("body", "7BIT"),
    ("N", "never"): ("notify", "NEVER"),
    ("N", "success,delay"): ("notify", "SUCCESS,DELAY"),
    ("R", "hdrs"): ("ret", "HDRS"),
    ("R", "full"): ("ret", "FULL"),
    ("o", "i"): ("dot_is_data", True),
    ("o", "db"): ("delivery", "background"),
    ("o", "di"): ("delivery", "interactive"),
    ("o", "dq"): ("delivery", "queue"),
    ("o", "em"): ("errors", "m"),
    ("o", "eq"): ("errors", "q"),
    ("o", "o"): ("", None),
    ("o", "7"): ("", None),
    ("a", "account"): ("", None),
    ("O", "ErrorMode=q"): ("errors", "q"),
    ("O", "IgnoreDots=True"): ("dot_is_data", True),
    ("O", "DeliveryMode=queue"): ("delivery", "queue"),
    ("O", "Timeout.queuereturn=1d"): ("", None),
}
_JOINED = {
    ("b", "m"): ("mode", "submit"),
    ("b", "s"): ("mode", "smtp"),
    ("b", "p"): ("mode", "mailq"),
    ("b", "i"): ("mode", "newaliases"),
    ("q", ""): ("mode", "flush"),
    ("E", "x"): ("", None),
    ("E", ""): ("", None),
    ("J", ""): ("", None),
    ("d", "0.1"): ("", None),
    ("d", ""): ("", None),
}
_KNOWN = {*_FLAGS, *_VALUES, *(letter for letter, _ in (*_WORDS, *_JOINED))}
# Letters that no sendmail knows, and what is no letter; a lone "-" after others would be an option too.
_UNKNOWN = st.sampled_from(sorted(set(string.ascii_letters) - _KNOWN)) | st.characters(
    exclude_characters=string.ascii_letters + "\0"
)

# What stands in an argument: any text, also octets that are not UTF-8 (surrogates), never a NUL.
_TEXT = st.text(st.characters(exclude_characters="\0"), max_size=8)
_PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=8)


@st.composite
def _options(draw: st.DrawFn) -> tuple[str, str, str, tuple[str, object]]:
    """(kind, letter, value, what it sets)"""
    kind = draw(st.sampled_from(["flag", "value", "word", "joined"]))
    if kind == "flag":
        letter = draw(st.sampled_from(sorted(_FLAGS)))
        return "flag", letter, "", _FLAGS[letter]
    if kind == "value":
        letter = draw(st.sampled_from(sorted(_VALUES)))
        value = draw(_PRINTABLE if letter == "V" else _TEXT)
        return "value", letter, value, (_VALUES[letter], value)
    rows = _WORDS if kind == "word" else _JOINED
    letter, value = draw(st.sampled_from(sorted(rows)))
    return ("value" if kind == "word" else "joined"), letter, value, rows[letter, value]


@st.composite
def _lines(draw: st.DrawFn) -> tuple[list[str], dict[str, object]]:
    """Options as words of a command line, in any mixture of forms; and what has to come of them."""
    words: list[str] = []
    expected: dict[str, object] = {}
    cluster = ""  # flags that wait for the next option to share a word with
    for kind, letter, value, (attribute, setting) in draw(st.lists(_options(), max_size=8)):
        if attribute:
            expected[attribute] = setting
        cluster = (cluster or "-") + letter
        if kind == "flag":
            if draw(st.booleans()):
                continue
            words.append(cluster)
        elif kind == "joined" or (value and draw(st.booleans())):
            words.append(cluster + value)
        else:
            words += [cluster, value]
        cluster = ""
    if cluster:
        words.append(cluster)
    return words, expected


@st.composite
def _recipients(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """(as on the command line, after whatever ends the options; as they have to come out)"""
    rest = draw(st.lists(_TEXT, max_size=3))
    if draw(st.booleans()):
        return ["--", *rest], rest
    if rest and rest[0].startswith("-") and rest[0] != "-":
        rest[0] = "a" + rest[0]
    return rest, rest


def _as_dict(options: Options) -> dict[str, object]:
    return {name: getattr(options, name) for name in Options.__slots__}


@_MANY
@given(_lines(), _recipients())
def test_every_mixture_of_forms_means_the_same(
    line: tuple[list[str], dict[str, object]], recipients: tuple[list[str], list[str]]
) -> None:
    words, expected = line
    given_words, kept = recipients
    assert _as_dict(parse([*words, *given_words])) == {
        **_as_dict(Options()),
        **expected,
        "words": kept,
    }


@_MANY
@given(_lines(), st.sampled_from(["", *_FLAGS]), _UNKNOWN, st.lists(_TEXT, max_size=2))
@example(([], {}), "", "Z", ["a@b"])
@example(([], {}), "t", "-", [])
def test_an_unknown_letter_is_64_wherever_it_stands(
    line: tuple[list[str], dict[str, object]], before: str, letter: str, rest: list[str]
) -> None:
    if not before and letter == "-":
        rest, letter = [], "-x"  # "--" alone ends the options
    with pytest.raises(UsageError) as raised:
        parse([*line[0], f"-{before}{letter}", *rest])
    assert raised.value.exit_code == 64
    assert str(raised.value).isprintable()
    assert str(raised.value).startswith("unknown option -")


@_MANY
@given(_lines(), st.sampled_from("ABCDFLMNOQRSVXaefhoprz"))
def test_a_value_that_is_missing_is_64(
    line: tuple[list[str], dict[str, object]], letter: str
) -> None:
    with pytest.raises(UsageError) as raised:
        parse([*line[0], "-" + letter])
    assert (str(raised.value), raised.value.exit_code) == (f"option -{letter} needs a value", 64)


@_MANY
@given(
    st.lists(_TEXT | st.builds("-{}{}".format, st.sampled_from(sorted(_KNOWN)), _TEXT), max_size=6)
)
def test_any_words_are_options_or_refused(words: list[str]) -> None:
    """What is left for recipients stands at the end of the line, as it came."""
    try:
        options = parse(words)
    except UsageError:
        return
    assert options.words == words[len(words) - len(options.words) :]


# The same as processes: what no generator of ours thinks of happens between execve and main.

_ARGUMENTS = st.lists(
    st.sampled_from(
        [
            *(b"-t", b"-i", b"-f", b"-F", b"-r", b"-V", b"-N", b"-R", b"-h", b"-oem", b"-oep", b"-em"),
            *(b"-f<>", b"-Fa\nBcc: x@y", b"-fa@b\r\nRCPT TO:<x@y>", b"-V\xff", b"-N\n", b"-q\n", b"-b\xe9"),
            *(b"--", b"-", b"", b"a@b", b"a@b, c", b"<a@b", b"a\n@b", b'"a\nb"@c', b"a@b\n", b"\xff@b"),
            *(b"\r\n.\r\n", b"a@b>\r\nDATA\r\n", b"a;rm@b", b"a@b (\n)", b"\x7f@b", b"%s%n@b", b"-Z"),
        ]
    )
    | st.binary(max_size=12).map(lambda octets: octets.replace(b"\0", b"\n")),
    max_size=5,
)  # fmt: skip
_HEADS = st.sampled_from(
    [b"", b"To: d@e\n\n", b"To: d\r\n\r\n", b"Bcc: a\0b@c\n", b"To: <\n\n", b"Cc:\n \n", b"\xff\n"]
)
_NAMES = st.sampled_from([b"", b"A Name", b"A\nTo: x@y", b"\r\n\r\nx", b"\xff\x01"])
# Anything but 70, a bug; 1 and 2 would be the interpreter's own.
_CODES = {0, 64, 65}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(tmp_path_factory.mktemp("argv"), "")


@_PROCESSES
@given(_ARGUMENTS, _HEADS, _NAMES)
def test_any_octets_as_a_process(
    program: Program, arguments: list[bytes], head: bytes, name: bytes
) -> None:
    """0 and a clean envelope, or a code with one line and nothing kept; never a traceback."""
    quiet = False
    try:
        options = parse([os.fsdecode(argument) for argument in arguments])
    except UsageError:
        pass
    else:
        assume(options.mode == "submit")
        quiet = options.errors == "q"
    done = program.run(
        "sendmail",
        "-odq",
        *arguments,
        stdin=head + b"Hello.\n",
        environment={b"NAME": name, b"PATH": b"/usr/bin:/bin"},
    )
    assert done.returncode in _CODES, done.stderr
    assert done.stdout == b""
    if done.returncode and not quiet:
        assert done.stderr.startswith(b"sendmail: ")
        assert done.stderr.count(b"\n") == done.stderr.endswith(b"\n") == 1
        assert done.stderr[:-1].decode().isprintable()
    else:
        assert done.stderr == b""
    if not os.path.exists(f"{program.spool}/queue"):
        assert done.returncode
        return
    found = 0
    with Queue(str(program.spool)) as queue:
        assert list(queue.places("tmp", "cur", "hold", "failed")) == []
        for place in queue.places("new"):
            found += 1
            path = f"{program.spool}/queue/new/{place.name}"
            with open(path, "rb") as file:
                stored = file.read().partition(b"\n\n")[0]
            entry = queue.claim(place)
            assert entry is not None
            with entry:
                envelope = entry.envelope
            os.unlink(path)
            values = [envelope.sender, envelope.login, envelope.full_name]
            values += [recipient.address for recipient in envelope.recipients]
            for value in (stored.replace(b"\n", b""), *values):
                assert not set(value) & set(b"\r\n\0")
    assert found == (done.returncode == 0)
