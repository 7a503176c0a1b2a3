"""minisend run: the two roles of the service, alone or side by side.

    --accept     takes messages from the socket and out of the drop; no network, no secret
    --deliver    delivers what is in the queue; no socket, no drop: in a user namespace of its own, which keeps the other
                 role from tracing it, the owner of every file there would be "nobody"
    neither      both, each a process of its own under this one; where no socket can be made, delivery alone

The process above the two passes SIGTERM and SIGINT on, and ends when one of them does: what watches over it starts it
anew.  As the first process of a container it also waits for those whose parents have gone.

Root, who may make the socket anywhere, becomes the queue's owner before anything is read from anybody.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from minisend.admin.listing import Reasons
from minisend.admin.owner import become_owner
from minisend.config.sections import Config
from minisend.delivery.flush import Stop
from minisend.delivery.pickup import Pickup
from minisend.delivery.serve import serve
from minisend.envelope import Envelope, Outcome
from minisend.errors import PermissionDenied, SpoolError
from minisend.log import Log, line
from minisend.message.header import HEADER_LIMIT
from minisend.message.permission import refusal
from minisend.spool.enqueue import Floor
from minisend.spool.entry import Entry
from minisend.spool.limits import Usage
from minisend.spool.listener import Listener, make, passed
from minisend.spool.place import open_queue, state
from minisend.spool.service import Service, Settings
from minisend.spool.store import Queue
from minisend.spool.trigger import SUBMISSION, is_served, poke

# Seconds that clients have to come to an end when the service is told to.
_GRACE = 10.0
_LONGEST_RATES = 1024 * 1024
# Seconds after which a thread that works lets another one go on: with the interpreter's own 5 ms, a submission that has to
# wait for its turn after each call to the kernel would take a second beside a few busy ones.
_SWITCH = 0.0005


def run(
    config: Config,
    *,
    log: Log,
    stop: Stop,
    accept: bool,
    deliver: bool,
    exit_idle: float | None,
) -> int:
    """Serve until told to stop, or idle for ``exit_idle`` seconds; the exit code.

    Raises SpoolError, ConfigError.
    """
    both = accept == deliver
    listener = None
    if both or accept:
        listener = passed() or _made(config, log, needed=not both)
    become_owner(config.spool.path)
    if listener is not None and accept and not deliver:
        _accept(config, listener, log, stop, exit_idle)
        return 0
    if listener is None and os.getpid() != 1:
        serve(config, log=log, stop=stop, exit_idle=exit_idle, ingest=both)
        return 0
    # What both of them need, made once.
    os.close(open_queue(config.spool.path, create=True))

    def delivering() -> None:
        if listener is not None:
            listener.leave()
        serve(config, log=log, stop=stop, exit_idle=exit_idle, ingest=both)

    roles: list[Callable[[], object]] = [delivering]
    if listener is not None:
        listening = listener
        roles.append(lambda: _accept(config, listening, log, stop, exit_idle))
    return _side_by_side(roles, stop, log, begun=listener.leave if listener else lambda: None)


def _made(config: Config, log: Log, *, needed: bool) -> Listener | None:
    path = config.served.socket
    if not path:
        if needed:
            raise SpoolError(
                "[submission] socket: there is nothing to accept mail on: name a socket of this spool"
            )
        return None
    try:
        listener = make(path)
    except SpoolError as exc:
        if needed:
            raise
        # A user's own service, whose queue takes the user's mail without a socket.
        log.info(line("-", event="no socket", reason=str(exc)))
        return None
    if listener is None:
        if needed:
            raise SpoolError(f"{path}: another service listens there")
        log.info(line("-", event="no socket", reason=f"{path}: another service listens there"))
    return listener


def _accept(
    config: Config, listener: Listener, log: Log, stop: Stop, exit_idle: float | None
) -> None:
    """The accepting role."""
    spool = config.spool
    os.close(open_queue(spool.path, create=True))
    given = settings(config)
    with Queue(spool.path) as queue, _keeping_rates(spool.path, given.usage):
        service = Service(queue, given, log)
        pickup = Pickup(config, log, quotas=service.quotas)

        def pick_up() -> None:
            if pickup.look():
                poke(spool.path, SUBMISSION)
            # What came in the moment in which the delivering service ended found neither it nor systemd watching.
            with suppress(OSError, SpoolError):
                if not is_served(spool.path) and queue.names("new"):
                    os.utime(queue.directory("new"))

        picking = threading.Thread(target=pick_up)

        def tick() -> None:
            # In a thread of its own: a drop directory that somebody has filled takes minutes, in which nobody was let in.
            nonlocal picking
            if not picking.is_alive():
                picking = threading.Thread(target=pick_up, daemon=True)
                with suppress(RuntimeError):  # too many: the next time
                    picking.start()

        stop.wake = listener.wake
        sys.setswitchinterval(_SWITCH)
        log.info(line("-", event="accepting", spool=spool.path))
        try:
            listener.loop(
                service.take,
                lambda: picking.is_alive() or not service.wait(0),
                stopping=lambda: stop.asked,
                tick=tick,
                exit_idle=exit_idle,
            )
        finally:
            listener.close(service.take)
            stop.wake = lambda: None
        # They end by themselves, or their clients find out that we have gone, and send the message another way.
        service.wait(_GRACE)
        # What is broken off here is there for the next one, as after a crash.
        if picking.is_alive():
            picking.join(_GRACE)
        log.info(line("-", event="stopped" if stop.asked else "idle", spool=spool.path))


@contextmanager
def _keeping_rates(spool: str, usage: Usage) -> Iterator[None]:
    """The hour of [limits] rate_per_uid goes on: each idle exit would begin it anew."""
    if not usage.is_limited:
        yield
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(f"{state(spool, make=True)}/admitted", flags, 0o600)
    except OSError as exc:
        raise SpoolError(f"{exc.filename}: {exc.strerror}") from exc
    with open(fd, "r+", encoding="ascii", errors="replace") as file:
        usage.restore(file.read(_LONGEST_RATES).splitlines())
        try:
            yield
        finally:
            with suppress(OSError):
                file.seek(0)
                file.truncate()
                file.writelines(f"{each}\n" for each in usage.rates)
                file.flush()


def settings(config: Config) -> Settings:
    """What the service needs of the configuration."""
    spool, limits = config.spool, config.limits
    senders = config.submission.senders
    mail_domain = config.mail_domain.encode()

    def permit(envelope: Envelope, first: bytes, complete: bool) -> None:
        if envelope.uid in (0, os.geteuid()):
            return
        why = refusal(envelope, first, complete=complete, senders=senders, mail_domain=mail_domain)
        if why:
            raise PermissionDenied(why)

    return Settings(
        header=HEADER_LIMIT + 1 if senders else 0,
        permit=permit,
        reasons=lambda: _reasons(config),
        limit=spool.max_message_size,
        floor=Floor(f"{spool.path}/queue", spool.min_free, spool.min_free_inodes),
        usage=Usage(
            messages=limits.messages_per_uid,
            octets=limits.octets_per_uid,
            rate=limits.rate_per_uid,
            # The hour outlives the process, see Ingest.
            clock=time.time,
        ),
    )


def _reasons(config: Config) -> Callable[[Entry], list[Outcome]]:
    """Why those wait whom no server was asked for, or not lately, as it is known at this moment."""
    known = Reasons(lambda: config)

    def of(entry: Entry) -> list[Outcome]:
        found = (known.of(entry, index) for index in entry.pending)
        return [outcome for outcome in found if outcome is not None]

    return of


def _side_by_side(
    roles: list[Callable[[], object]], stop: Stop, log: Log, *, begun: Callable[[], None]
) -> int:
    """Each role in a process of its own, until one of them ends; the exit code of the first that failed.

    ``begun``  is called here when all of them have been forked
    """
    code = 0
    children: set[int] = set()
    for role in roles:
        pid = os.fork()
        if not pid:
            _be(role, stop, log)
        children.add(pid)
    begun()

    def end_all() -> None:
        for pid in children:
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                pass

    stop.also = end_all
    if stop.asked:
        end_all()
    while children:
        # Whoever it is: the first process of a container has children that are not its own.
        pid, status = os.wait()
        if pid not in children:
            continue
        children.discard(pid)
        ended = os.waitstatus_to_exitcode(status)
        code = code or (ended if ended >= 0 else 128 - ended)
        end_all()
    return code


def _be(role: Callable[[], object], stop: Stop, log: Log) -> None:
    """A role, in the process that was forked for it; does not return."""
    code = 1
    try:
        stop.also = lambda: None
        # A second one comes with each stop of a whole group, from the process above and from whoever stopped that one: it
        # must not break off what the first has left a moment for.
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, frame: stop.ask())
        role()
        code = 0
    except SpoolError as exc:
        log.error(line("-", event="ended", reason=str(exc)))
        code = exc.exit_code
    except Exception as exc:  # noqa: BLE001 - the process above ends with it, and is started anew
        log.error(line("-", event="bug", reason=f"{type(exc).__name__}: {exc}"))
        code = 70
    finally:
        os._exit(code)
