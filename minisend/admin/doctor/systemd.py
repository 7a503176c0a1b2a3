"""What systemd tells of the services and of what starts them; nothing where it is not process 1."""

import os
import shutil
import subprocess

from minisend.admin.setup import BOOTED

DELIVER = "minisend-deliver.service"
SERVICES = ("minisend-accept.service", DELIVER)


def systemctl(*arguments: str) -> str | None:
    """What it writes, whatever its exit code; None where it is not to be asked."""
    program = shutil.which("systemctl") if os.path.isdir(BOOTED) else None
    if program is None:
        return None
    done = subprocess.run(  # noqa: S603 - names of our own
        [program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def running() -> dict[str, float]:
    """Since when each service runs that does, seconds since the epoch."""
    told = systemctl(
        *("show", "--timestamp=unix", "--property=Id,ActiveState,ExecMainStartTimestamp"),
        *SERVICES,
    )
    found = {}
    for block in (told or "").split("\n\n"):
        facts = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        since = facts.get("ExecMainStartTimestamp", "").removeprefix("@")
        if facts.get("ActiveState") == "active" and since.isdecimal():
            found[facts.get("Id", "")] = float(since)
    return found
