"""Scripted servers on loopback sockets, and certificates."""

import socket
import ssl
import threading

import pytest
import trustme

from minisend.smtp.handshake import Trust

WAIT = 10.0  # a test that waits longer has failed


class Peer:
    """The server's end of one connection, for a script that says what it expects and what it answers."""

    def __init__(self, connected):
        self.socket = connected
        self.socket.settimeout(WAIT)

    def send(self, octets):
        self.socket.sendall(octets)

    def read(self, count):
        octets = b""
        while len(octets) < count:
            piece = self.socket.recv(count - len(octets))
            assert piece, f"end of file after {octets!r}"
            octets += piece
        return octets

    def expect(self, octets):
        assert self.read(len(octets)) == octets

    def expect_end(self):
        assert self.socket.recv(1) == b""

    def read_to_end(self):
        """All octets until the client closes, however it does so."""
        pieces = []
        try:
            while piece := self.socket.recv(65536):
                pieces.append(piece)
        except (ConnectionResetError, ssl.SSLError):
            pass
        return b"".join(pieces)

    def start_tls(self, context):
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def hello(self, *keywords, greeting=True):
        if greeting:
            self.send(b"220 mx.test ESMTP\r\n")
        self.expect(b"EHLO me.test\r\n")
        self.send(
            b"".join(b"250-" + word + b"\r\n" for word in (b"mx.test", *keywords)) + b"250 HELP\r\n"
        )

    def bye(self):
        self.expect(b"QUIT\r\n")
        self.send(b"221 bye\r\n")
        self.expect_end()


@pytest.fixture
def serve():
    """``serve(script, ...)`` -> port: each script plays one connection; what it raises fails the test."""
    threads, faults, listeners = [], [], []

    def start(*scripts):
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(WAIT)
        listeners.append(listener)

        def run():
            try:
                for script in scripts:
                    peer = Peer(listener.accept()[0])
                    try:
                        script(peer)
                    finally:
                        peer.socket.close()
            except BaseException as error:
                faults.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        threads.append(thread)
        return listener.getsockname()[1]

    yield start
    for thread in threads:
        thread.join(2 * WAIT)
        assert not thread.is_alive()
    for listener in listeners:
        listener.close()
    if faults:
        raise faults[0]


@pytest.fixture(scope="session")
def authority():
    return trustme.CA()


@pytest.fixture
def server_context(authority):
    """``server_context(name, ...)`` -> context of a server with a certificate for the names."""

    def make(*names, issuer=authority, **options):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issuer.issue_cert(*names, **options).configure_cert(context)
        return context

    return make


@pytest.fixture
def trusting(authority):
    """A client's trust in the test authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return Trust(context)
