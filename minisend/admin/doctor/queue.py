"""Any queue: is it well, is there room for more, does somebody serve it?"""

import os

from minisend.admin.check import OVERDUE, Problem, summary, survey
from minisend.admin.doctor.check import FAIL, OK, WARN, Check, Checks
from minisend.admin.doctor.systemd import systemctl
from minisend.config.files import SYSTEM_SPOOL
from minisend.config.sections import Config
from minisend.errors import SpoolFull
from minisend.spool.enqueue import Floor
from minisend.spool.layout import UNITS

SETUP = "minisend setup --system"


def look(config: Config) -> Checks:
    """Run as its owner."""
    problems, found = survey(config, OVERDUE)
    # Also of the drop, and also for those who may not look into the queue: see _room.
    problems = [problem for problem in problems if problem.kind != "room"]
    if not problems:
        yield Check(OK, "queue", summary(found))
    for problem in problems:
        yield Check(FAIL, "queue", problem.text, _repair(problem, config.spool.path))


def _repair(problem: Problem, spool: str) -> str:
    if problem.kind != "spool":
        return {
            "failed": "minisend queue --state failed",
            "unreadable": "minisend queue",
            "destination": "minisend flush --all -v",
            "overdue": "minisend flush",
        }[problem.kind]
    if spool == SYSTEM_SPOOL:
        return SETUP
    try:
        there = os.lstat(f"{spool}/queue")
    except OSError:
        return f"mkdir -p {spool} && chown {os.geteuid()} {spool}"
    if there.st_uid != os.geteuid():
        return f"chown -R {os.geteuid()} {spool}"
    return f"chmod -R go-w {spool}"


def check_room(path: str, config: Config) -> Checks:
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return  # not there yet, or told by its row
    try:
        Floor(path, config.spool.min_free, config.spool.min_free_inodes).check(fd, 0)
    except SpoolFull as exc:
        yield Check(FAIL, "room", str(exc), f"df -h {path}; df -i {path}")
    else:
        yield Check(OK, "room", f"{path}: more than [spool] min_free and min_free_inodes")
    finally:
        os.close(fd)


def check_served(now: bool, options: list[str], units: list[str]) -> Check:
    """Whether somebody delivers, now or when there is something to deliver."""
    if now:
        return Check(OK, "served", "minisend run is there")
    told = systemctl(*options, "is-active", *units)
    if told is not None:
        states = told.split()
        off = [unit for unit, word in zip(units, states, strict=False) if word != "active"]
        if len(states) == len(units) and not off:
            return Check(OK, "served", "systemd starts the delivery when there is something")
        if not options:
            text = f"nobody delivers: not active: {', '.join(off or units)}"
            return Check(FAIL, "served", text, f"systemctl enable --now {' '.join(UNITS)}")
    text = "by nobody at this moment; cron or a timer may run minisend flush"
    return Check(WARN, "served", text, "minisend run")
