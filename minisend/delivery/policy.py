"""What the end of an attempt means: THE failure policy, from a reply or an error to an ``Outcome``.

It never does I/O, never raises, and nothing else makes an Outcome of a delivery over the network.
The model is Postfix's smtp_trouble.c: the phase says whom a failure concerns, the class of the
reply how long it lasts, and both together whether another server is worth asking.

    reply to                 2yz       4yz                      5yz
    greeting, E/HE/LHLO,     -         delayed, site, next      delayed, site, next: the server, not the
    STARTTLS, RSET                                              message, is refused; Postfix keeps trying too
    AUTH                     -         delayed, site, next      delayed, site, stop: every host has the same
                                                                accounts, and repetition locks them
    MAIL FROM                -         delayed, message, next   failed, message, stop; 530, 535, 538
                                                                (RFC 4954) as a greeting's 5yz
    RCPT TO                  -         delayed, recipient,      failed, recipient, stop
                                       next
    DATA, BDAT               -         delayed, message, next   failed, message, stop
    end of data              relayed   delayed, message, next   failed, message, stop

    421 in any phase: delayed, site, next (RFC 5321 section 3.8)
    too many recipients (452, or 552 in its place, to RCPT: RFC 5321 section 4.5.3.1.10): delayed,
    recipient; "again" when others were accepted, so that each transaction takes some of them

    error                                                                outcome
    NetworkError, TlsError, RemoteProtocolError, AuthError               delayed, site, next
      - of this machine (NetworkError.local), which may pass             delayed, local, next
      - of this machine, which has no IPv6                               delayed, route, next
      - while the message was sent                                       delayed, message, next
      - after its last octet: the server may have it, and asking         delayed, message, stop
        further servers would multiply the copies
    LocalProtocolError (our bug) and whatever is not known               delayed, message, stop
    a status of class 5 (too big for the server's SIZE, unroutable)      failed, message, stop
    Unroutable for now: DNS trouble, no DNS to be had                    delayed, site, stop
    ConfigError: certificates, password, access token                    delayed, site, stop: whoever waits for an
                                                                         administrator waits no longer than others

The status is the server's enhanced one with the class of the action, else the code's own meaning,
else "the class is all we know": X.0.0 (RFC 3463 section 3.1).
"""

from __future__ import annotations

from minisend.config.keys import smarthost_table
from minisend.delivery.mx import Unroutable
from minisend.envelope import DELAYED, FAILED, RELAYED, Outcome
from minisend.errors import (
    ConfigError,
    DataError,
    LocalProtocolError,
    MinisendError,
    NetworkError,
    SmtpError,
)
from minisend.smtp.client import (
    AUTH,
    BDAT,
    DATA,
    EHLO,
    END_OF_DATA,
    GREETING,
    HELO,
    LHLO,
    MAIL,
    QUIT,
    RCPT,
    RSET,
    STARTTLS,
    Answer,
)
from minisend.smtp.dialogue import Refused
from minisend.smtp.reply import Reply
from minisend.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Verdict.then
STOP = "stop"
NEXT = "next"
AGAIN = "again"

# Verdict.scope
LOCAL = "local"
ROUTE = "route"
SITE = "site"
MESSAGE = "message"
RECIPIENT = "recipient"
#: Those of a failure that any other message would meet.
UNREACHED = (LOCAL, ROUTE, SITE)

# Verdict.cause
LOGIN = "login"
TOKEN = "token"  # noqa: S105 - a cause, not a token
SETTINGS = "settings"

_SCOPES = {
    GREETING: SITE,
    EHLO: SITE,
    HELO: SITE,
    LHLO: SITE,
    STARTTLS: SITE,
    AUTH: SITE,
    RSET: SITE,
    QUIT: SITE,
    MAIL: MESSAGE,
    RCPT: RECIPIENT,
    DATA: MESSAGE,
    BDAT: MESSAGE,
    END_OF_DATA: MESSAGE,
}

# RFC 4954 section 6: the session lacks authentication or TLS, whatever the command was.  To RCPT servers in
# the field say the same of one recipient (a list that only members may write to), so there it counts as such.
_SESSION_CODES = (530, 535, 538)

