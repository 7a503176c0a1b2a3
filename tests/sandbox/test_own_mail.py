"""Of two accounts neither sees, touches or forges the other's mail; root and the queue's owner see all of it."""

import os
import time

import pytest
from peers.process import wait_for

from sandbox.installed import ANN, BOB, SERVICE, Installed, identity

RETRIES = 'retry_min = "1h"\n'


@pytest.fixture
def system():
    """A message of each account in the queue, put off: the server takes none."""
    with Installed(spool=RETRIES) as made:
        made.server._answer = lambda command: b"451 4.3.0 later" if command[:4] == b"MAIL" else None
        with made.serving():
            for uid, recipient in ((ANN, "to-ann@example.net"), (BOB, "to-bob@example.net")):
                done = made.submit(recipient, uid=uid, message=b"Subject: secret\n\nHello.\n")
                assert (done.returncode, done.stderr) == (0, b"")
            wait_for(
                "both are put off",
                lambda: [each["queue_name"] for each in made.queue()] == ["deferred"] * 2,
            )
            yield made


def owned(system: Installed) -> dict[int, str]:
    """uid → queue id."""
    recipients = {"to-ann@example.net": ANN, "to-bob@example.net": BOB}
    return {
        recipients[each["recipients"][0]["address"]]: str(each["queue_id"])
        for each in system.queue()
    }


def face(system: Installed, name: str, *arguments: str, uid: int) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``mailq``, ``sendmail`` or ``minisend`` as this account."""
    command = [*system.minisend[:3], name, *system.minisend[4:], *arguments]
    done = system.run(command, uid=uid)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_each_reads_the_story_of_its_own(system):
    ids = owned(system)
    for uid in (ANN, BOB, 0, SERVICE):
        for whose, queue_id in ids.items():
            code, out, errors = face(system, "minisend", "log", queue_id, uid=uid)
            if uid in (whose, 0, SERVICE):
                assert (code, errors) == (0, "")
                assert "said: 451 4.3.0 later (in reply to MAIL FROM)" in " ".join(out.split())
            else:
                assert (code, out) == (66, "")
                assert errors.startswith(
                    f"minisend: {queue_id}: not found: looked at your messages"
                )


@pytest.mark.parametrize("name", ["mailq", "sendmail -bp", "minisend queue"])
def test_each_lists_its_own(system, name):
    first, *rest = name.split()
    shown = {uid: face(system, first, *rest, uid=uid) for uid in (ANN, BOB, 65534, 0, SERVICE)}
    for code, _, errors in shown.values():
        assert (code, errors) == (0, "")
    ids = owned(system)
    for uid, sees in {
        ANN: {ANN},
        BOB: {BOB},
        65534: set(),
        0: {ANN, BOB},
        SERVICE: {ANN, BOB},
    }.items():
        text = shown[uid][1]
        assert {each for each in (ANN, BOB) if ids[each] in text} == sees, (uid, text)
        assert ("to-ann@" in text, "to-bob@" in text) == (ANN in sees, BOB in sees)
        # Why it waits is told to its sender, too.
        assert ("later" in text) == bool(sees)


def test_each_lists_its_own_as_json(system):
    ids = owned(system)
    assert [each["queue_id"] for each in system.queue(uid=ANN)] == [ids[ANN]]
    assert [each["queue_id"] for each in system.queue(uid=BOB)] == [ids[BOB]]
    assert {each["queue_id"] for each in system.queue(uid=0)} == set(ids.values())


def test_who_asks_by_id_learns_nothing(system):
    """The answer for another's message is the one for none."""
    ids = owned(system)
    other = face(system, "minisend", "queue", ids[BOB], uid=ANN)
    absent = face(system, "minisend", "queue", "0" * 16, uid=ANN)
    assert other[0] == absent[0] != 0
    assert other[1:] == tuple(text.replace("0" * 16, ids[BOB]) for text in absent[1:])


def test_each_removes_its_own(system):
    ids = owned(system)
    other = face(system, "minisend", "rm", ids[BOB], uid=ANN)
    absent = face(system, "minisend", "rm", "0" * 16, uid=ANN)
    assert other[0] == absent[0] != 0
    assert other[2] == absent[2].replace("0" * 16, ids[BOB])
    assert set(owned(system)) == {ANN, BOB}
    assert face(system, "minisend", "rm", "--all", uid=ANN) == (0, f"{ids[ANN]}: removed\n", "")
    assert owned(system) == {BOB: ids[BOB]}
    assert face(system, "minisend", "rm", ids[BOB], uid=BOB) == (0, f"{ids[BOB]}: removed\n", "")
    assert system.kept() == []


@pytest.mark.parametrize("uid", [0, SERVICE])
def test_root_and_the_owner_remove_all(system, uid):
    code, _, errors = face(system, "minisend", "rm", "--all", uid=uid)
    assert (code, errors) == (0, "")
    assert system.kept() == []


