"""The sans-IO client: scripted dialogues, each run whole, octet by octet and with octets behind; and its guards."""

from base64 import b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.errors import LocalProtocolError, RemoteProtocolError, SmtpError
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
    TRANSITIONS,
    Answer,
    Connection,
    Extensions,
    State,
    original_recipient,
    xtext,
)
from minisend.smtp.reply import Reply


def reply(octets):
    """A one-line reply."""
    return Reply(int(octets[:3]), (octets[4:],))


def play(script, cut):
    """Run (what to do, octets expected on the wire, octets of the server, answers expected) steps."""
    connection = Connection()
    for act, sent, received, answers in script:
        act(connection)
        assert connection.data_to_send() == sent
        seen = []
        for piece in cut(received):
            connection.receive_data(piece)
            while (answer := connection.next_event()) is not None:
                seen.append(answer)
        assert seen == answers
    return connection


def whole(octets):
    return [octets]


def octet_by_octet(octets):
    return [octets[i : i + 1] for i in range(len(octets))]


def nothing(connection):
    pass


def message(content):
    def act(connection):
        connection.unsent.extend(connection.message(content))

    return act


def commands(*calls):
    def act(connection):
        for name, *arguments in calls:
            getattr(connection, name)(*arguments)

    return act


GREET = (nothing, b"", b"220 mx ESMTP\r\n", [Answer(GREETING, b"", reply(b"220 mx ESMTP"))])
PIPELINED_HELLO = (
    commands(("ehlo", b"me.example")),
    b"EHLO me.example\r\n",
    b"250-mx\r\n250 PIPELINING\r\n",
    [Answer(EHLO, b"me.example", Reply(250, (b"mx", b"PIPELINING")))],
)
PLAIN_HELLO = (
    commands(("ehlo", b"me.example")),
    b"EHLO me.example\r\n",
    b"250 mx\r\n",
    [Answer(EHLO, b"me.example", reply(b"250 mx"))],
)
BYE = (commands(("quit",)), b"QUIT\r\n", b"221 bye\r\n", [Answer(QUIT, b"", reply(b"221 bye"))])

