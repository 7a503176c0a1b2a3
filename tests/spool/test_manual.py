"""What minisend-spool(5) shows is what the program writes and reads."""

import ast
import pathlib
import re

import pytest

from minisend.spool.entry import Place
from minisend.spool.place import LEAVES, STATES
from spool.make import ID, claimed

ROOT = pathlib.Path(__file__).resolve().parents[2]
MANUAL = ROOT / "man" / "minisend-spool.5"
# What the queue promises whatever happens, as the manual calls it.
RULES = (
    *("exit 0 is on the disk", "another exit code leaves nothing", "states", "nothing lost"),
    *("record, then act", "report, then remove", "one window", "grouped fsync"),
    *("torn tail", "no room", "lost inode", "report twice", "clock stepped", "unknown version"),
    *("new directory", "nobody to tell", "broken file"),
    *("drop", "ingest", "claims", "once only"),
)


def test_the_example_is_a_message(queue):
    text = MANUAL.read_text()
    example = re.search(r"^\.Bd .*\n(minisend-queue 1\n(?:.*\n)+?)\.Ed$", text, re.MULTILINE)
    assert example is not None
    octets = example.group(1).replace("<TAB>", "\t").encode()
    with open(f"{queue.spool}/queue/new/{ID}", "wb") as file:
        file.write(octets)
    with claimed(queue, Place("new", ID)) as entry:
        assert b"".join(entry.verified_octets(b"", 0)) == b"Subject: hello\n\nHello.\n"
        assert entry.envelope.recipients[0].address == b"bob@example.net"
        assert entry.tail_at == len(octets)


def test_every_state_has_its_row():
    rows = re.findall(r"^\.It Pa (\w+/\w+) Ta .+ Ta .+$", MANUAL.read_text(), re.MULTILINE)
    states = [f"queue/{state}" for state in STATES] + [f"drop/{leaf}" for leaf in LEAVES]
    assert sorted(rows) == sorted(states)


def named_tests() -> dict[str, list[str]]:
    """What the section TESTS claims, each with the tests that it names."""
    section = MANUAL.read_text().partition("\n.Sh TESTS\n")[2].partition("\n.Sh ")[0]
    claims: dict[str, list[str]] = {}
    for line in section.splitlines():
        if line.startswith(".It Em "):
            claims[line.removeprefix(".It Em ")] = []
        elif line.startswith(".Dl "):
            claims[list(claims)[-1]].append(line.removeprefix(".Dl "))
    return claims


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_names_its_tests(rule):
    assert named_tests()[rule]


def test_each_test_named_is_there():
    named = {test for tests in named_tests().values() for test in tests}
    assert len(named) > len(RULES)
    for file in {test.partition("::")[0] for test in named}:
        functions = {
            f"{file}::{each.name}"
            for each in ast.parse((ROOT / file).read_text()).body
            if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")
        }
        assert {test for test in named if test.startswith(f"{file}::")} <= functions
