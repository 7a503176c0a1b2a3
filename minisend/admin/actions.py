"""minisend rm, hold, release, requeue: what an administrator does to messages, each under its lock.

    command   is about                  a message then                                    one of another state
    rm        any                       is gone, nobody is told                           -
    hold      new, deferred             is left alone by every delivery                   failed: refused
    release   hold                      is due at once, as it was                         refused
    requeue   deferred, hold, failed    is due at once, no attempt made, lifetime anew;   new: due already
                                        of failed ones those who failed are tried again

Messages are named by their ids, or chosen: --all, or filters.  Chosen ones are found first and then taken one by one;
whichever has meanwhile gone, or has moved to a state that the command is not about, is passed over.  ``rm`` of chosen
ones asks first when standard input is a terminal, as rm -i does; elsewhere it acts, as ``postsuper -d ALL`` does.

A message that another process is working on is left to it and reported, "try again": EX_TEMPFAIL.  ``rm`` also removes
what cannot be read as a message.  Each change is logged with the user who made it.

    exit    the first that applies
    75      a message is being delivered, or the disk refused
    64      an id is not in the queue, or its message is not one that the command is about
    1       the question was not answered with yes
    0       done, or there was nothing to do

Source: Postfix postsuper(1).
"""

import posix
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from minisend.admin.filters import Filter
from minisend.admin.listing import STATES, find, messages, open_queue, places
from minisend.admin.progress import Progress
from minisend.admin.queue import messages_in_words
from minisend.admin.terminal import printable, write
from minisend.config.sections import Config
from minisend.errors import SpoolError, UsageError
from minisend.log import Log, line
from minisend.spool.entry import Entry, Place
from minisend.spool.store import Queue
from minisend.spool.trigger import EVERYTHING, poke


@dataclass(frozen=True, slots=True)
class Action:
    """One of the commands.

    ``done``       what is said of a message after
    ``doing``      the label of the progress bar
    ``change``     what it does to a claimed entry; None: the file goes, whatever is in it
    ``makes_due``  there is something to deliver after
    ``already``    why it need not, by the directory of a message named by its id
    ``refused``    why not, likewise
    """

    done: str
    doing: str
    change: Callable[[Entry], None] | None
    makes_due: bool = False
    already: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def _release(entry: Entry) -> None:
    # What was never attempted is new again.
    if entry.history:
        entry.defer(0)
    else:
        entry.move_to("new")


ACTIONS = {
    "rm": Action("removed", "removing", None),
    "hold": Action(
        "held",
        "holding",
        lambda entry: entry.move_to("hold"),
        already={"hold": "held already"},
        refused={"failed": "has failed, nothing tries it (requeue it first)"},
    ),
    "release": Action(
        "released",
        "releasing",
        _release,
        makes_due=True,
        refused={
            "new": "is not held",
            "cur": "is not held (requeue makes it due at once)",
            "failed": "has failed and is not held (requeue tries it again)",
        },
    ),
    "requeue": Action(
        "requeued",
        "requeueing",
        lambda entry: entry.requeue(time.time()),
        makes_due=True,
        already={"new": "is new and due already"},
    ),
}


def act(
    config: Config,
    name: str,
    chosen: Filter,
    ids: tuple[str, ...],
    *,
    everything: bool,
    ask: bool = False,
) -> int:
    """Do this to the messages of these ids, or to those chosen; say so and return the exit code.

    ``ask``  before anything is done to chosen ones
    Raises UsageError when neither ids nor anything to choose by is given, or both; SpoolError, SystemFault.
    """
    check_choice(name, ids, everything=everything, filtered=chosen.given)
    run = _Run(ACTIONS[name], chosen.states)
    spool = config.spool
    queue = open_queue(spool.path, strict_sync=spool.sync == "each", report=run.report)
    if queue is None:
        return run.nothing_there(ids)
    try:
        with queue:
            if ids:
                run.take_named(queue, ids)
            else:
                targets = _chosen(queue, chosen)
                if not targets:
                    return run.nothing_there(ids)
                if ask and not _agreed(f"Remove {messages_in_words(len(targets))}?"):
                    write(1, "nothing removed\n")
                    return _NOT_DONE
                run.take_chosen(queue, targets)
    except OSError as exc:
        raise SpoolError(f"{spool.path}/queue: {exc.strerror}") from exc
    if run.done and ACTIONS[name].makes_due:
        poke(spool.path, EVERYTHING)
    return run.end()


def check_choice(name: str, ids: tuple[str, ...], *, everything: bool, filtered: bool) -> None:
    """Raise UsageError unless it is said which messages are meant, in one way."""
    if ids and (everything or filtered):
        raise UsageError(f"{name}: name messages, or use --all or a filter, not both")
    if not (ids or everything or filtered):
        raise UsageError(
            f"{name}: which messages: their ids, --all or a filter (see minisend queue)"
        )


