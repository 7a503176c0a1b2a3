"""Which messages the filters of queue, rm, hold, release and requeue take."""

import json

import pytest

from minisend.admin.command import main
from minisend.envelope import FAILED, RELAYED, Facts, Outcome

NOW = 1795440600.0
HOUR = 3600


@pytest.fixture
def chosen(crafted, capfd):
    """The last digits of the ids that ``minisend queue`` lists with these options."""
    crafted.config.write_text('mail_domain = "example.org"\n' + crafted.config.read_text())

    def run(*options):
        capfd.readouterr()
        assert main(["queue", "--json", *options], str(crafted.config)) == 0
        out, err = capfd.readouterr()
        assert err == ""
        return "".join(json.loads(line)["queue_id"][-1] for line in out.splitlines())

    return run


@pytest.mark.parametrize(
    ("word", "found"),
    [("new", "1"), ("deferred", "2"), ("cur", "2"), ("hold", "3"), ("held", "3"), ("failed", "4")],
)
def test_state(four, chosen, word, found):
    assert chosen("--state", word) == found


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("bob@example.net", "1"),
        ("BOB@Example.NET", "1"),
        ("bob@*", "1"),
        ("b?b@example.net", "1"),
        ("*@example.net", "1"),
        ("example.net", "1"),
        ("ob@example.net", ""),
        ("example", ""),
        ("*.net", "1"),
        ("*", "123456"),
        ("*@*", "123456"),
        ("root", "2"),
        ("root@example.org", "2"),
        ("example.org", "2"),
        ("r*", "2"),
        ("[192.0.2.1]", "3"),
        ("*@[192.0.2.?]", "3"),
        ("bücher.example", "45"),
        ("BÜCHER.example", "45"),
        ("xn--bcher-kva.example", "45"),
        ("a@xn--bcher-kva.example", "4"),
        ("b@bücher.example", "5"),
        ("b*ch*.example", "4"),
        ("\udcff@e.org", "6"),
        ("carol@example.com", ""),
    ],
)
def test_recipient(crafted, chosen, pattern, found):
    for number, address in enumerate(
        (
            b"bob@example.net",
            b"root",
            b"x@[192.0.2.1]",
            "a@bücher.example".encode(),
            b"b@xn--bcher-kva.example",
            b"\xff@e.org",
        ),
        1,
    ):
        crafted.add(f"000000000000000{number}", recipients=(address,))
    assert chosen("--recipient", pattern) == found


def test_recipients_that_are_served_do_not_count(crafted, chosen):
    for number in (1, 2):
        crafted.add(f"000000000000000{number}", recipients=(b"a@e.org", b"b@e.org", b"c@e.org"))
        crafted.attempt(
            f"000000000000000{number}",
            [
                Outcome(0, RELAYED, "2.0.0", "ok", at=NOW),
                Outcome(1, FAILED, "5.1.1", "no such user", at=NOW),
            ],
            until=NOW + 60 if number == 1 else 0,
            state="failed" if number == 2 else "",
        )
    assert [chosen("--recipient", f"{name}@e.org") for name in "abc"] == ["", "2", "12"]


def test_a_bare_name_has_the_domain_that_its_first_attempt_gave_it(crafted, chosen):
    from minisend.spool.store import Queue

    crafted.add("0000000000000001", recipients=(b"root",))
    with Queue(str(crafted.path)) as queue:
        entry = queue.claim(next(queue.places("new")))
        assert entry is not None
        with entry:
            entry.keep_facts(Facts(b"h", b"old.example", b"", b"<1@h>"))
            entry.note_reported("delay 0")
    assert chosen("--recipient", "old.example") == "1"
    assert chosen("--recipient", "example.org") == ""


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("tester@example.org", "1"),
        ("example.org", "13"),
        ("daemon", "3"),
        ("<>", "2"),
        ("MAILER-DAEMON", "2"),
        ("*", "123"),
        ("*@*", "13"),
    ],
)
def test_sender(crafted, chosen, pattern, found):
    for number, sender in enumerate((b"tester@example.org", b"", b"daemon"), 1):
        crafted.add(f"000000000000000{number}", sender=sender)
    assert chosen("--sender", pattern) == found


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--older-than", "2h"), "23"),
        (("--younger-than", "2h"), "1"),
        (("--older-than", "90s", "--younger-than", "1d"), "12"),
        (("--older-than", "0s"), "123"),
        (("--younger-than", "0s"), ""),
        (("--older-than", "7201s"), "3"),
        (("--older-than", "999999999d"), ""),
    ],
)
def test_age(crafted, chosen, options, found):
    for number, age in ((1, HOUR), (2, 2 * HOUR), (3, 48 * HOUR)):
        crafted.add(f"000000000000000{number}", arrived=NOW - age)
    assert chosen(*options) == found


def test_all_must_hold(four, chosen):
    options = ("--sender", "tester@*", "--state", "hold", "--older-than", "1m")
    assert chosen(*options, "--recipient", "bob@*") == "3"
    assert chosen(*options, "--recipient", "carol@*") == ""


def test_what_cannot_be_read_has_an_age_and_no_addresses(crafted, chosen):
    import os

    crafted.add("0000000000000001")
    crafted.file("new", "0000000000000001").write_bytes(b"rubbish")
    os.utime(crafted.file("new", "0000000000000001"), (NOW - HOUR, NOW - HOUR))
    assert chosen("--older-than", "30m") == "1"
    assert chosen("--recipient", "*") == chosen("--sender", "*") == ""


def test_table_says_that_nothing_matches(four, capfd):
    assert main(["queue", "--sender", "nobody@*"], str(four.config)) == 0
    assert capfd.readouterr() == ("no message matches\n", "")
