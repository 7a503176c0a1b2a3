"""minisend.config.toml.scan: never a result that tomllib would not give, and plain text without tomllib."""

import tomllib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minisend.config.toml import scan

_FEW = settings(max_examples=200, deadline=None)

# Pieces that meet often enough to form tables, keys, values and the faults next to them.
_PIECES = st.sampled_from([
    *'[]="\'#.,{}+-_\\\n\r\t \x00\x7f\x85\xa0\ufeff\ud800٣é',
    *["a", "b", "true", "false", "True", "0", "7", "07", "1_0", "0x1", "1.5", "inf", "9" * 19],
    *['"x"', '""', '"""', "'x'", '"\\n"', "[a]", "[b]", "[[a]]", "[a.b]", "[ a ]", "a.b = 1"],
    *["a = 1\n", 'b = "x"\n', "\r\n", " = ", "# c", "[1, 2]", "{ a = 1 }", "1979-05-27"],
])  # fmt: skip
_BARE = st.text("abAB01_-", min_size=1, max_size=4)
_GAP = st.sampled_from(["", " ", "  "])
_VALUES = st.one_of(
    st.text(st.characters(codec="ascii", exclude_characters='"\\', categories=["L", "N", "P", "S", "Zs"])).map(
        lambda text: f'"{text}"'
    ),
    st.integers(0, 10**18 - 1).map(str),
    st.sampled_from(["true", "false"]),
)  # fmt: skip


def _check(text: str) -> None:
    """The result is tomllib's, down to the type of each value, or None."""
    scanned = scan(text)
    if scanned is not None:
        assert repr(scanned) == repr(tomllib.loads(text))


@_FEW
@given(st.lists(_PIECES, max_size=12).map("".join))
@example('a = """"')
@example('a = ""b""')
@example("[a]\n[a]")
@example("a = 1\n[a]")
@example("a = 1\na = 2")
@example("a = 1 # \x00")
@example("# \x7f")
@example("a = 1\r")
def test_pieces(text: str) -> None:
    _check(text)


@_FEW
@given(st.text())
def test_any_text(text: str) -> None:
    _check(text)


@st.composite
def _plain(draw: st.DrawFn) -> str:
    """Text of the plain form, indented, commented and spaced at will, no name twice."""
    tables = draw(st.lists(_BARE, unique=True, max_size=4))
    keys = draw(st.lists(_BARE.filter(lambda key: key not in tables), unique=True, max_size=4))
    used = {"": keys} | {t: draw(st.lists(_BARE, unique=True, max_size=3)) for t in tables}
    lines = []
    for table, names in used.items():
        if table:
            lines.append(f"{draw(_GAP)}[{table}]{draw(_GAP)}")
        lines += [
            f"{draw(_GAP)}{name}{draw(_GAP)}={draw(_GAP)}{draw(_VALUES)}{draw(_GAP)}"
            for name in names
        ]
        lines.append(draw(st.sampled_from(["", "# a comment", "\t"])))
    return draw(st.sampled_from(["\n", "\r\n"])).join(
        text + draw(st.sampled_from(["", "# c = [1]"])) for text in lines
    )


@_FEW
@given(_plain())
def test_plain_text_is_read_without_tomllib(text: str) -> None:
    """Otherwise None for everything would pass the tests above."""
    if any(name.strip("-_") == "" for name in _names(text)):
        return  # a name of dashes alone is TOML; the scanner leaves it to tomllib
    assert repr(scan(text)) == repr(tomllib.loads(text))


def _names(text: str) -> list[str]:
    """Every table name and key."""
    loaded = tomllib.loads(text)
    return [
        *loaded,
        *(key for table in loaded.values() if isinstance(table, dict) for key in table),
    ]


@pytest.mark.parametrize(
    "text",
    [
        r'a = "x\n"',
        "a = 'x'",
        'a = """x"""',
        'a = """"x"""',
        "a.b = 1",
        '"a" = 1',
        "a = {}",
        "a = [1]",
        "[[a]]",
        "[a.b]",
        "[ a ]",
        '["a"]',
        "a = +1",
        "a = -1",
        "a = 1_0",
        "a = 0x1",
        "a = 1.5",
        "a = inf",
        "a = 1979-05-27",
        "a\t= 1",
        'a = "é"',
    ],
)
def test_falls_back(text: str) -> None:
    """TOML that is not plain goes to tomllib."""
    tomllib.loads(text)
    assert scan(text) is None


@pytest.mark.parametrize(
    "text",
    [
        *['a = "x', "a = 01", "a = True", "a =", "a", "= 1", "a b = 1", "é = 1", "[a", "[]", "a = 1 b"],
        *["[a] b", 'a = "x" b', 'a = ""x', "a = 1\na = 1", "[a]\n[a]", "a = 1\n[a]", "a = 1\rb = 2"],
        *["a = ٣", "\ufeffa = 1", "a = 1 # \x01", 'a = "\x7f"', "a = 1\x0c", "a = " + "9" * 5000],
    ],
)  # fmt: skip
def test_never_accepts_what_tomllib_refuses(text: str) -> None:
    with pytest.raises(ValueError):
        tomllib.loads(text)
    assert scan(text) is None
