"""The power goes while sendmail and ``minisend flush`` work: the short form of tests/soak/power_cut.py, which says how.

Needs root, and a machine that has the file system and gives loop devices.  Where the kernel refuses those two, as in a
container, it is skipped, in CI too; a program that is missing is not an excuse there.
"""

import os
import shutil

import pytest
from soak.power_cut import KINDS, PROGRAMS, Machine, Refused

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems: needs root"),
]


@pytest.mark.parametrize("sync", ["group", "each"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_accepted_is_there_after_a_power_cut(tmp_path, kind, sync):
    """Whole, once but for the window, on a file system that is in order; every second cut right after an exit 0."""
    missing = [name for name in PROGRAMS[kind] if shutil.which(name) is None]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"not installed: {', '.join(missing)}")
    try:
        with Machine(kind, tmp_path, sync) as machine:
            for number in range(4):
                machine.check(machine.cut(number))
            print(f"{kind}, sync {sync}: {machine.summary()}")
    except Refused as exc:
        pytest.skip(f"no {kind} on a loop device here: {exc}")
    assert not all(found.unmountable for found in machine.found)
    # Cuts of a machine that did nothing would show nothing.
    last = machine.found[-1]
    assert last.accepted >= 20
    assert sum(found.queued for found in machine.found) > 0
    assert machine.delivered() > 0
