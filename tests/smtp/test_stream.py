"""The stream: deadlines, errors in words, and reading while writing."""

import _socket
import errno
import os
import select
import socket
import threading
from types import SimpleNamespace

import pytest

from minisend.errors import LocalProtocolError, NetworkError
from minisend.smtp import stream as stream_module
from minisend.smtp.stream import HandshakeError, Stream, connect, connect_unix


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    stream = Stream(ours)
    yield stream, theirs
    stream.close()
    theirs.close()


def caught(call, *arguments):
    with pytest.raises(NetworkError) as info:
        call(*arguments)
    error = info.value
    assert getattr(error, "phase", "") == ("connect" if call in (connect, connect_unix) else "")
    return str(error), error.status, error.local


def test_read_and_write(pair):
    stream, theirs = pair
    stream.write(b"hello", 5)
    assert theirs.recv(100) == b"hello"
    theirs.sendall(b"world")
    assert [stream.read(3, 5), stream.read(100, 0)] == [b"wor", b"ld"]
    theirs.close()
    assert stream.read(1, 5) == b""
    assert caught(stream.write, b"x", 5) == ("lost connection: Broken pipe", "4.4.2", False)
    assert (stream.tls, stream.encrypted) == ("", False)


def test_deadlines(pair):
    stream, theirs = pair
    assert caught(stream.read, 1, 0.01) == ("timed out", "4.4.2", False)
    theirs.sendall(b"x")
    assert caught(stream.read, 1, -0.01) == ("timed out", "4.4.2", False)
    assert caught(stream.write, bytes(16 * 1024 * 1024), 0.01) == ("timed out", "4.4.2", False)


@pytest.mark.parametrize(
    "wait",
    [
        pytest.param(lambda stream: stream.read(1, 20), id="read"),
        pytest.param(lambda stream: stream.write(bytes(1_000_000), 20), id="write"),
        pytest.param(
            lambda stream: stream.exchange(bytes(1_000_000), 20, lambda octets: True), id="exchange"
        ),
    ],
)
def test_what_is_done_while_waiting(monkeypatch, wait):
    """Again each time that the patience has run out; here the peer goes on the third time, and not before."""
    monkeypatch.setattr(stream_module, "_PATIENCE", 0.01)
    calls = []

    def while_waiting():
        calls.append(1)
        if len(calls) == 3:
            theirs.send(b"x")
        if len(calls) >= 3:
            try:
                while theirs.recv(65536, socket.MSG_DONTWAIT):
                    pass
            except BlockingIOError:
                pass  # all of it

    ours, theirs = socket.socketpair()
    stream = Stream(ours, while_waiting=while_waiting)
    wait(stream)
    assert len(calls) >= 3
    stream.close()
    theirs.close()


def test_waiting_has_its_deadline_all_the_same(monkeypatch):
    monkeypatch.setattr(stream_module, "_PATIENCE", 0.02)
    calls = []
    ours, theirs = socket.socketpair()
    stream = Stream(ours, while_waiting=lambda: calls.append(1))
    assert caught(stream.read, 1, 0.02) == ("timed out", "4.4.2", False)
    assert caught(stream.read, 1, 0.05) == ("timed out", "4.4.2", False)
    assert calls
    stream.close()
    theirs.close()


def test_what_is_done_between_waits_that_are_each_short(monkeypatch):
    """A peer that always has an octet ready keeps nobody from it."""
    clock = [0.0]
    monkeypatch.setattr(stream_module, "monotonic", lambda: clock[0])
    calls = []
    ours, theirs = socket.socketpair()
    stream = Stream(ours, while_waiting=lambda: calls.append(clock[0]))
    for now in (0.4, 0.8, 1.2, 1.6, 2.0, 2.4):
        clock[0] = now
        theirs.send(b"x")
        stream._wait(select.POLLIN, 100.0)
        assert stream.read(1, 1.0) == b"x"
    assert calls == [1.2, 2.4]
    stream.close()
    theirs.close()


def test_exchange_reads_while_the_peer_does_not_read_until_it_has_written():
    """Both sides have more to say than the buffers hold; only reading while writing gets through."""
    ours, theirs = socket.socketpair()
    stream, size, seen, heard = Stream(ours), 4 * 1024 * 1024, [], []

    def peer():
        theirs.sendall(bytes(size))
        while sum(map(len, heard)) < size:
            heard.append(theirs.recv(65536))

    thread = threading.Thread(target=peer)
    thread.start()
    stream.exchange(b"x" * size, 10, lambda octets: seen.append(octets) or True)
    thread.join(10)
    assert not thread.is_alive()
    assert b"".join(heard) == b"x" * size
    assert sum(map(len, seen)) == size
    stream.close()
    theirs.close()


