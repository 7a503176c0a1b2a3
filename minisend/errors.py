"""Failures that end a command, each with its exit code and its enhanced status code.

An exception from this tree is turned into one line on stderr and an exit code once, in
``minisend.__main__``.  What happens to one recipient of one delivery attempt is never an
exception at that level but data: see ``minisend.envelope.Outcome``.

Exit codes are sysexits(3); status codes are RFC 3463 and follow Postfix's sys_exits.c.
"""


class MinisendError(Exception):
    """Base of all: on its own it is a bug (EX_SOFTWARE)."""

    exit_code = 70
    status = "5.3.0"


class UsageError(MinisendError):
    """The command line is wrong, or names no recipients (EX_USAGE)."""

    exit_code = 64


class DataError(MinisendError):
    """The message or an address cannot be sent as it is (EX_DATAERR)."""

    exit_code = 65
    status = "5.6.0"


class MessageTooBig(MinisendError):
    """The message is larger than max_message_size (EX_UNAVAILABLE)."""

    exit_code = 69
    status = "5.3.4"


class SystemFault(MinisendError):
    """The operating system refused something that has no code of its own (EX_OSERR)."""

    exit_code = 71
    status = "4.3.0"


class CreateError(MinisendError):
    """A file that the user asked for cannot be created (EX_CANTCREAT)."""

    exit_code = 73
    status = "4.3.0"


class ReadError(MinisendError):
    """Standard input cannot be read (EX_IOERR)."""

    exit_code = 74
    status = "4.3.0"


class SpoolError(MinisendError):
    """Nothing was queued; the same call may work later: disk full, no spool (EX_TEMPFAIL)."""

    exit_code = 75
    status = "4.3.0"


class SpoolFull(SpoolError):
    """The disk has too little room to take a message (RFC 3463 X.3.1)."""

    status = "4.3.1"


class PermissionDenied(MinisendError):
    """The caller may not do this (EX_NOPERM)."""

    exit_code = 77
    status = "5.7.0"


class ConfigError(MinisendError):
    """The configuration is wrong: names file, key and what was expected (EX_CONFIG)."""

    exit_code = 78
    status = "5.3.5"


class SmtpError(MinisendError):
    """A session with a server cannot go on.  Never leaves ``delivery``: it becomes Outcomes there."""

    status = "4.3.0"


class LocalProtocolError(SmtpError):
    """We tried to send what the state of the session does not allow: our bug, the message waits."""


class RemoteProtocolError(SmtpError):
    """The server sent what is not SMTP."""

    status = "4.5.0"


class NetworkError(SmtpError):
    """The connection could not be made or was lost.

    ``local``  the fault is on this machine (ENETUNREACH, EACCES, EPERM): it says nothing
    about the server, so it must not count against it.
    ``lasting``  and no wait for a network will change it: there is one, without IPv6
    """

    status = "4.4.2"

    def __init__(
        self, message: str, status: str = "4.4.2", *, local: bool = False, lasting: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.local = local
        self.lasting = lasting


class TlsError(SmtpError):
    """TLS was required and could not be had, or the certificate does not hold (RFC 3463 X.7.5)."""

    status = "4.7.5"
