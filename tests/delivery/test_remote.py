"""Remote: which servers are asked, over which connections, how often; and what stands at the end for each recipient."""

import os
import ssl
from collections.abc import Callable, Iterator
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from delivery.scripted import (
    CLOSE,
    CONNECT,
    END_OF_DATA,
    KEYWORDS,
    Message,
    ScriptedServer,
    replies,
)
from peers.process import free_port

from minisend.config.sections import Config, Smarthost, Spool
from minisend.delivery import mx, policy, remote
from minisend.delivery.policy import LOCAL, MESSAGE, RECIPIENT, SITE, Verdict
from minisend.delivery.remote import Content, Remote
from minisend.delivery.route import ERROR, MX, SMARTHOST, NextHop
from minisend.envelope import DELAYED, FAILED, RELAYED, Outcome
from minisend.smtp import stream
from minisend.smtp.transaction import DsnRequest

NOW = 1_700_000_000.0
HOP = NextHop(SMARTHOST, "[127.0.0.1]:25")
ANN, BOB, CARL = b"ann@x.test", b"bob@x.test", b"carl@x.test"
CONTENT = Content(lambda: [b"Subject: hello\n\n", b"Hello.\n"], size=25, eight_bit=False)
WIRE = b"Subject: hello\r\n\r\nHello.\r\n"


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "time", SimpleNamespace(time=lambda: NOW))


