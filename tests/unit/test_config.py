"""minisend.config: every key, every value, every place."""

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from minisend.config import files
from minisend.config import machine as machine_names
from minisend.config.keys import KEYS
from minisend.config.load import load
from minisend.config.sections import Config, Delivery, Dns, Limits, Smarthost, Spool, Submission
from minisend.config.submission import SubmissionFacts, submission_facts
from minisend.errors import ConfigError

MANUAL = Path(__file__).parents[2] / "man" / "minisend.toml.5"
USER = 4711
OTHER = 4712

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives files to other users")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of its own below tmp_path: no /etc of the real one, no account but root and USER."""
    for module, name, path in [
        (files, "SYSTEM_FILE", "etc/config.toml"),
        (files, "SYSTEM_SPOOL", "var/spool"),
        (machine_names, "HOSTS_FILE", "etc/hosts"),
        (machine_names, "MAILNAME_FILE", "etc/mailname"),
    ]:
        monkeypatch.setattr(module, name, str(tmp_path / path))
    (tmp_path / "etc").mkdir()
    (tmp_path / "var/spool").mkdir(parents=True)
    homes = {0: "/root", USER: str(tmp_path / "home")}

    def getpwuid(uid: int) -> SimpleNamespace:
        return SimpleNamespace(pw_dir=homes[uid])

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    monkeypatch.setattr("posix.uname", lambda: SimpleNamespace(nodename="here"))
    return tmp_path


def write(path: Path, text: str, *, owner: int | None = None, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    path.chmod(mode)
    if owner is not None:
        os.chown(path, owner, owner)
    return path


def loaded(machine: Path, text: str) -> Config:
    return load(str(write(machine / "c.toml", text)), {}, USER, USER)


def values(section: object) -> dict[str, object]:
    return {name: getattr(section, name) for name in section.__slots__}  # type: ignore[attr-defined]


def everything(found: Config) -> dict[str, object]:
    return {
        "file": found.file,
        "hostname": found.hostname,
        "mail_domain": found.mail_domain,
        "admin": found.admin,
        "spool": values(found.spool),
        "submission": values(found.submission),
        "smarthost": found.smarthost and values(found.smarthost),
        "delivery": values(found.delivery),
        "dns": values(found.dns),
        "limits": values(found.limits),
        "smarthosts": {name: values(each) for name, each in found.smarthosts.items()},
        "routes": [values(each) for each in found.routes],
    }


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.exit_code == 78
    assert str(caught.value).isprintable()
    return str(caught.value)


DEFAULTS: dict[str, object] = {
    "file": None,
    "hostname": "here",
    "mail_domain": "here",
    "admin": "",
    "spool": {
        "path": "SPOOL",
        "lifetime": 432000,
        "warn_after": 14400,
        "retry_min": 300,
        "retry_max": 14400,
        "max_message_size": 52428800,
        "min_free": 16777216,
        "min_free_inodes": 100,
        "sync": "group",
    },
    "submission": {
        "socket": "/run/minisend/submit.sock",
        "drop": "/var/spool/minisend/drop",
        "senders": {},
    },
    "smarthost": None,
    "delivery": {
        "mx_port": 25,
        "tls": "opportunistic",
        "connections_per_host": 20,
        "connections": 100,
        "source_address": (),
    },
    "dns": {"nameservers": (), "port": 53},
    "limits": {"messages_per_uid": 0, "octets_per_uid": 0, "rate_per_uid": 0, "flood": 0},
    "smarthosts": {},
    "routes": [],
}
SHA256 = "sha256:" + "ab" * 32
SMARTHOST: dict[str, object] = {
    "hosts": ("a.example",),
    "srv": "",
    "port": 587,
    "rate": None,
    "tls": "starttls",
    "tls_ca_file": "",
    "tls_fingerprint": (),
    "tls_cert_file": "",
    "tls_key_file": "",
    "tls_min_version": "1.2",
    "tls_verify": True,
    "username": "",
    "password_file": "",
    "password_command": (),
    "credential": "",
    "secret_mode_check": True,
    "auth": "auto",
    "oauth2_provider": "",
    "oauth2_grant": "refresh",
    "oauth2_client_id": "",
    "oauth2_client_secret_file": "",
    "oauth2_client_auth": "post",
    "oauth2_service_account_file": "",
    "oauth2_tenant": "common",
    "oauth2_scope": "",
    "oauth2_token_endpoint": "",
    "oauth2_device_endpoint": "",
    "oauth2_auth_endpoint": "",
    "oauth2_ca_file": "",
    "oauth2_token_file": "",
}


# -- values ------------------------------------------------------------------------------------


def test_no_file_is_a_configuration(machine: Path) -> None:
    expected = DEFAULTS | {"spool": {**DEFAULTS["spool"], "path": f"{machine}/var/spool"}}  # type: ignore[dict-item]
    assert everything(load(None, {}, USER, USER)) == expected


def test_every_key(machine: Path) -> None:
    text = """
        hostname = "h.example"
        mail_domain = "d.example"
        admin = "admin@d.example"
        [spool]
        path = "/q"
        lifetime = "1d"
        warn_after = "2h"
        retry_min = "90s"
        retry_max = "3m"
        max_message_size = 1000
        min_free = "5M"
        min_free_inodes = 6
        sync = "each"
        [submission]
        socket = false
        drop = "/d"
        senders = { www-data = "*@shop.example", 33 = ["{user}@x.example", "<>"], "*" = [] }
        [smarthost]
        host = ["a.example", "[192.0.2.1]", "2001:db8::1", "[2001:db8::2]", "fe80::1%eth0", "relay_1"]
        port = 2525
        tls = "implicit"
        rate = "30/m"
        tls_ca_file = "/ca.pem"
        tls_cert_file = "/cert.pem"
        tls_key_file = "/key.pem"
        tls_min_version = "1.3"
        tls_verify = false
        username = "üser"
        password_command = ["pass", "show", "it"]
        secret_mode_check = false
        auth = "plain"
        [delivery]
        mx_port = 26
        tls = "none"
        connections_per_host = 1
        connections = 2
        source_address = ["192.0.2.1", "2001:db8::1"]
        [dns]
        nameservers = ["127.0.0.1", "::1"]
        port = 5353
        [smarthosts.one]
        host = "::1"
        rate = "2000/d"
        [smarthosts.two_2-]
        srv = "d.example"
        username = "u"
        password_file = "/p"
        [[route]]
        sender = ["*@shop.example", "<>"]
        recipient = "a@b.example"
        via = "one"
        [[route]]
        recipient = ["b.example"]
        via = "lmtp:/run/lmtp"
        [limits]
        messages_per_uid = 7
        octets_per_uid = "8K"
        rate_per_uid = 9
        flood = 10
    """
    assert everything(loaded(machine, text)) == {
        "file": f"{machine}/c.toml",
        "hostname": "h.example",
        "mail_domain": "d.example",
        "admin": "admin@d.example",
        "spool": {
            "path": "/q",
            "lifetime": 86400,
            "warn_after": 7200,
            "retry_min": 90,
            "retry_max": 180,
            "max_message_size": 1000,
            "min_free": 5242880,
            "min_free_inodes": 6,
            "sync": "each",
        },
        "submission": {
            "socket": None,
            "drop": "/d",
            "senders": {
                "www-data": ("*@shop.example",),
                "33": ("{user}@x.example", "<>"),
                "*": (),
            },
        },
        "smarthost": SMARTHOST
        | {
            "hosts": (
                "a.example",
                "192.0.2.1",
                "2001:db8::1",
                "2001:db8::2",
                "fe80::1%eth0",
                "relay_1",
            ),
            "port": 2525,
            "tls": "implicit",
            "rate": (30, 60),
            "tls_ca_file": "/ca.pem",
            "tls_cert_file": "/cert.pem",
            "tls_key_file": "/key.pem",
            "tls_min_version": "1.3",
            "tls_verify": False,
            "username": "üser",
            "password_command": ("pass", "show", "it"),
            "secret_mode_check": False,
            "auth": "plain",
        },
        "delivery": {
            "mx_port": 26,
            "tls": "none",
            "connections_per_host": 1,
            "connections": 2,
            "source_address": ("192.0.2.1", "2001:db8::1"),
        },
        "dns": {"nameservers": ("127.0.0.1", "::1"), "port": 5353},
        "limits": {"messages_per_uid": 7, "octets_per_uid": 8192, "rate_per_uid": 9, "flood": 10},
        "smarthosts": {
            "one": SMARTHOST | {"hosts": ("::1",), "rate": (2000, 86400)},
            "two_2-": SMARTHOST
            | {"hosts": (), "srv": "d.example", "username": "u", "password_file": "/p"},
        },
        "routes": [
            {
                "sender": ("*@shop.example", "<>"),
                "recipient": ("a@b.example",),
                "via": "smarthost",
                "name": "one",
                "host": "",
                "port": 0,
                "path": "",
            },
            {
                "sender": (),
                "recipient": ("b.example",),
                "via": "lmtp",
                "name": "",
                "host": "",
                "port": 0,
                "path": "/run/lmtp",
            },
        ],
    }


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ("", {}),
        ('tls = "implicit"', {"tls": "implicit", "port": 465}),
        ("port = 465", {"tls": "implicit", "port": 465}),
        ("port = 587", {"tls": "starttls", "port": 587}),
        ('port = 465\ntls = "starttls"', {"tls": "starttls", "port": 465}),
        ('tls = "opportunistic"', {"tls": "opportunistic", "port": 587}),
        ('tls = "none"', {"tls": "none", "port": 25}),
        ('tls = "none"\nport = 587', {"tls": "none", "port": 587}),
        ('srv = ""', {}),
        ('rate = "30/m"', {"rate": (30, 60)}),
        ('rate = "1/s"', {"rate": (1, 1)}),
        ('rate = "100000/h"', {"rate": (100000, 3600)}),
        ('username = ""\npassword_file = ""\npassword_command = []', {}),
        ('auth = "none"\nusername = "u"', {"auth": "none", "username": "u"}),
        ('tls_fingerprint = "sha256:%s"' % ("AB" * 32), {"tls_fingerprint": (SHA256,)}),
        ('tls_fingerprint = "sha256:%s"' % ":".join(["aB"] * 32), {"tls_fingerprint": (SHA256,)}),
        (
            f'tls_fingerprint = ["{SHA256}", "spki-sha256:q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s="]\n'
            'tls_ca_file = "/ca.pem"',
            {"tls_fingerprint": (SHA256, f"spki-{SHA256}"), "tls_ca_file": "/ca.pem"},
        ),
        ("tls_fingerprint = []\ntls_verify = false", {"tls_verify": False}),
        (
            'tls_cert_file = "/c"\nauth = "external"',
            {"tls_cert_file": "/c", "auth": "external"},
        ),
        (
            'tls_cert_file = "/c"\ntls_key_file = "/k"\nauth = "external"\nusername = "u"',
            {"tls_cert_file": "/c", "tls_key_file": "/k", "auth": "external", "username": "u"},
        ),
        (
            'username = "u"\ncredential = "smtp"',
            {"username": "u", "credential": "smtp"},
        ),
    ],
)
def test_smarthost(machine: Path, given: str, changed: dict[str, object]) -> None:
    smarthost = loaded(machine, f'[smarthost]\nhost = "a.example"\n{given}').smarthost
    assert values(smarthost) == SMARTHOST | changed


