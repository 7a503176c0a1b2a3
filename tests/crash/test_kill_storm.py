"""kill -9 of submitters and flushers at random moments: the short form of tests/soak/kill_storm.py, which says what is asserted."""

import random

import pytest
from soak.kill_storm import WINDOW, Plan, Storm, Taken, sessions, unexplained

pytestmark = [pytest.mark.crash, pytest.mark.peer]


@pytest.mark.parametrize("service", [False, True], ids=["flush", "service"])
def test_storm(tmp_path, service):
    plan = Plan(
        messages=60,
        submitters=4,
        flushers=2,
        seconds=5.0,
        every=0.2,
        service=service,
        seed=random.randrange(1 << 32),
    )
    counts = Storm(plan, tmp_path).run()
    # pytest shows it for a test that fails, with the seed.
    print(counts.plan, counts, sep="\n")
    assert counts.arrived == plan.messages
    # Chance decides which kind; a submission is over so soon that in a storm this short none may be met.
    assert counts.killed["flusher"]


def test_what_was_cut_is_read_from_the_log():
    log = "".join(
        f"Nov 24 00:32:26 mail postfix/{line}\n"
        for line in (
            "master[6]: daemon started",
            "smtpd[7]: connect from unknown[127.0.0.1]",
            "smtpd[7]: 4jYNv56Ml6zJY33: client=unknown[127.0.0.1]",
            "smtpd[8]: connect from unknown[127.0.0.1]",
            "cleanup[9]: 4jYNv56Ml6zJY33: message-id=<1@here.test>",
            "smtpd[8]: 4jYNv56Ml6zJY34: client=unknown[127.0.0.1]",
            "smtpd[8]: lost connection after END-OF-MESSAGE from unknown[127.0.0.1]",
            "smtpd[8]: disconnect from unknown[127.0.0.1] ehlo=1 mail=1 rcpt=1 data=1 commands=4",
            "smtpd[7]: 4jYNv56Ml6zJY35: client=unknown[127.0.0.1]",
            "smtpd[8]: connect from unknown[127.0.0.1]",
            "smtpd[7]: disconnect from unknown[127.0.0.1] ehlo=1 mail=2 rcpt=2 data=2 quit=1 commands=8",
        )
    )
    assert sessions(log) == (
        [Taken(["4jYNv56Ml6zJY34"], cut=True), Taken(["4jYNv56Ml6zJY33", "4jYNv56Ml6zJY35"])],
        [Taken()],
    )


@pytest.mark.parametrize(
    ("copies", "wrong"),
    [
        pytest.param(["whole 1"], set(), id="once"),
        pytest.param(["cut last", "whole 1"], set(), id="in flight when it was cut"),
        pytest.param(["cut last", "cut too", "whole 1"], set(), id="twice in flight"),
        pytest.param(["cut first", "whole 1"], {"cut first"}, id="long recorded when it was cut"),
        pytest.param(["whole 1", "whole 2"], {"whole 1"}, id="nothing was cut"),
        pytest.param(["whole 1", "cut last"], {"whole 1"}, id="it was cut later"),
    ],
)
def test_a_copy_too_many_was_in_flight(copies, wrong):
    after = [f"{number}" for number in range(WINDOW - 1)]
    taken = [
        Taken(["cut first", *after, "cut last"], cut=True),
        Taken(["cut too"], cut=True),
        Taken(["whole 1", "whole 2"]),
    ]
    assert unexplained(copies, taken) == wrong
