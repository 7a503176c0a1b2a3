"""minisend setup: what it makes, that the second run changes nothing, what it repairs, and what it leaves alone."""

import os
import shutil

import pytest
from admin.system import ALICE

from minisend.admin.command import main
from minisend.errors import CreateError, UsageError
from minisend.spool.layout import ACCOUNT, DIRECTORIES

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make it")


def table(system, word="ok", different=None):
    """The rows as setup writes them; ``different``: path → (word, how it was)."""
    rows = [(word, f"account {ACCOUNT}", f"uid {system.number(ACCOUNT)}", "")]
    for row in DIRECTORIES:
        # There is no systemd on this machine.
        owner = ACCOUNT if row.path == "/run/minisend" else row.owner
        group = ACCOUNT if row.path == "/run/minisend" else row.group
        rows.append((word, row.path, f"{owner}:{group} {row.mode:04o}", ""))
    for path, (said, was) in (different or {}).items():
        [place] = [i for i, row in enumerate(rows) if row[1] == path]
        rows[place] = (said, *rows[place][1:3], was)
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


NEXT = """
Next:
  write /etc/minisend/config.toml, see minisend.toml(5); for a smarthost:

    mail_domain = "example.org"

    [smarthost]
    host = "smtp.example.org"
    username = "user"
    password_file = "/etc/minisend/secrets.d/smarthost"

  write the password, and then ^D:
    install -g minisend -m 640 /dev/stdin /etc/minisend/secrets.d/smarthost
  have your supervisor start, as minisend: minisend run
  and before that at each boot, as /run is empty then: minisend setup --system
  minisend doctor
"""


def expected(system):
    uid, gid = system.number(ACCOUNT), system.number(ACCOUNT, "group")
    numbers = {"root": (0, 0), ACCOUNT: (uid, gid)}
    modes = {
        row.path: (numbers[row.owner][0], numbers[row.group][1], row.mode) for row in DIRECTORIES
    }
    modes["/run/minisend"] = (uid, gid, 0o755)
    return modes


@pytest.fixture
def ready(system):
    """After the first run."""
    code, _, err = system.minisend("setup", "--system")
    assert (code, err) == (0, "")
    return system


def test_makes_account_and_directories(system):
    code, out, err = system.minisend("setup", "--system")
    text = "\n".join([*table(system, "made"), "11 made", *NEXT.splitlines()]) + "\n"
    assert (code, out, err) == (0, text, "")
    assert system.modes() == expected(system)
    user = [
        f for f in (system.root / "etc/passwd").read_text().splitlines() if f.startswith(ACCOUNT)
    ]
    assert user == [
        f"minisend:x:{system.number(ACCOUNT)}:{system.number(ACCOUNT, 'group')}:Mail submission agent:"
        "/nonexistent:/usr/sbin/nologin"
    ]


def test_again_changes_nothing(ready):
    before = ready.state()
    code, out, err = ready.minisend("setup", "--system")
    text = "\n".join([*table(ready), "nothing to do", *NEXT.splitlines()]) + "\n"
    assert (code, out, err) == (0, text, "")
    assert ready.state() == before


def test_systemd_is_told_what_to_start(ready):
    (ready.root / "run/systemd/system").mkdir(parents=True)
    ready.write("etc/minisend/config.toml", "")
    code, out, err = ready.minisend("setup", "--system")
    assert (code, err) == (0, "")
    # The socket is systemd's, and so is its directory.
    uid, gid = ready.number(ACCOUNT), ready.number(ACCOUNT, "group")
    assert [line.split() for line in out.splitlines() if line.startswith("repaired")] == [
        ["repaired", "/run/minisend", "root:root", "0755", "was", f"{uid}:{gid}", "0755"]
    ]
    assert out.splitlines()[-4:] == [
        "",
        "Next:",
        "  systemctl enable --now minisend-submit.socket minisend-accept.path minisend-accept.timer "
        "minisend-deliver.path minisend-deliver.timer",
        "  minisend doctor",
    ]