@pytest.mark.parametrize(
    ("key", "value", "form"),
    [
        ("max_message_size", '"512K"', 524288),
        ("max_message_size", '"2G"', 2147483648),
        ("max_message_size", '"1024G"', 1 << 40),
        ("max_message_size", '"7"', 7),
        ("max_message_size", "1", 1),
        ("min_free", "0", 0),
        ("min_free", '"0"', 0),
        ("min_free_inodes", "0", 0),
        ("lifetime", '"1s"', 1),
        ("lifetime", '"3650d"', 315360000),
        ("path", '"/ü b"', "/ü b"),
    ],
)
def test_forms(machine: Path, key: str, value: str, form: object) -> None:
    assert getattr(loaded(machine, f"[spool]\n{key} = {value}").spool, key) == form


OAUTH2: dict[str, object] = {
    "username": "u",
    "oauth2_provider": "microsoft365",
    "oauth2_grant": "client_credentials",
    "oauth2_client_id": "c",
    "oauth2_client_secret_file": "/s",
    "oauth2_client_auth": "basic",
    "oauth2_service_account_file": "/a",
    "oauth2_tenant": "72f988bf-86f1-41af-91ab-2d7cd011db47",
    "oauth2_scope": "x y",
    "oauth2_token_endpoint": "https://t.example:8443/a/token?b=c",
    "oauth2_device_endpoint": "http://127.0.0.1:80/",
    "oauth2_auth_endpoint": "http://[::1]/",
    "oauth2_ca_file": "/ca",
    "oauth2_token_file": "/t",
}


@pytest.mark.parametrize("auth", ["auto", "xoauth2", "oauthbearer", "none"])
def test_oauth2(machine: Path, auth: str) -> None:
    keys = {"host": "a.example", **OAUTH2, "auth": auth}
    text = "[smarthost]\n" + "".join(f'{key} = "{value}"\n' for key, value in keys.items())
    found = loaded(machine, text).smarthost
    assert found is not None
    assert values(found) == {**SMARTHOST, **OAUTH2, "auth": auth}
    assert found.uses_oauth2


@pytest.mark.parametrize(
    ("key", "used"),
    [
        ("oauth2_provider", True),
        ("oauth2_token_endpoint", True),
        ("username", False),
        ("oauth2_client_id", False),
    ],
)
def test_what_makes_it_oauth2(key: str, used: bool) -> None:
    assert Smarthost(("a",), **{key: OAUTH2[key]}).uses_oauth2 is used


