"""Schedulers and tools of the system, run for real: jobs of an account, watched logs, a wrong password."""

import os
from collections.abc import Mapping

import pytest
from peers.process import wait_for

from callers.machine import NO_SPOOL, Machine, body, values

# What a job prints: a lone dot, octets above 127, no end of the last line.
JOB = r"printf '.\ngr\303\274n'"
PRINTED = ".\ngrün".encode()


def crontab(machine: Machine, to: str, environment: Mapping[str, str] | None = None) -> None:
    """Give alice a job that runs once, when the daemon starts."""
    lines = [f"{name}={value}" for name, value in (environment or {}).items()]
    text = "\n".join([*lines, f"MAILTO={to},second-{to}", f"@reboot {JOB}", ""])
    # One that has run such jobs says so, to run them once in the life of a system; its last job may hold its lock.
    for path in ("run/crond.reboot", "run/cron.reboot", "run/crond.pid"):
        (machine.root / path).unlink(missing_ok=True)
    (machine.root / "var/spool/cron/crontabs").chmod(0o755)
    machine.write("var/spool/cron/crontabs/alice", text, 0o600, user="alice")


def check_report(machine: Machine, to: str, senders: list[str]) -> None:
    """The report of the job has arrived, whole, for both recipients of MAILTO."""
    mail = machine.mail_for(to)
    assert mail.sender == b"alice@here.test"
    assert mail.recipients == (to.encode(), f"second-{to}".encode())
    assert body(mail).rstrip(b"\n") == PRINTED
    assert values(mail, "From") == senders
    assert values(mail, "To") == [f"{to},second-{to}"]
    assert [len(values(mail, name)) for name in ("Date", "Message-ID")] == [1, 1]


def test_cron(machine: Machine) -> None:
    """Debian's: it starts sendmail as the owner of the job, with crond's environment; it logs an exit code."""
    crontab(machine, "cron@mail.test")
    with machine.daemon("cron", "-f"):
        check_report(machine, "cron@mail.test", ["root@here.test (Cron Daemon)"])

    crontab(machine, "refused-cron@mail.test")
    with machine.daemon("cron", "-f", environment=NO_SPOOL):
        wait_for("a line of cron's", lambda: "got status 0x004b from MTA" in machine.log())


def test_cronie(cronie_machine: Machine) -> None:
    """Red Hat's, also in Debian: recipients from the header, the job's environment, -f."""
    crontab(cronie_machine, "cronie@mail.test")
    with cronie_machine.daemon("crond", "-n"):
        check_report(cronie_machine, "cronie@mail.test", ['"(Cron Daemon)" <alice@here.test>'])

    crontab(cronie_machine, "refused-cronie@mail.test", NO_SPOOL)
    with cronie_machine.daemon("crond", "-n"):
        wait_for("a line of crond's", lambda: "got status 0x004b" in cronie_machine.log())


def test_at(machine: Machine) -> None:
    """A job of alice's for now; atd becomes sendmail itself, so nobody looks at the exit code."""
    with machine.daemon("atd", "-f"):
        wait_for("atd", lambda: (machine.root / "run/atd.pid").exists())
        queued = machine.run("at", "-m", "now", stdin=JOB.encode())
        assert queued.returncode == 0, queued.stdout
        mail = machine.mail_for("alice@here.test")
    assert (mail.sender, mail.recipients) == (b"alice@here.test", (b"alice@here.test",))
    assert body(mail).rstrip(b"\n") == PRINTED
    assert values(mail, "To") == ["alice@here.test"]
    assert values(mail, "From") == ["Alice Example <alice@here.test>"]
    assert values(mail, "Subject")[0].startswith("Output from your job")
    assert [len(values(mail, name)) for name in ("Date", "Message-ID")] == [1, 1]


