"""Every family of caller once: sendmail started as that caller starts it, and what then lies in the queue.

The arguments, the shape of the input and the state of the process were seen with the programs named, or read in their
source; the words are our own.
"""

import os
import signal
from collections.abc import Sequence
from typing import Any

import pytest

from callers.replay import LOGIN, USUAL, Call, Mailer, with_lf

IGNORES_PIPE = (signal.SIGPIPE,)
KEYBOARD = (signal.SIGINT, signal.SIGQUIT)
BSD_MAILX = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGPIPE,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
)

CASES = []


def case(
    name: str,
    arguments: Sequence[str],
    header: str,
    body: bytes,
    *recipients: str,
    sender: str | None = None,
    taken: bytes | None = None,
    header_end: bytes = b"\n",
    fields: dict[str, list[str]] | None = None,
    dsn: tuple[str, str, str] = ("", "", ""),
    **process: Any,
) -> None:
    """One caller.

    ``header``      one field or continuation a line; ``header_end`` is the line end that the caller writes there
    ``body``        octets as they are written
    ``recipients``  what the envelope must hold, in order
    ``sender``      the reverse-path that it must hold, None for the account's
    ``taken``       the body that must go out, where a dot ends the input before its end
    ``fields``      values that the header must show; without From, Date and Message-ID, each of which must be there once
    ``dsn``         NOTIFY, RET and ENVID that it must hold
    ``process``     what else ``Call`` takes
    """
    lines = [line.strip(" ") for line in header.strip().splitlines()]
    stdin = b"".join(line.encode() + header_end for line in [*lines, ""]) + body
    expected = (
        LOGIN if sender is None else sender.encode(),
        [recipient.encode() for recipient in recipients],
        dsn,
        with_lf(body if taken is None else taken),
    )
    call = Call(arguments=arguments, stdin=stdin, **process)
    CASES.append(pytest.param(call, expected, fields or {}, id=name))


# -- schedulers -----------------------------------------------------------------------------------------------------

