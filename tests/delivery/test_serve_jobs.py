"""Remote with many jobs: which go over one session, which are asked for again, and of which server; each is ended once."""

import socket
from collections.abc import Callable
from typing import Any

import pytest
from delivery.scripted import (
    CLOSE,
    CONNECT,
    END_OF_DATA,
    KEYWORDS,
    Message,
    ScriptedServer,
    Session,
    replies,
)
from peers.process import free_port

from minisend.config.sections import Config, Smarthost, Spool
from minisend.delivery import mx, policy, remote
from minisend.delivery.mx import Target
from minisend.delivery.policy import Verdict
from minisend.delivery.remote import Content, Remote
from minisend.delivery.route import SMARTHOST, NextHop
from minisend.smtp.deadlines import Deadlines

HOP = NextHop(SMARTHOST, "[127.0.0.1]:25")
ONE_BY_ONE = tuple(word for word in KEYWORDS if word != b"PIPELINING")


class Job:
    """One message to ``<NUMBER>.<INDEX>@x.test``; ``heard``: (recipient, then, reply or reason) as they came, and the end."""

    def __init__(self, number: int, recipients: int = 1, *, satisfied: bool = False) -> None:
        self.sender = b"%d@here.test" % number
        self.recipients = {index: b"%d.%d@x.test" % (number, index) for index in range(recipients)}
        text = b"Subject: %d\n\n.dot\n" % number
        self.content = Content(lambda: [text], size=len(text) + 3, eight_bit=False)
        self.heard: list[tuple[int, str, str]] = []
        self.ended: list[str] = []
        self._satisfied = satisfied

    def settle(self, verdicts: list[Verdict]) -> bool:
        assert not self.ended
        for verdict in verdicts:
            outcome = verdict.outcome
            text = outcome.diagnostic.removeprefix("smtp; ") or outcome.reason.partition(": ")[2]
            self.heard.append((outcome.recipient, verdict.then, text))
        return not self._satisfied

    def fail(self, error: Exception) -> None:
        assert not self.ended
        self.heard.append((-1, repr(error), ""))

    def give_back(self) -> None:
        assert not self.ended
        self.ended.append("given back")

    def turned_away(self) -> bool:
        # There is no other.
        return False

    def done(self, unreachable: Verdict | None) -> None:
        assert not self.ended
        self.ended.append("unreachable" if unreachable is not None else "done")


RELAYED = [(0, policy.STOP, "250 2.0.0 taken")]


def configuration(port: int, *hosts: str) -> Config:
    return Config(
        file=None,
        spool=Spool("/nowhere"),
        hostname="here.test",
        smarthost=Smarthost(hosts or ("127.0.0.1",), port=port, tls="none"),
    )


def serve(config: Config, jobs: list[Job], **options: Any) -> list[Job]:
    """All of them, as a lane does: what is left when ``serve`` returns begins anew.  Those that were given out."""
    waiting = iter(jobs)
    given: list[Job] = []

    def more() -> Job | None:
        job = next(waiting, None)
        if job is not None:
            given.append(job)
        return job

    with Remote(HOP, config, mx.Resolver(mx.dns_query(config.dns)), **options) as sending:
        while (job := more()) is not None:
            sending.serve(job, more)
    return given


def target(port: int) -> Target:
    return Target("127.0.0.1", "127.0.0.1", port)


def taken(server: ScriptedServer) -> list[bytes]:
    """Senders, each with the one recipient and the octets that are its own."""
    for message in server.messages:
        number = message.sender.partition(b"@")[0]
        assert all(each.startswith(number + b".") for each in message.recipients)
        assert message.octets == b"Subject: %b\r\n\r\n.dot\r\n" % number
    return [message.sender for message in server.messages]


def senders(*numbers: int) -> list[bytes]:
    return [b"%d@here.test" % number for number in numbers]


def limited(most: int, goodbye: bytes) -> Callable[[bytes], bytes | None]:
    """A server that says this to the MAIL after so many messages over one connection; what follows in the flight falls on deaf ears."""
    count = 0

    def answer(command: bytes) -> bytes | None:
        nonlocal count
        if command == CONNECT:
            count = 0
        elif command.startswith(b"MAIL"):
            count += 1
            if count > most:
                return goodbye
        elif count > most:
            return CLOSE
        return None

    return answer


@pytest.mark.parametrize("keywords", [KEYWORDS, ONE_BY_ONE], ids=["one ahead", "one by one"])
def test_jobs_follow_one_another_over_one_session(keywords: tuple[bytes, ...]) -> None:
    jobs = [Job(number) for number in range(6)]
    with ScriptedServer(keywords=keywords) as server:
        serve(configuration(server.port), jobs)
    assert [(job.heard, job.ended) for job in jobs] == [(RELAYED, ["done"])] * 6
    assert taken(server) == senders(*range(6))
    assert [session.verbs().count(b"MAIL") for session in server.sessions] == [6]


