"""What only the administrator can mend, told by mail, once: a smarthost that refuses the login, a token or a secret that is not to be had.

    cause      what happened                                                        remedy that the notice names
    LOGIN      AUTH is refused for good (5yz); not for now (4yz), which is retried  the password, or the user name
    TOKEN      the OAuth2 service refuses, or nobody has logged in; not one that    ``minisend login``, or the client's key
               is merely not reached
    SETTINGS   a secret or a certificate cannot be read, by what [smarthost] says   the key that the reason names

    admin is set                            told
    else, the queue is a person's own       that person, who has sent all that is in it
    else                                    nobody: there is the log, ``mailq`` and ``minisend check``

One notice for each smarthost and cause until the smarthost has let us in again; also one for a host of it that does not,
while another does: then until that host has.  ``state/destinations/!<next hop>``, with the host behind it, keeps what
has been told, a line for each step, synced; locked while it is looked at, so that of several processes one tells:

    CAUSE SINCE          the first failure, seconds since the epoch: the notice's queue id is made of it
    CAUSE SINCE told     the notice is in the queue

So a crash between the two leads to the same id again, which is then found in the queue.  Limit: a notice that another
process delivers and removes after such a crash, and before the next failure, is sent twice.

A notice has the null reverse-path and goes by the routes as any message.  Where that is the same smarthost it waits with the
others, and being told already is no cause for another; undeliverable to ``admin`` it stays in queue/failed
(``delivery.bounce``): nobody gets a bounce of it.  Nothing here runs, and nothing is loaded, while logins work.
"""

import fcntl
import os
import time
from typing import TYPE_CHECKING

from minisend.address import qualify, quote_local
from minisend.config.files import SYSTEM_SPOOL
from minisend.config.keys import smarthost_table
from minisend.config.sections import Config, Smarthost
from minisend.delivery.policy import LOGIN, TOKEN
from minisend.delivery.route import NextHop
from minisend.envelope import Envelope, Outcome, Recipient
from minisend.message import dsn
from minisend.message.date import format_date
from minisend.spool import disk
from minisend.spool.enqueue import enqueue, new_queue_id

if TYPE_CHECKING:
    from minisend.spool.store import Queue

_TOLD = "told"
# More than a line for each cause and step has no reader.
_LONGEST = 4096


def tell(
    queue: "Queue", config: Config, hop: NextHop, path: str, cause: str, outcome: Outcome
) -> Envelope | None:
    """Queue the notice, unless it has been; its envelope, None when nobody is to be told, or was before.

    ``path``     the file that keeps what has been told
    ``outcome``  of the failure
    Raises SpoolError and OSError (the disk): the next failure leads here again.
    """
    smarthost = hop.smarthost_in(config)
    to = reader(config, os.fstat(queue.fd).st_uid)
    if smarthost is None or to is None:
        return None
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        since, told = _state(os.pread(fd, _LONGEST, 0), cause)
        if told:
            # ``Destinations.sweep`` is for what nobody waits for any more.
            os.utime(fd)
            return None
        if since is None:
            since = outcome.at
            _note(fd, path, f"{cause} {since:.3f}")
        queue_id = new_queue_id(f"notice {hop.name} {cause} {since:.3f}".encode())
        text = _text(queue, config, hop, smarthost, cause, outcome, since)
        envelope, octets = compose(queue_id, to, _subject(hop, cause), text, config, outcome.at)
        queue_once(queue, envelope, octets)
        _note(fd, path, f"{cause} {since:.3f} {_TOLD}")
    finally:
        os.close(fd)
    return envelope


def reader(config: Config, owner: int) -> bytes | None:
    """Who is told, qualified; None for nobody.  ``owner``: uid of the queue."""
    domain = config.mail_domain.encode()
    if config.admin:
        return qualify(config.admin.encode(), domain)
    if owner == 0 or config.spool.path == SYSTEM_SPOOL:
        return None
    import pwd

    try:
        login = os.fsencode(pwd.getpwuid(owner).pw_name)
    except KeyError:
        return None
    return qualify(quote_local(login), domain)


def compose(
    queue_id: str, to: bytes, subject: bytes, text: str, config: Config, now: float, zone: int = 0
) -> tuple[Envelope, bytes]:
    """A message of this program's own to one person: LF line ends, to be completed as any other.

    ``to``    qualified
    ``now``   seconds since the epoch, ``zone`` minutes east of UTC
    """
    header = (
        b"From: Mail Delivery System <MAILER-DAEMON@%b>\nTo: %b\nSubject: %b\n"
        b"Auto-Submitted: auto-generated\nMIME-Version: 1.0\n"
    ) % (config.mail_domain.encode(), to, subject)
    envelope = Envelope(queue_id, b"", [Recipient(to)], arrived=now, zone=zone, uid=-1)
    return envelope, header + dsn.text_part(text)


