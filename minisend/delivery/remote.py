"""Attempts over SMTP: the servers of one next hop, tried in order, until each recipient has its outcome.

Keeps the session open for the next message.  What a failure means is ``delivery.policy``'s to say, how many of these
work side by side and when a next hop is left in peace, ``delivery.lanes``'s; no queue file is known here.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from minisend.config import Config
from minisend.delivery import mx, policy, tls
from minisend.delivery.mx import Target
from minisend.delivery.policy import Verdict
from minisend.delivery.route import SMARTHOST, NextHop
from minisend.delivery.secrets import credentials
from minisend.errors import ConfigError, MinisendError, NetworkError, SmtpError
from minisend.smtp.session import Deadlines, DsnRequest, Session
from minisend.smtp.stream import HandshakeError, connect

# RFC 5321 section 4.5.3.1.8: every server takes as many recipients in one transaction.
_RECIPIENTS = 100
# More are not sent in one, whatever a server says it takes (RFC 9422): for each, room is reserved for its outcome.
MOST_RECIPIENTS = 1000
_NO_REQUEST = DsnRequest()


@dataclass(frozen=True, slots=True)
class Content:
    """A message for ``Session.send``.

    ``octets``     gives the message anew at each call, any line ends
    ``size``       octets with CRLF line ends, as near as is known
    ``eight_bit``  it has octets above 127
    ``ret``, ``envid``, ``dsn``  what its sender asked for (RFC 3461); ``dsn`` by index of the recipient
    """

    octets: Callable[[], Iterable[bytes]]
    size: int
    eight_bit: bool
    ret: str = ""
    envid: str = ""
    dsn: Mapping[int, DsnRequest] = field(default_factory=dict)


class Stopped(Exception):
    """The run is to end, and this attempt was at a point where nobody had the message yet."""


class Remote:
    """A connection to one next hop, made when there is something to send.

    ``resolver``        shared with the others of a run
    ``opened``          called when a session is ready for its first message
    ``trace``           gets the lines of each dialogue, without secrets
    ``while_waiting``   called before each connection and each second that a server lets us wait: for what must not
                        wait longer
    ``stopping``        true when the run is to end: then no server is waited for, unless it may have the message
                        already; ``attempt`` raises Stopped
    """

    def __init__(
        self,
        hop: NextHop,
        config: Config,
        resolver: mx.Resolver,
        *,
        opened: Callable[[], None] = lambda: None,
        trace: Callable[[str], None] | None = None,
        while_waiting: Callable[[], None] = lambda: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._hop = hop
        self._config = config
        self._resolver = resolver
        self._opened = opened
        self._trace = trace
        self._while_waiting = while_waiting
        self._stopping = stopping
        self._current: Session | None = None
        self._deadlines = Deadlines()
        self._kept: tuple[Target, Session] | None = None
        self.unreachable: Verdict | None = None

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._kept is not None:
            self._kept[1].quit()
            self._kept = None

    def attempt(
        self, sender: bytes, recipients: dict[int, bytes], content: Content
    ) -> Iterator[list[Verdict]]:
        """A verdict for each of ``recipients`` (index → qualified address), once.

        Comes in parts: whom a transaction has settled, to be recorded before the next one begins; at the end
        all who have to wait.  What reading the content raises goes through, with the session closed.

        After it ``unreachable`` is None, or one of the verdicts when no server let us in: any other message
        would hear the same.
        """
        self.unreachable = None
        waiting = dict(recipients)
        latest: dict[int, Verdict] = {}
        yield from self._ask(sender, waiting, content, latest)
        if waiting:
            yield [latest[index] for index in waiting]

    def _ask(
        self,
        sender: bytes,
        waiting: dict[int, bytes],
        content: Content,
        latest: dict[int, Verdict],
    ) -> Iterator[list[Verdict]]:
        """Ask the kept session, then one server after the other, until nobody waits; gives whom that settles."""
        asked: Target | None = None
        reached = False
        self._current = None
        kept, self._kept = self._kept, None
        if kept is not None:
            yield from self._transactions(*kept, sender, waiting, content, latest)
            # A server may have closed a session that waited.  Then it was asked nothing, and is asked afresh.
            if all(latest[index].scope != policy.SITE for index in waiting):
                asked = kept[0]
                reached = True
        try:
            targets = mx.targets(self._hop, self._config, self._resolver) if waiting else []
        except MinisendError as error:
            targets = []
            yield from self._judge(waiting, latest, error, "")
        for target in targets:
            if target == asked:
                continue
            try:
                session = self._open(target)
            except ConfigError as error:
                # Found out before anybody was asked.
                yield from self._judge(waiting, latest, error, "")
            except MinisendError as error:
                yield from self._judge(waiting, latest, error, target.remote_mta)
            else:
                reached = True
                self._opened()
                yield from self._transactions(target, session, sender, waiting, content, latest)
            if not waiting:
                break
        # Not when a session was had and lost: that may have been this message's doing.
        if not reached and all(v.scope in (policy.SITE, policy.LOCAL) for v in latest.values()):
            self.unreachable = next(iter(latest.values()))

    def open_ahead(self) -> bool:
        """A session before there is a message for it.  False, and nothing is said of why, when no server lets us in."""
        try:
            for target in mx.targets(self._hop, self._config, self._resolver):
                try:
                    self._kept = (target, self._open(target))
                except SmtpError:
                    continue
                self._opened()
                return True
        except (MinisendError, Stopped):
            pass
        return False

    def _open(self, target: Target) -> Session:
        """A session ready for a message.  Raises SmtpError, ConfigError."""
        try:
            return self._session(target, "")
        except HandshakeError as error:
            if not error.plain_text_allowed:
                raise
        # Opportunistic: better in plain text than not at all (RFC 7435), on a connection of its own.
        return self._session(target, tls.NONE)

    def _session(self, target: Target, level: str) -> Session:
        smarthost = self._config.smarthost if self._hop.kind == SMARTHOST else None
        if smarthost is not None:
            context = tls.smarthost_context(smarthost)
            secret = credentials(smarthost, os.environb, os.geteuid())
        else:
            context = tls.mx_context(self._config.delivery)
            secret = None
        settings = smarthost or self._config.delivery
        if self._trace is not None:
            self._trace(f"-- connecting to {target.remote_mta}")
        self._current = None
        self._wait()
        session = Session(
            connect(target.address, target.port, self._deadlines.connect, self._wait),
            hello=self._config.hostname.encode("ascii", "replace"),
            tls=level or settings.tls,
            tls_context=context,
            server_name=target.host,
            credentials=secret,
            auth=smarthost.auth if smarthost is not None else "auto",
            # tls = "none" is the admin's word that this connection needs no protection.
            allow_cleartext=settings.tls == tls.NONE,
            deadlines=self._deadlines,
            trace=self._trace,
        )
        session.open()
        return session

    def _transactions(
        self,
        target: Target,
        session: Session,
        sender: bytes,
        waiting: dict[int, bytes],
        content: Content,
        latest: dict[int, Verdict],
    ) -> Iterator[list[Verdict]]:
        """Send to as many of ``waiting`` as this server takes; what is settled leaves ``waiting``, and is given."""
        self._current = session
        todo = list(waiting)
        try:
            while todo and session.usable:
                limit = min(session.extensions.rcpt_max or _RECIPIENTS, MOST_RECIPIENTS)
                batch, todo = todo[:limit], todo[limit:]
                results = session.send(
                    sender,
                    [waiting[index] for index in batch],
                    content.octets(),
                    size=content.size,
                    eight_bit=content.eight_bit,
                    ret=content.ret,
                    envid=content.envid,
                    dsn=[content.dsn.get(index, _NO_REQUEST) for index in batch],
                )
                verdicts = policy.judge_transaction(
                    batch,
                    results,
                    remote_mta=target.remote_mta,
                    at=time.time(),
                    reports=session.extensions.dsn,
                )
                settled = _settle(waiting, latest, verdicts)
                if settled:
                    yield settled
                    # Only while each transaction settles somebody: a server may take some recipients and then no message.
                    todo = [v.outcome.recipient for v in verdicts if v.then == policy.AGAIN] + todo
        except BaseException:
            session.close()
            raise
        if todo:
            ended = NetworkError("the session ended before it was this recipient's turn")
            yield from self._judge(
                {index: waiting[index] for index in todo}, latest, ended, target.remote_mta
            )
        # Of two hosts that both put a recipient off, the one that is to be asked first stays.
        if self._kept is None and session.usable:
            self._kept = (target, session)
        else:
            session.quit()

    def _wait(self) -> None:
        self._while_waiting()
        if self._stopping() and (self._current is None or not self._current.in_doubt):
            raise Stopped

    def _judge(
        self,
        waiting: dict[int, bytes],
        latest: dict[int, Verdict],
        error: MinisendError,
        remote_mta: str,
    ) -> Iterator[list[Verdict]]:
        now = time.time()
        settled = _settle(
            waiting,
            latest,
            [policy.judge(index, error, remote_mta=remote_mta, at=now) for index in waiting],
        )
        if settled:
            yield settled


def _settle(
    waiting: dict[int, bytes], latest: dict[int, Verdict], verdicts: Iterable[Verdict]
) -> list[Verdict]:
    """Take the verdicts for the latest; those who need no further try leave ``waiting``, and are returned."""
    settled = []
    for verdict in verdicts:
        index = verdict.outcome.recipient
        latest[index] = verdict.after(latest.get(index))
        if verdict.then == policy.STOP:
            del waiting[index]
            settled.append(latest[index])
    return settled
