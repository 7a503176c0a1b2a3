"""SCRAM against the examples of its RFCs, and against servers that lie in each field."""

import base64
import hashlib
import hmac
import ssl
import time

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.errors import RemoteProtocolError, SmtpError
from minisend.smtp.auth import AuthError, Credentials
from minisend.smtp.binding import (
    NOT_BOUND,
    NOT_OFFERED,
    ChannelBinding,
    channel_binding,
    element,
    signature_hash,
)
from minisend.smtp.client import AUTH
from minisend.smtp.dialogue import Refused
from minisend.smtp.handshake import Trust
from minisend.smtp.saslprep import prepare, prepared_octets
from minisend.smtp.scram import MOST_ITERATIONS, Scram
from minisend.smtp.session import Session
from minisend.smtp.stream import connect

USER = Credentials(b"user", b"pencil")

# RFC 5802 section 5 and RFC 7677 section 3: digest, and the four messages.
EXAMPLES = [
    pytest.param(
        "sha1",
        b"n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
        b"r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
        b"c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
        b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
        id="RFC 5802",
    ),
    pytest.param(
        "sha256",
        b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        id="RFC 7677",
    ),
]


def scram(nonce=b"abc", digest="sha1", credentials=USER, binding=NOT_BOUND):
    return Scram("SCRAM", credentials, digest, binding, nonce)


@pytest.mark.parametrize(("digest", "initial", "first", "final", "last"), EXAMPLES)
def test_the_examples(digest, initial, first, final, last):
    exchange = scram(initial.partition(b",r=")[2], digest)
    assert (exchange.initial, exchange.proven) == (initial, False)
    assert (exchange.respond(first), exchange.proven) == (final, True)
    assert exchange.respond(last) == b""
    exchange.accepted()
    assert exchange.respond(last) is None


class Server:
    """SCRAM's other side: it knows ``password``, and says what it is told to in place of the truth.

    ``first``, ``last``  change a message before it goes out
    """

    def __init__(
        self,
        password=b"pencil",
        digest="sha1",
        salt=b"salt",
        iterations=4096,
        data=b"",
        first=lambda m: m,
        last=lambda m: m,
    ):
        self.password, self.digest, self.data = password, digest, data
        self.salt, self.iterations = salt, iterations
        self.change_first, self.change_last = first, last

    def first(self, initial):
        self.header, _, self.bare = initial.partition(b",,")
        nonce = self.bare.partition(b",r=")[2] + b"server"
        message = b"r=%b,s=%b,i=%d" % (nonce, base64.b64encode(self.salt), self.iterations)
        self.sent = self.change_first(message)
        return self.sent

    def last(self, final):
        """None when the proof is not the password's."""
        unproven, _, proof = final.rpartition(b",p=")
        assert unproven.startswith(
            b"c=" + base64.b64encode(self.header + b",," + self.data) + b",r="
        )
        messages = b",".join((self.bare, self.sent, unproven))

        def mac(key, text):
            return hmac.new(key, text, self.digest).digest()

        salted = hashlib.pbkdf2_hmac(self.digest, self.password, self.salt, self.iterations)
        stored = hashlib.new(self.digest, mac(salted, b"Client Key")).digest()
        key = bytes(
            a ^ b for a, b in zip(base64.b64decode(proof), mac(stored, messages), strict=True)
        )
        if hashlib.new(self.digest, key).digest() != stored:
            return None
        return self.change_last(b"v=" + base64.b64encode(mac(mac(salted, b"Server Key"), messages)))


def run(exchange, server):
    """Both sides to the end; whether the server let us in."""
    last = server.last(exchange.respond(server.first(exchange.initial)))
    if last is None:
        return False
    exchange.respond(last)
    exchange.accepted()
    return True


@pytest.mark.parametrize("digest", ["sha1", "sha256"])
@pytest.mark.parametrize(
    "binding",
    [NOT_BOUND, NOT_OFFERED, ChannelBinding(b"p=tls-unique", b"\0\xff,")],
    ids=lambda b: b.flag.decode(),
)
def test_both_sides(digest, binding):
    def credentials(password):
        return Credentials("jörg, =".encode(), password)

    exchange = scram(b"", digest, credentials(b"x"), binding)
    assert exchange.initial.startswith(binding.flag + ",,n=jörg=2C =3D,r=".encode())
    nonce = exchange.initial.rpartition(b",r=")[2]
    assert len(base64.b64decode(nonce, validate=True)) == 18
    assert run(exchange, Server(b"x", digest, data=binding.data))
    again = scram(b"", digest, credentials(b"y"), binding)
    assert nonce not in again.initial
    assert not run(again, Server(b"x", digest, data=binding.data))


