"""TLS contexts: what each level demands, and what is said when the CA file is of no use."""

import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from minisend.config import Delivery, Smarthost
from minisend.delivery.tls import mx_trust, smarthost_trust
from minisend.errors import ConfigError
from minisend.smtp.handshake import Trust


def smarthost(**values: Any) -> Smarthost:
    return Smarthost(("smtp.example.org",), **values)


def facts(trust: Trust | None) -> tuple[Any, ...] | None:
    if trust is None:
        return None
    context = trust.context
    return (context.verify_mode, context.check_hostname, context.minimum_version)


VERIFIED = (ssl.CERT_REQUIRED, True, ssl.TLSVersion.TLSv1_2)
BLIND = (ssl.CERT_NONE, False, ssl.TLSVersion.TLSv1_2)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({}, VERIFIED, id="starttls"),
        pytest.param({"tls": "implicit"}, VERIFIED, id="implicit"),
        pytest.param({"tls": "opportunistic"}, BLIND, id="opportunistic"),
        pytest.param({"tls": "none"}, None, id="none"),
        pytest.param({"tls_verify": False}, BLIND, id="starttls, not verified"),
        pytest.param({"tls": "implicit", "tls_verify": False}, BLIND, id="implicit, not verified"),
        pytest.param(
            {"tls_min_version": "1.3"}, (*VERIFIED[:2], ssl.TLSVersion.TLSv1_3), id="TLS 1.3"
        ),
        pytest.param(
            {"tls": "opportunistic", "tls_ca_file": "/nowhere"}, BLIND, id="a CA file not needed"
        ),
    ],
)
def test_smarthost(values: dict[str, Any], expected: tuple[Any, ...] | None) -> None:
    assert facts(smarthost_trust(smarthost(**values))) == expected


@pytest.mark.parametrize(("level", "expected"), [("opportunistic", BLIND), ("none", None)])
def test_mx(level: str, expected: tuple[Any, ...] | None) -> None:
    assert facts(mx_trust(Delivery(tls=level))) == expected


def subjects(trust: Trust | None) -> list[Any]:
    assert trust is not None
    return [
        dict(pair[0] for pair in ca["subject"])["organizationName"]
        for ca in trust.context.get_ca_certs()
    ]


def test_a_ca_file_replaces_the_system_s_and_its_successor_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    host = smarthost(tls_ca_file=str(path))
    trustme.CA(organization_name="first").cert_pem.write_to_path(path)
    trust = smarthost_trust(host)
    assert subjects(trust) == ["first"]
    assert smarthost_trust(host) is trust
    other = tmp_path / "new.pem"
    trustme.CA(organization_name="second").cert_pem.write_to_path(other)
    other.rename(path)
    assert subjects(smarthost_trust(host)) == ["second"]


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        pytest.param(lambda path: None, "No such file or directory", id="missing"),
        pytest.param(lambda path: path.mkdir(), "Is a directory", id="directory"),
        pytest.param(
            lambda path: path.write_text(""), "holds no certificate in PEM form", id="empty"
        ),
        pytest.param(
            lambda path: path.write_text(
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
            ),
            "holds no certificate in PEM form",
            id="broken",
        ),
    ],
)
def test_an_unusable_ca_file(tmp_path: Path, prepare: Any, why: str) -> None:
    path = tmp_path / "ca.pem"
    prepare(path)
    with pytest.raises(ConfigError) as caught:
        smarthost_trust(smarthost(tls_ca_file=str(path)))
    assert str(caught.value) == (
        f"[smarthost] tls_ca_file: {path}: {why}: "
        "expected a readable PEM file with the authorities to trust"
    )