def test_one_that_is_put_off_goes_to_the_next_host_and_the_others_do_not() -> None:
    """Once the first host has nothing in flight.  What comes after it goes to the first host again, over the same session."""
    port = free_port("127.0.0.1", "127.0.0.2")
    order: list[bytes] = []

    def noting(name: bytes, table: dict[bytes, bytes]) -> Callable[[bytes], bytes | None]:
        told = replies(table)

        def answer(command: bytes) -> bytes | None:
            if command.startswith((b"MAIL", END_OF_DATA)):
                order.append(name + b" " + command.partition(b"@")[0])
            return told(command)

        return answer

    put_off = {b"RCPT TO:<1.1@": b"450 4.2.1 later"}
    jobs = [Job(0), Job(1, 2), *map(Job, range(2, 5))]
    first = ScriptedServer(noting(b"A", put_off), port=port)
    second = ScriptedServer(noting(b"B", {}), address="127.0.0.2", port=port)
    with first, second:
        serve(configuration(port, "127.0.0.1", "127.0.0.2"), jobs)
    assert [job.ended for job in jobs] == [["done"]] * 5
    both = [*RELAYED, (1, policy.STOP, "250 2.0.0 taken")]
    assert [job.heard for job in jobs] == [RELAYED, both, *[RELAYED] * 3]
    assert (taken(first), taken(second)) == (senders(*range(5)), senders(1))
    assert [message.recipients for message in second.messages] == [(b"1.1@x.test",)]
    assert (len(first.sessions), len(second.sessions)) == (1, 1)
    asked = order.index(b"B MAIL FROM:<1")
    flying = [line for line in order[:asked] if line.startswith(b"A")]
    assert sum(b"MAIL" in line for line in flying) == 3  # 0, 1 and the one behind it
    assert flying.count(b"A end of data") == 3


def test_two_hosts_that_both_put_off() -> None:
    port = free_port("127.0.0.1", "127.0.0.2")
    jobs = [Job(number) for number in range(4)]
    hosts = [
        ScriptedServer(
            replies({b"RCPT TO:<1.": b"450 4.2.1 not %d" % host}),
            address=f"127.0.0.{host}",
            port=port,
        )
        for host in (1, 2)
    ]
    with hosts[0], hosts[1]:
        serve(configuration(port, "127.0.0.1", "127.0.0.2"), jobs)
    late = [(0, policy.NEXT, "450 4.2.1 not 2")]
    assert [(job.heard, job.ended) for job in jobs] == [
        (late if number == 1 else RELAYED, ["done"]) for number in range(4)
    ]
    assert [taken(host) for host in hosts] == [senders(0, 2, 3), []]


@pytest.mark.parametrize("keywords", [KEYWORDS, ONE_BY_ONE], ids=["one ahead", "one by one"])
@pytest.mark.parametrize("goodbye", [b"421 4.7.0 enough", CLOSE], ids=["421", "closed"])
def test_a_server_that_takes_a_few_messages_a_connection(
    keywords: tuple[bytes, ...], goodbye: bytes
) -> None:
    """None of them waits for the next run, none goes twice."""
    jobs = [Job(number) for number in range(10)]
    stumbled: set[Target] = set()
    with ScriptedServer(limited(3, goodbye), keywords=keywords) as server:
        serve(configuration(server.port), jobs, one_by_one=stumbled)
    assert [(job.heard, job.ended) for job in jobs] == [(RELAYED, ["done"])] * 10
    assert taken(server) == senders(*range(10))
    assert len(server.sessions) == 4
    # 421 is the right way to leave; to close behind the end of a message may mean that it minds what stands behind that.
    assert stumbled == ({target(server.port)} if keywords == KEYWORDS and not goodbye else set())


def test_a_job_that_wants_no_more_of_itself_to_be_sent() -> None:
    """The others are sent all the same: the session that had its next part in flight is another one's then."""
    jobs = [Job(0), Job(1, 4, satisfied=True), Job(2), Job(3)]
    with ScriptedServer(keywords=(*KEYWORDS, b"LIMITS RCPTMAX=1")) as server:
        serve(configuration(server.port), jobs)
    assert [(job.heard, job.ended) for job in jobs] == [(RELAYED, ["done"])] * 4
    assert taken(server) == senders(0, 1, 2, 3)