DOMAIN = 'expected a domain name in ASCII, such as "host.example.org"'
TIME = 'expected a time of at most 3650 days, such as "5d", "4h", "30m" or "90s"'
SIZE = 'expected a size of at most 1024G, such as "50M", "512K" or a number of octets'
SIZE_OR_0 = SIZE.replace("50M", "16M") + ", or 0"
FINGERPRINT = 'expected "sha256:" or "spki-sha256:" and the digest in hexadecimal or base64, or a list of them'
HOSTS = "expected a host name or IP address without a port, or a list of them"
ENDPOINT = "expected an https URL without user name or fragment"
PORT = "expected a whole number from 1 to 65535"
COUNT = "expected a whole number from 1 to 1000000"
STRINGS = 'expected a list of strings, such as ["/usr/bin/pass", "mail"]'
SENDERS = (
    'expected accounts, each with a pattern such as "*@shop.example", "user@shop.example" or "shop.example", "<>" for '
    "the null reverse-path, or a list of them; in which {user} is the account"
)
SERVERS = 'expected a list of IP addresses, such as ["127.0.0.1"]'
BOOLEAN = "expected true or false"
TEXT = "expected text without control characters"
VIA = 'expected the name of a smarthost, "mx", "discard", "lmtp:/path", "lmtp:[host]:port" or "[host]:port"'
PATTERN = 'expected a pattern such as "*@shop.example", "user@shop.example" or "shop.example"'
SENDER = f'{PATTERN}, "<>" for the null reverse-path, or a list of them'
RECIPIENT = f"{PATTERN}, or a list of them"
RATE = (
    'expected at most 100000 messages in a second, minute, hour or day, such as "30/m" or "2000/d"'
)
NAME = (
    "expected a name of at most 64 letters, digits, - and _, and none of "
    "discard, lmtp, local, mx, smarthost, smtp, srv"
)
WRONG = [
    *(
        (f'[[route]]\nvia = "{via}"', f"2: [[route]] via: {VIA} (got {via!r})")
        for via in (
            *("", "a b", "a.b", "lmtp:", "lmtp:path", "lmtp:a:24", "lmtp:[a]", "[a]:0"),
            *("[a]:65536", "[a]:", "a:25", "[]:25", "[a b]:25", "smtp", "/path"),
        )
    ),
    (
        f'[[route]]\nvia = "lmtp:/{"x" * 107}"',
        f"2: [[route]] via: {VIA} (got 'lmtp:/{'x' * 49}...')",
    ),
    ("[[route]]\nvia = false", f"2: [[route]] via: {VIA} (got false)"),
    ('[[route]]\nrecipient = "a"', f"1: [[route]] via: {VIA} (got nothing)"),
    (
        '[[route]]\nvia = "mx"',
        "2: [[route]] via: expected sender or recipient beside it (got nothing)",
    ),
    (
        '[[route]]\nrecipient = "a"\nvia = "local"',
        "3: [[route]] via: there is no local delivery in this version (got 'local')",
    ),
    (
        '[[route]]\nrecipient = "a"\nvia = "smarthost"',
        f"3: [[route]] via: {VIA}; there is no [smarthost]",
    ),
    (
        '[[route]]\nrecipient = "a"\nvia = "mx"\n[smarthost]\nhost = "h"\n[[route]]\nsender = "a"\nvia = "b"',
        f"8: [[route]] via: {VIA}; there is no [smarthosts.b]",
    ),
    *(
        (f"[[route]]\nsender = {value}", f"2: [[route]] sender: {SENDER} (got {shown})")
        for value, shown in (
            *(
                ('""', "''"),
                ('"a@"', "'a@'"),
                ('"<a@b>"', "'<a@b>'"),
                ('"a@é.example"', "'a@é.example'"),
            ),
            *(
                ('"a b"', "'a b'"),
                ('"a,b@c"', "'a,b@c'"),
                ("1", "1"),
                ('["a", "b c"]', "'b c'"),
                ("[1]", "1"),
            ),
        )
    ),
    ('[[route]]\nrecipient = "<>"', f"2: [[route]] recipient: {RECIPIENT} (got '<>')"),
    (
        '[[route]]\nvia = "mx"\nrecipient = "a"\n[[route]]\nvia = "mx"\nto = "b"',
        "6: [[route]] to: unknown key",
    ),
    ("[spool]\nvia = 1", "2: [spool] via: unknown key here: it belongs in [[route]]"),
    ("[route]", "1: [[route]]: expected [[route]] tables (got a table)"),
    ("route = 1", "1: [[route]]: expected [[route]] tables (got 1)"),
    ("route = [1]", "[[route]]: expected a table (got 1)"),
    ("[[routes]]\nvia = 1", "1: [routes]: unknown table (did you mean [[route]]?)"),
    ("smarthosts = 1", "1: [smarthosts]: expected a table (got 1)"),
    ("smarthosts.a = 1", "1: [smarthosts.a]: expected a table (got 1)"),
    ("[smarthosts.a]", f"1: [smarthosts.a] host: {HOSTS} (got nothing)"),
    ("[smarthosts.a]\nhots = 1", "2: [smarthosts.a] hots: unknown key (did you mean host?)"),
    (
        '[smarthosts.a]\nhost = "h"\nusername = "u"\noauth2_provider = "google"',
        "4: [smarthosts.a] oauth2_provider: expected oauth2_client_id beside it (got nothing)",
    ),
    (
        '[smarthosts.a]\nhost = "h"\npassword_file = "/p"',
        "3: [smarthosts.a] password_file: expected username beside it (got nothing)",
    ),
    ("[smarthosts.mx]", f"[smarthosts] mx: {NAME}"),
    ("[smarthosts.'a b']", f"[smarthosts] a b: {NAME}"),
    (f"[smarthosts.{'n' * 65}]", f"[smarthosts] {'n' * 65}: {NAME}"),
    *(
        (
            f'[smarthost]\nsrv = "d.example"\n{key} = {value}',
            f"3: [smarthost] {key}: expected none beside srv, whose records say it",
        )
        for key, value in (("host", '"a"'), ("port", "26"), ("tls", '"implicit"'))
    ),
    ('[smarthost]\nsrv = "a b"', f"2: [smarthost] srv: {DOMAIN} (got 'a b')"),
    *(
        (f'[smarthost]\nrate = "{rate}"', f"2: [smarthost] rate: {RATE} (got {rate!r})")
        for rate in ("", "1", "0/m", "100001/d", "1/w", "1/mm", "-1/m", "1/m/m", "1.5/m", "1 / m")
    ),
    ("[smarthost]\nrate = 1", f"2: [smarthost] rate: {RATE} (got 1)"),
    (
        '[delivery]\nsource_address = ["192.0.2.1", "192.0.2.2"]',
        "2: [delivery] source_address: expected at most one IPv4 and one IPv6 address in it",
    ),
    (
        '[delivery]\nsource_address = "192.0.2.1"',
        f"2: [delivery] source_address: {SERVERS} (got '192.0.2.1')",
    ),
    ('hostname = ""', f"1: hostname: {DOMAIN} (got '')"),
    ('hostname = "a b"', f"1: hostname: {DOMAIN} (got 'a b')"),
    ('hostname = "höst.example"', f"1: hostname: {DOMAIN} (got 'höst.example')"),
    ('hostname = "a..b"', f"1: hostname: {DOMAIN} (got 'a..b')"),
    ('hostname = "-a"', f"1: hostname: {DOMAIN} (got '-a')"),
    ('hostname = "a-.b"', f"1: hostname: {DOMAIN} (got 'a-.b')"),
    ('hostname = "a\\r\\nb"', f"1: hostname: {DOMAIN} (got 'a\\r\\nb')"),
    (f'hostname = "{"a" * 64}"', f"1: hostname: {DOMAIN} (got '{'a' * 55}...')"),
    (f'hostname = "{"a." * 127}"', f"1: hostname: {DOMAIN} (got '{'a.' * 27}a...')"),
    ("mail_domain = 1", f"1: mail_domain: {DOMAIN} (got 1)"),
    ("[hostname]", f"1: hostname: {DOMAIN} (got a table)"),
    ('admin = "a, b"', "1: admin: expected a mail address (got 'a, b')"),
    ('admin = "<a@b>"', "1: admin: expected a mail address (got '<a@b>')"),
    ('admin = "@b"', "1: admin: expected a mail address (got '@b')"),
    ('\n\n[spool]\n# \npath = "q"', "5: [spool] path: expected an absolute path (got 'q')"),
    ('[spool]\npath = "~/q"', "2: [spool] path: expected an absolute path (got '~/q')"),
    ("[spool]\npath = ''", "2: [spool] path: expected an absolute path (got '')"),
    ('[spool]\npath = "/\\u0000"', "2: [spool] path: expected an absolute path (got '/\\x00')"),
    ("[spool]\npath = false", "2: [spool] path: expected an absolute path (got false)"),
    ('[spool]\nlifetime = "5"', f"2: [spool] lifetime: {TIME} (got '5')"),
    ('[spool]\nlifetime = "d"', f"2: [spool] lifetime: {TIME} (got 'd')"),
    ('[spool]\nlifetime = ""', f"2: [spool] lifetime: {TIME} (got '')"),
    ('[spool]\nlifetime = "-1d"', f"2: [spool] lifetime: {TIME} (got '-1d')"),
    ('[spool]\nlifetime = "0s"', f"2: [spool] lifetime: {TIME} (got '0s')"),
    ('[spool]\nlifetime = "1.5d"', f"2: [spool] lifetime: {TIME} (got '1.5d')"),
    ('[spool]\nlifetime = "٣d"', f"2: [spool] lifetime: {TIME} (got '٣d')"),
    ('[spool]\nlifetime = "3651d"', f"2: [spool] lifetime: {TIME} (got '3651d')"),
    ("[spool]\nlifetime = 5", f"2: [spool] lifetime: {TIME} (got 5)"),
    (
        f'[spool]\nlifetime = "{"9" * 5000}d"',
        f"2: [spool] lifetime: {TIME} (got '{'9' * 55}...')",
    ),
    ("[spool]\nmax_message_size = 0", f"2: [spool] max_message_size: {SIZE} (got 0)"),
    ("[spool]\nmax_message_size = true", f"2: [spool] max_message_size: {SIZE} (got true)"),
    ("[spool]\nmax_message_size = 1.5", f"2: [spool] max_message_size: {SIZE} (got 1.5)"),
    ('[spool]\nmax_message_size = "5m"', f"2: [spool] max_message_size: {SIZE} (got '5m')"),
    ('[spool]\nmax_message_size = "M"', f"2: [spool] max_message_size: {SIZE} (got 'M')"),
    (
        '[spool]\nmax_message_size = "1025G"',
        f"2: [spool] max_message_size: {SIZE} (got '1025G')",
    ),
    (
        "[spool]\nmax_message_size = 0x" + "f" * 50,
        f"2: [spool] max_message_size: {SIZE} (got a huge number)",
    ),
    ("[spool]\nmin_free = -1", f"2: [spool] min_free: {SIZE_OR_0} (got -1)"),
    ('[spool]\nmin_free = ""', f"2: [spool] min_free: {SIZE_OR_0} (got '')"),
    ("[spool]\nmin_free = false", f"2: [spool] min_free: {SIZE_OR_0} (got false)"),
    (
        "[spool]\nmin_free_inodes = 1000001",
        "2: [spool] min_free_inodes: expected a whole number from 0 to 1000000 (got 1000001)",
    ),
    ("[limits]\nflood = -1", "2: [limits] flood: expected a whole number from 0 to 10000 (got -1)"),
    (
        "[limits]\nflood = 10001",
        "2: [limits] flood: expected a whole number from 0 to 10000 (got 10001)",
    ),
    ('[spool]\nsync = "no"', '2: [spool] sync: expected "group" or "each" (got \'no\')'),
    ("spool = 1", "1: [spool]: expected a table (got 1)"),
    ("[[spool]]", "1: [spool]: expected a table (got a list)"),
    (
        "[submission]\ndrop = true",
        "2: [submission] drop: expected an absolute path or false (got true)",
    ),
    (
        '[submission]\nsocket = "s"',
        "2: [submission] socket: expected an absolute path or false (got 's')",
    ),
    ('[submission]\nsenders = "ann"', f"2: [submission] senders: {SENDERS} (got 'ann')"),
    (
        '[submission.senders]\nann = "a b"',
        f" [submission] senders: {SENDERS} (got a table)",
    ),
    (
        "[submission]\nsenders = { ann = 1 }",
        f"2: [submission] senders: {SENDERS} (got a table)",
    ),
    ('[smarthost]\nhost = ""', f"2: [smarthost] host: {HOSTS} (got '')"),
    ("[smarthost]\nhost = []", f"2: [smarthost] host: {HOSTS} (got a list)"),
    ('[smarthost]\nhost = ["a", 1]', f"2: [smarthost] host: {HOSTS} (got 1)"),
    ('[smarthost]\nhost = "a:25"', f"2: [smarthost] host: {HOSTS} (got 'a:25')"),
    ('[smarthost]\nhost = "10.0.0"', f"2: [smarthost] host: {HOSTS} (got '10.0.0')"),
    ('[smarthost]\nhost = "[::1"', f"2: [smarthost] host: {HOSTS} (got '[::1')"),
    ("[smarthost]", f"1: [smarthost] host: {HOSTS} (got nothing)"),
    ("[smarthost]\nport = 26", f"1: [smarthost] host: {HOSTS} (got nothing)"),
    ("[smarthost]\nport = 0", f"2: [smarthost] port: {PORT} (got 0)"),
    ("[smarthost]\nport = 65536", f"2: [smarthost] port: {PORT} (got 65536)"),
    ("[smarthost]\nport = true", f"2: [smarthost] port: {PORT} (got true)"),
    ('[smarthost]\nport = "25"', f"2: [smarthost] port: {PORT} (got '25')"),
    (
        '[smarthost]\ntls = "must"',
        '2: [smarthost] tls: expected "starttls", "implicit", "opportunistic" or "none" '
        "(got 'must')",
    ),
    (
        "[smarthost]\ntls_min_version = 1.2",
        '2: [smarthost] tls_min_version: expected "1.2" or "1.3" (got 1.2)',
    ),
    ('[smarthost]\ntls_verify = "no"', f"2: [smarthost] tls_verify: {BOOLEAN} (got 'no')"),
    ("[smarthost]\nsecret_mode_check = 0", f"2: [smarthost] secret_mode_check: {BOOLEAN} (got 0)"),
    ('[smarthost]\nusername = "a\\nb"', f"2: [smarthost] username: {TEXT} (got 'a\\nb')"),
    (
        '[smarthost]\npassword_command = "pass"',
        f"2: [smarthost] password_command: {STRINGS} (got 'pass')",
    ),
    (
        '[smarthost]\npassword_command = ["pass", 1]',
        f"2: [smarthost] password_command: {STRINGS} (got a list)",
    ),
    ("[delivery]\nconnections = 0", f"2: [delivery] connections: {COUNT} (got 0)"),
    (
        '[delivery]\ntls = "starttls"',
        '2: [delivery] tls: expected "none" or "opportunistic" (got \'starttls\')',
    ),
    ('[dns]\nnameservers = "::1"', f"2: [dns] nameservers: {SERVERS} (got '::1')"),
    ('[dns]\nnameservers = ["ns.example"]', f"2: [dns] nameservers: {SERVERS} (got 'ns.example')"),
    ('[dns]\nnameservers = ["::1", 53]', f"2: [dns] nameservers: {SERVERS} (got 53)"),
    # names
    ('hostnam = "x"', "1: hostnam: unknown key (did you mean hostname?)"),
    ("zzz = 1", "1: zzz: unknown key"),
    (
        'lifetime = "5d"',
        "1: lifetime: unknown key here: it belongs in [spool]",
    ),
    (
        "[delivery]\nadmin = 1",
        "2: [delivery] admin: unknown key here: it belongs at the top, before any table",
    ),
    ("[smarthots]\nhost = 1", "1: [smarthots]: unknown table (did you mean [smarthost]?)"),
    ("[zzz]", "1: [zzz]: unknown table"),
    ("[delivery]\nport = 25", "2: [delivery] port: unknown key (did you mean mx_port?)"),
    (
        "[smarthost]\nhostname = 1",
        "2: [smarthost] hostname: unknown key here: it belongs at the top, before any table",
    ),
    ("spool = { lifetime = 1 }", f"1: [spool] lifetime: {TIME} (got 1)"),
    ("[[route]]", f"1: [[route]] via: {VIA} (got nothing)"),
    *(
        (
            f"[smarthost]\ntls_fingerprint = {value}",
            f"2: [smarthost] tls_fingerprint: {FINGERPRINT} (got {shown})",
        )
        for value, shown in (
            *(("1", "1"), ('""', "''"), ("[1]", "1"), ('"sha256"', "'sha256'")),
            *(('"sha256:ab"', "'sha256:ab'"), ('"sha1:ab"', "'sha1:ab'")),
            *((f'["{SHA256}", "x"]', "'x'"), ('"sha256:qw=="', "'sha256:qw=='")),
            (f'"sha256:{"x" * 64}"', f"'sha256:{'x' * 48}...'"),
        )
    ),
    (
        f'[smarthost]\nhost = "a"\ntls = "opportunistic"\ntls_fingerprint = "{SHA256}"',
        '4: [smarthost] tls_fingerprint: expected tls = "starttls" or "implicit" beside it '
        '(got "opportunistic")',
    ),
    (
        f'[smarthost]\nhost = "a"\ntls_verify = false\ntls_fingerprint = "{SHA256}"',
        "4: [smarthost] tls_fingerprint: expected no tls_verify = false beside it",
    ),
    (
        '[smarthost]\nhost = "a"\ntls_key_file = "/k"',
        "3: [smarthost] tls_key_file: expected tls_cert_file beside it (got nothing)",
    ),
    (
        '[smarthost]\nhost = "a"\ntls = "none"\ntls_cert_file = "/c"',
        '4: [smarthost] tls_cert_file: expected no tls = "none" beside it',
    ),
    (
        '[smarthosts.a]\nhost = "a"\nauth = "external"',
        '3: [smarthosts.a] auth: expected tls_cert_file beside "external" (got nothing)',
    ),
    ("[smarthost.b]\nport = 1", "[smarthost] b: unknown key"),
    ('[spool]\n"life\\ntime" = 1', "1: [spool] life\\ntime: unknown key (did you mean lifetime?)"),
    # a password in the wrong place is not repeated
    (
        '[smarthost]\npassword = "hunter2"',
        "2: [smarthost] password: unknown key (did you mean password_file?)",
    ),
    (
        '[smarthost]\npassword_file = "hunter2"',
        "2: [smarthost] password_file: expected an absolute path",
    ),
    (
        '[smarthost]\ncredential = ["hunter2"]',
        "2: [smarthost] credential: expected text without control characters",
    ),
    # a line number only where one line can be meant
    ('spool.path = "q"', "[spool] path: expected an absolute path (got 'q')"),
    (
        '[dns]\n[spool]\nlifetime = """\npath = "x"\\\n"""\npath = "q"',
        f"3: [spool] lifetime: {TIME} (got 'path = \"x\"')",
    ),
    (
        'admin = """\nhostname = "x"\\\n"""\nhostname = "-"',
        "1: admin: expected a mail address (got 'hostname = \"x\"')",
    ),
    (
        '[smarthost]\nusername = """a\\\nport = 1\\\n"""\nport = 0',
        f"[smarthost] port: {PORT} (got 0)",
    ),
    # one value and another
    (
        '[spool]\nretry_min = "2h"\nretry_max = "1h"',
        "3: [spool] retry_max: expected retry_min <= retry_max (got 7200 s and 3600 s)",
    ),
    (
        '[spool]\nretry_min = "5h"',
        "2: [spool] retry_min: expected retry_min <= retry_max (got 18000 s and 14400 s)",
    ),
    (
        '[smarthost]\nhost = "a"\nusername = "u"\npassword_file = "/p"\ncredential = "c"',
        "5: [smarthost] credential: expected only one of this and password_file",
    ),
    (
        '[smarthost]\nhost = "a"\npassword_file = "/p"',
        "3: [smarthost] password_file: expected username beside it (got nothing)",
    ),
    (
        '[smarthost]\nhost = "a"\nauth = "login"',
        '3: [smarthost] auth: expected username beside "login" (got nothing)',
    ),
    (
        '[smarthost]\nhost = "a"\nauth = "scram-sha-256-plus"',
        '3: [smarthost] auth: expected username beside "scram-sha-256-plus" (got nothing)',
    ),
    (
        '[smarthost]\nhost = "a"\nusername = "u"\nauth = "external"\ncredential = "c"',
        '4: [smarthost] auth: expected no credential beside "external"',
    ),
    (
        '[smarthost]\nhost = "a"\nusername = "u"',
        "3: [smarthost] username: expected password_file, password_command or credential "
        "beside it (got nothing)",
    ),
    *(
        (
            f'[smarthost]\noauth2_token_endpoint = "{url}"',
            f"2: [smarthost] oauth2_token_endpoint: {ENDPOINT} (got {url!r})",
        )
        for url in (
            "http://t.example/",
            "t.example",
            "https://",
            "https://u:p@t.example/",
            "https://t.example/#f",
            "https://t.example/a b",
            "https://t.example:x/",
            "https://t.example:99999/",
            "https://[::1/",
            "https://tä.example/",
            "ftp://127.0.0.1/",
        )
    ),
    (
        '[smarthost]\noauth2_client_secret_file = "hunter2"',
        "2: [smarthost] oauth2_client_secret_file: expected an absolute path",
    ),
    (
        '[smarthost]\nhost = "a"\noauth2_scope = "s"',
        "3: [smarthost] oauth2_scope: expected oauth2_provider or oauth2_token_endpoint beside it (got nothing)",
    ),
    (
        '[smarthost]\nhost = "a"\noauth2_provider = "google"',
        "3: [smarthost] oauth2_provider: expected username beside it (got nothing)",
    ),
    (
        '[smarthost]\nhost = "a"\nusername = "u"\noauth2_provider = "google"',
        "4: [smarthost] oauth2_provider: expected oauth2_client_id beside it (got nothing)",
    ),
    (
        '[smarthost]\nhost = "a"\nusername = "u"\noauth2_provider = "google"\noauth2_client_id = "c"\nauth = "plain"',
        '6: [smarthost] auth: expected "auto", "xoauth2" or "oauthbearer" beside oauth2_provider (got \'plain\')',
    ),
    (
        '[smarthost]\nhost = "a"\nusername = "u"\noauth2_provider = "google"\noauth2_client_id = "c"\npassword_file = "/p"',
        "6: [smarthost] password_file: expected only one of this and oauth2_provider",
    ),
    (
        '[smarthost]\nhost = "a"\nusername = "u"\noauth2_provider = "google"\noauth2_grant = "service_account"',
        '5: [smarthost] oauth2_grant: expected oauth2_service_account_file beside "service_account" (got nothing)',
    ),
    (
        '[smarthost]\nhost = "a"\nusername = "u"\noauth2_token_endpoint = "https://t.example/"\noauth2_client_id = "c"\n'
        'oauth2_grant = "client_credentials"',
        '6: [smarthost] oauth2_grant: expected oauth2_client_secret_file beside "client_credentials" (got nothing)',
    ),
    (
        '[smarthost]\nhost = "a"\nusername = "u"\noauth2_provider = "microsoft365"\noauth2_client_id = "c"\n'
        'oauth2_client_auth = "basic"',
        '6: [smarthost] oauth2_client_auth: expected oauth2_client_secret_file beside "basic" (got nothing)',
    ),
    (
        '[smarthost]\nhost = "a"\nusername = "u"\noauth2_provider = "microsoft365"\noauth2_client_id = "c"\n'
        'oauth2_grant = "client_credentials"\noauth2_client_secret_file = "/s"',
        '6: [smarthost] oauth2_grant: expected oauth2_tenant beside "client_credentials" (got nothing)',
    ),
    # not TOML
    ("a b", "1: not TOML: Expected '=' after a key in a key/value pair (at column 3)"),
    ("a = 1\n[b\n", "2: not TOML: Expected ']' at the end of a table declaration (at column 3)"),
    ("a = [1,", " not TOML: Invalid value (at end of document)"),
    ('a = "\udcff"', "1: not TOML: not UTF-8"),
]


