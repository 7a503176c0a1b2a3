"""The data that every layer shares: Envelope, Recipient, Outcome.

Plain classes with ``__slots__``: ``dataclasses`` and ``typing`` would cost a submission 8 to 13 ms.
Addresses are octets without angle brackets, as the caller gave them: a bare ``root`` stays bare
until ``message.complete`` qualifies it.  Missing text is ``""`` or ``b""``, never None.
"""


class Recipient:
    """One forward-path.

    ``address``   octets, no angle brackets, no CR, LF or NUL
    ``original``  the address the caller gave where it differs (RFC 3461 ORCPT), else ``b""``
    ``notify``    RFC 3461 NOTIFY value, ``""`` when none was asked for
    """

    __slots__ = ("address", "notify", "original")

    def __init__(self, address: bytes, original: bytes = b"", notify: str = "") -> None:
        self.address = address
        self.original = original
        self.notify = notify

    def __repr__(self) -> str:
        return f"Recipient({self.address!r})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Recipient)
            and self.address == other.address
            and self.original == other.original
            and self.notify == other.notify
        )

    def __hash__(self) -> int:
        return hash((self.address, self.original, self.notify))


class Envelope:
    """What is known of a message beside its octets: RFC 5321's envelope and the facts of its submission.

    ``queue_id``    16 lower-case hexadecimal digits
    ``sender``      reverse-path, octets without angle brackets; ``b""`` is the null reverse-path
    ``recipients``  in the order given, each address once
    ``arrived``     seconds since the epoch, UTC
    ``zone``        minutes east of UTC in the caller's time zone (for the Date field)
    ``uid``         the caller's real uid
    ``login``       the caller's account name, octets, ``b""`` when it has none
    ``full_name``   octets of -F or of the account's GECOS field, ``b""`` when none: used when From is missing
    ``sender_given``  the reverse-path came from -f or -r
    ``from_headers``  recipients were taken from the header too (-t)
    ``body``        "" | "7BIT" | "8BITMIME" (-B)
    ``channel``     how it came: "" written into the queue by its owner | "socket", where the kernel said who ``uid`` is |
                    "drop", where ``uid`` is a claim and no proof
    ``ret``, ``envid``  RFC 3461 values, "" when not asked for
    """

    __slots__ = (
        "arrived",
        "body",
        "channel",
        "envid",
        "from_headers",
        "full_name",
        "login",
        "queue_id",
        "recipients",
        "ret",
        "sender",
        "sender_given",
        "uid",
        "zone",
    )

    def __init__(
        self,
        queue_id: str,
        sender: bytes,
        recipients: "list[Recipient]",
        *,
        arrived: float,
        zone: int = 0,
        uid: int = -1,
        login: bytes = b"",
        full_name: bytes = b"",
        sender_given: bool = False,
        from_headers: bool = False,
        body: str = "",
        ret: str = "",
        envid: str = "",
        channel: str = "",
    ) -> None:
        self.queue_id = queue_id
        self.sender = sender
        self.recipients = recipients
        self.arrived = arrived
        self.zone = zone
        self.uid = uid
        self.login = login
        self.full_name = full_name
        self.sender_given = sender_given
        self.from_headers = from_headers
        self.body = body
        self.ret = ret
        self.envid = envid
        self.channel = channel

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Envelope) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Envelope(" + ", ".join(f"{n}={getattr(self, n)!r}" for n in self.__slots__) + ")"


class Facts:
    """The configuration facts that the first attempt of a message used; kept, so that every attempt gives the same octets.

    ``hostname``     for Received
    ``mail_domain``  for bare names
    ``from_field``   value of the From and Resent-From fields to add, may be folded with LF SP
    ``message_id``   value of Message-ID and Resent-Message-ID to add, with its angle brackets
    None holds CR or NUL, and only ``from_field`` may hold LF.
    """

    __slots__ = ("from_field", "hostname", "mail_domain", "message_id")

    def __init__(
        self, hostname: bytes, mail_domain: bytes, from_field: bytes, message_id: bytes
    ) -> None:
        self.hostname = hostname
        self.mail_domain = mail_domain
        self.from_field = from_field
        self.message_id = message_id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Facts) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Facts(" + ", ".join(f"{n}={getattr(self, n)!r}" for n in self.__slots__) + ")"


# Values of ``Envelope.channel``; "" is the owner's own writing.
SOCKET = "socket"
DROP = "drop"

DELIVERED = "delivered"
RELAYED = "relayed"
DELAYED = "delayed"
FAILED = "failed"


class Outcome:
    """What one attempt came to for one recipient: data, never raised.

    ``recipient``   index into ``Envelope.recipients``
    ``action``      RFC 3464 section 2.3.3: ``delivered``, ``relayed`` (both final), ``failed`` (final), ``delayed``
    ``status``      enhanced status code, RFC 3463, such as "4.4.1"; never empty
    ``reason``      one line of text for a person; never empty
    ``remote_mta``  the server asked, "host[address]:port", also when it did not answer; "" when there was none to ask
    ``diagnostic``  its reply in RFC 3464 form, "smtp; 550 5.1.1 no such user", "" when it said nothing
    ``command``     the command that was answered ("RCPT TO", "end of data"), "" when none
    ``at``          seconds since the epoch
    """

    __slots__ = (
        "action",
        "at",
        "command",
        "diagnostic",
        "reason",
        "recipient",
        "remote_mta",
        "status",
    )

    def __init__(
        self,
        recipient: int,
        action: str,
        status: str,
        reason: str,
        *,
        remote_mta: str = "",
        diagnostic: str = "",
        command: str = "",
        at: float = 0.0,
    ) -> None:
        self.recipient = recipient
        self.action = action
        self.status = status
        self.reason = reason
        self.remote_mta = remote_mta
        self.diagnostic = diagnostic
        self.command = command
        self.at = at

    @property
    def final(self) -> bool:
        """True when this recipient needs no further attempt."""
        return self.action != DELAYED

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Outcome(" + ", ".join(f"{n}={getattr(self, n)!r}" for n in self.__slots__) + ")"