def test_a_password_is_prepared():
    credentials = Credentials("I\u00adX".encode(), "\u2168\u00a0\u00aa".encode())
    exchange = scram(credentials=credentials)
    assert exchange.initial == b"n,,n=IX,r=abc"
    assert run(exchange, Server(b"IX a"))


LIES = {
    "nothing": (lambda m: b"", RemoteProtocolError, "SCRAM: server's first message is malformed"),
    "order": (lambda m: b"s=c2FsdA==," + m, RemoteProtocolError, "SCRAM: server's first message is malformed"),
    "no count": (lambda m: m.rpartition(b",")[0], RemoteProtocolError, "SCRAM: server's first message is malformed"),
    "extension": (lambda m: b"m=x," + m, RemoteProtocolError, "SCRAM: server insists on an extension"),
    "another's nonce": (lambda m: m.replace(b"abc", b"abd"), AuthError, "SCRAM: server's nonce does not extend ours"),
    "nonce cut": (lambda m: m.replace(b"abcserver", b"ab"), AuthError, "SCRAM: server's nonce does not extend ours"),
    "our nonce": (lambda m: m.replace(b"server", b""), AuthError, "SCRAM: server's nonce does not extend ours"),
    "nonce's octets": (lambda m: m.replace(b"server", b"\xff"), RemoteProtocolError, "SCRAM: server's first message is malformed"),
    "no salt": (lambda m: m.replace(b"c2FsdA==", b""), RemoteProtocolError, "SCRAM: server's first message is malformed"),
    "salt": (lambda m: m.replace(b"c2FsdA==", b"c2FsdA="), RemoteProtocolError, "SCRAM: server's first message is malformed"),
    "few": (lambda m: m.replace(b"4096", b"4095"), AuthError, "SCRAM: server asks for 4095 iterations, fewer than 4096"),
    "many": (
        lambda m: m.replace(b"4096", b"%d" % (MOST_ITERATIONS + 1)),
        AuthError, f"SCRAM: server asks for {MOST_ITERATIONS + 1} iterations, more than {MOST_ITERATIONS}",
    ),
    "far too many": (lambda m: m.replace(b"4096", b"9" * 5000), RemoteProtocolError, "SCRAM: server's first message is malformed"),
    "negative": (lambda m: m.replace(b"4096", b"-4096"), RemoteProtocolError, "SCRAM: server's first message is malformed"),
    "zero": (lambda m: m.replace(b"4096", b"0"), RemoteProtocolError, "SCRAM: server's first message is malformed"),
    "zero before": (lambda m: m.replace(b"4096", b"04096"), RemoteProtocolError, "SCRAM: server's first message is malformed"),
    "no number": (lambda m: m.replace(b"4096", b"4_096"), RemoteProtocolError, "SCRAM: server's first message is malformed"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies_in_the_first_message(lie):
    change, kind, text = LIES[lie]
    exchange = scram()
    with pytest.raises(SmtpError) as caught:
        exchange.respond(Server(first=change).first(exchange.initial))
    assert (type(caught.value), str(caught.value), exchange.proven) == (kind, text, False)


def test_more_fields_are_for_extensions_to_come():
    assert run(scram(), Server(first=lambda m: m + b",x=y"))


UNPROVEN = "SCRAM: server did not prove that it knows the password"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: b"v=" + base64.b64encode(bytes(20)),
        lambda m: m[:-1],
        lambda m: m + b",x=y",
        lambda m: b"v=",
        lambda m: b"",
        lambda m: m.replace(b"v=", b"V="),
        lambda m: b"\xff" + m,
    ],
)
def test_a_server_that_does_not_know_the_password(change):
    with pytest.raises(AuthError) as caught:
        run(scram(), Server(last=change))
    assert (str(caught.value), caught.value.status) == (UNPROVEN, "4.7.0")


@pytest.mark.parametrize("challenges", [0, 1])
def test_a_welcome_without_a_proof(challenges):
    exchange, server = scram(), Server()
    if challenges:
        exchange.respond(server.first(exchange.initial))
    with pytest.raises(AuthError) as caught:
        exchange.accepted()
    assert str(caught.value) == UNPROVEN


def test_an_error_is_kept_and_is_no_welcome():
    exchange = scram()
    exchange.respond(Server().first(exchange.initial))
    assert exchange.respond(b"e=invalid-proof") == b""
    assert (exchange.failure, exchange.respond(b"v=x")) == (b"invalid-proof", None)
    with pytest.raises(AuthError):
        exchange.accepted()


