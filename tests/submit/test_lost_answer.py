"""What a submission says when no way took its message."""

import os

import pytest
from spool.make import MESSAGE, envelope

from minisend.config.submission import submission_facts
from minisend.errors import SpoolError
from minisend.spool import client
from minisend.submit.handover import hand_over


@pytest.mark.parametrize("drop", [True, False], ids=["and no drop", "and none named"])
@pytest.mark.parametrize("message", [MESSAGE, b"x" * 2_000_000], ids=["small", "large"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_an_answer_that_was_lost(tmp_path, monkeypatch, kept, message, drop):
    """75 says that nothing was kept; where that is not known, it says so."""

    def submit(*_: object, **__: object) -> str:
        raise client.Lost("closed by the other side", kept=kept)

    monkeypatch.setattr(client, "submit", submit)
    # Another account's: not the caller's own queue.
    spool = f"{tmp_path}/spool"
    monkeypatch.setattr("minisend.submit.handover.is_own", lambda path: False)
    config = tmp_path / "config.toml"
    config.write_text(
        f'[spool]\npath = "{spool}"\n[submission]\nsocket = "/no.sock"\n'
        + (f'drop = "{spool}/drop"\n' if drop else "drop = false\n")
    )
    facts = submission_facts(str(config), {}, os.getuid(), os.geteuid())
    with pytest.raises(SpoolError) as caught:
        hand_over(facts, bytes(16), envelope(), [message], len(message), later=False)
    assert caught.value.exit_code == 75
    first = str(caught.value).partition("; ")[0]
    lost = "/no.sock: closed by the other side"
    assert first == (f"{lost}: it may have been queued" if kept else lost)
