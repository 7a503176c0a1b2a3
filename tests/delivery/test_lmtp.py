"""A route to an LMTP server: each recipient of a message has an outcome of its own, over a unix socket and over TCP."""

from pathlib import Path

import pytest
from delivery.program import Program
from delivery.reports import read_report
from smtp.lmtp import LmtpServer


def answer(at: bytes, address: bytes) -> bytes | None:
    if at == b"RCPT" and address.startswith(b"no@"):
        return b"550 5.1.1 no such mailbox"
    if at == b"message" and address.startswith(b"full@"):
        return b"452 4.2.2 over quota"
    if at == b"message" and address.startswith(b"never@"):
        return b"550 5.7.1 not from you"
    return None


@pytest.mark.parametrize("unix", [True, False], ids=["unix socket", "TCP"])
@pytest.mark.parametrize("keywords", [(), (b"PIPELINING", b"CHUNKING")], ids=["plain", "chunks"])
def test_each_recipient_has_its_outcome(
    tmp_path: Path, unix: bool, keywords: tuple[bytes, ...]
) -> None:
    path = str(tmp_path / "lmtp")
    with LmtpServer(path if unix else None, keywords=keywords, reply=answer) as server:
        via = f"lmtp:{path}" if unix else f"lmtp:[127.0.0.1]:{server.port}"
        mta = f"localhost[{path}]" if unix else f"127.0.0.1[127.0.0.1]:{server.port}"
        program = Program(tmp_path, f'[[route]]\nrecipient = "x.test"\nvia = "{via}"\n')
        program.sendmail(
            *("-f", "me@x.test", "one@x.test", "no@x.test", "full@x.test", "never@x.test"),
            stdin=b"Subject: s\n\nhello\n",
        )
        # The report goes by the same route.
        assert program.flush() == (75, "1 delivered, 1 waiting, 0 failed")
        (message,) = program.queue()
        (waiting,) = message["recipients"]
        assert (waiting["address"], waiting["status"], waiting["remote_mta"]) == (
            "full@x.test",
            "4.2.2",
            mta,
        )
        assert waiting["delay_reason"] == (
            f"host {mta} said: 452 4.2.2 over quota (in reply to end of data)"
        )
        (to, _), (back, report) = server.messages
        assert to == (b"one@x.test", b"full@x.test", b"never@x.test")
        assert back == (b"me@x.test",)
        assert read_report(report.replace(b"\r\n", b"\n")).fates() == [
            ("no@x.test", "failed", "5.1.1"),
            ("never@x.test", "failed", "5.7.1"),
        ]
        assert b"HELO" not in server.commands and b"EHLO" not in server.commands


def test_a_socket_that_nobody_listens_on(tmp_path: Path) -> None:
    path = str(tmp_path / "lmtp")
    program = Program(tmp_path, f'[[route]]\nrecipient = "x.test"\nvia = "lmtp:{path}"\n')
    program.sendmail("one@x.test", stdin=b"Subject: s\n\n")
    assert program.flush() == (75, "0 delivered, 1 waiting, 0 failed")
    (message,) = program.queue()
    (waiting,) = message["recipients"]
    assert waiting["delay_reason"] == f"connect to {path}: No such file or directory"
    with LmtpServer(path) as server:
        assert program.flush("--all") == (0, "1 delivered, 0 waiting, 0 failed")
    assert [recipients for recipients, _ in server.messages] == [(b"one@x.test",)]
