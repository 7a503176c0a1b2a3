"""The minisend command: its arguments, its summary line, its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import minisend
from minisend.admin import command, flush
from minisend.admin.command import main
from minisend.delivery import flush as engine
from minisend.delivery.destination import Destinations, Down
from minisend.errors import PermissionDenied, UsageError
from minisend.log import Log

NOW = 1795440600.0
CHECKOUT = Path(minisend.__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected a command (got nothing): see minisend --help"),
        (["--what"], "unrecognized arguments: --what"),
        (["queue", "-C", "x.toml"], "-C FILE comes first: minisend -C FILE COMMAND"),
        (["queue", "-Cx.toml"], "-C FILE comes first: minisend -C FILE COMMAND"),
        (["flsh"], "invalid choice: 'flsh'"),
        (["flush", "--al"], "unrecognized arguments: --al"),
        (["flush", "--json", "--quiet"], "flush: --json or --quiet, not both"),
        (["flush", "--recipient"], "argument --recipient: expected one argument"),
        (["flush", "--recipient", ""], "--recipient: expected a domain (got nothing)"),
        (
            ["flush", "--all", "0000000000000001"],
            "name messages, or use --all or --recipient, not both",
        ),
        (["flush", "--recipient", "e.org", "0000000000000001"], "not both"),
        (["queue", "a", "--state", "new"], "queue: name messages, or use filters, not both"),
        (["queue", "--state", "old"], "invalid choice: 'old' (choose from "),
        (
            ["queue", "--recipient", ""],
            "--recipient: expected an address or a domain (got nothing)",
        ),
        (
            ["queue", "--older-than", "2"],
            '--older-than: expected a time such as 90s, 30m, 2h or 5d (got "2")',
        ),
        (["queue", "--younger-than", "-1h"], "--younger-than: expected one argument"),
        (["queue", "--older-than", "²d"], 'expected a time such as 90s, 30m, 2h or 5d (got "²d")'),
        (["show"], "the following arguments are required: ID (see minisend show --help)"),
        (["show", "a", "--raw", "--json"], "not allowed with argument --raw"),
        (["show", "a", "b", "--raw"], "show --raw: one message at a time"),
        (["rm"], "rm: which messages: their ids, --all or a filter (see minisend queue)"),
        (["rm", "--yes"], "rm: which messages: their ids"),
        (["rm", "a", "--all"], "rm: name messages, or use --all or a filter, not both"),
        (["hold", "a", "--older-than", "1d"], "hold: name messages, or use --all or a filter"),
        (["hold", "--state", "failed"], "invalid choice: 'failed' (choose from "),
        (["release", "--state", "hold"], "unrecognized arguments: --state"),
        (["requeue", "--state", "new"], "invalid choice: 'new'"),
        (["hold", "--all", "--yes"], "unrecognized arguments: --yes"),
        (["check", "--overdue", "soon"], 'expected a time such as 90s, 30m, 2h or 5d (got "soon")'),
        (["check", "id"], "unrecognized arguments: id"),
        (["queue", "--jsno"], "unrecognized arguments: --jsno"),
        (["demo", "a@example.net", "b@example.net"], "unrecognized arguments"),
    ],
)
def test_usage_errors_are_one_line(crafted, arguments, said):
    with pytest.raises(UsageError) as caught:
        main(arguments, str(crafted.config))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_usage_error_as_a_process():
    done = subprocess.run(
        [sys.executable, "-m", "minisend", "queue", "--what"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        64,
        "",
        "minisend: unrecognized arguments: --what (see minisend --help)\n",
    )


def test_version(capfd):
    with pytest.raises(SystemExit) as caught:
        main(["--version"], None)
    assert caught.value.code == 0
    assert capfd.readouterr() == (f"minisend {minisend.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["queue", "--help"]])
def test_help_that_cannot_be_written(arguments):
    """Said in one line; the interpreter itself finds it out at its end, and writes a trace."""
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run(
            [sys.executable, "-m", "minisend", *arguments],
            cwd=CHECKOUT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    said = "minisend: cannot write to descriptor 1: No space left on device\n"
    assert (done.returncode, done.stderr) == (71, said)


def test_help_names_every_command_and_no_hidden_option(capfd):
    for arguments in (["--help"], ["flush", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments, None)
    out = capfd.readouterr().out
    assert all(f"\n    {name} " in out for name in command._COMMANDS)
    assert "--background" not in out


@pytest.fixture
def flushed(crafted, monkeypatch, capfd):
    """Runs ``minisend flush`` with an engine that returns the given summary; gives exit code, output, selection."""

    def run(summary, *arguments):
        asked = []

        def flush(config, selection, *, log, progress, stop, processes, trace):
            asked.append(selection)
            progress(0, 1)
            return summary

        monkeypatch.setattr(engine, "flush", flush)
        capfd.readouterr()
        code = main(["flush", *arguments], str(crafted.config))
        return code, *capfd.readouterr(), *asked

    return run


@pytest.mark.parametrize(
    ("counts", "code", "line"),
    [
        ({"tried": 4, "delivered": 3, "deferred": 1}, 75, "3 delivered, 1 waiting, 0 failed"),
        ({"tried": 1, "delivered": 1}, 0, "1 delivered, 0 waiting, 0 failed"),
        ({"tried": 1, "failed": 1}, 69, "0 delivered, 0 waiting, 1 failed"),
        (
            {"tried": 1, "delivered": 1, "skipped": 2, "broken": 1},
            69,
            "1 delivered, 0 waiting, 0 failed, 2 being delivered by another process, 1 not readable, see the log",
        ),
        ({"skipped": 1}, 0, "nothing delivered, 1 being delivered by another process"),
        ({}, 0, "nothing to deliver: the queue is empty"),
    ],
)
def test_summary_line_and_exit_code(flushed, counts, code, line):
    assert flushed(engine.Summary(**counts)) == (code, line + "\n", "", engine.Selection())
    assert flushed(engine.Summary(**counts), "--quiet") == (code, "", "", engine.Selection())


def test_what_is_down_is_said(flushed, crafted, monkeypatch):
    """Of this run; and not where the log says it, nor with --quiet."""
    down = Down(
        *(NOW, 0, (), int(NOW) + 300, "4.3.5", "password_file: cannot be opened", "", "", "", NOW)
    )
    crafted.add("0000000000000001")
    destinations = Destinations(str(crafted.path))
    destinations.put("shop:[smtp.example.org]:587", down)
    destinations.put("[smtp.example.org]:587", down.but(at=NOW - 1, reason="of an earlier run"))
    waits = engine.Summary(tried=1, deferred=1)
    said = "shop:[smtp.example.org]:587: password_file: cannot be opened\n"
    for on_stderr, arguments, expected in (
        (False, (), said),
        (False, ("-v",), said),
        (False, ("--quiet",), ""),
        (True, (), ""),
    ):
        monkeypatch.setattr(Log, "on_stderr", on_stderr)
        assert flushed(waits, *arguments)[2] == expected
    for on_stderr in (False, True):
        monkeypatch.setattr(Log, "on_stderr", on_stderr)
        code, out, err, _ = flushed(waits, "--json")
        assert (code, err, out.count("\n")) == (75, "", 1)
        assert json.loads(out) == {
            "tried": 1,
            "delivered": 0,
            "waiting": 1,
            "failed": 0,
            "skipped": 0,
            "unreadable": 0,
            "stopped": False,
            "destinations": [
                {
                    "destination": "shop:[smtp.example.org]:587",
                    "reason": "password_file: cannot be opened",
                }
            ],
        }
    monkeypatch.setattr(Log, "on_stderr", False)
    delivered = engine.Summary(tried=1, delivered=1)
    assert flushed(delivered)[2] == ""
    assert json.loads(flushed(delivered, "--json")[1])["destinations"] == []


@pytest.mark.parametrize(
    ("arguments", "selection"),
    [
        ([], engine.Selection()),
        (["--all"], engine.Selection(everything=True)),
        (["--all", "--quiet"], engine.Selection(everything=True)),
        (["0000000000000001", "b"], engine.Selection(ids=("0000000000000001", "b"))),
        (["--quiet", "b"], engine.Selection(ids=("b",))),
        (["--recipient", "example.org"], engine.Selection(domain=b"example.org")),
    ],
)
def test_selection(flushed, arguments, selection):
    assert flushed(engine.Summary(), *arguments)[3] == selection


def test_nothing_due_says_until_when(flushed, crafted, refused):
    for number, until in ((1, NOW + 2100), (2, NOW + 86400)):
        crafted.add(f"000000000000000{number}")
        crafted.attempt(f"000000000000000{number}", [refused(0)], until=until)
    assert (
        flushed(engine.Summary())[1] == "nothing is due: 2 waiting, the next attempt is at 14:05\n"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "nothing was due: 2 waiting, the next attempt is due now"),
        (["--recipient", "example.com"], "nothing to deliver: no message matches"),
    ],
)
def test_nothing_tried_beside_a_message_that_was_never_tried(
    flushed, crafted, refused, arguments, line
):
    """It came after the look, or was not meant: its time is no time to show."""
    crafted.add("0000000000000001")
    crafted.add("0000000000000002")
    crafted.attempt("0000000000000002", [refused(0)], until=NOW + 2100)
    assert flushed(engine.Summary(), *arguments)[:2] == (0, line + "\n")


@pytest.mark.parametrize("part", ["id_part", "sender_part", "recipient_part"])
def test_a_part_that_matches_nothing(crafted, part):
    crafted.add("0000000000000001")
    selection = engine.Selection(everything=True, **{part: b"x"})
    line = flush._summary_line(engine.Summary(), selection, str(crafted.path))
    assert line == "nothing to deliver: no message matches"


def test_background_is_the_slotted_flush(crafted, monkeypatch, capfd):
    monkeypatch.setattr(engine, "background_flush", lambda config, log, stop: 7)
    assert main(["flush", "--background"], str(crafted.config)) == 7
    assert capfd.readouterr() == ("", "")


def test_queue_for_a_reader_that_left(crafted, monkeypatch):
    def gone(fd, octets):
        raise BrokenPipeError

    crafted.add("0000000000000001")
    monkeypatch.setattr("minisend.admin.terminal.posix.write", gone)
    assert main(["queue"], str(crafted.config)) == 0
    assert flush._summary_line(engine.Summary(tried=1, deferred=1), engine.Selection(), "") == (
        "0 delivered, 1 waiting, 0 failed"
    )


@pytest.mark.parametrize("part", ["ids", "domain", "id_part", "sender_part", "recipient_part"])
def test_a_part_of_a_queue_of_somebody_elses_is_not_flushed(part, monkeypatch):
    """The service knows all of the caller's messages or none; sendmail -qS must not become -q."""
    monkeypatch.setattr("minisend.admin.served.flush", lambda socket: pytest.fail("asked for all"))
    chosen = engine.Selection(**{part: ("0000000000000001",) if part == "ids" else b"ann"})
    with pytest.raises(PermissionDenied):
        flush._flush_served(chosen, "/no.sock", quiet=True)
    with pytest.raises(PermissionDenied, match=r"^flush --json: "):
        flush._flush_served(engine.Selection(), "/no.sock", quiet=False, as_json=True)


def test_root_does_not_try_without_what_only_the_service_is_given(system):
    """It would put the mail off, for the service too."""
    assert system.minisend("setup", "--system")[0] == 0
    system.write(
        "etc/minisend/config.toml",
        '[smarthosts.shop]\nhost = "smtp.example.org"\nusername = "u"\ncredential = "mail"\n',
    )
    assert system.minisend("flush", "--all") == (
        78,
        "",
        "minisend: flush: the credential mail is given to the service alone: systemctl start minisend-deliver, or "
        "systemd-run --pipe --wait -p User=minisend -p LoadCredential=mail:/path/to/secret minisend flush --all\n",
    )
    empty = (0, "nothing to deliver: the queue is empty\n", "")
    # That is how the second of the two runs it.
    assert system.minisend("flush", "--all", uid=system.number("minisend")) == empty
    system.mounts = "export CREDENTIALS_DIRECTORY=/run/credentials"
    assert system.minisend("flush", "--all") == empty
