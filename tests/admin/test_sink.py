"""The demo's server against the standard library's client."""

import smtplib

import pytest

from minisend.admin.sink import Received, Sink


def test_messages_as_they_were_sent_each_with_its_envelope():
    with Sink(b"server.example") as sink:
        with smtplib.SMTP("127.0.0.1", sink.port, timeout=20) as client:
            client.sendmail(
                "a@example.org", ["b@example.net", "c@example.net"], b"X: 1\r\n\r\n.\r\n..\r\n"
            )
            client.mail("gone@example.org")
            client.rcpt("gone@example.net")
            client.rset()
            client.sendmail("", ["d@example.net"], b"")
        with smtplib.SMTP("127.0.0.1", sink.port, timeout=20) as client:
            client.sendmail("e@example.org", ["f@example.net"], b"x\r\n")
        assert sink.received == [
            Received(
                b"a@example.org", (b"b@example.net", b"c@example.net"), b"X: 1\r\n\r\n.\r\n..\r\n"
            ),
            Received(b"", (b"d@example.net",), b"\r\n"),
            Received(b"e@example.org", (b"f@example.net",), b"x\r\n"),
        ]


def test_client_that_leaves_in_the_middle_of_a_message_has_left_nothing():
    with Sink(b"server.example") as sink:
        client = smtplib.SMTP("127.0.0.1", sink.port, timeout=20)
        client.ehlo()
        client.mail("a@example.org")
        client.rcpt("b@example.net")
        client.docmd("DATA")
        client.send(b"half a message\r\n")
        client.close()
        with smtplib.SMTP("127.0.0.1", sink.port, timeout=20) as second:
            second.noop()
        assert sink.received == []


def test_it_ends_with_a_client_still_connected():
    with Sink(b"server.example") as sink:
        client = smtplib.SMTP("127.0.0.1", sink.port, timeout=20)
    with pytest.raises(smtplib.SMTPServerDisconnected):
        client.noop()
    client.close()
    with pytest.raises(OSError, match="refused"):
        smtplib.SMTP("127.0.0.1", sink.port, timeout=20)