CRON_HEADER = """
    From: root (Cron Daemon)
    To: {to}
    Subject: Cron <job@here> printf report
    MIME-Version: 1.0
    Content-Type: text/plain; charset=UTF-8
    Content-Transfer-Encoding: 8bit
    X-Cron-Env: <SHELL=/bin/sh>
"""
CRON = ["-FCronDaemon", "-i", "-B8BITMIME", "-oem"]
# crond's own environment, whoever the job belongs to: no LOGNAME, no USER.
CROND = {"HOME": "/root", "PATH": "/usr/bin:/bin"}
case(
    "cron",
    [*CRON, "ops@mail.test,night@mail.test"],
    CRON_HEADER.format(to="ops@mail.test,night@mail.test"),
    b"first\n.\nb\xc3\xbc\xff last",
    "ops@mail.test",
    "night@mail.test",
    fields={"From": ["root@here.test (Cron Daemon)"]},
    ignored=KEYBOARD,
    environment=CROND,
)
case(
    "cron, to an account",
    [*CRON, "job"],
    CRON_HEADER.format(to="job"),
    b"report\n",
    "job",
    fields={"To": ["job@here.test"]},
    environment=CROND,
)
CRONIE_HEADER = """
    From: "(Cron Daemon)" <{sender}>
    To: ops@mail.test
    Subject: Cron <job@here> report
    Auto-Submitted: auto-generated
    Precedence: bulk
"""
CRONIE = ["-FCronDaemon", "-i", "-odi", "-oem", "-oi", "-t", "-f"]
case(
    "cronie",
    [*CRONIE, "job"],
    CRONIE_HEADER.format(sender="job"),
    b"report\n.\n",
    "ops@mail.test",
    sender="job",
    fields={"From": ['"(Cron Daemon)" <job@here.test>']},
    umask=0o002,
    environment={"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere", "MAILTO": "ops@mail.test"},
)
case(
    "cronie 1.7.0",
    [*CRONIE, "<>"],
    CRONIE_HEADER.format(sender="job"),
    b"report\n",
    "ops@mail.test",
    sender="",
)
case(
    "FreeBSD cron",
    ["-FCronDaemon", "-odi", "-oem", "-oi", "-t"],
    CRONIE_HEADER.format(sender="job"),
    b"report\n",
    "ops@mail.test",
)
case(
    "bcron",
    ["-FCronDaemon", "-i", "-odi", "-oem", "-t"],
    CRONIE_HEADER.format(sender="job"),
    b".\n",
    "ops@mail.test",
)
case(
    "anacron",
    ["-FAnacron", "-odi", "root"],
    "From: Anacron <root>\nTo: root\nSubject: Anacron job 'cron.daily' on here",
    b"no end of the last line",
    "root",
    fields={"From": ["Anacron <root@here.test>"], "To": ["root@here.test"]},
    from_file=True,
)
case(
    "busybox crond",
    ["-ti"],
    "To: ops@mail.test\nSubject: cron: report",
    b"report\n.\n",
    "ops@mail.test",
    from_file=True,
)
case(
    "busybox crond, old: a stray word",
    ["-ti", "oem"],
    "To: ops@mail.test\nSubject: cron: report",
    b"report\n",
    "oem",
    "ops@mail.test",
    from_file=True,
)
SYSTEMD_CRON = """
    Content-Type: text/plain; charset="utf-8"
    MIME-Version: 1.0
    Content-Transfer-Encoding: base64
    Date: Mon, 23 Nov 2026 12:00:00 +0000
    From: root (systemd-cron)
    To: root
    Subject: [here] job failed
"""
case("systemd-cron 1", ["-i", "-B8BITMIME", "root"], SYSTEMD_CRON, b"cmVwb3J0Cg==\n", "root")
case(
    "systemd-cron 2",
    ["-i", "-B", "8BITMIME", "root"],
    SYSTEMD_CRON,
    b"cmVwb3J0Cg==\n",
    "root",
    fields={"From": ["root@here.test (systemd-cron)"]},
)
case(
    "atd",
    ["-i", "job"],
    "Subject: Output from your job        7\nTo: job",
    b"report\n.\n",
    "job",
    fields={"To": ["job@here.test"]},
    from_file=True,
)
case(
    "task-spooler",
    ["-oi", "job"],
    "From: Task Spooler <taskspooler>\nTo: job\nSubject: the task 1",
    b"report\n",
    "job",
    fields={"From": ["Task Spooler <taskspooler@here.test>"]},
    closed=(1, 2),
)

# -- mail programs of people ----------------------------------------------------------------------------------------

