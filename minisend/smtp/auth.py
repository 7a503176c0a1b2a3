"""SASL mechanisms as pure exchanges, and the table that says which is taken.

No I/O: an ``Exchange`` gives an initial response, and to each 334 reply the next response, as plain octets; ``encode``
makes RFC 4954's base64 of them.  SCRAM is in ``scram``, what ties it to a TLS connection in ``binding``.

What there is of ``Credentials`` decides what can be used; of that the first that the server offers is taken:

    mechanism            credentials  open line  why here
    SCRAM-SHA-256-PLUS   password     -          no password crosses, the server proves itself, nobody is in the middle
    SCRAM-SHA-256        password     yes
    SCRAM-SHA-1-PLUS     password     -
    SCRAM-SHA-1          password     yes
    PLAIN                password     no         the password itself, inside TLS
    LOGIN                password     no         the same, for servers that never learnt PLAIN
    CRAM-MD5             password     no         last: see below
    OAUTHBEARER          token        no         the standard's form
    XOAUTH2              token        no         the form from before it
    EXTERNAL             neither      no         the client certificate of the TLS connection

"no" means: not over an open line, unless the administrator wants it so (``allow_cleartext``).

CRAM-MD5 comes after PLAIN inside TLS.  There it hides the password from nobody but the server, proves no server, makes
it keep passwords in clear text, and fails with servers that offer it without having those, as
many do; RFC 2195 is on its way to historic.  Over an open line, if that is allowed, it comes before PLAIN: listeners learn
only what they can guess from.  That is also why it needs the permission: one answer to a challenge of the
attacker's choice lets millions of passwords be tried in a second.

A 5yz before SCRAM's proof has gone out says nothing of the password: the server has no such binding, or offers SCRAM
without the keys of this account (Postfix over saslauthd does).  Nor does 504, of a mechanism that was offered from habit
(Exchange).  ``further`` says what to try then; a password is tried once.

A password or a token is in no repr, no exception and no trace.

Source: RFC 4954 (SMTP AUTH), RFC 4616 (PLAIN), draft-murchison-sasl-login (LOGIN, never an RFC, still the only
mechanism of some servers), RFC 2195 (CRAM-MD5), RFC 4422 appendix A (EXTERNAL), RFC 7628 (OAUTHBEARER),
developers.google.com/workspace/gmail/imap/xoauth2-protocol (XOAUTH2, also Microsoft's).
"""

from __future__ import annotations

import binascii

from minisend.errors import RemoteProtocolError, SmtpError
from minisend.smtp.binding import NOT_BOUND, NOT_OFFERED, ChannelBinding
from minisend.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from minisend.smtp.reply import Reply


class AuthError(SmtpError):
    """No way to authenticate was found, or the server failed its own part.  The message waits: it is no fault of its own."""

    status = "4.7.0"


class Credentials:
    """Who we are at a server, and what proves it: octets (UTF-8 where they are not ASCII), without NUL.

    ``username``  ``b""`` only for EXTERNAL: whoever the certificate names
    ``password``  ``b""`` when there is none
    ``token``     an OAuth 2 access token (RFC 6750), in place of a password
    Neither of the two leaves EXTERNAL: the proof is the TLS connection's client certificate.
    """

    __slots__ = ("password", "token", "username")

    def __init__(self, username: bytes, password: bytes = b"", *, token: bytes = b"") -> None:
        if b"\0" in username or b"\0" in password:
            raise AuthError("user name or password holds a NUL octet")
        # The mechanisms frame it with control characters.
        if not all(0x21 <= octet <= 0x7E for octet in token):
            raise AuthError("access token holds a space or what is not ASCII")
        if token and b"\1" in username:
            raise AuthError("user name holds a control character")
        self.username = username
        self.password = password
        self.token = token

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, ***)"


