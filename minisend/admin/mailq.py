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

from minisend.admin.listing import Listed, clock, messages, open_queue
from minisend.admin.terminal import printable, write
from minisend.config import submission_facts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minisend.envelope import Outcome

_LINE = "%-17s %8s %-19s %s\n"
_HEADINGS = ("----Queue ID-----", "--Size--", "---Arrival Time----", "--Sender/Recipient------")
_REASON_WIDTH = 76


def mailq(config_file: str | None) -> int:
    """List the queue on standard output.  Raises ConfigError, SpoolError, SystemFault."""
    facts = submission_facts(config_file, posix.environ, posix.getuid(), posix.geteuid())
    try:
        _list(facts.spool_path)
    except BrokenPipeError:
        pass  # "mailq | head": the reader has all it wants
    return 0


def _list(spool: str) -> None:
    now = time.time()
    count = octets = 0
    queue = open_queue(spool)
    if queue is not None:
        with queue:
            for listed in messages(queue):
                write(
                    1, (_block(listed, now) if count else _LINE % _HEADINGS + _block(listed, now))
                )
                count += 1
                octets += listed.size
    if count:
        plural = "" if count == 1 else "s"
        write(
            1,
            f"\t\tTotal requests: {count}\n-- {octets // 1024} Kbytes in {count} Request{plural}.\n",
        )
    else:
        write(1, "\t\tTotal requests: 0\nMail queue is empty\n")


def _block(listed: Listed, now: float) -> str:
    """The lines of one message and the empty line after them."""
    arrived = time.strftime("%a %b %e %H:%M:%S", time.localtime(listed.arrived))
    queue_id = printable(listed.place.queue_id) + listed.marker
    lines = [_LINE % (queue_id, listed.size, arrived, listed.sender or "-")]
    shown = ""
    if listed.problem:
        lines.append(_reason_line(printable(listed.problem)))
    for index, outcome in listed.open_recipients():
        reason = _reason(listed, outcome, now)
        if reason != shown:
            lines.append(_reason_line(reason or "not tried yet"))
            shown = reason
        lines.append(_LINE % ("", "", "", listed.address(index)))
    lines.append("\n")
    return "".join(lines)


def _reason_line(reason: str) -> str:
    return f"({reason})\n".rjust(_REASON_WIDTH + 3)


def _reason(listed: Listed, outcome: "Outcome | None", now: float) -> str:
    """Why a recipient waits and when it is tried next, "" for one that was never tried and may be at any time."""
    parts = [printable(outcome.reason)] if outcome is not None else []
    if listed.state == "hold":
        parts.append("held")
    elif listed.state == "failed":
        parts.append(
            "failed" if outcome is not None and outcome.final else "will not be tried again"
        )
    elif listed.state == "deferred" and listed.queue_name != "active":
        due = listed.place.due
        parts.append(f"next attempt {clock(due, now)}" if due > now else "due now")
    return "; ".join(parts)