@pytest.mark.parametrize(("text", "expected"), WRONG, ids=[text[:60] for text, _ in WRONG])
def test_errors(machine: Path, text: str, expected: str) -> None:
    message = error_of(lambda: loaded(machine, text))
    separator = ":" if expected[0].isdigit() or expected[0] == " " else ": "
    assert message == f"{machine}/c.toml{separator}{expected}"


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "9" * 5000])
def test_what_tomllib_cannot_read_is_no_crash(machine: Path, text: str) -> None:
    assert error_of(lambda: loaded(machine, text)).startswith(f"{machine}/c.toml: not TOML: ")


def test_routes_of_further_files_come_after(machine: Path) -> None:
    main = write(machine / "c.toml", '[[route]]\nrecipient = "a"\nvia = "x"\n')
    write(machine / "conf.d/b.toml", "[smarthosts.x]\nport = 26\n")
    write(machine / "conf.d/c.toml", '[[route]]\nrecipient = "c"\nvia = "mx"\n')
    part = write(
        machine / "conf.d/a.toml",
        '[smarthosts.x]\nhost = "h"\n[[route]]\nrecipient = "b"\nvia = "y"',
    )
    assert error_of(lambda: load(str(main), {}, USER, USER)) == (
        f"{part}:5: [[route]] via: {VIA}; there is no [smarthosts.y]"
    )
    write(part, '[smarthosts.x]\nhost = "h"\n[[route]]\nrecipient = "b"\nvia = "discard"')
    found = load(str(main), {}, USER, USER)
    assert [(each.recipient, each.via, each.name) for each in found.routes] == [
        (("a",), "smarthost", "x"),
        (("b",), "discard", ""),
        (("c",), "mx", ""),
    ]
    assert [(name, each.hosts, each.port) for name, each in found.smarthosts.items()] == [
        ("x", ("h",), 26)
    ]