class Exchange:
    """One run of a mechanism: ``initial`` once, then ``answer`` to each 334 reply, then ``accepted`` if it ends with 2yz.

    This one, with its initial response and no other, is all that PLAIN and EXTERNAL need.

    ``initial``  octets, None when the server speaks first
    ``failure``  what the server said within the exchange of why it will refuse, ``b""`` when nothing
    ``proven``   something was sent that the server can tell a right from a wrong password by
    """

    failure = b""
    proven = False

    def __init__(self, name: str, initial: bytes | None) -> None:
        self._mechanism = name
        self.initial = initial

    def answer(self, reply: Reply) -> bytes | None:
        """The response to a 334 reply; None when none was to come.  Raises ``AuthError``, ``RemoteProtocolError``."""
        try:
            challenge = binascii.a2b_base64(b"".join(reply.lines).strip(), strict_mode=True)
        except binascii.Error:
            raise RemoteProtocolError(f"{self._mechanism}: challenge is not base64") from None
        return self.respond(challenge)

    def respond(self, challenge: bytes) -> bytes | None:
        """``answer`` without the base64."""
        return None

    def accepted(self) -> None:
        """The server says that we are in.  Raises ``AuthError`` when it owes a proof of its own."""


class Login(Exchange):
    """LOGIN: two challenges, of whatever wording, answered with the user name and then the password."""

    def __init__(self, credentials: Credentials) -> None:
        super().__init__("LOGIN", None)
        self._responses = [credentials.password, credentials.username]

    def answer(self, reply: Reply) -> bytes | None:
        """The wording is not read: servers exist that do not even encode it."""
        return self._responses.pop() if self._responses else None


class CramMd5(Exchange):
    """CRAM-MD5, RFC 2195: the user name and the challenge's HMAC under the password."""

    def __init__(self, credentials: Credentials) -> None:
        super().__init__("CRAM-MD5", None)
        self._credentials: Credentials | None = credentials

    def respond(self, challenge: bytes) -> bytes | None:
        """Raises ``RemoteProtocolError``, and ``AuthError`` where Python may not compute MD5 (FIPS)."""
        import hmac

        credentials, self._credentials = self._credentials, None
        if credentials is None:
            return None
        if not challenge:
            raise RemoteProtocolError("CRAM-MD5: challenge is empty")
        try:
            proof = hmac.digest(credentials.password, challenge, "md5")
        except ValueError:
            raise AuthError("CRAM-MD5: this machine does not allow MD5") from None
        return credentials.username + b" " + proof.hex().encode()


class Bearer(Exchange):
    """OAUTHBEARER and XOAUTH2: the token at once; a challenge is the server's error, to be acknowledged before it refuses."""

    #: The members of the error that a person can use (RFC 7628 section 3.2.2), and the most octets of each that are shown.
    _TOLD = ("status", "scope")
    _TOLD_OCTETS = 200

    def __init__(self, name: str, initial: bytes, acknowledgement: bytes, token: bytes) -> None:
        super().__init__(name, initial)
        self._acknowledgement = acknowledgement
        self._token = token

    def respond(self, challenge: bytes) -> bytes | None:
        """The acknowledgement, once."""
        if self.failure:
            return None
        self.failure = self._read(challenge) or b"unreadable error"
        return self._acknowledgement

    def accepted(self) -> None:
        """Raises ``AuthError`` after an error: a server that means both is not to be trusted with mail."""
        if self.failure:
            raise AuthError(f"{self._mechanism}: server sent an error and accepted")

    def _read(self, challenge: bytes) -> bytes:
        import json

        try:
            error = json.loads(challenge)
        except (ValueError, RecursionError):
            return b""
        if not isinstance(error, dict):
            return b""
        told = [
            f"{name} {error[name]}".encode("utf-8", "backslashreplace")[: self._TOLD_OCTETS]
            for name in self._TOLD
            if isinstance(error.get(name), str | int)
        ]
        # Some server will echo it.
        return b", ".join(told).replace(self._token, b"***")


def plain(credentials: Credentials, binding: ChannelBinding = NOT_BOUND) -> Exchange:
    """PLAIN, RFC 4616: empty authorization identity, user name and password in one message.

    The octets go as they are: preparing them (SASLprep) is the server's part (section 2), and one that compares octets, as most
    do, would not know a password that was changed on the way.
    """
    return Exchange("PLAIN", b"\0" + credentials.username + b"\0" + credentials.password)