FIELDS = st.sampled_from(
    [
        b"r=abc",
        b"r=abcd",
        b"s=",
        b"s=c2FsdA==",
        b"i=",
        b"i=4096",
        b"i=9999999",
        b"v=",
        b"e=x",
        b"m=x",
        b"",
    ]
)


@given(st.lists(st.binary(max_size=40) | st.lists(FIELDS, max_size=4).map(b",".join), max_size=3))
@settings(max_examples=200, deadline=None)
def test_no_challenge_does_more_than_refuse(challenges):
    exchange = scram()
    try:
        for challenge in challenges:
            exchange.respond(challenge)
        exchange.accepted()
    except (RemoteProtocolError, AuthError):
        return
    raise AssertionError("let in without a proof")


def test_the_most_iterations_are_bearable():
    exchange = scram()
    began = time.process_time()
    exchange.respond(Server(iterations=MOST_ITERATIONS).first(exchange.initial))
    assert time.process_time() - began < 10


# SASLprep: RFC 4013 section 3, and its rules one by one


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("I\u00adX", "IX"),
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0\u3000b", "a  b"),
        ("u\u0308", "ü"),
        ("\u0627x".replace("x", "\u0628"), "\u0627\u0628"),
        ("\u05d0 1 \u05d0", "\u05d0 1 \u05d0"),
        ("\U0001f511", "\U0001f511"),
        ("", ""),
        ("\u00ad", ""),
    ],
)
def test_prepared(text, prepared):
    assert prepare(text) == prepared
    assert prepared_octets(text.encode()) == prepared.encode()


@pytest.mark.parametrize(
    "text",
    ["\u0007", "\u0627\u0031", "\u0031\u0627", "\u0627a\u0627", "\u0085", "\ue000", "\ufdd0", "\ufffd", "\u2ff0", "\u0340\u200e", "\U000e0001"],
)  # fmt: skip
def test_without_a_prepared_form_octets_stay_as_they_are(text):
    with pytest.raises(ValueError, match=r"^(prohibited character|mixed direction)$"):
        prepare(text)
    assert prepared_octets(text.encode()) == text.encode()


def test_what_is_not_utf_8_stays_as_it_is():
    assert prepared_octets(b"j\xf6rg") == b"j\xf6rg"


# Channel binding


def der(tag, *content):
    octets = b"".join(content)
    size = len(octets)
    if size < 128:
        return bytes([tag, size]) + octets
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 + len(length)]) + length + octets


def certificate(algorithm, *parameters, size=300):
    identifier = der(0x30, der(0x06, bytes.fromhex(algorithm)), *parameters)
    return der(0x30, der(0x30, bytes(size)), identifier, der(0x03, bytes(65)))


def pss(hash_identifier):
    return der(0x30, der(0xA0, der(0x30, der(0x06, bytes.fromhex(hash_identifier)), b"\5\0")))


RSA_PSS = "2a864886f70d01010a"


@pytest.mark.parametrize(
    ("octets", "name"),
    [
        (certificate("2a864886f70d010104", b"\5\0"), "sha256"),
        (certificate("2a864886f70d010105", b"\5\0"), "sha256"),
        (certificate("2a864886f70d01010b", b"\5\0"), "sha256"),
        (certificate("2a864886f70d01010b", b"\5\0", size=100), "sha256"),
        (certificate("2a864886f70d01010b", b"\5\0", size=70_000), "sha256"),
        (certificate("2a864886f70d01010c", b"\5\0"), "sha384"),
        (certificate("2a864886f70d01010d", b"\5\0"), "sha512"),
        (certificate("2a864886f70d01010e", b"\5\0"), "sha224"),
        (certificate("2a8648ce3d0401"), "sha256"),
        (certificate("2a8648ce3d040301"), "sha224"),
        (certificate("2a8648ce3d040302"), "sha256"),
        (certificate("2a8648ce3d040303"), "sha384"),
        (certificate("2a8648ce3d040304"), "sha512"),
        (certificate(RSA_PSS, der(0x30)), "sha256"),
        (certificate(RSA_PSS, pss("2b0e03021a")), "sha256"),
        (certificate(RSA_PSS, pss("608648016503040202")), "sha384"),
        (certificate(RSA_PSS, pss("2a8648")), ""),
        (certificate(RSA_PSS), ""),
        (certificate("2b6570"), ""),  # Ed25519
        (b"", ""),
        (b"\x30\x80\0\0", ""),
        (b"\x30\x85\0\0\0\0\0", ""),
        (b"\x31" + certificate("2a8648ce3d040302")[1:], ""),
    ],
)
def test_the_hash_of_a_certificate(octets, name):
    assert signature_hash(octets) == name


