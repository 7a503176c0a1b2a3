"""minisend doctor: all is well; then each fault, planted alone, is its row, and the only one that changes."""

import json
import os
import re
import shutil
import socket
import subprocess
import threading

import pytest
from admin.system import ALICE, HOSTNAME, ROOT
from peers.unpacked import unavailable

from minisend.admin.command import main
from minisend.admin.doctor import machine, report, systemd
from minisend.config.load import load
from minisend.delivery.oauth.client import Client
from minisend.delivery.oauth.store import Store, Tokens
from minisend.spool.layout import ACCOUNT, DIRECTORIES, UNITS

SPOOL = "/var/spool/minisend"
SOCKET = "/run/minisend/submit.sock"
SECRET = "/etc/minisend/secrets.d/smarthost"
SETUP = "minisend setup --system"
CONFIG = f"""\
[smarthost]
host = "smtp.example.org"
username = "user"
password_file = "{SECRET}"
"""


class Listener:
    """Something on a socket that says ``greeting`` to everybody who comes."""

    def __init__(self, path, greeting):
        self._socket = socket.socket(socket.AF_UNIX)
        # A path of the tests is longer than a socket's may be.
        directory = os.open(path.parent, os.O_PATH)
        self._socket.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.close(directory)
        path.chmod(0o666)
        self._socket.listen()
        self._greeting = greeting
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client:
                client.sendall(self._greeting)

    def close(self):
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


@pytest.fixture
def greeting():
    return b"minisend 1\n"


@pytest.fixture
def well(system, greeting):
    """A machine on which nothing is wrong, but that nobody delivers at this moment."""
    assert system.minisend("setup", "--system")[0] == 0
    system.write("etc/minisend/config.toml", CONFIG)
    secret = system.write(SECRET[1:], "secret\n", 0o640)
    shutil.chown(secret, 0, system.number(ACCOUNT, "group"))
    listener = Listener(system.root / SOCKET[1:], greeting)
    yield system
    listener.close()


def rows(out):
    """Each row as (state, what, text, command); the table's form is checked on the way, what differs each time goes."""
    found = []
    lines = out.splitlines()
    width = max(
        len(line.split()[1])
        for line in lines
        if line[:6].strip()[:4] in ("ok", "warn", "fail", "-")
    )
    assert width
    for line in lines:
        if line.startswith("      "):
            found[-1] = (*found[-1][:3], line.strip())
        else:
            state, what, text = re.fullmatch(r"(ok|warn|fail|-) +(.+?)  +(.*)", line).groups()
            text = re.sub(r"\d+-\d\d-\d\d \d\d:\d\d:\d\d \+0000", "TIME", text)
            text = re.sub(r"[0-9.]+[KMG] free", "SIZE free", text)
            found.append((state, what, text, ""))
    return found


def doctor(system, *arguments, uid=0):
    code, out, err = system.minisend("doctor", *arguments, uid=uid)
    assert err == ""
    return code, rows(out)


def called():
    """What the rows say of the names that programs call; this machine may have none of them."""
    for path in ("/usr/sbin/sendmail", "/usr/lib/sendmail"):
        if os.path.exists(path):
            yield "ok", path, "is minisend's", ""
        elif path == "/usr/sbin/sendmail":
            command = "ln -s /usr/local/bin/sendmail /usr/sbin/sendmail"
            yield "warn", path, "there is none, and most programs call it", command


def usual(system):
    """What root is told when all is well."""
    return [
        ("ok", "configuration", "/etc/minisend/config.toml", ""),
        ("ok", "account", f"minisend, uid {system.number(ACCOUNT)}", ""),
        *(
            ("ok", row.path, f"{row.owner}:{row.group} {row.mode:04o}", "")
            for row in DIRECTORIES
            if row.path != "/run/minisend"
        ),
        ("ok", "/run/minisend", "minisend:minisend 0755", ""),
        ("ok", "fs.protected_hardlinks", "1", ""),
        ("ok", "fs.protected_symlinks", "1", ""),
        ("ok", "room", f"{SPOOL}: more than [spool] min_free and min_free_inodes", ""),
        ("ok", SOCKET, "answers: minisend 1", ""),
        ("ok", "queue", "0 messages waiting, SIZE free", ""),
        (
            *("ok", "[smarthost] password_file"),
            *(f"{SECRET}: can be read by who delivers, and not by everybody", ""),
        ),
        (
            *("warn", "served", "by nobody at this moment; cron or a timer may run minisend flush"),
            "minisend run",
        ),
        ("ok", "hostname", HOSTNAME, ""),
        ("ok", "clock", "TIME", ""),
        ("ok", "/usr/local/bin/sendmail", "is minisend's", ""),
        *called(),
        ("ok", "set-id bits", "none on a file of minisend", ""),
    ]


