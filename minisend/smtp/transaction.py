"""A transaction as it is asked for, and the envelope that goes out for it: what MAIL and RCPT say to this server.

    an address that is not ASCII     SMTPUTF8 offered                 not offered
    in its domain alone              as it is; MAIL has SMTPUTF8      the domain in A-labels
    in its local part                as it is; MAIL has SMTPUTF8      Utf8NotOffered: for the recipient whose it is,
                                                                      for all when it is the sender's

Octets above 127 in the header alone ask for no SMTPUTF8: of the servers without it nearly all pass them on, and
to refuse them would lose mail that every other agent delivers.

It never does I/O, and no parameter leaves that the server has not offered to understand.

Source: RFC 1870 (SIZE), RFC 6152 (8BITMIME), RFC 3461 (DSN), RFC 6531 (SMTPUTF8), RFC 5891 (IDNA).
"""

from __future__ import annotations

from minisend.address import AddressError, to_ascii
from minisend.errors import LocalProtocolError, SmtpError
from minisend.smtp import client
from minisend.smtp.client import Answer
from minisend.smtp.reply import printable
from minisend.smtp.stream import blame
from minisend.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from minisend.smtp.client import Extensions

# Values of RFC 3461: RET (section 4.3), and NOTIFY where it is not NEVER (section 4.1).
_RET = ("FULL", "HDRS")
_NOTIFY = frozenset(("SUCCESS", "FAILURE", "DELAY"))

#: Characters of an ENVID before xtext: what Postfix takes.
_ENVID_LIMIT = 100


class SizeExceeded(SmtpError):
    """The message is larger than the server's EHLO said it takes; nothing was sent."""

    status = "5.3.4"


class Utf8NotOffered(SmtpError):
    """An address can be written in UTF-8 only, and the server's EHLO did not offer that; nothing was sent to it."""

    status = "5.6.7"

    def __init__(self, address: bytes) -> None:
        super().__init__(
            f"address needs SMTPUTF8, which the server does not offer: {printable(address)}"
        )


class DsnRequest(Value):
    """What the sender asked to be told of one recipient (RFC 3461); a server that does not offer DSN never hears of it.

    ``notify``    "NEVER", or any of "SUCCESS", "FAILURE", "DELAY" with commas between, in any case; "" leaves it to the server
    ``original``  the address as the sender gave it, octets without brackets; ``b""`` when not known
    """

    __slots__ = ("notify", "original")

    def __init__(self, notify: str = "", original: bytes = b"") -> None:
        self.notify = notify
        self.original = original


class Transaction:
    """One transaction to be made.

    ``sender``, ``recipients``  paths without brackets; ``b""`` is the null reverse-path
    ``content``    gives the message in any line ends; called at most once, and only when it is to be sent
    ``size``       its octets with CRLF line ends, for SIZE; 0 when that is not known
    ``eight_bit``  it has octets above 127: BODY=8BITMIME is said when offered
    ``ret``        "FULL" | "HDRS", in any case, "" leaves it to the server
    ``envid``      the sender's name for the transaction, printable ASCII, not yet xtext; "" for none
    ``dsn``        one for each recipient, in order; none at all when nothing was asked for any
    """

    __slots__ = (
        *("content", "dsn", "eight_bit", "envid"),
        *("recipients", "ret", "sender", "size"),
    )

    def __init__(
        self,
        sender: bytes,
        recipients: Sequence[bytes],
        content: Callable[[], Iterable[bytes]],
        size: int,
        eight_bit: bool,
        ret: str = "",
        envid: str = "",
        dsn: Sequence[DsnRequest] = (),
    ) -> None:
        self.sender = sender
        self.recipients = recipients
        self.content = content
        self.size = size
        self.eight_bit = eight_bit
        self.ret = ret
        self.envid = envid
        self.dsn = dsn


Results = list[Answer | SmtpError]
"""One a recipient, in order: the ``Answer`` that settled it - to the message, or the refusal of MAIL, RCPT, DATA or BDAT -
or the error that ended the session before it was settled, or kept the recipient out of the transaction.
An ``Answer`` with ``reply.ok`` is always the one to "end of data"."""


