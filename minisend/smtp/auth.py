"""SASL mechanisms as pure generators, and the table that says which is taken.

No I/O and no base64 on the way in: a mechanism sees challenges and gives responses as plain octets; ``encode`` and
``challenge`` are the two ends of RFC 4954's base64.  A mechanism is a generator: its first value is the initial response,
None when the server speaks first; each challenge sent in gives the next response.

A password is in no repr, no exception and no trace.

Source: RFC 4954 (SMTP AUTH), RFC 4616 (PLAIN), draft-murchison-sasl-login (LOGIN, never an RFC, still the only
mechanism of some servers).
"""

import binascii
from collections.abc import Callable, Collection, Generator
from typing import NamedTuple

from minisend.errors import SmtpError
from minisend.smtp.reply import Reply

Exchange = Generator[bytes | None, bytes, None]


class AuthError(SmtpError):
    """No way to authenticate was found before anything secret was sent.  The message waits: it is no fault of its own."""

    status = "4.7.0"


class Credentials:
    """User name and password, octets (UTF-8 where they are not ASCII), without NUL, which no mechanism can carry."""

    __slots__ = ("password", "username")

    def __init__(self, username: bytes, password: bytes) -> None:
        if b"\0" in username or b"\0" in password:
            raise AuthError("user name or password holds a NUL octet")
        self.username = username
        self.password = password

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, ***)"


def plain(credentials: Credentials) -> Exchange:
    """PLAIN, RFC 4616: empty authorization identity, user name and password in one message."""
    yield b"\0" + credentials.username + b"\0" + credentials.password


def login(credentials: Credentials) -> Exchange:
    """LOGIN: two challenges, of whatever wording, answered with the user name and then the password."""
    yield None
    yield credentials.username
    yield credentials.password


class Mechanism(NamedTuple):
    """One row of ``MECHANISMS``: the name as EHLO has it, and how an exchange begins."""

    name: str
    start: Callable[[Credentials], Exchange]


#: Strongest first.
MECHANISMS = (
    Mechanism("PLAIN", plain),
    Mechanism("LOGIN", login),
)


def choose(
    offered: Collection[str],
    wanted: str = "auto",
    *,
    encrypted: bool,
    allow_cleartext: bool = False,
) -> Mechanism:
    """The mechanism to use; raises ``AuthError``, which names what was offered.

    ``offered``  names from EHLO, upper case
    ``wanted``   "auto" for the strongest that both sides know, or the name of the only one to use, in any case
    ``encrypted``, ``allow_cleartext``  one of them must be true: a password does not cross an open line by accident
    """
    if not encrypted and not allow_cleartext:
        raise AuthError("connection is not encrypted: password not sent")
    for mechanism in MECHANISMS:
        if mechanism.name in offered and wanted.upper() in ("AUTO", mechanism.name):
            return mechanism
    names = " ".join(sorted(offered)) or "no authentication"
    known = " ".join(m.name for m in MECHANISMS) if wanted.lower() == "auto" else wanted.upper()
    raise AuthError(
        f"no usable authentication mechanism: server offers {names}, usable here is {known}"
    )


def encode(response: bytes) -> bytes:
    """A response as base64, one line without its end."""
    return binascii.b2a_base64(response, newline=False)


def challenge(reply: Reply) -> bytes:
    """The challenge of a 334 reply.

    One that is not base64 is given as it came: LOGIN ignores the wording, and servers exist that send it bare.
    """
    text = b"".join(reply.lines)
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        return text


def respond(exchange: Exchange, octets: bytes) -> bytes | None:
    """The response to a challenge; None when the mechanism has come to its end and expects none."""
    try:
        return exchange.send(octets)
    except StopIteration:
        return None
