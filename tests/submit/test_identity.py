"""Who submits: from the kernel and the account database, never from the environment."""

import os
import pwd
import sys
import time

import pytest

from minisend.address import check, quote_local
from minisend.envelope import Recipient
from minisend.spool import account
from minisend.submit import identity
from minisend.submit.command import new_envelope
from minisend.submit.options import Options


@pytest.mark.parametrize(
    ("gecos", "name"),
    [
        (b"Tess T. Ester,Room 5,123,", b"Tess T. Ester"),
        (b"Tess T. Ester", b"Tess T. Ester"),
        (b"", b""),
        (b",,,", b""),
        (b"  Tess ,", b"Tess"),
        (b"& Ester", b"Tess Ester"),
        (b"&", b"Tess"),
        (b"& and &", b"Tess and Tess"),
        ("Zoë Müller,".encode(), "Zoë Müller".encode()),
        (b"\xe9\xff,", b"\xe9\xff"),
        (b'Say "hi"', b'Say "hi"'),
    ],
)
def test_gecos(gecos, name):
    assert account.gecos_name(gecos, b"tess") == name


def test_gecos_of_a_login_without_a_letter():
    assert account.gecos_name(b"&", b"") == b""
    assert account.gecos_name(b"&", b"\xc3\xa9t\xc3\xa9") == b"\xc3\xa9t\xc3\xa9"


def test_the_caller_is_the_real_uid(monkeypatch):
    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.setenv("USER", "somebody")
    found = identity.caller()
    entry = pwd.getpwuid(os.getuid())
    assert (found.uid, found.login) == (os.getuid(), os.fsencode(entry.pw_name))
    assert found.full_name == os.fsencode(entry.pw_gecos).partition(b",")[0].strip()


def test_a_uid_without_an_account(monkeypatch):
    monkeypatch.setattr("posix.getuid", lambda: 4242424242 % 2**31)
    found = identity.caller()
    uid = 4242424242 % 2**31
    assert (found.uid, found.login, found.full_name) == (uid, b"uid%d" % uid, b"")


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1", "ascii"])
def test_the_octets_of_the_account_in_any_locale(monkeypatch, encoding):
    octets = "zoë".encode()
    text = octets.decode(encoding, "surrogateescape")
    entry = pwd.struct_passwd((text, "x", 1, 1, text + ",", "/", "/bin/sh"))
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: encoding)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: entry)
    found = identity.caller()
    assert (found.login, found.full_name) == (octets, octets)


@pytest.mark.parametrize(
    ("name", "login"),
    [
        (b"ann", b"ann"),
        (b"odd name", b"odd name"),
        (b"zo\xeb", b"uid1234"),
        (b"", b"uid1234"),
        (b"a\nb", b"uid1234"),
        (b"n" * 600, b"uid1234"),
    ],
)
def test_an_account_whose_name_no_address_can_have(monkeypatch, name, login):
    """Whatever a directory service calls an account, the reverse-path is one that a server can take."""
    entry = pwd.struct_passwd((os.fsdecode(name), "x", 1234, 1, "& X", "/", "/bin/sh"))
    monkeypatch.setattr("posix.getuid", lambda: 1234)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: entry)
    found = identity.caller()
    assert (found.uid, found.login) == (1234, login)
    assert found.full_name == account.gecos_name(b"& X", name)
    envelope = new_envelope(Options(), found, bytes(16), None, [Recipient(b"b")])
    check(envelope.sender)
    assert (envelope.sender, envelope.sender_given) == (quote_local(login), False)


@pytest.mark.parametrize(
    ("zone", "minutes"),
    [
        ("UTC0", 0),
        ("CET-1", 60),
        ("IST-5:30", 330),
        ("NST3:30", -210),
        ("LINT-14", 840),
        ("ABC-23:59", 1439),
        ("ABC-24", 1439),
        ("ABC24:59", -1439),
    ],
)
def test_zone(monkeypatch, zone, minutes):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert identity.zone(1_700_000_000.0) == minutes
    finally:
        monkeypatch.undo()
        time.tzset()
