"""The units at work: systemd starts them in their sandboxes, and mail goes from senders in sandboxes to a server."""

import importlib.util
from pathlib import Path

import pytest
from peers.process import wait_for

# Not "from packaging import": that is a package of everybody's.
_spec = importlib.util.spec_from_file_location("booted", Path(__file__).with_name("booted.py"))
_booted = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_booted)

SERVICES = ("minisend-accept.service", "minisend-deliver.service")
SECRET = "swordfish"


@pytest.fixture(scope="module")
def machine(in_local):
    with _booted.Booted(in_local) as booted:
        booted.write(
            "etc/minisend/config.toml",
            'mail_domain = "example.org"\n'
            f'[smarthost]\nhost = "127.0.0.1"\nport = {booted.sink.port}\ntls = "none"\n',
        )
        booted.write("etc/minisend/secrets.d/smarthost", SECRET)
        yield booted


def taken(machine, subject):
    """The message of this subject, once the server has it."""
    line = f"\r\nSubject: {subject}\r\n".encode()
    received = machine.sink.received
    [message] = wait_for(subject, lambda: [one for one in received if line in one.octets])
    return message


def mail(subject):
    return ["sh", "-c", f'printf "Subject: {subject}\\n\\nhello\\n" | sendmail bob@example.net']


def test_nothing_runs_until_there_is_something(machine):
    """And then both do; this one comes first."""
    assert machine.run("systemctl", "is-active", *SERVICES).split() == ["inactive", "inactive"]
    assert machine.start(*machine.unit(user="bin"), *mail("first")).returncode == 0
    assert taken(machine, "first").sender == b"bin@example.org"
    assert machine.run("systemctl", "is-active", *SERVICES).split() == ["active", "active"]
    assert machine.run("systemctl", "show", "-p", "NRestarts,Result", *SERVICES).split() == [
        *("Result=success", "NRestarts=0"),
        *("Result=success", "NRestarts=0"),
    ]


SANDBOX = (
    *("NoNewPrivileges=yes", "ProtectSystem=strict", "PrivateTmp=yes", "PrivateDevices=yes"),
    *("ProtectHome=yes", "CapabilityBoundingSet=", "SystemCallFilter=@system-service"),
    *("RestrictAddressFamilies=AF_UNIX", "MemoryDenyWriteExecute=yes", "ProtectProc=invisible"),
)


@pytest.mark.parametrize(
    ("name", "properties", "user"),
    [
        ("sandbox", SANDBOX, "bin"),
        ("dynamic", (*SANDBOX, "DynamicUser=yes"), ""),
        ("root", ("ProtectSystem=strict",), ""),
        # The socket is out of reach: it goes by the drop.
        ("drop", ("RestrictAddressFamilies=AF_INET", "NoNewPrivileges=yes"), "bin"),
    ],
)
def test_from_a_service(machine, name, properties, user):
    done = machine.start(*machine.unit(*properties, user=user), *mail(name))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    sender = taken(machine, name).sender
    if name == "dynamic":
        assert sender.startswith(b"run-u")
    else:
        assert sender == (b"root@example.org" if name == "root" else b"bin@example.org")


def test_neither_service_can_look_into_the_other(machine):
    """As its account, from where it is."""
    pids = {
        name: machine.run("systemctl", "show", "-p", "MainPID", "--value", name).strip()
        for name in SERVICES
    }
    accept, deliver = (pids[name] for name in SERVICES)
    uid, gid = (machine.run("id", option, "minisend").strip() for option in ("-u", "-g"))
    inside = [
        "nsenter",
        f"--target={accept}",
        "--mount",
        "--net",
        f"--setuid={uid}",
        f"--setgid={gid}",
    ]
    assert SECRET in machine.run(
        "setpriv",
        f"--reuid={uid}",
        f"--regid={gid}",
        "--clear-groups",
        "cat",
        "/etc/minisend/secrets.d/smarthost",
    )
    for path in (
        "/etc/minisend/secrets.d/smarthost",
        "/etc/minisend/secrets.d",
        "/var/lib/minisend",
    ):
        assert machine.run(*inside, "ls", path).endswith(": Permission denied\n")
    assert machine.run(*inside, "ls", f"/proc/{deliver}").endswith(": No such file or directory\n")
    assert (
        machine.run(*inside, "touch", "/etc/x", "/var/lib/x", "/tmp/../x").count("Read-only") == 3
    )
    assert machine.run(*inside, "touch", "/var/spool/minisend/state/x") == ""
    # The account outside of any sandbox, even.
    outside = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    for file in ("mem", "environ"):
        assert machine.run(*outside, "head", "-c", "1", f"/proc/{deliver}/{file}").endswith(
            ": Permission denied\n"
        )