def test_a_job_that_cannot_be_read_keeps_nobody_waiting() -> None:
    jobs = [Job(number) for number in range(4)]

    def broken() -> list[bytes]:
        raise ValueError("gone")

    jobs[1].content = Content(broken, size=20, eight_bit=False)
    with ScriptedServer() as server:
        serve(configuration(server.port), jobs)
    unread = [(-1, repr(ValueError("gone")), "")]
    assert [job.heard for job in jobs] == [RELAYED, unread, RELAYED, RELAYED]
    assert [job.ended for job in jobs] == [["done"]] * 4
    assert taken(server) == senders(0, 2, 3)


def test_no_server_lets_us_in() -> None:
    """The first hears why, and no other is taken: it would hear the same."""
    jobs = [Job(0), Job(1)]
    with ScriptedServer(replies({CONNECT: b"421 4.3.2 closed"})) as server:
        config = configuration(server.port)
        with Remote(HOP, config, mx.Resolver(mx.dns_query(config.dns))) as sending:
            sending.serve(jobs[0], lambda: pytest.fail("asked for more"))
    assert jobs[0].heard == [(0, policy.NEXT, "421 4.3.2 closed")]
    assert [job.ended for job in jobs] == [["unreachable"], []]


def test_what_was_behind_a_session_that_was_the_last_is_given_back() -> None:
    """It is for the lane to say what becomes of those that nobody was asked about."""
    answer = replies(
        {CONNECT: [b"220 ready", b"421 4.3.2 closed", b"421 4.3.2 closed"], END_OF_DATA: [CLOSE]}
    )
    jobs = [Job(0), Job(1)]
    with ScriptedServer(answer) as server:
        serve(configuration(server.port), jobs)
    lost = "lost connection: closed by the server (during end of data): the message may be sent more than once"
    assert [(job.heard, job.ended) for job in jobs] == [
        ([(0, policy.STOP, lost)], ["done"]),
        ([(0, policy.NEXT, "421 4.3.2 closed")], ["unreachable"]),
    ]


def test_too_many_recipients_with_jobs_behind() -> None:
    """The rest is asked for over the same session, and nothing is lost of what is in flight already."""
    refused = {b"RCPT TO:<1.%d" % index: [b"452 4.5.3 too many"] for index in (2, 3)}
    jobs = [Job(0), Job(1, 4), Job(2), Job(3)]
    with ScriptedServer(replies(dict(refused))) as server:
        serve(configuration(server.port), jobs)
    assert [job.ended for job in jobs] == [["done"]] * 4
    assert jobs[1].heard == [(index, policy.STOP, "250 2.0.0 taken") for index in range(4)]
    assert [(message.sender, len(message.recipients)) for message in server.messages] == [
        (sender, each) for sender, each in zip(senders(0, 1, 2, 1, 3), (1, 2, 1, 2, 1), strict=True)
    ]
    assert len(server.sessions) == 1


# -- servers that offer more than they can do


class Touchy(ScriptedServer):
    """Offers PIPELINING, and bears it within a transaction; what one read brings behind a message makes it do ``then``.

    ``then``  CLOSE, or what it says to that instead of answering it; None: nothing
    """

    def __init__(self, then: bytes | None) -> None:
        super().__init__()
        self._then = then
        self.touched = 0

    def _talk(self, connection: socket.socket, session: Session, *, greet: bool) -> bytes:
        connection.sendall(b"220 ready\r\n")
        message: tuple[bytes, tuple[bytes, ...]] | None = None
        sender, recipients = b"", []
        octets = b""
        while octets := octets or connection.recv(65536):
            if message is not None:
                text, _, octets = octets.partition(b"\r\n.\r\n")
                plain = (text + b"\r\n").replace(b"\r\n..", b"\r\n.")
                self.messages.append(Message(*message, plain))
                message = None
                connection.sendall(b"250 2.0.0 taken\r\n")
                if octets:
                    self.touched += 1
                    if self._then == CLOSE:
                        return CLOSE
                    if self._then is not None:
                        connection.sendall(self._then + b"\r\n")
                    octets = b""
                continue
            line, _, octets = octets.partition(b"\r\n")
            session.commands.append(line)
            reply = b"250 2.0.0 ok"
            if line.startswith(b"EHLO"):
                reply = b"250-mx.test\r\n250 PIPELINING"
            elif line.startswith(b"MAIL"):
                sender, recipients = line[11:].partition(b">")[0], []
            elif line.startswith(b"RCPT"):
                recipients.append(line[9:].partition(b">")[0])
            elif line == b"DATA":
                message = (sender, tuple(recipients))
                reply = b"354 go ahead"
            connection.sendall(reply + b"\r\n")
            if line == b"QUIT":
                break
        return CLOSE


