"""The writer's half of the drop directory: a message put where ``spool.ingest`` finds it, by whoever submits it.

The way in when nobody listens.  It runs with the submitter's rights, which are to make a name in the leaves and no more:
not even the directory can be opened to be fsynced.  In this order, which loses nothing on ext4 (with fast_commit too)
and xfs:

    <drop>/tmp/<submission>    made anew, 0600, then 0640 whatever the umask: the group is ingest's
    written, locked            ingest leaves alone what is locked: until the fsync has returned nothing is promised
    <drop>/new/<submission>    renamed
    fsync of the file          which makes the name durable too; fdatasync would not, and O_TMPFILE and linkat leave
                               ext4 with fast_commit in disorder

The file is a queue file, but for its envelope, of which ingest makes its own.  The name is the submission id: 128 random
bits, as who knows the name can find out the size.

Never: what ingest would refuse is not put there, since its submitter would have been told that it is safe.

Loaded by submissions: no heavy import.  Source: DESIGN section 3.
"""

import posix

from minisend.envelope import DROP, Envelope
from minisend.errors import DataError, SpoolError
from minisend.spool import disk
from minisend.spool.admission import admit
from minisend.spool.enqueue import Floor, forget, write_record
from minisend.spool.place import open_leaf
from minisend.spool.record import SUBMITTED_HEAD_LIMIT, format_head

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_MODE = 0o640


def put(
    drop: str,
    submission: bytes,
    envelope: Envelope,
    message: "Iterable[bytes]",
    limit: int,
    floor: Floor | None = None,
    size: int = 0,
    *,
    owner: int | None = None,
) -> None:
    """Make a message durable in ``<drop>/new``.

    ``submission``  its id, ``enqueue.ID_OCTETS`` random ones
    ``message``, ``limit``, ``size``  as of ``enqueue``
    ``floor``       what must stay free on the file system of the drop directory
    ``owner``       uid of the queue that the drop belongs to: the leaves must be that account's or root's.  None where
                    it is not known; in any case nobody but root or ``owner`` may have made them

    When this returns, the message survives a power cut.  When it raises, nothing of it stays: SpoolError, with the
    OSError that stopped it as its cause, SpoolFull, MessageTooBig; DataError or UsageError for an envelope that would
    not be taken; or whatever reading ``message`` raised.
    """
    said = admit(
        envelope,
        submission,
        uid=posix.getuid(),
        login=envelope.login,
        channel=DROP,
        now=envelope.arrived,
    )
    if len(format_head(said, 0)) > SUBMITTED_HEAD_LIMIT:
        raise DataError(f"more recipients than the drop directory takes: {len(said.recipients)}")
    tmp = new = -1
    try:
        tmp = open_leaf(drop, "tmp", owner)
        new = open_leaf(drop, "new", owner)
        if floor is not None:
            floor.check(tmp, size)
        _put(tmp, new, submission.hex(), said, message, limit, floor)
    except OSError as exc:
        raise SpoolError(f"{drop}: {exc.strerror}") from exc
    finally:
        for fd in (tmp, new):
            if fd >= 0:
                disk.close(fd)


def _put(
    tmp: int,
    new: int,
    name: str,
    said: Envelope,
    message: "Iterable[bytes]",
    limit: int,
    floor: Floor | None,
) -> None:
    fd = -1
    at = tmp
    try:
        try:
            fd = disk.create(name, tmp)
        except OSError:
            at = -1  # nothing of ours is there
            raise
        disk.set_mode(fd, _MODE)
        write_record(fd, said, message, limit, floor, tmp)
        disk.lock(fd)
        if disk.exists(name, new):
            # A rename would replace it.
            raise SpoolError("the drop directory has this submission already")
        at = new
        disk.rename(name, tmp, name, new)
        disk.fsync(fd)
    except BaseException:
        # Wherever a signal came: before the descriptor was ours to close, or after the rename and before it returned.
        if at >= 0:
            for directory in {tmp, at}:
                forget(name, directory)
        raise
    finally:
        if fd >= 0:
            disk.close(fd)