def test_dry_run_changes_nothing(system):
    before = system.state()
    code, out, err = system.minisend("setup", "--system", "--dry-run")
    assert (code, err) == (0, "")
    assert [line.split()[:3] for line in out.splitlines()] == [
        ["to", "make", "account"],
        *(["to", "make", row.path] for row in DIRECTORIES),
        ["11", "to", "make"],
    ]
    assert system.state() == before


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_repairs(ready, option):
    spool = ready.root / "var/spool/minisend"
    uid, gid = ready.number(ACCOUNT), ready.number(ACCOUNT, "group")
    (spool / "queue").chmod(0o777)
    (spool / "drop/new").chmod(0o733)
    shutil.chown(spool, ALICE, ALICE)
    (spool / "drop/tmp").rmdir()
    before = ready.state()
    code, out, err = ready.minisend("setup", "--system", *option)
    assert (code, err) == (0, "")
    made, repaired = ("to make", "to repair") if option else ("made", "repaired")
    rows = table(
        ready,
        different={
            "/var/spool/minisend": (repaired, f"was {ALICE}:{ALICE} 0755"),
            "/var/spool/minisend/queue": (repaired, f"was {uid}:{gid} 0777"),
            "/var/spool/minisend/drop/tmp": (made, ""),
            "/var/spool/minisend/drop/new": (repaired, f"was {uid}:{gid} 0733"),
        },
    )
    assert out.splitlines()[:12] == [*rows, f"1 {made}, 3 {repaired}"]
    if option:
        assert ready.state() == before
    else:
        assert ready.modes() == expected(ready)


def test_wrong_owner_of_what_is_empty(ready):
    queue = ready.root / "var/spool/minisend/queue"
    shutil.chown(queue, ALICE, ALICE)
    assert ready.minisend("setup", "--system")[0] == 0
    assert ready.modes() == expected(ready)


def test_what_somebody_has_filled_is_not_taken(ready):
    queue = ready.root / "var/spool/minisend/queue"
    (queue / "new").mkdir()
    shutil.chown(queue, ALICE, ALICE)
    before = ready.modes()
    code, out, err = ready.minisend("setup", "--system")
    assert (code, err) == (
        73,
        f"minisend: /var/spool/minisend/queue: belongs to uid {ALICE} and is not empty: if what is in it is to be "
        "minisend's: chown -R minisend:minisend /var/spool/minisend/queue\n",
    )
    # What was done before is told, and that is not "nothing to do".
    assert [line.split()[0] for line in out.splitlines()] == ["ok"] * 4
    assert ready.modes() == before


def test_a_link_in_the_spool_is_not_followed(ready):
    """Alice owned the spool for a while: neither the target nor what lies behind it is changed."""
    spool = ready.root / "var/spool/minisend"
    target = ready.root / "etc/target"
    target.mkdir(0o755)
    (spool / "drop/tmp").rmdir()
    (spool / "drop/tmp").symlink_to("/etc/target")
    shutil.chown(spool / "drop", ALICE, ALICE)
    code, _, err = ready.minisend("setup", "--system")
    path = "/var/spool/minisend/drop/tmp"
    assert (code, err) == (73, f"minisend: {path}: is a symbolic link: rm {path}\n")
    assert (target.stat().st_uid, target.stat().st_mode & 0o7777) == (0, 0o755)


def test_a_file_in_the_place_of_a_directory(ready):
    (ready.root / "var/lib/minisend").rmdir()
    ready.write("var/lib/minisend", "")
    code, _, err = ready.minisend("setup", "--system")
    assert (code, err) == (
        73,
        "minisend: /var/lib/minisend: is no directory: rm /var/lib/minisend\n",
    )


def test_nothing_is_made_where_others_may_change_it(system):
    (system.root / "var/spool").chmod(0o777)
    code, _, err = system.minisend("setup", "--system")
    assert (code, err) == (
        73,
        "minisend: /var/spool: others than root can change what is in it (uid 0, gid 0, mode 0777): "
        "nothing is made there\n",
    )
    assert list((system.root / "var/spool").iterdir()) == []


def test_an_administrators_link_is_followed(system):
    """/var/spool on another disk, so to speak: every step there is root's."""
    (system.root / "var/lib/data").mkdir()
    (system.root / "var/spool/minisend").symlink_to("../lib/data")
    code, _, err = system.minisend("setup", "--system")
    # The spool itself is a row, and rows are no links: what is above it may be.
    assert (code, err) == (
        73,
        "minisend: /var/spool/minisend: is a symbolic link: rm /var/spool/minisend\n",
    )
    (system.root / "var/spool/minisend").unlink()
    system.mounts = (
        "rmdir /var/lib/data; mkdir /var/lib/spool; mount --bind /var/lib/spool /var/spool"
    )
    assert system.minisend("setup", "--system")[0] == 0
    assert (system.root / "var/lib/spool/minisend/queue").is_dir()


