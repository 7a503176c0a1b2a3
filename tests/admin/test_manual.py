"""The manuals against the tables in the code, and their form."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from peers.unpacked import unavailable

import minisend
from minisend import errors
from minisend.admin.arguments import parser
from minisend.admin.command import main
from minisend.submit import options

MANUALS = Path(minisend.__file__).parents[1] / "man"
OURS = ["sendmail.8", "minisend.1"]
PAGES = sorted(page.name for page in MANUALS.iterdir())


def described(page: str) -> set[str]:
    """The options that stand as items of a list in a manual, without the dash."""
    found = set()
    for line in (MANUALS / page).read_text().splitlines():
        if line.startswith(".It Fl "):
            found |= {word.strip(",") for word in re.findall(r"\bFl (\S+)", line)}
    return found


def test_every_option_of_sendmail_is_described():
    have = {word[0] for word in described("sendmail.8") if not word.startswith("-")}
    assert have == set(options._LETTERS) | {"C"}


@pytest.mark.parametrize("mode", sorted(options.MODES))
def test_every_mode_of_sendmail_is_described(mode):
    assert f"b{mode}" in described("sendmail.8")


@pytest.mark.parametrize("letter", sorted(options.DELIVERY))
def test_every_delivery_mode_of_sendmail_is_described(letter):
    assert f"od{letter}" in described("sendmail.8")


def commands():
    (action,) = [a for a in parser()._actions if a.dest == "command"]
    return action.choices


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_and_option_of_minisend_is_described(name):
    import argparse

    text = (MANUALS / "minisend.1").read_text()
    assert re.search(rf"^\.It Cm {name}\b", text, re.MULTILINE)
    for action in commands()[name]._actions:
        for option in action.option_strings:
            if option.startswith("--") and option != "--help" and action.help != argparse.SUPPRESS:
                assert f"Fl -{option[2:]}" in text


def exit_codes(page: str) -> dict[int, str]:
    """Code and text of the items of EXIT STATUS."""
    section = (MANUALS / page).read_text().split(".Sh EXIT STATUS\n")[1].split("\n.Sh ")[0]
    return {
        int(code): text
        for code, text in re.findall(r"^\.It (\d+)[^\n]*\n(.*?)(?=^\.It|\Z)", section, re.M | re.S)
    }


def classes(of: type) -> "set[type]":
    return {of}.union(
        *(classes(sub) for sub in of.__subclasses__() if sub.__module__ == errors.__name__)
    )


def test_exit_status_of_sendmail_is_the_error_tree():
    codes = {of.exit_code for of in classes(errors.MinisendError)}
    assert set(exit_codes("sendmail.8")) == codes | {0}


def test_exit_status_of_minisend_is_what_its_commands_return():
    from minisend.admin import actions

    codes = {actions._TRY_AGAIN, actions._NOT_THIS_ONE, actions._NOT_DONE, 0}
    assert set(exit_codes("minisend.1")) == codes | {69}


def test_every_key_of_the_objects_is_described(four, capfd):
    text = (MANUALS / "minisend.1").read_text()
    assert main(["show", "--json", "0000000000000002"], str(four.config)) == 0
    assert main(["check", "--json"], str(four.config)) == 1
    for line in capfd.readouterr().out.splitlines():
        told = json.loads(line)
        keys = set(told) | set(told.get("envelope") or ())
        assert {key for key in keys if not re.search(rf"\b{key}\b", text)} == set()


def test_every_key_of_what_doctor_writes_is_described(crafted, capfd):
    text = (MANUALS / "minisend.1").read_text()
    main(["doctor", "--json"], str(crafted.config))
    told = json.loads(capfd.readouterr().out)
    keys = set(told) | set(told["checks"][0])
    assert {key for key in keys if not re.search(rf"\b{key}\b", text)} == set()


def test_the_directories_of_the_system_are_described():
    from minisend.spool.layout import DIRECTORIES

    text = (MANUALS / "minisend.1").read_text()
    section = text.split(".Sh FILES\n")[1].split("\n.Sh ")[0]
    assert re.findall(r"^\.It Pa (.*)$", section, re.M) == [
        f"{row.path} Ta {row.owner}:{row.group} Ta {row.mode:04o} Ta {row.about}"
        for row in DIRECTORIES
    ]


@pytest.mark.parametrize("page", OURS)
def test_form(page):
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed")
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", MANUALS / page],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.parametrize("page", PAGES)
def test_man_shows_all_of_it_in_80_columns(page):
    """As man-db's man(1) formats it, which is not mandoc: no complaint, and no line that runs over."""
    if shutil.which("groff") is None:
        unavailable("groff is not installed")
    done = subprocess.run(
        ["groff", "-mandoc", "-Tutf8", "-ww", "-rLL=78n", "-P-cbou", MANUALS / page],
        capture_output=True,
        text=True,
        check=True,
    )
    source = (MANUALS / page).read_text().splitlines()
    complaints = [line for line in done.stderr.splitlines() if not _is_of_a_path(line, source)]
    wide = [line for line in done.stdout.splitlines() if len(line) > 78 and "tests/" not in line]
    assert (complaints, wide) == ([], [])
    sections = re.findall(r"^\.Sh (.*)$", "\n".join(source), re.M)
    assert [line for line in done.stdout.splitlines() if line in sections] == sections


def _is_of_a_path(complaint: str, source: list[str]) -> bool:
    """The name of a test stands on a line of its own and is never broken."""
    found = re.search(r":(\d+): warning .*can't break line", complaint)
    return found is not None and source[int(found[1]) - 1].startswith(".Dl tests/")
