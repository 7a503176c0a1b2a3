"""minisend login, against a real OAuth2 service: what it shows, what it keeps, how it ends."""

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from delivery.authorization_server import USER, Registered, Service

import minisend
from minisend.admin import login as module
from minisend.admin.command import main
from minisend.config.sections import Smarthost
from minisend.delivery.oauth.access import access_token
from minisend.delivery.oauth.failure import OAuthError
from minisend.errors import ConfigError, UsageError

CHECKOUT = Path(minisend.__file__).parents[1]
EUID = os.geteuid()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as running:
        yield running


def configure(directory: Path, service: Service, **changed: str) -> Path:
    """A configuration file; a key with an empty value is left out."""
    keys = {
        "host": "smtp.example.org",
        "username": USER,
        "oauth2_client_id": "minisend",
        "oauth2_token_endpoint": service.base + "/token",
        "oauth2_device_endpoint": service.base + "/device",
        "oauth2_auth_endpoint": service.base + "/authorize",
        "oauth2_ca_file": str(service.ca_file),
        "oauth2_token_file": str(directory / "state/smarthost.json"),
        **changed,
    }
    text = "".join(f'{key} = "{value}"\n' for key, value in keys.items() if value)
    path = directory / "config.toml"
    path.write_text(f'[spool]\npath = "{directory}/spool"\n[smarthost]\n{text}')
    return path


@pytest.fixture
def decide(service: Service, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], list[float]]:
    """Lets a person enter the code during the first wait; gives the waits."""

    def arrange(allow: bool) -> list[float]:
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            (asked,) = service.devices.values()
            service.decisions[asked["user_code"]] = (USER, allow)

        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep))
        return waits

    return arrange