class Flight:
    """A transaction that is under way.

    ``results``  as far as they are known
    ``mail``     path and parameters
    ``rcpts``    index, path and parameters of each who can be asked for
    ``reset``    RSET was said before it
    ``whole``    its last octet was written: the server may have it
    ``failed``   what reading its content raised
    """

    __slots__ = (
        *("accepted", "failed", "mail", "rcpts", "reset"),
        *("results", "transaction", "whole"),
    )

    def __init__(self, transaction: Transaction) -> None:
        self.transaction = transaction
        self.results: list[Answer | SmtpError | None] = [None] * len(transaction.recipients)
        self.mail: tuple[bytes, list[bytes]] = (b"", [])
        self.rcpts: list[tuple[int, bytes, list[bytes]]] = []
        self.accepted = 0
        self.reset = False
        self.whole = False
        self.failed: Exception | None = None

    def settle(self, result: Answer | SmtpError) -> None:
        """For all who have no result yet."""
        results = self.results
        for index, each in enumerate(results):
            if each is None:
                results[index] = result

    @property
    def settled(self) -> bool:
        return None not in self.results

    def prepare(self, offered: Extensions) -> None:
        """Find ``mail`` and ``rcpts`` for a server that offers this; settled when nobody can be asked for."""
        transaction = self.transaction
        try:
            if transaction.dsn and len(transaction.dsn) != len(transaction.recipients):
                raise LocalProtocolError(
                    f"{len(transaction.dsn)} DSN requests for {len(transaction.recipients)} recipients"
                )
            if not transaction.recipients:
                raise LocalProtocolError("no recipients")
            utf8 = _utf8(transaction, offered)
            self.mail = _mail(transaction, offered, utf8=utf8)
            self._prepare_rcpts(offered, utf8=utf8)
        except SmtpError as error:
            self.settle(blame(error, client.MAIL))

    def _prepare_rcpts(self, offered: Extensions, *, utf8: bool) -> None:
        """Who can be asked for; the others have the reason in ``results``."""
        requests = self.transaction.dsn if offered.dsn else ()
        for index, recipient in enumerate(self.transaction.recipients):
            try:
                path = _path(client.RCPT, recipient, utf8=utf8)
                parameters = _rcpt_parameters(requests[index], utf8=utf8) if requests else []
            except SmtpError as error:
                self.results[index] = blame(error, client.RCPT)
                continue
            self.rcpts.append((index, path, parameters))

    def content(self) -> Iterator[bytes]:
        """The message; what reading it raises is in ``failed`` then."""
        try:
            yield from self.transaction.content()
        except Exception as error:
            self.failed = error
            raise


def _mail(
    transaction: Transaction, offered: Extensions, *, utf8: bool
) -> tuple[bytes, list[bytes]]:
    """Path and parameters.  Raises ``SizeExceeded``, ``Utf8NotOffered``, ``LocalProtocolError``."""
    path = _path(client.MAIL, transaction.sender, utf8=utf8)
    size, ret, envid = transaction.size, transaction.ret, transaction.envid
    if 0 < offered.size < size:
        raise SizeExceeded(
            f"message of {size} octets is larger than the {offered.size} the server takes"
        )
    parameters = []
    if "SIZE" in offered:
        parameters.append(b"SIZE=%d" % size)
    if transaction.eight_bit and offered.eightbitmime:
        parameters.append(b"BODY=8BITMIME")
    if utf8:
        parameters.append(b"SMTPUTF8")
    if ret and offered.dsn:
        if ret.upper() not in _RET:
            raise LocalProtocolError(f"RET: not FULL or HDRS: {ret!r}")
        parameters.append(b"RET=" + ret.upper().encode("ascii"))
    if envid and offered.dsn:
        if not (envid.isascii() and envid.isprintable() and len(envid) <= _ENVID_LIMIT):
            raise LocalProtocolError(
                f"ENVID: not up to {_ENVID_LIMIT} printable ASCII characters: {envid!r}"
            )
        parameters.append(b"ENVID=" + client.xtext(envid.encode("ascii")))
    return path, parameters


def _utf8(transaction: Transaction, offered: Extensions) -> bool:
    return offered.smtputf8 and not (
        transaction.sender.isascii() and all(map(bytes.isascii, transaction.recipients))
    )


def _path(command: str, address: bytes, *, utf8: bool) -> bytes:
    """``address`` as it is sent.  Raises ``LocalProtocolError``, ``Utf8NotOffered``; ``utf8``: MAIL has SMTPUTF8."""
    client.check_path(command, address)
    if address.isascii():
        return address
    if utf8:
        try:
            address.decode()
        except UnicodeDecodeError:
            raise LocalProtocolError(f"{command}: not UTF-8: {address!r}") from None
        return address
    try:
        path = to_ascii(address)
    except AddressError as error:
        raise Utf8NotOffered(address) from error
    if not path.isascii():
        raise Utf8NotOffered(address)
    return path


def _rcpt_parameters(request: DsnRequest, *, utf8: bool) -> list[bytes]:
    parameters = []
    if request.notify:
        words = request.notify.upper().split(",")
        if words != ["NEVER"] and not _NOTIFY.issuperset(words):
            raise LocalProtocolError(
                f"NOTIFY: not NEVER, nor of SUCCESS, FAILURE, DELAY: {request.notify!r}"
            )
        parameters.append(b"NOTIFY=" + ",".join(words).encode("ascii"))
    if request.original:
        parameters.append(b"ORCPT=" + client.original_recipient(request.original, utf8=utf8))
    return parameters
