"""minisend show: all that is known of a message, and the message itself.

    page (default)   state and envelope, each recipient with how it stands, what was done so far, the message
    --headers        the same without the body of the message
    --raw            the octets of the message alone; with --headers its header alone
    --json           one JSON object a line, without the body; keys below

The message is shown as it goes out: header completed, Bcc gone, the same octets at every attempt.  Of one that was
never attempted it is what an attempt would send now.  --raw writes them as they are, LF line ends in the header; the
page is text, with ``?`` for what a terminal would act on and ``\\xHH`` for what is not UTF-8.

Never changes anything, and asks nobody: passwords are read by an attempt alone, and no file of the queue holds one.

JSON has the keys of ``minisend queue --json``, history included, and these:

    envelope             sender ("" is the null reverse-path), uid, login, full_name, body, ret, envid; and recipients,
                         all of them: address, original, notify, state (as on the page), status
    sent_as              hostname, mail_domain and message_id of the first attempt; null before
    reports              those queued: event (failure | delay | success) and recipients
    requeued             seconds since the epoch, each time that the message was requeued
    header               [name, value] of each field as it goes out, in order; null where the file is broken
"""

import codecs
import json
import time
from collections.abc import Iterable
from typing import Any

from minisend.admin.listing import Listed, Reasons, named, open_queue
from minisend.admin.queue import COLOURS, as_object, next_attempt, not_there, outcomes
from minisend.admin.terminal import BOLD, DIM, Paint, printable, write, write_octets
from minisend.config.sections import Config
from minisend.delivery.outgoing import Outgoing
from minisend.envelope import FAILED, Outcome
from minisend.errors import DataError
from minisend.message.header import split
from minisend.smtp.wire import crlf
from minisend.spool.entry import Entry
from minisend.spool.record import BrokenRecord, Requeue, parse_ranges


def show(config: Config, ids: tuple[str, ...], *, headers: bool, raw: bool, as_json: bool) -> int:
    """Write these messages to standard output.

    Raises UsageError for an id that is not there, after the others; DataError where a message cannot be read to its
    end; SpoolError, SystemFault, BrokenPipeError.
    """
    missing = []
    queue = open_queue(config.spool.path)
    if queue is None:
        raise not_there(ids)
    with queue:
        shown = 0
        for queue_id, listed in named(queue, ids, Reasons(lambda: config)):
            if listed is None:
                missing.append(queue_id)
                continue
            try:
                if raw:
                    _write_raw(listed, config, headers=headers)
                elif as_json:
                    write(1, json.dumps(_object(listed, config)) + "\n")
                else:
                    write(1, "\n" if shown else "")
                    _write_page(listed, config, headers=headers)
            except BrokenRecord as exc:
                raise _broken(listed, config, str(exc)) from exc
            shown += 1
    if missing:
        raise not_there(missing)
    return 0


def _broken(listed: Listed, config: Config, why: str) -> DataError:
    place = listed.place
    return DataError(
        f"{config.spool.path}/queue/{place.state}/{printable(place.name)}: {why}: "
        "look at the file itself, or remove it with minisend rm"
    )


# -- the octets


def _write_raw(listed: Listed, config: Config, *, headers: bool) -> None:
    if listed.entry is None:
        raise _broken(listed, config, listed.problem)
    outgoing = Outgoing(listed.entry, config)
    for octets in [outgoing.header] if headers else outgoing.octets():
        write_octets(1, octets)


def _write_text(pieces: Iterable[bytes]) -> None:
    """Octets as text that does nothing to a terminal; it ends with a line end."""
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    for piece in crlf(pieces):
        write(1, _safe(decoder.decode(piece.replace(b"\r\n", b"\n"))))
    write(1, decoder.decode(b"", final=True))


def _safe(text: str) -> str:
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else "?" for c in text)


# -- the page


def _write_page(listed: Listed, config: Config, *, headers: bool) -> None:
    paint = Paint(1)
    write(1, _facts(listed, time.time(), paint))
    entry = listed.entry
    if entry is None:
        return
    write(1, _recipients(listed, entry, paint))
    if entry.history:
        write(1, paint(BOLD, "History:") + "\n")
    for event in entry.history:
        write(1, _event(listed, event, paint))
    outgoing = Outgoing(entry, config)
    write(1, paint(BOLD, "Header:" if headers else "Message:") + "\n")
    _write_text([outgoing.header.removesuffix(b"\n")] if headers else outgoing.octets())


def _facts(listed: Listed, now: float, paint: Paint) -> str:
    state = paint(COLOURS[listed.state], listed.state)
    if listed.queue_name == "active":
        state += ", under way"
    facts = [
        ("Queue id", printable(listed.place.queue_id)),
        ("State", state),
        ("Arrived", _date(listed.arrived)),
        ("Size", f"{listed.size} octets"),
        ("Next attempt", next_attempt(listed, now)),
    ]
    entry = listed.entry
    if entry is None:
        facts.append(("Problem", printable(listed.problem)))
    else:
        envelope = entry.envelope
        if entry.since != envelope.arrived:
            facts.insert(3, ("Requeued", _date(entry.since)))
        facts.append(("From", listed.sender))
        submitter = f"{printable(envelope.login)} (uid {envelope.uid})"
        facts.append(("Submitted by", "minisend, a report" if envelope.uid < 0 else submitter))
        facts += [
            (name, printable(value))
            for name, value in (
                ("Full name", envelope.full_name),
                ("Body", envelope.body),
                ("Return", envelope.ret),
                ("Envelope id", envelope.envid),
                ("Sent by", entry.facts.hostname if entry.facts else b""),
            )
            if value
        ]
    return "".join(paint(BOLD, f"{name + ':':14}") + f"{value}\n" for name, value in facts)