@pytest.fixture
def connects(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every connection that was tried."""
    tried: list[tuple[str, int]] = []

    def connect(
        address: str, port: int, timeout: float, while_waiting: Callable[[], None], source: str
    ) -> stream.Stream:
        tried.append((address, port))
        return stream.connect(address, port, timeout, while_waiting, source=source)

    monkeypatch.setattr(remote, "connect", connect)
    return tried


def configuration(port: int, *hosts: str, **smarthost: object) -> Config:
    smarthost.setdefault("tls", "none")
    return Config(
        file=None,
        spool=Spool("/nowhere"),
        hostname="here.test",
        smarthost=Smarthost(hosts or ("127.0.0.1",), port=port, **smarthost),
    )


def verdict(
    server: ScriptedServer,
    recipient: int,
    action: str,
    status: str,
    reply: str,
    command: str,
    then: str,
    scope: str,
    said: str = "said",
) -> Verdict:
    """The one that follows from a reply."""
    mta = f"127.0.0.1[127.0.0.1]:{server.port}"
    return Verdict(
        Outcome(
            recipient,
            action,
            status,
            f"host {mta} {said}: {reply} (in reply to {command})",
            remote_mta=mta,
            diagnostic=f"smtp; {reply}",
            command=command,
            at=NOW,
        ),
        then,
        scope,
    )


def relayed(server: ScriptedServer, recipient: int) -> Verdict:
    return verdict(
        server,
        recipient,
        RELAYED,
        "2.0.0",
        "250 2.0.0 taken",
        END_OF_DATA.decode(),
        policy.STOP,
        RECIPIENT,
    )


class Remotes:
    """A Remote for each next hop."""

    def __init__(self, config: Config, **options: Any) -> None:
        self._config = config
        self._resolver = mx.Resolver(mx.dns_query(config.dns))
        self._options = options
        self._all: dict[NextHop, Remote] = {}

    def __enter__(self) -> "Remotes":
        return self

    def __exit__(self, *exc_info: object) -> None:
        for each in self._all.values():
            each.__exit__(*exc_info)

    def to(self, hop: NextHop) -> Remote:
        if hop not in self._all:
            self._all[hop] = Remote(hop, self._config, self._resolver, **self._options)
        return self._all[hop]

    def attempt(
        self, hop: NextHop, sender: bytes, recipients: dict[int, bytes], content: Content
    ) -> list[list[Verdict]]:
        """The verdicts in the parts in which they came; what reading the content raises, after them."""
        job = Single(sender, recipients, content)
        self.to(hop).serve(job, lambda: None)
        self.unreachable = job.unreachable
        self.parts = job.parts
        if job.error is not None:
            raise job.error
        assert job.ended == 1
        return job.parts


class Single:
    """A job by itself."""

    def __init__(self, sender: bytes, recipients: dict[int, bytes], content: Content) -> None:
        self.sender = sender
        self.recipients = recipients
        self.content = content
        self.parts: list[list[Verdict]] = []
        self.error: Exception | None = None
        self.unreachable: Verdict | None = None
        self.ended = 0

    def settle(self, verdicts: list[Verdict]) -> bool:
        self.parts.append(verdicts)
        return True

    def fail(self, error: Exception) -> None:
        self.error = error

    def give_back(self) -> None:
        self.ended += 1

    def turned_away(self) -> bool:
        # There is no other.
        return False

    def done(self, unreachable: Verdict | None) -> None:
        self.ended += 1
        self.unreachable = unreachable


class Noting(Single):
    """Notes with each part how many messages the server had taken then; ``satisfied``: it wants no more after the first."""

    def __init__(self, recipients: dict[int, bytes]) -> None:
        super().__init__(b"", recipients, CONTENT)
        self.taken: list[Message] = []
        self.heard: list[tuple[list[tuple[int, str, str, str]], int]] = []
        self.satisfied = False

    def settle(self, verdicts: list[Verdict]) -> bool:
        super().settle(verdicts)
        self.heard.append((shape(verdicts), len(self.taken)))
        return not self.satisfied


def attempt(
    sending: Remotes, hop: NextHop, sender: bytes, recipients: dict[int, bytes], content: Content
) -> list[Verdict]:
    """Every verdict of an attempt, in the order of the recipients; in which parts they come is asserted where it matters."""
    parts = sending.attempt(hop, sender, recipients, content)
    assert all(parts)
    return sorted(chain(*parts), key=lambda each: list(recipients).index(each.outcome.recipient))


def shape(verdicts: list[Verdict]) -> list[tuple[int, str, str, str]]:
    return [
        (each.outcome.recipient, each.outcome.action, each.outcome.status, each.scope)
        for each in verdicts
    ]


# -- one server


def test_each_recipient_has_a_verdict_of_its_own() -> None:
    answer = replies({b"RCPT TO:<bob@": b"550 5.1.1 no bob", b"RCPT TO:<carl@": b"450 4.2.1 later"})
    with ScriptedServer(answer) as server, Remotes(configuration(server.port)) as sending:
        verdicts = attempt(sending, HOP, b"me@here.test", {0: ANN, 3: BOB, 7: CARL}, CONTENT)
    assert verdicts == [
        relayed(server, 0),
        verdict(server, 3, FAILED, "5.1.1", "550 5.1.1 no bob", "RCPT TO", policy.STOP, RECIPIENT),
        verdict(server, 7, DELAYED, "4.2.1", "450 4.2.1 later", "RCPT TO", policy.NEXT, RECIPIENT),
    ]
    assert server.messages == [Message(b"me@here.test", (ANN,), WIRE)]
    assert [session.commands for session in server.sessions] == [
        [
            b"EHLO here.test",
            b"MAIL FROM:<me@here.test> SIZE=25",
            b"RCPT TO:<ann@x.test>",
            b"RCPT TO:<bob@x.test>",
            b"RCPT TO:<carl@x.test>",
            b"DATA",
            b"QUIT",
        ]
    ]


def test_one_connection_for_many_messages() -> None:
    with ScriptedServer() as server, Remotes(configuration(server.port)) as sending:
        for number in range(20):
            assert attempt(sending, HOP, b"", {number: ANN}, CONTENT) == [relayed(server, number)]
    (session,) = server.sessions
    assert session.verbs() == [b"EHLO", *[b"MAIL", b"RCPT", b"DATA"] * 20, b"QUIT"]
    assert server.messages == [Message(b"", (ANN,), WIRE)] * 20


@pytest.mark.parametrize(
    "goodbye",
    [
        pytest.param(CLOSE, id="closed in silence"),
        pytest.param(b"421 4.4.2 timed out", id="421"),
    ],
)
def test_a_session_that_the_server_gave_up_is_replaced(goodbye: bytes) -> None:
    answer = replies({b"MAIL FROM:<2@": [goodbye]})
    with ScriptedServer(answer) as server, Remotes(configuration(server.port)) as sending:
        for number in (1, 2, 3):
            assert attempt(sending, HOP, b"%d@x.test" % number, {0: ANN}, CONTENT) == [
                relayed(server, 0)
            ]
    assert [message.sender for message in server.messages] == [
        b"1@x.test",
        b"2@x.test",
        b"3@x.test",
    ]
    assert len(server.sessions) == 2


def test_a_session_that_was_closed_while_it_waited_is_replaced() -> None:
    with ScriptedServer() as server, Remotes(configuration(server.port)) as sending:
        assert attempt(sending, HOP, b"", {0: ANN}, CONTENT) == [relayed(server, 0)]
        server.disconnect()
        assert attempt(sending, HOP, b"", {0: ANN}, CONTENT) == [relayed(server, 0)]
    assert len(server.sessions) == 2
    assert len(server.messages) == 2


def test_a_kept_session_that_puts_off_is_not_asked_twice() -> None:
    """Its server has answered: a fresh connection to the same address would only be told the same."""
    answer = replies({b"RCPT TO:<bob@": b"450 4.2.1 later"})
    with ScriptedServer(answer) as server, Remotes(configuration(server.port)) as sending:
        attempt(sending, HOP, b"", {0: ANN}, CONTENT)
        verdicts = attempt(sending, HOP, b"", {0: BOB}, CONTENT)
    assert verdicts == [
        verdict(server, 0, DELAYED, "4.2.1", "450 4.2.1 later", "RCPT TO", policy.NEXT, RECIPIENT)
    ]
    assert len(server.sessions) == 1
    assert server.sessions[0].commands.count(b"RCPT TO:<bob@x.test>") == 1


# -- recipients that are too many


def test_too_many_recipients_take_several_transactions() -> None:
    def answer(command: bytes) -> bytes | None:
        if command.startswith(b"MAIL"):
            room.append(2)
        if command.startswith(b"RCPT"):
            room[-1] -= 1
            if room[-1] < 0:
                return b"452 4.5.3 too many recipients"
        return None

    room: list[int] = []
    recipients = {index: b"r%d@x.test" % index for index in range(5)}
    with ScriptedServer(answer) as server, Remotes(configuration(server.port)) as sending:
        assert attempt(sending, HOP, b"", recipients, CONTENT) == [
            relayed(server, index) for index in range(5)
        ]
    assert [message.recipients for message in server.messages] == [
        (b"r0@x.test", b"r1@x.test"),
        (b"r2@x.test", b"r3@x.test"),
        (b"r4@x.test",),
    ]
    assert {message.octets for message in server.messages} == {WIRE}
    assert len(server.sessions) == 1


@pytest.mark.parametrize(
    ("keywords", "most"),
    [
        pytest.param((), 100, id="as the standard has it"),
        pytest.param((b"LIMITS RCPTMAX=7",), 7, id="fewer"),
        pytest.param((b"LIMITS MAILMAX=2 RCPTMAX=150",), 150, id="more"),
        pytest.param((b"LIMITS RCPTMAX=1000",), 250, id="all"),
        pytest.param((b"LIMITS RCPTMAX=0",), 100, id="no number"),
    ],
)
def test_a_transaction_has_no_more_recipients_than_the_server_takes(
    keywords: tuple[bytes, ...], most: int
) -> None:
    """Refused and put off among them, which are not asked for again."""
    recipients = {index: b"r%d@x.test" % index for index in range(250)}
    answer = replies({b"RCPT TO:<r1@": b"550 5.1.1 no", b"RCPT TO:<r249@": b"450 4.2.1 later"})
    with ScriptedServer(answer, keywords=(*KEYWORDS, *keywords)) as server:
        with Remotes(configuration(server.port)) as sending:
            verdicts = attempt(sending, HOP, b"", recipients, CONTENT)
    fates = {1: (1, FAILED, "5.1.1", RECIPIENT), 249: (249, DELAYED, "4.2.1", RECIPIENT)}
    assert shape(verdicts) == [
        fates.get(index, (index, RELAYED, "2.0.0", RECIPIENT)) for index in range(250)
    ]
    (session,) = server.sessions
    asked: list[list[bytes]] = []
    for command in session.commands:
        if command.startswith(b"MAIL"):
            asked.append([])
        elif command.startswith(b"RCPT"):
            asked[-1].append(command.removeprefix(b"RCPT TO:<").removesuffix(b">"))
    everybody = list(recipients.values())
    assert asked == [everybody[at : at + most] for at in range(0, 250, most)]
    assert {message.octets for message in server.messages} == {WIRE}


EHLO, QUIT = b"EHLO", b"QUIT"
BY_DATA, BY_CHUNK = [b"MAIL", b"RCPT", b"DATA"], [b"MAIL", b"RCPT", b"BDAT"]


@pytest.mark.parametrize(
    ("offered", "sessions"),
    [
        pytest.param((), [BY_DATA * 7], id="no limit"),
        pytest.param((b"LIMITS MAILMAX=7",), [BY_DATA * 7], id="enough"),
        pytest.param((b"LIMITS MAILMAX=0",), [BY_DATA * 7], id="no number"),
        pytest.param((b"LIMITS MAILMAX=2",), [*[BY_DATA * 2] * 3, BY_DATA], id="one at a time"),
        pytest.param(
            (b"PIPELINING", b"LIMITS MAILMAX=2"), [*[BY_DATA * 2] * 3, BY_DATA], id="PIPELINING"
        ),
        pytest.param(
            (b"PIPELINING", b"CHUNKING", b"LIMITS MAILMAX=2"),
            [*[BY_CHUNK * 2] * 3, BY_CHUNK],
            id="CHUNKING",
        ),
        pytest.param(
            (b"PIPELINING", b"CHUNKING", b"LIMITS MAILMAX=3"),
            [*[BY_CHUNK * 3] * 2, BY_CHUNK],
            id="fewer than the window",
        ),
        pytest.param((b"PIPELINING", b"LIMITS MAILMAX=1"), [BY_DATA] * 7, id="one each"),
    ],
)
@pytest.mark.parametrize("together", [True, False], ids=["one after the other", "each by itself"])
def test_a_session_has_no_more_transactions_than_the_server_takes(
    offered: tuple[bytes, ...], sessions: list[list[bytes]], together: bool
) -> None:
    """RFC 9422, MAILMAX: each session says goodbye, the next begins at once, and nobody hears of it."""
    jobs = [Single(b"%d@here.test" % number, {number: ANN}, CONTENT) for number in range(7)]
    left = list(jobs)
    with ScriptedServer(keywords=(b"8BITMIME", b"SIZE", *offered)) as server:
        with Remotes(configuration(server.port)) as sending:
            while left:
                sending.to(HOP).serve(
                    left.pop(0), lambda: left.pop(0) if together and left else None
                )
        said = [
            [verb for verb in session.verbs() if verb != b"RSET"] for session in server.sessions
        ]
    assert said == [[EHLO, *verbs, QUIT] for verbs in sessions]
    assert [message.sender for message in server.messages] == [job.sender for job in jobs]
    assert [(job.parts, job.ended, job.unreachable) for job in jobs] == [
        ([[relayed(server, number)]], 1, None) for number in range(7)
    ]


def test_a_session_that_is_used_up_is_not_kept() -> None:
    """Nobody is to wait for the next message with a connection that is of no use for it."""
    with ScriptedServer(keywords=(*KEYWORDS, b"LIMITS MAILMAX=2")) as server:
        with Remotes(configuration(server.port)) as sending:
            ends = []
            for _ in range(3):
                attempt(sending, HOP, b"", {0: ANN}, CONTENT)
                ends.append([session.verbs()[-1] for session in server.sessions])
    assert ends == [[b"DATA"], [QUIT], [QUIT, b"DATA"]]


def test_refused_transactions_count_and_those_never_begun_do_not() -> None:
    """What counts is MAIL: the second is refused, the third too large for the server to hear of."""
    jobs = [Single(b"%d@here.test" % number, {number: ANN}, CONTENT) for number in range(5)]
    jobs[2].content = CONTENT.but(size=1001)
    answer = replies({b"MAIL FROM:<1@": b"550 5.7.1 not you"})
    keywords = (b"SIZE 1000", b"LIMITS MAILMAX=3")
    left = list(jobs)
    with ScriptedServer(answer, keywords=keywords) as server:
        with Remotes(configuration(server.port)) as sending:
            while left:
                sending.to(HOP).serve(left.pop(0), lambda: left.pop(0) if left else None)
        asked = [
            [command.partition(b" SIZE")[0] for command in session.commands if b"MAIL" in command]
            for session in server.sessions
        ]
    assert asked == [
        [b"MAIL FROM:<0@here.test>", b"MAIL FROM:<1@here.test>", b"MAIL FROM:<3@here.test>"],
        [b"MAIL FROM:<4@here.test>"],
    ]
    assert [shape(job.parts[0]) for job in jobs] == [
        [(0, RELAYED, "2.0.0", RECIPIENT)],
        [(1, FAILED, "5.7.1", MESSAGE)],
        [(2, FAILED, "5.3.4", MESSAGE)],
        [(3, RELAYED, "2.0.0", RECIPIENT)],
        [(4, RELAYED, "2.0.0", RECIPIENT)],
    ]


def test_a_message_of_several_transactions_goes_on_in_further_sessions() -> None:
    """Each with one: the put off are not asked for again, the too many are, and all in one attempt."""
    recipients = {index: b"r%d@x.test" % index for index in range(6)}
    answer = replies(
        {b"RCPT TO:<r1@": b"450 4.2.1 later", b"RCPT TO:<r2@": [b"452 4.5.3 too many recipients"]}
    )
    keywords = (*KEYWORDS, b"LIMITS MAILMAX=1 RCPTMAX=3")
    opened: list[bool] = []
    with ScriptedServer(answer, keywords=keywords) as server:
        with Remotes(
            configuration(server.port),
            opened=lambda host, quickest: opened.append(0 < quickest < 60),
        ) as sending:
            verdicts = attempt(sending, HOP, b"", recipients, CONTENT)
            assert sending.unreachable is None
    assert shape(verdicts) == [
        (index, DELAYED, "4.2.1", RECIPIENT) if index == 1 else (index, RELAYED, "2.0.0", RECIPIENT)
        for index in range(6)
    ]
    assert [
        [command[9:11] for command in session.commands if command.startswith(b"RCPT")]
        for session in server.sessions
    ] == [[b"r0", b"r1", b"r2"], [b"r2", b"r3", b"r4"], [b"r5"]]
    assert {session.verbs().count(b"MAIL") for session in server.sessions} == {1}
    assert {session.verbs()[-1] for session in server.sessions} == {QUIT}
    assert opened == [True] * 3


@pytest.mark.parametrize("refusal", [CLOSE, b"421 4.7.0 too many connections"])
def test_a_further_session_that_the_server_does_not_want_is_a_reason_for_the_next_host(
    refusal: bytes,
) -> None:
    port = free_port("127.0.0.1", "127.0.0.2")
    greetings = replies({CONNECT: [b"220 mx.test ESMTP", refusal, refusal]})
    keywords = (*KEYWORDS, b"LIMITS MAILMAX=1 RCPTMAX=2")
    recipients = {index: b"r%d@x.test" % index for index in range(4)}
    one = ScriptedServer(greetings, port=port, keywords=keywords)
    two = ScriptedServer(address="127.0.0.2", port=port)
    with one, two, Remotes(configuration(port, "127.0.0.1", "127.0.0.2")) as sending:
        verdicts = attempt(sending, HOP, b"", recipients, CONTENT)
    assert shape(verdicts) == [(index, RELAYED, "2.0.0", RECIPIENT) for index in range(4)]
    assert [message.recipients for message in (*one.messages, *two.messages)] == [
        (b"r0@x.test", b"r1@x.test"),
        (b"r2@x.test", b"r3@x.test"),
    ]
    assert len(one.messages) == 1


@pytest.mark.parametrize(
    ("limits", "asked"),
    [
        pytest.param(b"RCPTMAX=9", [[["a@x", "b@y", "c@X", "d@z", "e@y"], ["f@x"]]], id="any"),
        pytest.param(
            b"RCPTDOMAINMAX=0", [[["a@x", "b@y", "c@X", "d@z", "e@y"], ["f@x"]]], id="no number"
        ),
        pytest.param(
            b"RCPTDOMAINMAX=3", [[["a@x", "b@y", "c@X", "d@z", "e@y"], ["f@x"]]], id="enough"
        ),
        pytest.param(
            b"RCPTDOMAINMAX=2", [[["a@x", "b@y", "c@X", "e@y"]], [["d@z"], ["f@x"]]], id="two"
        ),
        pytest.param(
            b"RCPTDOMAINMAX=2 RCPTMAX=1",
            [[["a@x"], ["b@y"], ["c@X"], ["e@y"]], [["d@z"], ["f@x"]]],
            id="two, singly",
        ),
        pytest.param(
            b"RCPTDOMAINMAX=1",
            [[["a@x", "c@X"]], [["b@y", "e@y"]], [["d@z"]], [["f@x"]]],
            id="one",
        ),
        pytest.param(
            b"RCPTDOMAINMAX=1 MAILMAX=1 RCPTMAX=1",
            [[["a@x"]], [["b@y"]], [["c@X"]], [["d@z"]], [["e@y"]], [["f@x"]]],
            id="one of all",
        ),
    ],
)
@pytest.mark.parametrize("together", [True, False], ids=["one after the other", "each by itself"])
def test_a_session_has_recipients_of_no_more_domains_than_the_server_takes(
    limits: bytes, asked: list[list[list[str]]], together: bool
) -> None:
    """RFC 9422, RCPTDOMAINMAX: of one session, over all its messages; whatever their case."""
    everybody = ["a@x", "b@y", "c@X", "d@z", "e@y"]
    first = Single(b"", {index: to.encode() for index, to in enumerate(everybody)}, CONTENT)
    second = Single(b"", {0: b"f@x"}, CONTENT)
    left = [second]
    with ScriptedServer(keywords=(*KEYWORDS, b"LIMITS " + limits)) as server:
        with Remotes(configuration(server.port)) as sending:
            sending.to(HOP).serve(first, lambda: left.pop() if together and left else None)
            if left:
                sending.to(HOP).serve(left.pop(), lambda: None)
        said: list[list[list[str]]] = []
        for session in server.sessions:
            said.append([])
            for command in session.commands:
                if command.startswith(b"MAIL"):
                    said[-1].append([])
                elif command.startswith(b"RCPT"):
                    said[-1][-1].append(command.decode().partition("<")[2][:-1])
    assert said == asked
    settled = sorted(verdict.outcome.recipient for part in first.parts for verdict in part)
    assert settled == list(range(5))
    assert second.parts == [[relayed(server, 0)]]
    assert [session.verbs()[-1] for session in server.sessions] == [QUIT] * len(asked)


def test_each_recipient_keeps_its_request_in_whichever_transaction() -> None:
    """The second of each two is too many, and asked for again in the next; a server without DSN hears nothing of it."""
    requests = {
        3: DsnRequest("NEVER"),
        5: DsnRequest("SUCCESS", b"root"),
        9: DsnRequest(original=b"c"),
    }
    content = CONTENT.but(ret="HDRS", envid="Q1", dsn=requests)
    recipients = {3: ANN, 4: b"dan@x.test", 5: BOB, 9: CARL}
    asked = [
        b"RCPT TO:<ann@x.test> NOTIFY=NEVER",
        b"RCPT TO:<dan@x.test>",
        b"RCPT TO:<bob@x.test> NOTIFY=SUCCESS ORCPT=rfc822;root",
        b"RCPT TO:<carl@x.test> ORCPT=rfc822;c",
    ]
    mail = b"MAIL FROM:<me@here.test> SIZE=25"
    for keywords, parameters in (((b"LIMITS RCPTMAX=2", b"DSN"), True), ((), False)):
        answer = replies({b"RCPT TO:<dan@": [b"452 4.5.3 too many recipients"]})
        with ScriptedServer(answer, keywords=(*KEYWORDS, *keywords)) as server:
            with Remotes(configuration(server.port)) as sending:
                verdicts = attempt(sending, HOP, b"me@here.test", recipients, content)
        assert verdicts == [relayed(server, index).but(reports=parameters) for index in recipients]
        commands = [c for c in server.sessions[0].commands if c.startswith((b"MAIL", b"RCPT"))]
        if parameters:
            mail_with = mail + b" RET=HDRS ENVID=Q1"
            assert commands == [mail_with, *asked[:2], mail_with, *asked[2:], mail_with, asked[1]]
        else:
            bare = [rcpt.partition(b" NOTIFY")[0].partition(b" ORCPT")[0] for rcpt in asked]
            assert commands == [mail, *bare, mail, bare[1]]


def test_a_next_hop_that_is_an_error_fails_without_a_server(
    connects: list[tuple[str, int]],
) -> None:
    hop = NextHop(ERROR, "no account begins with a dash", status="5.1.1")
    with Remotes(configuration(25)) as sending:
        for _ in range(2):
            assert attempt(sending, hop, b"me@here.test", {4: b"-v@here.test"}, CONTENT) == [
                Verdict(
                    Outcome(4, FAILED, "5.1.1", "no account begins with a dash", at=NOW),
                    policy.STOP,
                    MESSAGE,
                )
            ]
    assert connects == []


def test_too_many_recipients_and_no_message_ends() -> None:
    """Taken at RCPT, put off at DATA, with others too many: the next transaction would come to the same, for ever."""
    answer = replies(
        {b"RCPT TO:<bob@": b"452 4.5.3 too many recipients", b"DATA": b"451 4.3.0 not now"}
    )
    with ScriptedServer(answer) as server, Remotes(configuration(server.port)) as sending:
        verdicts = attempt(sending, HOP, b"", {0: ANN, 1: BOB}, CONTENT)
    assert shape(verdicts) == [
        (0, DELAYED, "4.3.0", MESSAGE),
        (1, DELAYED, "4.5.3", RECIPIENT),
    ]
    assert server.sessions[0].verbs().count(b"MAIL") == 1


ONE_EACH = (*KEYWORDS, b"LIMITS RCPTMAX=1")


def test_whom_a_transaction_settles_is_known_before_the_next_begins() -> None:
    answer = replies({b"RCPT TO:<bob@": b"450 4.2.1 later", b"RCPT TO:<carl@": b"550 5.1.1 no"})
    with ScriptedServer(answer, keywords=ONE_EACH) as server:
        with Remotes(configuration(server.port)) as sending:
            job = Noting({0: ANN, 1: BOB, 2: CARL, 3: b"dan@x.test"})
            job.taken = server.messages
            sending.to(HOP).serve(job, lambda: None)
    # Dan's recipients may be asked for before Ann's outcome is known, but nothing is sent to him.
    assert job.heard == [
        ([(0, RELAYED, "2.0.0", RECIPIENT)], 1),
        ([(2, FAILED, "5.1.1", RECIPIENT)], 1),
        ([(3, RELAYED, "2.0.0", RECIPIENT)], 2),
        ([(1, DELAYED, "4.2.1", RECIPIENT)], 2),
    ]
    assert server.sessions[0].verbs().count(b"MAIL") == 4


def test_a_session_that_ends_between_two_transactions_has_a_verdict_for_everybody() -> None:
    """And the next message is tried: the next hop was reached."""
    answer = replies({b"MAIL": [b"250 2.1.0 ok", b"421 4.3.2 going down"]})
    with ScriptedServer(answer, keywords=ONE_EACH) as server:
        with Remotes(configuration(server.port)) as sending:
            settled, waiting = sending.attempt(HOP, b"", {0: ANN, 1: BOB, 2: CARL}, CONTENT)
            assert attempt(sending, HOP, b"", {0: BOB}, CONTENT) == [relayed(server, 0)]
    mta = f"127.0.0.1[127.0.0.1]:{server.port}"
    ended = f"host {mta}: the session ended before it was this recipient's turn"
    assert settled == [relayed(server, 0)]
    assert [(each.outcome.recipient, each.then, each.scope) for each in waiting] == [
        (1, policy.NEXT, SITE),
        (2, policy.NEXT, SITE),
    ]
    said = f"host {mta} said: 421 4.3.2 going down (in reply to MAIL FROM)"
    assert [each.outcome.reason for each in waiting] == [said, ended]
    assert [message.recipients for message in server.messages] == [(ANN,), (BOB,)]
    assert len(server.sessions) == 2


def test_a_kept_session_that_ends_between_two_transactions_is_replaced_for_the_others() -> None:
    """As one that ends before the first: those whom it did not come to are asked for anew, and only they."""
    answer = replies({b"MAIL": [b"250 2.1.0 ok", b"250 2.1.0 ok", CLOSE]})
    with ScriptedServer(answer, keywords=ONE_EACH) as server:
        with Remotes(configuration(server.port)) as sending:
            attempt(sending, HOP, b"", {0: b"dan@x.test"}, CONTENT)
            recipients = {0: ANN, 1: BOB, 2: CARL}
            assert list(sending.attempt(HOP, b"", recipients, CONTENT)) == [
                [relayed(server, index)] for index in recipients
            ]
    assert [message.recipients for message in server.messages] == [
        (b"dan@x.test",),
        (ANN,),
        (BOB,),
        (CARL,),
    ]
    assert len(server.sessions) == 2


@pytest.mark.parametrize("kept", [False, True], ids=["a new session", "a kept session"])
def test_a_421_to_one_recipient_is_no_reason_to_give_the_next_hop_up(kept: bool) -> None:
    answer = replies({b"RCPT TO:<bob@": b"421 4.3.2 closing"})
    with ScriptedServer(answer) as server, Remotes(configuration(server.port)) as sending:
        if kept:
            attempt(sending, HOP, b"", {0: ANN}, CONTENT)
        assert attempt(sending, HOP, b"", {3: BOB}, CONTENT) == [
            verdict(server, 3, DELAYED, "4.3.2", "421 4.3.2 closing", "RCPT TO", policy.NEXT, SITE)
        ]
        assert attempt(sending, HOP, b"", {0: CARL}, CONTENT) == [relayed(server, 0)]
    assert [message.recipients for message in server.messages] == [(ANN,), (CARL,)][not kept :]
    # A kept one may have been given up while it waited: bob is asked for over a new one too.
    assert len(server.sessions) == (3 if kept else 2)


def test_an_attempt_that_is_given_up_closes_its_session() -> None:
    """As when what it came to so far cannot be recorded."""
    with ScriptedServer(keywords=ONE_EACH) as server:
        with Remotes(configuration(server.port)) as sending:
            job = Noting({0: ANN, 1: BOB})
            job.satisfied = True
            sending.to(HOP).serve(job, lambda: None)
            assert job.parts == [[relayed(server, 0)]]
            assert attempt(sending, HOP, b"", {0: CARL}, CONTENT) == [relayed(server, 0)]
    assert [session.verbs() for session in server.sessions] == [
        [b"EHLO", *[b"MAIL", b"RCPT", b"DATA"] * 2],
        [b"EHLO", b"MAIL", b"RCPT", b"DATA", b"QUIT"],
    ]
    assert [message.recipients for message in server.messages] == [(ANN,), (CARL,)]


# -- servers that are down


def test_a_next_hop_that_is_down_is_known_as_such(connects: list[tuple[str, int]]) -> None:
    port = free_port("127.0.0.1")
    mta = f"127.0.0.1[127.0.0.1]:{port}"
    with Remotes(configuration(port)) as sending:
        verdicts = attempt(sending, HOP, b"", {0: ANN, 1: BOB}, CONTENT)
        assert verdicts == [
            Verdict(
                Outcome(
                    index,
                    DELAYED,
                    "4.4.1",
                    f"connect to [127.0.0.1]:{port}: Connection refused",
                    remote_mta=mta,
                    at=NOW,
                ),
                policy.NEXT,
                SITE,
            )
            for index in (0, 1)
        ]
        assert sending.unreachable == verdicts[0]
    assert connects == [("127.0.0.1", port)]


def test_the_next_host_is_asked_when_one_is_down() -> None:
    port = free_port("127.0.0.1", "127.0.0.2")
    with ScriptedServer(port=port) as server:
        with Remotes(configuration(port, "127.0.0.2", "127.0.0.1")) as sending:
            assert attempt(sending, HOP, b"", {0: ANN}, CONTENT) == [relayed(server, 0)]


def test_only_the_recipients_that_wait_are_taken_to_the_next_host() -> None:
    port = free_port("127.0.0.1", "127.0.0.2")
    first = ScriptedServer(
        replies({b"RCPT TO:<ann@": b"550 5.1.1 no ann", b"RCPT TO:<bob@": b"450 4.2.1 later"}),
        address="127.0.0.2",
        port=port,
    )
    with first, ScriptedServer(port=port) as second:
        with Remotes(configuration(port, "127.0.0.2", "127.0.0.1")) as sending:
            verdicts = attempt(sending, HOP, b"", {0: ANN, 1: BOB, 2: CARL}, CONTENT)
            assert attempt(sending, HOP, b"", {0: CARL}, CONTENT)[0].outcome.remote_mta == (
                f"127.0.0.2[127.0.0.2]:{port}"
            )
    assert shape(verdicts) == [
        (0, FAILED, "5.1.1", RECIPIENT),
        (1, RELAYED, "2.0.0", RECIPIENT),
        (2, RELAYED, "2.0.0", RECIPIENT),
    ]
    assert [message.recipients for message in first.messages] == [(CARL,), (CARL,)]
    assert [message.recipients for message in second.messages] == [(BOB,)]
    # Both were left in good order, and the next message went over the connection to the host that comes first.
    assert [[session.verbs()[-1] for session in server.sessions] for server in (first, second)] == [
        [b"QUIT"],
        [b"QUIT"],
    ]


def test_a_message_that_was_perhaps_taken_goes_to_no_other_host() -> None:
    port = free_port("127.0.0.1", "127.0.0.2")
    first = ScriptedServer(replies({END_OF_DATA: CLOSE}), address="127.0.0.2", port=port)
    with first, ScriptedServer(port=port) as second:
        with Remotes(configuration(port, "127.0.0.2", "127.0.0.1")) as sending:
            verdicts = attempt(sending, HOP, b"", {0: ANN}, CONTENT)
            assert shape(verdicts) == [(0, DELAYED, "4.4.2", MESSAGE)]
            # It says nothing about the next hop: the next message is tried.
            assert shape(attempt(sending, HOP, b"", {0: BOB}, CONTENT)) == shape(verdicts)
    assert len(first.sessions) == 2
    assert second.sessions == []


def test_a_refusal_of_one_message_does_not_stop_the_others() -> None:
    answer = replies({b"MAIL FROM:<spam@": b"451 4.7.1 not you"})
    with ScriptedServer(answer) as server, Remotes(configuration(server.port)) as sending:
        assert shape(attempt(sending, HOP, b"spam@x.test", {0: ANN}, CONTENT)) == [
            (0, DELAYED, "4.7.1", MESSAGE)
        ]
        assert attempt(sending, HOP, b"ham@x.test", {0: ANN}, CONTENT) == [relayed(server, 0)]


def test_a_greeting_that_refuses_is_one_that_lets_nobody_in() -> None:
    answer = replies({CONNECT: b"554 5.7.1 go away"})
    with ScriptedServer(answer) as server, Remotes(configuration(server.port)) as sending:
        first = attempt(sending, HOP, b"", {0: ANN}, CONTENT)
        assert shape(first) == [(0, DELAYED, "4.7.1", SITE)]
        assert sending.unreachable == first[0]
    assert len(server.sessions) == 1


def test_a_fault_of_this_machine_is_not_the_servers(connects: list[tuple[str, int]]) -> None:
    """A TCP connection to the broadcast address is ENETUNREACH on Linux, before any packet."""
    with Remotes(configuration(25, "255.255.255.255")) as sending:
        (verdict,) = attempt(sending, HOP, b"", {0: ANN}, CONTENT)
        assert shape([verdict]) == [(0, DELAYED, "4.4.1", LOCAL)]
        assert sending.unreachable == verdict
    assert verdict.outcome.reason == "connect to [255.255.255.255]:25: Network is unreachable"
    assert connects == [("255.255.255.255", 25)]


def test_a_domain_that_does_not_exist_is_no_reason_to_stop() -> None:
    """What failed for good failed for this message; the hop of another domain is another."""
    config = Config(file=None, spool=Spool("/nowhere"), hostname="here.test")
    with Remotes(config) as sending:
        hop = NextHop(MX, "[999.1.1.1]", "[999.1.1.1]")
        for index in (0, 1):
            assert shape(attempt(sending, hop, b"", {index: ANN}, CONTENT)) == [
                (index, FAILED, "5.1.2", MESSAGE)
            ]


# -- what is sent


def test_every_transaction_reads_the_message_anew() -> None:
    read: list[int] = []

    def octets() -> Iterator[bytes]:
        read.append(1)
        yield b"Subject: x\n\n"

    content = Content(octets, size=14, eight_bit=True)
    answer = replies({b"RCPT TO:<bob@": [b"452 4.5.3 too many"]})
    with ScriptedServer(answer) as server, Remotes(configuration(server.port)) as sending:
        attempt(sending, HOP, b"", {0: ANN, 1: BOB}, content)
    assert [message.octets for message in server.messages] == [b"Subject: x\r\n\r\n"] * 2
    assert len(read) == 2
    assert b"MAIL FROM:<> SIZE=14 BODY=8BITMIME" in server.sessions[0].commands


def test_what_is_converted_is_declared_and_limited_by_what_comes_of_it() -> None:
    """A server without 8BITMIME gets three octets for one: more than it takes, or as many as were announced (RFC 1870)."""
    header = b"Content-Type: text/plain; charset=utf-8\nMIME-Version: 1.0\n\n"
    octets = header + "ä".encode() * 300 + b"\n"
    size = len(octets) + octets.count(b"\n")
    content = Content(lambda: [octets], size=size, eight_bit=True, header=header)
    for limit, taken in ((0, True), (2 * size, False)):
        keywords = (b"PIPELINING", b"SIZE" + b" %d" % limit * bool(limit))
        with ScriptedServer(keywords=keywords) as server:
            with Remotes(configuration(server.port)) as sending:
                (verdict,) = attempt(sending, HOP, b"", {0: ANN}, content)
        announced = [c for c in server.sessions[0].commands if c.startswith(b"MAIL")]
        if taken:
            (message,) = server.messages
            assert message.octets.isascii()
            assert announced == [b"MAIL FROM:<> SIZE=%d" % len(message.octets)]
            assert len(message.octets) > 2 * size
        else:
            assert (announced, server.messages) == ([], [])
            assert (verdict.outcome.action, verdict.outcome.status) == (FAILED, "5.3.4")


def test_a_message_that_cannot_be_read_to_its_end_is_not_ended() -> None:
    def octets() -> Iterator[bytes]:
        yield b"Subject: x\n\n" + b"half a message\n" * 10_000
        raise OSError("bad sector")

    with ScriptedServer() as server, Remotes(configuration(server.port)) as sending:
        attempt(sending, HOP, b"", {0: ANN}, CONTENT)
        with pytest.raises(OSError, match="bad sector"):
            attempt(sending, HOP, b"", {0: ANN}, Content(octets, size=9, eight_bit=False))
        assert attempt(sending, HOP, b"", {0: BOB}, CONTENT) == [relayed(server, 0)]
    assert [message.recipients for message in server.messages] == [(ANN,), (BOB,)]
    assert [session.cut for session in server.sessions] == [True, False]


def test_a_message_that_cannot_be_read_a_second_time_is_not_taken_back_from_those_who_have_it() -> (
    None
):
    """They are known before it is read again."""
    readable = iter([True, False])

    def octets() -> Iterator[bytes]:
        if not next(readable):
            raise OSError("bad sector")
        yield from CONTENT.octets()

    port = free_port("127.0.0.1", "127.0.0.2")
    first = ScriptedServer(replies({b"RCPT TO:<bob@": b"450 4.2.1 later"}), port=port)
    with first, ScriptedServer(address="127.0.0.2", port=port) as second:
        with Remotes(configuration(port, "127.0.0.1", "127.0.0.2")) as sending:
            content = Content(octets, size=25, eight_bit=False)
            with pytest.raises(OSError, match="bad sector"):
                sending.attempt(HOP, b"", {0: ANN, 1: BOB}, content)
            assert sending.parts == [[relayed(first, 0)]]
    assert [session.cut for session in second.sessions] == [True]
    assert second.messages == []


# -- TLS and passwords


AUTHORITY = trustme.CA()


def server_context(*names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture
def ca_file(tmp_path):
    path = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(path)
    return str(path)


def test_opportunistic_tls_is_used_whatever_the_certificate() -> None:
    server = ScriptedServer(
        keywords=(*KEYWORDS, b"STARTTLS"), context=server_context("someone-else.test")
    )
    with server, Remotes(configuration(server.port, tls="opportunistic")) as sending:
        assert attempt(sending, HOP, b"", {0: ANN}, CONTENT) == [relayed(server, 0)]
    assert [session.tls for session in server.sessions] == [True]


def test_opportunistic_tls_that_fails_is_done_without_on_a_new_connection() -> None:
    with ScriptedServer(keywords=(*KEYWORDS, b"STARTTLS")) as server:
        with Remotes(configuration(server.port, tls="opportunistic")) as sending:
            assert attempt(sending, HOP, b"", {0: ANN}, CONTENT) == [relayed(server, 0)]
    assert [session.verbs() for session in server.sessions] == [
        [b"EHLO", b"STARTTLS"],
        [b"EHLO", b"MAIL", b"RCPT", b"DATA", b"QUIT"],
    ]


def test_opportunistic_tls_that_is_of_no_use_is_done_without_on_a_new_connection() -> None:
    """The handshake succeeds, and nothing comes after it: Postfix does without then, too."""
    answer = replies({b"EHLO": [None, CLOSE]})
    context = server_context("mx.test")
    server = ScriptedServer(answer, keywords=(*KEYWORDS, b"STARTTLS"), context=context)
    with server, Remotes(configuration(server.port, tls="opportunistic")) as sending:
        assert attempt(sending, HOP, b"", {0: ANN}, CONTENT) == [relayed(server, 0)]
    assert [(session.tls, session.verbs()) for session in server.sessions] == [
        (True, [b"EHLO", b"STARTTLS", b"EHLO"]),
        (False, [b"EHLO", b"MAIL", b"RCPT", b"DATA", b"QUIT"]),
    ]


def test_required_tls_that_is_of_no_use_is_not_done_without(ca_file: str) -> None:
    answer = replies({b"EHLO": [None, CLOSE]})
    context = server_context("127.0.0.1")
    server = ScriptedServer(answer, keywords=(*KEYWORDS, b"STARTTLS"), context=context)
    with (
        server,
        Remotes(configuration(server.port, tls="starttls", tls_ca_file=ca_file)) as sending,
    ):
        (verdict,) = attempt(sending, HOP, b"", {0: ANN}, CONTENT)
    assert verdict.outcome.reason == (
        f"host 127.0.0.1[127.0.0.1]:{server.port}: lost connection: closed by the server (during EHLO)"
    )
    assert [(session.tls, session.verbs()) for session in server.sessions] == [
        (True, [b"EHLO", b"STARTTLS", b"EHLO"])
    ]


def test_a_password_does_not_go_where_tls_failed(tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    secret.chmod(0o600)
    config = {"tls": "opportunistic", "username": "me", "password_file": str(secret)}
    with ScriptedServer(keywords=(*KEYWORDS, b"STARTTLS", b"AUTH PLAIN")) as server:
        with Remotes(configuration(server.port, **config)) as sending:
            (verdict,) = attempt(sending, HOP, b"", {0: ANN}, CONTENT)
    assert verdict.outcome.reason == (
        f"host 127.0.0.1[127.0.0.1]:{server.port}: connection is not encrypted: password not sent (during AUTH)"
    )
    assert [session.verbs() for session in server.sessions] == [
        [b"EHLO", b"STARTTLS"],
        [b"EHLO", b"QUIT"],
    ]


@pytest.mark.parametrize(
    ("keywords", "names", "reason"),
    [
        pytest.param(
            (),
            ("127.0.0.1",),
            "TLS is required, and the server does not offer STARTTLS: [smarthost] tls = "
            '"starttls" demands it; somebody on the way may have removed the offer',
            id="none",
        ),
        pytest.param(
            (b"STARTTLS",),
            (),
            "TLS handshake with 127.0.0.1: the server answered with what is not TLS: "
            '[smarthost] tls = "starttls" with port = PORT: is tls = "implicit" meant?',
            id="handshake",
        ),
        pytest.param(
            (b"STARTTLS",),
            ("other.test",),
            "certificate is not for 127.0.0.1, the name expected, but for other.test: [smarthost] "
            "host is to be a name that it bears, or tls_fingerprint its fingerprint",
            id="name",
        ),
    ],
)
def test_required_tls_is_never_done_without(
    ca_file: str, keywords: tuple[bytes, ...], names: tuple[str, ...], reason: str
) -> None:
    context = server_context(*names) if names else None
    with ScriptedServer(keywords=(*KEYWORDS, *keywords), context=context) as server:
        with Remotes(configuration(server.port, tls="starttls", tls_ca_file=ca_file)) as sending:
            verdict, *_ = attempt(sending, HOP, b"", {0: ANN, 1: BOB}, CONTENT)
            assert shape([verdict]) == [(0, DELAYED, verdict.outcome.status, SITE)]
            assert verdict.outcome.reason == (
                f"host 127.0.0.1[127.0.0.1]:{server.port}: "
                f"{reason.replace('PORT', str(server.port))} (during STARTTLS)"
            )
            assert sending.unreachable == verdict
    assert server.messages == []
    (session,) = server.sessions
    assert not set(session.verbs()) - {b"EHLO", b"STARTTLS", b"QUIT"}


def test_a_verified_certificate_and_a_password(ca_file: str, tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    secret.chmod(0o600)
    server = ScriptedServer(
        keywords=(*KEYWORDS, b"STARTTLS", b"AUTH PLAIN LOGIN"), context=server_context("127.0.0.1")
    )
    config = {
        "tls": "starttls",
        "tls_ca_file": ca_file,
        "username": "me",
        "password_file": str(secret),
    }
    with server, Remotes(configuration(server.port, **config)) as sending:
        assert attempt(sending, HOP, b"", {0: ANN}, CONTENT) == [relayed(server, 0)]
    (session,) = server.sessions
    assert session.tls
    assert session.commands[:4] == [
        b"EHLO here.test",
        b"STARTTLS",
        b"EHLO here.test",
        b"AUTH PLAIN AG1lAGh1c2g=",
    ]


def test_a_wrong_password_is_tried_once(tmp_path) -> None:
    """Repetition locks accounts, and every host has the same."""
    secret = tmp_path / "secret"
    secret.write_text("wrong\n")
    secret.chmod(0o600)
    answer = replies({b"AUTH": b"535 5.7.8 bad credentials"})
    port = free_port("127.0.0.1", "127.0.0.2")
    first = ScriptedServer(answer, port=port, keywords=(*KEYWORDS, b"AUTH PLAIN"))
    second = ScriptedServer(address="127.0.0.2", port=port, keywords=(*KEYWORDS, b"AUTH PLAIN"))
    config = configuration(port, "127.0.0.1", "127.0.0.2", username="me", password_file=str(secret))
    with first, second, Remotes(config) as sending:
        verdicts = attempt(sending, HOP, b"", {0: ANN}, CONTENT)
        assert verdicts == [
            verdict(
                first,
                0,
                DELAYED,
                "4.7.8",
                "535 5.7.8 bad credentials",
                "AUTH",
                policy.STOP,
                SITE,
                said="refused user name or password, check both in [smarthost]",
            ).but(cause=policy.LOGIN)
        ]
        assert sending.unreachable == verdicts[0]
    assert [session.verbs() for session in first.sessions] == [[b"EHLO", b"AUTH", b"QUIT"]]
    assert second.sessions == []


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        pytest.param(
            None,
            "cannot be opened: No such file or directory: the user that runs the deliveries must be able to read it",
            id="missing",
        ),
        pytest.param(
            0o604,
            "mode 0604 lets every user in: chmod o= it, or set secret_mode_check = false",
            id="others read it",
        ),
    ],
)
def test_a_password_file_of_no_use_is_named_and_nobody_is_asked(tmp_path, mode, why: str) -> None:
    secret = tmp_path / "secret"
    if mode is not None:
        secret.write_text("hush\n")
        os.chmod(secret, mode)
    with ScriptedServer() as server:
        config = configuration(server.port, username="me", password_file=str(secret))
        with Remotes(config) as sending:
            for index in (0, 1):
                (verdict,) = attempt(sending, HOP, b"", {index: ANN}, CONTENT)
                assert shape([verdict]) == [(index, DELAYED, "4.3.5", SITE)]
                assert verdict.outcome.reason == f"[smarthost] password_file: {secret}: {why}"
                assert verdict.outcome.remote_mta == ""
    assert server.sessions == []


def test_a_dialogue_can_be_traced() -> None:
    lines: list[str] = []
    with ScriptedServer() as server:
        with Remotes(configuration(server.port), trace=lines.append) as sending:
            attempt(sending, HOP, b"", {0: ANN}, CONTENT)
    assert lines == [
        f"-- connecting to 127.0.0.1[127.0.0.1]:{server.port}",
        "S: 220 mx.test ESMTP",
        "C: EHLO here.test",
        *[f"S: 250 {word}" for word in ("mx.test", "PIPELINING", "8BITMIME", "SIZE", "HELP")],
        "C: MAIL FROM:<> SIZE=25",
        "C: RCPT TO:<ann@x.test>",
        "C: DATA",
        "S: 250 2.0.0 ok",
        "S: 250 2.0.0 ok",
        "S: 354 go ahead",
        "C: (29 octets of message)",
        "S: 250 2.0.0 taken",
        "C: QUIT",
        "S: 221 2.0.0 bye",
    ]
