"""Mail programs of people, run for real: the message arrives, and the program says so or says why not."""

from collections.abc import Callable

import pytest

from callers.machine import NO_SPOOL, Machine, body, values

TEXT = "Grüße\n.\n..two dots\nend\n".encode()
DRAFT = "From: Alice <alice@here.test>\nTo: {to}\nBcc: hidden-{to}\nSubject: nmh\n\n{text}"
PATCH = b"""\
From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001
From: Alice <alice@here.test>
Date: Mon, 23 Nov 2026 12:00:00 +0000
Subject: [PATCH] x
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

"""

# What a program makes of its sendmail's 75: its own exit code, and a part of what it says.
Failure = tuple[int, bytes]


def words(*arguments: str) -> Callable[[str], list[str]]:
    """A command line in which TO is the recipient."""
    return lambda to: [argument.replace("TO", to) for argument in arguments]


MAILERS = [
    pytest.param(
        words("bsd-mailx", "-s", "bsd-mailx", "-b", "hidden-TO", "TO"),
        (1, b"sendmail process failed with error code 75"),
        id="bsd-mailx",
    ),
    pytest.param(
        words(
            *("s-nail", "-:/", "-Sv15-compat", "-Smime-encoding=8b", "-r", "alice@here.test"),
            *("-s", "s-nail", "-b", "hidden-TO", "TO"),
        ),
        (4, b"message not sent"),
        id="s-nail",
    ),
    pytest.param(
        words(
            *("mail.mailutils", "-n", "-a", "Content-Type: text/plain; charset=utf-8"),
            *("-a", "Bcc: hidden-TO", "-s", "mailutils", "TO"),
        ),
        (1, b"exited with a non-zero status"),
        id="mailutils",
    ),
    pytest.param(
        words(
            *("mutt", "-n", "-F", "/dev/null", "-e", "set copy=no send_charset=utf-8"),
            *("-s", "mutt", "-b", "hidden-TO", "--", "TO"),
        ),
        (1, b"child exited 75 (Deferred.)"),
        id="mutt",
    ),
    pytest.param(
        words(
            *("mime-construct", "--to", "TO", "--bcc", "hidden-TO"),
            *("--encoding", "8bit", "--file", "-"),
        ),
        (75, b""),
        id="mime-construct",
    ),
]


@pytest.mark.parametrize(("command", "failure"), MAILERS)
def test_text_from_standard_input(
    machine: Machine, command: Callable[[str], list[str]], failure: Failure, request
) -> None:
    """The text arrives octet for octet, for both recipients, of whom one is not shown; then a sendmail that fails."""
    to = f"{request.node.callspec.id}@mail.test"
    done = machine.run(*command(to), stdin=TEXT)
    assert (done.returncode, done.stdout) == (0, b"")
    mail = machine.mail_for(to)
    assert mail.sender == b"alice@here.test"
    assert sorted(mail.recipients) == sorted([to.encode(), b"hidden-" + to.encode()])
    assert body(mail).rstrip(b"\n") == TEXT.rstrip(b"\n")
    assert values(mail, "To") in ([to], [f"<{to}>"])
    for name, count in (("From", 1), ("Date", 1), ("Message-ID", 1), ("Bcc", 0)):
        assert len(values(mail, name)) == count, name
    assert b"hidden" not in mail.octets

    code, said = failure
    refused = machine.run(*command(f"refused-{to}"), stdin=TEXT, environment=NO_SPOOL)
    assert refused.returncode == code, refused.stdout
    assert said in refused.stdout


def test_git_send_email(machine: Machine) -> None:
    """A patch with a lone dot, for three recipients; of a sendmail that fails git has the exit code."""
    machine.write("home/alice/x.patch", (PATCH + TEXT).decode(), user="alice")
    command = [
        *("git", "send-email", "--sendmail-cmd=/usr/sbin/sendmail"),
        *(
            "--from=Alice <alice@here.test>",
            "--envelope-sender=bounce@here.test",
            "--to=git@mail.test",
            "--cc=git-cc@mail.test",
        ),
        *("--bcc=git-hidden@mail.test", "--suppress-cc=all", "--confirm=never", "--quiet"),
        *("--transfer-encoding=8bit", "x.patch"),
    ]
    done = machine.run(*command)
    assert (done.returncode, done.stdout) == (0, b"Sent [PATCH] x\n")
    mail = machine.mail_for("git@mail.test")
    assert mail.sender == b"bounce@here.test"
    assert mail.recipients == (b"git@mail.test", b"git-cc@mail.test", b"git-hidden@mail.test")
    assert body(mail) == TEXT
    assert [len(values(mail, name)) for name in ("From", "Date", "Message-ID")] == [1, 1, 1]
    assert b"hidden" not in mail.octets

    refused = machine.run(*command, environment=NO_SPOOL)
    assert (refused.returncode, refused.stdout.splitlines()[0]) == (
        75,
        b"sendmail: /etc/nowhere/queue: Permission denied; "
        b"/run/minisend/submit.sock: No such file or directory "
        b"(no service is installed: start minisend-submit.socket); "
        b"/var/spool/minisend/drop: No such file or directory (run minisend setup --system)",
    )


def test_a_letter_that_sendmail_does_not_know(machine: Machine) -> None:
    """Exit 64 reaches whoever gave the option, and nothing is sent."""
    machine.write("home/alice/y.patch", (PATCH + TEXT).decode(), user="alice")
    refused = machine.run(
        *("git", "send-email", "--smtp-server=/usr/sbin/sendmail", "--smtp-server-option=-Z"),
        *("--from=alice@here.test", "--to=unsent@mail.test", "--suppress-cc=all"),
        *("--confirm=never", "--quiet", "y.patch"),
    )
    assert (refused.returncode, refused.stdout.splitlines()[0]) == (
        64,
        b"sendmail: unknown option -Z",
    )


@pytest.mark.parametrize("way", ["sendmail/smtp", "sendmail/pipe"])
def test_nmh(machine: Machine, way: str) -> None:
    """Over -bs (a probe, RSET, two transactions) and over -t."""
    to = f"nmh-{way.partition('/')[2]}@mail.test"
    text = "one\n.\n..two dots\n"
    machine.write("home/alice/.mh_profile", "Path: Mail\n", user="alice")
    machine.run("mkdir", "-p", "Mail")

    def send(to: str, environment: dict[str, str]) -> tuple[int, bytes]:
        machine.write("home/alice/draft", DRAFT.format(to=to, text=text), user="alice")
        done = machine.run(
            "/usr/bin/mh/send", "-mts", way, "/home/alice/draft", environment=environment
        )
        return done.returncode, done.stdout

    assert send(to, {}) == (0, b"")
    mail, hidden = machine.mail_for(to), machine.mail_for(f"hidden-{to}")
    assert (mail.sender, body(mail)) == (b"alice@here.test", text.encode())
    assert values(mail, "To") == [to]
    assert [len(values(mail, name)) for name in ("From", "Date", "Message-ID")] == [1, 1, 1]
    assert b"hidden" not in mail.octets
    assert text.encode() in body(hidden).replace(b"\n- ", b"\n")

    code, said = send(f"refused-{to}", NO_SPOOL)
    # Over a pipe nmh says it and exits 0 all the same.
    assert (code != 0) == (way == "sendmail/smtp"), said
    assert b"/etc/nowhere/queue: Permission denied" in said