def _recipients(listed: Listed, entry: Entry, paint: Paint) -> str:
    text = paint(BOLD, "Recipients:") + "\n"
    for index, recipient in enumerate(entry.envelope.recipients):
        outcome = listed.outcome(index)
        status = f" ({printable(outcome.status)})" if outcome else ""
        asked = [
            f"{word} {printable(value)}"
            for word, value in (("for", recipient.original), ("notify", recipient.notify))
            if value
        ]
        extra = paint(DIM, f", {', '.join(asked)}") if asked else ""
        text += f"  {listed.address(index)}: {_fate(listed.state, outcome)}{status}{extra}\n"
        if outcome and index not in entry.latest:
            # Of no attempt of its own: its destination is down.
            why = f"{printable(outcome.reason)} ({_moment(outcome.at)})"
            text += "     " + paint(DIM, why) + "\n"
    return text


def _event(listed: Listed, event: "tuple[int, Outcome] | str | Requeue", paint: Paint) -> str:
    if isinstance(event, Requeue):
        return f"  {_moment(event.at)}  requeued for {_addresses(listed, event.recipients)}\n"
    if isinstance(event, str):
        word, recipients = _report(listed, event)
        return f"  report of {word} for {', '.join(recipients)}\n"
    attempt, outcome = event
    text = f"  {attempt}. {_moment(outcome.at)}  {listed.address(outcome.recipient)}\n"
    text += f"     {outcome.action} {printable(outcome.status)}: {printable(outcome.reason)}\n"
    said = [outcome.remote_mta, outcome.command, outcome.diagnostic]
    if any(said):
        text += "     " + paint(DIM, ", ".join(printable(part) for part in said if part)) + "\n"
    return text


def _addresses(listed: Listed, indexes: Iterable[int]) -> str:
    return ", ".join(map(listed.address, indexes))


def _report(listed: Listed, note: str) -> tuple[str, list[str]]:
    """What a report tells of, and its recipients, from the note of ``delivery.bounce``."""
    word, _, ranges = note.partition(" ")
    count = len(listed.entry.envelope.recipients) if listed.entry else 0
    try:
        indexes = parse_ranges(ranges.encode("ascii"), count)
    except ValueError as exc:
        raise BrokenRecord("a report names no recipients") from exc
    return printable(word), [listed.address(index) for index in indexes]


def _fate(state: str, outcome: Outcome | None) -> str:
    """A recipient's standing, in the words of the queue."""
    if outcome is None:
        return "not tried yet"
    if outcome.action == FAILED:
        return "failed"
    return "sent" if outcome.final else state


def _date(when: float) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S %z", time.localtime(when))


def _moment(when: float) -> str:
    return time.strftime("%b %d %H:%M:%S", time.localtime(when))


# -- JSON


def _object(listed: Listed, config: Config) -> dict[str, Any]:
    told = {**as_object(listed), "history": outcomes(listed)}
    entry = listed.entry
    if entry is None:
        return {
            **told,
            "envelope": None,
            "sent_as": None,
            "reports": [],
            "requeued": [],
            "header": None,
        }
    envelope, facts = entry.envelope, entry.facts
    told["envelope"] = {
        "sender": printable(envelope.sender),
        "recipients": [
            _recipient(listed, entry, index) for index in range(len(envelope.recipients))
        ],
        "uid": envelope.uid,
        "login": printable(envelope.login),
        "full_name": printable(envelope.full_name),
        "body": printable(envelope.body),
        "ret": printable(envelope.ret),
        "envid": printable(envelope.envid),
    }
    told["sent_as"] = facts and {
        "hostname": printable(facts.hostname),
        "mail_domain": printable(facts.mail_domain),
        "message_id": printable(facts.message_id),
    }
    notes = [event for event in entry.history if isinstance(event, str)]
    told["reports"] = [
        {"event": word, "recipients": recipients}
        for word, recipients in (_report(listed, note) for note in notes)
    ]
    told["requeued"] = [int(event.at) for event in entry.history if isinstance(event, Requeue)]
    header = Outgoing(entry, config).header
    told["header"] = [
        [printable(field.name), printable(_unfolded(field.value))]
        for field in split(header, complete=True).fields
    ]
    return told


def _recipient(listed: Listed, entry: Entry, index: int) -> dict[str, str]:
    recipient = entry.envelope.recipients[index]
    outcome = listed.outcome(index)
    return {
        "address": printable(recipient.address),
        "original": printable(recipient.original),
        "notify": printable(recipient.notify),
        "state": _fate(listed.state, outcome),
        "status": printable(outcome.status) if outcome else "",
    }


def _unfolded(value: bytes) -> bytes:
    """RFC 5322 section 2.2.3: without the line ends, which white space follows; a tab is a space."""
    return value.replace(b"\n", b"").replace(b"\t", b" ").strip()