@pytest.mark.parametrize(
    "length",
    [b"\x7f", b"\x81\x7f", b"\x81\x80", b"\x82\0\x80", b"\x83\0\0\x80", b"\x84\0\0\0\x80"],
    ids=bytes.hex,
)
def test_each_form_of_a_length(length):
    size = 0x7F if length.endswith(b"\x7f") else 0x80
    content = bytes(size)
    assert element(b"\x30" + length + content + b"behind", 0x30) == (content, b"behind")
    for cut in (b"", length[:-1], length, length + content[1:]):
        with pytest.raises(ValueError, match=r"^$"):
            element(b"\x30" + cut, 0x30)


@pytest.mark.parametrize("length", [b"\x80", b"\x85\0\0\0\0\x01", b"\xff"], ids=bytes.hex)
def test_a_length_that_der_does_not_have(length):
    with pytest.raises(ValueError, match=r"^$"):
        element(b"\x30" + length + bytes(300), 0x30)


def test_no_cut_certificate_has_a_hash():
    whole = certificate("2a8648ce3d040302", size=20)
    assert [signature_hash(whole[:end]) for end in range(len(whole))] == [""] * len(whole)


@given(
    st.binary(max_size=60)
    | st.binary(max_size=40).map(lambda octets: certificate(RSA_PSS, octets, size=3))
)
@settings(max_examples=200, deadline=None)
def test_any_octets_for_a_certificate(octets):
    assert signature_hash(octets) in ("", "sha224", "sha256", "sha384", "sha512")