def test_each_flushes_its_own(system):
    ids = owned(system)
    system.server._answer = lambda command: None
    assert face(system, "sendmail", "-q", uid=ANN)[0] == 0
    system.arrived("to-ann@example.net")
    wait_for("it is gone", lambda: owned(system) == {BOB: ids[BOB]})
    [bob] = system.queue()
    assert bob["queue_name"] == "deferred"
    # An hour from when it was put off, as before.
    assert bob["next_attempt"] > time.time() + 1000


def test_what_is_administration_is_root_s(system):
    ids = owned(system)
    for command in ("hold", "release", "requeue", "show"):
        code, output, errors = face(system, "minisend", command, ids[ANN], uid=ANN)
        assert code != 0
        assert output == ""
        assert errors.count("\n") == 1
    assert owned(system) == ids


def test_the_spool_cannot_be_read(system):
    """Nothing below it can be listed, opened, made or removed by who does not own it: only the drop's leaves take names."""
    places = [
        *("queue", "queue/new", "queue/cur", "queue/tmp", "queue/hold", "queue/failed", "state"),
        *("drop/new", "drop/tmp"),
    ]
    for place in places:
        for probe in ("ls {0}", "find {0}/ -mindepth 1 | grep .", "cat {0}/*"):
            done = system.run(["sh", "-c", probe.format(system.spool / place)], uid=BOB)
            assert done.returncode != 0, (place, probe, done.stdout)
            assert done.stdout == b""
    for place in ("", "queue", "queue/new", "queue/cur", "state", "drop"):
        path = system.spool / place
        for probe in (f"touch {path}/x", f"mv {path} {path}.y", f"mkdir {path}/x"):
            assert system.run(["sh", "-c", probe], uid=BOB).returncode != 0, probe
    names = list((system.spool / "queue" / "cur").iterdir())
    assert len(names) == 2
    for path in names:
        for probe in (
            f"cat {path}",
            f"rm -f {path}",
            f"ln {path} {system.spool}/drop/new/{'a' * 32}",
        ):
            assert system.run(["sh", "-c", probe], uid=BOB).returncode != 0, probe
    assert len(owned(system)) == 2


def test_a_submission_s_files_are_nobody_else_s(system):
    modes = {
        path.name: (os.stat(path).st_mode & 0o7077, os.stat(path).st_uid)
        for path in (system.spool / "queue" / "cur").iterdir()
    }
    assert set(modes.values()) == {(0, SERVICE)}


def test_nobody_says_who_somebody_else_is(system):
    """What a client says of uid and login in its envelope counts for nothing."""
    system.server._answer = lambda command: None
    forge = f"""
import sys
sys.path.insert(0, {str(system.library)!r})
from minisend.envelope import Envelope, Recipient
from minisend.spool import client
said = Envelope("0" * 16, b"ann@h.example", [Recipient(b"forged@example.net")], arrived=1.0, uid={ANN},
                login=b"uid{ANN}", sender_given=True, channel="")
client.submit({str(system.socket)!r}, b"f" * 16, said, [b"Subject: x\\n\\nHello.\\n"])
"""
    done = system.run(["/usr/bin/python3", "-IS", "-c", forge], uid=BOB)
    assert (done.returncode, done.stderr) == (0, b"")
    assert identity(system.arrived("forged@example.net")) == (b"%d" % BOB, b"uid%d" % BOB)


def test_nobody_resubmits_or_asks_after_another_s_submission(system):
    """Without its 128 bits, the queue id is worth nothing on the socket."""
    ids = owned(system)
    requests = {f"REMOVE {ids[ANN]}": 64, f"STATUS {ids[ANN] * 2}": 75, f"STATUS {ids[ANN]}": 65}
    for request, code in requests.items():
        ask = [
            "/usr/bin/python3", "-IS", "-c",
            "import socket, sys\n"
            "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); f = s.makefile('rwb')\n"
            "f.readline(); f.write(sys.argv[2].encode() + b'\\n'); f.flush(); print(f.readline())",
            str(system.socket), request,
        ]  # fmt: skip
        done = system.run(ask, uid=BOB)
        assert done.returncode == 0
        assert done.stdout.startswith(b"b'NO %d " % code), done
    assert owned(system) == ids


def test_a_file_in_the_drop_is_its_owner_s_alone():
    """Its name is 128 bits that nobody else knows; who guessed it could neither read nor remove the file."""
    with Installed() as system:
        assert system.submit("a@example.net", uid=ANN).returncode == 0
        [place] = system.kept()
        path = system.spool / place
        assert os.stat(path).st_mode & 0o777 == 0o640
        for probe in (f"cat {path}", f"rm -f {path}", f"mv {path} {path}0", f": >>{path}"):
            assert system.run(["sh", "-c", probe], uid=BOB).returncode != 0, probe
        # Replaced by another one's rename: the sticky bit.
        over = f"echo forged >{system.drop}/tmp/{'b' * 32} && mv -f {system.drop}/tmp/{'b' * 32} {path}"
        assert system.run(["sh", "-c", over], uid=BOB).returncode != 0
        system.flush()
        assert identity(system.arrived("a@example.net")) == (b"%d" % ANN, b"unverified")