def external(credentials: Credentials, binding: ChannelBinding = NOT_BOUND) -> Exchange:
    """EXTERNAL, RFC 4422 appendix A: the authorization identity alone, which may be empty."""
    return Exchange("EXTERNAL", credentials.username)


def oauthbearer(credentials: Credentials, binding: ChannelBinding = NOT_BOUND) -> Exchange:
    """OAUTHBEARER, RFC 7628: without host and port, which only schemes with signatures need (section 3.1)."""
    initial = b"n,a=%b,\1auth=Bearer %b\1\1" % (escape(credentials.username), credentials.token)
    return Bearer("OAUTHBEARER", initial, b"\1", credentials.token)


def xoauth2(credentials: Credentials, binding: ChannelBinding = NOT_BOUND) -> Exchange:
    """XOAUTH2: an error is acknowledged with an empty response."""
    initial = b"user=%b\1auth=Bearer %b\1\1" % (credentials.username, credentials.token)
    return Bearer("XOAUTH2", initial, b"", credentials.token)


def _scram(name: str, digest: str) -> Callable[[Credentials, ChannelBinding], Exchange]:
    def begin(credentials: Credentials, binding: ChannelBinding) -> Exchange:
        from minisend.smtp.scram import Scram

        return Scram(name, credentials, digest, binding)

    return begin


# Kinds of mechanisms: what they need, and what a refusal of one says about the others.
_BOUND = "bound"  # SCRAM with a channel binding
_SCRAM = "scram"
_PASSWORD = "password"  # noqa: S105 - a kind, not a password
_TOKEN = "token"  # noqa: S105 - a kind, not a token
_CERTIFICATE = "certificate"


# RFC 4954 section 4: said of the mechanism, whatever the password.
_UNKNOWN_MECHANISM = 504


class Mechanism(Value):
    """One row of ``MECHANISMS``: the name as EHLO has it, its kind, and how an exchange begins."""

    __slots__ = ("begin", "kind", "name")

    def __init__(
        self, name: str, kind: str, begin: Callable[[Credentials, ChannelBinding], Exchange]
    ) -> None:
        self.name = name
        self.kind = kind
        self.begin = begin


#: In the order of the table above.
MECHANISMS = (
    Mechanism("SCRAM-SHA-256-PLUS", _BOUND, _scram("SCRAM-SHA-256-PLUS", "sha256")),
    Mechanism("SCRAM-SHA-256", _SCRAM, _scram("SCRAM-SHA-256", "sha256")),
    Mechanism("SCRAM-SHA-1-PLUS", _BOUND, _scram("SCRAM-SHA-1-PLUS", "sha1")),
    Mechanism("SCRAM-SHA-1", _SCRAM, _scram("SCRAM-SHA-1", "sha1")),
    Mechanism("PLAIN", _PASSWORD, plain),
    Mechanism("LOGIN", _PASSWORD, lambda credentials, binding: Login(credentials)),
    Mechanism("CRAM-MD5", _PASSWORD, lambda credentials, binding: CramMd5(credentials)),
    Mechanism("OAUTHBEARER", _TOKEN, oauthbearer),
    Mechanism("XOAUTH2", _TOKEN, xoauth2),
    Mechanism("EXTERNAL", _CERTIFICATE, external),
)


class Choice(Value):
    """A mechanism that both sides have, ready to begin."""

    __slots__ = ("begin", "kind", "name")

    def __init__(self, name: str, kind: str, begin: Callable[[], Exchange]) -> None:
        self.name = name
        self.kind = kind
        self.begin = begin


