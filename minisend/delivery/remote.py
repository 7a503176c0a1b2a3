"""Attempts over SMTP: jobs for one next hop, sent to its servers in order, until each recipient has its outcome.

One job follows the other over the same session, as close as the server allows (``smtp.session``); the session is kept for
what comes later.  What a failure means is ``delivery.policy``'s to say, how many of these work side by side and when a
next hop is left in peace, ``delivery.lanes``'s; no queue file is known here.

    what a session leaves of a job                      what becomes of it
    recipients who are settled                          the job hears it at once, before its next transaction begins
    put off by the server                               the next server is asked, once nothing is in flight
    not asked for, since the session ended              asked for once more, as if nothing had happened; at the second
                                                        time that is the outcome
    not asked for, since the server takes no more       asked for at once, in a further session with the same server
    in one session (RFC 9422)
    not asked for, or in vain, since the session        asked for once more, also of the same server: it is spoken to
    ``stumbled`` over what was sent ahead               one command at a time for the rest of the run
    a last server has been asked                        the job hears who still waits, and why
"""

from __future__ import annotations

import posix
import time

from minisend.address import split
from minisend.delivery import mx, policy
from minisend.delivery.route import LMTP
from minisend.errors import ConfigError, MinisendError, NetworkError, SmtpError
from minisend.smtp.client import AUTH
from minisend.smtp.deadlines import Deadlines
from minisend.smtp.dialogue import Refused
from minisend.smtp.session import Session
from minisend.smtp.stream import HandshakeError, connect, connect_unix
from minisend.smtp.transaction import DsnRequest, Transaction
from minisend.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable, Mapping
    from typing import Protocol

    from minisend.config.sections import Config, Smarthost
    from minisend.delivery.mx import Target
    from minisend.delivery.policy import Verdict
    from minisend.delivery.route import NextHop
    from minisend.message.convert import Conversion
    from minisend.smtp.client import Extensions
    from minisend.smtp.handshake import Trust
    from minisend.smtp.stream import Stream
else:
    from _collections import deque

    Protocol = object

# RFC 5321 section 4.5.3.1.8: every server takes as many recipients in one transaction.
_RECIPIENTS = 100
# More are not sent in one, whatever a server says it takes (RFC 9422): for each, room is reserved for its outcome.
MOST_RECIPIENTS = 1000
_NO_REQUEST = DsnRequest()
# The level of TLS that is none.
_NO_TLS = "none"


class Content(Value):
    """A message as it is to be sent.

    ``octets``     gives the message anew at each call, any line ends
    ``size``       octets with CRLF line ends, as near as is known
    ``eight_bit``  it has octets above 127
    ``header``     with the empty line that ends it, as in ``octets``
    ``long_line``  it has lines of more than 998 octets
    ``ret``, ``envid``, ``dsn``  what its sender asked for (RFC 3461); ``dsn`` by index of the recipient
    """

    __slots__ = (
        *("_planned", "dsn", "eight_bit", "envid", "header"),
        *("long_line", "octets", "ret", "size"),
    )

    def __init__(
        self,
        octets: Callable[[], Iterable[bytes]],
        size: int,
        eight_bit: bool,
        header: bytes = b"",
        long_line: bool = False,
        ret: str = "",
        envid: str = "",
        dsn: Mapping[int, DsnRequest] | None = None,
    ) -> None:
        self.octets = octets
        self.size = size
        self.eight_bit = eight_bit
        self.header = header
        self.long_line = long_line
        self.ret = ret
        self.envid = envid
        self.dsn = dsn or {}
        self._planned: dict[str, Conversion | None] = {}

    def for_server(self, offered: Extensions) -> tuple[Callable[[], Iterable[bytes]], int, bool]:
        """Octets, size and 8-bit as they go to a server that offers this.

        Raises CannotConvert when it would have to be changed for it in a way that breaks it, and what ``octets`` raises.
        """
        if not self.eight_bit and not self.long_line:
            return self.octets, self.size, False
        from minisend.message import convert

        need = convert.needs(
            self.header,
            eight_bit=self.eight_bit,
            long_line=self.long_line,
            eightbitmime=offered.eightbitmime,
        )
        if need == convert.NOTHING:
            return self.octets, self.size, self.eight_bit
        if need not in self._planned:
            self._planned[need] = convert.plan(self.octets, need)
        planned = self._planned[need]
        if planned is None:
            return self.octets, self.size, self.eight_bit
        eight_bit = self.eight_bit and need != convert.SEVEN_BIT
        return planned.octets, planned.wire_size(), eight_bit


