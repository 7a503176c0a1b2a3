"""SCRAM against Cyrus SASL's library itself, which can bind to a channel where the servers of Debian 12 that use it cannot.

What crosses the line here are the messages of the exchange alone; ``test_auth`` has them inside SMTP.  Source: sasl.h and
"Libsasl for programmers" of Cyrus SASL 2.1, RFC 5802 section 6.
"""

import ctypes
import ctypes.util
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from minisend.smtp.auth import Credentials, Exchange
from minisend.smtp.binding import NOT_BOUND, NOT_OFFERED, ChannelBinding
from minisend.smtp.scram import Scram
from peers.unpacked import unavailable, unpacked

pytestmark = pytest.mark.peer

PASSWORD = "pässword, ="
REALM = "accounts.test"
DATA = b"octets that only the two ends\0know"
DIGESTS = {"SCRAM-SHA-1": "sha1", "SCRAM-SHA-256": "sha256"}
BINDINGS = ("tls-unique", "tls-server-end-point")

OK, CONTINUE = 0, 1
BAD_PROTOCOL, BAD_AUTH = -5, -13
CHANNEL_BINDING = 21


class Binding(ctypes.Structure):
    """sasl_channel_binding_t."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("critical", ctypes.c_int),
        ("length", ctypes.c_ulong),
        ("data", ctypes.c_char_p),
    )


class Cyrus:
    """The library as a server that has one account, ``ann``."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def mechanisms(self, binding: str = "") -> set[str]:
        """What it would offer."""
        connection, _held = self._connection(binding, DATA)
        listed = ctypes.c_char_p()
        done = self._library.sasl_listmech(
            connection, None, b"", b" ", b"", ctypes.byref(listed), None, None
        )
        assert done == OK and listed.value is not None
        names = set(listed.value.decode().split())
        self._library.sasl_dispose(ctypes.byref(connection))
        return names

    def login(self, exchange: Exchange, mechanism: str, binding: str = "") -> int:
        """The server's verdict on a whole exchange; the client is told when it is a good one."""
        connection, _held = self._connection(binding, DATA)
        said, length = ctypes.c_char_p(), ctypes.c_uint()
        out = ctypes.byref(said), ctypes.byref(length)
        assert exchange.initial is not None
        first = exchange.initial
        verdict = self._library.sasl_server_start(
            connection, mechanism.encode(), first, len(first), *out
        )
        while verdict == CONTINUE:
            answer = exchange.respond(ctypes.string_at(said, length.value))
            assert answer is not None
            verdict = self._library.sasl_server_step(connection, answer, len(answer), *out)
        if verdict == OK:
            # Raises where the server has not proven that it knows the password.
            exchange.accepted()
        self._library.sasl_dispose(ctypes.byref(connection))
        return int(verdict)

    def _connection(self, binding: str, data: bytes) -> tuple[ctypes.c_void_p, object]:
        """One, and what has to live as long as it does."""
        connection = ctypes.c_void_p()
        made = self._library.sasl_server_new(
            b"smtp", b"mail.test", REALM.encode(), None, None, None, 0, ctypes.byref(connection)
        )
        assert made == OK
        if not binding:
            return connection, None
        held = Binding(binding.encode(), 0, len(data), data)
        assert self._library.sasl_setprop(connection, CHANNEL_BINDING, ctypes.byref(held)) == OK
        return connection, held


@pytest.fixture(scope="module")
def cyrus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cyrus]:
    name = ctypes.util.find_library("sasl2")
    if name is None:
        unavailable("libsasl2 is not installed")
    saslpasswd2 = unpacked("sasl2-bin") / "usr/sbin/saslpasswd2"
    directory = tmp_path_factory.mktemp("sasl")
    database = directory / "sasldb2"
    subprocess.run(
        [saslpasswd2, "-p", "-c", "-u", REALM, "-f", database, "ann"],
        input=PASSWORD.encode(),
        check=True,
    )
    Path(directory, "minisend.conf").write_text(
        f"pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: {database}\n"
    )
    library = ctypes.CDLL(name)
    assert library.sasl_set_path(1, str(directory).encode()) == OK  # SASL_PATH_TYPE_CONFIG
    assert library.sasl_server_init(None, b"minisend") == OK
    yield Cyrus(library)
    library.sasl_done()


def scram(mechanism: str, binding: ChannelBinding, password: str = PASSWORD) -> Scram:
    digest = DIGESTS[mechanism.removesuffix("-PLUS")]
    return Scram(mechanism, Credentials(b"ann", password.encode()), digest, binding)


def bound(name: str, data: bytes = DATA) -> ChannelBinding:
    return ChannelBinding(b"p=" + name.encode(), data)


def test_what_it_offers(cyrus: Cyrus) -> None:
    plus = {f"{mechanism}-PLUS" for mechanism in DIGESTS}
    assert not cyrus.mechanisms() & plus
    assert cyrus.mechanisms(BINDINGS[0]) >= plus | set(DIGESTS)


@pytest.mark.parametrize("mechanism", DIGESTS)
@pytest.mark.parametrize("binding", BINDINGS)
def test_a_login_that_is_bound(cyrus: Cyrus, mechanism: str, binding: str) -> None:
    plus = f"{mechanism}-PLUS"
    assert cyrus.login(scram(plus, bound(binding)), plus, binding) == OK
    # Somebody in the middle, who has a connection of their own to each side.
    other = bound(binding, DATA + b"x")
    assert cyrus.login(scram(plus, other), plus, binding) == BAD_PROTOCOL
    assert cyrus.login(scram(plus, bound(binding), "guess"), plus, binding) == BAD_AUTH


@pytest.mark.parametrize("mechanism", DIGESTS)
def test_a_login_that_is_not_bound(cyrus: Cyrus, mechanism: str) -> None:
    for binding in (NOT_BOUND, NOT_OFFERED):
        assert cyrus.login(scram(mechanism, binding), mechanism) == OK
        assert cyrus.login(scram(mechanism, binding, "guess"), mechanism) == BAD_AUTH
    assert cyrus.login(scram(mechanism, NOT_BOUND), mechanism, BINDINGS[0]) == OK


@pytest.mark.parametrize("mechanism", DIGESTS)
def test_an_offer_that_somebody_took_away(cyrus: Cyrus, mechanism: str) -> None:
    """The client says that it saw none, and the server knows that it had made one."""
    verdict = cyrus.login(scram(mechanism, NOT_OFFERED), mechanism, BINDINGS[0])
    assert verdict == BAD_AUTH