def test_on_another_device(
    service: Service,
    tmp_path: Path,
    decide: Callable[[bool], list[float]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    waits = decide(True)
    path = configure(tmp_path, service)
    assert main(["login"], str(path)) == 0
    assert waits == [5]
    (asked,) = service.devices.values()
    token_file = tmp_path / "state/smarthost.json"
    assert capfd.readouterr() == (
        f"Open this page on any device, and log in as {USER}:\n\n"
        f"    {service.base}/activate\n\nand enter there the code\n\n    {asked['user_code']}\n\n"
        f"Waiting for 30 min ...\nLogged in as {USER}; tokens kept in {token_file}\n",
        "",
    )
    assert token_file.stat().st_mode & 0o7777 == 0o600
    assert token_file.parent.stat().st_mode & 0o7777 == 0o700
    kept = json.loads(token_file.read_text())
    assert [kept["access_token"]] == service.granted
    assert [kept["refresh_token"]] == list(service.refresh_tokens)


def test_denied(service: Service, tmp_path: Path, decide: Callable[[bool], list[float]]) -> None:
    decide(False)
    path = configure(tmp_path, service)
    with pytest.raises(OAuthError, match=r"access_denied: .*: the user did not allow it$"):
        main(["login", "smarthost", "--device"], str(path))
    assert os.listdir(tmp_path / "state") == ["smarthost.json.lock"]


def run(
    path: Path, *arguments: str, program: tuple[str, ...] = (sys.executable, "-m", "minisend")
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*program, "-C", str(path), "login", *arguments],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def visit(process: "subprocess.Popen[str]", service: Service) -> str:
    """Open the page that the program shows, as a browser does; gives what the user reads at the end."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("    https://"):
            context = ssl.create_default_context(cafile=str(service.ca_file))
            with urllib.request.urlopen(line.strip(), context=context, timeout=20) as page:
                text: str = page.read().decode()
                return text
    raise AssertionError(process.communicate())


@pytest.mark.parametrize("arguments", [("--browser",), ()], ids=["asked for", "nothing else there"])
def test_with_a_browser(service: Service, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    device = "" if not arguments else service.base + "/device"
    path = configure(tmp_path, service, oauth2_device_endpoint=device)
    with run(path, *arguments) as process:
        assert visit(process, service).startswith("Done.")
        # Not communicate(): what has been read ahead would be lost.
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = process.stdout.read(), process.stderr.read()
    [forward] = [line for line in out.splitlines() if "ssh" in line]
    assert re.fullmatch(rf"    ssh -L (\d+):127\.0\.0\.1:\1 {os.uname().nodename}", forward)
    token_file = tmp_path / "state/smarthost.json"
    assert (process.returncode, out.splitlines()[-1], err) == (
        0,
        f"Logged in as {USER}; tokens kept in {token_file}",
        "",
    )
    # What the delivering side then has.
    host = Smarthost(
        ("smtp.example.org",),
        username=USER,
        oauth2_client_id="minisend",
        oauth2_token_endpoint=service.base + "/token",
        oauth2_token_file=str(token_file),
    )
    assert [access_token(host, {}, EUID).decode()] == service.granted


@pytest.mark.skipif(EUID != 0, reason="needs root, which becomes another user")
@pytest.mark.skipif(not os.path.exists("/usr/bin/python3"), reason="needs the system's Python")
def test_root_becomes_the_user_that_delivers() -> None:
    directory = Path(tempfile.mkdtemp())
    try:
        directory.chmod(0o755)
        state = directory / "state"
        state.mkdir()
        with Service(directory) as service:
            path = configure(directory, service, oauth2_token_file="")
            os.chown(state, 65534, 65534)
            code = (
                "import sys; from minisend.delivery.oauth import client;"
                f"client.SYSTEM_STATE = {str(state)!r}; from minisend.__main__ import main;"
                "sys.exit(main())"
            )
            # An interpreter that every user can read.
            with run(path, "--browser", program=("/usr/bin/python3", "-c", code)) as process:
                visit(process, service)
                out, err = process.communicate()
        token_file = state / "oauth/smarthost.json"
        assert (process.returncode, out.splitlines()[-1], err) == (
            0,
            f"Logged in as {USER}; tokens kept in {token_file}",
            "",
        )
        assert {(p.stat().st_uid, p.stat().st_gid) for p in (token_file, token_file.parent)} == {
            (65534, 65534)
        }
    finally:
        shutil.rmtree(directory)


def test_no_refresh_token(
    service: Service,
    tmp_path: Path,
    decide: Callable[[bool], list[float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Registered, "check_grant_type", lambda self, kind: kind != "refresh_token")
    decide(True)
    path = configure(tmp_path, service)
    with pytest.raises(OAuthError) as caught:
        main(["login"], str(path))
    assert str(caught.value) == (
        "[smarthost] oauth2_scope: the service gave no refresh token, so this login would soon end: "
        "many need offline_access in the scope"
    )
    assert os.listdir(tmp_path / "state") == ["smarthost.json.lock"]


def test_a_server_needs_no_login(
    service: Service, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    service.clients["robot"] = Registered("robot", secret="hush")
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    secret.chmod(0o600)
    path = configure(
        tmp_path,
        service,
        oauth2_grant="client_credentials",
        oauth2_client_id="robot",
        oauth2_client_secret_file=str(secret),
    )
    assert main(["login"], str(path)) == 0
    assert capfd.readouterr() == (f"The service gives tokens for {USER}; no login is needed.\n", "")
    with pytest.raises(UsageError) as caught:
        main(["login", "--device"], str(path))
    assert (
        str(caught.value) == "login: --device: oauth2_grant is client_credentials: there is no page"
    )


def test_a_smarthost_by_name(
    service: Service,
    tmp_path: Path,
    decide: Callable[[bool], list[float]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    decide(True)
    path = configure(tmp_path, service)
    text = path.read_text()
    path.write_text(text.replace("[smarthost]", "[smarthosts.shop]"))
    with pytest.raises(ConfigError, match=r"^\[smarthost\]: expected this table for a login"):
        main(["login"], str(path))
    assert main(["login", "shop"], str(path)) == 0
    token_file = tmp_path / "state/smarthost.json"
    assert capfd.readouterr().out.endswith(f"Logged in as {USER}; tokens kept in {token_file}\n")
    path.write_text(f'[spool]\npath = "{tmp_path}/spool"\n[smarthosts.shop]\nhost = "a.example"\n')
    with pytest.raises(ConfigError, match=r"^\[smarthosts.shop\] oauth2_provider: expected this"):
        main(["login", "shop"], str(path))


def test_nothing_to_log_in_to(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'[spool]\npath = "{tmp_path}/spool"\n')
    with pytest.raises(ConfigError, match=r"^\[smarthost\]: expected this table for a login"):
        main(["login"], str(path))
    with pytest.raises(
        UsageError, match=r"^login: x: no such smarthost in /.*\.toml \(there: none\)$"
    ):
        main(["login", "x"], str(path))
    path.write_text(f'[spool]\npath = "{tmp_path}/spool"\n[smarthost]\nhost = "a.example"\n')
    with pytest.raises(ConfigError) as caught:
        main(["login"], str(path))
    assert str(caught.value) == (
        "[smarthost] oauth2_provider: expected this key, or oauth2_token_endpoint, for a login (got nothing)"
    )
    with pytest.raises(UsageError, match="not allowed with argument"):
        main(["login", "--device", "--browser"], str(path))


def test_a_place_where_nothing_can_be_kept(service: Service, tmp_path: Path) -> None:
    """Said before anybody goes through a login for nothing."""
    (tmp_path / "file").write_text("")
    path = configure(tmp_path, service, oauth2_token_file=str(tmp_path / "file/x.json"))
    with pytest.raises(OAuthError) as caught:
        main(["login"], str(path))
    assert str(caught.value) == (
        f"{tmp_path}/file/x.json: cannot keep tokens there: Not a directory"
    )
    assert service.requests == []


def test_as_a_process(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'[spool]\npath = "{tmp_path}/spool"\n')
    with run(path) as process:
        out, err = process.communicate()
    assert (process.returncode, out, err) == (
        78,
        "",
        "minisend: [smarthost]: expected this table for a login (got nothing)\n",
    )