DIALOGUES = {
    "one-at-a-time": [
        GREET,
        PLAIN_HELLO,
        (
            commands(("mail", b"a@x", [b"SIZE=5"])),
            b"MAIL FROM:<a@x> SIZE=5\r\n",
            b"250 ok\r\n",
            [Answer(MAIL, b"a@x", reply(b"250 ok"))],
        ),
        (
            commands(("rcpt", b"b@y")),
            b"RCPT TO:<b@y>\r\n",
            b"550 5.1.1 no\r\n",
            [Answer(RCPT, b"b@y", reply(b"550 5.1.1 no"))],
        ),
        (
            commands(("rcpt", b"c@y")),
            b"RCPT TO:<c@y>\r\n",
            b"250 ok\r\n",
            [Answer(RCPT, b"c@y", reply(b"250 ok"))],
        ),
        (commands(("data",)), b"DATA\r\n", b"354 go\r\n", [Answer(DATA, b"", reply(b"354 go"))]),
        (
            message([b".a\n"]),
            b"..a\r\n.\r\n",
            b"250 2.0.0 queued\r\n",
            [Answer(END_OF_DATA, b"", reply(b"250 2.0.0 queued"))],
        ),
        BYE,
    ],
    "one-flight": [
        GREET,
        PIPELINED_HELLO,
        (
            commands(("mail", b""), ("rcpt", b"b@y"), ("rcpt", b"c@y"), ("data",)),
            b"MAIL FROM:<>\r\nRCPT TO:<b@y>\r\nRCPT TO:<c@y>\r\nDATA\r\n",
            b"250 m\r\n452 4.2.2 full\r\n250 c\r\n354 go\r\n",
            [
                Answer(MAIL, b"", reply(b"250 m")),
                Answer(RCPT, b"b@y", reply(b"452 4.2.2 full")),
                Answer(RCPT, b"c@y", reply(b"250 c")),
                Answer(DATA, b"", reply(b"354 go")),
            ],
        ),
        (message([]), b".\r\n", b"451 later\r\n", [Answer(END_OF_DATA, b"", reply(b"451 later"))]),
        BYE,
    ],
    "flight-refused-then-reset": [
        GREET,
        PIPELINED_HELLO,
        (
            commands(("mail", b"a@x"), ("rcpt", b"b@y"), ("data",)),
            b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n",
            b"250 m\r\n550 r\r\n554 d\r\n",
            [
                Answer(MAIL, b"a@x", reply(b"250 m")),
                Answer(RCPT, b"b@y", reply(b"550 r")),
                Answer(DATA, b"", reply(b"554 d")),
            ],
        ),
        (
            commands(("rset",), ("mail", b"z@x")),
            b"RSET\r\nMAIL FROM:<z@x>\r\n",
            b"250 r\r\n250 m\r\n",
            [Answer(RSET, b"", reply(b"250 r")), Answer(MAIL, b"z@x", reply(b"250 m"))],
        ),
        BYE,
    ],
    "accepted-354-with-no-recipient": [
        GREET,
        PIPELINED_HELLO,
        (
            commands(("mail", b"a@x"), ("rcpt", b"b@y"), ("data",)),
            b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n",
            b"250 m\r\n550 r\r\n354 d\r\n",
            [
                Answer(MAIL, b"a@x", reply(b"250 m")),
                Answer(RCPT, b"b@y", reply(b"550 r")),
                Answer(DATA, b"", reply(b"354 d")),
            ],
        ),
        (message([]), b".\r\n", b"554 none\r\n", [Answer(END_OF_DATA, b"", reply(b"554 none"))]),
        BYE,
    ],
    "helo-after-refused-ehlo": [
        GREET,
        (
            commands(("ehlo", b"me")),
            b"EHLO me\r\n",
            b"502 what\r\n",
            [Answer(EHLO, b"me", reply(b"502 what"))],
        ),
        (
            commands(("helo", b"me")),
            b"HELO me\r\n",
            b"250 hi\r\n",
            [Answer(HELO, b"me", reply(b"250 hi"))],
        ),
        BYE,
    ],
    "auth": [
        GREET,
        PLAIN_HELLO,
        (
            commands(("auth", "PLAIN", b"\0u\0p")),
            b"AUTH PLAIN AHUAcA==\r\n",
            b"535 no AHUAcA== here\r\n",
            [Answer(AUTH, b"PLAIN", reply(b"535 no *** here"))],
        ),
        (
            commands(("auth", "LOGIN")),
            b"AUTH LOGIN\r\n",
            b"334 VXNlcg==\r\n",
            [Answer(AUTH, b"LOGIN", reply(b"334 VXNlcg=="))],
        ),
        (
            commands(("auth_response", None)),
            b"*\r\n",
            b"501 given up\r\n",
            [Answer(AUTH, b"", reply(b"501 given up"))],
        ),
        (
            commands(("auth", "X", b"")),
            b"AUTH X =\r\n",
            b"334\r\n",
            [Answer(AUTH, b"X", reply(b"334 "))],
        ),
        (
            commands(("auth_response", b"u")),
            b"dQ==\r\n",
            b"235 in\r\n",
            [Answer(AUTH, b"", reply(b"235 in"))],
        ),
        BYE,
    ],
    "starttls": [
        GREET,
        PIPELINED_HELLO,
        (
            commands(("starttls",)),
            b"STARTTLS\r\n",
            b"220 go\r\n",
            [Answer(STARTTLS, b"", reply(b"220 go"))],
        ),
        (commands(("tls_established",)), b"", b"", []),
        PLAIN_HELLO,
        BYE,
    ],
    "greeting-refused": [
        (nothing, b"", b"554 no\r\n", [Answer(GREETING, b"", reply(b"554 no"))]),
        BYE,
    ],
}


@pytest.mark.parametrize("script", DIALOGUES.values(), ids=DIALOGUES.keys())
@pytest.mark.parametrize("cut", [whole, octet_by_octet])
def test_dialogue(script, cut):
    connection = play(script, cut)
    assert (connection.state, connection.awaited) == (State.CLOSED, "")
    connection.receive_data(b"250 nobody listens\r\n")
    assert connection.next_event() is None


