"""Whom a connection trusts: what the configuration demands of the server's certificate, and the certificate of ours.

It never connects and never decides what a failed check means (``delivery.policy`` does).

    tls             certificate                                      trust
    none            -                                                None
    opportunistic   not checked: encryption against listeners only   RFC 7435
    starttls        must hold, for the name in the configuration     RFC 8314, RFC 9525
    implicit        the same, TLS from the first octet               RFC 8314 section 3.3

    beside the last two
    tls_fingerprint                   must be one of these: nobody need vouch for it, and no name or date is looked at
    tls_fingerprint and tls_ca_file   must be one of these, and hold
    tls_verify = false                not checked, but TLS is insisted on

All connections for which the same applies share one Trust, and so the sessions that it keeps; making one costs 30 ms with
the authorities of a whole system.  When a file it was made from changes, another is made: a service that runs for
months must see a new CA.  ``ssl`` (13 ms) is imported when the first is made.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from minisend.config.keys import smarthost_table
from minisend.delivery.secrets import read_secret
from minisend.errors import ConfigError
from minisend.smtp.handshake import Fault, Trust

if TYPE_CHECKING:
    import ssl

    from minisend.config.sections import Delivery, Smarthost

NONE = "none"
OPPORTUNISTIC = "opportunistic"
IMPLICIT = "implicit"
_DEFAULT_MIN_VERSION = "1.2"  # RFC 8996
_IMPLICIT_PORT = 465  # RFC 8314 section 7.3
_OPENSSL_VARIABLES = (
    "OPENSSL_CONF",
    "OPENSSL_ENGINES",
    "OPENSSL_MODULES",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
)


class _File(NamedTuple):
    """A file and what changes when it is replaced; ``_NO_FILE`` for none."""

    path: str = ""
    stamp: tuple[int, ...] = ()


_NO_FILE = _File()


class _Terms(NamedTuple):
    """All that a Trust is made from.

    ``verify``    the certificate must hold
    ``opportunistic``  a handshake that fails is followed by plain text
    ``ca``        _NO_FILE: the authorities of the system
    ``remedies``  as Trust has them, in pairs
    """

    verify: bool = False
    opportunistic: bool = False
    ca: _File = _NO_FILE
    pins: tuple[str, ...] = ()
    certificate: _File = _NO_FILE
    key: _File = _NO_FILE
    min_version: str = _DEFAULT_MIN_VERSION
    table: str = ""
    remedies: tuple[tuple[Fault, str], ...] = ()


# Lanes that begin together are not to make the same one each.
_making = allocate_lock()


def smarthost_trust(smarthost: Smarthost, *, name: str = "") -> Trust | None:
    """For connections to the smarthost, None for plain text.

    ``name``  of a [smarthosts.NAME] table, "" for [smarthost]
    Raises ``ConfigError``, which names file and key, when one of the files is of no use.
    """
    if smarthost.tls == NONE:
        return None
    table = smarthost_table(name)
    checks = smarthost.tls != OPPORTUNISTIC and smarthost.tls_verify
    pins = smarthost.tls_fingerprint if checks else ()
    # A fingerprint is more than any authority can say; both are asked for by naming both.
    verify = checks and not (pins and not smarthost.tls_ca_file)
    cert_file = smarthost.tls_cert_file
    key_file = smarthost.tls_key_file or cert_file
    terms = _Terms(
        verify=verify,
        opportunistic=smarthost.tls == OPPORTUNISTIC,
        ca=_file(table, "tls_ca_file", smarthost.tls_ca_file if verify else ""),
        pins=pins,
        certificate=_file(table, "tls_cert_file", cert_file),
        key=_file(table, "tls_key_file", key_file if cert_file else ""),
        min_version=smarthost.tls_min_version,
        table=table,
        remedies=_remedies(smarthost, table),
    )
    if cert_file:
        # OpenSSL is handed a name: who else may read what is there is asked first.
        key = "tls_key_file" if smarthost.tls_key_file else "tls_cert_file"
        what = f"{table} {key}: {key_file}"
        read_secret(what, key_file, smarthost, os.environb, os.geteuid())
    with _making:
        return _made(terms)


def mx_trust(delivery: Delivery) -> Trust | None:
    """For connections to MX hosts, None for plain text.

    A certificate proves nothing about an MX host whose name came from plain DNS (RFC 7672 section
    1.3.2), so it is not checked.
    """
    if delivery.tls == NONE:
        return None
    with _making:
        return _made(_Terms(opportunistic=True))


def _file(table: str, key: str, path: str) -> _File:
    """Raises ``ConfigError`` when the file that ``key`` of ``table`` names is not to be had."""
    if not path:
        return _NO_FILE
    try:
        facts = os.stat(path)
    except OSError as exc:
        raise _unusable(table, key, path, exc.strerror) from None
    return _File(path, (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns))


def _remedies(smarthost: Smarthost, table: str) -> tuple[tuple[Fault, str], ...]:
    """What the administrator can do about each fault: the key to look at."""
    level, port = smarthost.tls, smarthost.port
    other = "starttls" if level == IMPLICIT else "implicit"
    # With srv the level is the DNS's to say.
    meant = f'{table} tls = "{level}" with port = {port}: is tls = "{other}" meant?'
    of_the_level = () if smarthost.srv else (
        (Fault.NOT_TLS, meant),
        *(((Fault.SILENT, meant),) if port == _IMPLICIT_PORT and level != IMPLICIT else ()),
        (Fault.NOT_OFFERED, f'{table} tls = "{level}" demands it; somebody on the way may have removed the offer'),
    )  # fmt: skip
    return (
        *of_the_level,
        (Fault.WRONG_NAME, f"{table} host is to be a name that it bears, or tls_fingerprint its fingerprint"),
        (Fault.EXPIRED, f"the server needs a new one; until then {table} tls_fingerprint can name this one"),
        (Fault.NOT_YET_VALID, "see that the clock of this machine is right"),
        (Fault.SELF_SIGNED, f"{table} tls_fingerprint can name it"),
        (Fault.UNKNOWN_CA, f"{table} tls_ca_file can name the CA's own certificate"),
        (Fault.FINGERPRINT, f"change {table} tls_fingerprint only if you know why the server has another"),
        (Fault.VERSION, f'{table} tls_min_version = "{smarthost.tls_min_version}" is the oldest accepted'),
        (Fault.CLIENT_CERTIFICATE, f"{table} tls_cert_file and tls_key_file name the one to show"),
    )  # fmt: skip


@lru_cache(maxsize=16)
def _made(terms: _Terms) -> Trust:
    if os.geteuid() == 0:
        # A configuration of OpenSSL can load code, and its certificates decide whom we trust: root takes neither from
        # the environment of whoever called.
        for name in _OPENSSL_VARIABLES:
            os.environ.pop(name, None)
    import ssl

    ca_file = terms.ca.path
    if terms.verify:
        try:
            context = ssl.create_default_context(cafile=ca_file or None)
        except ssl.SSLError:
            why = "holds no certificate in PEM form"
            raise _unusable(terms.table, "tls_ca_file", ca_file, why) from None
        except OSError as exc:
            raise _unusable(terms.table, "tls_ca_file", ca_file, exc.strerror) from None
        # From Python 3.13 on both are set.  Here, whatever its version, who is in tls_ca_file is trusted, also without being
        # a root; and authorities made by hand, few of which follow RFC 5280 to the letter, work as with any other agent.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if terms.opportunistic:
        # A key too short for others is better than plain text, which is what would follow (RFC 7435 section 3).
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = (
        ssl.TLSVersion.TLSv1_3 if terms.min_version == "1.3" else ssl.TLSVersion.TLSv1_2
    )
    if terms.certificate.path:
        _show(context, terms)
    return Trust(context, pins=terms.pins, remedies=dict(terms.remedies))


def _show(context: ssl.SSLContext, terms: _Terms) -> None:
    """Have the context show our certificate to a server that asks for one."""
    import ssl

    certificate, key = terms.certificate.path, terms.key.path

    def passphrase() -> str:
        # Without this OpenSSL would ask whoever sits at the terminal.
        raise _unusable(terms.table, "tls_key_file", key, "is encrypted with a passphrase")

    try:
        context.load_cert_chain(certificate, key, passphrase)
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            why = f"is not the key of {certificate}"
            raise _unusable(terms.table, "tls_key_file", key, why) from None
        why = f"the key in {key} and the certificate cannot be used: expected both in PEM form"
        raise _unusable(terms.table, "tls_cert_file", certificate, why) from None
    except OSError as exc:
        raise _unusable(terms.table, "tls_cert_file", certificate, exc.strerror) from None


_EXPECTED = {
    "tls_ca_file": "a readable PEM file with the authorities to trust",
    "tls_cert_file": "a readable PEM file with our certificate and what leads from it to its authority",
    "tls_key_file": "a readable PEM file with the private key of tls_cert_file, not encrypted",
}


def _unusable(table: str, key: str, path: str, why: str | None) -> ConfigError:
    return ConfigError(f"{table} {key}: {path}: {why}: expected {_EXPECTED[key]}")
