"""TLS contexts: what each level demands, and what is said when the CA file is of no use."""

import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from minisend.config import Delivery, Smarthost
from minisend.delivery.tls import mx_context, smarthost_context
from minisend.errors import ConfigError


def smarthost(**values: Any) -> Smarthost:
    return Smarthost(("smtp.example.org",), **values)


def facts(context: ssl.SSLContext | None) -> tuple[Any, ...] | None:
    if context is None:
        return None
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
    assert facts(smarthost_context(smarthost(**values))) == expected


@pytest.mark.parametrize(("level", "expected"), [("opportunistic", BLIND), ("none", None)])
def test_mx(level: str, expected: tuple[Any, ...] | None) -> None:
    assert facts(mx_context(Delivery(tls=level))) == expected


def subjects(context: ssl.SSLContext | None) -> list[Any]:
    assert context is not None
    return [
        dict(pair[0] for pair in ca["subject"])["organizationName"] for ca in context.get_ca_certs()
    ]


def test_a_ca_file_replaces_the_system_s_and_its_successor_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    host = smarthost(tls_ca_file=str(path))
    trustme.CA(organization_name="first").cert_pem.write_to_path(path)
    context = smarthost_context(host)
    assert subjects(context) == ["first"]
    assert smarthost_context(host) is context
    other = tmp_path / "new.pem"
    trustme.CA(organization_name="second").cert_pem.write_to_path(other)
    other.rename(path)
    assert subjects(smarthost_context(host)) == ["second"]


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
        smarthost_context(smarthost(tls_ca_file=str(path)))
    assert str(caught.value) == (
        f"[smarthost] tls_ca_file: {path}: {why}: "
        "expected a readable PEM file with the authorities to trust"
    )
