"""The Containerfile, carried out as far as that needs no container engine and no network, and then what it makes used.

In place of the base image and of what apt brings stands this machine, below an overlay that goes with the test.
"""

import json
import os
import shlex
import subprocess
from pathlib import Path

from peers.unpacked import unavailable

from minisend.config.files import SYSTEM_FILE, SYSTEM_SPOOL

ROOT = Path(__file__).resolve().parents[2]


def instructions():
    """(keyword, rest) of each line of the file, continued lines joined."""
    text = (ROOT / "packaging/container/Containerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    return [tuple(line.split(" ", 1)) for line in lines]


def of(keyword):
    return [rest for word, rest in instructions() if word == keyword]


def exec_form(text):
    return json.loads(text[text.index("[") :])


def test_what_it_says():
    assert {word for word, _ in instructions()} == {
        *("FROM", "RUN", "COPY", "VOLUME", "USER", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT"),
    }
    assert of("VOLUME") == [SYSTEM_SPOOL]
    assert [exec_form(text) for text in of("HEALTHCHECK")] == [["minisend", "check"]]
    assert [exec_form(text) for text in of("ENTRYPOINT")] == [["minisend", "run"]]
    assert of("USER") == ["mailer"]
    assert [shlex.split(text)[0] for text in of("COPY")] == ["minisend", "man", "packaging"]


# $1: an empty directory; then what to copy, and where to.  Standard input: what to do in the container.
_ENTER = """
mount -t tmpfs -o mode=755 container "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o lowerdir=/,upperdir="$1/upper",workdir="$1/work" container "$1/root"
mount -t proc proc "$1/root/proc"
mount --bind /dev "$1/root/dev"
for directory in run tmp var/spool; do
    mount -t tmpfs -o mode=1777 container "$1/root/$directory"
done
cat >"$1/root/tmp/steps"
root=$1
shift
while [ $# -gt 0 ]; do
    mkdir -p "$root/root$2"
    cp -r "$1/." "$root/root$2"
    shift 2
done
chroot "$root/root" /bin/sh -eu /tmp/steps
find "$root/upper" -type f -perm /6000
"""

_USE = f"""
mkdir -p /etc/minisend
cat >{SYSTEM_FILE} <<END
hostname = "container.example.org"
[smarthost]
host = "127.0.0.1"
port = 1
tls = "none"
END
# Whatever this machine has under these names would be found before.
rm -f /usr/local/bin/minisend /usr/local/bin/sendmail
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
as_user() {{
    setpriv --reuid=mailer --regid=mailer --clear-groups "$@"
}}
cd /
as_user minisend check
as_user sendmail -odq bob@example.net </dev/null
# The network has not even a loopback that is up: an attempt fails at once.
unshare --net --pid --fork setpriv --reuid=mailer --regid=mailer --clear-groups minisend run --exit-idle 1 2>/tmp/log
as_user minisend queue --json
as_user minisend check
"""


def test_it_works():
    if os.geteuid() != 0:
        unavailable("mounts of its own need root")
    copies = []
    steps = []
    for word, rest in instructions():
        if word == "COPY":
            source, target = rest.split()
            assert target.endswith("/")
            copies += [ROOT / source, target]
        elif word == "RUN" and "apt-get" not in rest:
            steps.append(rest.replace("ln -s ", "ln -sf "))
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *("sh", "-euc", _ENTER, "container", "/mnt", *copies),
        ],
        input="\n".join([*steps, _USE]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, queue, after, *set_id = done.stdout.splitlines()
    assert (before, set_id) == ("ok: 0 messages waiting", [])
    told = json.loads(queue)
    assert (told["state"], told["recipients"][0]["address"], told["sender"]) == (
        "deferred",
        "bob@example.net",
        "mailer",
    )
    assert after.startswith("ok: 1 message waiting")


def test_the_readme_names_it():
    assert "packaging/container/Containerfile" in (ROOT / "README.md").read_text()
