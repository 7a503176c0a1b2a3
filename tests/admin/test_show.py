"""minisend show: the page, the octets, the object; and that it says nothing it should not."""

import json
import re

import pytest

from minisend.admin.command import main
from minisend.envelope import FAILED, RELAYED, Envelope, Facts, Outcome, Recipient
from minisend.errors import DataError, UsageError
from minisend.spool.enqueue import enqueue
from minisend.spool.store import Queue

NOW = 1795440600.0
RECEIVED = (
    b"Received: by h.example.org (minisend, from userid 1000 (tester))\n"
    b"\tid 0000000000000002; Mon, 23 Nov 2026 13:26:57 +0000\n"
)
ADDED = (
    b"Date: Mon, 23 Nov 2026 13:26:57 +0000\n"
    b"From: tester@example.org\n"
    b"Message-ID: <20261123132657.0000000000000002@h.example.org>\n"
)


@pytest.fixture
def show(crafted, capfdbinary):
    """Runs ``minisend show`` and returns what it writes."""
    crafted.config.write_text(
        'hostname = "h.example.org"\nmail_domain = "example.org"\n' + crafted.config.read_text()
    )

    def run(*arguments):
        capfdbinary.readouterr()
        assert main(["show", *arguments], str(crafted.config)) == 0
        out, err = capfdbinary.readouterr()
        assert err == b""
        return out

    return run


def claimed(crafted, queue_id="0000000000000002"):
    """A context: the queue and the claimed entry."""
    queue = Queue(str(crafted.path))
    place = queue.find(queue_id, "new", "cur", "hold", "failed")
    assert place is not None
    entry = queue.claim(place)
    assert entry is not None
    return queue, entry


def test_page_whole(four, show):
    queue, entry = claimed(four)
    with queue, entry:
        entry.keep_facts(Facts(b"h.example.org", b"example.org", b"x", b"<1@h.example.org>"))
        entry.note_reported("delay 0")
    out = show("0000000000000002").decode()
    page, _, message = out.partition("Message:\n")
    assert page == (
        "Queue id:     0000000000000002\n"
        "State:        deferred\n"
        "Arrived:      Mon, 23 Nov 2026 13:26:57 +0000\n"
        "Size:         22 octets\n"
        "Next attempt: 14:05\n"
        "From:         MAILER-DAEMON\n"
        "Submitted by: tester (uid 1000)\n"
        "Sent by:      h.example.org\n"
        "Recipients:\n"
        "  carol@example.com: deferred (4.4.1)\n"
        "  bob@example.net: sent (2.0.0)\n"
        "History:\n"
        "  1. Nov 23 13:29:00  carol@example.com\n"
        "     delayed 4.4.1: connect to 127.0.0.1:2525: Connection refused\n"
        "  1. Nov 23 13:28:30  bob@example.net\n"
        "     relayed 2.0.0: taken\n"
        "     mx.example.net[192.0.2.1]:25, end of data, smtp; 250 2.0.0 ok\n"
        "  2. Nov 23 13:29:00  carol@example.com\n"
        "     delayed 4.4.1: connect to 127.0.0.1:2525: Connection refused\n"
        "  report of delay for carol@example.com\n"
    )
    assert message.startswith("Received: by h.example.org ")
    assert message.endswith("\nMessage-ID: <1@h.example.org>\n\nworld\n")
    assert "  bob@example.net: failed (5.1.1)\n" in show("0000000000000004").decode()
    assert "  root: not tried yet\n" in show("0000000000000001").decode()


def test_all_that_an_envelope_can_say(crafted, show):
    envelope = Envelope(
        "0000000000000002",
        b"tester@example.org",
        [Recipient(b"carol@example.com", b"root", "SUCCESS,FAILURE")],
        arrived=NOW - 183,
        uid=1000,
        login=b"tester",
        full_name="Tést Er".encode(),
        body="8BITMIME",
        ret="HDRS",
        envid="QQ314159",
    )
    with Queue(str(crafted.path), create=True) as queue:
        enqueue(queue.fd, envelope, [b"Subject: x\n\n"], 0)
    page = show("0000000000000002").decode().partition("Message:\n")[0]
    assert page.partition("From:")[2] == (
        "         tester@example.org\n"
        "Submitted by: tester (uid 1000)\n"
        "Full name:    Tést Er\n"
        "Body:         8BITMIME\n"
        "Return:       HDRS\n"
        "Envelope id:  QQ314159\n"
        "Recipients:\n"
        "  carol@example.com: not tried yet, for root, notify SUCCESS,FAILURE\n"
    )
    told = json.loads(show("--json", "0000000000000002"))
    assert told["envelope"] == {
        "sender": "tester@example.org",
        "recipients": [
            {
                "address": "carol@example.com",
                "original": "root",
                "notify": "SUCCESS,FAILURE",
                "state": "not tried yet",
                "status": "",
            }
        ],
        "uid": 1000,
        "login": "tester",
        "full_name": "Tést Er",
        "body": "8BITMIME",
        "ret": "HDRS",
        "envid": "QQ314159",
    }
    assert told["sent_as"] is None


def test_requeued_message_keeps_its_history(four, show):
    queue, entry = claimed(four, "0000000000000004")
    with queue, entry:
        entry.note_reported("failure 0")
        entry.requeue(NOW - 30)
    page = show("0000000000000004").decode().partition("Message:\n")[0]
    assert "Requeued:     Mon, 23 Nov 2026 13:29:30 +0000\n" in page
    assert page.partition("Recipients:\n")[2] == (
        "  bob@example.net: not tried yet\n"
        "History:\n"
        "  1. Nov 23 13:29:55  bob@example.net\n"
        "     failed 5.1.1: no such user\n"
        "  report of failure for bob@example.net\n"
        "  Nov 23 13:29:30  requeued for bob@example.net\n"
    )
    told = json.loads(show("--json", "0000000000000004"))
    assert (told["attempts"], told["requeued"], told["reports"], len(told["history"])) == (
        0,
        [int(NOW) - 30],
        [{"event": "failure", "recipients": ["bob@example.net"]}],
        1,
    )