@pytest.mark.parametrize("script", DIALOGUES.values(), ids=DIALOGUES.keys())
def test_dialogue_with_a_reply_behind_each_step(script):
    """After any step, one more reply answers nothing: it is an error, and stays one."""
    for length in range(1, len(script)):
        connection = play(script[:length], whole)
        if connection.state is State.DATA:  # there the server owes a reply already
            continue
        connection.receive_data(b"250 one more\r\n")
        messages = []
        for _ in range(2):
            with pytest.raises(RemoteProtocolError) as caught:
                connection.next_event()
            messages.append(str(caught.value))
        expected = (
            "octets after the reply to STARTTLS"
            if script[length - 1][1] == b"STARTTLS\r\n"
            else "reply without a command: 250 one more"
        )
        assert messages == [expected, expected]
        with pytest.raises(RemoteProtocolError):
            connection.quit()


def ready(*keywords):
    """A connection after EHLO."""
    connection = Connection()
    connection.receive_data(b"220 hi\r\n")
    assert connection.next_event() is not None
    connection.ehlo(b"me")
    connection.receive_data(
        b"".join(b"250-" + word + b"\r\n" for word in (b"mx", *keywords)) + b"250 END\r\n"
    )
    assert connection.next_event() is not None
    connection.data_to_send()
    return connection


def test_tls_voids_what_ehlo_said():
    connection = ready(b"STARTTLS", b"PIPELINING", b"AUTH PLAIN")
    connection.starttls()
    connection.receive_data(b"220 go\r\n")
    assert connection.next_event() is not None
    with pytest.raises(LocalProtocolError):
        connection.rset()
    connection.tls_established()
    assert (connection.extensions, connection.state) == ({}, State.GREETED)


@pytest.mark.parametrize("injected", [b"2", b"250 ok\r\n", b"\x16\x03"])
def test_octets_after_starttls_are_an_error_however_they_come(injected):
    for together in (True, False):
        connection = ready(b"STARTTLS")
        connection.starttls()
        connection.receive_data(b"220 go\r\n" + (injected if together else b""))
        assert connection.next_event() == Answer(STARTTLS, b"", reply(b"220 go"))
        if not together:
            connection.receive_data(injected)
        with pytest.raises(RemoteProtocolError, match="octets after the reply to STARTTLS"):
            connection.tls_established()
        with pytest.raises(RemoteProtocolError, match="octets after the reply to STARTTLS"):
            connection.next_event()


@pytest.mark.parametrize("octet", [b"\r", b"\n", b"\0", b"\r\nRCPT TO:<x@y>"])
@pytest.mark.parametrize("where", ["ehlo", "helo", "mail", "rcpt", "parameter"])
def test_nothing_is_written_for_an_argument_with_a_line_end(octet, where):
    connection = ready(b"PIPELINING")
    if where == "rcpt":
        connection.mail(b"a@x")
        connection.data_to_send()
    arguments = (
        (b"a@x", [b"SIZE=1" + octet]) if where == "parameter" else (b'"a' + octet + b'b"@x',)
    )
    with pytest.raises(LocalProtocolError):
        getattr(connection, "mail" if where == "parameter" else where)(*arguments)
    assert connection.data_to_send() == b""


@pytest.mark.parametrize(
    "path", [b"a@x> SIZE=1", b"a b@x", b"<a@x", b'"a@x', b"a\\ b@x", b"a\tb@x"]
)
def test_nothing_is_written_for_a_path_that_would_become_parameters(path):
    connection = ready()
    with pytest.raises(LocalProtocolError):
        connection.mail(path)
    assert connection.data_to_send() == b""


