"""minisend check: is the queue well?  One line, or one JSON object, and an exit code; for monitoring and health checks.

    problem     when                                                                    what to do
    spool       the queue cannot be opened, or a file not be written there              the text says what is wrong
    room        less is free than [spool] min_free or min_free_inodes                   make room
    failed      messages that nobody could be told about, or broken, are in failed      minisend show, requeue, rm
    unreadable  a file that was due is broken or of another version                     minisend show, rm
    destination the user name, password or token is refused, a setting does not work,   the text says what is wrong
                or a server cannot be reached for longer than [spool] warn_after
    overdue     a message has been due for longer than --overdue: nobody serves the     minisend run, or minisend flush
                queue, or not fast enough                                               from a timer

A message that waits for its next attempt, or that is held, is no problem.  Nor is a destination for which nothing waits:
its status file stays when the last message for it has been removed, or goes another way now.  Due since: the time in its name, or the last
time that its file was moved where that is later; so one that has just come or was requeued is not overdue at once.

Changes nothing but a small file that it writes to queue/tmp and removes.  Opens only files in failed and overdue ones,
and of each kind at most 1,000.

    exit    0 all is well, 1 there is a problem; other codes, with a line on standard error: it could not be found out

Monitoring plugins take 1 for a warning, Docker's HEALTHCHECK and systemd for a failure.
"""

import json
import posix
import time
from dataclasses import dataclass
from typing import Any

from minisend.admin.listing import STATES, clock, open_queue, opened, places
from minisend.admin.queue import messages_in_words, size
from minisend.admin.terminal import printable, write
from minisend.config.sections import Config
from minisend.delivery.destination import Destinations, Down
from minisend.errors import SpoolError, SpoolFull
from minisend.smtp.client import AUTH
from minisend.spool import disk
from minisend.spool.enqueue import Floor
from minisend.spool.entry import Place
from minisend.spool.place import open_state
from minisend.spool.store import Queue

#: Seconds; a queue is flushed every few minutes, and one with much in it takes a while.
OVERDUE = 1800
_MOST_OPENED = 1000
# Of what was never asked of a server: RFC 3463, system incorrectly configured; credentials that are not to be had.
_SETTINGS = ("4.3.5", "4.7.8")


@dataclass(frozen=True, slots=True)
class Problem:
    """``kind`` is a word of the table above, ``text`` what a person needs to know."""

    kind: str
    text: str


def check(config: Config, overdue: int, *, as_json: bool) -> int:
    """Look at the queue, write what was found to standard output and return the exit code.

    ``overdue``  seconds
    Raises SystemFault, BrokenPipeError.
    """
    problems, found = survey(config, overdue)
    if as_json:
        told = [{"kind": problem.kind, "text": printable(problem.text)} for problem in problems]
        write(1, json.dumps({"ok": not problems, "problems": told, **found}) + "\n")
    elif problems:
        write(1, "not ok: " + "; ".join(printable(p.text) for p in problems) + "\n")
    else:
        write(1, f"ok: {summary(found)}\n")
    return 1 if problems else 0


def survey(config: Config, overdue: int) -> tuple[list[Problem], dict[str, Any]]:
    """What is wrong, and the counts that ``--json`` tells beside it.

    ``overdue``  seconds
    """
    found: dict[str, Any] = {"waiting": 0, "held": 0, "failed": 0, "oldest_due": None}
    found |= {"free_octets": None, "free_inodes": None}
    problems: list[Problem] = []
    try:
        queue = open_queue(config.spool.path)
        if queue is None:
            _check_can_be_made(config.spool.path)
        else:
            with queue:
                _look(queue, config, overdue, found, problems)
    except SpoolError as exc:
        problems.append(Problem("spool", str(exc)))
    except OSError as exc:
        problems.append(Problem("spool", f"{config.spool.path}/queue: {exc.strerror}"))
    return problems, found


def summary(found: dict[str, Any]) -> str:
    """The counts in words."""
    parts = [f"{messages_in_words(found['waiting'])} waiting"]
    if found["held"]:
        parts.append(f"{found['held']} held")
    if found["free_octets"] is not None:
        parts.append(f"{size(found['free_octets'])} free")
    return ", ".join(parts)