case(
    "bsd-mailx",
    ["-i", "-t"],
    "To: a@mail.test, b@mail.test\nSubject: s\nCc: c@mail.test\nBcc: hidden@mail.test",
    b"text\n.\n",
    "a@mail.test",
    "b@mail.test",
    "c@mail.test",
    "hidden@mail.test",
    from_file=True,
    ignored=BSD_MAILX,
)
case(
    "bsd-mailx -v -r, two From",
    ["-i", "-t", "-f", "bounce@mail.test", "-m", "-v"],
    "From: bounce@mail.test\nTo: a@mail.test\nSubject: s\nFrom: A <a@mail.test>",
    b"text\n",
    "a@mail.test",
    sender="bounce@mail.test",
    fields={"From": ["bounce@mail.test", "A <a@mail.test>"]},
    from_file=True,
    ignored=BSD_MAILX,
)
case(
    "bsd-mailx, words that look like options",
    ["-i", "-t"],
    "To: -f, -oem, a@mail.test\nSubject: s",
    b"text\n",
    "-f",
    "-oem",
    "a@mail.test",
    from_file=True,
)
case(
    "s-nail",
    ["-i", "-m", "-v", "-F", "Full Name, Esq.", "-f", "me@mail.test", "--", "a@mail.test", "-b"],
    "Date: Mon, 23 Nov 2026 12:00:00 +0000\nTo: a@mail.test\nSubject: s\nMessage-ID: <1@mail.test>",
    b"text\n.\n",
    "a@mail.test",
    "-b",
    sender="me@mail.test",
    fields={"From": ['"Full Name, Esq." <me@mail.test>']},
    from_file=True,
    umask=0o077,
)
case(
    "mailutils",
    ["-oi", "-f", "Foo", "-t"],
    "Subject: s\nBcc: <hidden@mail.test>\nTo: <a@mail.test>,<b@mail.test>\nUser-Agent: mail",
    "häßlich\n.\n".encode(),
    "hidden@mail.test",
    "a@mail.test",
    "b@mail.test",
    sender="Foo",
    closed=(1, 2),
    ignored=IGNORES_PIPE,
    leaked=True,
)
case(
    "mutt",
    [
        *("-oem", "-oi", "-B8BITMIME", "-f", "me@mail.test", "-N", "failure,delay", "-R", "hdrs"),
        *("--", "a@mail.test", "hidden@mail.test"),
    ],
    "Date: Mon, 23 Nov 2026 12:00:00 +0000\nFrom: Me <me@mail.test>\nTo: a@mail.test\n"
    "Subject: s\nMessage-ID: <1@mail.test>",
    b"t\xeaxt\n.\n",
    "a@mail.test",
    "hidden@mail.test",
    sender="me@mail.test",
    dsn=("FAILURE,DELAY", "HDRS", ""),
    from_file=True,
    umask=0o077,
    ignored=KEYBOARD,
    blocked=(signal.SIGCHLD, signal.SIGTSTP),
)
case(
    "nmh, pipe",
    ["-t", "-i"],
    "From: Me <me@mail.test>\nTo: a@mail.test\nBCC: hidden@mail.test\nSubject: s\nDate: Mon, 23 Nov 2026 12:00:00 +0000",
    b"text\n.\n",
    "a@mail.test",
    "hidden@mail.test",
    from_file=True,
    one_pipe=True,
)
case(
    "Emacs message",
    ["-oi", "-f", "me@mail.test", "-t"],
    "From: Me <me@mail.test>\nTo: a@mail.test\nSubject: s\nBcc: hidden@mail.test",
    b"text\n.\n",
    "a@mail.test",
    "hidden@mail.test",
    sender="me@mail.test",
    from_file=True,
)
case(
    "Emacs sendmail",
    ["-oi", "-f", "me@mail.test", "-oep", "-odi", "-t"],
    "From: Me <me@mail.test>\nTo: a@mail.test\nSubject: s",
    b"text\n.\n",
    "a@mail.test",
    sender="me@mail.test",
    from_file=True,
)
case(
    "git send-email",
    ["-f", "dev@mail.test", "-i", "list@mail.test", "dev@mail.test", "hidden@mail.test"],
    "From: =?UTF-8?q?D=C3=A9v?= <dev@mail.test>\nTo: List <list@mail.test>\n"
    "Cc: =?UTF-8?q?D=C3=A9v?= <dev@mail.test>\nSubject: [PATCH] x\n"
    "Date: Mon, 23 Nov 2026 12:00:00 +0000\nMessage-Id: <1@mail.test>",
    b"---\n x | 1 +\n\n.\n-- \n2.39\n",
    "list@mail.test",
    "dev@mail.test",
    "hidden@mail.test",
    sender="dev@mail.test",
)
PATCH = "From: me@mail.test\nTo: list@mail.test\nSubject: [patch 1/1] x"
case(
    "quilt: a lone dot ends the input",
    ["-f", "me@mail.test", "list@mail.test"],
    PATCH,
    b"-old\n.\n+new\n",
    "list@mail.test",
    sender="me@mail.test",
    taken=b"-old\n",
)
case(
    "Mercurial",
    ["-f", "me@mail.test", "a@mail.test", "b@mail.test"],
    PATCH,
    b"# HG changeset patch\n",
    "a@mail.test",
    "b@mail.test",
    sender="me@mail.test",
)
case(
    "svn commit-email",
    ["-fme@mail.test", "list@mail.test"],
    PATCH,
    b"Modified: trunk\n",
    "list@mail.test",
    sender="me@mail.test",
)
case(
    "claws, sylpheed",
    ["-t", "-i"],
    PATCH,
    b"text\n",
    "list@mail.test",
)
case("slrn, nn", ["-oi", "-t", "-oem", "-odb"], PATCH, b"text\n", "list@mail.test")
case("alot, sup", ["-oem", "-ti"], PATCH, b"text\n.\n", "list@mail.test")
case(
    "vacation",
    ["-f", "me", "--", "-odd@mail.test"],
    "To: -odd@mail.test\nSubject: away\nAuto-Submitted: auto-replied",
    b"I am away\n",
    "-odd@mail.test",
    sender="me",
)
case(
    "calendar",
    ["-i", "-t", "-F", '"Reminder Service"'],
    "From: me (Reminder Service)\nTo: me\nSubject: Today",
    b"text\n",
    "me",
    fields={"From": ["me@here.test (Reminder Service)"]},
)

