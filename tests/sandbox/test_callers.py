"""Everybody who may call sendmail on a system, however confined: exit 0, nothing on standard error, and the message arrives.

Each against ``minisend run``, and against ``run --accept`` and ``run --deliver`` apart.  Where the kernel could not tell
whose a message is, its trace line says so.  Where there is no way, one line names what stops each, and nothing is kept.
"""

import os
import re
import subprocess

import pytest

from sandbox.installed import ANN, INTERPRETER, SERVICE, Installed, identity

# Every mount but those of the kernel's own file systems, as ProtectSystem=strict leaves them; the last command must fail.
READ_ONLY = """\
mount --make-rprivate /
findmnt -rno TARGET | grep -Ev '^/(proc|sys|dev)(/|$)' | while read -r target; do
    mount -o remount,bind,ro "$target" 2>/dev/null || :
done
! touch {top}/written 2>/dev/null || exit 99
exec "$@"
"""


def as_account(uid: int = ANN) -> list[str]:
    return [
        *("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"),
        *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
    ]


def read_only(system: Installed) -> list[str]:
    return ["unshare", "-m", "sh", "-c", READ_ONLY.format(top=system.top), "sh"]


def no_unix_sockets(system: Installed) -> list[str]:
    return [INTERPRETER, "-IS", str(system.confine)]


@pytest.fixture(scope="module", params=[False, True], ids=["together", "apart"])
def served(request):
    with Installed() as system, system.serving(apart=request.param):
        yield system


@pytest.fixture(scope="module")
def unserved():
    with Installed() as system:
        yield system


@pytest.fixture
def unique(request):
    """A recipient of this test's own."""
    return f"n{abs(hash(request.node.name)):x}@example.net"


def sent(done):
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def account_of(uid: int) -> tuple[bytes, bytes]:
    return b"%d" % uid, b"uid%d" % uid


def test_a_uid_without_an_entry_in_the_account_database(served, unique):
    sent(served.submit(unique))
    message = served.arrived(unique)
    assert identity(message) == account_of(ANN)
    assert message.sender == b"uid%d@h.example" % ANN


def test_an_account_with_a_name(served, unique):
    sent(served.submit(unique, uid=2, gid=2))
    message = served.arrived(unique)
    assert identity(message) == (b"2", b"bin")
    assert message.sender == b"bin@h.example"


def test_group_daemon(served, unique):
    sent(served.submit(unique, gid=1))
    assert identity(served.arrived(unique)) == account_of(ANN)


def test_root(served, unique):
    sent(served.submit(unique, uid=0))
    assert identity(served.arrived(unique)) == (b"0", b"root")


def test_the_delivering_account_has_its_own_queue(served, unique):
    sent(served.submit(unique, uid=SERVICE))
    assert identity(served.arrived(unique)) == account_of(SERVICE)


def test_an_empty_environment(served, unique):
    sent(served.submit(unique, env={}))
    assert identity(served.arrived(unique)) == account_of(ANN)


def test_no_new_privileges(served, unique):
    sent(served.submit(unique, under=as_account(), as_root=True))
    assert identity(served.arrived(unique)) == account_of(ANN)


def test_everything_read_only(served, unique):
    """ProtectSystem=strict: the socket is all there is to write to."""
    under = [*read_only(served), *as_account()]
    sent(served.submit(unique, under=under, as_root=True))
    assert identity(served.arrived(unique)) == account_of(ANN)


def test_everything_read_only_and_a_large_message(served, unique):
    under = [*read_only(served), *as_account()]
    message = b"Subject: large\n\n" + b"0123456789\n" * 300_000
    sent(served.submit(unique, under=under, as_root=True, message=message))
    assert served.arrived(unique).octets.endswith(b"\r\n".join([b"0123456789"] * 3) + b"\r\n")