def test_a_credential_is_for_the_delivery_alone(machine):
    """As the README has it: root's file, given to the one service."""
    deliver, unit = SERVICES[1], "etc/systemd/system/minisend-deliver.service.d/override.conf"
    machine.write("etc/minisend/smarthost.password", SECRET)
    machine.run("chmod", "600", "/etc/minisend/smarthost.password")
    machine.write(unit, "[Service]\nLoadCredential=smarthost:/etc/minisend/smarthost.password\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", *SERVICES)
    uid, gid = (machine.run("id", option, "minisend").strip() for option in ("-u", "-g"))
    seen = {}
    for name in SERVICES:
        pid = machine.run("systemctl", "show", "-p", "MainPID", "--value", name).strip()
        inside = ("nsenter", f"--target={pid}", "--mount", f"--setuid={uid}", f"--setgid={gid}")
        for path in (f"/run/credentials/{deliver}/smarthost", "/etc/minisend/smarthost.password"):
            seen[name, path[:4]] = machine.run(*inside, "cat", path).rpartition(": ")[2].strip()
    denied = "Permission denied"
    assert seen == {
        (SERVICES[0], "/run"): denied,
        (SERVICES[0], "/etc"): denied,
        (SERVICES[1], "/run"): SECRET,
        (SERVICES[1], "/etc"): denied,
    }
    machine.run("rm", f"/{unit}")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", *SERVICES)


def test_a_user_sees_what_is_being_delivered(machine):
    """From the locks of all processes, which the service has to be shown."""
    deliver = ("minisend-deliver.path", "minisend-deliver.timer", SERVICES[1])
    machine.run("systemctl", "stop", *deliver)
    assert machine.start(*machine.unit(user="bin"), *mail("waits")).returncode == 0
    [file] = machine.run("sh", "-c", "echo /var/spool/minisend/queue/new/*").split()
    queue_id = file.rpartition("/")[2]
    asked = ("setpriv", "--reuid=bin", "--clear-groups", "mailq")
    assert f"\n{queue_id} " in machine.run(*asked)
    assert f"\n{queue_id}*" in machine.run("flock", file, *asked)
    machine.run("systemctl", "start", *deliver)
    taken(machine, "waits")


def test_doctor_finds_nothing(machine):
    code, found = machine.start("minisend", "doctor"), []
    found = [line for line in code.stdout.splitlines() if line.split()[0] == "fail"]
    assert (code.returncode, code.stderr, found) == (0, "", [])
    assert "answers: minisend 1" in code.stdout
    assert "minisend run is there" in code.stdout


def test_after_a_wrong_configuration_all_starts_again(machine):
    """So often that systemd gives up; a right configuration and the timer are all it takes."""
    path = "etc/minisend/config.toml"
    right = machine.run("cat", f"/{path}")
    machine.run("systemctl", "stop", *SERVICES)
    machine.write(path, "nonsense = 1\n")

    def given_up():
        machine.run("sh", "-c", "touch $0; rm $0", "/var/spool/minisend/queue/new/x")
        return machine.run("systemctl", "is-active", "minisend-deliver.path") == "failed\n"

    wait_for("giving up", given_up)
    machine.write(path, right)
    machine.run("systemctl", "reset-failed", SERVICES[1])  # ten seconds, without waiting for them
    machine.run("systemctl", "start", SERVICES[1])  # what the timer does
    assert machine.run("systemctl", "is-active", "minisend-deliver.path", SERVICES[1]).split() == [
        "active",
        "active",
    ]