# -- delivery agents, lists, gateways -------------------------------------------------------------------------------

case(
    "dovecot redirect",
    ["-i", "-f", "<>", "--", "a@mail.test"],
    "From: b@mail.test\nTo: me@here.test\nSubject: s\nMessage-ID: <1@mail.test>",
    b"text\n.\n",
    "a@mail.test",
    sender="",
    umask=0o077,
    environment={},
    ignored=IGNORES_PIPE,
    leaked=True,
)
case(
    "dovecot reject, both line ends",
    ["-i", "-f", "<>", "--", "a@mail.test"],
    "From: Postmaster <postmaster@here.test>\nTo: <a@mail.test>\nContent-Type: multipart/report;\n"
    '\tboundary="b"\nSubject: Rejected',
    b"--b\r\n\r\nrefused\r\n--b\r\n\r\nSubject: s\nFrom: a@mail.test\n\r\n--b--\r\n",
    "a@mail.test",
    sender="",
    header_end=b"\r\n",
    umask=0o077,
    environment={},
)
case(
    "procmail",
    ["-oi", "-oi", "-f", "b@mail.test", "a@mail.test"],
    "From: b@mail.test\nTo: me@here.test\nSubject: s",
    b"text\n.\n",
    "a@mail.test",
    sender="b@mail.test",
    environment={
        **USUAL,
        "SENDMAIL": "/usr/sbin/sendmail",
        "SENDMAILFLAGS": "-oi",
        "LINEBUF": "2048",
    },
)
case(
    "maildrop",
    ["-oi", "-f", "", "a@mail.test", "b@mail.test"],
    "From: c@mail.test\nTo: me@here\nSubject: s",
    b"text\n.\nFrom me\n",
    "a@mail.test",
    "b@mail.test",
    sender="",
    umask=0o007,
)
case(
    "mailbot",
    ["-t", "-i", "-f", ""],
    "From: me@mail.test\nPrecedence: junk\nTo: a@mail.test\nSubject: Re: s",
    b"> text\n> .\n\n\n",
    "a@mail.test",
    sender="",
)
case(
    "Sympa",
    [
        *("-oi", "-odi", "-oem", "-N", "success,delay,failure", "-V00000042-attached"),
        *("-f", "list-owner@mail.test", *(f"member{number}@mail.test" for number in range(300))),
    ],
    "From: a@mail.test\nTo: list@mail.test\nSubject: s",
    b"text\n.\n",
    *(f"member{number}@mail.test" for number in range(300)),
    sender="list-owner@mail.test",
    dsn=("SUCCESS,DELAY,FAILURE", "", "00000042-attached"),
)
case(
    "Request Tracker",
    ["-oi", "-t", "-f", "rt@mail.test", "-f", "rt+verp@mail.test"],
    "From: rt@mail.test\nTo: a@mail.test\nSubject: [here #1] s",
    b"text\n.\n",
    "a@mail.test",
    sender="rt+verp@mail.test",
)
case(
    "Request Tracker, bounce",
    ["-oi", "-t", "-f", "<>"],
    "From: rt@mail.test\nTo: a@mail.test\nSubject: s",
    b"text\n",
    "a@mail.test",
    sender="",
)
case(
    "SmartList",
    ["-oem", "-odb", "-oi", "-om", "-flist-request@mail.test", "-odq", "a@mail.test"],
    "From: b@mail.test\nTo: list@mail.test\nSubject: s",
    b".\n",
    "a@mail.test",
    sender="list-request@mail.test",
)
case(
    "majordomo",
    ["-oi", "-oee", "-fowner-list@mail.test", "-t"],
    "From: b@mail.test\nTo: list@mail.test\nSubject: s",
    b".\n",
    "list@mail.test",
    sender="owner-list@mail.test",
)
case(
    "INN news2mail",
    ["-oi", "-oee", "-odq", "-fnews@mail.test", "-pNNTP:news.mail.test", "a@mail.test"],
    "From: b@mail.test\nNewsgroups: misc.test\nSubject: s\nDate: Mon, 23 Nov 2026 12:00:00 +0000",
    b"text\n.\n",
    "a@mail.test",
    sender="news@mail.test",
)
case(
    "rmail, two recipients in one pair of brackets",
    [
        *("-G", "-oee", "-odi", "-oi", "-pUUCP:far", "-ffar!user"),
        "<a@mail.test,b@mail.test>",
    ],
    "From: user@far.test\nTo: a@mail.test\nSubject: s",
    b"text\n.\n",
    "a@mail.test",
    "b@mail.test",
    sender="far!user",
)
case(
    "MIMEDefang",
    ["-f<>", "-odd", "-Ac", "-oi", "--", "a@mail.test"],
    "From: b@mail.test\nTo: a@mail.test\nSubject: s",
    b".\n",
    "a@mail.test",
    sender="",
)
case(
    "mailagent, HylaFAX",
    ["-odq", "-i", "-ffax", "-om", "a@mail.test"],
    "From: b@mail.test\nTo: a@mail.test\nSubject: s",
    b".\n",
    "a@mail.test",
    sender="fax",
)
case(
    "Courier outbox",
    ["-oi", "-t", "-Nsuccess,delay,failure", "-f", "me@mail.test"],
    "From: me@mail.test\nTo: a@mail.test\nBcc: hidden@mail.test\nSubject: s",
    b".\n",
    "a@mail.test",
    "hidden@mail.test",
    sender="me@mail.test",
    dsn=("SUCCESS,DELAY,FAILURE", "", ""),
)

