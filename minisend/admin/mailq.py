"""mailq, which is also ``sendmail -bp``: what waits, why, and until when, in the layout that other programs read.

The layout is that of Postfix with long queue ids, to the column, and sendmail's line with the number of requests
before the last line, which satisfies both kinds of readers (Nagios' check_mailq among them):

    ----Queue ID----- --Size-- ---Arrival Time---- --Sender/Recipient------
    1f2e3d4c5b6a7988       304 Mon Nov 23 13:26:57 tester@example.org
            (connect to 127.0.0.1:2525: Connection refused; next attempt 14:05)
                                                   carol@example.com

                Total requests: 1
    -- 0 Kbytes in 1 Request.

Behind a queue id stands ``*`` for a message that a process is working on, ``!`` for one that is held, ``#`` for one
that failed.  Only recipients that still wait are shown, and of a failed message those that failed.

Never changes anything.  Returns 0 also when mail waits: readers take another code for a broken mail system.

Source: Postfix src/postqueue/showq_compat.c; sendmail(8).
"""

import posix
import time

from minisend.admin.listing import Listed, Reasons, clock, messages, open_queue
from minisend.admin.owner import become_owner
from minisend.admin.terminal import Batch, printable
from minisend.config.load import load
from minisend.config.submission import submission_facts
from minisend.errors import ConfigError
from minisend.spool.place import is_own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from minisend.config.sections import Config
    from minisend.config.submission import SubmissionFacts
    from minisend.envelope import Outcome

_LINE = "%-17s %8s %-19s %s\n"
_HEADINGS = ("----Queue ID-----", "--Size--", "---Arrival Time----", "--Sender/Recipient------")
_REASON_WIDTH = 76


def mailq(config_file: str | None) -> int:
    """List the queue on standard output.  Raises ConfigError, SpoolError, SystemFault."""
    facts = submission_facts(config_file, posix.environ, posix.getuid(), posix.geteuid())
    try:
        with Batch(1) as out:
            _list(_waiting(facts, Reasons(lambda: _config(config_file))), out)
    except BrokenPipeError:
        pass  # "mailq | head": the reader has all it wants
    return 0


def _config(config_file: str | None) -> "Config | None":
    """None where it has a mistake: a list without some of the reasons is better than none."""
    try:
        return load(config_file, posix.environ, posix.getuid(), posix.geteuid())
    except ConfigError:
        return None


def _waiting(facts: "SubmissionFacts", reasons: Reasons) -> "Iterator[Listed]":
    """The queue's messages, or the caller's own where it is another account's."""
    become_owner(facts.spool_path)
    if facts.socket and not is_own(facts.spool_path):
        from minisend.admin.served import messages as own

        yield from own(facts.socket)
        return
    queue = open_queue(facts.spool_path)
    if queue is not None:
        with queue:
            yield from messages(queue, reasons=reasons)


def _list(waiting: "Iterator[Listed]", out: Batch) -> None:
    until = _Until(time.time())
    count = octets = 0
    for listed in waiting:
        block = _block(listed, until)
        out.add(block if count else _LINE % _HEADINGS + block)
        count += 1
        octets += listed.size
    if count:
        plural = "" if count == 1 else "s"
        out.add(
            f"\t\tTotal requests: {count}\n-- {octets // 1024} Kbytes in {count} Request{plural}.\n"
        )
    else:
        out.add("\t\tTotal requests: 0\nMail queue is empty\n")


class _Until:
    """Says when a message is tried next; many are tried in the same minute."""

    __slots__ = ("_known", "_now")

    def __init__(self, now: float) -> None:
        self._now = now
        self._known: dict[float, str] = {}

    def __call__(self, due: float) -> str:
        if due <= self._now:
            return "due now"
        minute = due // 60
        text = self._known.get(minute)
        if text is None:
            text = self._known[minute] = f"next attempt {clock(due, self._now)}"
        return text


def _block(listed: Listed, until: _Until) -> str:
    """The lines of one message and the empty line after them."""
    arrived = time.strftime("%a %b %e %H:%M:%S", time.localtime(listed.arrived))
    queue_id = printable(listed.place.queue_id) + listed.marker
    lines = [_LINE % (queue_id, listed.size, arrived, listed.sender or "-")]
    shown = ""
    if listed.problem:
        lines.append(_reason_line(printable(listed.problem)))
    for index, outcome in listed.open_recipients():
        reason = _reason(listed, outcome, until)
        if reason != shown:
            lines.append(_reason_line(reason or "not tried yet"))
            shown = reason
        lines.append(_LINE % ("", "", "", listed.address(index)))
    lines.append("\n")
    return "".join(lines)


def _reason_line(reason: str) -> str:
    return f"({reason})\n".rjust(_REASON_WIDTH + 3)


def _reason(listed: Listed, outcome: "Outcome | None", until: _Until) -> str:
    """Why a recipient waits and when it is tried next, "" for one that was never tried and may be at any time."""
    parts = [printable(outcome.reason)] if outcome is not None else []
    if listed.state == "hold":
        parts.append("held")
    elif listed.state == "failed":
        parts.append(
            "failed" if outcome is not None and outcome.final else "will not be tried again"
        )
    elif listed.state == "deferred" and listed.queue_name != "active":
        parts.append(until(listed.place.due))
    return "; ".join(parts)