def _look(
    queue: Queue, config: Config, overdue: int, found: dict[str, Any], problems: list[Problem]
) -> None:
    spool = config.spool
    try:
        # Before the first submission there is nothing in the queue, not even this.
        if disk.exists("tmp", queue.fd):
            _try_to_write(queue)
    except OSError as exc:
        problems.append(Problem("spool", f"{spool.path}/queue/tmp: {exc.strerror}"))
    found["free_octets"], found["free_inodes"] = disk.free(queue.fd)
    try:
        Floor(spool.path, spool.min_free, spool.min_free_inodes).check(queue.fd, 0)
    except SpoolFull as exc:
        problems.append(Problem("room", str(exc)))
    lying = {state: places(queue, state) for state in STATES}
    found["waiting"] = len(lying["new"]) + len(lying["cur"])
    found["held"] = len(lying["hold"])
    found["failed"] = len(lying["failed"])
    if lying["failed"]:
        problems.append(_failed(queue, lying["failed"]))
    now = time.time()
    due = [
        (since, place)
        for place in lying["new"] + lying["cur"]
        if (since := _due_since(queue, place, now, spool.retry_max)) is not None
    ]
    due.sort(key=lambda pair: (pair[0], pair[1].queue_id))
    if due:
        found["oldest_due"] = int(due[0][0])
    problems += _late(queue, [pair for pair in due if now - pair[0] > overdue], now)
    if found["waiting"]:
        problems += [
            Problem("destination", f"{name}: {down.reason}")
            for name, down in Destinations(spool.path).all()
            # Who waits for it probes it when its time has come.
            if now <= down.until + overdue
            and (_is_for_the_administrator(down) or now - down.since > spool.warn_after)
        ]


def _is_for_the_administrator(down: Down) -> bool:
    """It will not pass by itself: the login is refused, or this machine lacks a token, a secret, a certificate, dnspython."""
    return down.command == AUTH or (not down.command and down.status in _SETTINGS)


def _failed(queue: Queue, lying: list[Place]) -> Problem:
    broken = sum(bool(_unreadable(queue, place)) for place in lying[:_MOST_OPENED])
    words = [f"{messages_in_words(len(lying) - broken)} failed"] if broken < len(lying) else []
    if broken:
        words.append(f"{broken} {'file is' if broken == 1 else 'files are'} broken")
    return Problem(
        "failed", f"{' and '.join(words)}, nobody was told: see minisend queue --state failed"
    )


def _late(queue: Queue, late: list[tuple[float, Place]], now: float) -> list[Problem]:
    """Of those that have been due for too long, longest first: what cannot be read is not waiting to be served."""
    problems = []
    unreadable = []
    served_by_nobody = late[_MOST_OPENED:]
    for since, place in late[:_MOST_OPENED]:
        why = _unreadable(queue, place)
        if why:
            path = f"{queue.spool}/queue/{place.state}/{place.name}"
            unreadable.append(f"{path}: {why}")
        else:
            served_by_nobody.append((since, place))
    if unreadable:
        more = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
        problems.append(Problem("unreadable", unreadable[0] + more))
    if served_by_nobody:
        since = min(since for since, _ in served_by_nobody)
        problems.append(
            Problem(
                "overdue",
                f"{messages_in_words(len(served_by_nobody))} overdue, due since {clock(since, now)}: "
                "start minisend run, or minisend flush from a timer",
            )
        )
    return problems


def _due_since(queue: Queue, place: Place, now: float, retry_max: float) -> float | None:
    """Since when it could have been attempted, seconds since the epoch; None when it is not due or has gone."""
    if now < place.due <= now + retry_max:
        return None
    try:
        there = posix.stat(place.name, dir_fd=queue.directory(place.state), follow_symlinks=False)
    except FileNotFoundError:
        return None
    return max(place.due if place.due <= now else 0.0, there.st_ctime)


def _unreadable(queue: Queue, place: Place) -> str:
    """Why the file cannot be read as a message, "" when it can or has gone."""
    entry, problem = opened(queue, place)
    if entry is not None:
        entry.close()
    return problem


def _try_to_write(queue: Queue) -> None:
    """A file to tmp and away again.  Raises OSError, SpoolError.  One that a crash leaves is swept up with the others."""
    tmp = open_state("tmp", queue.fd)
    name = f"check-{posix.getpid()}"
    try:
        fd = disk.create(name, tmp)
        try:
            disk.write(fd, b"minisend check\n")
        finally:
            disk.close(fd)
            disk.unlink(name, tmp)
    finally:
        disk.close(tmp)


def _check_can_be_made(spool: str) -> None:
    """There is no queue yet: could the first submission make it?  Raises SpoolError."""
    path = spool
    while not _exists(path):
        path = path.rpartition("/")[0] or "/"
    if not posix.access(path, posix.W_OK | posix.X_OK, effective_ids=True):
        raise SpoolError(
            f"{spool}: does not exist, and uid {posix.geteuid()} cannot make it in {path}"
        )


def _exists(path: str) -> bool:
    try:
        posix.stat(path)
    except OSError:
        return path == "/"
    return True
