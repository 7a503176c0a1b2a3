"""The progress bar: what reaches the terminal, octet by octet, and that nothing does elsewhere."""

import os
import pty

import pytest

from minisend.admin import terminal
from minisend.admin.progress import Progress

CLEAR = "\r\x1b[K"


@pytest.fixture
def screen(monkeypatch):
    """Runs a function with a terminal as standard error and returns what it wrote there."""
    monkeypatch.setattr(terminal.posix, "environ", {b"TERM": b"xterm"})
    monkeypatch.setenv("COLUMNS", "80")

    def run(function):
        outer, inner = pty.openpty()
        saved = os.dup(2)
        os.dup2(inner, 2)
        try:
            function()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(inner)
        shown = b""
        try:
            while octets := os.read(outer, 65536):
                shown += octets
        except OSError:
            pass  # EIO: all is read, and the other end is closed
        finally:
            os.close(outer)
        return shown.decode()

    return run


def test_drawn_limited_and_gone_at_the_end(screen):
    now = [0.0]

    def flush():
        with Progress("flushing", clock=lambda: now[0]) as progress:
            for at, done in ((0.0, 0), (0.05, 1), (0.09, 2), (0.1, 100), (0.15, 150), (0.2, 200)):
                now[0] = at
                progress(done, 200)

    assert screen(flush) == (
        f"{CLEAR}flushing [{'.' * 30}] 0/200"
        f"{CLEAR}flushing [{'#' * 15}{'.' * 15}] 100/200"
        f"{CLEAR}flushing [{'#' * 30}] 200/200"
        f"{CLEAR}"
    )


def test_gone_after_an_exception(screen):
    def flush():
        try:
            with Progress("flushing") as progress:
                progress(1, 2)
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass

    assert screen(flush) == f"{CLEAR}flushing [{'#' * 15}{'.' * 15}] 1/2{CLEAR}"


def one_step(done, total, **options):
    def flush():
        with Progress("flushing", **options) as progress:
            progress(done, total)

    return flush


def test_nothing_was_due(screen):
    assert screen(one_step(0, 0)) == f"{CLEAR}flushing [{'#' * 30}] 0/0{CLEAR}"


def test_never_drawn_never_cleared(screen):
    def flush():
        with Progress("flushing"):
            pass

    assert screen(flush) == ""


def test_line_does_not_wrap(screen, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    assert screen(one_step(1, 2)) == f"{CLEAR}flushing [#########{CLEAR}"


def test_quiet(screen):
    assert screen(one_step(1, 2, shown=False)) == ""


def test_not_a_terminal(capfd):
    one_step(1, 2)()
    assert capfd.readouterr() == ("", "")


def test_terminal_that_is_gone_ends_nothing(screen, monkeypatch):
    def gone(fd, octets):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(terminal.posix, "write", gone)
    assert screen(one_step(1, 2)) == ""