# -- languages and web applications ---------------------------------------------------------------------------------

case(
    "PHP mail()",
    ["-t", "-i", "-f", "www@mail.test", "-r", "force@mail.test", "-ODeliveryMode=background"],
    "To: a@mail.test, Bob <b@mail.test>\nSubject: Gr\u00fc\u00dfe\nCc: c@mail.test\nBcc: hidden@mail.test",
    b"one\r\ntwo\n.\nend\r\n",
    "a@mail.test",
    "b@mail.test",
    "c@mail.test",
    "hidden@mail.test",
    sender="force@mail.test",
    header_end=b"\r\n",
    fields={"To": ["a@mail.test, Bob <b@mail.test>"], "Subject": ["Gr\u00fc\u00dfe"]},
    ignored=IGNORES_PIPE,
    leaked=True,
)
case(
    "PHPMailer",
    ["-t", "-i", "-oi", "-fbounce@mail.test", "-t"],
    "Date: Mon, 23 Nov 2026 12:00:00 +0000\nTo: A <a@mail.test>\nFrom: F <f@mail.test>\nBcc: hidden@mail.test\n"
    "Subject: s\nMessage-ID: <1@mail.test>",
    b"text\n.\n",
    "a@mail.test",
    "hidden@mail.test",
    sender="bounce@mail.test",
)
case(
    "Symfony, without -bs",
    ["-oi", "-fbounce@mail.test", "--", "a@mail.test"],
    "From: f@mail.test\nTo: a@mail.test\nMessage-ID: <1@mail.test>\nDate: Mon, 23 Nov 2026 12:00:00 +0000",
    b"text\n.\n",
    "a@mail.test",
    sender="bounce@mail.test",
)
case(
    "PEAR Mail, Bcc left in",
    ["-i", "-ffrom@mail.test", "--", "a@mail.test", "b@mail.test"],
    "From: from@mail.test\nTo: a@mail.test\nBcc: b@mail.test\nSubject: s",
    b"text\n.\n",
    "a@mail.test",
    "b@mail.test",
    sender="from@mail.test",
)
case(
    "Perl Email::Sender",
    ["-i", "-f", "from@mail.test", "--", "a@mail.test"],
    "From: from@mail.test\nTo: a@mail.test\nSubject: s\nDate: Mon, 23 Nov 2026 12:00:00 +0000",
    b"text\n.\n",
    "a@mail.test",
    sender="from@mail.test",
)
case(
    "Perl Email::Sender, null sender",
    ["-i", "-f", "", "--", "a@mail.test"],
    "From: from@mail.test\nTo: a@mail.test\nSubject: s",
    b"text\n",
    "a@mail.test",
    sender="",
)
case(
    "Perl MIME::Lite",
    ["-t", "-oi", "-oem", "-ffrom@mail.test"],
    "Content-Type: text/plain\nFrom: F <from@mail.test>\nTo: a@mail.test\nBcc: hidden@mail.test\nSubject: s",
    b"text\n.\n",
    "a@mail.test",
    "hidden@mail.test",
    sender="from@mail.test",
)
case(
    "Perl Mail::Mailer, To for each",
    ["-t"],
    "From: from@mail.test\nTo: a@mail.test\nTo: b@mail.test\nSubject: s",
    b"text\n",
    "a@mail.test",
    "b@mail.test",
    fields={"To": ["a@mail.test", "b@mail.test"]},
)
case(
    "Perl Mail::Box, News::Article",
    ["-oi", "-oem", "a@mail.test"],
    "From: from@mail.test\nTo: a@mail.test\nSubject: s",
    b".\n",
    "a@mail.test",
)
case(
    "Ruby mail",
    ["-i", "-f", "from@mail.test", "--", "a@mail.test", "hidden@mail.test"],
    "Date: Mon, 23 Nov 2026 12:00:00 +0000\nFrom: from@mail.test\nTo: a@mail.test\nMessage-ID: <1@mail.test>",
    b"text\r\n.\r\n",
    "a@mail.test",
    "hidden@mail.test",
    sender="from@mail.test",
    header_end=b"\r\n",
)
case(
    "nodemailer, -t and recipients, both line ends",
    ["-i", "-t", "-oi", "a@mail.test", "hidden@mail.test"],
    "From: from@mail.test\nTo: a@mail.test, b@mail.test\nBcc: hidden@mail.test\nMessage-ID: <1@mail.test>",
    b"one\n.\ntwo\n",
    "a@mail.test",
    "hidden@mail.test",
    "b@mail.test",
    header_end=b"\r\n",
)
case(
    "nodemailer, Bcc left in",
    ["-i", "-f", "from@mail.test", "a@mail.test", "hidden@mail.test"],
    "From: from@mail.test\nTo: a@mail.test\nBcc: hidden@mail.test\nMessage-ID: <1@mail.test>",
    b"one\n",
    "a@mail.test",
    "hidden@mail.test",
    sender="from@mail.test",
    header_end=b"\r\n",
)
case(
    "Gitea",
    ["-f", "git@mail.test", "-i", "a@mail.test"],
    "From: Git <git@mail.test>\nTo: a@mail.test\nSubject: s\nDate: Mon, 23 Nov 2026 12:00:00 +0000",
    b"text\r\n.\r\n",
    "a@mail.test",
    sender="git@mail.test",
)
case(
    "Trac",
    ["-i", "-f", "trac@mail.test", "a@mail.test", "b@mail.test"],
    "From: trac@mail.test\nTo: a@mail.test\nSubject: s",
    b"text\n",
    "a@mail.test",
    "b@mail.test",
    sender="trac@mail.test",
)
case(
    "Python",
    ["-t", "-oi", "-oem"],
    "From: f@mail.test\nTo: =?utf-8?b?w5xuw68=?= <a@mail.test>, b@mail.test\nSubject: =?utf-8?q?=C3=A9?=",
    "é\r\n.\r\n".encode(),
    "a@mail.test",
    "b@mail.test",
    header_end=b"\r\n",
)
case(
    "Proxmox VE",
    ["-B", "8BITMIME", "-f", "root@mail.test", "--", "a@mail.test"],
    "FROM: Proxmox <root@mail.test>\nTO: a@mail.test\nSUBJECT: s",
    b"text\n",
    "a@mail.test",
    sender="root@mail.test",
)