def test_exchange_stops_when_told(pair):
    stream, theirs = pair
    theirs.sendall(b"552 enough\r\n")
    seen = []
    stream.exchange(bytes(16 * 1024 * 1024), 5, lambda octets: bool(seen.append(octets)))
    assert seen == [b"552 enough\r\n"]


def test_connect_over_ipv4_and_ipv6():
    listeners = [socket.create_server(("127.0.0.1", 0))]
    where = [("127.0.0.1", listeners[0].getsockname()[1])]
    if socket.has_ipv6:
        try:
            listeners.append(socket.create_server(("::1", 0), family=socket.AF_INET6))
            where.append(("::1", listeners[-1].getsockname()[1]))
        except OSError:  # no IPv6 here
            pass
    for listener, (address, port) in zip(listeners, where, strict=True):
        stream = connect(address, port, 5)
        accepted, _ = listener.accept()
        stream.write(b"x", 5)
        assert accepted.recv(1) == b"x"
        assert stream._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        stream.close()
        accepted.close()
        listener.close()
    port = where[0][1]
    assert caught(connect, "127.0.0.1", port, 5) == (
        f"connect to [127.0.0.1]:{port}: Connection refused",
        "4.4.1",
        False,
    )


@pytest.mark.parametrize("address", ["localhost", "example.invalid", "[::1]", "/run/socket", ""])
def test_names_are_not_resolved(address):
    with pytest.raises(LocalProtocolError):
        connect(address, 25, 1)


@pytest.mark.parametrize(
    ("code", "local"),
    [
        (errno.ENETUNREACH, True),
        (errno.EACCES, True),
        (errno.EPERM, True),
        (errno.EADDRNOTAVAIL, True),
        (errno.EHOSTUNREACH, False),
        (errno.ECONNREFUSED, False),
        (errno.ETIMEDOUT, False),
    ],
    ids=errno.errorcode.get,
)
def test_faults_of_this_machine_are_marked(monkeypatch, code, local):
    class Failing(socket.socket):
        def connect_ex(self, address):
            return code

    monkeypatch.setattr(
        stream_module, "_socket", SimpleNamespace(**vars(_socket) | {"socket": Failing})
    )
    assert caught(connect, "192.0.2.1", 25, 5) == (
        f"connect to [192.0.2.1]:25: {os.strerror(code)}",
        "4.4.1",
        local,
    )


@pytest.mark.parametrize("code", [errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT])
@pytest.mark.parametrize(
    ("has_ipv4", "source", "lasting"), [(True, "", True), (False, "", False), (True, "::1", False)]
)
def test_ipv6_on_a_machine_that_has_ipv4_alone(monkeypatch, code, has_ipv4, source, lasting):
    """What waits for a network would wait for ever, and never go back to its sender."""

    class Failing(socket.socket):
        def __init__(self, family, kind):
            self.datagrams = kind == socket.SOCK_DGRAM
            super().__init__(socket.AF_INET, kind)

        def bind(self, address):
            pass

        def connect_ex(self, address):
            if self.datagrams:
                return 0 if has_ipv4 else errno.ENETUNREACH
            return code

    monkeypatch.setattr(
        stream_module, "_socket", SimpleNamespace(**vars(_socket) | {"socket": Failing})
    )
    about = " from [::1]" if source else ""
    with pytest.raises(NetworkError) as error:
        connect("2001:db8::1", 25, 5, source=source)
    assert (str(error.value), error.value.local, error.value.lasting) == (
        f"connect to [2001:db8::1]:25{about}: {os.strerror(code)}",
        True,
        lasting,
    )


def test_a_fault_of_this_machine_is_marked_later_too(pair):
    """As when a packet filter is loaded under a connection."""

    class Filtered(socket.socket):
        def send(self, octets):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    _, theirs = pair
    stream = Stream(Filtered(fileno=theirs.detach()))
    assert caught(stream.write, b"x", 1) == (
        "lost connection: Operation not permitted",
        "4.4.2",
        True,
    )
    stream.close()


def test_connect_from_an_address_of_ours():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        stream = connect("127.0.0.1", port, 5, source="127.0.0.9")
        accepted, (client, _) = listener.accept()
        with accepted:
            assert client == "127.0.0.9"
        stream.close()

        def from_elsewhere():
            connect("127.0.0.1", port, 5, source="192.0.2.1")

        with pytest.raises(NetworkError) as info:
            from_elsewhere()
    assert (str(info.value), info.value.status, info.value.local) == (
        f"connect to [127.0.0.1]:{port} from [192.0.2.1]: Cannot assign requested address",
        "4.4.1",
        True,
    )