@pytest.mark.parametrize(
    ("via", "expected"),
    [
        ("mx", ("mx", "", "", 0, "")),
        ("discard", ("discard", "", "", 0, "")),
        ("smarthost", ("smarthost", "", "", 0, "")),
        ("lmtp:/run/lmtp", ("lmtp", "", "", 0, "/run/lmtp")),
        ("lmtp:[mail.example]:24", ("lmtp", "", "mail.example", 24, "")),
        ("lmtp:[::1]:24", ("lmtp", "", "::1", 24, "")),
        ("[127.0.0.1]:25", ("smtp", "", "127.0.0.1", 25, "")),
    ],
)
def test_via(machine: Path, via: str, expected: tuple[str, str, str, int, str]) -> None:
    text = f'[smarthost]\nhost = "a"\n[[route]]\nrecipient = "a"\nvia = "{via}"'
    (route,) = loaded(machine, text).routes
    assert (route.via, route.name, route.host, route.port, route.path) == expected


def test_sections_have_the_keys_of_the_table() -> None:
    """One attribute for each key, and the class of a section refuses any other."""
    sections = {
        "spool": Spool("/q"),
        "submission": Submission(),
        "smarthost": Smarthost(("a",)),
        "delivery": Delivery(),
        "dns": Dns(),
        "limits": Limits(),
    }
    for table, section in sections.items():
        names = {row[1] for row in KEYS if row[0] == table}
        if table == "smarthost":
            names = names - {"host"} | {"hosts"}
        assert set(values(section)) == names
    assert values(Smarthost(("a.example",))) == SMARTHOST
    with pytest.raises(TypeError, match=r"^no such key in \[dns\]: prot$"):
        Dns(prot=1)


# -- the manual --------------------------------------------------------------------------------


def manual_items() -> dict[tuple[str, str], str]:
    """The text below each ``.It Ic KEY`` of KEYS, with its ``.It`` line."""
    items: dict[tuple[str, str], str] = {}
    table, item = "", None
    text = MANUAL.read_text("utf-8")
    for row in text[text.index("\n.Sh KEYS") : text.index("\n.Sh ENVIRONMENT")].splitlines():
        if row.startswith(".Ss "):
            table = row.partition("[")[2].partition("]")[0].removeprefix("[")
        elif row.startswith(".It Ic "):
            item = (table, row.split()[2])
            assert item not in items
            items[item] = row + "\n"
        elif row == ".El":
            item = None
        elif item is not None:
            items[item] += row + "\n"
    return items


def in_toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return rf"\(dq{value}\(dq"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def test_manual_has_every_key_and_no_other() -> None:
    assert list(manual_items()) == [(row[0], row[1]) for row in KEYS]


@pytest.mark.parametrize("row", KEYS, ids=[f"{row[0]}.{row[1]}" for row in KEYS])
def test_manual_says_meaning_default_and_words(
    row: tuple[str, str, str | tuple[str, ...], object, str],
) -> None:
    table, name, kind, default, meaning = row
    head, text = manual_items()[table, name].split("\n", 1)
    assert text.startswith(f"{meaning}\n")
    if default is None:
        assert "\nDefault: " in text or "\nDefault:\n" in text
    elif default == "":
        assert "\nDefault: none" in text
    else:
        assert f"\nDefault:\n.Ql {in_toml(default)} .\n" in text
    if isinstance(kind, tuple):
        words = " | ".join(rf"Cm \(dq{word}\(dq" for word in kind)
        assert head == f".It Ic {name} No = {words}"


