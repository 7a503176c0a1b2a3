"""Secrets: each source, each refusal as a whole line, and never the secret in any of them."""

import os
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minisend.config.sections import Smarthost
from minisend.delivery import secrets
from minisend.delivery.secrets import credentials
from minisend.errors import ConfigError

SECRET = b"s3cret \xc3\xbcber alles"
EUID = os.geteuid()


def smarthost(**values: Any) -> Smarthost:
    return Smarthost(("smtp.example.org",), username="ann", **values)


def password(host: Smarthost, environ: dict[bytes, bytes] | None = None, euid: int = EUID) -> bytes:
    found = credentials(host, environ or {}, euid)
    assert found is not None
    assert found.username == b"ann"
    assert "s3cret" not in repr(found)
    return found.password


def refusal(host: Smarthost, environ: dict[bytes, bytes] | None = None, euid: int = EUID) -> str:
    with pytest.raises(ConfigError) as caught:
        credentials(host, environ or {}, euid)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in repr(caught.value.__context__)
    return str(caught.value)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET + b"\n")
    path.chmod(0o600)
    return path


def test_without_username_or_with_auth_none_nothing_is_read() -> None:
    assert credentials(Smarthost(("a",)), {}, EUID) is None
    assert credentials(smarthost(auth="none", password_file="/nowhere"), {}, EUID) is None


def test_with_external_there_is_a_name_and_no_secret() -> None:
    for host, username in (
        (Smarthost(("a",), auth="external"), b""),
        (smarthost(auth="external"), b"ann"),
    ):
        found = credentials(host, {}, EUID)
        assert found is not None
        assert (found.username, found.password, found.token) == (username, b"", b"")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(SECRET, SECRET, id="no line end"),
        pytest.param(SECRET + b"\n", SECRET, id="LF"),
        pytest.param(SECRET + b"\r\n", SECRET, id="CRLF"),
        pytest.param(b" x \n", b" x ", id="spaces belong to it"),
        pytest.param(b"\xff\n", b"\xff", id="octets"),
        pytest.param(b"x" * 65536, b"x" * 65536, id="as long as it may be"),
    ],
)
def test_content(secret: Path, content: bytes, expected: bytes) -> None:
    secret.write_bytes(content)
    assert password(smarthost(password_file=str(secret))) == expected


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(b"", "empty: expected the password", id="empty"),
        pytest.param(b"\n", "empty: expected the password", id="a line end"),
        pytest.param(
            SECRET + b"\n\n",
            "holds a NUL or more than one line: expected the password alone",
            id="two line ends",
        ),
        pytest.param(
            SECRET + b"\0",
            "holds a NUL or more than one line: expected the password alone",
            id="NUL",
        ),
        pytest.param(
            b"x" * 65537, "longer than 65536 octets: expected the password alone", id="too long"
        ),
    ],
)
def test_unusable_content(secret: Path, content: bytes, why: str) -> None:
    secret.write_bytes(content)
    assert (
        refusal(smarthost(password_file=str(secret)))
        == f"[smarthost] password_file: {secret}: {why}"
    )


@pytest.mark.parametrize("auth", ["xoauth2", "oauthbearer"])
def test_an_access_token_in_place_of_a_password(secret: Path, auth: str) -> None:
    secret.write_bytes(b"ya29.s3cret\n")
    host = smarthost(auth=auth, password_file=str(secret))
    found = credentials(host, {}, EUID)
    assert found is not None
    assert (found.username, found.password, found.token) == (b"ann", b"", b"ya29.s3cret")
    assert "s3cret" not in repr(found)
    secret.write_bytes(SECRET)
    assert refusal(host) == (
        f"[smarthost] password_file: {secret}: holds a space or what is not ASCII: expected an access token alone"
    )


def test_external_needs_no_secret() -> None:
    for host, username in (
        (smarthost(auth="external"), b"ann"),
        (Smarthost(("a",), auth="external"), b""),
    ):
        found = credentials(host, {}, EUID)
        assert found is not None
        assert (found.username, found.password, found.token) == (username, b"", b"")


def test_the_table_of_a_named_smarthost() -> None:
    with pytest.raises(
        ConfigError, match=r"^\[smarthosts\.work\] password_file: /nowhere: cannot be opened"
    ):
        credentials(smarthost(password_file="/nowhere"), {}, EUID, name="work")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400, 0o660])
