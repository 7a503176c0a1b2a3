"""SCRAM-SHA-1, SCRAM-SHA-256 and their -PLUS forms, the client's side.

    client  gs2-header n=user,r=nonce                    initial response
    server  r=nonce+more,s=salt,i=iterations             challenge
    client  c=channel,r=nonce+more,p=proof               response
    server  v=signature                                  challenge, answered with nothing; or e=error, and a 5yz

The password never crosses the line, and the server proves that it knows it too: a login without that proof is
none, whatever reply it ends with.  What the server gets wrong raises, and the caller gives the exchange up:

    in its first message                                    RemoteProtocolError when malformed, or an extension it insists on
      a nonce that does not begin with ours                 AuthError: an answer to somebody else's exchange
      fewer iterations than ``FEWEST_ITERATIONS``           AuthError: RFC 7677 section 4; the proof would be cheap to search
      more than ``MOST_ITERATIONS``                         AuthError: it has our processor compute for nothing
    a signature that is not the password's, or none at all  AuthError: a server that does not have the account

Source: RFC 5802, RFC 7677, RFC 4013 (through ``saslprep``); RFC 5801 for the gs2-header.
"""

import binascii

from minisend.errors import RemoteProtocolError
from minisend.smtp.auth import AuthError, Credentials, Exchange, encode, escape
from minisend.smtp.binding import ChannelBinding

FEWEST_ITERATIONS = 4096

#: About a second of a processor.  OWASP's advice of 2023 is 600,000 for SHA-256 and 1,300,000 for SHA-1.
MOST_ITERATIONS = 2_000_000

#: Octets of randomness in our nonce; 24 characters of base64, which has no comma.
_NONCE_SIZE = 18


class Scram(Exchange):
    """One run.

    ``digest``   "sha1" | "sha256"
    ``binding``  of the connection, or one of ``binding``'s two ways to say that there is none
    ``nonce``    ours: printable ASCII without comma; random unless given
    """

    def __init__(
        self,
        name: str,
        credentials: Credentials,
        digest: str,
        binding: ChannelBinding,
        nonce: bytes = b"",
    ) -> None:
        if not nonce:
            from os import urandom

            nonce = encode(urandom(_NONCE_SIZE))
        header = binding.flag + b",,"
        self._name = name
        self._digest = digest
        self._password = _prepared(credentials.password)
        self._nonce = nonce
        self._bare = b"n=" + escape(_prepared(credentials.username)) + b",r=" + nonce
        self._channel = encode(header + binding.data)
        self._signature = b""  # the server's, once it can be told
        self._verified = False
        super().__init__(name, header + self._bare)

    def respond(self, challenge: bytes) -> bytes | None:
        """Raises ``RemoteProtocolError``, ``AuthError``."""
        if self._verified or self.failure:
            return None
        if challenge.startswith(b"e="):
            self.failure = challenge[2:]
            return b""
        if not self._signature:
            return self._prove(challenge)
        if not _equal(challenge, b"v=" + encode(self._signature)):
            raise self._unproven()
        self._verified = True
        return b""

    def accepted(self) -> None:
        """Raises ``AuthError`` when the server has not proven that it knows the password."""
        if not self._verified:
            raise self._unproven()

    def _prove(self, first: bytes) -> bytes:
        """client-final-message, from server-first-message."""
        import hashlib
        import hmac

        nonce, salt, iterations = self._parse(first)
        final = b"c=" + self._channel + b",r=" + nonce
        messages = b",".join((self._bare, first, final))
        salted = hashlib.pbkdf2_hmac(self._digest, self._password, salt, iterations)
        client_key = hmac.digest(salted, b"Client Key", self._digest)
        stored_key = hashlib.new(self._digest, client_key).digest()
        signature = hmac.digest(stored_key, messages, self._digest)
        server_key = hmac.digest(salted, b"Server Key", self._digest)
        self._signature = hmac.digest(server_key, messages, self._digest)
        self.proven = True
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        return final + b",p=" + encode(proof)

    def _parse(self, first: bytes) -> tuple[bytes, bytes, int]:
        """Nonce, salt and iterations, each within its bounds; what follows them is for extensions to come."""
        if first.startswith(b"m="):
            raise RemoteProtocolError(f"{self._name}: server insists on an extension")
        fields = first.split(b",")[:3]
        if [field[:2] for field in fields] != [b"r=", b"s=", b"i="]:
            raise self._malformed()
        nonce, salt, count = (field[2:] for field in fields)
        try:
            salt = binascii.a2b_base64(salt, strict_mode=True)
        except binascii.Error:
            raise self._malformed() from None
        # int() takes signs, spaces and underscores too, and a number of any length.
        if not (salt and count.isdigit() and not count.startswith(b"0") and len(count) <= 18):
            raise self._malformed()
        if not all(0x21 <= octet <= 0x7E for octet in nonce):
            raise self._malformed()
        if not nonce.startswith(self._nonce) or nonce == self._nonce:
            raise AuthError(f"{self._name}: server's nonce does not extend ours")
        iterations = int(count)
        if iterations < FEWEST_ITERATIONS:
            raise AuthError(
                f"{self._name}: server asks for {iterations} iterations, fewer than {FEWEST_ITERATIONS}"
            )
        if iterations > MOST_ITERATIONS:
            raise AuthError(
                f"{self._name}: server asks for {iterations} iterations, more than {MOST_ITERATIONS}"
            )
        return nonce, salt, iterations

    def _malformed(self) -> RemoteProtocolError:
        return RemoteProtocolError(f"{self._name}: server's first message is malformed")

    def _unproven(self) -> AuthError:
        return AuthError(f"{self._name}: server did not prove that it knows the password")


def _prepared(octets: bytes) -> bytes:
    if octets.isascii():
        return octets
    from minisend.smtp.saslprep import prepared_octets

    return prepared_octets(octets)


def _equal(a: bytes, b: bytes) -> bool:
    import hmac

    return hmac.compare_digest(a, b)