def test_all_is_well(well):
    before = well.state()
    assert doctor(well) == (0, usual(well))
    # But for the times of the queue's tmp, to which nothing was written yet: nothing has changed.
    assert well.state() == before


def test_the_table_is_aligned(well):
    _, out, _ = well.minisend("doctor")
    told = [line for line in out.splitlines() if line[0] != " "]
    [column] = {re.match(r"\S+ +(?:\[smarthost\] )?\S+(?: bits)? +", line).end() for line in told}
    assert column == len("warn  ") + len(f"{SPOOL}/drop/tmp") + 2


def test_json(well):
    code, out, err = well.minisend("doctor", "--json")
    told = json.loads(out)
    assert (code, err, out.count("\n"), set(told), told["ok"]) == (0, "", 1, {"ok", "checks"}, True)
    assert [(c["state"], c["what"], c["command"]) for c in told["checks"]] == [
        (state, what, command) for state, what, _, command in usual(well)
    ]


def test_for_an_ordinary_user(well):
    """Sees what anybody may see, and says what not; the secret must be closed to them."""
    expected = usual(well)
    names = [row[1] for row in expected]
    place = names.index("queue")
    assert names[place : place + 3] == ["queue", "[smarthost] password_file", "served"]
    expected[place : place + 3] = [
        ("-", "queue", "only root and minisend may look into it", ""),
        ("ok", "[smarthost] password_file", f"{SECRET}: uid {ALICE} cannot read it", ""),
    ]
    assert doctor(well, uid=ALICE) == (0, expected)


def test_for_the_account_itself(well):
    assert doctor(well, uid=well.number(ACCOUNT)) == (0, usual(well))


# -- each fault alone --------------------------------------------------------------------------


def chmod(path, mode):
    return lambda system: (system.root / path[1:]).chmod(mode)


def chown(path, uid, gid):
    return lambda system: os.chown(system.root / path[1:], uid, gid)


def link(path):
    def plant(system):
        (system.root / path[1:]).rmdir()
        (system.root / path[1:]).symlink_to("/etc")

    return plant


def remove(path):
    return lambda system: (system.root / path[1:]).rmdir()


def account(**changed):
    """Change fields of the account's line, or the members of its group."""

    def plant(system):
        uid, gid = system.number(ACCOUNT), system.number(ACCOUNT, "group")
        passwd, group = system.root / "etc/passwd", system.root / "etc/group"
        line = f"minisend:x:{uid}:{changed.get('gid', gid)}::/nonexistent:{changed.get('shell', '/bin/false')}"
        passwd.write_text(re.sub("^minisend:.*$", line, passwd.read_text(), flags=re.M))
        members = changed.get("members", "")
        group.write_text(
            re.sub("^minisend:.*$", f"minisend:x:{gid}:{members}", group.read_text(), flags=re.M)
        )

    return plant


def mounted(command):
    def plant(system):
        system.mounts = command

    return plant


def set_hostname(name):
    def plant(system):
        system.hostname = name

    return plant


def old_in_drop(count):
    """Handed in before the clock of the commands was put ahead."""

    def plant(system):
        for number in range(count):
            system.write(f"var/spool/minisend/drop/new/{number:032x}", "x")

    return plant