@pytest.mark.parametrize("option", ["-Ur", "-U", "-Uc"], ids=["root there", "nobody", "itself"])
def test_a_user_namespace(served, unique, option):
    """Whatever number the account has in there, it is the one outside that the kernel tells."""
    sent(served.submit(unique, under=["unshare", option]))
    assert identity(served.arrived(unique)) == account_of(ANN)


def test_nobody_in_a_user_namespace(served, unique):
    """There all files of others look like nobody's, the delivering account's queue too."""
    sent(served.submit(unique, under=["unshare", "-Uc"], uid=65534, gid=65534))
    assert identity(served.arrived(unique))[0] == b"65534"


def test_the_sender_and_the_recipients_of_the_header(served, unique):
    done = served.submit(
        "-t", "-f", "ann@example.org", message=f"To: {unique}\nSubject: x\n\nHello.\n".encode()
    )
    sent(done)
    assert served.arrived(unique).sender == b"ann@example.org"


def test_no_environment_no_privileges_read_only_and_a_user_namespace(served, unique):
    under = [*read_only(served), *as_account(), "unshare", "-Ur", "env", "-i"]
    sent(served.submit(unique, under=under, as_root=True))
    assert identity(served.arrived(unique)) == account_of(ANN)


# -- the drop


def test_nobody_listens(unserved, unique):
    """The drop takes it, the next flush delivers; that it is the uid's nobody can say."""
    sent(unserved.submit(unique))
    assert [place.partition("/")[0] for place in unserved.kept()] == ["drop"]
    unserved.flush()
    assert identity(unserved.arrived(unique)) == (b"%d" % ANN, b"unverified")
    assert unserved.kept() == []


def test_no_sockets_of_the_unix_kind(unserved, unique):
    """RestrictAddressFamilies= without AF_UNIX, a service or not."""
    with unserved.serving():
        sent(unserved.submit(unique, under=no_unix_sockets(unserved)))
    unserved.flush()
    assert identity(unserved.arrived(unique)) == (b"%d" % ANN, b"unverified")
    assert unserved.kept() == []


@pytest.mark.parametrize("under", [["unshare", "-Ur"], ["unshare", "-U"]], ids=" ".join)
def test_the_drop_in_a_user_namespace(unserved, unique, under):
    sent(unserved.submit(unique, under=under))
    unserved.flush()
    assert identity(unserved.arrived(unique)) == (b"%d" % ANN, b"unverified")


def test_the_drop_and_root(unserved, unique):
    sent(unserved.submit(unique, uid=0))
    unserved.flush()
    assert identity(unserved.arrived(unique)) == (b"0", b"unverified")


# -- no way


def refused(system: Installed, done: "subprocess.CompletedProcess[bytes]", *words: str) -> None:
    """Exit 75, and one line: for each way its path, what stops it, and the remedy."""
    assert (done.returncode, done.stdout) == (75, b""), done
    assert done.stderr.decode() == "sendmail: " + "; ".join(words) + "\n"
    assert system.kept() == []


@pytest.fixture
def alone():
    with Installed() as system:
        yield system


def test_read_only_and_nobody_listens(alone):
    under = [*read_only(alone), *as_account()]
    refused(
        alone,
        alone.submit("a@example.net", under=under, as_root=True),
        f"{alone.socket}: No such file or directory "
        "(no service is installed: start minisend-submit.socket)",
        f"{alone.drop}: Read-only file system (ProtectSystem= or a read-only mount: add "
        f"ReadWritePaths={alone.drop}, or start minisend-submit.socket)",
    )


def test_read_only_and_a_service_that_was_killed(alone):
    alone.start("--accept").end(9)
    under = [*read_only(alone), *as_account()]
    refused(
        alone,
        alone.submit("a@example.net", under=under, as_root=True),
        f"{alone.socket}: Connection refused (nobody listens: start minisend-submit.socket)",
        f"{alone.drop}: Read-only file system (ProtectSystem= or a read-only mount: add "
        f"ReadWritePaths={alone.drop}, or start minisend-submit.socket)",
    )