# Subject and detail (RFC 3463) of a reply that has no enhanced status: by command and code, or by code.
_DETAILS: dict[tuple[str, int] | int, str] = {
    421: "3.2",  # RFC 5321 section 3.8; system not accepting network messages
    (RCPT, 552): "2.2",  # mailbox full
    452: "3.1",  # RFC 5321 section 4.2.3: insufficient system storage
    552: "3.4",  # RFC 1870 section 6.1: message too big
    530: "7.0",  # RFC 4954 section 6, and so the next three
    534: "7.9",
    535: "7.8",
    538: "7.11",
    556: "1.10",  # RFC 7504, RFC 7505
}
_PHASE_DETAILS = {GREETING: "3.2", STARTTLS: "7.0", AUTH: "7.0"}
_DIGITS = {RELAYED: "2", DELAYED: "4", FAILED: "5"}
_TOO_MANY_RECIPIENTS = "5.3"
# Octets of a reply, characters of an error: a server may send 64 KiB to each recipient, and more than this nobody reads.
_SAID_LIMIT = 1024


class Verdict(Value):
    """What one try with one server came to for one recipient.

    ``outcome``  to be recorded, unless ``then`` leads to a better one
    ``then``     STOP: nothing more in this attempt; NEXT: the next address or host may do better;
                 AGAIN: the same server, in another transaction
    ``scope``    whom the failure concerns: LOCAL this machine, which has no network (does not advance back-off);
                 ROUTE this machine, whose network does not lead there; SITE the server, so every message for it; MESSAGE; RECIPIENT
    ``reports``  the server offers DSN: of a success it tells the sender itself (RFC 3461 section 5.2.1)
    ``cause``    LOGIN, TOKEN or SETTINGS where only the administrator can mend it, see ``delivery.notice``; else ""
    """

    __slots__ = ("cause", "outcome", "reports", "scope", "then")

    def __init__(
        self, outcome: Outcome, then: str, scope: str, reports: bool = False, cause: str = ""
    ) -> None:
        self.outcome = outcome
        self.then = then
        self.scope = scope
        self.reports = reports
        self.cause = cause

    @property
    def _is_ours(self) -> bool:
        """No server was asked for it."""
        outcome = self.outcome
        return self.scope in (LOCAL, ROUTE) or (
            outcome.action == DELAYED and not outcome.remote_mta
        )

    def after(self, earlier: Verdict | None) -> Verdict:
        """The one of the two that stands for the attempt: this, the later one.

        But a fault of this machine, or of the way to any server, never hides what a server said: with no IPv6 here, the
        refusal on the IPv4 address is what the sender has to know, and what counts.
        """
        if earlier is not None and self._is_ours and not earlier._is_ours:
            return Verdict(
                earlier.outcome, self.then, earlier.scope, earlier.reports, earlier.cause
            )
        return self


def judge_transaction(
    recipients: Sequence[int],
    results: Sequence[Answer | SmtpError],
    *,
    remote_mta: str,
    at: float,
    reports: bool = False,
) -> list[Verdict]:
    """A verdict for each result of ``Session.send``, in order.

    ``recipients``  their indexes into ``Envelope.recipients``; ``remote_mta``, ``at`` as in ``Outcome``
    ``reports``     the server offers DSN
    """
    others_accepted = len(results) > 1 and any(
        _phase(result) in (DATA, BDAT, END_OF_DATA) for result in results
    )
    return [
        judge(
            recipient,
            result,
            remote_mta=remote_mta,
            at=at,
            others_accepted=others_accepted,
            reports=reports,
        )
        for recipient, result in zip(recipients, results, strict=True)
    ]


def judge(
    recipient: int,
    result: Answer | MinisendError,
    *,
    at: float,
    remote_mta: str = "",
    others_accepted: bool = False,
    reports: bool = False,
    smarthost: str = "",
) -> Verdict:
    """The verdict on one recipient, index into ``Envelope.recipients``.

    ``result``  an Answer or ``SmtpError`` of a session, an ``Unroutable``, or the ``ConfigError`` that kept
                a session from being opened
    ``others_accepted``  the same transaction got a further recipient past RCPT
    ``smarthost``        NAME of its table, "" for [smarthost]
    """
    if isinstance(result, Refused):
        result = result.answer
    if isinstance(result, Answer):
        return _judge_answer(recipient, result, remote_mta, at, others_accepted, reports, smarthost)
    action, then, scope = _judge_error(result)
    phase = _phase(result)
    # An error may quote what a server said.
    reason = " ".join(str(result)[:_SAID_LIMIT].split()) or type(result).__name__
    # An error of "connect" says itself whom it is about.
    if remote_mta and phase != "connect":
        reason = f"host {remote_mta}: {reason}" + (f" (during {phase})" if phase else "")
    if phase == END_OF_DATA:
        reason += ": the message may be sent more than once"
    return Verdict(
        Outcome(
            recipient,
            action,
            _DIGITS[action] + result.status[1:],
            reason,
            remote_mta=remote_mta,
            at=at,
        ),
        then,
        scope,
        reports,
        _cause(result),
    )