def queue_once(queue: "Queue", envelope: Envelope, octets: bytes) -> None:
    """Put it into the queue unless one of its id is there, from before a crash.  Raises SpoolError, OSError.

    For who holds the lock of what it tells of: two at a time would take it for each other's remains.
    """
    if queue.find(envelope.queue_id, "new", "cur", "hold", "failed") is not None:
        return
    try:
        # What lies there is a crash's.
        disk.unlink(envelope.queue_id, queue.directory("tmp"))
    except FileNotFoundError:
        pass
    enqueue(queue.fd, envelope, [octets], 0)


def _state(octets: bytes, cause: str) -> tuple[float | None, bool]:
    """Since when, and whether it was told.  A line that a crash cut short is as good as none."""
    since: float | None = None
    told = False
    for line in octets.decode("ascii", "replace").splitlines():
        words = line.split(" ")
        if words[0] != cause or len(words) not in (2, 3):
            continue
        try:
            since = float(words[1])
        except ValueError:
            continue
        told |= words[2:] == [_TOLD]
    return since, told


def _note(fd: int, path: str, line: str) -> None:
    # Begins with a line end: what was cut short before it must not take it along.
    disk.write(fd, f"\n{line}\n".encode("ascii"))
    os.fsync(fd)
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _subject(hop: NextHop, cause: str) -> bytes:
    what = {LOGIN: "the login is refused", TOKEN: "there is no access token"}
    return f"Mail waits: {what.get(cause, 'a setting does not work')} ({smarthost_table(hop.smarthost)})".encode()


def _text(
    queue: "Queue",
    config: Config,
    hop: NextHop,
    smarthost: Smarthost,
    cause: str,
    outcome: Outcome,
    since: float,
) -> str:
    table = smarthost_table(hop.smarthost)
    place = hop.name.removeprefix(f"{hop.smarthost}:")
    user = f" of user {smarthost.username}" if smarthost.username else ""
    waiting = sum(len(queue.names(state)) for state in ("new", "cur"))
    what = {
        LOGIN: f"The smarthost {place} refuses the login{user}.",
        TOKEN: f"There is no access token for the login{user} at the smarthost {place}.",
    }
    opening = (
        f"{what.get(cause, f'The smarthost {place} cannot be used: a setting of its table does not work.')} "
        "Mail for it waits, and is tried again; what still waits when its time in the queue is over goes back to "
        "its sender. "
        "You are told of this once, until the smarthost lets this host in again."
    )
    said = outcome.diagnostic.partition(";")[2].strip()
    zone = (time.localtime(since).tm_gmtoff or 0) // 60
    facts = [
        ("The server said: " if said else "The reason: ") + (said or outcome.reason),
        f"Since: {format_date(since, zone).decode('ascii')}",
        f"Messages in the queue now: {waiting}",
    ]
    lines = [
        f"This is the mail system at host {config.hostname}.",
        "",
        *dsn.wrapped(opening, ""),
        "",
    ]
    for fact in facts:
        lines += dsn.wrapped(fact, "    ")
    file = config.file or "the configuration"
    lines += [
        "",
        *dsn.wrapped(f"What you can do: {_remedy(smarthost, cause, table, file)} Then:", ""),
        "",
    ]
    if smarthost.uses_oauth2 and smarthost.oauth2_grant == "refresh":
        command = f"minisend login {hop.smarthost}".rstrip()
        lines.append(f"    {command:24}asks the service for new tokens")
    lines += [
        "    minisend flush --all    tries everything at once",
        "    minisend queue          shows what waits, and why",
        "",
    ]
    return "\n".join(lines)


def _remedy(smarthost: Smarthost, cause: str, table: str, file: str) -> str:
    where = f"under {table} in {file}"
    if cause in (LOGIN, TOKEN) and smarthost.uses_oauth2:
        keys = {
            "client_credentials": "oauth2_client_id and oauth2_client_secret_file",
            "service_account": "oauth2_service_account_file",
        }
        key = keys.get(smarthost.oauth2_grant)
        return (
            f"check {key} {where}."
            if key
            else f"log in again; if that does not help, check oauth2_client_id {where}."
        )
    if cause == LOGIN:
        source = next(
            (
                k
                for k in ("password_file", "password_command", "credential")
                if getattr(smarthost, k)
            ),
            "tls_cert_file",
        )
        return f"check username and {source} {where}."
    return f"mend what the reason names, {where}."
