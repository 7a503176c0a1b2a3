"""minisend demo: as a process, as a user runs it, and with faults planted in the server."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import minisend
from minisend.admin import demo as module
from minisend.admin.sink import Sink

CHECKOUT = Path(minisend.__file__).parents[1]
OWN = b"From: me@example.org\nSubject: mine\nX-Odd:   kept   so\n\n.\n..\nna\xc3\xafve\nno end"


def run(stdin, *arguments, tmp_path, **environment):
    """The demo as ``python3 -m minisend demo``; what it leaves in its directory for temporary files is an error."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "minisend", "demo", *arguments],
        input=stdin,
        cwd=CHECKOUT,
        env={"PATH": os.defpath, "TMPDIR": str(temporary), **environment},
        capture_output=True,
        check=False,
    )
    assert list(temporary.iterdir()) == []
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_sample(tmp_path):
    code, out, err = run(b"", tmp_path=tmp_path)
    assert (code, err) == (0, "")
    headings = [line for line in out.splitlines() if line[:1].isdigit()]
    assert [heading[:2] for heading in headings] == ["1.", "2.", "3.", "4.", "5.", "6."]
    assert "   $ sendmail -C config.toml -odq -i -f you@demo.example -t\n" in out
    assert "   -- 0 Kbytes in 1 Request.\n" in out
    assert "   1 delivered, 0 waiting, 0 failed\n" in out
    assert [line for line in out.splitlines() if "RCPT TO" in line] == [
        "   RCPT TO:<alice@example.net>",
        "   RCPT TO:<bob@example.net>",
        "   RCPT TO:<carol@example.net>",
    ]
    assert out.count("Bcc: carol@example.net") == 1
    assert "   Mail queue is empty\n" in out
    assert (
        "   header: 5 fields as sent\n           added: Received, Date, From, Message-ID\n" in out
    )
    assert "           removed: Bcc\n" in out
    assert out.endswith("\nOK: what arrived is what was sent.\n")
    assert "\x1b" not in out


def test_message_of_the_users_own(tmp_path):
    code, out, err = run(OWN, "someone@example.com", tmp_path=tmp_path)
    assert (code, err) == (0, "")
    assert (
        "   $ sendmail -C config.toml -odq -i -f you@demo.example -- someone@example.com\n" in out
    )
    assert "   RCPT TO:<someone@example.com>\n" in out
    assert out.count("   | X-Odd:   kept   so\n") == 2
    assert out.count("   | naïve\n") == 2
    assert "A message on its way" not in out
    assert "   header: 3 fields as sent\n           added: Received, Date, Message-ID\n" in out


@pytest.mark.parametrize(
    "message",
    [
        b"just one line",
        b"\n\n\n",
        b"\r\nbody\r",
        b"To: bare, b@example.net\nCc: other\n\nx",
        b"From someone Mon Nov 23 13:26:57 2026\nSubject: mbox\n\nFrom here\n",
        b"Subject: x\nno field\n\nx\n",
        b"Bcc: secret\nReturn-Path: <x@y>\nDate:\n\nx",
        b"\0\x80\xff\x1b[2J\n" + b"y" * 20000 + b"\n" + b"line\n" * 5000,
    ],
    ids=[
        "text",
        "empty lines",
        "no header",
        "bare names",
        "mbox",
        "broken header",
        "fields that go",
        "odd octets",
    ],
)
def test_any_text_works(message, tmp_path):
    code, out, err = run(message, tmp_path=tmp_path)
    assert (code, err) == (0, ""), out
    assert out.endswith("\nOK: what arrived is what was sent.\n")
    assert "\x1b" not in out


