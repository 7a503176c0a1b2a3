"""Whom a connection trusts: what each level demands, and what is said when one of the files is of no use."""

import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from minisend.config.sections import Delivery, Smarthost
from minisend.delivery.tls import mx_trust, smarthost_trust
from minisend.errors import ConfigError
from minisend.smtp.handshake import Fault, Trust


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


PIN = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({}, BLIND, id="alone"),
        pytest.param({"tls": "implicit"}, BLIND, id="implicit"),
        pytest.param({"tls_ca_file": "ca.pem"}, VERIFIED, id="beside a CA file"),
    ],
)
def test_a_fingerprint_takes_the_place_of_authorities(
    tmp_path: Path, values: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    if "tls_ca_file" in values:
        path = tmp_path / values["tls_ca_file"]
        trustme.CA().cert_pem.write_to_path(path)
        values = values | {"tls_ca_file": str(path)}
    trust = smarthost_trust(smarthost(tls_fingerprint=(PIN,), **values))
    assert facts(trust) == expected
    assert trust is not None
    assert trust.mismatch(b"x", "mx.test") == (
        "certificate of mx.test is not one of those expected"
        f" (expected {PIN}; found sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881)"
    )


def test_what_a_newer_python_is_strict_about_is_not_asked_of_an_authority(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RFC 5280 to the letter, which 3.13 asks for by default and openssl(1) of ten years ago did not write."""
    made = ssl.create_default_context()
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    monkeypatch.setattr(ssl, "create_default_context", lambda cafile: made)
    trust = smarthost_trust(smarthost(), name="newer")
    assert trust is not None
    assert trust.context is made
    wanted = ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN
    assert made.verify_flags == wanted


def test_lanes_that_begin_together_share_one() -> None:
    host = smarthost(tls_min_version="1.3", username="of this test")
    barrier = threading.Barrier(4)

    def lane(number: int) -> Trust | None:
        barrier.wait()
        return smarthost_trust(host, name="lanes")

    with ThreadPoolExecutor(4) as lanes:
        trusts = set(lanes.map(lane, range(4)))
    assert len(trusts) == 1


def test_each_smarthost_has_its_own_advice() -> None:
    text = "certificate is self-signed"
    for name, table in (("", "[smarthost]"), ("shop", "[smarthosts.shop]")):
        trust = smarthost_trust(smarthost(), name=name)
        assert trust is not None
        advised = trust.advised(Fault.SELF_SIGNED, text)
        assert advised == f"{text}: {table} tls_fingerprint can name it"


@pytest.mark.parametrize("srv", ["", "example.org"])
def test_no_advice_on_a_level_that_the_dns_has_chosen(srv: str) -> None:
    trust = smarthost_trust(Smarthost((), srv=srv))
    assert trust is not None
    for fault in (Fault.NOT_TLS, Fault.NOT_OFFERED):
        assert (trust.advised(fault, "x") == "x") is bool(srv)


@pytest.mark.parametrize("level", ["starttls", "opportunistic", "implicit"])
@pytest.mark.parametrize("port", [465, 587])
def test_a_server_that_waits_for_us_as_we_for_it(level: str, port: int) -> None:
    trust = smarthost_trust(smarthost(tls=level, port=port))
    assert trust is not None
    advice = f': [smarthost] tls = "{level}" with port = 465: is tls = "implicit" meant?'
    expected = "timed out" + (advice if (port, level != "implicit") == (465, True) else "")
    assert trust.advised(Fault.SILENT, "timed out") == expected


# Our certificate


class Ours:
    """A certificate and its key in files."""

    def __init__(self, directory: Path) -> None:
        issued = trustme.CA().issue_cert("client@x.test")
        self.certificate = directory / "cert.pem"
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.key = directory / "key.pem"
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.key.chmod(0o600)
        self.both = directory / "both.pem"
        self.both.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        self.both.chmod(0o600)

    def keys(self) -> dict[str, Any]:
        return {"tls_cert_file": str(self.certificate), "tls_key_file": str(self.key)}


@pytest.fixture
def ours(tmp_path: Path) -> Ours:
    return Ours(tmp_path)


@pytest.mark.parametrize("level", ["starttls", "implicit", "opportunistic"])
def test_our_certificate_is_read_once_and_its_successor_is_seen(
    ours: Ours, tmp_path: Path, level: str
) -> None:
    trust = smarthost_trust(smarthost(tls=level, **ours.keys()))
    assert trust is not None
    assert smarthost_trust(smarthost(tls=level, **ours.keys())) is trust
    assert smarthost_trust(smarthost(tls=level, tls_cert_file=str(ours.both))) is not trust
    (tmp_path / "new").mkdir()
    successor = Ours(tmp_path / "new")
    successor.certificate.rename(ours.certificate)
    successor.key.rename(ours.key)
    assert smarthost_trust(smarthost(tls=level, **ours.keys())) is not trust


def unusable(ours: Ours, **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        smarthost_trust(smarthost(**(ours.keys() | values)), name="shop")
    return str(caught.value)


def test_a_key_that_others_can_read(ours: Ours) -> None:
    """Said each time, whether the key has been read before or not."""
    smarthost_trust(smarthost(**ours.keys()))
    ours.key.chmod(0o644)
    ours.both.chmod(0o604)
    ending = "lets every user in: chmod o= it, or set secret_mode_check = false"
    assert unusable(ours) == f"[smarthosts.shop] tls_key_file: {ours.key}: mode 0644 {ending}"
    assert unusable(ours, tls_key_file="", tls_cert_file=str(ours.both)) == (
        f"[smarthosts.shop] tls_cert_file: {ours.both}: mode 0604 {ending}"
    )
    assert smarthost_trust(smarthost(secret_mode_check=False, **ours.keys())) is not None


def test_an_unusable_certificate_of_ours(ours: Ours, tmp_path: Path) -> None:
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.touch(0o600)
    (tmp_path / "other").mkdir()
    other = Ours(tmp_path / "other")
    encrypted = tmp_path / "encrypted"
    key = serialization.load_pem_private_key(ours.key.read_bytes(), None)
    encrypted.touch(0o600)
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    wanted = (
        "expected a readable PEM file with our certificate and what leads from it to its authority"
    )
    wanted_key = "expected a readable PEM file with the private key of tls_cert_file, not encrypted"
    pem = "and the certificate cannot be used: expected both in PEM form"
    at = "[smarthosts.shop]"
    assert [
        unusable(ours, tls_cert_file=str(missing)),
        unusable(ours, tls_key_file=str(missing)),
        unusable(ours, tls_cert_file=str(empty)),
        unusable(ours, tls_key_file=str(empty)),
        unusable(ours, tls_key_file=str(other.key)),
        unusable(ours, tls_key_file=str(encrypted)),
    ] == [
        f"{at} tls_cert_file: {missing}: No such file or directory: {wanted}",
        f"{at} tls_key_file: {missing}: No such file or directory: {wanted_key}",
        f"{at} tls_cert_file: {empty}: the key in {ours.key} {pem}: {wanted}",
        f"{at} tls_cert_file: {ours.certificate}: the key in {empty} {pem}: {wanted}",
        f"{at} tls_key_file: {other.key}: is not the key of {ours.certificate}: {wanted_key}",
        f"{at} tls_key_file: {encrypted}: is encrypted with a passphrase: {wanted_key}",
    ]