@pytest.mark.parametrize(
    "path", [b"", b"a@x", b'"a> b"@x', b'"a\\"> b"@x', b"\xc3\xa9@x", b"@h:a@x"]
)
def test_paths_that_stay_one_argument(path):
    connection = ready()
    connection.mail(path)
    assert connection.data_to_send() == b"MAIL FROM:<" + path + b">\r\n"


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param([("rcpt", b"a@x")], id="rcpt-first"),
        pytest.param([("data",)], id="data-first"),
        pytest.param([("mail", b""), ("data",)], id="data-without-recipient"),
        pytest.param([("mail", b""), ("mail", b"")], id="two-mails"),
        pytest.param([("mail", b""), ("rcpt", b"x"), ("data",), ("rset",)], id="behind-data"),
        pytest.param([("mail", b""), ("starttls",)], id="starttls-in-transaction"),
        pytest.param([("rset",), ("starttls",)], id="starttls-not-alone"),
        pytest.param([("rset",), ("ehlo", b"x")], id="ehlo-not-alone"),
        pytest.param([("auth", "PLAIN", b"x"), ("auth_response", b"y")], id="response-unasked"),
        pytest.param([("auth_response", b"y")], id="response-first"),
        pytest.param([("quit",), ("rset",)], id="behind-quit"),
        pytest.param([("tls_established",)], id="tls-from-nowhere"),
        pytest.param([("message", [])], id="message-without-354"),
    ],
)
def test_out_of_order(calls):
    connection = ready(b"PIPELINING")
    commands(*calls[:-1])(connection)
    written = connection.data_to_send()
    with pytest.raises(LocalProtocolError):
        commands(calls[-1])(connection)
    assert (connection.data_to_send(), written.count(b"\r\n")) == (b"", len(calls) - 1)


def test_one_at_a_time_unless_pipelining_is_offered():
    connection = ready()
    connection.mail(b"a@x")
    with pytest.raises(LocalProtocolError):
        connection.rcpt(b"b@x")


@pytest.mark.parametrize(
    ("command", "line"),
    [("mail", b"354 x"), ("data", b"250 x"), ("rcpt", b"354 x"), ("ehlo", b"334 x")],
)
def test_a_reply_of_a_class_the_command_does_not_have(command, line):
    """A 250 to DATA must never pass for a message delivered."""
    connection = ready(b"PIPELINING")
    steps = {
        "mail": [("mail", b"")],
        "rcpt": [("mail", b""), ("rcpt", b"x")],
        "data": [("mail", b""), ("rcpt", b"x"), ("data",)],
        "ehlo": [("ehlo", b"x")],
    }
    commands(*steps[command])(connection)
    connection.receive_data(b"250 ok\r\n" * (len(steps[command]) - 1) + line + b"\r\n")
    for _ in steps[command][:-1]:
        assert connection.next_event() is not None
    with pytest.raises(RemoteProtocolError, match="unexpected reply"):
        connection.next_event()
    assert connection.state is State.CLOSED


def in_data():
    connection = ready(b"PIPELINING")
    commands(("mail", b""), ("rcpt", b"x"), ("data",))(connection)
    connection.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    assert [connection.next_event().command for _ in range(3)] == [MAIL, RCPT, DATA]
    return connection


def test_an_early_refusal_is_the_answer_to_the_message():
    connection = in_data()
    pieces = connection.message([b"x" * 70_000, b"y" * 70_000])
    next(pieces)
    assert connection.awaited == DATA
    connection.receive_data(b"552 too big\r\n")
    assert connection.next_event() == Answer(END_OF_DATA, b"", reply(b"552 too big"))
    assert connection.state is State.CLOSED


def test_an_early_250_is_an_error():
    connection = in_data()
    next(connection.message([b"x" * 70_000]))
    connection.receive_data(b"250 queued\r\n")
    with pytest.raises(RemoteProtocolError, match="acknowledged before it was sent"):
        connection.next_event()


def test_once_the_message_is_out_it_is_the_end_of_data_that_is_awaited():
    connection = in_data()
    assert b"".join(connection.message([b"a\n"])) == b"a\r\n.\r\n"
    assert connection.awaited == END_OF_DATA