def test_modes_that_keep_others_out(secret: Path, mode: int) -> None:
    secret.chmod(mode)
    assert password(smarthost(password_file=str(secret))) == SECRET


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o601])
def test_modes_that_let_others_in(secret: Path, mode: int) -> None:
    secret.chmod(mode)
    host = smarthost(password_file=str(secret))
    assert refusal(host) == (
        f"[smarthost] password_file: {secret}: mode {mode:04o} lets every user in: "
        "chmod o= it, or set secret_mode_check = false"
    )
    host.secret_mode_check = False
    assert password(host) == SECRET


@pytest.mark.skipif(EUID != 0, reason="needs root to give a file away")
@pytest.mark.parametrize(
    ("owner", "euid", "allowed"),
    [
        pytest.param(0, 4711, True, id="root's"),
        pytest.param(4711, 4711, True, id="ours"),
        pytest.param(4711, 0, False, id="somebody's, read by root"),
        pytest.param(4711, 4712, False, id="somebody's"),
    ],
)
def test_owner(secret: Path, owner: int, euid: int, allowed: bool) -> None:
    os.chown(secret, owner, -1)
    host = smarthost(password_file=str(secret))
    if allowed:
        assert password(host, euid=euid) == SECRET
        return
    assert refusal(host, euid=euid) == (
        f"[smarthost] password_file: {secret}: owned by uid 4711: expected root or uid {euid}: "
        "chown it, or set secret_mode_check = false"
    )
    host.secret_mode_check = False
    assert password(host, euid=euid) == SECRET


