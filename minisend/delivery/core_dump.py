"""No core dump: what a process that knows passwords had in memory does not go to the disk when it crashes.

Never changes the hard limit: whoever looks for a bug can raise the soft one of a running process (prlimit(1)).
Limits: where a core is handed to a program (core(5): ``kernel.core_pattern`` with "|"), that one is told the limit, and
has to respect it, as systemd-coredump does.
"""

import resource


def forbid() -> None:
    """For this process, and those that it begins, such as a ``password_command``."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
