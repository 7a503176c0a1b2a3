"""What a server has to show in a TLS handshake, and the words for one that fails.

It never does I/O and never chooses whom to believe: context, fingerprints and advice come from the caller.

    Fault                 the handshake failed because
    WRONG_NAME            the certificate holds, but is for other names (RFC 9525)
    EXPIRED               its time is over
    NOT_YET_VALID         its time has not come, or this machine's clock is slow
    SELF_SIGNED           it vouches for itself
    UNKNOWN_CA            nobody who is trusted here vouches for it
    FINGERPRINT           neither it nor its key is one of those expected
    VERSION               the two sides have no version of TLS in common
    NOT_TLS               the server answered with what is no TLS at all
    CLIENT_CERTIFICATE    the server wants a certificate of ours, or does not accept the one it got
    NOT_OFFERED           no handshake: STARTTLS was not offered, or refused
    SILENT                no handshake: the server did not greet, and may be waiting for one itself
    OTHER                 of anything else; the words of OpenSSL say what

A fingerprint is the SHA-256 of the whole certificate ("sha256:") or of its subjectPublicKeyInfo ("spki-sha256:", what
stays when a certificate is renewed with the same key: RFC 7469 section 2.4), in 64 hexadecimal digits of lower case.
"""

from _thread import allocate_lock
from collections.abc import Iterable, Mapping
from enum import Enum, auto
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from minisend.smtp.binding import CONTEXT_0, INTEGER, SEQUENCE, element

if TYPE_CHECKING:
    import ssl


class Fault(Enum):
    """Why a handshake failed; the table above."""

    WRONG_NAME = auto()
    EXPIRED = auto()
    NOT_YET_VALID = auto()
    SELF_SIGNED = auto()
    UNKNOWN_CA = auto()
    FINGERPRINT = auto()
    VERSION = auto()
    NOT_TLS = auto()
    CLIENT_CERTIFICATE = auto()
    NOT_OFFERED = auto()
    SILENT = auto()
    OTHER = auto()


#: A session is some kilobytes; a service that runs for months meets many MX hosts.
_SESSIONS = 256

# X509_V_ERR_* of OpenSSL's x509_vfy.h, as SSLCertVerificationError.verify_code has them.
_VERIFY_CODES = {
    2: Fault.UNKNOWN_CA,
    9: Fault.NOT_YET_VALID,
    10: Fault.EXPIRED,
    18: Fault.SELF_SIGNED,
    19: Fault.UNKNOWN_CA,
    20: Fault.UNKNOWN_CA,
    21: Fault.UNKNOWN_CA,
    62: Fault.WRONG_NAME,
    64: Fault.WRONG_NAME,
}

# SSL_R_* of OpenSSL's sslerr.h, as SSLError.reason has them.
_REASONS = {
    "UNSUPPORTED_PROTOCOL": Fault.VERSION,
    "TLSV1_ALERT_PROTOCOL_VERSION": Fault.VERSION,
    "WRONG_VERSION_NUMBER": Fault.NOT_TLS,
    "RECORD_LAYER_FAILURE": Fault.NOT_TLS,
    "PACKET_LENGTH_TOO_LONG": Fault.NOT_TLS,
    "HTTP_REQUEST": Fault.NOT_TLS,
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": Fault.CLIENT_CERTIFICATE,
    "TLSV1_ALERT_UNKNOWN_CA": Fault.CLIENT_CERTIFICATE,
    "TLSV1_ALERT_ACCESS_DENIED": Fault.CLIENT_CERTIFICATE,
    "SSLV3_ALERT_BAD_CERTIFICATE": Fault.CLIENT_CERTIFICATE,
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": Fault.CLIENT_CERTIFICATE,
    "SSLV3_ALERT_CERTIFICATE_REVOKED": Fault.CLIENT_CERTIFICATE,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": Fault.CLIENT_CERTIFICATE,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": Fault.CLIENT_CERTIFICATE,
}
_WORDS = {
    Fault.VERSION: "no TLS version in common with the server",
    Fault.NOT_TLS: "the server answered with what is not TLS",
}
# Before the reason of an alert: it is the server that says so.
_ALERTS = ("SSLV3_ALERT_", "TLSV1_ALERT_", "TLSV13_ALERT_")

# Of the names that a certificate bears; one of a large host bears hundreds.
_NAMES_SHOWN = 3
_NAME_SHOWN = 80