# -- tools of the system --------------------------------------------------------------------------------------------

case(
    "sudo",
    ["-t"],
    "To: root\nFrom: me\nAuto-Submitted: auto-generated\nSubject: *** SECURITY information for here ***",
    b"here : Nov 23 12:00:00 : me : 1 incorrect password attempt\n\n",
    "root",
    fields={"From": ["me@here.test"], "To": ["root@here.test"]},
    ignored=IGNORES_PIPE,
    environment={"HOME": "/", "PATH": "/usr/bin:/bin", "LOGNAME": "me", "USER": "me"},
)
case(
    "mdadm",
    ["-t"],
    "From: mdadm monitoring <root@here>\nTo: root\nSubject: Fail event on /dev/md0:here",
    b"A Fail event\n\nFaithfully yours, etc.\n\nPersonalities : [raid1]\n",
    "root",
    environment=CROND,
)
case(
    "logwatch",
    ["-t"],
    "To: root\nFrom: root\nSubject: Logwatch for here\nAuto-Submitted: auto-generated",
    b" ### Logwatch ###\n",
    "root",
    umask=0o177,
)
case(
    "logcheck",
    ["-oi", "logcheck"],
    "To: logcheck\nSubject: System Events\nMIME-Version: 1.0 (mime-construct 1.11)",
    b"System Events\n=-=-=\n.\n",
    "logcheck",
    umask=0o077,
)
case(
    "fail2ban",
    ["-f", "fail2ban@mail.test", "a@mail.test, root@localhost"],
    "Subject: [Fail2Ban] sshd: banned\nDate: Mon, 23 Nov 2026 12:00:00 +0000\nFrom: Fail2Ban <fail2ban@mail.test>\n"
    "To: a@mail.test, root@localhost",
    b"Hi,\n\nRegards,\n\nFail2Ban",
    "a@mail.test",
    "root@localhost",
    sender="fail2ban@mail.test",
    umask=0o077,
)
case(
    "unattended-upgrades",
    ["-oi", "-t"],
    "To: root\nFrom: root <root@here>\nSubject: updates\nContent-Transfer-Encoding: quoted-printable",
    b"Packages:\n.\n",
    "root",
)
case("mass-bug", ["a@mail.test"], "To: a@mail.test\nSubject: s", b"text\n", "a@mail.test")
case(
    "arpwatch",
    ["-odi", "root"],
    "From: arpwatch\nTo: root\nSubject: new station",
    b"text\n",
    "root",
    fields={"From": ["arpwatch@here.test"]},
)
case(
    "bacula",
    ["-F", "Bacula", "a@mail.test"],
    "To: a@mail.test\nSubject: s",
    b"text\n",
    "a@mail.test",
    fields={"From": [f"Bacula <{LOGIN.decode()}@here.test>"]},
)
case(
    "ripit",
    ["-oi", "-t", "-r", "me@mail.test"],
    "To: a@mail.test\nSubject: s",
    b"text\n",
    "a@mail.test",
    sender="me@mail.test",
)
case(
    "netdata",
    ["-t", "-f", "netdata@mail.test", "-F", "netdata on here"],
    "To: a@mail.test\nSubject: s",
    b"--part\n",
    "a@mail.test",
    sender="netdata@mail.test",
    fields={"From": ["netdata on here <netdata@mail.test>"]},
)
case(
    "a daemon whose directory is gone, all descriptors closed but its input",
    ["-i", "a@mail.test"],
    "To: a@mail.test",
    b"text\n",
    "a@mail.test",
    gone=True,
    closed=(1, 2),
    umask=0o777,
    environment={},
)