def choose(
    offered: Collection[str],
    wanted: str,
    credentials: Credentials,
    *,
    encrypted: bool,
    allow_cleartext: bool = False,
    binding: ChannelBinding | None = None,
    starttls: bool = False,
) -> list[Choice]:
    """What can be used, best first, at least one; raises ``AuthError``, which names what was offered.

    ``offered``  names from EHLO, upper case
    ``wanted``   "auto", or the name of the only one to use, in any case; that of SCRAM stands for its -PLUS form too,
                 while the name of the -PLUS form insists on it
    ``encrypted``, ``allow_cleartext``  one of them must be true for all but SCRAM: what proves who we are does not cross an
                 open line by accident
    ``binding``  of the connection, None when it has none
    ``starttls`` is offered, and was not asked for: most servers offer logins inside TLS alone
    """
    only = wanted.upper()
    known = [
        mechanism
        for mechanism in MECHANISMS
        if only in ("AUTO", mechanism.name, mechanism.name.removesuffix("-PLUS"))
        and mechanism.kind in _kinds(credentials, binding)
    ]
    if not encrypted:
        known.sort(key=lambda mechanism: mechanism.name in ("PLAIN", "LOGIN"))
    if not known:
        raise AuthError(f"{only} cannot be used: {_missing(only)}")
    safe = [m for m in known if encrypted or allow_cleartext or m.kind == _SCRAM]
    choices = [
        Choice(m.name, m.kind, _begin(m, credentials, _binding_for(m, offered, binding)))
        for m in safe
        if m.name in offered
    ]
    if not choices:
        if any(m.name in offered for m in known):
            raise AuthError("connection is not encrypted: password not sent")
        names = " ".join(sorted(offered)) or "no authentication"
        usable = " ".join(mechanism.name for mechanism in known)
        raise AuthError(
            f"no usable authentication mechanism: server offers {names}, usable here is {usable}"
            + "; it may offer more inside TLS, and offers STARTTLS" * starttls
        )
    return choices


def further(choices: Sequence[Choice], exchange: Exchange, reply: Reply) -> list[Choice]:
    """What is left to try after the first of ``choices`` was refused, [] when the refusal is about the credentials.

    Without a binding if it was bound, else without SCRAM: at most two refusals a login come of it.  And without what the
    server offers and does not know.
    """
    refused = choices[0].kind
    if exchange.proven or not reply.permanent:
        return []
    if refused not in (_BOUND, _SCRAM):
        return list(choices[1:]) if reply.code == _UNKNOWN_MECHANISM else []
    tried = (_BOUND,) if refused == _BOUND else (_BOUND, _SCRAM)
    return [choice for choice in choices if choice.kind not in tried]


def encode(response: bytes) -> bytes:
    """A response as base64, one line without its end."""
    return binascii.b2a_base64(response, newline=False)


def escape(name: bytes) -> bytes:
    """A name as saslname of RFC 5801 section 4."""
    return name.replace(b"=", b"=3D").replace(b",", b"=2C")


def _kinds(credentials: Credentials, binding: ChannelBinding | None) -> tuple[str, ...]:
    if credentials.token:
        return (_TOKEN,)
    if not credentials.password:
        return (_CERTIFICATE,)
    return (_SCRAM, _PASSWORD) if binding is None else (_BOUND, _SCRAM, _PASSWORD)


def _missing(name: str) -> str:
    """What a known mechanism lacks."""
    kind = next((m.kind for m in MECHANISMS if m.name == name), "")
    return {
        _BOUND: "it needs a password, and TLS that it can be bound to",
        _SCRAM: "it needs a password",
        _PASSWORD: "it needs a password",
        _TOKEN: "it needs an access token",
        _CERTIFICATE: "there is a password or an access token in place of a certificate",
    }.get(kind, "no such mechanism here")


def _binding_for(
    mechanism: Mechanism, offered: Collection[str], binding: ChannelBinding | None
) -> ChannelBinding:
    """RFC 5802 section 6: "y" only while the server does not list the bound form of this mechanism."""
    if binding is None or (mechanism.kind != _BOUND and f"{mechanism.name}-PLUS" in offered):
        return NOT_BOUND
    return binding if mechanism.kind == _BOUND else NOT_OFFERED


def _begin(
    mechanism: Mechanism, credentials: Credentials, binding: ChannelBinding
) -> Callable[[], Exchange]:
    return lambda: mechanism.begin(credentials, binding)