def test_a_421_closes_at_any_point():
    connection = ready(b"PIPELINING")
    commands(("mail", b""), ("rcpt", b"x"), ("data",))(connection)
    connection.receive_data(b"250 ok\r\n421 bye\r\n250 late\r\n")
    assert [connection.next_event() for _ in range(3)] == [
        Answer(MAIL, b"", reply(b"250 ok")),
        Answer(RCPT, b"x", reply(b"421 bye")),
        None,
    ]
    assert (connection.state, connection.awaited) == (State.CLOSED, "")


def test_the_trace_has_every_line_and_no_secret():
    lines = []
    connection = Connection(lines.append)
    connection.receive_data(b"220-a\r\n220 b\x1b\r\n")
    connection.next_event()
    connection.ehlo(b"me")
    connection.receive_data(b"250 mx\r\n")
    connection.next_event()
    connection.auth("PLAIN", b"\0user\0secret")
    connection.receive_data(b"500 unknown: AUTH PLAIN AHVzZXIAc2Vj...\r\n")
    assert connection.next_event() == Answer(
        AUTH, b"PLAIN", reply(b"500 unknown: AUTH PLAIN ***...")
    )
    assert lines == [
        "S: 220 a",
        "S: 220 b\\x1b",
        "C: EHLO me",
        "S: 250 mx",
        "C: AUTH PLAIN ***",
        "S: 500 unknown: AUTH PLAIN ***...",
    ]


def test_the_trace_has_nothing_to_try_passwords_against():
    """The challenges of SCRAM have salt and count, and the server's proof at the end."""
    lines = []
    connection = Connection(lines.append)
    connection.receive_data(b"220 a\r\n")
    connection.next_event()
    connection.ehlo(b"me")
    connection.receive_data(b"250 mx\r\n")
    connection.next_event()
    connection.auth("SCRAM-SHA-256", b"n,,n=user,r=abc")
    for step in (b"r=abcdef,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", b"v=6rriTRBi23WpRR"):
        connection.receive_data(b"334 " + b64encode(step) + b"\r\n")
        # What the exchange needs is there.
        assert connection.next_event() == Answer(
            AUTH, b"" if step[:1] == b"v" else b"SCRAM-SHA-256", reply(b"334 " + b64encode(step))
        )
        connection.auth_response(b"c=biws,r=abcdef,p=secret")
    connection.receive_data(b"235 in\r\n")
    connection.next_event()
    assert lines[3:] == [
        "C: AUTH SCRAM-SHA-256 ***",
        "S: 334 ***",
        "C: ***",
        "S: 334 ***",
        "C: ***",
        "S: 235 in",
    ]


@pytest.mark.parametrize(
    ("lines", "extensions", "size", "mechanisms"),
    [
        pytest.param(
            [b"mx", b"size 1000", b"8bitMIME"],
            {"SIZE": ("1000",), "8BITMIME": ()},
            1000,
            (),
            id="case",
        ),
        pytest.param([b"SIZE 5"], {}, 0, (), id="first-line-is-no-keyword"),
        pytest.param([b"mx", b"SIZE"], {"SIZE": ()}, 0, (), id="size-unsaid"),
        pytest.param([b"mx", b"SIZE -1"], {"SIZE": ("-1",)}, 0, (), id="size-negative"),
        pytest.param(
            [b"mx", b"SIZE " + b"9" * 5000], {"SIZE": ("9" * 5000,)}, 0, (), id="size-huge"
        ),
        pytest.param(
            [b"mx", b"AUTH plain LOGIN", b"AUTH=LOGIN XX"],
            {"AUTH": ("plain", "LOGIN", "LOGIN", "XX")},
            0,
            ("PLAIN", "LOGIN", "XX"),
            id="auth-both",
        ),
        pytest.param([b"mx", b"AUTH=LOGIN"], {"AUTH": ("LOGIN",)}, 0, ("LOGIN",), id="auth-old"),
        pytest.param([b"mx", b"", b" ", b"X\xff y"], {"X\\XFF": ("y",)}, 0, (), id="odd"),
    ],
)
def test_extensions(lines, extensions, size, mechanisms):
    parsed = Extensions.parse(Reply(250, tuple(lines)))
    assert (parsed, parsed.size, parsed.auth) == (extensions, size, mechanisms)


