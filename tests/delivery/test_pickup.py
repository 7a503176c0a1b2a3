"""Who flushes or serves the queue brings in what lies in the drop directory, says so, and goes on whatever is wrong there."""

import os

import pytest
from delivery.scripted import ScriptedServer
from delivery.spooled import Lines, to_smarthost
from spool.system import ANN, MESSAGE, OURS, System

from minisend.config.sections import Config, Limits, Submission
from minisend.delivery.flush import Selection, Stop, flush
from minisend.delivery.pickup import Pickup
from minisend.delivery.serve import serve
from minisend.log import parse
from minisend.spool.enqueue import new_queue_id

ID = b"0123456789abcdef"


def configured(system: System, port: int = 1, **limits: int) -> Config:
    config = to_smarthost(system.spool, port)
    config.submission = Submission(drop=system.drop)
    config.limits = Limits(**limits)
    return config


def as_ours(system: System, action, port: int = 1, **limits: int):
    """What ``action`` returns as the delivering account, and the lines that were logged meanwhile, by level."""

    def run():
        log = Lines()
        result = action(configured(system, port, **limits), log)
        return result, [(level, dict(parse(text).fields)) for level, text in log.lines]

    return system.as_user(OURS, run)


def test_a_flush_brings_it_in_and_delivers_it(system: System) -> None:
    system.put(ANN, ID)
    with ScriptedServer(lambda command: None) as server:
        summary, lines = as_ours(
            system, lambda config, log: flush(config, Selection(), log=log), server.port
        )
    assert (summary.tried, summary.delivered) == (1, 1), lines
    assert [message.recipients for message in server.messages] == [(b"bob@example.net",)]
    assert lines[0] == (
        "info",
        {"event": "ingested", "claimed_uid": str(ANN), "size": str(len(MESSAGE))},
    )
    assert system.leaf("new") == []


def test_who_serves_brings_it_in_and_delivers_it(system: System) -> None:
    system.put(ANN, ID)
    with ScriptedServer(lambda command: None) as server:
        summary, lines = as_ours(
            system,
            lambda config, log: serve(config, log=log, stop=Stop(), exit_idle=0.0),
            server.port,
        )
    assert (summary.tried, summary.delivered) == (1, 1), lines
    assert len(server.messages) == 1
    assert "ingested" in [fields["event"] for _, fields in lines if "event" in fields]


def look(config: Config, log: Lines) -> bool:
    return Pickup(config, log).look()


def test_what_stays_is_a_warning_without_its_name(system: System) -> None:
    name = f"{system.drop}/new/a name\nof a game"
    with open(name, "wb"):
        pass
    came, lines = as_ours(system, look)
    assert not came
    assert lines == [
        (
            "warning",
            {
                "event": "drop",
                "directory": f"{system.drop}/new",
                "count": "1",
                "reason": "its name is none of a message",
            },
        )
    ]
    assert as_ours(system, look) == (False, [])


def test_what_is_over_a_limit_says_which(system: System) -> None:
    for _ in range(3):
        system.put(ANN)
    came, lines = as_ours(system, look, messages_per_uid=2)
    assert came
    [fields] = [fields for level, fields in lines if level == "warning"]
    assert (fields["count"], fields["reason"]) == ("1", "over a limit of its user")
    assert "messages_per_uid is 2" in fields["detail"]
    # those in the queue count from then on
    assert as_ours(system, look, messages_per_uid=2) == (False, [])
    assert len(system.leaf("new")) == 1


def test_a_copy_is_told_of(system: System) -> None:
    original = f"{system.drop}/new/{ID.hex()}"
    system.put(ANN, ID)
    os.link(original, f"{system.top}/kept")
    assert as_ours(system, look)[0]
    os.rename(f"{system.top}/kept", original)
    came, lines = as_ours(system, look)
    assert not came
    assert lines == [("info", {"event": "duplicate", "reason": "its copy in the drop is removed"})]


def test_a_directory_that_is_not_as_it_must_be_keeps_nobody_from_delivering(system: System) -> None:
    system.put(ANN)
    as_ours(system, look)
    os.chmod(f"{system.drop}/new", 0o733)
    with ScriptedServer(lambda command: None) as server:
        summary, lines = as_ours(
            system, lambda config, log: flush(config, Selection(), log=log), server.port
        )
    assert summary.delivered == 1
    assert lines[0][0] == "error"
    assert "anybody can remove what is in it: chmod 3733 it" in str(lines[0][1]["reason"])


@pytest.mark.parametrize("drop", [None, "/nowhere"])
def test_none(system: System, drop: str | None) -> None:
    config = configured(system)
    config.submission = Submission(drop=drop)
    log = Lines()
    assert not Pickup(config, log).look()
    assert log.lines == []


def test_it_is_looked_at_again_when_something_came(system: System) -> None:
    def looks(config: Config, log: Lines) -> list[bool]:
        pickup = Pickup(config, log)
        found = [pickup.look() for _ in range(3)]
        os.rename(f"{system.top}/later/{ID.hex()}", f"{system.drop}/new/{ID.hex()}")
        found.append(pickup.look())
        return found

    system.put(ANN, ID)
    os.mkdir(f"{system.top}/later")
    os.rename(f"{system.drop}/new/{ID.hex()}", f"{system.top}/later/{ID.hex()}")
    for path in (f"{system.top}/later", f"{system.top}/later/{ID.hex()}"):
        os.chown(path, OURS, -1)
    found, lines = as_ours(system, looks)
    assert found == [False, False, False, True]
    assert len(lines) == 1
    assert new_queue_id(ID) in os.listdir(f"{system.spool}/queue/new")
