"""Channel bindings: octets that only the two ends of one TLS connection have in common.

A SCRAM exchange that is bound to them fails when somebody sits in the middle with a TLS connection to each side, even
one with a certificate that the client believes.  Nothing here does I/O, verifies a certificate or chooses what is
used.

    connection                       binding                source
    TLS 1.2, full handshake          tls-unique             RFC 5929 section 3: what RFC 5802 section 6.1 wants clients to use
    TLS 1.2, session taken up again  tls-server-end-point   tls-unique is not unique then (RFC 7627 section 1)
    TLS 1.3                          tls-server-end-point   RFC 5929 section 4
    the certificate's signature      none
    has no hash, or an unknown one

Limits: with TLS 1.3 servers expect tls-exporter (RFC 9266) first, for which Python's ``ssl`` has no function.  One that knows
nothing else refuses the bound form; ``auth.further`` then goes on without.
"""

from minisend.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl


class ChannelBinding(Value):
    """What SCRAM says of the channel.

    ``flag``  gs2-cbind-flag of RFC 5802 section 7: ``b"p=tls-unique"`` and the like, or one of the two below
    ``data``  the octets that both ends know, ``b""`` without a binding
    """

    __slots__ = ("data", "flag")

    def __init__(self, flag: bytes, data: bytes) -> None:
        self.flag = flag
        self.data = data


#: The client cannot bind, or has been refused when it did.
NOT_BOUND = ChannelBinding(b"n", b"")

#: The client could, but the server did not offer to: one that did knows now that somebody took the offer away.
NOT_OFFERED = ChannelBinding(b"y", b"")


def channel_binding(connection: "ssl.SSLSocket") -> ChannelBinding | None:
    """The binding of an established connection, None when it has none that both sides would understand."""
    if connection.version() == "TLSv1.2" and not connection.session_reused:
        unique = connection.get_channel_binding("tls-unique")
        return ChannelBinding(b"p=tls-unique", unique) if unique else None
    certificate = connection.getpeercert(binary_form=True)
    name = signature_hash(certificate) if certificate else ""
    if not certificate or not name:
        return None
    import hashlib

    return ChannelBinding(b"p=tls-server-end-point", hashlib.new(name, certificate).digest())


# Object identifiers as DER has them, without tag and length.
_RSA = bytes.fromhex("2a864886f70d0101")  # 1.2.840.113549.1.1: PKCS #1, RFC 8017
_RSA_PSS = _RSA + b"\x0a"
_ECDSA_SHA2 = bytes.fromhex("2a8648ce3d0403")  # 1.2.840.10045.4.3: RFC 5758
_SHA2 = bytes.fromhex("6086480165030402")  # 2.16.840.1.101.3.4.2: RFC 5754
_SHA1 = bytes.fromhex("2b0e03021a")  # 1.3.14.3.2.26

# In place of MD5 and SHA-1, which RFC 5929 section 4.1 replaces.
_REPLACED = "sha256"

_HASHES = {
    _RSA + b"\x04": _REPLACED,  # md5WithRSAEncryption
    _RSA + b"\x05": _REPLACED,  # sha1WithRSAEncryption
    _RSA + b"\x0b": "sha256",
    _RSA + b"\x0c": "sha384",
    _RSA + b"\x0d": "sha512",
    _RSA + b"\x0e": "sha224",
    bytes.fromhex("2a8648ce3d0401"): _REPLACED,  # ecdsa-with-SHA1
    _ECDSA_SHA2 + b"\x01": "sha224",
    _ECDSA_SHA2 + b"\x02": "sha256",
    _ECDSA_SHA2 + b"\x03": "sha384",
    _ECDSA_SHA2 + b"\x04": "sha512",
}
_PSS_HASHES = {
    _SHA1: _REPLACED,
    _SHA2 + b"\x01": "sha256",
    _SHA2 + b"\x02": "sha384",
    _SHA2 + b"\x03": "sha512",
    _SHA2 + b"\x04": "sha224",
}

#: Tags of X.690: constructed ones as they stand in a certificate.
SEQUENCE, INTEGER, OBJECT_IDENTIFIER, CONTEXT_0 = 0x30, 0x02, 0x06, 0xA0

_HASH_ALGORITHM = CONTEXT_0


def signature_hash(certificate: bytes) -> str:
    """``hashlib``'s name of the hash that tls-server-end-point takes for a certificate (DER); RFC 5929 section 4.1.

    "" when its signature has none (Ed25519), has one not known here, or when it is no certificate.
    """
    try:
        fields, _ = element(certificate, SEQUENCE)  # RFC 5280 section 4.1: Certificate
        _, rest = element(fields, SEQUENCE)  # tbsCertificate
        algorithm, _ = element(rest, SEQUENCE)  # signatureAlgorithm
        identifier, parameters = element(algorithm, OBJECT_IDENTIFIER)
        if identifier != _RSA_PSS:
            return _HASHES.get(identifier, "")
        # RFC 4055 section 3.1: RSASSA-PSS-params, whose hash is SHA-1 unless there is another.
        parameters, _ = element(parameters, SEQUENCE)
        if parameters[:1] != bytes([_HASH_ALGORITHM]):
            return _REPLACED
        tagged, _ = element(parameters, _HASH_ALGORITHM)
        algorithm, _ = element(tagged, SEQUENCE)
        identifier, _ = element(algorithm, OBJECT_IDENTIFIER)
        return _PSS_HASHES.get(identifier, "")
    except ValueError:
        return ""


def element(octets: bytes, tag: int) -> tuple[bytes, bytes]:
    """The content of the element that ``octets`` begin with, and what follows it; ``ValueError`` if it is another or is cut.

    X.690 section 8.1: one octet of tag; one of length below 128, else the count of those that have the length.
    """
    if octets[:1] != bytes([tag]) or len(octets) < 2:
        raise ValueError
    start, length = 2, octets[1]
    if length >= 0x80:
        count = length - 0x80
        # No count is the indefinite form, which DER does not have; more than four would be no certificate.
        if not 1 <= count <= 4 or len(octets) < 2 + count:
            raise ValueError
        start += count
        length = int.from_bytes(octets[2:start], "big")
    if len(octets) < start + length:
        raise ValueError
    return octets[start : start + length], octets[start + length :]