@pytest.mark.parametrize(
    ("lines", "dsn", "smtputf8", "rcpt_max"),
    [
        pytest.param([b"mx", b"dsn", b"SmtpUtf8"], True, True, 0, id="case"),
        pytest.param([b"DSN"], False, False, 0, id="first-line-is-no-keyword"),
        pytest.param([b"mx", b"XDSN", b"X DSN SMTPUTF8 RCPTMAX=3"], False, False, 0, id="others"),
        pytest.param([b"mx", b"LIMITS MAILMAX=9 rcptMax=20"], False, False, 20, id="limits"),
        pytest.param([b"mx", b"LIMITS"], False, False, 0, id="limits-unsaid"),
        pytest.param([b"mx", b"LIMITS RCPTDOMAINMAX=5 XRCPTMAX=4"], False, False, 0, id="not-this"),
        pytest.param([b"mx", b"LIMITS RCPTMAX=0"], False, False, 0, id="limit-none"),
        pytest.param([b"mx", b"LIMITS RCPTMAX=-1"], False, False, 0, id="limit-negative"),
        pytest.param([b"mx", b"LIMITS RCPTMAX"], False, False, 0, id="limit-without-value"),
        pytest.param([b"mx", b"LIMITS RCPTMAX=999999"], False, False, 999999, id="limit-largest"),
        pytest.param([b"mx", b"LIMITS RCPTMAX=1000000"], False, False, 0, id="limit-too-large"),
        pytest.param(
            [b"mx", b"LIMITS RCPTMAX=x RCPTMAX=7", b"LIMITS RCPTMAX=8"], False, False, 7, id="first"
        ),
    ],
)
def test_extensions_for_the_envelope(lines, dsn, smtputf8, rcpt_max):
    parsed = Extensions.parse(Reply(250, tuple(lines)))
    assert (parsed.dsn, parsed.smtputf8, parsed.rcpt_max) == (dsn, smtputf8, rcpt_max)


@pytest.mark.parametrize(
    ("lines", "limits"),
    [
        pytest.param([b"LIMITS MAILMAX=5 RCPTMAX=20 RCPTDOMAINMAX=1"], (5, 20, 1), id="all"),
        pytest.param([b"limits mailmax=5"], (5, 0, 0), id="case"),
        pytest.param([b"LIMITS rcptDomainMax=999999"], (0, 0, 999999), id="largest"),
        pytest.param([b"LIMITS MAILMAX=1000000 RCPTDOMAINMAX=1000000"], (0, 0, 0), id="too-large"),
        pytest.param([b"LIMITS MAILMAX=0 RCPTDOMAINMAX=000000"], (0, 0, 0), id="zero"),
        pytest.param([b"LIMITS MAILMAX=-1 RCPTDOMAINMAX=+1"], (0, 0, 0), id="signs"),
        pytest.param([b"LIMITS MAILMAX=0x5 RCPTDOMAINMAX=1.5"], (0, 0, 0), id="no-decimals"),
        pytest.param([b"LIMITS MAILMAX=\xd9\xa5 RCPTDOMAINMAX=1_0"], (0, 0, 0), id="other-digits"),
        pytest.param([b"LIMITS MAILMAX RCPTDOMAINMAX="], (0, 0, 0), id="without-value"),
        pytest.param([b"LIMITS MAILMAX = 5"], (0, 0, 0), id="spaces"),
        pytest.param([b"LIMITS MAILMAX=5 MAILMAX=6"], (5, 0, 0), id="twice"),
        pytest.param([b"LIMITS MAILMAX=x MAILMAX=6"], (6, 0, 0), id="first-is-none"),
        pytest.param([b"LIMITS FUTURE FUTURE=1 MAILMAX=5"], (5, 0, 0), id="unknown"),
        pytest.param([b"LIMITS"], (0, 0, 0), id="empty"),
        pytest.param([b"MAILMAX=5", b"XLIMITS RCPTDOMAINMAX=5"], (0, 0, 0), id="not-these"),
    ],
)
def test_extensions_limits(lines, limits):
    parsed = Extensions.parse(Reply(250, (b"mx", *lines)))
    assert (parsed.mail_max, parsed.rcpt_max, parsed.rcpt_domain_max) == limits