@pytest.mark.parametrize(
    "then",
    [CLOSE, b"what?", b"354 go on", None],
    ids=["closed", "garbage", "out of order", "forgotten"],
)
def test_a_server_that_does_not_bear_the_next_mail_behind_the_dot(
    then: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spoken to one by one from then on, by whoever shares the knowledge, and it does not cost a message its run."""
    monkeypatch.setattr(remote, "Deadlines", lambda: Deadlines(mail=0.3))
    stumbled: set[Target] = set()
    jobs = [Job(number) for number in range(6)]
    with Touchy(then) as server:
        serve(configuration(server.port), jobs[:5], one_by_one=stumbled)
        assert stumbled == {target(server.port)}
        serve(configuration(server.port), jobs[5:], one_by_one=stumbled)
    assert [(job.heard, job.ended) for job in jobs] == [(RELAYED, ["done"])] * 6
    assert taken(server) == senders(*range(6))
    assert [session.verbs().count(b"MAIL") for session in server.sessions] == [1, 4, 1]
    assert server.touched == 1


def test_a_session_that_stumbles_in_its_first_flight_is_tried_again_one_by_one() -> None:
    """Otherwise a message alone in the queue would meet the same in each run."""
    trace: list[str] = []
    first = True

    def answer(command: bytes) -> bytes | None:
        nonlocal first
        if command.startswith(b"RCPT") and first:
            first = False
            return CLOSE
        return None

    job = Job(0)
    with ScriptedServer(answer) as server:
        serve(configuration(server.port), [job], trace=trace.append)
    assert (job.heard, job.ended) == (RELAYED, ["done"])
    second = trace[trace.index("-- connecting to 127.0.0.1[127.0.0.1]:%d" % server.port, 1) :]
    at = second.index("C: MAIL FROM:<0@here.test> SIZE=%d" % job.content.size)
    assert second[at + 1].startswith("S: 250")
    assert taken(server) == senders(0)


@pytest.mark.parametrize("behind", [True, False], ids=["behind another", "over a kept session"])
def test_garbage_further_on_in_the_flight(behind: bool) -> None:
    """What the message hears then would keep it waiting, if nobody knew why."""
    jobs = [Job(0), Job(1)]
    stumbled: set[Target] = set()
    with ScriptedServer(replies({b"DATA": [b"354 go ahead", b"what?"]})) as server:
        config = configuration(server.port)
        resolver = mx.Resolver(mx.dns_query(config.dns))
        with Remote(HOP, config, resolver, one_by_one=stumbled) as sending:
            following = iter(jobs[1:] if behind else ())
            sending.serve(jobs[0], lambda: next(following, None))
            if not behind:
                sending.serve(jobs[1], lambda: None)
    assert [(job.heard, job.ended) for job in jobs] == [(RELAYED, ["done"])] * 2
    assert taken(server) == senders(0, 1)
    assert stumbled == {target(server.port)}


def test_bdat_that_is_offered_and_not_known() -> None:
    """Something on the way passes EHLO on and nothing that is new.  The message goes with DATA, in the same run."""
    lines = {
        b"BDAT": b"500 5.5.2 what?",
        b"Subject": b"500 5.5.2 what?",
        b".dot": b"500 5.5.2 what?",
    }
    stumbled: set[Target] = set()
    jobs = [Job(0), Job(1)]
    with ScriptedServer(
        replies({**lines, b"\0": b""}), keywords=(*KEYWORDS, b"CHUNKING")
    ) as server:
        serve(configuration(server.port), jobs, one_by_one=stumbled)
    assert [(job.heard, job.ended) for job in jobs] == [(RELAYED, ["done"])] * 2
    assert taken(server) == senders(0, 1)
    assert stumbled == {target(server.port)}
    assert len(server.sessions) == 2


def test_a_connection_closed_while_it_was_idle_is_no_fault_of_the_server() -> None:
    stumbled: set[Target] = set()
    jobs = [Job(0), Job(1)]
    with ScriptedServer() as server:
        config = configuration(server.port)
        resolver = mx.Resolver(mx.dns_query(config.dns))
        with Remote(HOP, config, resolver, one_by_one=stumbled) as sending:
            sending.serve(jobs[0], lambda: None)
            server.disconnect()
            sending.serve(jobs[1], lambda: None)
    assert [(job.heard, job.ended) for job in jobs] == [(RELAYED, ["done"])] * 2
    assert taken(server) == senders(0, 1)
    assert stumbled == set()


def test_a_port_that_nobody_listens_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    job = Job(0)
    stumbled: set[Target] = set()
    serve(configuration(port), [job], one_by_one=stumbled)
    assert (job.ended, stumbled) == (["unreachable"], set())
