"""DSN and SMTPUTF8 against scripted servers: which parameters and which form of an address each offer gets."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.delivery.policy import judge_transaction
from minisend.envelope import FAILED, RELAYED, Outcome
from minisend.errors import LocalProtocolError
from minisend.smtp.client import END_OF_DATA, MAIL, RCPT, Answer, original_recipient, xtext
from minisend.smtp.deadlines import Deadlines
from minisend.smtp.reply import Reply
from minisend.smtp.server import Mail, Rcpt, ServerConnection
from minisend.smtp.session import Session
from minisend.smtp.stream import connect
from minisend.smtp.transaction import DsnRequest, SizeExceeded, Utf8NotOffered

OK = Answer(END_OF_DATA, b"", Reply(250, (b"2.0.0 queued",)))
PHASES = ("greeting", "hello", "mail", "rcpt", "data", "block", "end_of_data", "rset", "quit")
NOT_OFFERED = "address needs SMTPUTF8, which the server does not offer: "


@pytest.fixture
def session_for(serve):
    """``session_for(offer, commands ...)`` -> an open session with a server that offers ``offer`` and wants, in flights
    or one at a time, each transaction of ``commands``, all of which it accepts."""
    sessions = []

    def make(offer, *transactions):
        def script(peer):
            peer.hello(*offer)
            for commands in transactions:
                if b"PIPELINING" in offer:
                    peer.expect(b"".join(command + b"\r\n" for command in commands) + b"DATA\r\n")
                    peer.send(b"250 ok\r\n" * len(commands) + b"354 go\r\n")
                else:
                    for command in commands:
                        peer.expect(command + b"\r\n")
                        peer.send(b"250 ok\r\n")
                    peer.expect(b"DATA\r\n")
                    peer.send(b"354 go\r\n")
                peer.expect(b"x\r\n.\r\n")
                peer.send(b"250 2.0.0 queued\r\n")
            peer.bye()

        session = Session(
            connect("127.0.0.1", serve(script), 5),
            hello=b"me.test",
            deadlines=Deadlines(**dict.fromkeys(PHASES, 10.0)),
        )
        sessions.append(session)
        session.open()
        return session

    yield make
    for session in sessions:
        session.close()


def send(session, sender, recipients, **options):
    """Answers as they are; errors by class, phase, status and text."""
    results = session.send(sender, recipients, [b"x"], **{"size": 1, "eight_bit": False, **options})
    return [
        result
        if isinstance(result, Answer)
        else (type(result), result.phase, result.status, str(result))
        for result in results
    ]


# DSN

REQUESTS = [
    DsnRequest("never", b"bob+lists@y"),
    DsnRequest("Success,failure,DELAY"),
    DsnRequest(original=b'"c d"@y'),
    DsnRequest(),
]
RECIPIENTS = [b"b@y", b"c@y", b"d@y", b"e@y"]


@pytest.mark.parametrize("offer", [(b"DSN",), (b"DSN", b"PIPELINING")], ids=["alone", "pipelined"])
def test_what_was_asked_for_is_passed_on(session_for, offer):
    session = session_for(
        offer,
        [
            b"MAIL FROM:<a@x> RET=HDRS ENVID=QQ+2B1+3D+20~",
            b"RCPT TO:<b@y> NOTIFY=NEVER ORCPT=rfc822;bob+2Blists@y",
            b"RCPT TO:<c@y> NOTIFY=SUCCESS,FAILURE,DELAY",
            b'RCPT TO:<d@y> ORCPT=rfc822;"c+20d"@y',
            b"RCPT TO:<e@y>",
        ],
        [b"MAIL FROM:<>", b"RCPT TO:<b@y>"],
        [b"MAIL FROM:<a@x> RET=FULL", b"RCPT TO:<b@y> NOTIFY=DELAY"],
    )
    assert send(session, b"a@x", RECIPIENTS, ret="hdrs", envid="QQ+1= ~", dsn=REQUESTS) == [OK] * 4
    assert send(session, b"", [b"b@y"]) == [OK]
    assert send(session, b"a@x", [b"b@y"], ret="FULL", dsn=[DsnRequest("DELAY")]) == [OK]
    session.quit()
    assert session.extensions.dsn


def test_nothing_of_it_is_said_to_a_server_without_dsn(session_for):
    session = session_for(
        (b"PIPELINING", b"SIZE 1000", b"8BITMIME"),
        [
            b"MAIL FROM:<a@x> SIZE=1 BODY=8BITMIME",
            *(b"RCPT TO:<%b>" % recipient for recipient in RECIPIENTS),
        ],
    )
    results = send(
        session, b"a@x", RECIPIENTS, ret="FULL", envid="QQ1", dsn=REQUESTS, eight_bit=True
    )
    assert results == [OK] * 4
    session.quit()
    assert not session.extensions.dsn


def test_all_parameters_of_mail(session_for):
    session = session_for(
        (b"SMTPUTF8", b"DSN", b"8BITMIME", b"SIZE"),
        [
            "MAIL FROM:<jü@x> SIZE=1 BODY=8BITMIME SMTPUTF8 RET=FULL ENVID=Q".encode(),
            "RCPT TO:<b@y> NOTIFY=NEVER ORCPT=utf-8;böb\\x{2B}1@y".encode(),
        ],
    )
    results = send(
        session,
        "jü@x".encode(),
        [b"b@y"],
        ret="full",
        envid="Q",
        dsn=[DsnRequest("NEVER", "böb+1@y".encode())],
        eight_bit=True,
    )
    assert results == [OK]
    session.quit()


@pytest.mark.parametrize("offer", [(b"DSN",), (b"DSN", b"SMTPUTF8")], ids=["without", "offered"])
def test_an_original_in_utf8_needs_no_smtputf8(session_for, offer):
    """The addresses of the transaction are ASCII: so is ORCPT."""
    session = session_for(offer, [b"MAIL FROM:<a@x>", b"RCPT TO:<b@y> ORCPT=utf-8;b\\x{F6}b@y"])
    dsn = [DsnRequest(original="böb@y".encode())]
    assert send(session, b"a@x", [b"b@y"], dsn=dsn) == [OK]
    session.quit()


@pytest.mark.parametrize(
    ("notify", "said"),
    [
        ("NEVER", b" NOTIFY=NEVER"),
        ("delay", b" NOTIFY=DELAY"),
        ("delay,success", b" NOTIFY=DELAY,SUCCESS"),
        ("", b""),
        *(
            (wrong, None)
            for wrong in (
                "never,delay",
                "delay,never",
                "sometimes",
                "success,",
                ",",
                "success failure",
                " ",
                "NEVER\r\nDATA",
                "DELAY ORCPT=x",
                "süccess",
            )
        ),
    ],
    ids=repr,
)
def test_notify(session_for, notify, said):
    """A wrong one keeps its own recipient out, and no other."""
    session = session_for(
        (b"DSN",),
        [
            b"MAIL FROM:<a@x>",
            *([] if said is None else [b"RCPT TO:<b@y>" + said]),
            b"RCPT TO:<c@y> NOTIFY=FAILURE",
        ],
    )
    text = f"NOTIFY: not NEVER, nor of SUCCESS, FAILURE, DELAY: {notify!r}"
    assert send(
        session, b"a@x", [b"b@y", b"c@y"], dsn=[DsnRequest(notify), DsnRequest("FAILURE")]
    ) == [(LocalProtocolError, RCPT, "4.3.0", text) if said is None else OK, OK]
    session.quit()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ret": "body"}, "RET: not FULL or HDRS: 'body'"),
        ({"ret": "FULL\r\nRSET"}, "RET: not FULL or HDRS: 'FULL\\r\\nRSET'"),
        ({"envid": "ü"}, "ENVID: not up to 100 printable ASCII characters: 'ü'"),
        ({"envid": "a\tb"}, "ENVID: not up to 100 printable ASCII characters: 'a\\tb'"),
        (
            {"envid": "x" * 101},
            f"ENVID: not up to 100 printable ASCII characters: '{'x' * 101}'",
        ),
    ],
    ids=["ret", "ret-injects", "envid-utf8", "envid-control", "envid-long"],
)
def test_a_request_that_cannot_be_written(session_for, options, text):
    """Nothing is said of the transaction, and the session goes on."""
    session = session_for((b"DSN",), [b"MAIL FROM:<a@x> ENVID=" + b"+20" * 100, b"RCPT TO:<b@y>"])
    assert (
        send(session, b"a@x", [b"b@y", b"c@y"], **options)
        == [(LocalProtocolError, MAIL, "4.3.0", text)] * 2
    )
    assert session.usable
    assert send(session, b"a@x", [b"b@y"], envid=" " * 100) == [OK]
    session.quit()


@pytest.mark.parametrize("count", [1, 3])
def test_requests_are_one_for_each_recipient(session_for, count):
    session = session_for((b"DSN",))
    results = send(session, b"a@x", [b"b@y", b"c@y"], dsn=[DsnRequest()] * count)
    reason = f"{count} DSN requests for 2 recipients"
    assert results == [(LocalProtocolError, "MAIL FROM", "4.3.0", reason)] * 2
    assert session.usable
    session.quit()


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), min_size=1, max_size=100),
    st.text(st.sampled_from("ab+=\\x{}()<>\"' ü\u00df例\U0001f4ec"), min_size=1, max_size=40),
    st.booleans(),
)
def test_our_server_reads_what_our_client_writes(envid, original, utf8):
    server = ServerConnection(b"mx.test")
    server.receive_data(b"EHLO x\r\nMAIL FROM:<a@x> ENVID=" + xtext(envid.encode()) + b"\r\n")
    server.next_event()
    assert server.next_event() == Mail(b"a@x", envid=envid)
    server.reply(250, "ok")
    value = original_recipient(original.encode(), utf8=utf8)
    assert utf8 or value.isascii()
    server.receive_data(b"RCPT TO:<b@y> ORCPT=" + value + b"\r\n")
    assert server.next_event() == Rcpt(b"b@y", original=original.encode())


# SMTPUTF8

SENDER = "jürgen@bücher.example".encode()
LOCAL = "jürgen@y".encode()
DOMAIN = "b@Bücher.example".encode()
BOTH = "jürgen@bücher.example".encode()


def not_offered(phase, address):
    return (Utf8NotOffered, phase, "5.6.7", NOT_OFFERED + address.decode())


@pytest.mark.parametrize(
    ("sender", "recipients"),
    [
        (SENDER, [b"b@y"]),
        (b"a@x", [b"b@y", LOCAL, BOTH]),
        (b"", [DOMAIN]),
        ("a@bücher".encode(), [b"b@y"]),
    ],
    ids=["sender", "recipients", "recipient-domain", "sender-domain"],
)
@pytest.mark.parametrize("offer", [(b"smtputf8",), (b"SMTPUTF8", b"PIPELINING")], ids=repr)
def test_offered_addresses_go_as_they_are(session_for, offer, sender, recipients):
    session = session_for(
        offer,
        [
            b"MAIL FROM:<" + sender + b"> SMTPUTF8",
            *(b"RCPT TO:<" + recipient + b">" for recipient in recipients),
        ],
    )
    assert send(session, sender, recipients) == [OK] * len(recipients)
    session.quit()


def test_offered_and_not_needed_it_is_not_said(session_for):
    """Octets above 127 in the message alone do not need it."""
    session = session_for(
        (b"SMTPUTF8", b"8BITMIME"), [b"MAIL FROM:<a@x> BODY=8BITMIME", b"RCPT TO:<b@y>"]
    )
    assert send(session, b"a@x", [b"b@y"], eight_bit=True) == [OK]
    session.quit()


@pytest.mark.parametrize("offer", [(), (b"PIPELINING",)], ids=repr)
def test_not_offered_domains_go_as_a_labels_and_local_parts_stay_behind(session_for, offer):
    session = session_for(
        offer,
        [
            b"MAIL FROM:<a@xn--fa-hia.example>",
            b"RCPT TO:<b@y>",
            b"RCPT TO:<b@xn--bcher-kva.example>",
            b"RCPT TO:<c@y>",
        ],
        [b"MAIL FROM:<a@x>", b"RCPT TO:<b@y>"],
    )
    unmapped = "d@xn--ü".encode()
    assert send(
        session, "a@faß.example".encode(), [b"b@y", LOCAL, DOMAIN, BOTH, b"c@y", unmapped]
    ) == [
        OK,
        not_offered(RCPT, LOCAL),
        OK,
        not_offered(RCPT, BOTH),
        OK,
        not_offered(RCPT, unmapped),
    ]
    assert send(session, b"a@x", [b"b@y"]) == [OK]
    session.quit()


def test_not_offered_and_refused_each_is_told_its_own(serve):
    def script(peer):
        peer.hello(b"PIPELINING")
        peer.expect(b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nRCPT TO:<c@y>\r\nDATA\r\n")
        peer.send(b"250 a\r\n550 b\r\n451 c\r\n554 d\r\n")
        peer.bye()

    session = Session(connect("127.0.0.1", serve(script), 5), hello=b"me.test")
    session.open()
    assert send(session, b"a@x", [LOCAL, b"b@y", BOTH, b"c@y"]) == [
        not_offered(RCPT, LOCAL),
        Answer(RCPT, b"b@y", Reply(550, (b"b",))),
        not_offered(RCPT, BOTH),
        Answer(RCPT, b"c@y", Reply(451, (b"c",))),
    ]
    session.quit()


@pytest.mark.parametrize("sender", [LOCAL, SENDER, "a@ü..x".encode()], ids=ascii)
def test_not_offered_a_sender_in_utf8_keeps_everybody_behind(session_for, sender):
    session = session_for((b"PIPELINING",), [b"MAIL FROM:<>", b"RCPT TO:<b@y>"])
    assert send(session, sender, [b"b@y", b"c@y"]) == [not_offered(MAIL, sender)] * 2
    assert send(session, b"a@x", [LOCAL]) == [not_offered(RCPT, LOCAL)]
    assert session.usable
    assert send(session, b"", [b"b@y"]) == [OK]
    session.quit()


def test_a_helo_server_offers_nothing(serve):
    def script(peer):
        peer.send(b"220 old\r\n")
        peer.expect(b"EHLO me.test\r\n")
        peer.send(b"500 what\r\n")
        peer.expect(b"HELO me.test\r\n")
        peer.send(b"250-old\r\n250-DSN\r\n250 SMTPUTF8\r\n")
        peer.expect(b"MAIL FROM:<a@x>\r\n")
        peer.send(b"250 ok\r\n")
        peer.expect(b"RCPT TO:<b@xn--bcher-kva.example>\r\n")
        peer.send(b"550 no\r\n")
        peer.bye()

    session = Session(connect("127.0.0.1", serve(script), 5), hello=b"me.test")
    session.open()
    assert send(session, b"a@x", [DOMAIN], ret="FULL", dsn=[DsnRequest("NEVER", b"b@y")]) == [
        Answer(RCPT, b"b@xn--bcher-kva.example", Reply(550, (b"no",)))
    ]
    session.quit()


def test_octets_that_are_not_utf8_never_leave(session_for):
    """``address.check`` lets none through; a path of SMTPUTF8 is UTF-8, and any other is ASCII."""
    session = session_for((b"SMTPUTF8",), [b"MAIL FROM:<a@x> SMTPUTF8", b"RCPT TO:<b@y>"])
    assert send(session, b"a@x", [b"j\xfc@y", b"b@y"]) == [
        (LocalProtocolError, RCPT, "4.3.0", "RCPT TO: not UTF-8: b'j\\xfc@y'"),
        OK,
    ]
    session.quit()
    session = session_for(())
    assert send(session, b"j\xfc@x", [b"b@y"]) == [
        (Utf8NotOffered, MAIL, "5.6.7", NOT_OFFERED + "j\\xfc@x")
    ]
    session.quit()


def test_a_message_too_big_is_not_begun_while_a_transaction_is_open(serve):
    """The refusal by size is ours: it costs no command, and the next message resets what the last one left."""

    def script(peer):
        peer.hello(b"SIZE 10")
        peer.expect(b"MAIL FROM:<a@x> SIZE=1\r\n")
        peer.send(b"250 ok\r\n")
        peer.expect(b"RCPT TO:<b@y>\r\n")
        peer.send(b"550 no\r\n")
        peer.expect(b"RSET\r\n")
        peer.send(b"250 ok\r\n")
        peer.expect(b"MAIL FROM:<a@x> SIZE=1\r\n")
        peer.send(b"550 no\r\n")
        peer.bye()

    session = Session(connect("127.0.0.1", serve(script), 5), hello=b"me.test")
    session.open()
    send(session, b"a@x", [b"b@y"])
    too_big = "message of 11 octets is larger than the 10 the server takes"
    assert send(session, b"a@x", [b"b@y"], size=11) == [(SizeExceeded, MAIL, "5.3.4", too_big)]
    assert send(session, b"a@x", [b"b@y"]) == [Answer(MAIL, b"a@x", Reply(550, (b"no",)))]
    session.quit()


def test_what_the_policy_makes_of_it(session_for):
    """Failed at once, for that recipient alone: no other server of the next hop is asked, as in Postfix."""
    session = session_for((), [b"MAIL FROM:<a@x>", b"RCPT TO:<b@y>"])
    results = session.send(b"a@x", [LOCAL, b"b@y"], [b"x"], size=1, eight_bit=False)
    session.quit()
    verdicts = judge_transaction([4, 7], results, remote_mta="mx[192.0.2.1]:25", at=9.0)
    assert [(verdict.outcome, verdict.then) for verdict in verdicts] == [
        (
            Outcome(
                4,
                FAILED,
                "5.6.7",
                f"host mx[192.0.2.1]:25: {NOT_OFFERED}jürgen@y (during RCPT TO)",
                remote_mta="mx[192.0.2.1]:25",
                at=9.0,
            ),
            "stop",
        ),
        (
            Outcome(
                7,
                RELAYED,
                "2.0.0",
                "host mx[192.0.2.1]:25 said: 250 2.0.0 queued (in reply to end of data)",
                remote_mta="mx[192.0.2.1]:25",
                diagnostic="smtp; 250 2.0.0 queued",
                command=END_OF_DATA,
                at=9.0,
            ),
            "stop",
        ),
    ]
