"""The caller's own messages in a queue that is another account's, as the service at the socket tells of them.

What comes is the head and the tail of each queue file, read here by the same code as the queue's own.  Nothing can be
done to such an entry but to look at it.
"""

from collections.abc import Iterator

from minisend.admin.actions import check_choice
from minisend.admin.filters import Filter
from minisend.admin.listing import Listed
from minisend.admin.terminal import printable, write
from minisend.errors import PermissionDenied, SpoolError
from minisend.spool import client
from minisend.spool.entry import Entry, Place
from minisend.spool.record import BrokenRecord, UnknownVersion, head_length, parse_head, parse_tail


def messages(socket: str) -> Iterator[Listed]:
    """Each of them.  Raises SpoolError when there is no service to ask."""
    try:
        for octets in client.listed(socket):
            yield _listed(octets)
    except client.NotServed as exc:
        raise _nobody(socket, exc) from exc
    except (BrokenRecord, UnknownVersion, ValueError) as exc:
        raise SpoolError(f"{socket}: not a listing of ours: {exc}") from exc


def chosen(
    socket: str, selected: Filter, ids: tuple[str, ...]
) -> Iterator[tuple[str, Listed | None]]:
    """Those of these ids, with None where there is none, or without ids those that the filter takes."""
    if not ids:
        yield from (
            (each.place.queue_id, each) for each in messages(socket) if selected.takes(each)
        )
        return
    found = {each.place.queue_id: each for each in messages(socket)}
    yield from ((queue_id, found.get(queue_id)) for queue_id in dict.fromkeys(ids))


def remove(socket: str, selected: Filter, ids: tuple[str, ...], *, everything: bool) -> int:
    """Remove the caller's messages of these ids, or those selected, with a line for each; the exit code.

    Raises SpoolError, and UsageError when neither ids nor anything to choose by is given, or both.
    """
    check_choice("rm", ids, everything=everything, filtered=selected.given)
    code = 0
    targets = ids or [queue_id for queue_id, _ in chosen(socket, selected, ())]
    for queue_id in targets:
        try:
            client.remove(socket, queue_id)
        except client.NotServed as exc:
            raise _nobody(socket, exc) from exc
        except client.Refused as exc:
            write(2, f"minisend: {printable(str(exc))}\n")
            code = max(code, exc.exit_code)
        else:
            write(1, f"{queue_id}: removed\n")
    if not targets:
        write(1, "no message matches\n")
    return code


def flush(socket: str) -> str:
    """Have them tried now; what the service says.  Raises SpoolError, ``client.Refused``."""
    try:
        return client.flush(socket)
    except client.NotServed as exc:
        raise _nobody(socket, exc) from exc


def not_allowed(what: str) -> PermissionDenied:
    """For what only root and the queue's owner may do."""
    return PermissionDenied(f"{what}: the queue is another account's: run it as root")


def _nobody(socket: str, exc: client.NotServed) -> SpoolError:
    return SpoolError(f"the queue is another account's, and nobody serves it: {socket}: {exc}")


def _listed(octets: bytes) -> Listed:
    first, _, record = octets.partition(b"\n")
    state, name, claimed = first.decode("ascii").split(" ")
    length = head_length(record)
    head = record[:length]
    envelope, size = parse_head(head)
    tail = parse_tail(record[length:], envelope)
    place = Place(state, name)
    # No queue: nothing is done to it.
    entry = Entry(None, place, -1, b"", length, tail, size, envelope)  # type: ignore[arg-type]
    return Listed(place, entry, "", envelope.arrived, size, claimed == "1")