@pytest.mark.skipif(
    shutil.which("mandoc") is None and not os.environ.get("CI"), reason="mandoc is not installed"
)
def test_manual_is_clean() -> None:
    run = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", MANUAL], capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (0, "")


# -- where -------------------------------------------------------------------------------------


def admin_of(explicit: str | None, environ: dict[bytes, bytes], uid: int, euid: int) -> str:
    """Which file was read, told by its admin; both readers must name the same file."""
    found = load(explicit, environ, uid, euid)
    assert submission_facts(explicit, environ, uid, euid).file == found.file
    return found.admin


def both_fail(explicit: str | None, environ: dict[bytes, bytes], uid: int, euid: int) -> str:
    message = error_of(lambda: load(explicit, environ, uid, euid))
    assert error_of(lambda: submission_facts(explicit, environ, uid, euid)) == message
    return message


@pytest.fixture
def places(machine: Path) -> dict[bytes, bytes]:
    """A file in each place, each naming it as admin; the environment that leads to them."""
    if os.geteuid() != 0:
        pytest.skip("needs root: gives files to other users")
    write(machine / "option.toml", 'admin = "option"', owner=OTHER, mode=0o666)
    write(machine / "env/e.toml", 'admin = "env"', owner=USER)
    write(machine / "xdg/minisend/config.toml", 'admin = "xdg"', owner=USER)
    write(machine / "home/.config/minisend/config.toml", 'admin = "home"', owner=USER)
    write(machine / "etc/config.toml", 'admin = "etc"', owner=OTHER, mode=0o666)
    return {
        b"MINISEND_CONFIG": os.fsencode(machine / "env/e.toml"),
        b"XDG_CONFIG_HOME": os.fsencode(machine / "xdg"),
        b"HOME": b"/nowhere",
    }


def test_the_first_that_exists(machine: Path, places: dict[bytes, bytes]) -> None:
    assert admin_of(str(machine / "option.toml"), places, USER, USER) == "option"
    assert admin_of(None, places, USER, USER) == "env"
    (machine / "env/e.toml").unlink()
    assert admin_of(None, places, USER, USER) == "xdg"
    (machine / "xdg/minisend/config.toml").unlink()
    assert admin_of(None, places, USER, USER) == "etc"
    del places[b"XDG_CONFIG_HOME"]
    assert admin_of(None, places, USER, USER) == "home"
    (machine / "home/.config/minisend/config.toml").unlink()
    assert admin_of(None, places, USER, USER) == "etc"
    (machine / "etc/config.toml").unlink()
    assert load(None, places, USER, USER).file is None


def test_missing_option_file(machine: Path, places: dict[bytes, bytes]) -> None:
    assert (
        both_fail(f"{machine}/none", places, USER, USER)
        == f"{machine}/none: cannot read it: No such file or directory"
    )
    assert both_fail(str(machine), {}, USER, USER) == f"{machine}: cannot read it: Is a directory"