@pytest.mark.parametrize(
    ("make", "why"),
    [
        pytest.param(lambda p: None, "No such file or directory", id="missing"),
        pytest.param(
            lambda p: p.mkdir(), "not a regular file: put the password into one", id="directory"
        ),
        pytest.param(os.mkfifo, "not a regular file: put the password into one", id="FIFO"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_not_a_file(tmp_path: Path, make: Callable[[Path], None], why: str, check: bool) -> None:
    path = tmp_path / "secret"
    make(path)
    if why.startswith("No"):
        why = f"cannot be opened: {why}: the user that runs the deliveries must be able to read it"
    assert (
        refusal(smarthost(password_file=str(path), secret_mode_check=check))
        == f"[smarthost] password_file: {path}: {why}"
    )


def test_the_directory_of_credentials_is_exempt(secret: Path) -> None:
    secret.chmod(0o444)
    environ = {b"CREDENTIALS_DIRECTORY": os.fsencode(secret.parent)}
    assert password(smarthost(password_file=str(secret)), environ) == SECRET
    assert password(smarthost(credential="secret"), environ) == SECRET


def test_run_secrets_is_exempt_and_a_mount_s_links_within_it(
    secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "_SECRETS_DIRECTORY", str(secret.parent))
    secret.chmod(0o444)
    link = secret.parent / "link"
    link.symlink_to("secret")
    assert password(smarthost(password_file=str(link))) == SECRET


@pytest.mark.parametrize("name", ["link", "../secret"])
def test_the_exemption_does_not_leave_the_directory(secret: Path, name: str) -> None:
    secret.chmod(0o444)
    directory = secret.parent / "credentials"
    directory.mkdir()
    (directory / "link").symlink_to(secret)
    environ = {b"CREDENTIALS_DIRECTORY": os.fsencode(directory)}
    path = f"{directory}/{name}"
    assert refusal(smarthost(password_file=path), environ) == (
        f"[smarthost] password_file: {path}: mode 0444 lets every user in: "
        "chmod o= it, or set secret_mode_check = false"
    )


def test_a_directory_of_a_longer_name_is_another(secret: Path) -> None:
    secret.chmod(0o444)
    environ = {b"CREDENTIALS_DIRECTORY": os.fsencode(secret.with_name("sec"))}
    assert "mode 0444" in refusal(smarthost(password_file=str(secret)), environ)


def test_an_unset_directory_exempts_nothing(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(secret.parent)
    secret.chmod(0o444)
    assert "mode 0444" in refusal(
        smarthost(password_file=str(secret)), {b"CREDENTIALS_DIRECTORY": b""}
    )


@pytest.mark.parametrize(
    ("name", "environ", "why"),
    [
        pytest.param(
            "smtp",
            {},
            "$CREDENTIALS_DIRECTORY is not set: the service needs LoadCredential=smtp:/path/to/secret",
            id="no directory",
        ),
        pytest.param(
            "../etc",
            {b"CREDENTIALS_DIRECTORY": b"/"},
            "expected the name of a credential, not a path",
            id="path",
        ),
        pytest.param(
            "..",
            {b"CREDENTIALS_DIRECTORY": b"/"},
            "expected the name of a credential, not a path",
            id="dots",
        ),
        pytest.param(
            "smtp",
            {b"CREDENTIALS_DIRECTORY": b"/nowhere"},
            "cannot be opened: No such file or directory: "
            "the user that runs the deliveries must be able to read it",
            id="missing",
        ),
    ],
)
def test_a_credential_that_is_not_there(name: str, environ: dict[bytes, bytes], why: str) -> None:
    assert refusal(smarthost(credential=name), environ) == f"[smarthost] credential: {name}: {why}"


def command(script: str) -> Smarthost:
    return smarthost(password_command=(sys.executable, "-ISc", "import os, sys, time\n" + script))


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param("print('s3cret')", b"s3cret", id="a line"),
        pytest.param("print('s3cret\\nsecond\\n')", b"s3cret", id="first of many"),
        pytest.param("sys.stdout.write('s3cret')", b"s3cret", id="no line end"),
        pytest.param("os.write(2, b'noise'); print('s3cret')", b"s3cret", id="stderr apart"),
        pytest.param("print(os.getcwd())", b"/", id="not in our directory"),
        pytest.param("print(os.getsid(0) == os.getpid())", b"True", id="no terminal"),
    ],
)
def test_command(script: str, expected: bytes) -> None:
    assert password(command(script)) == expected


def test_a_command_cannot_read_what_we_read() -> None:
    """Standard input may be the message itself (-odi)."""
    ours = os.dup(0)
    readable, writable = os.pipe()
    os.write(writable, b"message")
    os.close(writable)
    os.dup2(readable, 0)
    os.close(readable)
    try:
        assert password(command("print('s3cret' + sys.stdin.read())")) == b"s3cret"
        assert os.read(0, 100) == b"message"
    finally:
        os.dup2(ours, 0)
        os.close(ours)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        pytest.param("pass", "empty: expected the password", id="nothing"),
        pytest.param("print('\\ns3cret')", "empty: expected the password", id="empty first line"),
        pytest.param(
            "print('s3cret'); sys.exit(3)", "exit status 3: run it by hand to see why", id="failed"
        ),
        pytest.param(
            "print('s3cret', flush=True); os.kill(os.getpid(), 9)",
            "killed by signal 9: run it by hand to see why",
            id="killed",
        ),
        pytest.param(
            "while True: print('s3cret')",
            "prints more than 65536 octets: expected the password alone",
            id="endless",
        ),
    ],
)
def test_command_that_is_of_no_use(script: str, why: str) -> None:
    assert refusal(command(script)) == f"[smarthost] password_command: {sys.executable}: {why}"


def test_a_command_that_does_not_exist() -> None:
    assert refusal(smarthost(password_command=("/nowhere/pass", "s3cret"))) == (
        "[smarthost] password_command: /nowhere/pass: cannot be run: No such file or directory"
    )


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("os.close(1); time.sleep(60)", id="closes its output and stays"),
        pytest.param("print('s3cret', flush=True); time.sleep(60)", id="prints and stays"),
        pytest.param(
            "print('s3cret', flush=True)\nif os.fork() == 0: time.sleep(60)", id="leaves a child"
        ),
    ],
)
def test_the_deadline_ends_the_command_and_its_children(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that the command and its children share is free as soon as all of them are gone."""
    monkeypatch.setattr(secrets, "DEADLINE", 1.0)
    lock = tmp_path / "lock"
    held = f"import fcntl; lock = open({str(lock)!r}, 'w'); fcntl.flock(lock, fcntl.LOCK_EX)\n"
    assert refusal(command(held + script)) == (
        f"[smarthost] password_command: {sys.executable}: "
        "did not end within 1 s: it must print the password without asking"
    )
    assert stat.S_ISREG(lock.stat().st_mode)
    subprocess.run(["flock", "-w", "20", lock, "true"], check=True)