FAULTS = {
    "queue open to all": (
        chmod(f"{SPOOL}/queue", 0o755),
        (f"{SPOOL}/queue", "mode is 0755, not 0700", SETUP),
    ),
    "no sticky bit": (
        chmod(f"{SPOOL}/drop/new", 0o2733),
        (f"{SPOOL}/drop/new", "mode is 2733, not 3733", SETUP),
    ),
    "no set-group-id bit": (
        chmod(f"{SPOOL}/drop/tmp", 0o1733),
        (f"{SPOOL}/drop/tmp", "mode is 1733, not 3733", SETUP),
    ),
    "spool of another": (
        chown(SPOOL, ALICE, 0),
        (SPOOL, f"owner and group are {ALICE}:0, not 0:0", SETUP),
    ),
    "secrets open to all": (
        chmod("/etc/minisend/secrets.d", 0o755),
        ("/etc/minisend/secrets.d", "mode is 0755, not 0750", SETUP),
    ),
    "state missing": (remove(f"{SPOOL}/state"), (f"{SPOOL}/state", "missing", SETUP)),
    "drop is a link": (
        link(f"{SPOOL}/drop/new"),
        (f"{SPOOL}/drop/new", "is a symbolic link", f"rm {SPOOL}/drop/new && {SETUP}"),
    ),
    "tokens missing": (remove("/var/lib/minisend"), ("/var/lib/minisend", "missing", SETUP)),
    "account can log in": (
        account(shell="/bin/bash"),
        (
            *("account", "minisend: it can log in: its shell is /bin/bash"),
            "usermod --shell /usr/sbin/nologin minisend",
        ),
    ),
    "somebody in the group": (
        account(members="alice"),
        (
            *("account", "minisend: its group has other members: alice"),
            "gpasswd --delete alice minisend",
        ),
    ),
    "secret open to all": (
        chmod(SECRET, 0o644),
        (
            "[smarthost] password_file",
            f"{SECRET}: mode 0644 lets every user in: chmod o= it, or set secret_mode_check = false",
            f"chown root:minisend {SECRET} && chmod 640 {SECRET}",
        ),
    ),
    "secret closed to the account": (
        chmod(SECRET, 0o600),
        (
            "[smarthost] password_file",
            f"{SECRET}: cannot be opened: Permission denied: "
            "the user that runs the deliveries must be able to read it",
            f"chown root:minisend {SECRET} && chmod 640 {SECRET}",
        ),
    ),
    "secret missing": (
        lambda system: (system.root / SECRET[1:]).unlink(),
        (
            "[smarthost] password_file",
            f"{SECRET}: cannot be opened: No such file or directory: "
            "the user that runs the deliveries must be able to read it",
            f"install -g minisend -m 640 /dev/stdin {SECRET}",
        ),
    ),
    "secret empty": (
        lambda system: (system.root / SECRET[1:]).write_text(""),
        (
            "[smarthost] password_file",
            f"{SECRET}: empty: expected the password",
            f"install -g minisend -m 640 /dev/stdin {SECRET}",
        ),
    ),
    "no host name": (
        set_hostname("localhost"),
        (
            *(
                "hostname",
                "localhost: servers refuse it; hostname in the configuration counts before it",
            ),
            "hostnamectl set-hostname host.example.org",
        ),
    ),
    "set-id bit": (
        chmod("/usr/local/bin/sendmail", 0o2755),
        (
            *("set-id bits", "/usr/local/bin/sendmail: nothing of minisend needs one"),
            "chmod ug-s /usr/local/bin/sendmail",
        ),
    ),
    "no room": (
        mounted(
            f"mount -t tmpfs -o size=4m,mode=755 x {SPOOL} && minisend setup --system >/dev/null"
        ),
        (
            "room",
            f"{SPOOL}: its file system has SIZE free, less than [spool] min_free (16M)",
            f"df -h {SPOOL}; df -i {SPOOL}",
        ),
    ),
    "queue of another version": (
        lambda system: broken(system),
        (
            "queue",
            "1 file is broken, nobody was told: see minisend queue --state failed",
            "minisend queue --state failed",
        ),
    ),
}


def broken(system):
    queue = system.root / "var/spool/minisend/queue"
    uid, gid = system.number(ACCOUNT), system.number(ACCOUNT, "group")
    for name in ("new", "cur", "hold", "failed", "tmp"):
        (queue / name).mkdir(0o700)
        os.chown(queue / name, uid, gid)
    path = system.write("var/spool/minisend/queue/failed/0000000000000001", "rubbish", 0o600)
    os.chown(path, uid, gid)


@pytest.mark.parametrize("name", FAULTS)
def test_fault(well, name):
    plant, (what, text, command) = FAULTS[name]
    expected = usual(well)
    plant(well)
    [place] = [i for i, row in enumerate(expected) if row[1] == what]
    expected[place] = ("fail", what, text, command)
    assert doctor(well) == (1, expected)


