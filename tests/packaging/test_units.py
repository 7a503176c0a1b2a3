"""The systemd units: what systemd says of them, and that they fit to each other, to the table and to the socket."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from peers.unpacked import unavailable

from minisend.config.files import SYSTEM_SPOOL
from minisend.config.keys import KEYS
from minisend.spool.layout import (
    ACCOUNT,
    DIRECTORIES,
    DROP,
    SECRETS,
    SOCKET_DIRECTORY,
)
from minisend.spool.layout import (
    UNITS as STARTED,
)

UNITS = Path(__file__).resolve().parents[2] / "packaging" / "systemd"
NAMES = sorted(path.name for path in UNITS.iterdir())
SERVICES = ["minisend-accept.service", "minisend-deliver.service"]
SOCKET = next(default for _, name, _, default, _ in KEYS if name == "socket")


def unit(name):
    """section → key → its values, in order."""
    found = {}
    for line in (UNITS / name).read_text().splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and line[0] != "#":
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return found


def analyze(*arguments):
    if shutil.which("systemd-analyze") is None:
        unavailable("systemd-analyze is not installed")
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, check=False
    )


def test_there_are_units():
    assert NAMES == [
        "minisend-accept.path",
        "minisend-accept.service",
        "minisend-accept.timer",
        "minisend-deliver.path",
        "minisend-deliver.service",
        "minisend-deliver.timer",
        "minisend-submit.socket",
    ]


def exposure(path):
    done = analyze("security", "--offline=true", path)
    said = re.search(r"Overall exposure level for \S+: ([0-9.]+) ", done.stdout)
    assert said, done.stdout + done.stderr
    return float(said[1])


@pytest.mark.parametrize("name", SERVICES)
def test_exposure(name):
    assert exposure(UNITS / name) < 2.0


def test_exposure_can_be_seen(tmp_path):
    """A service without its sandbox is what this counts against."""
    (tmp_path / "bare.service").write_text("[Service]\nExecStart=/bin/true\nUser=minisend\n")
    assert exposure(tmp_path / "bare.service") > 8.0


def verify(directory):
    """What systemd-analyze verify complains of, but for the manuals, which are installed elsewhere."""
    done = analyze("verify", "--man=no", *sorted(directory.iterdir()))
    return [line for line in (done.stdout + done.stderr).splitlines() if "minisend" in line]


def copy(units, directory):
    """The units with a program that is there, which verify looks for."""
    for path in units.iterdir():
        text = path.read_text().replace("ExecStart=minisend ", "ExecStart=/bin/true ")
        (directory / path.name).write_text(text)


@pytest.fixture
def copied(tmp_path):
    copy(UNITS, tmp_path)
    return tmp_path


def test_verify(copied):
    assert verify(copied) == []


def test_verify_those_of_a_user(tmp_path):
    copy(UNITS.parent / "systemd-user", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "minisend.service",
        "minisend.timer",
    ]
    assert verify(tmp_path) == []


def test_verify_sees_a_mistake(copied):
    path = copied / "minisend-deliver.service"
    path.write_text(path.read_text().replace("ProtectProc=invisible", "ProtectProc=never"))
    [complaint] = verify(copied)
    assert complaint.endswith(": never")


def test_the_socket_is_the_one_of_the_configuration():
    socket = unit("minisend-submit.socket")["Socket"]
    assert socket == {
        "ListenStream": [SOCKET],
        "SocketMode": ["0666"],
        "DirectoryMode": [f"{SOCKET_DIRECTORY.mode:04o}"],
        "Accept": ["no"],
        "Service": ["minisend-accept.service"],
    }
    assert SOCKET.rpartition("/")[0] == SOCKET_DIRECTORY.path


@pytest.mark.parametrize(
    ("name", "watched"),
    [
        ("minisend-accept.path", f"{DROP}/new"),
        ("minisend-deliver.path", f"{SYSTEM_SPOOL}/queue/new"),
    ],
)
def test_watched_for_changes_and_never_for_being_not_empty(name, watched):
    service = name.replace(".path", ".service")
    assert unit(name)["Path"] == {"PathChanged": [watched], "Unit": [service]}


def test_all_but_the_services_are_in_the_table():
    assert sorted(STARTED) == [name for name in NAMES if not name.endswith(".service")]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith(".service")])
def test_all_but_the_services_are_started_at_boot(name):
    target = {".path": "paths", ".socket": "sockets", ".timer": "timers"}[Path(name).suffix]
    assert unit(name)["Install"] == {"WantedBy": [f"{target}.target"]}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_of_the_account_and_without_any_right(name):
    service = unit(name)["Service"]
    told = {
        key: service[key] for key in ("User", "Group", "CapabilityBoundingSet", "NoNewPrivileges")
    }
    assert told == {
        "User": [ACCOUNT],
        "Group": [ACCOUNT],
        "CapabilityBoundingSet": [""],
        "NoNewPrivileges": ["yes"],
    }
    assert service["ProtectSystem"] == ["strict"]
    assert service["ReadWritePaths"] == [SYSTEM_SPOOL]


def test_who_takes_mail_reaches_no_network_and_no_secret():
    service = unit("minisend-accept.service")["Service"]
    assert service["PrivateNetwork"] == ["yes"]
    assert service["RestrictAddressFamilies"] == ["AF_UNIX"]
    [hidden] = service["InaccessiblePaths"]
    state = unit("minisend-deliver.service")["Service"]["StateDirectory"][0]
    assert hidden.split() == [f"-{SECRETS}", f"-/var/lib/{state}"]
    assert not [key for key in service if "Credential" in key or key == "StateDirectory"]
    # Every sender would be "nobody" to it.
    assert "PrivateUsers" not in service
    # Of /proc/locks it tells who asks for a list.
    assert "ProcSubset" not in service


def test_who_delivers_has_no_socket_and_cannot_be_traced_by_the_other():
    service = unit("minisend-deliver.service")["Service"]
    assert "Sockets" not in service
    assert service["PrivateUsers"] == ["yes"]
    assert unit("minisend-accept.service")["Service"]["ProtectProc"] == ["ptraceable"]


def test_state_directory_is_that_of_the_table():
    service = unit("minisend-deliver.service")["Service"]
    [row] = [row for row in DIRECTORIES if row.path == f"/var/lib/{service['StateDirectory'][0]}"]
    assert service["StateDirectoryMode"] == [f"{row.mode:04o}"]