class Trust:
    """Whom to believe in a handshake; one for all connections to which the same applies, in any thread.

    ``context``   of the client: the versions, and what is verified of a certificate
    ``pins``      fingerprints: the server's certificate or key has to be one of them; () = any
    ``remedies``  Fault → what the administrator can do about it, put behind the error
    """

    def __init__(
        self,
        context: "ssl.SSLContext",
        *,
        pins: Iterable[str] = (),
        remedies: "Mapping[Fault, str] | None" = None,
    ) -> None:
        self.context = context
        self._pins = tuple(pins)
        self._remedies = remedies or {}
        self._sessions: dict[tuple[str | None, str], ssl.SSLSession] = {}
        self._lock = allocate_lock()

    def session(self, server_name: str | None, address: str) -> "ssl.SSLSession | None":
        """What a handshake with this server may begin with: half its cost is saved, on both sides (RFC 8446 section 2.2)."""
        with self._lock:
            return self._sessions.get((server_name, address))

    def keep(self, server_name: str | None, address: str, connection: "ssl.SSLSocket") -> None:
        """Keep the connection's session for the next one.

        With TLS 1.3 the server sends what is needed after the handshake, so something must have been read by now.
        """
        session = connection.session
        if session is None or not (session.has_ticket or connection.version() == "TLSv1.2"):
            return
        with self._lock:
            # The newest is the last, so that the first is the one to go.
            self._sessions.pop((server_name, address), None)
            self._sessions[server_name, address] = session
            if len(self._sessions) > _SESSIONS:
                del self._sessions[next(iter(self._sessions))]

    def forget(self, server_name: str | None, address: str) -> None:
        """A handshake that began with what was kept failed: the next is to begin anew."""
        with self._lock:
            self._sessions.pop((server_name, address), None)

    def mismatch(self, certificate: bytes | None, who: str) -> str:
        """What is wrong with a certificate (DER) whose fingerprints are not expected; "" when nothing is."""
        if not self._pins:
            return ""
        found = fingerprints(certificate or b"")
        if not set(found).isdisjoint(self._pins):
            return ""
        kinds = {pin.partition(":")[0] for pin in self._pins}
        shown = [one for one in found if one.partition(":")[0] in kinds] or ["none"]
        return (
            f"certificate of {who} is not one of those expected"
            f" (expected {' or '.join(self._pins)}; found {' and '.join(shown)})"
        )

    def advised(self, fault: Fault, text: str) -> str:
        """The text of an error, with what can be done about it."""
        remedy = self._remedies.get(fault)
        return f"{text}: {remedy}" if remedy else text


def fingerprints(certificate: bytes) -> list[str]:
    """Both fingerprints of a certificate (DER); of octets that are none, at most the first."""
    if not certificate:
        return []
    found = [f"sha256:{sha256(certificate).hexdigest()}"]
    try:
        found.append(f"spki-sha256:{sha256(_public_key(certificate)).hexdigest()}")
    except ValueError:
        pass
    return found


def _public_key(certificate: bytes) -> bytes:
    """The subjectPublicKeyInfo, whole, as it stands in the certificate (RFC 5280 section 4.1).  Raises ValueError."""
    fields, _ = element(certificate, SEQUENCE)
    rest, _ = element(fields, SEQUENCE)  # tbsCertificate
    if rest[:1] == bytes([CONTEXT_0]):  # version, which those of version 1 lack
        _, rest = element(rest, CONTEXT_0)
    for tag in (INTEGER, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE):
        # serialNumber, signature, issuer, validity, subject
        _, rest = element(rest, tag)
    _, behind = element(rest, SEQUENCE)
    return rest[: len(rest) - len(behind)]


def refused_certificate(
    error: "ssl.SSLCertVerificationError", connection: "ssl.SSLSocket", who: str
) -> tuple[Fault, str]:
    """Why the server's certificate does not hold, with what was expected and what was found in it."""
    fault = _VERIFY_CODES.get(error.verify_code, Fault.OTHER)
    shown = _shown(connection)
    if fault is Fault.EXPIRED:
        return fault, f"certificate of {who} has expired{_date(' on ', shown.get('notAfter'))}"
    if fault is Fault.NOT_YET_VALID:
        return fault, (
            f"certificate of {who} is not valid yet{_date(', but from ', shown.get('notBefore'))}"
        )
    if fault is Fault.SELF_SIGNED:
        return fault, f"certificate of {who} is self-signed"
    if fault is Fault.UNKNOWN_CA:
        return fault, f"certificate of {who} is from a CA that is not trusted here"
    if fault is Fault.WRONG_NAME:
        names = [_printable(name) for _, name in shown.get("subjectAltName", ())]
        more = ", ..." if len(names) > _NAMES_SHOWN else ""
        found = f", but for {', '.join(names[:_NAMES_SHOWN])}{more}" if names else ""
        return fault, f"certificate is not for {who}, the name expected{found}"
    return fault, f"certificate of {who} does not hold: {error.verify_message}"


def failed(error: "ssl.SSLError", who: str) -> tuple[Fault, str]:
    """Why TLS with ``who`` failed, of what is not about the server's certificate."""
    fault = _REASONS.get(error.reason or "", Fault.OTHER)
    words = _WORDS.get(fault) or reason(error)
    if fault is Fault.CLIENT_CERTIFICATE:
        words = f"our certificate, or the lack of one, is not accepted: {words}"
    return fault, f"TLS handshake with {who}: {words}"


def reason(error: "ssl.SSLError") -> str:
    """OpenSSL's words for it, without its source file and line; of an alert the server's: "the server said unknown ca"."""
    words = error.reason or error.strerror or type(error).__name__
    alert = next((prefix for prefix in _ALERTS if words.startswith(prefix)), "")
    said = "the server said " if alert else ""
    return said + words.removeprefix(alert).replace("_", " ").lower()


def _shown(connection: "ssl.SSLSocket") -> dict[str, Any]:
    """What the certificate that was refused says, in the form of ``getpeercert``; {} when that is not to be had.

    There is no public function for it before a handshake has succeeded.
    """
    try:
        chain = connection._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
        found: dict[str, Any] = chain[0].get_info()
        return found
    except (AttributeError, IndexError, OSError, TypeError, ValueError):
        return {}


def _date(before: str, date: str | None) -> str:
    return f"{before}{date}" if date else ""


def _printable(name: object) -> str:
    """What a stranger wrote into a certificate, fit for an error."""
    return "".join(char if char.isprintable() and char.isascii() else "?" for char in str(name))[
        :_NAME_SHOWN
    ]