class Job(Protocol):
    """One message for this next hop, in the hands of somebody who keeps its outcomes.

    ``recipients``  index → qualified address, octets, no brackets
    """

    @property
    def sender(self) -> bytes: ...
    @property
    def recipients(self) -> Mapping[int, bytes]: ...
    @property
    def content(self) -> Content: ...

    def settle(self, verdicts: list[Verdict]) -> bool:
        """To be recorded now.  False: nothing more is to be sent of this message."""

    def fail(self, error: Exception) -> None:
        """Reading the message raised this: nobody who has not been settled has it."""

    def give_back(self) -> None:
        """In place of ``done``: who has not been settled is to be sent to by somebody else, or later."""

    def turned_away(self) -> bool:
        """No server has let us in with it, as with ``done``.  True: it is to be given back, for others to try."""

    def done(self, unreachable: Verdict | None) -> None:
        """The last call.  ``unreachable``: no server has let us in; any other message would hear the same."""


class Abandoned(Exception):
    """The job wants no more of its message to be sent."""


class Stopped(Exception):
    """The run is to end, and this attempt was at a point where nobody had the message yet."""


class Remote:
    """A connection to one next hop, made when there is something to send.

    ``resolver``        shared with the others of a run
    ``one_by_one``      servers that have stumbled over PIPELINING, shared likewise
    ``opened``          called when a session is ready for its first message, with its host (``Outcome.remote_mta``) and
                        the seconds of its quickest answer
    ``refused``         called for a message that another host has put off, with what only the administrator can mend
    ``trace``           gets the lines of each dialogue, without secrets
    ``while_waiting``   called before each connection and each second that a server lets us wait: for what must not
                        wait longer
    ``stopping``        true when the run is to end: then no server is waited for, unless it may have a message
                        already; ``serve`` raises Stopped
    """

    def __init__(
        self,
        hop: NextHop,
        config: Config,
        resolver: mx.Resolver,
        *,
        one_by_one: set[Target] | None = None,
        opened: Callable[[str, float], None] = lambda host, quickest: None,
        refused: Callable[[Verdict], None] = lambda verdict: None,
        trace: Callable[[str], None] | None = None,
        while_waiting: Callable[[], None] = lambda: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._hop = hop
        self._config = config
        self._resolver = resolver
        self._one_by_one = set() if one_by_one is None else one_by_one
        self._opened = opened
        self._refused = refused
        self._trace = trace
        self._while_waiting = while_waiting
        self._stopping = stopping
        self._current: Session | None = None
        # the OAuth2 token of the last session
        self._token = b""
        self._deadlines = Deadlines()
        self._kept: tuple[Target, Session] | None = None

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._kept is not None:
            self._kept[1].quit()
            self._kept = None

    def serve(self, job: Job, more: Callable[[], Job | None]) -> None:
        """Deliver this job, and those that ``more`` gives while a session has room for them.

        Each one hears of its recipients as they are settled (``settle``), and at the end is told so (``done``).
        Raises Stopped; then nobody has the message of any job that has not heard of it.
        """
        left = deque([_Errand(job)])
        while left:
            errand = left.popleft()
            unreachable = None
            try:
                unreachable = self._ask(errand, more, left)
            finally:
                self._current = None
            if unreachable is not None and errand.job.turned_away():
                for other in (*reversed(left), errand):
                    other.job.give_back()
                return
            if errand.waiting:
                errand.job.settle([errand.latest[index] for index in errand.waiting])
            if not errand.ended:
                errand.job.done(unreachable)
            if unreachable is not None:
                # The others would hear the same, one connection after the other.
                for other in left:
                    other.job.give_back()
                return

    def _ask(
        self, errand: _Errand, more: Callable[[], Job | None], left: deque[_Errand]
    ) -> Verdict | None:
        """Ask the kept session, then one server after the other, until nobody waits.

        The verdict of the last one when no server let us in: any other message would hear the same.
        """
        reached = errand.asked is not None
        if self._kept is not None and not reached:
            target, session = self._kept
            self._kept = None
            stumbled = self._transact(target, session, errand, more, left)
            # A server may have closed a session that waited.  Then it was asked nothing, and is asked afresh.
            if not stumbled and all(errand.latest[i].scope != policy.SITE for i in errand.waiting):
                errand.asked = target
                reached = True
        targets: list[Target] = []
        if errand.waiting:
            try:
                targets = mx.targets(self._hop, self._config, self._resolver)
            except MinisendError as error:
                self._judge(errand, errand.waiting, error, "")
        still = deque(targets)
        while still and errand.waiting:
            target = still.popleft()
            if target == errand.asked:
                continue
            try:
                session = self._open(target)
            except ConfigError as error:
                # Found out before anybody was asked.
                self._judge(errand, errand.waiting, error, "")
            except MinisendError as error:
                self._judge(errand, errand.waiting, error, target.remote_mta)
            else:
                reached = True
                self._opened(target.remote_mta, session.quickest)
                # What is to come goes to the host that is to be asked first, whose session is kept.
                if self._transact(
                    target, session, errand, more if self._kept is None else _nothing, left
                ):
                    still.appendleft(target)
        # Not when a session was had and lost: that may have been this message's doing.
        latest = list(errand.latest.values())
        if not reached and latest and all(v.scope in policy.UNREACHED for v in latest):
            return latest[0]
        for verdict in latest:
            if verdict.cause:
                self._refused(verdict)
                break
        return None

    def open_ahead(self) -> bool:
        """A session before there is a message for it.  False, and nothing is said of why, when no server lets us in."""
        if self._kept is not None:
            return True
        try:
            for target in mx.targets(self._hop, self._config, self._resolver):
                try:
                    session = self._open(target)
                except SmtpError:
                    continue
                self._kept = (target, session)
                self._opened(target.remote_mta, session.quickest)
                return True
        except (MinisendError, Stopped):
            pass
        return False

    def _open(self, target: Target) -> Session:
        """A session ready for a message.  Raises SmtpError, ConfigError."""
        try:
            return self._session(target)
        except HandshakeError as error:
            if not error.plain_text_allowed:
                raise
            # Opportunistic: better in plain text than not at all (RFC 7435), on a connection of its own.
            return self._session(target, level=_NO_TLS)
        except Refused as error:
            token = self._token
            smarthost = self._hop.smarthost_in(self._config)
            if (
                not token
                or smarthost is None
                or not smarthost.uses_oauth2
                or error.answer.command != AUTH
                or not error.answer.reply.permanent
            ):
                raise
            # Revoked before its time, perhaps: another one is had, once.
            return self._session(target, rejected=token)

    def _session(self, target: Target, *, level: str = "", rejected: bytes = b"") -> Session:
        smarthost = self._hop.smarthost_in(self._config)
        settings = smarthost or self._config.delivery
        trust = None
        if settings.tls != _NO_TLS:
            trust = self._trust(smarthost)
        secret = None
        if smarthost is not None and (smarthost.username or smarthost.auth == "external"):
            from minisend.delivery.secrets import credentials

            secret = credentials(
                smarthost,
                posix.environ,
                posix.geteuid(),
                name=self._hop.smarthost,
                rejected=rejected,
            )
        self._token = secret.token if secret is not None else b""
        if self._trace is not None:
            self._trace(f"-- connecting to {target.remote_mta}")
        self._current = None
        self._wait()
        session = Session(
            self._connect(target),
            hello=self._config.hostname.encode("ascii", "replace"),
            tls=level or target.tls or settings.tls,
            trust=trust,
            server_name=target.server_name,
            credentials=secret,
            auth=smarthost.auth if smarthost is not None else "auto",
            # tls = "none" is the admin's word that this connection needs no protection.
            allow_cleartext=settings.tls == _NO_TLS,
            deadlines=self._deadlines,
            trace=self._trace,
            lmtp=self._hop.kind == LMTP,
            pipelining=target not in self._one_by_one,
        )
        session.open()
        return session

    def _trust(self, smarthost: Smarthost | None) -> Trust | None:
        # ssl, and what leads to it: paid for by those who use it.
        from minisend.delivery import tls

        if smarthost is None:
            return tls.mx_trust(self._config.delivery)
        return tls.smarthost_trust(smarthost, name=self._hop.smarthost)

    def _connect(self, target: Target) -> Stream:
        if self._hop.path:
            return connect_unix(target.address, self._deadlines.connect, self._wait)
        version_6 = ":" in target.address
        sources = self._config.delivery.source_address
        source = next((each for each in sources if (":" in each) == version_6), "")
        return connect(
            target.address, target.port, self._deadlines.connect, self._wait, source=source
        )

    def _transact(
        self,
        target: Target,
        session: Session,
        first: _Errand,
        more: Callable[[], Job | None],
        left: deque[_Errand],
    ) -> bool:
        """Send ``first``, and what ``more`` gives, to as many as this server takes, in as many sessions as it wants.

        Who is not settled by it is in ``waiting`` still; all errands but the first that are not done with go to ``left``.
        True when the last session ``stumbled``.
        """
        ready = deque([first])
        first.todo = list(first.waiting)
        remote_mta = target.remote_mta
        ended: MinisendError = NetworkError("the session ended before it was this recipient's turn")
        while True:
            self._current = session
            self._converse(target, session, ready, first, more, left)
            again = session.usable and any(errand.todo for errand in ready)
            # Of two hosts that both put a recipient off, the one that is to be asked first stays.
            if self._kept is None and session.usable and not session.spent and not again:
                self._kept = (target, session)
            else:
                session.quit()
            if not again:
                break
            # It takes no more in one session, as it said (RFC 9422): what is left goes on in another.
            try:
                session = self._open(target)
            except MinisendError as error:
                ended = error
                if isinstance(error, ConfigError):
                    remote_mta = ""
                break
            self._opened(target.remote_mta, session.quickest)
        for errand in dict.fromkeys(ready):
            if errand.todo:
                self._judge(errand, errand.todo, ended, remote_mta)
                errand.todo = []
                self._land(errand, first, target, left)
        return session.stumbled

    def _converse(
        self,
        target: Target,
        session: Session,
        ready: deque[_Errand],
        first: _Errand,
        more: Callable[[], Job | None],
        left: deque[_Errand],
    ) -> None:
        """What this one session can do of ``ready``, and of what ``more`` gives; for the rest it was too short."""
        flying: deque[tuple[_Errand, list[int]]] = deque()
        offered = session.extensions
        most = min(offered.rcpt_max or _RECIPIENTS, MOST_RECIPIENTS)
        domains, mails = offered.rcpt_domain_max, offered.mail_max
        remote_mta, reports = target.remote_mta, offered.dsn

        def upcoming() -> Transaction | None:
            while not (mails and session.spent):
                while ready and not ready[0].todo:
                    ready.popleft()
                if not ready:
                    # Who waits for another server comes first.
                    job = None if left or first.is_stuck else more()
                    if job is None:
                        return None
                    ready.append(_Errand(job))
                errand = ready[0]
                batch = errand.next_batch(most, session.domains, domains)
                if not batch:
                    return None
                try:
                    transaction = errand.transaction(batch, session)
                except Exception as error:  # noqa: BLE001 - what reading a message raises is for its job
                    from minisend.message.convert import CannotConvert

                    if isinstance(error, CannotConvert):
                        self._judge(errand, batch, error, "")
                    else:
                        errand.fail(error)
                else:
                    errand.flying += 1
                    flying.append((errand, batch))
                    return transaction
                self._land(errand, first, target, left)
            return None

        for _, results in session.transact(upcoming):
            errand, batch = flying.popleft()
            errand.flying -= 1
            if session.stumbled:
                self._one_by_one.add(target)
            if isinstance(results, Exception):
                errand.fail(results)
            elif not errand.over:
                verdicts = policy.judge_transaction(
                    batch, results, remote_mta=remote_mta, at=time.time(), reports=reports
                )
                # Only while each transaction settles somebody: a server may take some recipients and then no message.
                if errand.take(verdicts) and errand.waiting:
                    again = [v.outcome.recipient for v in verdicts if v.then == policy.AGAIN]
                    if again and not errand.over:
                        errand.todo = again + errand.todo
                        ready.appendleft(errand)
            self._land(errand, first, target, left, anew=session.stumbled)

    def _land(
        self,
        errand: _Errand,
        first: _Errand,
        target: Target,
        left: deque[_Errand],
        *,
        anew: bool = False,
    ) -> None:
        """What becomes of an errand that this session has done what it can for; ``anew``: the server is to be asked again."""
        if errand.flying or errand.todo:
            return
        if not errand.waiting:
            errand.ended = True
            errand.job.done(None)
            return
        if errand is first:
            return
        errand.asked = target
        if anew or any(errand.latest[i].scope == policy.SITE for i in errand.waiting):
            errand.asked = None
            errand.latest.clear()
        left.append(errand)

    def _wait(self) -> None:
        self._while_waiting()
        if self._stopping() and (self._current is None or not self._current.in_doubt):
            raise Stopped

    def _judge(
        self, errand: _Errand, indexes: Iterable[int], error: MinisendError, remote_mta: str
    ) -> None:
        now = time.time()
        name = self._hop.smarthost
        errand.take(
            [
                policy.judge(index, error, remote_mta=remote_mta, at=now, smarthost=name)
                for index in list(indexes)
            ]
        )


def _nothing() -> None:
    """No further job."""


class _Errand:
    """A job, and how far it is.

    ``waiting``  who is not settled: index → address
    ``latest``   the last verdict on each
    ``todo``     those of them for whom this session has no transaction yet
    ``flying``   transactions that are under way
    ``asked``    the server that has put them off
    ``over``     the job has heard all that it wants to
    ``ended``    the job has been told so
    """

    __slots__ = ("asked", "ended", "flying", "job", "latest", "over", "todo", "waiting")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.waiting = dict(job.recipients)
        self.latest: dict[int, Verdict] = {}
        self.todo = list(self.waiting)
        self.flying = 0
        self.asked: Target | None = None
        self.over = False
        self.ended = False

    @property
    def is_stuck(self) -> bool:
        """This session can do no more for those who wait."""
        return bool(self.waiting) and not self.todo and not self.flying

    def next_batch(self, most: int, domains: set[bytes], most_domains: int) -> list[int]:
        """Who is to be in the next transaction, out of ``todo``, in its order.

        ``most``     of them
        ``domains``  that the session has had, added to; it may have ``most_domains`` of them, 0 for any
        Nobody when there is no room for the domains of all who are left.
        """
        if not most_domains:
            batch, self.todo = self.todo[:most], self.todo[most:]
            return batch
        batch, left = [], []
        for index in self.todo:
            domain = split(self.waiting[index])[1].lower()
            if len(batch) < most and (domain in domains or len(domains) < most_domains):
                domains.add(domain)
                batch.append(index)
            else:
                left.append(index)
        self.todo = left
        return batch

    def transaction(self, batch: list[int], session: Session) -> Transaction:
        """For these recipients.  Raises CannotConvert, and what reading the message raises."""
        content = self.job.content
        octets, size, eight_bit = content.for_server(session.extensions)

        def unless_over() -> Iterable[bytes]:
            # What came before may have been impossible to record: then nobody else is to have it.
            if self.over:
                raise Abandoned
            return octets()

        return Transaction(
            self.job.sender,
            [self.waiting[index] for index in batch],
            unless_over,
            size=size,
            eight_bit=eight_bit,
            ret=content.ret,
            envid=content.envid,
            dsn=[content.dsn.get(index, _NO_REQUEST) for index in batch] if content.dsn else (),
        )

    def take(self, verdicts: Iterable[Verdict]) -> bool:
        """Take the verdicts for the latest; the job hears of those who need no further try.  True when there are any."""
        settled = []
        for verdict in verdicts:
            index = verdict.outcome.recipient
            self.latest[index] = verdict.after(self.latest.get(index))
            if verdict.then == policy.STOP:
                del self.waiting[index]
                settled.append(self.latest[index])
        if settled and not self.job.settle(settled):
            self._end()
        return bool(settled)

    def fail(self, error: Exception) -> None:
        """The message cannot be read, or only in part."""
        if not self.over:
            self.job.fail(error)
            self._end()

    def _end(self) -> None:
        self.over = True
        self.todo = []
        self.waiting = {}
