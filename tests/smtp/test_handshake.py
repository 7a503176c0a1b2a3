"""What a handshake is held to: fingerprints, kept sessions, and words for what fails."""

import datetime
import hashlib
import socket
import ssl
from contextlib import suppress

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from minisend.errors import TlsError
from minisend.smtp import handshake
from minisend.smtp.handshake import Fault, Trust, failed, fingerprints
from minisend.smtp.session import Session
from minisend.smtp.stream import HandshakeError, connect

KEYS = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "EC": lambda: ec.generate_private_key(ec.SECP256R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


def certificate(key):
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mx.test")])
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2021, 1, 1))
    )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("kind", KEYS)
def test_fingerprints(kind):
    key = KEYS[kind]()
    octets = certificate(key)
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert fingerprints(octets) == [
        "sha256:" + hashlib.sha256(octets).hexdigest(),
        "spki-sha256:" + hashlib.sha256(public).hexdigest(),
    ]


def test_fingerprints_of_what_is_no_certificate():
    octets = certificate(KEYS["EC"]())
    assert fingerprints(b"") == []
    for cut in range(1, len(octets)):
        part = octets[:cut]
        assert fingerprints(part) == ["sha256:" + hashlib.sha256(part).hexdigest()]


@given(st.binary(min_size=1, max_size=200))
def test_fingerprints_of_anything(octets):
    assert fingerprints(octets)[0] == "sha256:" + hashlib.sha256(octets).hexdigest()


def of(reason, strerror="said"):
    error = ssl.SSLError(1, strerror)
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("reason", "fault", "words"),
    [
        (
            "WRONG_VERSION_NUMBER",
            Fault.NOT_TLS,
            "the server answered with what is not TLS",
        ),
        (
            "UNSUPPORTED_PROTOCOL",
            Fault.VERSION,
            "no TLS version in common with the server",
        ),
        (
            "SSLV3_ALERT_CERTIFICATE_EXPIRED",
            Fault.CLIENT_CERTIFICATE,
            "our certificate, or the lack of one, is not accepted: the server said certificate expired",
        ),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", Fault.OTHER, "the server said handshake failure"),
        ("DH_KEY_TOO_SMALL", Fault.OTHER, "dh key too small"),
        (None, Fault.OTHER, "said"),
    ],
)
def test_words(reason, fault, words):
    assert failed(of(reason), "mx.test") == (fault, f"TLS handshake with mx.test: {words}")


def test_names_of_a_stranger_are_made_fit_to_be_shown(serve, server_context, trusting):
    names = ["x" * 60 + ".test", "a.test", "b.test", "c.test"]

    def script(peer):
        with pytest.raises(ssl.SSLError):
            peer.start_tls(server_context(*names))

    stream = connect("127.0.0.1", serve(script), 5)
    with pytest.raises(HandshakeError) as info:
        stream.start_tls(trusting, "mx.test", 10)
    stream.close()
    assert str(info.value) == (
        f"certificate is not for mx.test, the name expected, but for {names[0]}, a.test, b.test, ..."
    )
    assert handshake._printable("a\r\nb\x1b\u202e" + "x" * 100) == "a??b??" + "x" * 74


# Sessions


def greet(peer):
    """Nothing is heard back, from a client that stays or from one that does not like the certificate."""
    with suppress(ssl.SSLError, ConnectionError):
        peer.send(b"220 hello\r\n")
    assert peer.read_to_end() == b""


@pytest.fixture
def resumptions(serve, server_context):
    """``resumptions(version, count)`` -> port, and a list that says of each connection if it took up an earlier session."""

    def start(version, count):
        context, seen = server_context("mx.test", "other.test"), []
        context.minimum_version = context.maximum_version = version

        def script(peer):
            peer.start_tls(context)
            seen.append(peer.socket.session_reused)
            greet(peer)

        return serve(*[script] * count), seen

    return start


def visit(port, trust, name="mx.test", keep=True):
    stream = connect("127.0.0.1", port, 5)
    stream.start_tls(trust, name, 10)
    assert stream.read(100, 10) == b"220 hello\r\n"
    if keep:
        stream.keep_tls_session(trust, name)
    stream.close()


def again(trust):
    """One of the same authorities that has kept nothing."""
    return Trust(trust.context)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_taken_up_for_the_same_server_and_name(resumptions, trusting, version):
    """A certificate was verified for one name: for another it is looked at anew."""
    port, seen = resumptions(version, 6)
    visit(port, trusting, keep=False)
    visit(port, trusting)
    visit(port, trusting)
    visit(port, trusting, "other.test")
    visit(port, trusting)
    visit(port, again(trusting))
    assert seen == [False, False, True, False, True, False]


def test_a_session_of_a_fingerprint_is_held_to_it_too(resumptions, trusting):
    port, _ = resumptions(ssl.TLSVersion.TLSv1_3, 2)
    visit(port, trusting)
    pinned = Trust(trusting.context, pins=["sha256:" + "00" * 32])
    pinned._sessions = trusting._sessions
    stream = connect("127.0.0.1", port, 5)
    with pytest.raises(HandshakeError, match="is not one of those expected") as info:
        stream.start_tls(pinned, "mx.test", 10)
    stream.close()
    assert info.value.taken_up
    assert pinned._sessions == {}