def test_option_path_is_taken_as_given(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(machine / "c.toml", 'admin = "here"')
    write(machine / "conf.d/a.toml", '[spool]\nsync = "each"')
    monkeypatch.chdir(machine)
    found = load("c.toml", {}, USER, USER)
    assert (found.file, found.admin, found.spool.sync) == ("c.toml", "here", "each")


@pytest.mark.parametrize("value", [b"", b"relative"])
def test_xdg_config_home_must_be_absolute(places: dict[bytes, bytes], value: bytes) -> None:
    del places[b"MINISEND_CONFIG"]
    places[b"XDG_CONFIG_HOME"] = value
    assert admin_of(None, places, USER, USER) == "home"


def test_empty_minisend_config_is_unset(places: dict[bytes, bytes]) -> None:
    places[b"MINISEND_CONFIG"] = b""
    assert admin_of(None, places, USER, USER) == "xdg"


def test_relative_minisend_config(places: dict[bytes, bytes]) -> None:
    places[b"MINISEND_CONFIG"] = b"e.toml"
    assert (
        both_fail(None, places, USER, USER)
        == "$MINISEND_CONFIG: expected an absolute path (got 'e.toml')"
    )
    assert admin_of(None, places, 0, 0) == "etc"


@pytest.mark.parametrize(("uid", "euid"), [(0, 0), (USER, 0), (0, USER)])
def test_root_takes_nothing_of_another_user(
    machine: Path, places: dict[bytes, bytes], uid: int, euid: int
) -> None:
    """By real or effective uid: XDG not even when root owns it, $MINISEND_CONFIG only then."""
    os.chown(machine / "xdg/minisend/config.toml", 0, 0)
    assert admin_of(None, places, uid, euid) == "etc"
    os.chown(machine / "env/e.toml", 0, 0)
    assert admin_of(None, places, uid, euid) == "env"
    (machine / "env/e.toml").chmod(0o664)
    assert both_fail(None, places, uid, euid) == (
        f"{machine}/env/e.toml: not used: others can write it (mode 0664): chmod go-w it"
    )


def test_root_does_not_wait_for_a_fifo(machine: Path, places: dict[bytes, bytes]) -> None:
    (machine / "env/e.toml").unlink()
    os.mkfifo(machine / "env/e.toml")
    os.chown(machine / "env/e.toml", USER, USER)
    assert admin_of(None, places, 0, 0) == "etc"


@pytest.mark.parametrize(
    "name",
    [
        "/proc/self/fd/0",
        "/proc/thread-self/fd/0",
        "/dev/stdin",
        "/dev/fd/0",
        "/proc/self/status",
        "/proc/self/environ",
    ],
)
@pytest.mark.parametrize(("uid", "euid"), [(0, 0), (USER, 0), (0, USER)])
def test_root_takes_nothing_that_is_no_file_on_a_disk(
    machine: Path, places: dict[bytes, bytes], name: str, uid: int, euid: int
) -> None:
    """Root owns its standard input and what stands in /proc; the words in them are another's."""
    message = os.open(write(machine / "message", 'admin = "message"'), os.O_RDONLY)
    saved = os.dup(0)
    try:
        os.dup2(message, 0)
        places[b"MINISEND_CONFIG"] = os.fsencode(name)
        assert admin_of(None, places, uid, euid) == "etc"
        (machine / "link").symlink_to(name)
        places[b"MINISEND_CONFIG"] = os.fsencode(machine / "link")
        assert admin_of(None, places, uid, euid) == "etc"
        (machine / "above").symlink_to(os.path.dirname(name))
        places[b"MINISEND_CONFIG"] = os.fsencode(machine / "above" / os.path.basename(name))
        assert admin_of(None, places, uid, euid) == "etc"
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(message)


@pytest.mark.parametrize("key", [b"MINISEND_CONFIG", b"XDG_CONFIG_HOME"])
def test_what_the_environment_names_is_a_regular_file(
    machine: Path, places: dict[bytes, bytes], key: bytes
) -> None:
    path = (
        machine
        / {b"MINISEND_CONFIG": "env/e.toml", b"XDG_CONFIG_HOME": "xdg/minisend/config.toml"}[key]
    )
    path.unlink()
    os.mkfifo(path, 0o600)
    os.chown(path, USER, USER)
    expected = f"{path}: not used: expected a regular file"
    assert both_fail(None, {key: places[key]}, USER, USER) == expected
    path.unlink()
    path.symlink_to(write(machine / "elsewhere.toml", 'admin = "linked"', owner=USER))
    assert admin_of(None, {key: places[key]}, USER, USER) == "linked"


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_file_that_others_can_write(machine: Path, places: dict[bytes, bytes], mode: int) -> None:
    path = machine / "env/e.toml"
    path.chmod(mode)
    text = f"not used: others can write it (mode {mode:04o}): chmod go-w it"
    assert both_fail(None, places, USER, USER) == f"{path}: {text}"
    path.unlink()
    path = machine / "xdg/minisend/config.toml"
    path.chmod(mode)
    assert both_fail(None, places, USER, USER) == f"{path}: {text}"


def test_file_of_another_user(machine: Path, places: dict[bytes, bytes]) -> None:
    path = machine / "env/e.toml"
    os.chown(path, OTHER, OTHER)
    assert both_fail(None, places, USER, USER) == (
        f"{path}: not used: expected owner uid 0 or {USER} (got {OTHER}): "
        "chown it, or name another file"
    )
    assert admin_of(None, places, OTHER, OTHER) == "env"
    path.unlink()
    os.chown(machine / "xdg/minisend/config.toml", OTHER, OTHER)
    assert admin_of(None, places, USER, USER) == "etc"


@pytest.mark.parametrize("key", [b"MINISEND_CONFIG", b"XDG_CONFIG_HOME"])
def test_file_of_root_is_good_for_all(
    machine: Path, places: dict[bytes, bytes], key: bytes
) -> None:
    os.chown(machine / "env/e.toml", 0, 0)
    os.chown(machine / "xdg/minisend/config.toml", 0, 0)
    wanted = {b"MINISEND_CONFIG": "env", b"XDG_CONFIG_HOME": "xdg"}[key]
    assert admin_of(None, {key: places[key]}, USER, USER) == wanted


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def reachable(machine: Path) -> None:
    """USER may walk down to the machine."""
    for directory in [machine, *machine.parents][:4]:
        if directory.stat().st_uid == os.geteuid() and directory != Path("/tmp"):
            directory.chmod(directory.stat().st_mode | 0o011)


@pytest.mark.usefixtures("reachable")
def test_unreadable(machine: Path, places: dict[bytes, bytes]) -> None:
    """What exists but cannot be read is an error; a home that cannot be entered is passed over."""
    for path in (machine / "env/e.toml", machine / "xdg/minisend/config.toml"):
        path.chmod(0o200)
        with acting_as(USER):
            assert both_fail(None, places, USER, USER) == (
                f"{path}: cannot read it: Permission denied"
            )
        path.unlink()
    (machine / "xdg").chmod(0)
    with acting_as(USER):
        assert admin_of(None, places, USER, USER) == "etc"
    path = machine / "etc/config.toml"
    path.chmod(0)
    with acting_as(USER):
        assert both_fail(None, places, USER, USER) == f"{path}: cannot read it: Permission denied"


def test_huge_file(machine: Path) -> None:
    assert both_fail("/dev/zero", {}, USER, USER) == "/dev/zero: larger than 1048576 octets"
    text = "#" * (1 << 20)
    assert loaded(machine, text).admin == ""
    assert error_of(lambda: loaded(machine, text + "#")) == (
        f"{machine}/c.toml: larger than 1048576 octets"
    )


# -- conf.d ------------------------------------------------------------------------------------


def test_conf_d_is_merged_in_name_order(machine: Path) -> None:
    main = write(
        machine / "c.toml",
        'admin = "main"\n[spool]\nsync = "group"\npath = "/main"\nlifetime = "1d"',
    )
    write(machine / "conf.d/20.toml", '[spool]\nsync = "each"\nlifetime = "3d"')
    write(machine / "conf.d/10.toml", '[spool]\nlifetime = "2d"\npath = "/ten"\n[dns]\nport = 54')
    write(machine / "conf.d/30.toml.bak", "not toml")
    write(machine / "conf.d/.40.toml", "not toml")
    found = load(str(main), {}, USER, USER)
    assert (found.admin, found.spool.path, found.spool.sync, found.spool.lifetime) == (
        "main",
        "/ten",
        "each",
        3 * 86400,
    )
    assert (found.dns.port, found.file) == (54, str(main))
    assert facts(submission_facts(str(main), {}, USER, USER)) == {
        "file": str(main),
        "spool_path": "/ten",
        "max_message_size": 52428800,
        "min_free": 16777216,
        "min_free_inodes": 100,
        "sync": "each",
        "socket": "/run/minisend/submit.sock",
        "drop": "/var/spool/minisend/drop",
    }


def test_conf_d_without_main_file_is_not_read(machine: Path) -> None:
    write(machine / "etc/conf.d/a.toml", "not toml")
    assert load(None, {}, USER, USER).file is None


def test_conf_d_error_names_its_file(machine: Path) -> None:
    main = write(machine / "c.toml", '[smarthost]\nhost = "a"\n')
    part = write(machine / "conf.d/a.toml", '\n[smarthost]\nport = "x"')
    assert error_of(lambda: load(str(main), {}, USER, USER)) == (
        f"{part}:3: [smarthost] port: {PORT} (got 'x')"
    )
    write(part, '[smarthost]\nauth = "plain"')
    assert error_of(lambda: load(str(main), {}, USER, USER)) == (
        f'{part}:2: [smarthost] auth: expected username beside "plain" (got nothing)'
    )
    part.unlink()
    part.mkdir()
    assert both_fail(str(main), {}, USER, USER) == f"{part}: not used: expected a regular file"


def test_conf_d_that_is_no_directory(machine: Path) -> None:
    write(machine / "conf.d", "not toml")
    assert loaded(machine, 'admin = "a"').admin == "a"


def test_conf_d_from_the_environment_is_checked(machine: Path, places: dict[bytes, bytes]) -> None:
    directory = machine / "env/conf.d"
    part = write(directory / "a.toml", 'admin = "part"', owner=USER)
    os.chown(directory, USER, USER)
    assert admin_of(None, places, USER, USER) == "part"
    writable = "not used: others can write it (mode {}): chmod go-w it"
    foreign = (
        f"not used: expected owner uid 0 or {USER} (got {OTHER}): chown it, or name another file"
    )
    part.chmod(0o620)
    assert both_fail(None, places, USER, USER) == f"{part}: {writable.format('0620')}"
    part.chmod(0o600)
    os.chown(part, OTHER, OTHER)
    assert both_fail(None, places, USER, USER) == f"{part}: {foreign}"
    os.chown(part, 0, 0)
    assert admin_of(None, places, USER, USER) == "part"
    directory.chmod(0o1777)
    assert both_fail(None, places, USER, USER) == f"{directory}: {writable.format('1777')}"
    directory.chmod(0o755)
    os.chown(directory, OTHER, OTHER)
    assert both_fail(None, places, USER, USER) == f"{directory}: {foreign}"


def test_conf_d_of_another_user_stops_root(machine: Path, places: dict[bytes, bytes]) -> None:
    """Half of a configuration is none."""
    os.chown(machine / "env/e.toml", 0, 0)
    part = write(machine / "env/conf.d/a.toml", "", owner=USER)
    assert both_fail(None, places, 0, 0) == (
        f"{part}: not used: expected owner uid 0 (got {USER}): chown it, or name another file"
    )


@as_root
def test_conf_d_of_option_is_not_a_strangers(machine: Path) -> None:
    """The directory of the file named may be open to all, so what is beside the file is not its owner's word."""
    main = write(machine / "open/mine.toml", 'admin = "main"')
    main.parent.chmod(0o1777)
    part = write(machine / "open/conf.d/a.toml", 'admin = "part"', owner=OTHER)
    foreign = f"not used: expected owner uid 0 (got {OTHER}): chown it, or name another file"
    writable = "not used: others can write it (mode {}): chmod go-w it"
    assert both_fail(str(main), {}, 0, 0) == f"{part}: {foreign}"
    os.chown(part, 0, 0)
    assert admin_of(str(main), {}, 0, 0) == "part"
    part.chmod(0o664)
    assert both_fail(str(main), {}, 0, 0) == f"{part}: {writable.format('0664')}"
    part.chmod(0o644)
    part.parent.chmod(0o775)
    assert both_fail(str(main), {}, 0, 0) == f"{part.parent}: {writable.format('0775')}"
    part.parent.chmod(0o755)
    os.chown(part.parent, OTHER, OTHER)
    assert both_fail(str(main), {}, 0, 0) == f"{part.parent}: {foreign}"


@as_root
@pytest.mark.parametrize("euid", [OTHER, USER])
def test_conf_d_of_option_may_be_of_its_owner_or_of_us(machine: Path, euid: int) -> None:
    main = write(machine / "c.toml", 'admin = "main"', owner=OTHER, mode=0o666)
    part = write(machine / "conf.d/a.toml", 'admin = "part"', owner=OTHER)
    assert admin_of(str(main), {}, euid, euid) == "part"
    os.chown(part, USER, USER)
    if euid == USER:
        assert admin_of(str(main), {}, euid, euid) == "part"
    else:
        assert f"expected owner uid 0 or {OTHER} (got {USER})" in both_fail(
            str(main), {}, euid, euid
        )


def test_conf_d_of_the_third_place_is_checked(machine: Path, places: dict[bytes, bytes]) -> None:
    del places[b"MINISEND_CONFIG"]
    part = write(machine / "xdg/minisend/conf.d/a.toml", "", owner=OTHER)
    os.chown(part.parent, USER, USER)
    assert both_fail(None, places, USER, USER) == (
        f"{part}: not used: expected owner uid 0 or {USER} (got {OTHER}): "
        "chown it, or name another file"
    )


@pytest.mark.usefixtures("reachable")
def test_unreadable_conf_d(machine: Path, places: dict[bytes, bytes]) -> None:
    directory = machine / "env/conf.d"
    directory.mkdir(mode=0)
    with acting_as(USER):
        assert (
            both_fail(None, places, USER, USER) == f"{directory}: cannot read it: Permission denied"
        )


# -- a submission ------------------------------------------------------------------------------


def facts(found: SubmissionFacts) -> dict[str, object]:
    return {name: getattr(found, name) for name in found.__slots__}


@pytest.mark.parametrize(
    "text",
    [
        "",
        '[spool]\npath = "/q"\nmax_message_size = "1M"\nsync = "each"\n',
        '[spool]\nmin_free = "1G"\nmin_free_inodes = 0\n[limits]\nflood = 3',
        "[spool]\nmax_message_size = 7\n[submission]\nsocket = false\ndrop = false",
        '[submission]\nsocket = "/s"\ndrop = "/d"',
        'spool.path = "/q"\nspool.sync = "each"',
        "[spool]\npath = '/q'",
        'spool = { path = "/q" }',
        '[spool]\npath = "/\\u0071"',
        '[smarthosts.a]\nhost = "a"\n[spool]\npath = "/q"',
        '[[route]]\nrecipient = "a"\nvia = "mx"\n[spool]\npath = "/q"\n[[route]]\nsender = "<>"\nvia = "discard"',
    ],
)
def test_both_readers_agree(machine: Path, text: str) -> None:
    found = loaded(machine, text)
    assert facts(submission_facts(found.file, {}, USER, USER)) == {
        "file": found.file,
        "spool_path": found.spool.path,
        "max_message_size": found.spool.max_message_size,
        "min_free": found.spool.min_free,
        "min_free_inodes": found.spool.min_free_inodes,
        "sync": found.spool.sync,
        "socket": found.submission.socket,
        "drop": found.submission.drop,
    }


@pytest.mark.parametrize(
    "elsewhere",
    [
        "unknown = 1",
        "[zzz]",
        '[smarthost]\nport = "x"',
        '[spool]\nlifetime = "x"\nlifetme = "5d"',
        "[[route]]",
        "[[route]]\nvia = 1\n[smarthosts.a]\nhost = 1",
    ],
)
def test_a_mistake_elsewhere_does_not_stop_a_submission(machine: Path, elsewhere: str) -> None:
    path = write(machine / "c.toml", elsewhere)
    write(machine / "conf.d/a.toml", '[spool]\npath = "/q"')
    with pytest.raises(ConfigError):
        load(str(path), {}, USER, USER)
    assert submission_facts(str(path), {}, USER, USER).spool_path == "/q"


@pytest.mark.parametrize(
    "text",
    [
        '[spool]\npath = "q"',
        "[spool]\nmax_message_size = 0",
        "[spool]\nmin_free = -1",
        "[spool]\nmin_free_inodes = true",
        '[spool]\nsync = "x"',
        "[submission]\nsocket = true",
        '[submission]\ndrop = "d"',
        "spool = 1",
        "[[submission]]",
        "no toml",
        '[spool]\npath = "/q"\n[spool]',
        'a = "\udcff"',
    ],
)
def test_a_mistake_in_what_it_uses_stops_it_with_the_same_words(machine: Path, text: str) -> None:
    both_fail(str(write(machine / "c.toml", text)), {}, USER, USER)


def test_a_submission_loads_no_module_that_costs(machine: Path) -> None:
    """A plain file is read with what the interpreter has; see DESIGN section 5."""
    path = write(machine / "c.toml", '# plain\n[spool]\npath = "/q"\n')
    program = (
        "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1])\n"
        "import posix; from minisend.config.submission import submission_facts\n"
        "submission_facts(sys.argv[2], posix.environ, 4711, 4711)\n"
        "print(sorted(set(sys.modules) - before))"
    )
    root = str(Path(files.__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-IS", "-c", program, root, path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        run.stdout
        == "['minisend', 'minisend.config', 'minisend.config.files', 'minisend.config.forms', 'minisend.config.keys', 'minisend.config.submission', 'minisend.config.toml', 'minisend.errors']\n"
    )


# -- the spool ---------------------------------------------------------------------------------


def spool_of(environ: dict[bytes, bytes], uid: int, euid: int) -> str:
    path = load(None, environ, uid, euid).spool.path
    assert submission_facts(None, environ, uid, euid).spool_path == path
    return path


def test_default_spool(machine: Path) -> None:
    state = {b"XDG_STATE_HOME": os.fsencode(machine / "state")}
    assert spool_of(state, USER, USER) == f"{machine}/var/spool"
    (machine / "var/spool").rmdir()
    assert spool_of(state, USER, USER) == f"{machine}/state/minisend"
    assert spool_of({b"XDG_STATE_HOME": b"rel"}, USER, USER) == (
        f"{machine}/home/.local/state/minisend"
    )
    assert spool_of({b"HOME": b"/x"}, USER, USER) == f"{machine}/home/.local/state/minisend"
    assert spool_of(state, 0, 0) == pwd.getpwuid(0).pw_dir + "/.local/state/minisend"
    assert spool_of(state, USER, 0) == f"{machine}/home/.local/state/minisend"


def test_default_spool_is_not_chosen_by_an_error(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = machine / "loop"
    loop.symlink_to(loop)
    monkeypatch.setattr(files, "SYSTEM_SPOOL", str(loop))
    assert spool_of({}, USER, USER) == str(loop)


def test_home_of_a_uid_without_account(machine: Path, places: dict[bytes, bytes]) -> None:
    """$HOME counts when it is absolute and the uid's own."""
    (machine / "var/spool").rmdir()
    home = machine / "box"
    write(home / ".config/minisend/config.toml", 'admin = "box"', owner=OTHER)
    os.chown(home, OTHER, OTHER)
    environ = {b"HOME": os.fsencode(home)}
    assert spool_of(environ, OTHER, OTHER) == f"{home}/.local/state/minisend"
    assert admin_of(None, environ, OTHER, OTHER) == "box"
    os.chown(home, USER, USER)
    useless_ones = (environ, {}, {b"HOME": b"box"}, {b"HOME": b"/none"})
    for useless in useless_ones:
        # A service may take its mail, or the drop.
        assert submission_facts(None, useless, OTHER, OTHER).spool_path == ""
    write(machine / "etc/config.toml", "[submission]\nsocket = false\ndrop = false")
    for useless in useless_ones:
        assert both_fail(None, useless, OTHER, OTHER) == (
            f"[spool] path: {machine}/var/spool does not exist and uid {OTHER} has no home "
            "directory: create it, or set path in a configuration file"
        )
    write(machine / "etc/config.toml", '[spool]\npath = "/q"')
    assert spool_of({}, OTHER, OTHER) == "/q"


# -- names -------------------------------------------------------------------------------------

HOSTS_TEXT = """
# 192.0.2.9 comment.example here
127.0.0.1 localhost.localdomain localhost here
192.0.2.7 # here
192.0.2.8
::1 bare here
192.0.2.1 other.example\tOTHER
192.0.2.2 Here.example HERE # alias
192.0.2.3 second.example here
"""


@pytest.mark.parametrize(
    ("nodename", "hosts", "mailname", "hostname", "mail_domain"),
    [
        ("here", None, None, "here", "here"),
        ("here.example", HOSTS_TEXT, "mail.example\n", "here.example", "mail.example"),
        ("here", HOSTS_TEXT, "mail.example\n", "Here.example", "mail.example"),
        ("here", "127.0.0.1 localhost here\n", "\n mail.example \nx\n", *["mail.example"] * 2),
        ("here", "127.0.0.1 localhost here\n", "bad name\nok.example", "here", "here"),
        ("here", "192.0.2.1 b_d!.example here", "", "here", "here"),
        ("here", "192.0.2.1 \udcff.example here", None, "here", "here"),
        ("(none)", None, None, "localhost", "localhost"),
        ("", "192.0.2.1", None, "localhost", "localhost"),
        ("bad name.example", None, None, "localhost", "localhost"),
    ],
)
def test_names_of_the_machine(
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    nodename: str,
    hosts: str | None,
    mailname: str | None,
    hostname: str,
    mail_domain: str,
) -> None:
    monkeypatch.setattr("posix.uname", lambda: SimpleNamespace(nodename=nodename))
    if hosts is not None:
        write(machine / "etc/hosts", hosts)
    if mailname is not None:
        write(machine / "etc/mailname", mailname)
    found = load(None, {}, USER, USER)
    assert (found.hostname, found.mail_domain) == (hostname, mail_domain)


def test_names_are_worked_out_once_and_when_asked_for(machine: Path) -> None:
    found = load(None, {}, USER, USER)
    write(machine / "etc/mailname", "late.example")
    assert found.hostname == "late.example"
    write(machine / "etc/mailname", "later.example")
    assert (found.hostname, found.mail_domain) == ("late.example", "later.example")
    assert loaded(machine, 'hostname = "h.example"').mail_domain == "later.example"
    (machine / "etc/mailname").unlink()
    assert loaded(machine, 'hostname = "h.example"').mail_domain == "h.example"