def test_read_only_and_no_sockets(alone):
    with alone.serving():
        under = [*read_only(alone), *as_account(), *no_unix_sockets(alone)]
        refused(
            alone,
            alone.submit("a@example.net", under=under, as_root=True),
            f"{alone.socket}: Address family not supported by protocol "
            "(RestrictAddressFamilies= needs AF_UNIX)",
            f"{alone.drop}: Read-only file system (ProtectSystem= or a read-only mount: add "
            f"ReadWritePaths={alone.drop}, or start minisend-submit.socket)",
        )


def test_hidden_by_inaccessible_paths(alone):
    with alone.serving():
        hide = (
            f"mount --make-rprivate /; for path in {alone.run_directory} {alone.drop}; do mount -t tmpfs -o mode=000 tmpfs $path; done; "
            'exec "$@"'
        )
        under = ["unshare", "-m", "sh", "-c", hide, "sh", *as_account()]
        refused(
            alone,
            alone.submit("a@example.net", under=under, as_root=True),
            f"{alone.socket}: Permission denied (InaccessiblePaths= or a security module hides it)",
            f"{alone.drop}: Permission denied (InaccessiblePaths=, a security module, or wrong modes: "
            "see minisend doctor)",
        )


def root_directory(system: Installed, *others: str) -> list[str]:
    """RootDirectory=: the program, its configuration, and ``others`` in it."""
    into = (
        "mount --make-rprivate /; "
        "for path in /usr {library}; do mkdir -p {root}$path; mount --rbind $path {root}$path; done; "
        "for path in {others}; do mkdir -p {root}${{path%/*}}; : >{root}$path; mount --bind $path {root}$path; done; "
        "for link in /bin /lib /lib64; do ln -s usr$link {root}$link; done; "
        "cp {sendmail} {config} {root}{top}; "
        'exec /usr/sbin/chroot {root} "$@"'
    ).format(
        root=system.top / "root",
        library=system.library,
        sendmail=system.sendmail_path,
        config=system.config,
        top=system.top,
        others=" ".join(others),
    )
    return ["unshare", "-m", "sh", "-c", into, "sh", *as_account()]


def test_a_root_directory_with_the_socket_in_it(alone):
    """BindPaths= of the socket alone: that the spool is not there does not matter."""
    with alone.serving():
        under = root_directory(alone, str(alone.socket))
        sent(alone.submit("a@example.net", under=under, as_root=True))
        assert identity(alone.arrived("a@example.net")) == account_of(ANN)


def test_a_root_directory_that_has_neither(alone):
    with alone.serving():
        refused(
            alone,
            alone.submit("a@example.net", under=root_directory(alone), as_root=True),
            f"{alone.spool}/queue: Permission denied",
            f"{alone.socket}: No such file or directory "
            "(no service is installed: start minisend-submit.socket)",
            f"{alone.drop}: No such file or directory (run minisend setup --system)",
        )


def test_no_room_in_the_drop():
    with Installed(spool='min_free = "1024G"\n') as system:
        done = system.submit("a@example.net")
        assert (done.returncode, done.stdout) == (75, b"")
        assert re.fullmatch(
            f"sendmail: {system.socket}: No such file or directory "
            r"\(no service is installed: start minisend-submit.socket\); "
            f"{system.drop}: its file system has [0-9.]+G free, "
            r"less than \[spool\] min_free \(1024G\)\n",
            done.stderr.decode(),
        )
        assert system.kept() == []


def test_nothing_of_ours_has_a_bit_that_gives_rights(alone):
    """Neither what is installed nor what the service makes."""
    with alone.serving():
        sent(alone.submit("a@example.net"))
        alone.arrived("a@example.net")
        found = [
            path
            for path in alone.top.rglob("*")
            if path.is_file() and not path.is_symlink() and os.lstat(path).st_mode & 0o6000
        ]
    assert found == []
