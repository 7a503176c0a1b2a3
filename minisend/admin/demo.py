"""minisend demo: one message through the real programs, from standard input to a server, each step shown.

    sendmail -odq    a process: takes the message, queues it
    mailq            a process: shows it
    minisend flush   a process: delivers it to a server of ours on 127.0.0.1
    mailq            shows that nothing is left

Then compares what the server got with what was sent, and only if nothing differs but what has to returns 0.

Queue and configuration are temporary and its own: it reads no configuration file of the system or the user, hands no
environment on, and talks to the loopback interface only.  Needs nothing but Python and the package.
"""

import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import NoReturn

import minisend
from minisend.address import parse_recipients, qualify
from minisend.admin.compare import Comparison, compare
from minisend.admin.sink import Received, Sink
from minisend.admin.terminal import BOLD, CYAN, DIM, GREEN, RED, Paint, printable, write

_DOMAIN = "demo.example"
_SENDER = "you@demo.example"
_SAMPLE_RECIPIENTS = [b"alice@example.net", b"bob@example.net", b"carol@example.net"]
_SAMPLE = """\
To: Alice <alice@example.net>, bob@example.net
Bcc: carol@example.net
Subject: A message on its way
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

Hello,

this text went into sendmail, was on disk when sendmail came back,
waited in the queue, and then went to a server.  A line with a dot,
.
and a few letters beyond ASCII, æ ø å, have to survive that.
""".encode()

_STEP_SECONDS = 120
# An open pipe that nobody writes to, as some job runners leave it, must not make the demo wait for ever.
_STDIN_SECONDS = 3.0
_SHOWN_LINES = 40


class _Failed(Exception):
    """A step did not do what it should; the text says what."""


def demo(recipient: str) -> int:
    """Run the demo and show it on standard output; returns 0 when what arrived is what was sent, else 1.

    ``recipient``  envelope recipient of a message that is found on standard input
    Raises AddressError when that is no address.
    """
    paint = Paint(1)
    addresses = [
        qualify(address, _DOMAIN.encode())
        for address in parse_recipients(recipient.encode("utf-8", "surrogateescape"))
    ]
    message = _message_on_stdin()
    old = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        if message is None:
            _run(_SAMPLE, ["-t"], _SAMPLE_RECIPIENTS, paint)
        else:
            _run(message, ["--", recipient], addresses, paint)
    except _Failed as exc:
        write(1, "\n" + paint(RED, f"FAILED: {printable(str(exc))}") + "\n")
        return 1
    except BrokenPipeError:
        return 1  # whoever was to see that all is well has gone
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    return 0


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """A signal ends the demo like an exception, so that everything is cleaned up."""
    raise SystemExit(128 + number)


def _message_on_stdin() -> bytes | None:
    """What is on standard input, None when that is a terminal or empty."""
    if sys.stdin is None or sys.stdin.isatty():
        return None
    fd = sys.stdin.fileno()
    if not select.select([fd], [], [], _STDIN_SECONDS)[0]:
        write(2, "minisend: nothing came on standard input: using the sample message\n")
        return None
    pieces = []
    while piece := os.read(fd, 65536):
        pieces.append(piece)
        select.select([fd], [], [])  # the caller may have left it in non-blocking mode
    return b"".join(pieces) or None


def _run(message: bytes, arguments: list[str], recipients: list[bytes], paint: Paint) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="minisend-demo-") as directory,
        Sink(b"server.example") as server,
    ):
        config = Path(directory, "config.toml")
        config.write_text(_config(f"{directory}/spool", server.port), encoding="utf-8")
        steps = _Steps(config, paint)

        steps.heading("sendmail takes a message on standard input and queues it")
        steps.run(["sendmail", "-odq", "-i", "-f", _SENDER, *arguments], stdin=message)
        steps.show(message)

        steps.heading("mailq shows it waiting")
        waiting = steps.run(["mailq"])
        steps.text(waiting)
        if not waiting.rstrip().endswith("in 1 Request."):
            raise _Failed("mailq does not show one message")

        steps.heading(f"minisend flush delivers it, to a server on 127.0.0.1 port {server.port}")
        steps.text(steps.run(["minisend", "flush"]))

        steps.heading("the server has it")
        if len(server.received) != 1:
            raise _Failed(f"the server got {len(server.received)} messages in place of 1")
        received = server.received[0]
        _show_envelope(received, steps)
        steps.show(received.octets.replace(b"\r\n", b"\n"))

        steps.heading("mailq shows an empty queue")
        left = steps.run(["mailq"])
        steps.text(left)
        if not left.endswith("Mail queue is empty\n"):
            raise _Failed("mailq does not say that the queue is empty")

        steps.heading("what arrived against what was sent")
        _check_envelope(received, recipients)
        _show_comparison(compare(message, received.octets, _DOMAIN.encode()), steps, paint)


