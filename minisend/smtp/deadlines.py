"""Deadlines: how long a server may take for each thing that it is asked."""

from minisend.smtp import client

# Command → its field of ``Deadlines``.
_LIMITS = {
    client.GREETING: "greeting",
    client.EHLO: "hello",
    client.HELO: "hello",
    client.LHLO: "hello",
    client.STARTTLS: "starttls",
    client.AUTH: "auth",
    client.MAIL: "mail",
    client.RCPT: "rcpt",
    client.DATA: "data",
    client.BDAT: "data",
    client.END_OF_DATA: "end_of_data",
    client.RSET: "rset",
}


class Deadlines:
    """Seconds that each phase may take.  RFC 5321 section 4.5.3.2 names most; the others follow Postfix.

    A deadline is for one whole reply, or for one piece of what we write (16 KiB), however many octets it comes in:
    a server that drips an octet at a time gains nothing.
    """

    connect = 30.0
    greeting = 300.0
    hello = 300.0
    starttls = 300.0  # the reply, and then the handshake
    auth = 300.0
    mail = 300.0
    rcpt = 300.0
    data = 120.0
    block = 180.0
    end_of_data = 600.0
    rset = 20.0
    quit = 5.0

    def __init__(self, **seconds: float) -> None:
        for phase, limit in seconds.items():
            if phase not in Deadlines.__dict__:
                raise TypeError(f"no such phase: {phase}")
            setattr(self, phase, limit)

    def for_reply(self, command: str) -> float:
        """The limit for the reply to ``command``."""
        return float(getattr(self, _LIMITS.get(command, "quit")))