def expired(latest: Outcome, at: float) -> Outcome:
    """The end of a recipient whose message has waited for its whole lifetime: failed, as ``latest`` says.

    The status stays that of the actual problem, class 4, as RFC 3463 (X.4.7) prefers and Postfix does.
    """
    return Outcome(
        latest.recipient,
        FAILED,
        latest.status,
        f"delivery time expired: {latest.reason}",
        remote_mta=latest.remote_mta,
        diagnostic=latest.diagnostic,
        command=latest.command,
        at=at,
    )


def _judge_error(error: MinisendError) -> tuple[str, str, str]:
    """Action, ``then`` and ``scope`` of what is not an answer."""
    if isinstance(error, ConfigError):
        return DELAYED, STOP, SITE
    if isinstance(error, (SmtpError, Unroutable, DataError)) and error.status.startswith("5"):
        return FAILED, STOP, MESSAGE
    if isinstance(error, Unroutable):
        return DELAYED, STOP, SITE
    if isinstance(error, LocalProtocolError) or not isinstance(error, SmtpError):
        return DELAYED, STOP, MESSAGE
    phase = _phase(error)
    if phase == END_OF_DATA:
        return DELAYED, STOP, MESSAGE
    if isinstance(error, NetworkError) and error.local:
        return DELAYED, NEXT, ROUTE if error.lasting else LOCAL
    # What ends every session at this point may be the message itself: it must not hold up the others.
    return DELAYED, NEXT, MESSAGE if phase == DATA else SITE


def _cause(error: MinisendError) -> str:
    # EX_CONFIG: an OAuth2 service that is merely not reached has EX_TEMPFAIL, and its errors are of class 4.
    if not isinstance(error, ConfigError) or error.exit_code != ConfigError.exit_code:
        return ""
    return TOKEN if error.status.startswith("4") else SETTINGS


def _judge_answer(
    recipient: int,
    answer: Answer,
    remote_mta: str,
    at: float,
    others_accepted: bool,
    reports: bool,
    smarthost: str,
) -> Verdict:
    phase, reply = answer.command, _cut(answer.reply)
    action, then, scope = DELAYED, NEXT, _SCOPES[phase]
    detail = (
        reply.enhanced[2:]
        or _DETAILS.get((phase, reply.code))
        or _DETAILS.get(reply.code)
        or _PHASE_DETAILS.get(phase, "0.0")
    )
    said = "said"
    if phase == END_OF_DATA and reply.code // 100 == 2:
        action, then, scope = RELAYED, STOP, RECIPIENT
    elif reply.code == 421 or (phase == MAIL and reply.code in _SESSION_CODES):
        scope = SITE
    elif phase == RCPT and _too_many(reply, others_accepted):
        detail = _TOO_MANY_RECIPIENTS
        then = AGAIN if others_accepted else NEXT
    elif phase == AUTH and reply.permanent:
        then = STOP
        said = f"refused user name or password, check both in {smarthost_table(smarthost)}"
    elif reply.permanent and scope != SITE:
        action, then = FAILED, STOP
    elif phase == GREETING:
        said = "refused to talk to us"
    text = str(reply)
    return Verdict(
        Outcome(
            recipient,
            action,
            f"{_DIGITS[action]}.{detail}",
            f"host {remote_mta or 'unknown'} {said}: {text} (in reply to {phase})",
            remote_mta=remote_mta,
            diagnostic=f"smtp; {text}",
            command=phase,
            at=at,
        ),
        then,
        scope,
        reports,
        LOGIN if phase == AUTH and then == STOP else "",
    )


def _cut(reply: Reply) -> Reply:
    """The reply with the first _SAID_LIMIT octets of its text, before anything is made of it that costs more the longer it is."""
    if len(reply.lines) == 1 and len(reply.lines[0]) < _SAID_LIMIT:
        return reply
    if sum(map(len, reply.lines)) + len(reply.lines) <= _SAID_LIMIT:
        return reply
    room = _SAID_LIMIT
    lines = []
    for line in reply.lines:
        if room <= 0:
            break
        lines.append(line[:room])
        room -= len(line) + 1
    return Reply(reply.code, tuple(lines))


def _too_many(reply: Reply, others_accepted: bool) -> bool:
    """Servers that say 552 follow RFC 821; one that gives another enhanced status means what that says."""
    enhanced = reply.enhanced
    return reply.code in (452, 552) and (
        enhanced[2:] == _TOO_MANY_RECIPIENTS or (not enhanced and others_accepted)
    )


def _phase(result: Answer | MinisendError) -> str:
    """The command that was answered or interrupted, "" when there was none."""
    if isinstance(result, Answer):
        return result.command
    return str(getattr(result, "phase", ""))
