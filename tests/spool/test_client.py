"""The client of the submission socket against a service that follows a script: what it says, and what it makes of each answer.

In the end the caller knows one of four things: it is queued, it was refused, nobody was there, or it is lost - with whether
it may have been queued all the same.
"""

import errno
import socket
import threading
from binascii import crc32

import pytest

from minisend.envelope import Envelope, Recipient
from minisend.errors import DataError, SpoolError
from minisend.spool import client, protocol
from minisend.spool.protocol import frame
from minisend.spool.record import SUBMITTED_HEAD_LIMIT, format_head
from spool.scripted import DEADLINE, Scripted

ID = bytes(range(16))
HEX = ID.hex().encode()
MESSAGE = b"Subject: hello\n\nHello.\n"
SAID = Envelope("0" * 16, b"ann@example.org", [Recipient(b"bob@example.net")], arrived=1.0)
GREETING = b"minisend 1\n"
END = frame(b"Z", b"%d %08x" % (len(MESSAGE), crc32(MESSAGE)))
REQUEST = b"SUBMIT " + HEX + b"\n"
WHOLE = REQUEST + frame(b"E", format_head(SAID, 0)) + frame(b"M", MESSAGE) + END
STATUS = b"STATUS " + HEX + b"\n"


@pytest.fixture
def service(tmp_path):
    made = Scripted(tmp_path)
    yield made
    made.close()


def submit(service, message=(MESSAGE,), **options):
    return client.submit(service.path, ID, SAID, message, **options)


def heard(service):
    service.close()
    return service.heard


# -- what is said


def test_a_submission(service):
    service.follow([GREETING, len(WHOLE), b"OK 00112233445566aa\n", None])
    assert submit(service) == "00112233445566aa"
    assert heard(service) == [WHOLE + b"ACK\n"]


def test_one_that_waits_and_whose_size_is_known(service):
    said = (
        *(b"SUBMIT " + HEX + b" later\n", frame(b"E", format_head(SAID, len(MESSAGE)))),
        *(frame(b"M", MESSAGE), END),
    )
    service.follow([GREETING, len(b"".join(said)), b"OK x\n", None])
    assert submit(service, size=len(MESSAGE), later=True) == "x"
    assert heard(service) == [b"".join(said) + b"ACK\n"]


def test_pieces_of_any_size(service):
    """None is longer than a frame may be, and a pause is told at once as an empty one."""
    pieces = [b"a" * 10, b"", b"b" * (2 * protocol.PIECE + 1), b"c"]
    octets = b"".join(pieces)
    first = REQUEST + frame(b"E", format_head(SAID, 0)) + frame(b"M", b"a" * 10) + frame(b"M", b"")
    rest = (
        *(frame(b"M", b"b" * protocol.PIECE), frame(b"M", b"b" * protocol.PIECE)),
        *(frame(b"M", b"b"), frame(b"M", b"c")),
        frame(b"Z", b"%d %08x" % (len(octets), crc32(octets))),
    )
    service.follow([GREETING, len(first), len(b"".join(rest)), b"OK x\n", None])
    assert submit(service, pieces) == "x"
    assert heard(service) == [first + b"".join(rest) + b"ACK\n"]


def test_a_pause_is_told_before_more_is_read(service):
    first = REQUEST + frame(b"E", format_head(SAID, 0)) + frame(b"M", b"")
    told = threading.Event()

    def message():
        yield b""
        # The service has it by now, or never will.
        assert told.wait(DEADLINE)
        yield MESSAGE

    rest = frame(b"M", MESSAGE) + END
    service.follow([GREETING, len(first), told.set, len(rest), b"OK x\n", None])
    assert submit(service, message()) == "x"
    assert heard(service) == [first + rest + b"ACK\n"]


def test_more_recipients_than_fit(service):
    """Refused before anybody is asked."""
    many = Envelope("0" * 16, b"", [Recipient(b"%0999d@b" % n) for n in range(1100)], arrived=1.0)
    assert len(format_head(many, 0)) > SUBMITTED_HEAD_LIMIT
    with pytest.raises(DataError, match=r"^more recipients than the service takes: 1100$"):
        client.submit(service.path, ID, many, [MESSAGE])