@pytest.mark.parametrize(("call", "expected", "fields"), CASES)
def test_sendmail_takes_it(tmp_path, call, expected, fields):
    """Exit 0 and silence, the whole envelope, no Bcc, each needed field once, and the body octet for octet."""
    mailer = Mailer(tmp_path)
    done = mailer.run(call)
    assert (done.returncode, done.stdout, done.stderr or b"") == (0, b"", b"")
    [sent] = mailer.sent()
    envelope = sent.envelope
    sender, recipients, dsn, body = expected
    [notify] = {recipient.notify for recipient in envelope.recipients}
    assert (envelope.sender, sent.recipients) == (sender, recipients)
    assert (notify, envelope.ret, envelope.envid) == dsn
    assert (envelope.uid, envelope.login) == (os.getuid(), LOGIN)
    assert with_lf(sent.body) == body
    shown = {
        name: [value.decode() for value in sent.values(name.encode())]
        for name in ("Bcc", "Resent-Bcc", *fields)
    }
    assert shown == {"Bcc": [], "Resent-Bcc": [], **fields}
    counts = {name: len(sent.values(name)) for name in (b"From", b"Date", b"Message-ID")}
    assert counts == {b"From": len(fields.get("From", "1")), b"Date": 1, b"Message-ID": 1}
    assert all(b"\r" not in field.raw and b"\0" not in field.raw for field in sent.fields)