def test_sudo(machine: Machine) -> None:
    """A wrong password is told to the administrator, with a sendmail that runs as the one who gave it."""
    machine.write(
        "etc/sudoers",
        'Defaults mailto="sudo@mail.test", mail_badpass, passwd_tries=1, !lecture\n'
        "alice ALL=(ALL) ALL\n",
        0o440,
    )
    # Without the seconds that a wrong password costs.
    machine.write(
        "etc/pam.d/sudo",
        "auth required pam_unix.so nodelay\naccount required pam_permit.so\nsession required pam_permit.so\n",
    )
    refused = machine.run("sudo", "-S", "-p", "", "true", stdin=b"wrong\n")
    assert refused.returncode == 1
    assert refused.stdout.strip() == b"sudo: 1 incorrect password attempt"
    mail = machine.mail_for("sudo@mail.test")
    assert (mail.sender, mail.recipients) == (b"alice@here.test", (b"sudo@mail.test",))
    assert b"alice : 1 incorrect password attempt ;" in body(mail)
    assert [len(values(mail, name)) for name in ("From", "Date", "Message-ID")] == [1, 1, 1]
    assert values(mail, "From") == ["alice@here.test"]

    # It does not matter to sudo whether the mail could be sent.
    again = machine.run(*("sudo", "-S", "-p", "", "true"), stdin=b"wrong\n", environment=NO_SPOOL)
    assert (again.returncode, again.stdout) == (refused.returncode, refused.stdout)


def test_logcheck(machine: Machine) -> None:
    """As its own account, which has no login: what a log file holds, by way of mime-construct."""
    line = "2026-11-23T12:00:00.000000+00:00 here kernel: on fire"
    machine.write("var/log/watched", f"{line}\n")

    def logcheck(to: str, environment: Mapping[str, str]) -> tuple[int, bytes]:
        done = machine.run(
            *("logcheck", "-t", "-m", to, "-l", "/var/log/watched"),
            user="logcheck",
            environment={"HOME": "/var/lib/logcheck", **environment},
        )
        return done.returncode, done.stdout

    assert logcheck("logcheck@mail.test", {}) == (0, b"")
    mail = machine.mail_for("logcheck@mail.test")
    assert (mail.sender, mail.recipients) == (b"logcheck@here.test", (b"logcheck@mail.test",))
    assert line.encode() in body(mail)
    assert values(mail, "From") == ["logcheck system account <logcheck@here.test>"]
    assert values(mail, "To") == ["logcheck@mail.test"]
    assert [len(values(mail, name)) for name in ("Date", "Message-ID")] == [1, 1]

    code, said = logcheck("refused-logcheck@mail.test", NO_SPOOL)
    assert code != 0
    assert b"sendmail: /etc/nowhere/queue: Permission denied" in said


@pytest.mark.parametrize("umask", ["0177", "0777"])
def test_a_umask_that_takes_the_owners_rights(machine: Machine, umask: str) -> None:
    """logwatch's: a spool made under it must still be one that its owner, and no other, can enter."""
    to = f"umask-{umask}@mail.test"
    state = f"/home/alice/state-{umask}"
    done = machine.run(
        *("sh", "-c", f"umask {umask}; exec sendmail {to}"),
        stdin=b"text\n",
        environment={"XDG_STATE_HOME": state},
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert body(machine.mail_for(to)) == b"text\n"
    modes = machine.run("find", state, "-printf", "%m\n").stdout.split()
    assert set(modes) == {b"700", b"600"}


def test_the_machine_is_apart(machine: Machine) -> None:
    """Nothing of what is done there reaches this one, and no network but loopback."""
    machine.write("etc/of-the-machine", "")
    assert not os.path.exists("/etc/of-the-machine")
    links = machine.run("ip", "-o", "link", user="root").stdout.splitlines()
    assert [link.split()[1] for link in links] == [b"lo:"]


@pytest.mark.parametrize("name", ["mailq", "/usr/lib/sendmail -bp"])
def test_an_empty_queue_is_listed(machine: Machine, name: str) -> None:
    """By the names that other programs know."""
    wait_for(
        "the queue to be empty",
        lambda: machine.run(*name.split()).stdout.endswith(b"Mail queue is empty\n"),
    )