# -- nobody serves


@pytest.mark.parametrize(
    ("greeting", "text"),
    [
        (b"busy\n", "the service is busy"),
        (b"220 h.example ESMTP\r\n", "not a minisend service"),
        (b"minisend 2\n", "not a minisend service"),
        (b"minisend 1 \n", "not a minisend service"),
        (b"\n", "not a minisend service"),
        (b"x" * 5000, "a line without an end"),
        (b"minisend 1", "closed by the other side"),
        (b"", "closed by the other side"),
    ],
)
def test_a_greeting_that_is_none(service, monkeypatch, greeting, text):
    monkeypatch.setattr(client, "_TURN", 0.0)
    service.follow([greeting])
    with pytest.raises(client.NotServed) as caught:
        submit(service)
    assert (str(caught.value), caught.value.number) == (text, 0)
    assert heard(service) == [b""]


def test_a_service_that_is_busy_is_asked_again(service):
    """Who would go to the drop at once would be nobody that is known, and in many a sandbox nowhere."""
    service.follow([b"busy\n"], [b"busy\n"], [GREETING, len(WHOLE), b"OK x\n", None])
    assert submit(service) == "x"
    assert heard(service) == [b"", b"", WHOLE + b"ACK\n"]


def test_the_pauses_of_who_is_told_busy(monkeypatch):
    now, pauses = [0.0], []

    def sleep(seconds):
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(client, "_greeted", lambda path: None)
    monkeypatch.setattr(client, "monotonic", lambda: now[0])
    monkeypatch.setattr(client, "sleep", sleep)
    with pytest.raises(client.NotServed, match=r"^the service is busy$") as caught:
        client.submit("", ID, SAID, [MESSAGE])
    assert caught.value.number == 0
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, *[1.0] * 8]


def test_a_greeting_that_does_not_come(service, monkeypatch):
    monkeypatch.setattr(client, "_GREETING", 0.05)
    service.follow([None])
    with pytest.raises(client.NotServed) as caught:
        submit(service)
    assert str(caught.value) == "no greeting within 0.05 s"
    assert caught.value.number == errno.ETIMEDOUT
    assert heard(service) == [b""]


def test_more_wait_than_the_service_lets(tmp_path, monkeypatch):
    """Neither refused by a service that has much to do, nor kept waiting for ever."""
    monkeypatch.setattr(client, "_GREETING", 1.0)
    path = f"{tmp_path}/s"
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as before:
        listening.bind(path)
        listening.listen(0)
        before.connect(path)
        with pytest.raises(client.NotServed) as caught:
            client.submit(path, ID, SAID, [MESSAGE])
    assert (str(caught.value), caught.value.number) == (
        "no greeting within 1 s",
        errno.ETIMEDOUT,
    )


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR])
def test_nobody_there(tmp_path, number):
    (tmp_path / "file").touch()
    path = f"{tmp_path}/file/s" if number == errno.ENOTDIR else f"{tmp_path}/s"
    with socket.socket(socket.AF_UNIX) as bound:
        if number == errno.ECONNREFUSED:
            bound.bind(path)
        with pytest.raises(client.NotServed) as caught:
            client.submit(path, ID, SAID, [MESSAGE])
    assert caught.value.number == number