# -- sendmail -bs ---------------------------------------------------------------------------------------------------

MESSAGE = (
    b"From: Me <me@mail.test>\r\nTo: a@mail.test\r\nSubject: s\r\n\r\none\r\n..\r\n..two\r\n.\r\n"
)
BODY = b"one\n.\n.two\n"


def commands(*lines: bytes) -> bytes:
    """The lines of a dialogue; DATA brings the message with it."""
    return b"".join(line + b"\r\n" + (MESSAGE if line == b"DATA" else b"") for line in lines)


DIALOGUES = [
    pytest.param(
        ["-bs", "-odb", "-oem"],
        [
            b"EHLO localhost",
            b"MAIL FROM:<me@mail.test>",
            b"RCPT TO:<a@mail.test>",
            b"DATA",
            b"QUIT",
        ],
        [220, 250, 250, 250, 354, 250, 221],
        [(b"me@mail.test", [b"a@mail.test"])],
        id="alpine",
    ),
    pytest.param(
        ["-bs", "-odb", "-oem", "-om"],
        [
            *(b"EHLO here.test", b"MAIL FROM:<me@mail.test>"),
            *(b"RCPT TO:<a@mail.test>", b"RCPT TO:<hidden@mail.test>", b"RSET"),
            *(b"MAIL FROM:<me@mail.test>", b"RCPT TO:<a@mail.test>", b"DATA", b"RSET"),
            *(b"MAIL FROM:<me@mail.test>", b"RCPT TO:<hidden@mail.test>", b"DATA", b"QUIT"),
        ],
        [220, 250, 250, 250, 250, 250, 250, 250, 354, 250, 250, 250, 250, 354, 250, 221],
        [(b"me@mail.test", [b"a@mail.test"]), (b"me@mail.test", [b"hidden@mail.test"])],
        id="nmh: all recipients as a probe, then two messages",
    ),
    pytest.param(
        ["-bs"],
        [
            *(b"HELO [127.0.0.1]", b"MAIL FROM:<me@mail.test>", b"RCPT TO:<a@mail.test>", b"DATA"),
            *(
                b"NOOP",
                b"MAIL FROM:<>",
                b"RCPT TO:<a@mail.test>",
                b"RCPT TO:<b@mail.test>",
                b"DATA",
            ),
            b"QUIT",
        ],
        [220, 250, 250, 250, 354, 250, 250, 250, 250, 250, 354, 250, 221],
        [(b"me@mail.test", [b"a@mail.test"]), (b"", [b"a@mail.test", b"b@mail.test"])],
        id="Symfony, Laravel, Nextcloud: HELO, two messages",
    ),
]


@pytest.mark.parametrize(("arguments", "dialogue", "codes", "transactions"), DIALOGUES)
def test_sendmail_bs_speaks_with_it(tmp_path, arguments, dialogue, codes, transactions):
    """Nothing but replies, on one pipe for both outputs; each transaction is a message of its own."""
    mailer = Mailer(tmp_path)
    done = mailer.run(Call(arguments=arguments, stdin=commands(*dialogue), one_pipe=True))
    assert done.returncode == 0
    lines = done.stdout.split(b"\r\n")
    assert lines.pop() == b""
    # "250-" continues a reply, "250 " ends it (RFC 5321 section 4.2.1).
    assert [int(line[:3]) for line in lines if line[3:4] == b" "] == codes
    assert all(line[3:4] in (b" ", b"-") for line in lines)
    sent = mailer.sent()
    assert [(each.envelope.sender, each.recipients) for each in sent] == transactions
    for each in sent:
        assert with_lf(each.body) == BODY
        assert each.values(b"Bcc") == []
        assert [len(each.values(name)) for name in (b"From", b"Date", b"Message-ID")] == [1, 1, 1]