def test_connect_to_a_unix_socket(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        stream = connect_unix(path, 5)
        accepted, _ = listener.accept()
        with accepted:
            stream.write(b"hello", 5)
            assert accepted.recv(9) == b"hello"
        stream.close()
    assert caught(connect_unix, path, 5) == (
        f"connect to {path}: Connection refused",
        "4.4.1",
        False,
    )
    os.unlink(path)
    assert caught(connect_unix, path, 5) == (
        f"connect to {path}: No such file or directory",
        "4.4.1",
        False,
    )


@pytest.mark.parametrize(
    ("code", "local"),
    [(errno.EACCES, False), (errno.EPERM, False), (errno.EMFILE, True)],
    ids=errno.errorcode.get,
)
def test_a_unix_socket_that_we_may_not_use_is_no_lack_of_a_network(monkeypatch, code, local):
    """Mail for it is to expire as any other."""

    class Failing(socket.socket):
        def connect_ex(self, address):
            return code

    monkeypatch.setattr(
        stream_module, "_socket", SimpleNamespace(**vars(_socket) | {"socket": Failing})
    )
    assert caught(connect_unix, "/run/lmtp", 5) == (
        f"connect to /run/lmtp: {os.strerror(code)}",
        "4.4.1",
        local,
    )


def test_connect_has_a_deadline(monkeypatch):
    """A full backlog drops what knocks: the connection is never made and never refused."""
    monkeypatch.setattr(stream_module, "_PATIENCE", 0.02)
    made = []
    calls = []

    def knock(port):
        for _ in range(8):
            made.append(connect("127.0.0.1", port, 0.05, lambda: calls.append(1)))  # noqa: PERF401 - what was made must be closed

    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(NetworkError) as info:
            knock(port)
        for stream in made:
            stream.close()
    error = info.value
    assert (str(error), error.status, error.local) == (
        f"connect to [127.0.0.1]:{port}: timed out",
        "4.4.1",
        False,
    )
    assert calls in ([1], [1, 1])


def refused(port, context, name, timeout=10):
    stream = connect("127.0.0.1", port, 5)
    with pytest.raises(HandshakeError) as info:
        stream.start_tls(context, name, timeout)
    stream.close()
    assert info.value.status == "4.7.5"
    return str(info.value)


def swallow_handshake(context):
    def script(peer):
        try:
            peer.start_tls(context)
            peer.read_to_end()
        except OSError:  # the client refuses us
            pass

    return script


def test_tls(serve, server_context, trusting):
    def script(peer):
        peer.start_tls(server_context("mx.test"))
        peer.expect(b"x" * 1_000_000)
        peer.send(b"y" * 100_000)
        peer.expect_end()

    stream = connect("127.0.0.1", serve(script), 5)
    stream.start_tls(trusting, "mx.test", 10)
    stream.write(b"x" * 1_000_000, 10)
    octets = b""
    while len(octets) < 100_000:
        octets += stream.read(7000, 10)
    assert octets == b"y" * 100_000
    assert stream.encrypted
    assert stream.tls.startswith("TLSv1.3 TLS_")
    stream.close()


def test_a_certificate_for_another_name(serve, server_context, trusting):
    port = serve(swallow_handshake(server_context("other.test")))
    assert refused(port, trusting, "mx.test") == (
        "certificate is not for mx.test, the name expected, but for other.test"
    )


def test_a_certificate_of_an_unknown_authority(serve, server_context, trusting):
    import trustme

    port = serve(swallow_handshake(server_context("mx.test", issuer=trustme.CA())))
    assert refused(port, trusting, "mx.test") == (
        "certificate of mx.test is from a CA that is not trusted here"
    )


def test_a_certificate_that_has_expired(serve, server_context, trusting):
    import datetime

    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    port = serve(
        swallow_handshake(
            server_context("mx.test", not_before=past, not_after=past + datetime.timedelta(1))
        )
    )
    assert refused(port, trusting, "mx.test") == (
        "certificate of mx.test has expired on Jan  2 00:00:00 2020 GMT"
    )


def test_a_server_without_tls(serve, trusting):
    def script(peer):
        peer.send(b"220 plain text\r\n")
        peer.read_to_end()

    assert refused(serve(script), trusting, "mx.test").startswith("TLS handshake with mx.test: ")


def test_a_server_that_closes_in_the_handshake(serve, trusting):
    assert refused(serve(lambda peer: peer.read(1)), trusting, "mx.test").startswith(
        "TLS handshake with mx.test: "
    )


def test_a_server_that_hangs_in_the_handshake(serve, trusting):
    assert (
        refused(serve(lambda peer: peer.read_to_end()), trusting, "mx.test", 0.05)
        == "TLS handshake with mx.test: timed out"
    )


def test_no_name_to_check(serve, trusting):
    assert refused(serve(lambda peer: peer.read_to_end()), trusting, None).startswith(
        "TLS handshake with [127.0.0.1]:"
    )
