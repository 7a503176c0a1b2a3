"""The failure policy as one table: what each reply and each error comes to, as whole Outcomes."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.delivery.mx import Unroutable
from minisend.delivery.oauth.failure import Rejected, Unavailable
from minisend.delivery.policy import (
    AGAIN,
    LOCAL,
    LOGIN,
    MESSAGE,
    NEXT,
    RECIPIENT,
    ROUTE,
    SETTINGS,
    SITE,
    STOP,
    TOKEN,
    Verdict,
    expired,
    judge,
    judge_transaction,
)
from minisend.envelope import DELAYED, FAILED, RELAYED, Outcome
from minisend.errors import (
    ConfigError,
    LocalProtocolError,
    MinisendError,
    NetworkError,
    ReadError,
    RemoteProtocolError,
    SmtpError,
    TlsError,
)
from minisend.message.convert import CannotConvert
from minisend.smtp.auth import AuthError
from minisend.smtp.client import TRANSITIONS, Answer
from minisend.smtp.dialogue import Refused
from minisend.smtp.reply import Reply
from minisend.smtp.stream import HandshakeError
from minisend.smtp.transaction import SizeExceeded

MTA = "mx.example.net[192.0.2.1]:25"


def answer(phase: str, code: int, *lines: bytes) -> Answer:
    return Answer(phase, b"", Reply(code, lines))


SAID = f"host {MTA} said: "
REFUSED_US = f"host {MTA} refused to talk to us: "
REFUSED_PASSWORD = f"host {MTA} refused user name or password, check both in [smarthost]: "

# phase, reply | action, status, then, scope | how the reason begins
REPLIES: list[tuple[str, int, bytes, str, str, str, str, str]] = [
    ("greeting", 421, b"busy", DELAYED, "4.3.2", NEXT, SITE, SAID),
    ("greeting", 450, b"later", DELAYED, "4.3.2", NEXT, SITE, REFUSED_US),
    ("greeting", 450, b"4.7.1 later", DELAYED, "4.7.1", NEXT, SITE, REFUSED_US),
    ("greeting", 554, b"no", DELAYED, "4.3.2", NEXT, SITE, REFUSED_US),
    ("greeting", 554, b"5.7.1 no", DELAYED, "4.7.1", NEXT, SITE, REFUSED_US),
    ("greeting", 521, b"no mail here", DELAYED, "4.3.2", NEXT, SITE, REFUSED_US),
    ("EHLO", 421, b"bye", DELAYED, "4.3.2", NEXT, SITE, SAID),
    ("EHLO", 450, b"later", DELAYED, "4.0.0", NEXT, SITE, SAID),
    ("EHLO", 550, b"5.7.1 bad name", DELAYED, "4.7.1", NEXT, SITE, SAID),
    ("HELO", 450, b"later", DELAYED, "4.0.0", NEXT, SITE, SAID),
    ("HELO", 502, b"no", DELAYED, "4.0.0", NEXT, SITE, SAID),
    ("LHLO", 450, b"later", DELAYED, "4.0.0", NEXT, SITE, SAID),
    ("LHLO", 500, b"what", DELAYED, "4.0.0", NEXT, SITE, SAID),
    ("STARTTLS", 454, b"not now", DELAYED, "4.7.0", NEXT, SITE, SAID),
    ("STARTTLS", 554, b"no", DELAYED, "4.7.0", NEXT, SITE, SAID),
    ("AUTH", 421, b"bye", DELAYED, "4.3.2", NEXT, SITE, SAID),
    ("AUTH", 454, b"not now", DELAYED, "4.7.0", NEXT, SITE, SAID),
    ("AUTH", 535, b"no", DELAYED, "4.7.8", STOP, SITE, REFUSED_PASSWORD),
    ("AUTH", 535, b"5.7.8 no", DELAYED, "4.7.8", STOP, SITE, REFUSED_PASSWORD),
    ("AUTH", 534, b"weak", DELAYED, "4.7.9", STOP, SITE, REFUSED_PASSWORD),
    ("AUTH", 538, b"open line", DELAYED, "4.7.11", STOP, SITE, REFUSED_PASSWORD),
    ("AUTH", 501, b"what", DELAYED, "4.7.0", STOP, SITE, REFUSED_PASSWORD),
    ("RSET", 450, b"no", DELAYED, "4.0.0", NEXT, SITE, SAID),
    ("RSET", 550, b"no", DELAYED, "4.0.0", NEXT, SITE, SAID),
    ("MAIL FROM", 421, b"bye", DELAYED, "4.3.2", NEXT, SITE, SAID),
    ("MAIL FROM", 451, b"later", DELAYED, "4.0.0", NEXT, MESSAGE, SAID),
    ("MAIL FROM", 452, b"full", DELAYED, "4.3.1", NEXT, MESSAGE, SAID),
    ("MAIL FROM", 530, b"who are you", DELAYED, "4.7.0", NEXT, SITE, SAID),
    ("MAIL FROM", 530, b"5.7.1 TLS first", DELAYED, "4.7.1", NEXT, SITE, SAID),
    ("MAIL FROM", 535, b"no", DELAYED, "4.7.8", NEXT, SITE, SAID),
    ("MAIL FROM", 538, b"no", DELAYED, "4.7.11", NEXT, SITE, SAID),
    ("MAIL FROM", 550, b"no", FAILED, "5.0.0", STOP, MESSAGE, SAID),
    ("MAIL FROM", 552, b"too big", FAILED, "5.3.4", STOP, MESSAGE, SAID),
    ("MAIL FROM", 553, b"5.1.7 what", FAILED, "5.1.7", STOP, MESSAGE, SAID),
    ("RCPT TO", 421, b"bye", DELAYED, "4.3.2", NEXT, SITE, SAID),
    ("RCPT TO", 450, b"later", DELAYED, "4.0.0", NEXT, RECIPIENT, SAID),
    ("RCPT TO", 450, b"4.2.0 greylisted", DELAYED, "4.2.0", NEXT, RECIPIENT, SAID),
    ("RCPT TO", 452, b"full", DELAYED, "4.3.1", NEXT, RECIPIENT, SAID),
    ("RCPT TO", 452, b"4.5.3 too many", DELAYED, "4.5.3", NEXT, RECIPIENT, SAID),
    ("RCPT TO", 530, b"members only", FAILED, "5.7.0", STOP, RECIPIENT, SAID),
    ("RCPT TO", 550, b"no", FAILED, "5.0.0", STOP, RECIPIENT, SAID),
    ("RCPT TO", 550, b"5.1.1 no such user", FAILED, "5.1.1", STOP, RECIPIENT, SAID),
    ("RCPT TO", 550, b"4.1.1 class of another reply", FAILED, "5.0.0", STOP, RECIPIENT, SAID),
    ("RCPT TO", 552, b"full", FAILED, "5.2.2", STOP, RECIPIENT, SAID),
    ("RCPT TO", 552, b"5.2.3 too big for it", FAILED, "5.2.3", STOP, RECIPIENT, SAID),
    ("RCPT TO", 552, b"5.5.3 too many", DELAYED, "4.5.3", NEXT, RECIPIENT, SAID),
    ("RCPT TO", 556, b"null MX", FAILED, "5.1.10", STOP, RECIPIENT, SAID),
    ("DATA", 421, b"bye", DELAYED, "4.3.2", NEXT, SITE, SAID),
    ("DATA", 451, b"later", DELAYED, "4.0.0", NEXT, MESSAGE, SAID),
    ("DATA", 554, b"no", FAILED, "5.0.0", STOP, MESSAGE, SAID),
    ("BDAT", 421, b"bye", DELAYED, "4.3.2", NEXT, SITE, SAID),
    ("BDAT", 451, b"later", DELAYED, "4.0.0", NEXT, MESSAGE, SAID),
    ("BDAT", 554, b"no", FAILED, "5.0.0", STOP, MESSAGE, SAID),
    ("end of data", 250, b"2.0.0 Ok: queued", RELAYED, "2.0.0", STOP, RECIPIENT, SAID),
    ("end of data", 250, b"2.6.0 queued", RELAYED, "2.6.0", STOP, RECIPIENT, SAID),
    ("end of data", 250, b"ok", RELAYED, "2.0.0", STOP, RECIPIENT, SAID),
    ("end of data", 421, b"bye", DELAYED, "4.3.2", NEXT, SITE, SAID),
    ("end of data", 451, b"4.7.1 later", DELAYED, "4.7.1", NEXT, MESSAGE, SAID),
    ("end of data", 452, b"full", DELAYED, "4.3.1", NEXT, MESSAGE, SAID),
    ("end of data", 552, b"too big", FAILED, "5.3.4", STOP, MESSAGE, SAID),
    ("end of data", 554, b"5.7.1 spam", FAILED, "5.7.1", STOP, MESSAGE, SAID),
]


@pytest.mark.parametrize("refused", [False, True], ids=["answer", "Refused"])
@pytest.mark.parametrize(
    ("phase", "code", "text", "action", "status", "then", "scope", "said"),
    REPLIES,
    ids=[f"{row[0]} {row[1]} {row[2].decode()}" for row in REPLIES],
)
def test_replies(
    phase: str,
    code: int,
    text: bytes,
    action: str,
    status: str,
    then: str,
    scope: str,
    said: str,
    refused: bool,
) -> None:
    shown = f"{code} {text.decode()}"
    given = answer(phase, code, text)
    assert judge(7, Refused(given) if refused else given, remote_mta=MTA, at=5.0) == Verdict(
        Outcome(
            7,
            action,
            status,
            f"{said}{shown} (in reply to {phase})",
            remote_mta=MTA,
            diagnostic=f"smtp; {shown}",
            command=phase,
            at=5.0,
        ),
        then,
        scope,
        cause=LOGIN if (phase, then) == ("AUTH", STOP) else "",
    )


def test_the_table_has_every_phase_and_class() -> None:
    tested = {(phase, code // 100) for phase, code, *_ in REPLIES}
    missing = {
        (phase, digit)
        for phase, transition in TRANSITIONS.items()
        if phase != "BDAT LAST"  # its answer is the one to the end of data
        for digit in transition.replies
        if digit > 3 and phase != "QUIT"
    } - tested
    assert not missing


def test_a_long_reply_is_cut_before_anything_is_made_of_it() -> None:
    """64 KiB to each of a thousand recipients would be seconds of escaping, and as long in log and report."""
    verdict = judge(
        0, answer("RCPT TO", 550, b"5.1.1 no", b"", *[b"\1" * 1000] * 60), remote_mta=MTA, at=5.0
    )
    said = "550 5.1.1 no  " + r"\x01" * 1000 + " " + r"\x01" * 13
    assert verdict.outcome == Outcome(
        0,
        FAILED,
        "5.1.1",
        f"host {MTA} said: {said} (in reply to RCPT TO)",
        remote_mta=MTA,
        diagnostic=f"smtp; {said}",
        command="RCPT TO",
        at=5.0,
    )


@pytest.mark.parametrize("lines", [[b"x" * 65536], [b""] * 32768, [b"x" * 1024, b"y"]])
def test_what_is_kept_of_a_reply(lines: list[bytes]) -> None:
    outcome = judge(0, answer("DATA", 451, *lines), remote_mta=MTA, at=5.0).outcome
    assert outcome.diagnostic == f"smtp; 451 {b' '.join(lines)[:1024].decode()}".rstrip()
    assert len(outcome.reason) < 1200


def test_an_error_that_quotes_a_long_reply_is_cut() -> None:
    outcome = judge(0, TlsError("server said: " + "x" * 65536), remote_mta=MTA, at=5.0).outcome
    assert outcome.reason == f"host {MTA}: server said: " + "x" * 1011


def at_phase(error: SmtpError, phase: str) -> SmtpError:
    vars(error)["phase"] = phase
    return error


def errors(phase: str, where: str, *, then: str, scope: str) -> list[Any]:
    """The rows of what can go wrong with any session in ``phase``."""
    again = ": the message may be sent more than once" if phase == "end of data" else ""
    return [
        pytest.param(
            at_phase(error, phase),
            f"4.{error.status[2:]}",
            f"host {MTA}: {error} (during {where}){again}",
            then,
            scope,
            id=f"{type(error).__name__} in {phase}",
        )
        for error in (
            NetworkError("timed out"),
            TlsError("TLS with the server: bad record mac"),
            RemoteProtocolError("not an SMTP reply: 'x'"),
        )
    ]


@pytest.mark.parametrize(
    ("error", "status", "reason", "then", "scope"),
    [
        *errors("greeting", "greeting", then=NEXT, scope=SITE),
        *errors("EHLO", "EHLO", then=NEXT, scope=SITE),
        *errors("STARTTLS", "STARTTLS", then=NEXT, scope=SITE),
        *errors("AUTH", "AUTH", then=NEXT, scope=SITE),
        *errors("MAIL FROM", "MAIL FROM", then=NEXT, scope=SITE),
        *errors("RCPT TO", "RCPT TO", then=NEXT, scope=SITE),
        *errors("RSET", "RSET", then=NEXT, scope=SITE),
        *errors("DATA", "DATA", then=NEXT, scope=MESSAGE),
        *errors("end of data", "end of data", then=STOP, scope=MESSAGE),
        pytest.param(
            NetworkError("connect to [192.0.2.1]:25: Connection refused", "4.4.1"),
            "4.4.1",
            f"host {MTA}: connect to [192.0.2.1]:25: Connection refused",
            NEXT,
            SITE,
            id="connect without phase",
        ),
        pytest.param(
            at_phase(NetworkError("connect to [192.0.2.1]:25: timed out", "4.4.1"), "connect"),
            "4.4.1",
            "connect to [192.0.2.1]:25: timed out",
            NEXT,
            SITE,
            id="connect",
        ),
        pytest.param(
            at_phase(
                NetworkError("connect to [x]:25: Network is unreachable", "4.4.1", local=True),
                "connect",
            ),
            "4.4.1",
            "connect to [x]:25: Network is unreachable",
            NEXT,
            LOCAL,
            id="no network here",
        ),
        pytest.param(
            at_phase(NetworkError("lost connection: Network is down", local=True), "end of data"),
            "4.4.2",
            f"host {MTA}: lost connection: Network is down (during end of data)"
            ": the message may be sent more than once",
            STOP,
            MESSAGE,
            id="no network here, after the dot",
        ),
        pytest.param(
            at_phase(HandshakeError("certificate of mx.example.net has expired"), "STARTTLS"),
            "4.7.5",
            f"host {MTA}: certificate of mx.example.net has expired (during STARTTLS)",
            NEXT,
            SITE,
            id="certificate",
        ),
        pytest.param(
            at_phase(AuthError("no usable authentication mechanism"), "AUTH"),
            "4.7.0",
            f"host {MTA}: no usable authentication mechanism (during AUTH)",
            NEXT,
            SITE,
            id="no mechanism",
        ),
        pytest.param(
            at_phase(LocalProtocolError("MAIL FROM in state START"), "MAIL FROM"),
            "4.3.0",
            f"host {MTA}: MAIL FROM in state START (during MAIL FROM)",
            STOP,
            MESSAGE,
            id="our bug",
        ),
        pytest.param(
            ReadError("queue file: Input/output\nerror"),
            "4.3.0",
            f"host {MTA}: queue file: Input/output error",
            STOP,
            MESSAGE,
            id="not of the network",
        ),
        pytest.param(
            MinisendError(), "4.3.0", f"host {MTA}: MinisendError", STOP, MESSAGE, id="no text"
        ),
    ],
)
def test_errors(error: MinisendError, status: str, reason: str, then: str, scope: str) -> None:
    assert judge(3, error, remote_mta=MTA, at=5.0) == Verdict(
        Outcome(3, DELAYED, status, reason, remote_mta=MTA, at=5.0), then, scope
    )


def test_larger_than_the_server_takes() -> None:
    error = at_phase(
        SizeExceeded("message of 9 octets is larger than the 5 the server takes"), "MAIL FROM"
    )
    reason = (
        f"host {MTA}: message of 9 octets is larger than the 5 the server takes (during MAIL FROM)"
    )
    assert judge(0, error, remote_mta=MTA, at=5.0) == Verdict(
        Outcome(0, FAILED, "5.3.4", reason, remote_mta=MTA, at=5.0), STOP, MESSAGE
    )


@pytest.mark.parametrize(
    ("error", "action", "status", "scope", "cause"),
    [
        pytest.param(Unroutable("why", "5.1.2"), FAILED, "5.1.2", MESSAGE, "", id="no such domain"),
        pytest.param(Unroutable("why", "5.4.6"), FAILED, "5.4.6", MESSAGE, "", id="loop"),
        pytest.param(Unroutable("why", "4.4.3"), DELAYED, "4.4.3", SITE, "", id="DNS trouble"),
        pytest.param(
            Unroutable("why", "4.4.4"), DELAYED, "4.4.4", SITE, "", id="smarthost unknown"
        ),
        pytest.param(Unroutable("why", "4.3.5"), DELAYED, "4.3.5", SITE, "", id="no dnspython"),
        pytest.param(ConfigError("why"), DELAYED, "4.3.5", SITE, SETTINGS, id="password file"),
        pytest.param(Rejected("why", "invalid_grant"), DELAYED, "4.7.8", SITE, TOKEN, id="OAuth2"),
        pytest.param(Unavailable("why"), DELAYED, "4.7.0", SITE, "", id="OAuth2 for now"),
    ],
)
def test_before_any_server(
    error: MinisendError, action: str, status: str, scope: str, cause: str
) -> None:
    assert judge(1, error, at=5.0) == Verdict(
        Outcome(1, action, status, "why", at=5.0), STOP, scope, cause=cause
    )


OK = answer("end of data", 250, b"2.0.0 Ok")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param(OK, answer("RCPT TO", 552, b"too many"), (DELAYED, "4.5.3", AGAIN), id="552"),
        pytest.param(OK, answer("RCPT TO", 452, b"too many"), (DELAYED, "4.5.3", AGAIN), id="452"),
        pytest.param(
            OK, answer("RCPT TO", 452, b"4.5.3 x"), (DELAYED, "4.5.3", AGAIN), id="452 4.5.3"
        ),
        pytest.param(
            OK, answer("RCPT TO", 452, b"4.3.1 x"), (DELAYED, "4.3.1", NEXT), id="452 4.3.1"
        ),
        pytest.param(
            OK, answer("RCPT TO", 552, b"5.2.2 x"), (FAILED, "5.2.2", STOP), id="552 5.2.2"
        ),
        pytest.param(OK, answer("RCPT TO", 550, b"x"), (FAILED, "5.0.0", STOP), id="550"),
        pytest.param(
            answer("end of data", 451, b"x"),
            answer("RCPT TO", 552, b"x"),
            (DELAYED, "4.5.3", AGAIN),
            id="552 beside one accepted, whatever became of it",
        ),
        pytest.param(
            answer("end of data", 552, b"x"),
            answer("end of data", 552, b"x"),
            (FAILED, "5.3.4", STOP),
            id="552 to the message of two",
        ),
        pytest.param(
            answer("DATA", 452, b"x"),
            answer("DATA", 452, b"x"),
            (DELAYED, "4.3.1", NEXT),
            id="452 to DATA of two",
        ),
        pytest.param(
            at_phase(NetworkError("lost"), "DATA"),
            answer("RCPT TO", 552, b"x"),
            (DELAYED, "4.5.3", AGAIN),
            id="552 beside one accepted, then the connection lost",
        ),
        pytest.param(
            answer("RCPT TO", 550, b"x"),
            answer("RCPT TO", 552, b"x"),
            (FAILED, "5.2.2", STOP),
            id="552 and nobody accepted",
        ),
        pytest.param(
            at_phase(NetworkError("lost"), "RCPT TO"),
            answer("RCPT TO", 552, b"x"),
            (FAILED, "5.2.2", STOP),
            id="552 and the connection lost before anybody was accepted",
        ),
    ],
)
def test_too_many_recipients(
    first: Answer | SmtpError, second: Answer, expected: tuple[str, str, str]
) -> None:
    verdicts = judge_transaction([4, 9], [first, second], remote_mta=MTA, at=5.0)
    assert verdicts[0] == judge(4, first, remote_mta=MTA, at=5.0)
    outcome = verdicts[1].outcome
    assert (outcome.action, outcome.status, verdicts[1].then) == expected
    assert verdicts[1].scope == (RECIPIENT if second.command == "RCPT TO" else MESSAGE)
    assert (outcome.recipient, outcome.diagnostic) == (9, f"smtp; {second.reply}")


@pytest.mark.parametrize("reports", [False, True])
def test_whether_the_server_reports_is_kept_with_what_it_said(reports: bool) -> None:
    results = [OK, answer("RCPT TO", 450, b"4.2.0 later")]
    taken, later = judge_transaction([0, 1], results, remote_mta=MTA, at=5.0, reports=reports)
    assert taken == judge(0, OK, remote_mta=MTA, at=5.0).but(reports=reports)
    assert later == judge(1, results[1], remote_mta=MTA, at=5.0).but(reports=reports)
    local = judge(1, NetworkError("no IPv6 here", "4.4.1", local=True), at=6.0)
    assert not local.reports
    assert local.after(later) == later.but(then=NEXT)


def test_a_fault_of_this_machine_does_not_hide_what_a_server_said() -> None:
    refused = judge(1, answer("greeting", 554, b"no"), remote_mta=MTA, at=5.0)
    local = judge(1, NetworkError("no IPv6 here", "4.4.1", local=True), at=6.0)
    later = judge(1, answer("RCPT TO", 550, b"no"), remote_mta=MTA, at=7.0)
    bad_config = judge(1, ConfigError("why"), at=8.0)
    assert local.after(None) == local
    assert local.after(bad_config) == local
    assert refused.after(local) == refused
    assert later.after(refused) == later
    assert local.after(refused) == Verdict(refused.outcome, NEXT, SITE)
    assert bad_config.after(refused) == Verdict(refused.outcome, STOP, SITE)
    no_ipv6 = judge(1, NetworkError("no IPv6", "4.4.1", local=True, lasting=True), at=8.0)
    assert (no_ipv6.then, no_ipv6.scope) == (NEXT, ROUTE)
    assert no_ipv6.after(refused) == Verdict(refused.outcome, NEXT, SITE)
    assert refused.after(no_ipv6) == refused
    no_dns = judge(1, Unroutable("no answer", "4.4.3"), at=9.0)
    assert no_dns.after(refused) == Verdict(refused.outcome, STOP, SITE)
    assert no_dns.after(bad_config) == no_dns
    unfit = judge(1, CannotConvert("why"), at=10.0)
    assert unfit.after(refused) == unfit


def test_expired() -> None:
    latest = judge(2, answer("RCPT TO", 450, b"4.2.0 later"), remote_mta=MTA, at=5.0).outcome
    assert expired(latest, 9.0) == Outcome(
        2,
        FAILED,
        "4.2.0",
        f"delivery time expired: {SAID}450 4.2.0 later (in reply to RCPT TO)",
        remote_mta=MTA,
        diagnostic="smtp; 450 4.2.0 later",
        command="RCPT TO",
        at=9.0,
    )


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(set(TRANSITIONS) - {"BDAT LAST"})),
    st.integers(200, 599),
    st.lists(st.binary(max_size=20), max_size=3),
    st.booleans(),
)
def test_any_reply(phase: str, code: int, lines: list[bytes], others_accepted: bool) -> None:
    """Nothing but a 2yz to the message is a delivery, nothing but a 5yz a failure, and the form always holds."""
    verdict = judge(
        0, answer(phase, code, *lines), remote_mta=MTA, at=5.0, others_accepted=others_accepted
    )
    outcome = verdict.outcome
    assert (outcome.action == RELAYED) == (phase == "end of data" and code < 300)
    assert outcome.action != FAILED or code >= 500
    assert outcome.status[0] == {RELAYED: "2", DELAYED: "4", FAILED: "5"}[outcome.action]
    assert len(outcome.status.split(".")) == 3
    assert outcome.final <= (verdict.then == STOP)
    assert outcome.reason.isprintable()
    assert outcome.diagnostic.isprintable()


@pytest.mark.parametrize(("name", "table"), [("", "[smarthost]"), ("work", "[smarthosts.work]")])
def test_who_refuses_a_password_is_named_with_its_table(name: str, table: str) -> None:
    refused = Refused(answer("AUTH", 535, b"no"))
    verdict = judge(0, refused, remote_mta=MTA, at=5.0, smarthost=name)
    why = f"host {MTA} refused user name or password, check both in {table}: 535 no (in reply to AUTH)"
    assert verdict.outcome.reason == why