WARNINGS = {
    "hard links": (
        "fs.protected_hardlinks",
        "0: users may lay links to what is not theirs",
        "echo 'fs.protected_hardlinks = 1' >>/etc/sysctl.d/60-minisend.conf && sysctl --system",
    ),
    "symbolic links": (
        "fs.protected_symlinks",
        "0: users may lay links to what is not theirs",
        "echo 'fs.protected_symlinks = 1' >>/etc/sysctl.d/60-minisend.conf && sysctl --system",
    ),
    "bare host name": (
        "hostname",
        "box: servers may refuse a name without a domain; hostname in the configuration counts before it",
        "hostnamectl set-hostname box.example.org",
    ),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_warning(well, name):
    what, text, command = WARNINGS[name]
    if name == "bare host name":
        well.hostname = "box"
    else:
        well.sysctls[what.removeprefix("fs.")] = 0
    expected = [("warn", what, text, command) if row[1] == what else row for row in usual(well)]
    assert doctor(well) == (0, expected)


@pytest.mark.parametrize("there", [True, False])
def test_dnspython_as_packages_start_it(well, there):
    """By python3 -S, which sees no site-packages."""
    code = "import site; print(*site.getsitepackages())"
    told = subprocess.run(
        ["/usr/bin/python3", "-c", code], capture_output=True, text=True, check=True
    )
    # /usr/local is the test's own.
    places = [path for path in told.stdout.split() if not path.startswith("/usr/local/")]
    place = next(filter(os.path.isdir, places), None)
    if place is None:
        unavailable("the system's Python has no site-packages")
    if there:
        well.write("packages/dns/__init__.py", "")
    (well.root / "packages").mkdir(exist_ok=True)
    well.mounts = f"mount --bind {well.root}/packages {place}"
    well.write("etc/minisend/config.toml", "")
    [row] = [row for row in doctor(well)[1] if row[1] == "dns"]
    missing = "dnspython is not installed: the MX hosts of recipients cannot be found"
    assert row[2] == ("dnspython is installed" if there else missing)


def test_read_only(well):
    """As under ProtectSystem=strict: nothing can be handed in by the drop."""
    well.mounts = f"mount --bind {SPOOL} {SPOOL} && mount -o remount,bind,ro {SPOOL}"
    code, found = doctor(well)
    assert code == 1
    command = f"mount -o remount,rw {SPOOL}"
    assert [row for row in found if row[0] == "fail"] == [
        ("fail", f"{SPOOL}/{name}", "is on a read-only file system", command)
        for name in ("queue", "state", "drop/tmp", "drop/new")
    ]


@pytest.mark.parametrize(
    ("greeting", "row"),
    [
        (b"busy\n", ("warn", SOCKET, "busy: mail goes to the drop", "")),
        (b"220 hello\r\n", ("fail", SOCKET, r"is not minisend's: it says b'220 hello\r'", "minisend run")),
        (b"", ("fail", SOCKET, "is not minisend's: it says b''", "minisend run")),
    ],
)  # fmt: skip
def test_who_is_on_the_socket(well, row):
    expected = [row if there[1] == SOCKET else there for there in usual(well)]
    assert doctor(well) == (int(row[0] == "fail"), expected)


@pytest.mark.parametrize(
    ("left", "why"), [(False, "No such file or directory"), (True, "Connection refused")]
)
def test_nobody_on_the_socket(system, left, why):
    assert system.minisend("setup", "--system")[0] == 0
    if left:
        Listener(system.root / SOCKET[1:], b"").close()
    code, found = doctor(system)
    assert code == 1
    text = f"nobody takes mail here: {why}"
    assert ("fail", SOCKET, text, "minisend run") in found
    system.write(
        "etc/minisend/config.toml", "[submission]\nsocket = false\ndrop = false\n" + CONFIG
    )
    _, found = doctor(system)
    assert [row[1:3] for row in found if "off" in row[2]] == [
        ("drop", "off, see [submission] drop"),
        ("socket", "off, see [submission] socket"),
    ]
    assert [row for row in found if row[1].startswith(f"{SPOOL}/drop")] == []


@pytest.fixture
def booted(well):
    """systemd is there, and says "active" of the units in etc/active."""
    (well.root / "run/systemd/system").mkdir(parents=True)
    os.chown(well.root / "run/minisend", 0, 0)
    well.write("etc/active", "".join(f"{unit}\n" for unit in UNITS))
    well.write(
        "usr/local/bin/systemctl",
        '#!/bin/sh\n[ "$1" != cat ] || exec cat /etc/unit\n[ "$1" != show ] || exec cat /etc/shown\nshift\ncode=0\n'
        'for unit; do if grep -qx "$unit" /etc/active; then echo active; else echo inactive; code=3; fi; done\n'
        "exit $code\n",
        0o755,
    )
    return well


@pytest.mark.parametrize("uid", [0, ALICE])
def test_systemd(booted, uid):
    code, found = doctor(booted, uid=uid)
    assert (code, [row for row in found if row[1] == "served"]) == (
        0,
        [("ok", "served", "systemd starts the delivery when there is something", "")],
    )
    assert ("ok", "/run/minisend", "root:root 0755", "") in found
    booted.write(
        "etc/active", "minisend-submit.socket\nminisend-accept.path\nminisend-accept.timer\n"
    )
    code, found = doctor(booted, uid=uid)
    assert (code, [row for row in found if row[0] == "fail"]) == (
        1,
        [
            (
                *("fail", "served"),
                "nobody delivers: not active: minisend-deliver.path, minisend-deliver.timer",
                f"systemctl enable --now {' '.join(UNITS)}",
            )
        ],
    )


def test_served(well):
    """Somebody of the account has the trigger open."""
    trigger = well.root / "var/spool/minisend/state/trigger"
    os.mkfifo(trigger, 0o600)
    os.chown(trigger, well.number(ACCOUNT), well.number(ACCOUNT, "group"))
    expected = [
        ("ok", "served", "minisend run is there", "") if row[1] == "served" else row
        for row in usual(well)
    ]
    assert ("warn", "served") in [row[:2] for row in doctor(well)[1]]
    reading = os.open(trigger, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert doctor(well) == (0, expected)
        # Nothing was written: whoever serves the queue is not woken.
        assert os.read(reading, 1) == b""
    finally:
        os.close(reading)


def test_what_waits_in_the_drop(well):
    old_in_drop(3)(well)
    assert doctor(well) == (0, usual(well))
    # From now on half an hour is nothing.
    package = well.root / "usr/local/lib/minisend/minisend/admin"
    check = package / "check.py"
    check.write_text(check.read_text().replace("OVERDUE = 1800", "OVERDUE = -60"))
    shutil.rmtree(package / "__pycache__")
    code, found = doctor(well)
    assert (code, [row for row in found if row[0] == "fail"]) == (
        1,
        [
            (
                *("fail", f"{SPOOL}/drop/new"),
                "3 of what was handed in waits for more than -1 minutes: nobody takes it",
                "minisend flush",
            )
        ],
    )


def test_a_secret_that_an_ordinary_user_can_read(well):
    (well.root / SECRET[1:]).chmod(0o644)
    (well.root / "etc/minisend/secrets.d").chmod(0o755)
    code, found = doctor(well, uid=ALICE)
    assert (code, [row for row in found if row[1] == "[smarthost] password_file"]) == (
        1,
        [
            (
                *("fail", "[smarthost] password_file", f"{SECRET}: uid {ALICE} can read it"),
                f"chown root:minisend {SECRET} && chmod 640 {SECRET}",
            )
        ],
    )


def test_a_configuration_that_nobody_delivers_by(well):
    """One of a user's own says how they hand mail over, and no more."""
    file = "/etc/alice.toml"
    well.write(file[1:], '[smarthost]\nhost = "smtp.example.net"\n')
    well.mounts = f"export MINISEND_CONFIG={file}"
    for uid, place in ((ALICE, "queue"), (0, "/run/minisend/submit.sock")):
        expected = usual(well)
        names = [row[1] for row in expected]
        expected[0] = ("ok", "configuration", file, "")
        if uid:
            at = names.index("queue")
            expected[at : at + 3] = [
                ("-", "queue", "only root and minisend may look into it", ""),
                ("ok", "[smarthost] password_file", f"{SECRET}: uid {ALICE} cannot read it", ""),
            ]
        text = f"of {file} the delivery knows nothing: it reads /etc/minisend/config.toml"
        row = ("warn", "configuration", text, "")
        expected.insert(names.index(place) + 1, row)
        assert doctor(well, uid=uid) == (0, expected)


def test_a_configuration_that_is_newer_than_the_service(booted):
    """It is read when a service starts."""
    config = booted.root / "etc/minisend/config.toml"
    changed = int(config.stat().st_mtime)
    told = "ExecMainStartTimestamp=@{}\nId=minisend-{}.service\nActiveState={}\n"
    command = "systemctl try-restart minisend-accept.service minisend-deliver.service"

    def warned(*services):
        booted.write("etc/shown", "\n".join(told.format(*service) for service in services))
        code, found = doctor(booted)
        rows = [row for row in found if row[1] == "configuration"]
        assert (code, rows[0][0]) == (0, "ok")
        return rows[1:]

    later, before = changed + 5, changed - 5
    assert warned((later, "accept", "active"), (later, "deliver", "active")) == []
    assert warned((before, "accept", "inactive"), (later, "deliver", "active")) == []
    assert warned((later, "accept", "active"), (before, "deliver", "active")) == [
        (
            *("warn", "configuration"),
            "changed since minisend-deliver.service started, which read it only then",
            command,
        )
    ]
    # What lies beside it counts too.
    booted.write("etc/minisend/conf.d/more.toml", "")
    os.utime(config.parent / "conf.d/more.toml", (later + 5, later + 5))
    os.utime(config.parent / "conf.d", (before, before))
    assert warned((later, "accept", "active"), (later, "deliver", "active")) == [
        (
            *("warn", "configuration"),
            "changed since minisend-accept.service and minisend-deliver.service started, which read it only then",
            command,
        )
    ]


CREDENTIAL = """\
[smarthost]
host = "smtp.example.org"
username = "user"
credential = "mail"
"""


@pytest.mark.parametrize(
    ("unit", "given"),
    [
        ("[Service]\nLoadCredential=mail:/etc/secret\n", True),
        ("[Service]\nLoadCredentialEncrypted=mail\n", True),
        ("[Service]\n#LoadCredential=mail:/etc/secret\nLoadCredential=mailer:/x\n", False),
    ],
)
def test_a_credential(booted, unit, given):
    """Only the service sees it; whether it does, its unit says."""
    booted.write("etc/minisend/config.toml", CREDENTIAL)
    booted.write("etc/unit", unit)
    code, found = doctor(booted)
    name = "minisend-deliver.service"
    row = (
        ("ok", "[smarthost] credential", f"mail: {name} is given it", "")
        if given
        else (
            *("fail", "[smarthost] credential"),
            f"mail: {name} is not given it: it needs LoadCredential=mail:/path/to/secret",
            f"systemctl edit {name}",
        )
    )
    assert [row for row in found if "credential" in row[1]] == [row]
    assert code == int(not given)


def test_configuration_that_is_wrong(well):
    well.write("etc/minisend/config.toml", "nonsense = 1\n")
    code, found = doctor(well)
    assert code == 1
    [row] = [row for row in found if row[0] == "fail"]
    assert row[:2] == ("fail", "configuration")
    assert row[2].startswith("/etc/minisend/config.toml:1: ")
    # What needs no configuration is looked at all the same.
    assert [row[1] for row in found if row[1].startswith(SPOOL)] == [
        row.path for row in DIRECTORIES if row.path.startswith(SPOOL)
    ]


def test_configuration_that_the_account_cannot_read(well):
    (well.root / "etc/minisend/config.toml").chmod(0o600)
    code, found = doctor(well)
    assert (code, [row for row in found if row[0] == "fail"]) == (
        1,
        [
            (
                *("fail", "configuration"),
                "for minisend: /etc/minisend/config.toml: cannot read it: Permission denied",
                "",
            )
        ],
    )


def test_before_setup(system):
    """No account, no spool: root has a queue of its own like everybody, and is told what would be one for all."""
    code, found = doctor(system)
    assert code in (0, 1)  # for dnspython, which this machine may lack
    assert [row[1] for row in found if row[1] not in ("dns", "clock")] == [
        *("configuration", "system", "queue", "served", "hostname", "/usr/local/bin/sendmail"),
        *(row[1] for row in called()),
        "set-id bits",
    ]
    assert found[1] == ("ok", "system", "no queue for all users here", "minisend setup --system")


def test_a_configuration_that_root_passes_over(well):
    """Who tries minisend as root puts it where a user would."""
    file = "/etc/home/.config/minisend/config.toml"
    well.write(file[1:], CONFIG)
    well.mounts = "export HOME=/etc/home"
    text = f"{file} is not read: root's is /etc/minisend/config.toml"
    expected = usual(well)
    expected.insert(1, ("warn", "configuration", text, ""))
    assert doctor(well) == (0, expected)
    (well.root / "etc/minisend/config.toml").unlink()
    command = f"install -D -m 644 {file} /etc/minisend/config.toml"
    assert doctor(well)[1][1] == ("warn", "configuration", text, command)
    assert well.run(*command.split()).returncode == 0
    assert doctor(well) == (0, expected)


def test_account_is_gone(well):
    passwd = well.root / "etc/passwd"
    passwd.write_text(re.sub("^minisend:.*\n", "", passwd.read_text(), flags=re.M))
    code, found = doctor(well)
    assert (code, [row for row in found if row[0] == "fail"]) == (
        1,
        [("fail", "account", "there is no account minisend", SETUP)],
    )


# -- a queue of one's own, in this process -----------------------------------------------------


@pytest.fixture
def own(crafted, capfd, monkeypatch, tmp_path):
    """Runs doctor for a crafted queue; what is said of the rest of the machine goes."""
    # Made long before the fixed time of these tests.
    made = tmp_path / "package" / "__init__.py"
    made.parent.mkdir()
    made.touch()
    os.utime(made, (86400, 86400))
    monkeypatch.setattr(machine.minisend, "__file__", str(made))
    monkeypatch.setattr(report.accounts, "find", lambda: None)
    monkeypatch.setattr(systemd, "BOOTED", "/nonexistent")
    monkeypatch.setattr(machine, "_sendmail", lambda: iter(()))

    def run():
        code = main(["doctor"], str(crafted.config))
        out, err = capfd.readouterr()
        assert err == ""
        return code, rows(out)

    return run


def failed(found):
    return [row[1:] for row in found if row[0] == "fail"]


@pytest.fixture
def no_dns(crafted):
    with crafted.config.open("a") as file:
        file.write('[smarthost]\nhost = "127.0.0.1"\n')


def test_own_queue_is_well(crafted, own, no_dns):
    crafted.add("0000000000000001")
    code, found = own()
    assert (code, failed(found)) == (0, [])
    assert [row[1:3] for row in found if row[1] in ("queue", "room")] == [
        ("queue", "1 message waiting, SIZE free"),
        ("room", f"{crafted.path}: more than [spool] min_free and min_free_inodes"),
    ]


def test_own_queue_open_to_others(crafted, own, no_dns):
    crafted.add("0000000000000001")
    (crafted.path / "queue").chmod(0o777)
    text = f"{crafted.path}/queue: others can write there (mode 0777): chmod go-w it"
    code, found = own()
    assert (code, failed(found)) == (1, [("queue", text, f"chmod -R go-w {crafted.path}")])
    subprocess.run(failed(found)[0][2], shell=True, check=True)
    assert own()[0] == 0


def test_secret_of_ones_own(crafted, own, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x\n")
    secret.chmod(0o644)
    with crafted.config.open("a") as file:
        file.write(
            f'[smarthosts.shop]\nhost = "127.0.0.1"\nusername = "u"\npassword_file = "{secret}"\n'
        )
        file.write('[smarthost]\nhost = "127.0.0.1"\n')
        file.write(
            '[smarthosts.pass]\nhost = "h"\nusername = "u"\npassword_command = ["/nonexistent/pass"]\n'
        )
        file.write('[smarthosts.unit]\nhost = "h"\nusername = "u"\ncredential = "mail"\n')
    code, found = own()
    assert (code, failed(found)) == (
        1,
        [
            (
                "[smarthosts.shop] password_file",
                f"{secret}: mode 0644 lets every user in: chmod o= it, or set secret_mode_check = false",
                f"chmod 600 {secret}",
            ),
            (
                *("[smarthosts.pass] password_command", "there is no program /nonexistent/pass"),
                "ls -l /nonexistent/pass",
            ),
        ],
    )
    assert ("-", "[smarthosts.unit] credential", "mail: only the service sees it", "") in found


def test_tokens(crafted, own, tmp_path):
    """Of a smarthost that wants a login; whose the file is and what else is wrong with it is the store's to say."""
    file = tmp_path / "tokens" / "shop.json"
    with crafted.config.open("a") as config:
        config.write(
            f"""[smarthost]
host = "127.0.0.1"
[smarthosts.shop]
host = "127.0.0.1"
username = "ann"
oauth2_provider = "google"
oauth2_client_id = "id"
oauth2_token_file = "{file}"
[smarthosts.robot]
host = "127.0.0.1"
username = "robot"
oauth2_provider = "microsoft365"
oauth2_grant = "client_credentials"
oauth2_client_id = "id"
oauth2_tenant = "example.org"
oauth2_client_secret_file = "/dev/null"
"""
        )
    what, command = "[smarthosts.shop] oauth2", "minisend login shop"
    rows_of = lambda found: [row for row in found if row[1].endswith(" oauth2")]  # noqa: E731
    missing = ("fail", what, f"no tokens of ann in {file}", command)
    assert rows_of(own()[1]) == [missing]
    config = load(str(crafted.config), {}, os.geteuid(), os.geteuid())
    client = Client(config.smarthosts["shop"], "shop", {}, os.geteuid())
    with Store(str(file), os.geteuid(), create=True) as store, store.replacement() as replacement:
        store.write(replacement, Tokens("a", "r", 0, 0), {**client.binding(), "account": "bob"})
    assert rows_of(own()[1]) == [missing]
    with Store(str(file), os.geteuid(), create=True) as store, store.replacement() as replacement:
        store.write(replacement, Tokens("a", "r", 0, 0), client.binding())
    assert rows_of(own()[1]) == [("ok", what, f"tokens of ann are in {file}", "")]
    file.chmod(0o644)
    [row] = rows_of(own()[1])
    assert (row[0], row[3], "lets others in" in row[2]) == ("fail", command, True)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    ("program", "commands"),
    [
        ("apt-get", ("apt-get install python3-dnspython", "apt-get install python3-cryptography")),
        ("dnf", ("dnf install python3-dns", "dnf install python3-cryptography")),
        ("", ("python3 -m pip install dnspython", "python3 -m pip install cryptography")),
    ],
)
def test_packages(crafted, own, monkeypatch, there, program, commands):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: (there or None) if name in ("dns", "cryptography") else find(name),
    )
    monkeypatch.setattr(
        machine.shutil, "which", lambda name, **_: name if name == program else None
    )
    with crafted.config.open("a") as config:
        config.write(
            """[smarthosts.robot]
host = "127.0.0.1"
username = "robot"
oauth2_provider = "google"
oauth2_grant = "service_account"
oauth2_service_account_file = "/nonexistent"
"""
        )
    found = [row for row in own()[1] if row[1] in ("dns", "oauth2")]
    if there:
        assert found == [
            ("ok", "dns", "dnspython is installed", ""),
            ("ok", "oauth2", "cryptography is installed", ""),
        ]
    else:
        hosts = "dnspython is not installed: the MX hosts of recipients cannot be found"
        sign = "cryptography is not installed: a service account cannot sign"
        assert found == [
            ("fail", "dns", hosts, commands[0]),
            ("fail", "oauth2", sign, commands[1]),
        ]


def test_clock(crafted, own, no_dns):
    # A context of its own: what ``monkeypatch`` puts back, it puts back after ``fixed_time`` has ended.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: -60.0)
        code, found = own()
    text = "TIME: before this program was made; mail waits or expires at the wrong time"
    assert (code, failed(found)) == (1, [("clock", text, "timedatectl set-ntp true")])


@pytest.mark.parametrize("whose", ["root's", "a user's", "nobody's"])
def test_no_sendmail(monkeypatch, tmp_path, whose):
    """A link of the system's never leads to what a user can replace."""
    missing = "/nonexistent/sbin/sendmail"
    directory = tmp_path / "bin"
    ours = directory / "sendmail"
    if whose != "nobody's":
        directory.mkdir()
        ours.write_text("#!/bin/sh\n")
    stat = os.stat

    def owned(path, **options):
        fields = list(stat(path, **options))
        fields[4] = 0 if whose == "root's" else 1000
        return os.stat_result(fields)

    monkeypatch.setattr(machine.os, "stat", owned)
    monkeypatch.setattr(machine, "_CALLED", (missing,))
    monkeypatch.setattr(
        machine.shutil,
        "which",
        lambda name, **_: str(directory / name) if name == "minisend" else None,
    )
    [check] = machine._sendmail()
    install = f"sh {ROOT}/packaging/install"
    text = "there is none, and most programs call it"
    assert (check.state, check.what, check.text, check.command) == (
        *("warn", missing),
        *{
            "root's": (text, f"ln -s {ours} {missing}"),
            "a user's": (f"{text}: tell those of yours to call {ours}", ""),
            "nobody's": (text, install),
        }[whose],
    )


def test_foreign_sendmail(crafted, capfd, monkeypatch, tmp_path):
    foreign = tmp_path / "sendmail"
    foreign.write_text("#!/bin/sh\n")
    monkeypatch.setattr(machine, "_CALLED", (str(foreign),))
    monkeypatch.setattr(machine.shutil, "which", lambda name, **_: None)
    assert [(c.state, c.what, c.text) for c in machine._sendmail()] == [
        ("warn", str(foreign), f"is not minisend's: {foreign}")
    ]