def test_octets_are_those_that_go_out(crafted, show):
    """Bcc is gone, what was missing is there; the body is as it came, to the octet."""
    body = b"\x1b[31m\xff caf\xc3\xa9\r\nno end"
    crafted.add("0000000000000002", message=b"Subject: x\nBcc: secret@example.net\n\n" + body)
    header = show("--raw", "--headers", "0000000000000002")
    assert header == RECEIVED + b"Subject: x\n" + ADDED + b"\n"
    assert show("--raw", "0000000000000002") == header + body


def test_page_does_nothing_to_a_terminal(crafted, show):
    crafted.add(
        "0000000000000002",
        sender=b"a\x1b@e.org",
        recipients=(b"b\x07@e.org",),
        message=b"Subject: \x1b]0;x\x07\n\n\x1b[31m\xff\tcaf\xc3\xa9\r\nno\rend\x00",
    )
    out = show("0000000000000002")
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", out)
    assert b"\nSubject: ?]0;x?\n" in out
    assert out.endswith("\n\n?[31m\\xff\tcafé\nno\nend\n".encode())


def test_character_cut_between_two_pieces(crafted, show, monkeypatch):
    monkeypatch.setattr("minisend.spool.entry._PIECE", 3)
    monkeypatch.setattr("minisend.delivery.outgoing.HEADER_LIMIT", -4085)
    crafted.add("0000000000000002", message="a: b\n\néäö\r\nüé".encode())
    assert show("0000000000000002").decode().endswith("\n\néäö\nüé\n")


def test_headers_without_the_body(crafted, show):
    crafted.add("0000000000000002")
    out = show("--headers", "0000000000000002").decode()
    assert out.partition("Header:\n")[2] == (RECEIVED + b"Subject: hello\n" + ADDED).decode()


def test_json_header_is_unfolded(crafted, show):
    crafted.add("0000000000000002", message=b"Subject: a\n  b\nX-1: \n\nbody\n")
    told = json.loads(show("--json", "0000000000000002"))
    assert told["header"] == [
        [
            "Received",
            "by h.example.org (minisend, from userid 1000 (tester)) "
            "id 0000000000000002; Mon, 23 Nov 2026 13:26:57 +0000",
        ],
        ["Subject", "a  b"],
        ["X-1", ""],
        ["Date", "Mon, 23 Nov 2026 13:26:57 +0000"],
        ["From", "tester@example.org"],
        ["Message-ID", "<20261123132657.0000000000000002@h.example.org>"],
    ]


def test_several_messages(four, show):
    assert show("0000000000000001", "0000000000000004").count(b"Queue id:") == 2
    assert len(show("--json", "0000000000000001", "0000000000000004").splitlines()) == 2


def test_an_id_that_is_not_there_is_told_after_the_others(four, capfd):
    with pytest.raises(UsageError, match=r"^x, y: not in the queue \(see minisend queue\)$"):
        main(["show", "x", "0000000000000004", "y"], str(four.config))
    assert capfd.readouterr().out.startswith("Queue id:     0000000000000004\n")


def test_broken_file(crafted, show):
    crafted.add("0000000000000001")
    crafted.file("new", "0000000000000001").write_bytes(b"rubbish")
    out = show("0000000000000001").decode()
    assert out.endswith("Problem:      broken: it does not begin like a queue file\n")
    told = json.loads(show("--json", "0000000000000001"))
    assert (told["envelope"], told["header"], told["reports"]) == (None, None, [])
    with pytest.raises(DataError) as caught:
        main(["show", "--raw", "0000000000000001"], str(crafted.config))
    assert str(caught.value) == (
        f"{crafted.path}/queue/new/0000000000000001: broken: it does not begin like a queue file: "
        "look at the file itself, or remove it with minisend rm"
    )


def test_message_that_was_changed_is_not_shown_to_its_end(crafted):
    crafted.add("0000000000000001")
    file = crafted.file("new", "0000000000000001")
    file.write_bytes(file.read_bytes().replace(b"world", b"WORLD"))
    with pytest.raises(DataError, match="its message was changed after it was written"):
        main(["show", "--raw", "0000000000000001"], str(crafted.config))


def test_no_secret_is_read(crafted, show):
    """The file with the password is not even opened: it is not there."""
    crafted.config.write_text(
        crafted.config.read_text()
        + '[smarthost]\nhost = "mx.example.org"\nusername = "u"\npassword_file = "/nowhere/at/all"\n'
    )
    crafted.add("0000000000000002")
    assert b"nowhere" not in show("0000000000000002") + show("--json", "0000000000000002")


def test_states_of_recipients_in_json(crafted, show):
    crafted.add("0000000000000002", recipients=(b"a@e.org", b"b@e.org", b"c@e.org"))
    crafted.attempt(
        "0000000000000002",
        [
            Outcome(0, RELAYED, "2.0.0", "ok", at=NOW),
            Outcome(1, FAILED, "5.1.1", "no such user", at=NOW),
        ],
        state="hold",
    )
    told = json.loads(show("--json", "0000000000000002"))
    assert [(r["state"], r["status"]) for r in told["envelope"]["recipients"]] == [
        ("sent", "2.0.0"),
        ("failed", "5.1.1"),
        ("not tried yet", ""),
    ]