def context_pair(version):
    """Contexts of a server and of a client that trusts it."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("mx.test").configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.minimum_version = client.maximum_version = version
    authority.configure_trust(client)
    return server, client


@pytest.fixture
def log_in(serve):
    """``log_in(script, context, ...)`` -> error or None, of a session over implicit TLS; the script starts after the handshake."""

    def run(script, server_context, client_context, wanted="auto"):
        def from_the_first_octet(peer):
            peer.start_tls(server_context)
            script(peer)

        session = Session(
            connect("127.0.0.1", serve(from_the_first_octet), 5),
            hello=b"me.test",
            tls="implicit",
            trust=Trust(client_context),
            server_name="mx.test",
            credentials=USER,
            auth=wanted,
        )
        try:
            session.open()
        except SmtpError as error:
            return error
        session.quit()
        return None

    return run


def line(peer):
    octets = b""
    while not octets.endswith(b"\n"):
        octets += peer.read(1)
    return octets.removesuffix(b"\r\n")


def serve_scram(peer, name, digest, data, last=lambda m: m):
    """The server's part of one login, all of it; the client's gs2-cbind-flag."""
    command, mechanism, initial = line(peer).split(b" ")
    assert (command, mechanism) == (b"AUTH", name)
    server = Server(digest=digest, data=data, last=last)
    peer.send(b"334 " + base64.b64encode(server.first(base64.b64decode(initial))) + b"\r\n")
    final = server.last(base64.b64decode(line(peer)))
    assert final is not None
    peer.send(b"334 " + base64.b64encode(final) + b"\r\n")
    return server.header


@pytest.mark.parametrize(
    "key_type", [trustme.KeyType.ECDSA, trustme.KeyType.RSA], ids=["ECDSA", "RSA"]
)
@pytest.mark.parametrize(
    ("version", "flag"),
    [
        (ssl.TLSVersion.TLSv1_2, b"p=tls-unique"),
        (ssl.TLSVersion.TLSv1_3, b"p=tls-server-end-point"),
    ],
    ids=["1.2", "1.3"],
)
def test_bound_to_the_connection(log_in, version, flag, key_type):
    """The server takes its own view of the connection: a binding computed wrongly would fail there."""
    authority = trustme.CA(key_type=key_type)
    issued = authority.issue_cert("mx.test", key_type=key_type)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.minimum_version = client.maximum_version = version
    authority.configure_trust(client)
    shown = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())

    def script(peer):
        peer.hello(b"AUTH PLAIN SCRAM-SHA-1 SCRAM-SHA-256 SCRAM-SHA-256-PLUS")
        if flag == b"p=tls-unique":
            data = peer.socket.get_channel_binding("tls-unique")
        else:
            data = hashlib.sha256(shown).digest()
        assert serve_scram(peer, b"SCRAM-SHA-256-PLUS", "sha256", data) == flag
        peer.expect(b"\r\n")
        peer.send(b"235 in\r\n")
        peer.bye()

    assert log_in(script, server, client) is None


def test_a_session_taken_up_again_is_bound_to_the_certificate():
    """tls-unique would be the same in two connections that a man in the middle has joined."""

    class Resumed:
        session_reused = True

        def version(self):
            return "TLSv1.2"

        def getpeercert(self, binary_form):
            assert binary_form
            return certificate("2a8648ce3d040303")

    assert channel_binding(Resumed()) == ChannelBinding(
        b"p=tls-server-end-point", hashlib.sha384(certificate("2a8648ce3d040303")).digest()
    )


def test_a_server_with_another_kind_of_binding(log_in):
    """It refuses before it has seen a proof; the login goes on unbound, and says that it could not."""

    def script(peer):
        peer.hello(b"AUTH SCRAM-SHA-1 SCRAM-SHA-1-PLUS")
        assert line(peer).startswith(b"AUTH SCRAM-SHA-1-PLUS ")
        peer.send(b"535 5.7.8 unsupported channel binding\r\n")
        assert serve_scram(peer, b"SCRAM-SHA-1", "sha1", b"") == b"n"
        peer.expect(b"\r\n")
        peer.send(b"235 in\r\n")
        peer.bye()

    assert log_in(script, *context_pair(ssl.TLSVersion.TLSv1_3)) is None


def test_bound_or_not_at_all(log_in):
    def script(peer):
        peer.hello(b"AUTH SCRAM-SHA-1 SCRAM-SHA-1-PLUS PLAIN")
        assert line(peer).startswith(b"AUTH SCRAM-SHA-1-PLUS ")
        peer.send(b"535 5.7.8 unsupported channel binding\r\n")
        peer.bye()

    error = log_in(script, *context_pair(ssl.TLSVersion.TLSv1_3), wanted="scram-sha-1-plus")
    assert (type(error), str(error)) == (
        Refused,
        "AUTH refused: 535 5.7.8 unsupported channel binding",
    )


def test_an_offer_taken_away_is_told(log_in):
    def script(peer):
        peer.hello(b"AUTH SCRAM-SHA-1")
        assert serve_scram(peer, b"SCRAM-SHA-1", "sha1", b"") == b"y"
        peer.expect(b"\r\n")
        peer.send(b"535 5.7.8 I did offer more\r\n")
        peer.bye()

    error = log_in(script, *context_pair(ssl.TLSVersion.TLSv1_3))
    assert str(error) == "AUTH refused: 535 5.7.8 I did offer more"


def assert_unproven(error):
    assert (type(error), error.phase, str(error)) == (
        AuthError,
        AUTH,
        UNPROVEN.replace("SCRAM", "SCRAM-SHA-1"),
    )


def test_a_server_without_the_password_gets_no_mail(log_in):
    """Its signature is wrong: the exchange is given up, whatever it says to that."""

    def script(peer):
        peer.hello(b"AUTH SCRAM-SHA-1")
        serve_scram(
            peer, b"SCRAM-SHA-1", "sha1", b"", lambda m: b"v=" + base64.b64encode(bytes(20))
        )
        peer.expect(b"*\r\n")
        peer.send(b"235 come in all the same\r\n")
        peer.bye()

    assert_unproven(log_in(script, *context_pair(ssl.TLSVersion.TLSv1_3)))


def test_a_server_that_skips_its_proof_gets_no_mail(log_in):
    def script(peer):
        peer.hello(b"AUTH SCRAM-SHA-1")
        line(peer)
        peer.send(b"235 in\r\n")
        peer.bye()

    assert_unproven(log_in(script, *context_pair(ssl.TLSVersion.TLSv1_3)))


def test_a_wrong_password_is_refused_once_and_told(log_in):
    """After the proof no other mechanism is tried: a password is guessed at once a session."""

    def script(peer):
        peer.hello(b"AUTH SCRAM-SHA-1 PLAIN")
        server = Server(b"another")
        peer.send(
            b"334 "
            + base64.b64encode(server.first(base64.b64decode(line(peer).split(b" ")[2])))
            + b"\r\n"
        )
        assert server.last(base64.b64decode(line(peer))) is None
        peer.send(b"334 " + base64.b64encode(b"e=invalid-proof") + b"\r\n")
        peer.expect(b"\r\n")
        peer.send(b"535 5.7.8 no\r\n")
        peer.bye()

    error = log_in(script, *context_pair(ssl.TLSVersion.TLSv1_3))
    assert (type(error), str(error)) == (Refused, "AUTH refused: 535 5.7.8 no (invalid-proof)")