def test_nothing_of_the_users_is_touched(tmp_path):
    """Neither the configuration in force nor the queue it names; a broken one is not even read."""
    home = tmp_path / "home"
    home.mkdir()
    config = home / "config.toml"
    config.write_text(f'[spool]\npath = "{home}/spool"\n[nonsense]\n')
    code, out, err = run(
        b"",
        tmp_path=tmp_path,
        HOME=str(home),
        MINISEND_CONFIG=str(config),
        XDG_STATE_HOME=str(home / "state"),
        PYTHONPATH=str(home),
        NAME="Somebody Else",
    )
    assert "Somebody Else" not in out
    assert (code, err) == (0, ""), out
    assert [path.name for path in home.iterdir()] == ["config.toml"]


def test_recipient_that_is_no_address(tmp_path):
    code, out, err = run(b"x", "a@b@", tmp_path=tmp_path)
    assert (code, out) == (65, "")
    assert err.startswith("minisend: ")
    assert err.count("\n") == 1


def test_standard_input_that_never_says_anything(tmp_path, monkeypatch, capfd):
    """An open pipe without a writer's word must not hang the demo."""
    monkeypatch.setattr(module, "_STDIN_SECONDS", 0.01)
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert module.demo("a@example.net") == 0
    os.close(writing)
    out, err = capfd.readouterr()
    assert err == "minisend: nothing came on standard input: using the sample message\n"
    assert "Subject: A message on its way" in out


# -- faults


def spoilt(field, change):
    """A fault: the server keeps something else than what it took."""
    return lambda message: replace(message, **{field: change(getattr(message, field))})


FAULTS = {
    "drops a line": (
        spoilt(
            "octets",
            lambda o: o.replace(b"waited in the queue, and then went to a server.", b"", 1),
        ),
        "what arrived is not what was sent",
    ),
    "eats the dot": (
        spoilt("octets", lambda o: o.replace(b"\r\n.\r\n", b"\r\n\r\n", 1)),
        "line 5 of the body differs: sent b'.', arrived b''",
    ),
    "cuts the end": (spoilt("octets", lambda o: o[:-20]), "what arrived is not what was sent"),
    "bare line ends": (
        spoilt("octets", lambda o: o.replace(b"\r\n", b"\n")),
        "a line that arrived does not end with CRLF",
    ),
    "spoils a field": (
        spoilt("octets", lambda o: o.replace(b"on its way", b"on its  way", 1)),
        "the field Subject did not arrive as it was sent",
    ),
    "shows Bcc": (
        spoilt(
            "octets", lambda o: o.replace(b"Subject:", b"Bcc: carol@example.net\r\nSubject:", 1)
        ),
        "Bcc arrived",
    ),
    "loses a recipient": (spoilt("recipients", lambda r: r[1:]), "the recipients are ("),
    "other sender": (spoilt("sender", lambda s: b"x" + s), "the sender is b'xyou@demo.example'"),
}


@pytest.fixture
def quiet_stdin(monkeypatch):
    with open(os.devnull) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found(fault, quiet_stdin, monkeypatch, capfd):
    spoil, said = FAULTS[fault]

    class Faulty(Sink):
        def take(self, message):
            assert spoil(message) != message
            super().take(spoil(message))

    monkeypatch.setattr(module, "Sink", Faulty)
    assert module.demo("a@example.net") == 1
    out = capfd.readouterr().out
    assert said in out
    assert "\nFAILED: " in out
    assert "OK: " not in out


def test_server_that_refuses(quiet_stdin, monkeypatch, capfd):
    def refuse(self, client):
        client.sendall(b"421 go away\r\n")

    monkeypatch.setattr(Sink, "_session", refuse)
    assert module.demo("a@example.net") == 1
    out = capfd.readouterr().out
    assert out.endswith("FAILED: minisend ended with exit code 75\n")
    assert "   0 delivered, 1 waiting, 0 failed\n" in out


def test_message_that_arrives_twice(quiet_stdin, monkeypatch, capfd):
    class Doubling(Sink):
        def take(self, message):
            super().take(message)
            super().take(message)

    monkeypatch.setattr(module, "Sink", Doubling)
    assert module.demo("a@example.net") == 1
    assert capfd.readouterr().out.endswith("FAILED: the server got 2 messages in place of 1\n")
