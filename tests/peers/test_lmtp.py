"""Dovecot's LMTP server and its mailboxes: each recipient of a message has an outcome of its own, and what is in the mailboxes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from delivery.program import Program
from delivery.reports import read_report

from peers.certificate import Certificate
from peers.dovecot import DovecotLMTP

pytestmark = pytest.mark.peer

HEADER = b"From: me@x.test\nDate: Mon, 2 Nov 2026 10:00:00 +0100\nMessage-ID: <1@x.test>\n"
ROOM = 2000
MAILBOXES = {"me@x.test": 0, "one@x.test": 0, "two@x.test": 0, "little@x.test": ROOM}


@pytest.fixture(scope="module")
def server(certificate: Certificate) -> Iterator[DovecotLMTP]:
    with DovecotLMTP(MAILBOXES, certificate=certificate) as running:
        yield running
        # pytest shows it for a test that fails.
        print(f"--- log of dovecot\n{running.log()[-20_000:]}")


class Sending:
    """The program with the server behind a route, and what has come into the mailboxes since."""

    def __init__(self, server: DovecotLMTP, place: str, directory: Path, delivery: str) -> None:
        self._server = server
        self._before = len(server.arrived())
        self.program = Program(
            directory,
            f'[[route]]\nrecipient = "x.test"\nvia = "lmtp:{place}"\n[delivery]\n{delivery}',
        )

    def stored(self) -> list[tuple[bytes, tuple[bytes, ...], bytes]]:
        """Sender, recipients and message, without our Received field, of each transaction."""
        return [
            (
                each.sender,
                each.recipients,
                each.message.partition(b"\n\tid ")[2].partition(b"\n")[2],
            )
            for each in self._server.arrived()[self._before :]
        ]

    def traces(self) -> list[bytes]:
        return [each.trace for each in self._server.arrived()[self._before :]]


@pytest.fixture(params=["TCP", "TCP without TLS", "unix socket"])
def sending(request: pytest.FixtureRequest, server: DovecotLMTP, tmp_path: Path) -> Sending:
    if request.param == "unix socket":
        return Sending(server, str(server.path), tmp_path, "")
    delivery = 'tls = "none"\n' if request.param == "TCP without TLS" else ""
    return Sending(server, f"[{server.address}]:{server.port}", tmp_path, delivery)


def fates(program: Program) -> list[tuple[str, str]]:
    """Address and status of each recipient that waits."""
    return [
        (str(each["address"]), str(each["status"]))
        for message in program.queue()
        for each in message["recipients"]
    ]


def test_one_is_refused_beside_others_that_are_taken(sending: Sending) -> None:
    message = HEADER + b"Subject: three\n\n.body \xe9\n..\n"
    sending.program.sendmail(
        *("-i", "-f", "me@x.test", "one@x.test", "nobody@x.test", "two@x.test"), stdin=message
    )
    assert sending.program.flush() == (69, "1 delivered, 0 waiting, 1 failed")
    assert sending.program.queue() == []
    taken, report = sending.stored()
    assert taken == (b"me@x.test", (b"one@x.test", b"two@x.test"), message)
    assert report[:2] == (b"", (b"me@x.test",))
    told = read_report(report[2])
    assert told.fates() == [("nobody@x.test", "failed", "5.1.1")]
    assert told.recipients[0]["Diagnostic-Code"] == (
        "smtp; 550 5.1.1 <nobody@x.test> User doesn't exist: nobody@x.test"
    )


def test_a_full_mailbox_is_heard_of_after_the_message(sending: Sending) -> None:
    """All are accepted; then each has a reply of its own, and one of them says that it does not fit."""
    message = HEADER + b"Subject: too much for one\n\n" + (b"x" * 69 + b"\n") * (ROOM // 70)
    sending.program.sendmail(
        *("-f", "me@x.test", "one@x.test", "little@x.test", "two@x.test"), stdin=message
    )
    assert sending.program.flush() == (69, "1 delivered, 0 waiting, 1 failed")
    taken, report = sending.stored()
    assert taken == (b"me@x.test", (b"one@x.test", b"two@x.test"), message)
    told = read_report(report[2])
    assert told.fates() == [("little@x.test", "failed", "5.2.2")]
    assert "Quota exceeded (mailbox for user is full)" in " ".join(told.text.split())


def test_all_are_refused(sending: Sending) -> None:
    sending.program.sendmail(
        *("-f", "me@x.test", "no@x.test", "nobody@x.test"), stdin=HEADER + b"Subject: none\n\n"
    )
    assert sending.program.flush()[0] == 69
    (report,) = sending.stored()
    assert read_report(report[2]).fates() == [
        ("no@x.test", "failed", "5.1.1"),
        ("nobody@x.test", "failed", "5.1.1"),
    ]


def test_many_messages_over_one_connection(server: DovecotLMTP, tmp_path: Path) -> None:
    """Those that are refused in between cost the others nothing."""
    sending = Sending(server, str(server.path), tmp_path, "connections = 1\n")
    connections = server.log().count("Info: Connect from ")
    given = {}
    for number in range(30):
        to = ("one@x.test", "two@x.test") if number % 2 else ("two@x.test",)
        message = HEADER + b"Subject: %d\n\n" % number + b"line %d\n" % number * number * 10
        if number % 5:
            given[message] = tuple(each.encode() for each in to)
        sending.program.sendmail(
            *("-N", "never", "-f", "me@x.test"),
            *(to if number % 5 else ("nobody@x.test",)),
            stdin=message,
        )
    assert sending.program.flush() == (69, "24 delivered, 0 waiting, 6 failed")
    assert {message: to for _, to, message in sending.stored()} == given
    assert len(sending.stored()) == len(given)
    assert server.log().count("Info: Connect from ") == connections + 1


def test_tls_is_used_where_it_is_offered(server: DovecotLMTP, tmp_path: Path) -> None:
    """Its certificate is not for this address, which for a server of one's own need not matter (RFC 7435)."""
    place = f"[{server.address}]:{server.port}"
    for number, (delivery, seen) in enumerate(
        [("", b"with LMTPS"), ('tls = "none"\n', b"with LMTP\n")]
    ):
        directory = tmp_path / str(number)
        directory.mkdir()
        sending = Sending(server, place, directory, delivery)
        sending.program.sendmail("one@x.test", stdin=HEADER + b"\n")
        assert sending.program.flush() == (0, "1 delivered, 0 waiting, 0 failed")
        (trace,) = sending.traces()
        assert seen in trace


def test_a_server_that_is_down_and_comes_back(certificate: Certificate, tmp_path: Path) -> None:
    with DovecotLMTP(MAILBOXES) as server:
        sending = Sending(server, str(server.path), tmp_path, "")
        server.stop()
        sending.program.sendmail("one@x.test", "two@x.test", stdin=HEADER + b"\nlater\n")
        assert sending.program.flush() == (75, "0 delivered, 1 waiting, 0 failed")
        assert fates(sending.program) == [("one@x.test", "4.4.1"), ("two@x.test", "4.4.1")]
        server.start()
        assert sending.program.flush("--all") == (0, "1 delivered, 0 waiting, 0 failed")
        assert sending.program.queue() == []
        ((_, recipients, message),) = sending.stored()
        assert (recipients, message) == ((b"one@x.test", b"two@x.test"), HEADER + b"\nlater\n")
