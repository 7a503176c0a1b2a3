"""A queue entry as the message that goes out: its header completed, its body as it came.

The one place where ``message.complete`` meets the store, for an attempt and for the report that returns the message.
"""

from minisend.config.sections import Config
from minisend.envelope import Facts
from minisend.message.complete import complete, facts_for
from minisend.message.header import HEADER_LIMIT, LINE_LIMIT
from minisend.message.header import split as split_header
from minisend.spool.enqueue import Ruler
from minisend.spool.entry import Entry
from minisend.spool.record import EIGHT_BIT, LONG_LINE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Outgoing:
    """A message as every attempt and its report show it.

    ``facts``      those that the entry keeps, or those of a first attempt made now
    ``header``     octets, LF line ends, with the empty line that ends it
    ``body_size``  octets of the body as it came
    ``wire_size``  octets with CRLF line ends; of a message over 1 MiB an estimate, its line ends not counted
                   (RFC 1870 section 6.1.2)
    ``eight_bit``  it has octets above 127
    ``long_line``  it has lines of more than 998 octets
    ``hops``       Received fields that the message came with
    """

    __slots__ = (
        "_entry",
        "_first",
        "_offset",
        "body_size",
        "eight_bit",
        "facts",
        "header",
        "hops",
        "long_line",
        "wire_size",
    )

    def __init__(self, entry: Entry, config: Config) -> None:
        self._entry = entry
        self.facts: Facts = entry.facts or facts_for(
            entry.envelope, config.hostname.encode(), config.mail_domain.encode()
        )
        self._first = entry.first_octets(HEADER_LIMIT + 4096)
        header = split_header(self._first, complete=len(self._first) == entry.size)
        self._offset = header.body
        self.hops = [field.name.lower() for field in header.fields].count(b"received")
        self.header = complete(header, entry.envelope, self.facts)
        self.body_size = entry.size - header.body
        self.wire_size = len(self.header) + self.header.count(b"\n") + self.body_size
        if len(self._first) == entry.size:
            # Each LF, CR or CR LF becomes two octets.
            at = header.body
            self.wire_size += self._first.count(b"\n", at)
            if self._first.find(b"\r", at) >= 0:
                returns = self._first.count(b"\r", at)
                self.wire_size += returns - 2 * self._first.count(b"\r\n", at)
        self.eight_bit = EIGHT_BIT in entry.trailer.flags or not self.header.isascii()
        self.long_line = (
            LONG_LINE in entry.trailer.flags if entry.trailer.lines >= 0 else _has_long_line(entry)
        )
        if len(self.header) > LINE_LIMIT and not self.long_line:
            # A domain behind each bare name makes a line longer than it came.
            self.long_line = max(map(len, self.header.split(b"\n"))) > LINE_LIMIT

    def body(self) -> "Iterator[bytes]":
        """The body in pieces, any line ends.  Raises BrokenRecord before its last piece when it is not as it was written."""
        return self._entry.verified_octets(self._first, self._offset)

    def octets(self) -> "Iterator[bytes]":
        """Header and body; raises as ``body``."""
        pieces = self.body()
        # A small message is one piece, for whoever works at each of them.
        yield self.header + next(pieces, b"")
        yield from pieces


def _has_long_line(entry: Entry) -> bool:
    """Of a message whose lines were not measured when it came, for they were too many: that was not to be waited for."""
    ruler = Ruler()
    for piece in entry.octets():
        ruler.add(piece)
        if ruler.is_long:
            return True
    return ruler.is_long
