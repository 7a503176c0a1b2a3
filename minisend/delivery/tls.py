"""The TLS context of a connection: what the configuration demands of the server's certificate.

It never connects and never decides what a failed check means (``delivery.policy`` does).

    tls             certificate                                      context
    none            -                                                None
    opportunistic   not checked: encryption against listeners only   RFC 7435
    starttls        must hold, for the name in the configuration     RFC 8314, RFC 9525
    implicit        the same, TLS from the first octet               RFC 8314 section 3.3

``tls_verify = false`` makes the last two as blind as opportunistic; they still insist on TLS.
``ssl`` (13 ms) is imported when the first context is made.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING

from minisend.errors import ConfigError

if TYPE_CHECKING:
    import ssl

    from minisend.config import Delivery, Smarthost

NONE = "none"
OPPORTUNISTIC = "opportunistic"
_DEFAULT_MIN_VERSION = "1.2"  # RFC 8996
_OPENSSL_VARIABLES = (
    "OPENSSL_CONF",
    "OPENSSL_ENGINES",
    "OPENSSL_MODULES",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
)


def smarthost_context(smarthost: Smarthost) -> ssl.SSLContext | None:
    """The context for the smarthost, None for plain text.

    Raises ``ConfigError``, which names file and key, when ``tls_ca_file`` is of no use.
    """
    if smarthost.tls == NONE:
        return None
    verify = smarthost.tls != OPPORTUNISTIC and smarthost.tls_verify
    ca_file = smarthost.tls_ca_file if verify else ""
    return _context(verify, ca_file, _stamp(ca_file), smarthost.tls_min_version)


def mx_context(delivery: Delivery) -> ssl.SSLContext | None:
    """The context for MX hosts, None for plain text.

    A certificate proves nothing about an MX host whose name came from plain DNS (RFC 7672 section
    1.3.2), so it is not checked.
    """
    if delivery.tls == NONE:
        return None
    return _context(False, "", (), _DEFAULT_MIN_VERSION)


def _stamp(ca_file: str) -> tuple[int, ...]:
    """What changes when the file is replaced: a service that runs for months must see a new CA."""
    if not ca_file:
        return ()
    try:
        facts = os.stat(ca_file)
    except OSError as exc:
        raise _unusable(ca_file, exc.strerror) from None
    return (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=16)
def _context(
    verify: bool, ca_file: str, stamp: tuple[int, ...], min_version: str
) -> ssl.SSLContext:
    """``ca_file`` "" means the system's authorities; ``stamp`` only tells one file from its successor."""
    if os.geteuid() == 0:
        # A configuration of OpenSSL can load code, and its certificates decide whom we trust: root takes neither from
        # the environment of whoever called.
        for name in _OPENSSL_VARIABLES:
            os.environ.pop(name, None)
    import ssl

    if verify:
        try:
            context = ssl.create_default_context(cafile=ca_file or None)
        except ssl.SSLError:
            raise _unusable(ca_file, "holds no certificate in PEM form") from None
        except OSError as exc:
            raise _unusable(ca_file, exc.strerror) from None
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = (
        ssl.TLSVersion.TLSv1_3 if min_version == "1.3" else ssl.TLSVersion.TLSv1_2
    )
    return context


def _unusable(ca_file: str, why: str | None) -> ConfigError:
    return ConfigError(
        f"[smarthost] tls_ca_file: {ca_file}: {why}: "
        "expected a readable PEM file with the authorities to trust"
    )
