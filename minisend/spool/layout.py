"""What a system has of ours that is one queue for all users: the account, and the directories with owner and mode.

The one table of it.  ``minisend setup --system`` makes what stands here, ``minisend doctor`` compares with it, and a
test holds ``packaging/sysusers.d`` and ``packaging/tmpfiles.d`` against it.  Pure data: looks at nothing.

Only the leaves are the account's; what is above them is root's, so that no name on the way to them can be replaced by
a link.  Source: DESIGN section 3; sysusers.d(5), tmpfiles.d(5).
"""

from minisend.config.files import SYSTEM_SPOOL

#: The account that takes and delivers the mail, and its group.  Nobody logs in as it, and nobody else is in the group:
#: a file that has the group was made in a directory of ours.
ACCOUNT = "minisend"
ACCOUNT_ABOUT = "Mail submission agent"
NO_HOME = "/nonexistent"

DROP = f"{SYSTEM_SPOOL}/drop"
SECRETS = "/etc/minisend/secrets.d"


class Directory:
    """``owner`` and ``group`` are names, ``mode`` the permission bits with set-group-id and sticky."""

    __slots__ = ("about", "group", "mode", "owner", "path")

    def __init__(self, path: str, mode: int, owner: str, group: str, about: str) -> None:
        self.path = path
        self.mode = mode
        self.owner = owner
        self.group = group
        self.about = about


# In the order in which they are made: nothing is made below what is not as it should be.
DIRECTORIES = (
    Directory("/etc/minisend", 0o755, "root", "root", "settings"),
    Directory(SECRETS, 0o750, "root", ACCOUNT, "secrets"),
    Directory(SYSTEM_SPOOL, 0o755, "root", "root", "spool"),
    Directory(f"{SYSTEM_SPOOL}/queue", 0o700, ACCOUNT, ACCOUNT, "queue"),
    Directory(f"{SYSTEM_SPOOL}/state", 0o700, ACCOUNT, ACCOUNT, "locks"),
    Directory(DROP, 0o755, "root", "root", "drop"),
    # Anybody may put a file in, nobody but the account may list; sticky: none takes away another's; set-group-id: the
    # group tells what was made here.
    Directory(f"{DROP}/tmp", 0o3733, ACCOUNT, ACCOUNT, "unfinished"),  # noqa: S108 - a state, no scratch space
    Directory(f"{DROP}/new", 0o3733, ACCOUNT, ACCOUNT, "handed in"),
    Directory("/var/lib/minisend", 0o700, ACCOUNT, ACCOUNT, "tokens"),
    # The socket in it is systemd's; where there is no systemd, see minisend.admin.setup.
    Directory("/run/minisend", 0o755, "root", "root", "socket"),
)

SOCKET_DIRECTORY = DIRECTORIES[-1]

#: What systemd is told to start; each starts one of the two services when there is something for it.
UNITS = (
    "minisend-submit.socket",
    "minisend-accept.path",
    "minisend-accept.timer",
    "minisend-deliver.path",
    "minisend-deliver.timer",
)
