"""A system's spool with its drop directory, and accounts that are numbers: no entry in /etc/passwd is needed.

As root its parts belong to whom they must, and what is done as another account is done in a child process that has become
that account for good.  As anybody else there is one account, which owns all of it.
"""

# Loaded now: another account may not be able to read the interpreter's files.
import encodings.idna  # noqa: F401
import inspect
import os
import pickle
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from minisend.envelope import Envelope, Recipient
from minisend.spool import drop, ingest
from minisend.spool.place import LEAF_MODE, LEAVES, STATES
from minisend.spool.store import Queue

ROOT = os.geteuid() == 0
#: The delivering account, and two that submit.
OURS, ANN, BOB = (61001, 61002, 61003) if ROOT else (os.geteuid(),) * 3
MESSAGE = b"Subject: hello\n\nHello.\n"
LIMIT = 10_000_000
T = TypeVar("T")
#: A module, what of its source is taken out, and what stands there instead.
Defence = tuple[ModuleType, str, str]


class Ended(Exception):
    """A process was ended before it came to an answer."""


class System:
    """``top`` can be entered by all; ``home(uid)`` is a directory of that account's beside the spool."""

    def __init__(self, top: Path, leaf_mode: int = LEAF_MODE) -> None:
        self.top = top
        self.spool = str(top / "spool")
        self.drop = f"{self.spool}/drop"
        gid = OURS if ROOT else os.getegid()
        for path in (self.spool, self.drop):
            os.mkdir(path)
            os.chmod(path, 0o755)
        made = ["queue", "state", *(f"queue/{state}" for state in STATES)]
        for name, mode in [
            *((name, 0o700) for name in made),
            *((f"drop/{leaf}", leaf_mode) for leaf in LEAVES),
        ]:
            path = f"{self.spool}/{name}"
            os.mkdir(path)
            os.chown(path, OURS, gid)
            os.chmod(path, mode)

    def home(self, uid: int) -> str:
        path = f"{self.top}/home{uid}"
        os.makedirs(path, exist_ok=True)
        os.chown(path, uid, uid if ROOT else os.getegid())
        return path

    def leaf(self, leaf: str) -> list[str]:
        return sorted(os.listdir(f"{self.drop}/{leaf}"))

    def put(
        self,
        uid: int = ANN,
        submission: bytes = b"",
        message: bytes = MESSAGE,
        envelope: Envelope | None = None,
        **options: object,
    ) -> bytes:
        """Put a message into the drop as this account; its submission id.  What ``put`` raises is raised here."""
        submission = submission or os.urandom(16)
        self.as_user(
            uid,
            lambda: drop.put(
                self.drop, submission, envelope or said(), [message], LIMIT, owner=OURS
            ),
            **options,
        )
        return submission

    def ingest(
        self,
        out: Defence | None = None,
        *,
        make: "Callable[[], dict[str, object]]" = dict,
        then: "Callable[[], object] | None" = None,
    ) -> "ingest.Result":
        """One run as the delivering account; ``make`` gives further arguments of Ingest, in that process."""

        def run() -> ingest.Result:
            if then is not None:
                then()
            return ingest.Ingest(self.spool, self.drop, **{"limit": LIMIT, **make()}).run()

        return self.as_user(OURS, run, out)

    def queued(self) -> list[tuple[Envelope, bytes]]:
        """Envelope and octets of every message in the queue; nothing is half received."""

        def look() -> list[tuple[Envelope, bytes]]:
            found = []
            with Queue(self.spool) as queue:
                assert list(queue.places("tmp")) == []
                for place in queue.places("new", "cur", "hold", "failed"):
                    with queue.claim(place) as entry:
                        found.append((entry.envelope, b"".join(entry.verified_octets(b"", 0))))
            return sorted(found, key=lambda each: each[0].queue_id)

        return self.as_user(OURS, look)

    def remove_all(self) -> None:
        """As if everything in the queue had been delivered."""

        def remove() -> None:
            with Queue(self.spool) as queue:
                for place in queue.places("new", "cur"):
                    with queue.claim(place) as entry:
                        entry.remove()

        self.as_user(OURS, remove)

    def as_user(
        self, uid: int, action: Callable[[], T], out: Defence | None = None, *, umask: int = 0o022
    ) -> T:
        """What ``action`` returns or raises in a process of this account."""
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.close(read)
                if ROOT:
                    os.setgroups([])
                    os.setresgid(uid, uid, uid)
                    os.setresuid(uid, uid, uid)
                os.umask(umask)
                if out is not None:
                    take_out(*out)
                answer = (True, action())
            except BaseException as exc:
                answer = (False, exc)
            try:
                octets = pickle.dumps(answer)
                if not answer[0]:
                    # One whose arguments do not fit its constructor cannot be read back.
                    pickle.loads(octets)
            except Exception:
                octets = pickle.dumps((False, AssertionError(traceback.format_exc())))
            with open(write, "wb") as file:
                file.write(octets)
            os._exit(0)
        os.close(write)
        with open(read, "rb") as file:
            octets = file.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if not octets:
            raise Ended(code)
        done, answer = pickle.loads(octets)
        if not done:
            raise answer
        return answer


def take_out(module: ModuleType, old: str, new: str) -> None:
    """Run the source of ``module`` again with one place of it changed: in this process only, which is a child."""
    source = inspect.getsource(module)
    assert source.count(old) == 1, (
        f"{module.__name__}: {old!r} stands there {source.count(old)} times"
    )
    before = dict(vars(module))
    exec(compile(source.replace(old, new), str(module.__file__), "exec"), module.__dict__)
    # Who has imported something of it by name gets the new one too.
    for other in [each for name, each in sys.modules.items() if name.startswith("minisend.")]:
        for name, value in list(vars(other).items()):
            if inspect.isfunction(value) and value is before.get(name):
                setattr(other, name, vars(module)[name])


def said(**changes: object) -> Envelope:
    """What a submitter says."""
    values: dict[str, object] = {
        "sender": b"ann@example.org",
        "recipients": [Recipient(b"bob@example.net")],
        "arrived": 1.0,
        "sender_given": True,
    } | changes
    return Envelope("0" * 16, values.pop("sender"), values.pop("recipients"), **values)


@contextmanager
def a_system(leaf_mode: int = LEAF_MODE) -> Iterator[System]:
    """One in a directory that every account can enter."""
    top = Path(tempfile.mkdtemp(prefix="minisend-system-"))
    os.chmod(top, 0o755)
    try:
        yield System(top, leaf_mode)
    finally:
        shutil.rmtree(top)