def account_line(uid=990, gid=990, shell="/usr/sbin/nologin"):
    return f"minisend:x:{uid}:{gid}::/nonexistent:{shell}\n"


@pytest.mark.parametrize(
    ("user", "group", "said"),
    [
        (
            account_line(shell="/bin/bash"),
            "minisend:x:990:\n",
            "it can log in: its shell is /bin/bash: usermod --shell /usr/sbin/nologin minisend",
        ),
        (account_line(shell=""), "minisend:x:990:\n", "it can log in: its shell is /bin/sh: usermod --shell /usr/sbin/nologin minisend"),
        (
            account_line(gid=65534),
            "minisend:x:990:\n",
            "its primary group is gid 65534, not minisend (gid 990): usermod --gid minisend minisend",
        ),
        (
            account_line(),
            "minisend:x:990:minisend,alice\n",
            "its group has other members: alice: gpasswd --delete alice minisend",
        ),
        (account_line(), "", "there is no group minisend: groupadd --system minisend"),
        (account_line(uid=0), "minisend:x:990:\n", "its uid is 0: userdel --force minisend"),
        (
            account_line(uid=ALICE),
            "minisend:x:990:\n",
            f"its uid {ALICE} is also that of alice: userdel minisend",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("below", [False, True])
def test_an_account_with_other_properties_is_left_alone(system, user, group, said, below):
    for name, line in (("passwd", user), ("group", group)):
        with (system.root / "etc" / name).open("a") as file:
            file.write(line)
    before = system.state()
    if below:
        # From outside, with the machine as another root.
        code = None
        with pytest.raises(Exception) as caught:
            main(["setup", "--system", "--root", str(system.root)], None)
        assert str(caught.value) == f"account minisend: {said}"
    else:
        code, out, err = system.minisend("setup", "--system")
        assert (code, out, err) == (78, "", f"minisend: account minisend: {said}\n")
    assert system.state() == before


def test_an_account_that_is_as_it_should_be_is_taken(system):
    for name, line in (("passwd", account_line()), ("group", "minisend:x:990:\n")):
        with (system.root / "etc" / name).open("a") as file:
            file.write(line)
    code, out, err = system.minisend("setup", "--system")
    assert (code, err, out.splitlines()[0].split()) == (
        0,
        "",
        ["ok", "account", "minisend", "uid", "990"],
    )


@pytest.mark.parametrize("tool", ["systemd-sysusers", "useradd"])
@only_root
def test_account_below_another_root(tmp_path, tool, monkeypatch, capfd):
    from minisend.admin import account

    if tool == "useradd":
        find = account._program
        monkeypatch.setattr(
            account, "_program", lambda name: None if name == "systemd-sysusers" else find(name)
        )
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\n")
    tmp_path.chmod(0o755)
    assert main(["setup", "--system", "--root", str(tmp_path)], None) == 0
    out = capfd.readouterr().out.splitlines()
    assert [line.split()[1] for line in out[1:-1]] == [
        f"{tmp_path}{path}"
        for path in (
            *(
                "/etc/minisend",
                "/etc/minisend/secrets.d",
                "/var",
                "/var/spool",
                "/var/spool/minisend",
            ),
            *(
                f"/var/spool/minisend/{name}"
                for name in ("queue", "state", "drop", "drop/tmp", "drop/new")
            ),
            *("/var/lib", "/var/lib/minisend", "/run", "/run/minisend"),
        )
    ]
    assert out[-1] == "15 made"
    line = (tmp_path / "etc/passwd").read_text().splitlines()[-1].split(":")
    assert (line[0], line[4:]) == (
        "minisend",
        ["Mail submission agent", "/nonexistent", "/usr/sbin/nologin"],
    )
    assert main(["setup", "--system", "--root", str(tmp_path)], None) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "nothing to do"


@only_root
def test_another_root_that_is_none(tmp_path):
    """A mistyped name is not taken for a machine that is still to be made."""
    with pytest.raises(CreateError) as caught:
        main(["setup", "--system", "--root", str(tmp_path)], None)
    text = f"{tmp_path}/etc: is no directory: expected the root directory of a machine"
    assert (str(caught.value), list(tmp_path.iterdir())) == (text, [])


@only_root
def test_a_link_out_of_another_root(tmp_path):
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "root/etc/passwd").write_text(account_line())
    (tmp_path / "root/etc/group").write_text("minisend:x:990:\n")
    (tmp_path / "root/var").symlink_to(tmp_path / "outside")
    with pytest.raises(Exception) as caught:
        main(["setup", "--system", "--root", str(tmp_path / "root")], None)
    root = tmp_path / "root"
    assert str(caught.value) == f"{root}/var/spool: a link leads out of {root}"
    assert list((tmp_path / "outside").iterdir()) == []


def test_without_a_tool_for_accounts(system, monkeypatch):
    from minisend.admin import account
    from minisend.errors import SystemFault

    monkeypatch.setattr(account, "_program", lambda name: None)
    with pytest.raises(SystemFault) as caught:
        main(["setup", "--system", "--root", str(system.root)], None)
    assert str(caught.value) == (
        "account minisend: neither systemd-sysusers nor useradd nor adduser is here to make it"
    )


def test_only_root(system):
    assert system.minisend("setup", "--system", uid=ALICE) == (
        77,
        "",
        "minisend: setup --system: only root can do this\n",
    )


@pytest.mark.parametrize(
    ("arguments", "config", "said"),
    [
        (["--root", "/x"], None, "setup: --root goes with --system"),
        (["--system"], "/x", "setup --system: takes no -C: its places are fixed"),
    ],
)
def test_usage(arguments, config, said):
    with pytest.raises(UsageError) as caught:
        main(["setup", *arguments], config)
    assert str(caught.value) == said


OWN = """\
made  /home/alice/.local/state/minisend/queue  mode 0700
1 made

Next:
  write /home/alice/.config/minisend/config.toml, see minisend.toml(5); for a smarthost:

    mail_domain = "example.org"

    [smarthost]
    host = "smtp.example.org"
    username = "user"
    password_file = "/home/alice/.config/minisend/secret"

  write the password, and then ^D:
    install -m 600 /dev/stdin /home/alice/.config/minisend/secret
  have something serve the queue: minisend run, or one of
    systemctl --user enable --now minisend.timer
    */5 * * * * /usr/local/bin/minisend flush --quiet    (a line of crontab -e)
  minisend doctor
"""


@pytest.fixture
def alice(system):
    """With a home, and a function that runs her commands."""
    home = system.root / "home/alice"
    home.mkdir(parents=True)
    shutil.chown(home, ALICE, ALICE)
    system.mounts = f"mount -t tmpfs x /home; mkdir /home/alice; mount --bind {home} /home/alice"
    return lambda *arguments: system.minisend(*arguments, uid=ALICE)


def test_own_queue(alice, system):
    assert alice("setup") == (0, OWN, "")
    queue = system.root / "home/alice/.local/state/minisend/queue"
    assert sorted(path.name for path in queue.iterdir()) == ["cur", "failed", "hold", "new", "tmp"]
    before = system.state()
    code, out, err = alice("setup")
    assert (code, out.splitlines()[:2], err) == (
        0,
        ["ok  /home/alice/.local/state/minisend/queue  mode 0700", "nothing to do"],
        "",
    )
    assert system.state() == before


def test_own_queue_is_not_what_is_needed(alice, system):
    assert system.minisend("setup", "--system")[0] == 0
    before = system.state()
    assert alice("setup") == (
        0,
        "/var/spool/minisend is the queue of all users: nothing to do, sendmail hands its mail over\n",
        "",
    )
    assert system.state() == before


def test_root_is_told_of_the_other_way(system):
    """Who sets a machine up and leaves the option away."""
    line = "  one queue for all users instead of root's own: minisend setup --system"
    system.mounts = "mount -t tmpfs x /root; export HOME=/root"
    code, out, err = system.minisend("setup")
    assert (code, out.splitlines()[:5], err) == (
        0,
        [
            "made  /root/.local/state/minisend/queue  mode 0700",
            "1 made",
            "",
            "Next:",
            line,
        ],
        "",
    )
    assert system.minisend("setup", "--system")[0] == 0
    code, out, err = system.minisend("setup")
    assert (code, line in out, err) == (0, False, "")
