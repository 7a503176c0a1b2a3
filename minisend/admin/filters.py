"""Which messages a command is about: the filters that queue, rm, hold, release and requeue share.

    --state STATE          new, deferred, hold or failed; also cur and held, the words of the directory and of a person
    --recipient PATTERN    one of the recipients that mailq shows: those not served, and of a failed message the failed
    --sender PATTERN       the reverse-path; <> or MAILER-DAEMON for the null one
    --older-than AGE       since it arrived; 90s, 30m, 2h, 5d
    --younger-than AGE

A message is meant when all of them hold.  In a pattern ``*`` stands for any characters and ``?`` for one; case does not
count.  A pattern with ``@`` is compared with the whole address, any other with its domain; an address without domain
is compared as it stands too, and with the domain that it is given on its way.  A domain may be written in A-labels or
as it is read.  A file that cannot be read has no addresses, and the time at which it was written for its arrival.

Takes no lock and changes nothing.
"""

import argparse
import re
from collections.abc import Callable, Iterator

from minisend.address import AddressError, qualify, split, to_ascii
from minisend.admin.listing import STATES, Listed
from minisend.admin.terminal import printable

# What a person calls a state, and its directory.
DIRECTORIES = {"new": "new", "deferred": "cur", "hold": "hold", "failed": "failed"}
# What each command is about, unless a state is asked for.
STATES_OF = {
    "queue": ("new", "deferred", "hold", "failed"),
    "rm": ("new", "deferred", "hold", "failed"),
    "hold": ("new", "deferred"),
    "release": ("hold",),
    "requeue": ("deferred", "hold", "failed"),
}
_OTHER_WORDS = {"cur": "deferred", "held": "hold"}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MOST_DIGITS = 9
_NULL_SENDER = "mailer-daemon"


def duration(text: str) -> int:
    """Seconds of ``90s``, ``30m``, ``2h`` or ``5d``, as the configuration writes them.  Raises ArgumentTypeError."""
    digits, unit = text[:-1], _SECONDS.get(text[-1:])
    if unit is None or not (
        digits.isascii() and digits.isdecimal() and len(digits) <= _MOST_DIGITS
    ):
        raise argparse.ArgumentTypeError(
            f'expected a time such as 90s, 30m, 2h or 5d (got "{printable(text)}")'
        )
    return int(digits) * unit


def _pattern(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected an address or a domain (got nothing)")
    return text


def add_options(parser: argparse.ArgumentParser, states: tuple[str, ...]) -> None:
    """The filters as options of ``parser``; ``states`` are the words that mean something to it."""
    if len(states) > 1:
        parser.add_argument(
            "--state",
            choices=states,
            type=lambda word: _OTHER_WORDS.get(word, word),
            help="only messages in this state: " + ", ".join(states),
            metavar="STATE",
        )
    else:
        parser.set_defaults(state=None)
    parser.add_argument(
        "--recipient",
        metavar="PATTERN",
        type=_pattern,
        help="only messages that wait for this address or domain, such as '*@example.net'",
    )
    parser.add_argument(
        "--sender", metavar="PATTERN", type=_pattern, help="only messages from this sender"
    )
    parser.add_argument(
        "--older-than", metavar="AGE", type=duration, help="only messages older than 2h, 5d"
    )
    parser.add_argument(
        "--younger-than", metavar="AGE", type=duration, help="only messages younger than that"
    )


class Filter:
    """The filters of one command line.

    ``asked``        the options of ``add_options``
    ``states``       the words that the command is about when no state was asked for
    ``now``          seconds since the epoch
    ``mail_domain``  gives the domain of an address without one, where its message does not know it yet
    """

    def __init__(
        self,
        asked: argparse.Namespace,
        states: tuple[str, ...],
        now: float,
        mail_domain: Callable[[], str],
    ) -> None:
        words = (asked.state,) if asked.state else states
        #: directories to list, in their order
        self.states = tuple(s for s in STATES if s in [DIRECTORIES[word] for word in words])
        self._mail_domain = mail_domain
        self._recipient = asked.recipient
        self._sender = asked.sender
        self._before = now - asked.older_than if asked.older_than is not None else None
        self._after = now - asked.younger_than if asked.younger_than is not None else None
        #: a filter was given
        self.given = bool(asked.state) or self.looks_inside

    @property
    def looks_inside(self) -> bool:
        """Whether more than the name of a file is needed to answer."""
        return any(
            value is not None
            for value in (self._recipient, self._sender, self._before, self._after)
        )

    def takes(self, listed: Listed) -> bool:
        """Whether the message is meant; its state is the caller's to have chosen."""
        if self._before is not None and listed.arrived > self._before:
            return False
        if self._after is not None and listed.arrived <= self._after:
            return False
        entry = listed.entry
        if self._sender is not None:
            if entry is None:
                return False
            sender = entry.envelope.sender
            pattern = _NULL_SENDER if self._sender == "<>" else self._sender
            if not (
                self._matches(pattern, sender, listed) if sender else _like(pattern, _NULL_SENDER)
            ):
                return False
        if self._recipient is not None:
            if entry is None:
                return False
            return any(
                self._matches(self._recipient, entry.envelope.recipients[index].address, listed)
                for index, _ in listed.open_recipients()
            )
        return True

    def _matches(self, pattern: str, address: bytes, listed: Listed) -> bool:
        facts = listed.entry.facts if listed.entry else None
        domain = facts.mail_domain if facts else self._mail_domain().encode()
        whole = qualify(address, domain)
        if "@" in pattern:
            candidates = {address, whole}
        else:
            candidates = {split(whole)[1]} | ({address} if address != whole else set())
        return any(
            _like(spelled, text)
            for spelled in _spellings(pattern)
            for candidate in candidates
            for text in _spellings(candidate.decode("utf-8", "surrogateescape"))
        )


def _spellings(text: str) -> Iterator[str]:
    """An address, a domain or a pattern of one: as it stands, and with its domain in A-labels."""
    yield text
    if not text.isascii():
        octets = text.encode("utf-8", "surrogateescape")
        try:
            bare = b"" if b"@" in octets else b"@"
            yield to_ascii(bare + octets).removeprefix(bare).decode("utf-8", "surrogateescape")
        except AddressError:
            pass  # no A-labels: a pattern with wildcards, or an address that no server would take


def _like(pattern: str, text: str) -> bool:
    # Not fnmatch: the brackets of an address literal are brackets.
    parts = {"*": ".*", "?": "."}
    expression = "".join(parts.get(char) or re.escape(char) for char in pattern.lower())
    return re.fullmatch(expression, text.lower(), re.DOTALL) is not None