def test_a_session_that_fails_is_not_offered_again(serve, resumptions, server_context, trusting):
    port, _ = resumptions(ssl.TLSVersion.TLSv1_3, 1)
    visit(port, trusting)
    ((name, address), session), *_ = trusting._sessions.items()

    def hangs_up(peer):
        peer.read(1)

    def welcomes(peer):
        peer.start_tls(server_context("mx.test"))
        greet(peer)

    port = serve(hangs_up, welcomes)
    trusting._sessions[name, f"[127.0.0.1]:{port}"] = session
    stream = connect("127.0.0.1", port, 5)
    with pytest.raises(HandshakeError) as info:
        stream.start_tls(trusting, name, 10)
    stream.close()
    assert (info.value.taken_up, list(trusting._sessions)) == (True, [(name, address)])
    visit(port, trusting)


def test_a_server_that_gives_no_ticket(serve, server_context, trusting):
    context = server_context("mx.test")
    context.num_tickets = 0

    def script(peer):
        peer.start_tls(context)
        greet(peer)

    visit(serve(script), trusting)
    assert trusting._sessions == {}


def test_the_oldest_session_goes_first(resumptions, trusting, monkeypatch):
    monkeypatch.setattr(handshake, "_SESSIONS", 2)
    port, seen = resumptions(ssl.TLSVersion.TLSv1_3, 4)
    address = f"[127.0.0.1]:{port}"
    visit(port, trusting)
    trusting._sessions["a", ""] = trusting._sessions["mx.test", address]
    visit(port, trusting)
    assert list(trusting._sessions) == [("a", ""), ("mx.test", address)]
    visit(port, trusting, "other.test")
    assert list(trusting._sessions) == [("mx.test", address), ("other.test", address)]
    visit(port, trusting)
    assert seen == [False, True, False, True]


def test_nothing_is_kept_in_plain_text(serve, trusting):
    stream = connect("127.0.0.1", serve(lambda peer: peer.expect_end()), 5)
    stream.keep_tls_session(trusting, "mx.test")
    stream.close()
    assert trusting._sessions == {}


# Fingerprints in a handshake


@pytest.mark.parametrize("kind", [0, 1], ids=["certificate", "key"])
def test_a_fingerprint_in_place_of_authorities(serve, kind):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued = trustme.CA().issue_cert("other.test")
    issued.configure_cert(server)
    found = fingerprints(ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    wrong = "spki-sha256:" + "00" * 32

    def script(peer):
        peer.start_tls(server)
        greet(peer)

    port = serve(script, script)
    visit(port, Trust(context, pins=[wrong, found[kind]]))
    stream = connect("127.0.0.1", port, 5)
    with pytest.raises(HandshakeError) as info:
        stream.start_tls(
            Trust(context, pins=[wrong], remedies={Fault.FINGERPRINT: "look"}), "mx.test", 10
        )
    stream.close()
    assert str(info.value) == (
        "certificate of mx.test is not one of those expected "
        f"(expected {wrong}; found {found[1]}): look"
    )


def test_what_breaks_after_the_server_was_heard_is_no_handshake(serve, server_context, trusting):
    """So that a session that was under way is not begun anew in plain text."""

    def script(peer):
        peer.start_tls(server_context("mx.test"))
        peer.send(b"220 hello\r\n")
        peer.read(1)
        with socket.socket(fileno=peer.socket.detach()) as plain:
            plain.settimeout(10)
            plain.sendall(b"this is no record\r\n")
            plain.recv(100)

    stream = connect("127.0.0.1", serve(script), 5)
    stream.start_tls(trusting, "mx.test", 10)
    assert stream.read(100, 10) == b"220 hello\r\n"
    stream.write(b"x", 10)
    with pytest.raises(TlsError) as info:
        stream.read(100, 10)
    stream.close()
    assert type(info.value) is TlsError
    assert str(info.value).startswith("TLS with [127.0.0.1]:")


@pytest.mark.parametrize("kept", [False, True])
def test_a_session_taken_up_that_fails_does_not_lead_to_plain_text(
    serve, resumptions, trusting, kept
):
    """It may be the session's own doing: the next attempt begins anew, inside TLS."""
    port, _ = resumptions(ssl.TLSVersion.TLSv1_3, 1)
    visit(port, trusting)
    (session,) = trusting._sessions.values()
    port = serve(lambda peer: peer.hello(b"STARTTLS") or hang_up(peer))
    if kept:
        trusting._sessions["mx.test", f"[127.0.0.1]:{port}"] = session
    opened = Session(
        connect("127.0.0.1", port, 5),
        hello=b"me.test",
        tls="opportunistic",
        trust=trusting,
        server_name="mx.test",
    )
    with pytest.raises(HandshakeError) as info:
        opened.open()
    assert (info.value.taken_up, info.value.plain_text_allowed) == (kept, not kept)


def hang_up(peer):
    peer.expect(b"STARTTLS\r\n")
    peer.send(b"220 go ahead\r\n")
    peer.read(1)
