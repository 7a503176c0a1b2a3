"""What the two READMEs name is there."""

import re
from pathlib import Path

from minisend.admin.arguments import parser
from minisend.spool.layout import UNITS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
FOR_PACKAGES = (ROOT / "packaging/README.md").read_text()
KEYS = set(re.findall(r"^\.It Ic (\S+)", (ROOT / "man/minisend.toml.5").read_text(), re.M))


def code(text):
    return re.findall(r"`([^`]+)`", text)


def in_place_of_postfix():
    """The right side of the two tables."""
    section = README.split("### In place of a null-client Postfix\n")[1].split("\n### ")[0]
    rows = [line.split(" | ")[1] for line in section.splitlines() if line.startswith("| ")]
    settings, commands = [], []
    for right in rows:
        (commands if "minisend " in right or "mailq" in right else settings).extend(code(right))
    return settings, commands


def test_units():
    for text in (README, FOR_PACKAGES):
        assert [unit for unit in UNITS if unit not in text] == []


def test_settings():
    settings, _ = in_place_of_postfix()
    words = {word.split(" = ")[0].strip('"') for word in settings if word[0] != "["}
    assert len(words) > 15
    # The second of two values.
    assert words - KEYS == {"opportunistic"}


def test_commands():
    _, commands = in_place_of_postfix()
    [subcommands] = [a.choices for a in parser()._actions if a.dest == "command"]
    named = {word.removeprefix("minisend ").split()[0] for word in commands}
    assert {"flush", "queue", "show", "log"} < named
    assert named - set(subcommands) == {"mailq"}


def test_variables_of_the_installer():
    install = (ROOT / "packaging/install").read_text()
    used = set(re.findall(r"\b([A-Z]{5,})=", README + FOR_PACKAGES))
    assert {"PREFIX", "DESTDIR", "SUFFIX", "COMPILE"} <= used
    assert [name for name in used if f"${{{name}:-" not in install] == []