def test_no_sockets_of_the_unix_kind(service, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(client._socket, "socket", refuse)
    with pytest.raises(client.NotServed) as caught:
        submit(service)
    assert caught.value.number == errno.EAFNOSUPPORT


def test_a_path_that_is_too_long(tmp_path):
    with pytest.raises(client.NotServed) as caught:
        client.submit(f"{tmp_path}/{'x' * 200}", ID, SAID, [MESSAGE])
    assert (str(caught.value), caught.value.number) == ("AF_UNIX path too long", 0)


# -- refused


@pytest.mark.parametrize(
    ("answer", "code", "status", "text"),
    [
        (b"NO 65 5.6.0 envelope: no", 65, "5.6.0", "envelope: no"),
        (b"NO 64 5.3.0 x", 64, "5.3.0", "x"),
        (b"NO 78 5.3.5 x", 78, "5.3.5", "x"),
        (b"NO 63 5.3.0 x", 75, "5.3.0", "x"),
        (b"NO 79 5.3.0 x", 75, "5.3.0", "x"),
        (b"NO 0 5.3.0 x", 75, "5.3.0", "x"),
        (b"NO -1 5.3.0 x", 75, "5.3.0", "x"),
        (b"NO 1000000 5.3.0 x", 75, "5.3.0", "x"),
        ("NO ٦٥ 5.3.0 x".encode(), 75, "5.3.0", "x"),
        (b"NO what 5.3.0 x", 75, "5.3.0", "x"),
        (b"NO 65 5.3.0 \xff", 65, "5.3.0", "\\xff"),
        (b"NO 65", 65, "", ""),
        (b"NO", 75, "", ""),
    ],
)
def test_a_refusal(service, answer, code, status, text):
    service.follow([GREETING, len(WHOLE), answer + b"\n", None])
    with pytest.raises(client.Refused) as caught:
        submit(service)
    assert (caught.value.exit_code, caught.value.status, str(caught.value)) == (code, status, text)
    # A refusal needs no acknowledgement, and is not asked for again.
    assert heard(service) == [WHOLE]


def test_a_refusal_while_the_message_is_still_sent(service):
    service.follow([GREETING, 5000, b"NO 69 5.3.4 too large\n"])
    read = []

    def endless():
        for number in range(100_000):
            read.append(number)
            yield b"x" * 65536

    with pytest.raises(client.Refused) as caught:
        submit(service, endless())
    assert (caught.value.exit_code, caught.value.status, str(caught.value)) == (
        *(69, "5.3.4"),
        "too large",
    )
    assert len(read) < 1000
    assert [len(each) for each in heard(service)] == [5000]


# -- lost


def test_the_answer_is_lost_and_it_was_queued(service):
    service.follow([GREETING, len(WHOLE)], [GREETING, len(STATUS), b"OK 00112233445566aa\n", None])
    assert submit(service) == "00112233445566aa"
    assert heard(service) == [WHOLE, STATUS + b"ACK\n"]


def test_an_answer_that_is_none_is_lost(service):
    service.follow([GREETING, len(WHOLE), b"YES\n"], [GREETING, len(STATUS), b"OK x\n", None])
    assert submit(service) == "x"


@pytest.mark.parametrize(
    ("then", "text", "kept"),
    [
        ([GREETING, len(STATUS), b"NO 75 4.3.0 no such submission\n"], "", False),
        ([GREETING, len(STATUS)], "; then closed by the other side", True),
        ([GREETING, len(STATUS), b"MAYBE\n"], "; then an answer that is none", True),
        ([b"busy\n"], "; then the service is busy", True),
        (None, "; then Connection refused", True),
    ],
    ids=["no", "lost too", "neither", "busy", "gone"],
)
def test_the_answer_is_lost_and(service, monkeypatch, then, text, kept):
    monkeypatch.setattr(client, "_TURN", 0.0)
    service.follow([GREETING, len(WHOLE)], *([then] if then else []))
    with pytest.raises(client.Lost) as caught:
        submit(service)
    assert (str(caught.value), caught.value.kept) == (f"closed by the other side{text}", kept)
    assert heard(service)[0] == WHOLE


def test_a_service_that_is_killed_while_the_message_is_sent(service):
    service.follow([GREETING, 5000], [GREETING, len(STATUS), b"NO 75 4.3.0 no\n"])
    with pytest.raises(client.Lost) as caught:
        submit(service, (b"x" * 65536 for _ in range(100_000)))
    assert not caught.value.kept


def test_an_answer_that_does_not_come(service, monkeypatch):
    monkeypatch.setattr(client, "_ANSWER", 0.05)
    service.follow([GREETING, None], [GREETING, None])
    with pytest.raises(client.Lost) as caught:
        submit(service)
    assert (str(caught.value), caught.value.kept) == ("timed out; then timed out", True)
    assert heard(service) == [WHOLE, STATUS]


def test_who_has_gone_cannot_be_told_that_it_was_heard(service, monkeypatch):
    """Which costs a tombstone and no message."""

    def refuse(self, octets, seconds):
        if octets == b"ACK\n":
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        send(self, octets, seconds)

    send = protocol.Stream.send
    monkeypatch.setattr(protocol.Stream, "send", refuse)
    service.follow([GREETING, len(WHOLE), b"OK x\n", None])
    assert submit(service) == "x"
    assert heard(service) == [WHOLE]


def test_a_message_that_cannot_be_read(service):
    """It is the caller's trouble: the service hears no end, and is not asked."""

    def broken():
        yield MESSAGE
        raise SpoolError("standard input: Input/output error")

    service.follow([GREETING, None])
    with pytest.raises(SpoolError, match=r"^standard input: Input/output error$"):
        submit(service, broken())
    assert heard(service) == [b""]


# -- the caller's own


def test_a_listing(service):
    large = b"x" * 200_000
    service.follow(
        [
            *(GREETING, 5, b"OK\n", frame(b"L", b"one"), frame(b"L", b""), frame(b"L", large)),
            *(frame(b"Z", b""), None),
        ]
    )
    assert list(client.listed(service.path)) == [b"one", b"", large]
    assert heard(service) == [b"LIST\n"]


@pytest.mark.parametrize(
    ("after", "text"),
    [
        (b"", "closed by the other side"),
        (frame(b"L", b"two")[:-1], "closed by the other side"),
        (
            frame(b"M", b"two"),
            "a frame of kind b'M' and 3 octets where it has no place",
        ),
        (
            frame(b"Z", b"1"),
            "a frame of kind b'Z' and 1 octets where it has no place",
        ),
        (
            b"L" + (protocol.LONGEST_LISTED + 1).to_bytes(4, "big"),
            "a frame of kind b'L' and 67108865 octets where it has no place",
        ),
    ],
)
def test_a_listing_that_breaks_off(service, after, text):
    service.follow([GREETING, 5, b"OK\n" + frame(b"L", b"one") + after])
    found = client.listed(service.path)
    assert next(found) == b"one"
    with pytest.raises(SpoolError) as caught:
        next(found)
    assert str(caught.value) == f"{service.path}: {text}"


REQUESTS = pytest.mark.parametrize(
    ("request_line", "ask"),
    [
        (b"LIST\n", lambda path: list(client.listed(path))),
        (b"REMOVE 00112233445566aa\n", lambda path: client.remove(path, "00112233445566aa")),
        (b"FLUSH\n", client.flush),
    ],
    ids=["list", "remove", "flush"],
)


@REQUESTS
def test_a_request_that_is_refused(service, request_line, ask):
    service.follow([GREETING, len(request_line), b"NO 77 5.7.0 not yours\n", None])
    with pytest.raises(client.Refused) as caught:
        ask(service.path)
    assert (caught.value.exit_code, str(caught.value)) == (77, "not yours")
    assert heard(service) == [request_line]


@REQUESTS
def test_a_request_whose_answer_is_lost(service, request_line, ask):
    service.follow([GREETING, len(request_line)])
    with pytest.raises(SpoolError) as caught:
        ask(service.path)
    assert str(caught.value) == f"{service.path}: closed by the other side"


@REQUESTS
def test_a_request_that_nobody_takes(service, request_line, ask):
    service.close()
    with pytest.raises(client.NotServed) as caught:
        ask(service.path)
    assert caught.value.number == errno.ECONNREFUSED


def test_a_flush(service):
    service.follow([GREETING, 6, b"OK 3 due now\n", None])
    assert client.flush(service.path) == "3 due now"


def test_a_queue_id_is_one_word_of_ascii(service):
    line = b"REMOVE \\xfc\n"
    service.follow([GREETING, len(line), b"OK removed\n", None])
    assert client.remove(service.path, "ü") is None
    assert heard(service) == [line]