def _config(spool: str, port: int) -> str:
    # A JSON string without \u escapes is a basic string of TOML.
    return f"""\
hostname = "host.{_DOMAIN}"
mail_domain = "{_DOMAIN}"

[spool]
path = {json.dumps(spool, ensure_ascii=False)}

[submission]
socket = false
drop = false

[smarthost]
host = "127.0.0.1"
port = {port}
tls = "none"
"""


class _Steps:
    """Runs the programs of the demo, and shows what they are asked and what they say."""

    def __init__(self, config: Path, paint: Paint) -> None:
        self._config = config
        self._paint = paint
        self._number = 0

    def heading(self, text: str) -> None:
        """The next step."""
        self._number += 1
        gap = "\n" if self._number > 1 else ""
        write(1, gap + self._paint(BOLD, f"{self._number}. {text}") + "\n")

    def text(self, text: str) -> None:
        """What a program said."""
        write(1, "".join(f"   {line}".rstrip() + "\n" for line in text.splitlines()))

    def show(self, octets: bytes) -> None:
        """A message; a long one is cut."""
        margin = self._paint(DIM, "|")
        lines = octets.splitlines()
        for line in lines[:_SHOWN_LINES]:
            write(1, f"   {margin} {printable(line.expandtabs())}".rstrip() + "\n")
        if len(lines) > _SHOWN_LINES:
            write(1, f"   {margin} ... and {len(lines) - _SHOWN_LINES} lines more\n")

    def run(self, words: list[str], stdin: bytes = b"") -> str:
        """Run a program as a process of its own; returns what it says on standard output.

        Raises _Failed when it does not end with 0.
        """
        face, *arguments = words
        write(
            1,
            f"   {self._paint(CYAN, '$ ' + shlex.join([face, '-C', self._config.name, *arguments]))}\n",
        )
        launcher = Path(minisend.__file__).with_name("__main__.py").absolute()
        if not sys.executable or not launcher.exists():
            raise _Failed("cannot start processes of its own: Python does not say where it is")
        try:
            done = subprocess.run(  # noqa: S603 - our own program, no shell
                [sys.executable, "-I", launcher, face, "-C", self._config, *arguments],
                input=stdin,
                capture_output=True,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                cwd=self._config.parent,
                timeout=_STEP_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _Failed(f"{face} did not end within {_STEP_SECONDS} s") from None
        self.text(done.stderr.decode("utf-8", "replace"))
        if done.returncode != 0:
            self.text(done.stdout.decode("utf-8", "replace"))
            raise _Failed(f"{face} ended with exit code {done.returncode}")
        return done.stdout.decode("utf-8", "replace")


def _show_envelope(received: Received, steps: _Steps) -> None:
    steps.text(f"MAIL FROM:<{printable(received.sender)}>")
    for recipient in received.recipients:
        steps.text(f"RCPT TO:<{printable(recipient)}>")


def _check_envelope(received: Received, recipients: list[bytes]) -> None:
    if received.sender != _SENDER.encode():
        raise _Failed(f"the sender is {received.sender!r} in place of {_SENDER!r}")
    if sorted(received.recipients) != sorted(recipients):
        raise _Failed(f"the recipients are {received.recipients!r} in place of {recipients!r}")


def _show_comparison(result: Comparison, steps: _Steps, paint: Paint) -> None:
    for problem in result.problems:
        steps.text(printable(problem))
    if result.problems:
        raise _Failed("what arrived is not what was sent")
    steps.text(f"header: {result.kept} field{'' if result.kept == 1 else 's'} as sent")
    steps.text(f"        added: {', '.join(result.added) or 'none'}")
    if result.removed:
        steps.text(f"        removed: {', '.join(result.removed)}")
    steps.text("body:   the same, octet for octet")
    write(1, "\n" + paint(GREEN, "OK: what arrived is what was sent.") + "\n")