def test_xtext_is_printable_without_plus_and_equals_sign():
    """RFC 3461 section 4: hexadecimal digits in upper case, for every octet that is no xchar and no other."""
    for octet in range(256):
        plain = 33 <= octet <= 126 and octet not in b"+="
        assert xtext(b"a%cb" % octet) == (b"a%cb" if plain else b"a+%02Xb") % octet
    assert xtext(b"") == b""
    assert xtext(b"+\r\n=") == b"+2B+0D+0A+3D"


@pytest.mark.parametrize(
    ("address", "ascii_form", "utf8_form"),
    [
        (b"bob@y", b"rfc822;bob@y", None),
        (b"b+x=1@y", b"rfc822;b+2Bx+3D1@y", None),
        (b'"a b\\""@y', b'rfc822;"a+20b\\""@y', None),
        (b"b\r\nDATA\0@y", b"rfc822;b+0D+0ADATA+00@y", None),
        (b"b\xfc@y", b"rfc822;b+FC@y", None),
        ("jü@y".encode(), b"utf-8;j\\x{FC}@y", "utf-8;jü@y".encode()),
        ("jü@bücher".encode(), b"utf-8;j\\x{FC}@b\\x{FC}cher", "utf-8;jü@bücher".encode()),
        (
            "例+=\\ \t@y".encode(),
            b"utf-8;\\x{4F8B}\\x{2B}\\x{3D}\\x{5C}\\x{20}\\x{09}@y",
            "utf-8;例\\x{2B}\\x{3D}\\x{5C}\\x{20}\\x{09}@y".encode(),
        ),
        ("\U0001f4ec[x]@y".encode(), b"utf-8;\\x{1F4EC}[x]@y", "utf-8;\U0001f4ec[x]@y".encode()),
    ],
    ids=ascii,
)
def test_original_recipient(address, ascii_form, utf8_form):
    assert original_recipient(address, utf8=False) == ascii_form
    assert original_recipient(address, utf8=True) == (utf8_form or ascii_form)


def test_the_table_is_closed():
    """Every state that a command leads to is one in which something may be done, and every command is in the table."""
    states = {
        s
        for row in TRANSITIONS.values()
        for s in (row.sent, *row.replies.values())
        if s is not None
    }
    used = {s for row in TRANSITIONS.values() for s in row.allowed}
    assert states - used == {State.CLOSED, State.TLS}
    assert set(TRANSITIONS) == {
        GREETING,
        EHLO,
        HELO,
        LHLO,
        STARTTLS,
        AUTH,
        MAIL,
        RCPT,
        DATA,
        END_OF_DATA,
        BDAT,
        "BDAT LAST",
        RSET,
        QUIT,
    }
    assert all(len(row.replies) >= 3 for row in TRANSITIONS.values())


REPLIES = st.sampled_from(
    [
        b"220 a\r\n",
        b"250 ok\r\n",
        b"250-mx\r\n250 PIPELINING\r\n",
        b"354 go\r\n",
        b"334 \r\n",
        b"421 bye\r\n",
        b"451 x\r\n",
        b"550 5.1.1 y\n",
        b"250",
        b"\r\n",
        b"\xff",
        b"-",
    ]
)


@given(st.lists(REPLIES, max_size=12), st.data())
@settings(max_examples=200, deadline=None)
def test_any_octets_in_any_pieces(tokens, data):
    """Never another exception than SmtpError, and never a difference that depends on packet boundaries."""
    octets = b"".join(tokens)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=6)))
    pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]

    def run(pieces):
        connection, log = ready(b"PIPELINING"), []
        commands(("mail", b"a@x"), ("rcpt", b"b@x"), ("rcpt", b"c@x"), ("data",))(connection)
        try:
            for piece in pieces:
                connection.receive_data(piece)
                while (answer := connection.next_event()) is not None:
                    log.append(answer)
        except SmtpError as error:
            log.append(str(error))
        return log, connection.state

    assert run(pieces) == run([octets]) == run(octet_by_octet(octets))