def _chosen(queue: Queue, chosen: Filter) -> list[Place]:
    if chosen.looks_inside:
        return [m.place for m in messages(queue, chosen.states) if chosen.takes(m)]
    return [place for state in chosen.states for place in places(queue, state)]


def _agreed(question: str) -> bool:
    """Ask on the terminal that is standard input; no answer is no."""
    write(2, question + " [y/N] ")
    answer = b""
    while not answer.endswith(b"\n"):
        octets = posix.read(0, 1024)
        if not octets:
            write(2, "\n")
            break
        answer += octets
    return answer.strip().lower() in (b"y", b"yes")


class _Refused(Exception):
    """Not done to this message; the text says why, ``code`` is what the command then exits with."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


_NOT_DONE = 1
_NOT_THIS_ONE = UsageError.exit_code
_TRY_AGAIN = SpoolError.exit_code


class _Run:
    """One command at work on one message after the other, and what it came to.

    ``states``  directories of the messages that it is about
    """

    def __init__(self, action: Action, states: tuple[str, ...]) -> None:
        self._action = action
        self._states = states
        self._log = Log(syslog=True, stderr=False)
        # what the queue said of files that it could not claim, by queue id
        self._reported: dict[str, str] = {}
        self._problems: list[str] = []
        self._code = 0
        self.done = 0

    def report(self, queue_id: str, text: str) -> None:
        """Called by the queue: a file is set aside or cannot be read."""
        self._reported[queue_id] = text
        self._log.error(line(queue_id, event="broken", reason=text))

    def nothing_there(self, ids: tuple[str, ...]) -> int:
        """No message of these ids, or none that was chosen; the exit code."""
        for queue_id in ids:
            self._problem(queue_id, _gone())
        if not ids:
            write(1, "no message matches\n")
        return self.end()

    def take_named(self, queue: Queue, ids: tuple[str, ...]) -> None:
        """Do it to the messages of these ids, with a line for each."""
        for queue_id, place in find(queue, ids).items():
            try:
                self._take(queue, queue_id, place)
            except _Refused as exc:
                if exc.code:
                    self._problem(queue_id, exc)
                else:
                    write(1, f"{printable(queue_id)}: {exc}\n")
            else:
                write(1, f"{printable(queue_id)}: {self._action.done}\n")

    def take_chosen(self, queue: Queue, chosen: list[Place]) -> None:
        """Do it to these, with a count at the end."""
        with Progress(self._action.doing) as progress:
            for number, place in enumerate(chosen):
                progress(number, len(chosen))
                try:
                    self._take(queue, place.queue_id, place)
                except _Refused as exc:
                    # Delivered meanwhile, or no more what was chosen: none of those that were meant.
                    if exc.code == _TRY_AGAIN or place.queue_id in self._reported:
                        self._problem(place.queue_id, exc)
        write(1, f"{messages_in_words(self.done)} {self._action.done}\n")

    def end(self) -> int:
        """Say what could not be done; the exit code."""
        for problem in self._problems:
            write(2, f"minisend: {problem}\n")
        return self._code

    def _problem(self, queue_id: str, why: _Refused) -> None:
        self._problems.append(f"{printable(queue_id)}: {printable(str(why))}")
        self._code = max(self._code, why.code)

    def _take(self, queue: Queue, queue_id: str, place: Place | None) -> None:
        """Do it to this message; it may have moved since it was found.  Raises _Refused."""
        for _ in range(2):
            if place is None:
                break
            if place.state not in self._states:
                if place.state in self._action.already:
                    raise _Refused(self._action.already[place.state], 0)
                raise _Refused(self._action.refused[place.state], _NOT_THIS_ONE)
            try:
                done = self._change(queue, place)
            except OSError as exc:
                text = f"cannot be {self._action.done}: {exc.strerror}"
                raise _Refused(text, _TRY_AGAIN) from exc
            if done:
                self.done += 1
                self._log.info(line(queue_id, event=self._action.done, uid=posix.getuid()))
                return
            if queue_id in self._reported:
                raise _Refused(
                    f"{self._reported[queue_id]} (minisend rm removes it)", _NOT_THIS_ONE
                )
            place = queue.find(queue_id, *STATES)
        if place is None:
            raise _gone()
        raise _Refused("is being delivered, try again", _TRY_AGAIN)

    def _change(self, queue: Queue, place: Place) -> bool:
        """False when another process has it, it has moved, or the queue has reported why not.  Raises OSError."""
        if self._action.change is None:
            return queue.discard(place)
        entry = queue.claim(place)
        if entry is None:
            return False
        with entry:
            self._action.change(entry)
        return True


def _gone() -> _Refused:
    return _Refused("not in the queue", _NOT_THIS_ONE)
