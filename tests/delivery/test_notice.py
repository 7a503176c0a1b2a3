"""What only the administrator can mend is told by mail: once for each smarthost and cause, until it has let us in again."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from delivery.authorization_server import USER, Service
from delivery.program import Program
from delivery.scripted import KEYWORDS, ScriptedServer, replies
from delivery.spooled import Lines, put, read, to_smarthost
from peers.process import free_port

from minisend.config.files import SYSTEM_SPOOL
from minisend.config.sections import Config, Smarthost, Spool
from minisend.delivery import notice
from minisend.delivery.flush import Selection, flush
from minisend.delivery.policy import LOGIN, SETTINGS, TOKEN
from minisend.delivery.route import SMARTHOST, NextHop
from minisend.envelope import DELAYED, Envelope, Outcome, Recipient
from minisend.spool.store import Queue

AT = 1_700_000_000.25
HOP = NextHop(SMARTHOST, "work:[smtp.example.org]:587", smarthost="work")
REFUSED = Outcome(
    0,
    DELAYED,
    "4.7.8",
    "host smtp.example.org said no: 535 5.7.8 bad credentials (in reply to AUTH)",
    diagnostic="smtp; 535 5.7.8 bad credentials",
    command="AUTH",
    at=AT,
)
NO_FILE = Outcome(0, DELAYED, "4.3.5", "[smarthosts.work] password_file: /s: not there", at=AT)
AUTH_OFFERED = (*KEYWORDS, b"AUTH PLAIN XOAUTH2")


def config_for(spool: Path, admin: str = "admin@other.test", **values: object) -> Config:
    defaults: dict[str, object] = {"username": "ann", "password_file": "/s"}
    return Config(
        file="/etc/minisend/config.toml",
        spool=Spool(str(spool)),
        hostname="here.test",
        mail_domain="here.test",
        admin=admin,
        smarthosts={"work": Smarthost(("smtp.example.org",), **(defaults | values))},
    )


def told(
    config: Config, cause: str = LOGIN, outcome: Outcome = REFUSED, hop: NextHop = HOP
) -> Envelope | None:
    with Queue(config.spool.path, create=True) as queue:
        return notice.tell(queue, config, hop, f"{config.spool.path}/told", cause, outcome)


def queued(spool: Path) -> list[str]:
    return sorted(os.listdir(spool / "queue/new"))


def content(spool: str, queue_id: str) -> bytes:
    with Queue(spool) as queue:
        place = queue.find(queue_id, "new", "cur", "failed")
        assert place is not None
        entry = queue.read(place)
        assert entry is not None
        with entry:
            return entry.first_octets(100_000)


# -- the notice


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    notice.time.tzset()


def test_the_notice_whole(tmp_path: Path, utc: None) -> None:
    config = config_for(tmp_path)
    put(str(tmp_path), 1, b"bob@x.test")
    envelope = told(config)
    assert envelope == Envelope(
        "34fc9f0aea463e76", b"", [Recipient(b"admin@other.test")], arrived=AT, uid=-1
    )
    assert content(str(tmp_path), envelope.queue_id) == (
        b"From: Mail Delivery System <MAILER-DAEMON@here.test>\n"
        b"To: admin@other.test\n"
        b"Subject: Mail waits: the login is refused ([smarthosts.work])\n"
        b"Auto-Submitted: auto-generated\n"
        b"MIME-Version: 1.0\n"
        b"Content-Type: text/plain; charset=us-ascii\n"
        b"\n"
        b"This is the mail system at host here.test.\n"
        b"\n"
        b"The smarthost [smtp.example.org]:587 refuses the login of user ann. Mail for\n"
        b"it waits, and is tried again; what still waits when its time in the queue is\n"
        b"over goes back to its sender. You are told of this once, until the smarthost\n"
        b"lets this host in again.\n"
        b"\n"
        b"    The server said: 535 5.7.8 bad credentials\n"
        b"    Since: Tue, 14 Nov 2023 22:13:20 +0000\n"
        b"    Messages in the queue now: 1\n"
        b"\n"
        b"What you can do: check username and password_file under [smarthosts.work] in\n"
        b"/etc/minisend/config.toml. Then:\n"
        b"\n"
        b"    minisend flush --all    tries everything at once\n"
        b"    minisend queue          shows what waits, and why\n"
    )
    assert (tmp_path / "told").read_bytes() == (
        b"\nlogin 1700000000.250\n\nlogin 1700000000.250 told\n"
    )
    assert (tmp_path / "told").stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize(
    ("cause", "outcome", "values", "expected"),
    [
        pytest.param(
            LOGIN,
            REFUSED,
            {},
            "check username and password_file under [smarthosts.work] in /etc/minisend/config.toml.",
            id="password_file",
        ),
        pytest.param(
            LOGIN,
            REFUSED,
            {"password_file": "", "password_command": ("/bin/x", "s3cret")},
            "check username and password_command under [smarthosts.work] in /etc/minisend/config.toml.",
            id="password_command",
        ),
        pytest.param(
            LOGIN,
            REFUSED,
            {"password_file": "", "auth": "external"},
            "check username and tls_cert_file under [smarthosts.work] in /etc/minisend/config.toml.",
            id="certificate",
        ),
        pytest.param(
            SETTINGS,
            NO_FILE,
            {},
            "mend what the reason names, under [smarthosts.work] in /etc/minisend/config.toml.",
            id="settings",
        ),
        pytest.param(
            TOKEN,
            NO_FILE,
            {"password_file": "", "oauth2_provider": "google", "oauth2_client_id": "c"},
            "log in again; if that does not help, check oauth2_client_id under [smarthosts.work] in /etc/minisend/config.toml.",
            id="refresh token",
        ),
        pytest.param(
            TOKEN,
            NO_FILE,
            {
                "password_file": "",
                "oauth2_provider": "google",
                "oauth2_grant": "service_account",
                "oauth2_service_account_file": "/k",
            },
            "check oauth2_service_account_file under [smarthosts.work] in /etc/minisend/config.toml.",
            id="service account",
        ),
    ],
)
def test_the_remedy(
    tmp_path: Path, cause: str, outcome: Outcome, values: dict[str, object], expected: str
) -> None:
    envelope = told(config_for(tmp_path, **values), cause, outcome)
    assert envelope is not None
    text = content(str(tmp_path), envelope.queue_id).decode()
    assert f"What you can do: {expected} Then:" in " ".join(text.split())
    assert "s3cret" not in text
    assert ("minisend login work" in text) == ("log in again" in expected)


# -- once


def test_once_for_each_smarthost_and_cause(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    first = told(config)
    assert first is not None
    assert told(config) is None
    second = told(config, SETTINGS, NO_FILE)
    assert second is not None and second.queue_id != first.queue_id
    assert (told(config, SETTINGS, NO_FILE), told(config)) == (None, None)
    assert queued(tmp_path) == sorted([first.queue_id, second.queue_id])
    # It has let us in: ``Destinations.forget_told``.
    (tmp_path / "told").unlink()
    refused_later = Outcome(0, DELAYED, "4.7.8", "no", diagnostic="smtp; 535 no", at=AT + 60)
    third = told(config, LOGIN, refused_later)
    assert third is not None
    assert len(queued(tmp_path)) == 3


@pytest.mark.parametrize("at", ["first line", "enqueue", "last line"])
def test_a_crash_at_any_point_tells_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    config = config_for(tmp_path)
    steps: list[str] = []

    def crash(*_: object) -> None:
        raise OSError(5, "planted")

    def note(fd: int, path: str, line: str) -> None:
        steps.append(line)
        if len(steps) == {"first line": 1, "last line": 2}.get(at):
            crash()
        real(fd, path, line)

    real = notice._note
    with monkeypatch.context() as patched:
        patched.setattr(notice, "_note", note)
        if at == "enqueue":
            patched.setattr(notice, "enqueue", crash)
        with pytest.raises(OSError, match="planted"):
            told(config)
    if at == "enqueue":
        (tmp_path / "queue/tmp/34fc9f0aea463e76").write_bytes(b"half of it")
    later = Outcome(0, DELAYED, "4.7.8", "no", diagnostic="smtp; 535 no", at=AT + 60)
    envelope = told(config, LOGIN, REFUSED if at == "first line" else later)
    assert envelope is not None
    assert queued(tmp_path) == [envelope.queue_id] == ["34fc9f0aea463e76"]
    assert told(config) is None
    assert os.listdir(tmp_path / "queue/tmp") == []


@pytest.mark.parametrize(
    ("octets", "state"),
    [
        (b"", (None, False)),
        (b"\nlogin 17.000\n", (17.0, False)),
        (b"\nlogin 17.000\n\nlogin 17.000 told\n", (17.0, True)),
        (b"\nlogin 17.000\n\nlogin 17.000 to", (17.0, False)),
        (b"\nlogin 17.000\n\nlogin 17.0\nlogin 17.000 told\n", (17.0, True)),
        (b"\nlogin 1x\n", (None, False)),
        (b"\ntoken 17.000\n\ntoken 17.000 told\n", (None, False)),
        (b"\xff\0\n\nlogin\n\nlogin 1 2 3 4\n", (None, False)),
    ],
    ids=str,
)
def test_a_state_that_a_crash_left(octets: bytes, state: tuple[float | None, bool]) -> None:
    assert notice._state(octets, LOGIN) == state


def test_of_several_at_a_time_one_tells(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    with Queue(str(tmp_path), create=True) as queue:
        found: list[Envelope | None] = []
        threads = [
            threading.Thread(
                target=lambda: found.append(
                    notice.tell(queue, config, HOP, f"{tmp_path}/told", LOGIN, REFUSED)
                )
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 8
    assert [each.queue_id for each in found if each is not None] == queued(tmp_path)
    assert len(queued(tmp_path)) == 1


# -- who


def test_who_is_told(tmp_path: Path) -> None:
    assert notice.reader(config_for(tmp_path, "root"), 1) == b"root@here.test"
    ours = config_for(tmp_path, "")
    assert notice.reader(ours, 1) == b"daemon@here.test"
    assert notice.reader(ours, 0) is None
    assert notice.reader(ours, 4_000_000_000) is None
    ours.spool.path = SYSTEM_SPOOL
    assert notice.reader(ours, 1) is None


def test_nobody_to_tell_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notice, "reader", lambda config, owner: None)
    assert told(config_for(tmp_path)) is None
    assert (queued(tmp_path), (tmp_path / "told").exists()) == ([], False)


# -- a flush


def settings(server: ScriptedServer, more: str, *, elsewhere: ScriptedServer | None = None) -> str:
    text = (
        f'[smarthost]\nhost = "127.0.0.1"\nport = {server.port}\ntls = "none"\nusername = "{USER}"\n'
        f"{more}\n"
    )
    if elsewhere is not None:
        text += f'[[route]]\nrecipient = "other.test"\nvia = "[127.0.0.1]:{elsewhere.port}"\n'
    return text


def secret(directory: Path) -> Path:
    path = directory / "secret"
    path.write_text("hush\n")
    path.chmod(0o600)
    return path


def program_for(
    directory: Path, server: ScriptedServer, *, elsewhere: ScriptedServer | None = None
) -> Program:
    """With a password, and an admin who is told by way of ``elsewhere`` if that is given."""
    password = f'password_file = "{secret(directory)}"'
    return Program(
        directory, settings(server, password, elsewhere=elsewhere), admin="admin@other.test"
    )


def subjects(server: ScriptedServer) -> list[bytes]:
    return [
        line.removeprefix(b"Subject: ").rstrip()
        for message in server.messages
        for line in message.octets.splitlines()
        if line.startswith(b"Subject: ")
    ]


def test_a_refused_login_is_told_at_once_by_another_way(tmp_path: Path) -> None:
    """Three processes of the program, one after the other, and a fourth episode after it had worked."""
    refusals: list[bytes] = [b"535 5.7.8 bad credentials"] * 3
    refused = replies({b"AUTH": refusals})
    subject = b"Mail waits: the login is refused ([smarthost])"
    with (
        ScriptedServer(refused, keywords=AUTH_OFFERED) as server,
        ScriptedServer() as elsewhere,
    ):
        program = program_for(tmp_path, server, elsewhere=elsewhere)
        for name in ("a", "b", "c"):
            program.sendmail(f"{name}@x.test", stdin=b"Subject: s\n\n")
        assert program.flush()[0] == 75
        assert subjects(elsewhere) == [subject]
        (message,) = elsewhere.messages
        assert (message.sender, message.recipients) == (b"", (b"admin@other.test",))
        octets = b" ".join(message.octets.split())
        assert b"The server said: 535 5.7.8 bad credentials" in octets
        assert b"Messages in the queue now: 3" in octets
        # One was attempted, the others put off; the reason is where it was.
        assert [len(refusals), len(server.messages)] == [2, 0]
        for left in (1, 0):
            assert program.flush("--all")[0] == 75
            assert (len(refusals), subjects(elsewhere)) == (left, [subject])
        assert program.flush("--all") == (0, "3 delivered, 0 waiting, 0 failed")
        assert os.listdir(tmp_path / "spool/state/destinations") == []
        refusals.append(b"535 5.7.8 bad credentials")
        program.sendmail("d@x.test", stdin=b"Subject: s\n\n")
        assert program.flush()[0] == 75
        assert subjects(elsewhere) == [subject] * 2
        assert program.flush("--all") == (0, "1 delivered, 0 waiting, 0 failed")


def test_a_notice_for_the_same_smarthost_waits_and_is_no_cause_for_another(tmp_path: Path) -> None:
    refusals: list[bytes] = [b"535 5.7.8 bad credentials"] * 3
    with ScriptedServer(replies({b"AUTH": refusals}), keywords=AUTH_OFFERED) as server:
        program = program_for(tmp_path, server)
        program.sendmail("a@x.test", stdin=b"Subject: s\n\n")
        assert program.flush() == (75, "0 delivered, 2 waiting, 0 failed")
        assert program.flush("--all") == (75, "0 delivered, 2 waiting, 0 failed")
        assert program.flush("--all") == (75, "0 delivered, 2 waiting, 0 failed")
        assert program.flush("--all") == (0, "2 delivered, 0 waiting, 0 failed")
        assert sorted(subjects(server)) == [
            b"Mail waits: the login is refused ([smarthost])",
            b"s",
        ]


def test_of_a_later_host_that_refuses_the_login_it_is_told_too(tmp_path: Path) -> None:
    """Once, although the first one lets us in each time."""
    port = free_port("127.0.0.1", "127.0.0.2")
    put_off = {b"RCPT": [b"451 4.7.1 later"] * 3}
    refused = {b"AUTH": [b"535 5.7.8 bad credentials"] * 2}
    subject = b"Mail waits: the login is refused ([smarthost])"
    with (
        ScriptedServer(replies(put_off), port=port, keywords=AUTH_OFFERED) as first,
        ScriptedServer(
            replies(refused), address="127.0.0.2", port=port, keywords=AUTH_OFFERED
        ) as second,
        ScriptedServer() as elsewhere,
    ):
        text = settings(first, f'password_file = "{secret(tmp_path)}"', elsewhere=elsewhere)
        program = Program(
            tmp_path,
            text.replace('"127.0.0.1"', '["127.0.0.1", "127.0.0.2"]', 1),
            admin="admin@other.test",
        )
        program.sendmail("a@x.test", stdin=b"Subject: s\n\n")
        for _ in range(2):
            assert program.flush("--all")[0] == 75
            assert subjects(elsewhere) == [subject]
        assert program.flush("--all") == (0, "1 delivered, 0 waiting, 0 failed")
        assert [len(each) for each in (first.messages, second.messages)] == [0, 1]
        # What was told is forgotten: it has let us in.
        assert os.listdir(tmp_path / "spool/state/destinations") == []


@pytest.mark.parametrize(
    "reply",
    [b"454 4.7.0 temporary authentication failure", b"421 4.3.2 closing", b""],
    ids=["454", "421", "hangs up"],
)
def test_what_may_pass_is_told_to_nobody(tmp_path: Path, reply: bytes) -> None:
    answer = replies({b"AUTH": [reply]})
    with ScriptedServer(answer, keywords=AUTH_OFFERED) as server:
        program = program_for(tmp_path, server)
        program.sendmail("a@x.test", stdin=b"Subject: s\n\n")
        assert program.flush() == (75, "0 delivered, 1 waiting, 0 failed")
        assert program.flush("--all") == (0, "1 delivered, 0 waiting, 0 failed")
        assert subjects(server) == [b"s"]


def test_a_secret_that_others_can_read_and_then_a_wrong_one(tmp_path: Path) -> None:
    refused = replies({b"AUTH": [b"535 5.7.8 bad credentials"]})
    with (
        ScriptedServer(refused, keywords=AUTH_OFFERED) as server,
        ScriptedServer() as elsewhere,
    ):
        program = program_for(tmp_path, server, elsewhere=elsewhere)
        path = tmp_path / "secret"
        path.chmod(0o644)
        program.sendmail("a@x.test", stdin=b"Subject: s\n\n")
        for _ in range(2):
            assert program.flush("--all")[0] == 75
        path.chmod(0o600)
        assert program.flush("--all")[0] == 75
        assert subjects(elsewhere) == [
            b"Mail waits: a setting does not work ([smarthost])",
            b"Mail waits: the login is refused ([smarthost])",
        ]
        assert b"mode 0644 lets every user in" in b" ".join(elsewhere.messages[0].octets.split())


def test_oauth2_that_ends_and_oauth2_that_is_not_reached(tmp_path: Path) -> None:
    with (
        Service(tmp_path) as service,
        ScriptedServer(keywords=AUTH_OFFERED) as server,
        ScriptedServer() as elsewhere,
    ):

        def more(base: str) -> str:
            return (
                f'oauth2_token_endpoint = "{base}/token"\noauth2_client_id = "minisend"\n'
                f'oauth2_ca_file = "{service.ca_file}"\n'
                f'oauth2_token_file = "{tmp_path}/state/t.json"\n'
                'oauth2_grant = "client_credentials"\n'
                f'oauth2_client_secret_file = "{secret(tmp_path)}"'
            )

        with ScriptedServer() as gone:
            nobody = f"http://127.0.0.1:{gone.port}"
        program = Program(
            tmp_path,
            settings(server, more(nobody), elsewhere=elsewhere),
            admin="admin@other.test",
        )
        program.sendmail("a@x.test", stdin=b"Subject: s\n\n")
        assert program.flush() == (75, "0 delivered, 1 waiting, 0 failed")
        assert elsewhere.messages == []
        program.configure(settings(server, more(service.base), elsewhere=elsewhere))
        for _ in range(2):
            assert program.flush("--all")[0] == 75
        assert subjects(elsewhere) == [b"Mail waits: there is no access token ([smarthost])"]
        assert b"hush" not in elsewhere.messages[0].octets
        assert {place for place, _ in service.requests} == {"/token"}


def test_a_notice_that_nobody_takes_bounces_to_nobody(tmp_path: Path) -> None:
    answer = replies(
        {
            b"AUTH": [b"535 5.7.8 bad credentials"],
            b"RCPT TO:<admin@other.test>": b"550 5.1.1 no such user",
        }
    )
    with ScriptedServer(answer, keywords=AUTH_OFFERED) as server:
        program = program_for(tmp_path, server)
        program.sendmail("a@x.test", stdin=b"Subject: s\n\n")
        assert program.flush()[0] == 75
        assert program.flush("--all") == (69, "1 delivered, 0 waiting, 1 failed")
        assert subjects(server) == [b"s"]
        assert [(m["state"], m["sender"]) for m in program.queue()] == [("failed", "MAILER-DAEMON")]


def test_a_disk_that_takes_no_notice_costs_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise OSError(28, "No space left on device")

    log = Lines()
    refused = replies({b"AUTH": [b"535 5.7.8 bad credentials"] * 2})
    with ScriptedServer(refused, keywords=AUTH_OFFERED) as server:
        config = to_smarthost(str(tmp_path), server.port)
        config.admin = "admin@other.test"
        config.smarthost.username = "ann"  # type: ignore[union-attr]
        config.smarthost.password_file = str(secret(tmp_path))  # type: ignore[union-attr]
        name = put(str(tmp_path), 1, b"a@x.test", arrived=time.time())
        with monkeypatch.context() as patched:
            patched.setattr(notice, "enqueue", crash)
            assert flush(config, Selection(), log=log).deferred == 1
        assert [t for level, t in log.lines if level == "error"] == [
            f'-: event="no notice" relay=[127.0.0.1]:{server.port} '
            'reason="queue: No space left on device"'
        ]
        assert read(str(tmp_path), name).attempts == 1
        assert flush(config, Selection(everything=True), log=log).deferred == 2
        assert len(log.about("event=notice", "report=")) == 1
        assert flush(config, Selection(everything=True), log=log).delivered == 2


def test_nothing_is_loaded_while_logins_work(tmp_path: Path) -> None:
    with ScriptedServer(keywords=AUTH_OFFERED) as server:
        program = Program(tmp_path, settings(server, f'password_file = "{secret(tmp_path)}"'))
        program.sendmail("a@x.test", stdin=b"Subject: s\n\n")
        code = (
            "import sys; from minisend.admin.command import main;"
            f"code = main(['flush'], {str(program.config)!r});"
            "print(code, 'minisend.delivery.lanes' in sys.modules, 'minisend.delivery.notice' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.splitlines()[-1] == "0 True False"
