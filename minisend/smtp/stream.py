"""One connection to a server: octets in both directions, with deadlines, plain or TLS.

This is the only module of the room that does I/O, and the one place where an OSError or an ssl error becomes a
``NetworkError`` or a ``TlsError`` with words a person understands.  It never resolves names and never chooses what to
trust: the address and the TLS context come from the caller.

The socket does not block; ``poll`` waits.  ``exchange`` reads while it writes: a server that stops reading until its
replies are taken, as a flight of 1,000 recipients provokes, would otherwise wait for us as we wait for it
(RFC 2920 section 3.1 leaves avoiding this to the client).

``ssl`` is imported when TLS begins: plain delivery does not pay for it.
"""

from __future__ import annotations

import _socket
import errno
import posix
import select
from time import monotonic

from minisend.errors import LocalProtocolError, NetworkError, SmtpError, TlsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from minisend.smtp.binding import ChannelBinding
    from minisend.smtp.handshake import Trust

    # What a socket is connected or bound to.
    Address = str | tuple[object, ...]

READ_SIZE = 64 * 1024

#: Seconds of waiting at a time.
_PATIENCE = 1.0

#: One TLS record, and the step by which a write makes progress.
_WRITE_SIZE = 16 * 1024

# Faults of this machine, which say nothing about the server.  Not EHOSTUNREACH: a router far away says that too.
_LOCAL = frozenset(
    (
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.EACCES,
        errno.EPERM,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
    )
)


# Of these, what a unix socket's file says of who may use it: that is for somebody to mend, not to wait for.
_FORBIDDEN = frozenset((errno.EACCES, errno.EPERM))

# And what a machine says to a connection over IPv6 that has IPv4 alone.
_NO_IPV6 = frozenset((errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))


def blame(error: SmtpError, phase: str) -> SmtpError:
    """Say in ``error.phase`` where it happened, unless that is known already."""
    vars(error).setdefault("phase", phase)
    return error


class HandshakeError(TlsError):
    """The TLS handshake failed; the connection is lost with it.

    ``taken_up``            it began with the session of an earlier one, which may be to blame: a further one will not
    ``plain_text_allowed``  the level of TLS asked for was "opportunistic": a new connection may do without
    """

    taken_up = False
    plain_text_allowed = False


class Stream:
    """A connected stream socket.

    ``name``           says in errors who is at the other end
    ``while_waiting``  called about each second while something is waited for
    ``sent``           octets that were taken off our hands so far
    """

    def __init__(
        self,
        connected: _socket.socket,
        name: str = "server",
        while_waiting: Callable[[], None] = lambda: None,
    ) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._incoming = select.poll()
        self._incoming.register(connected, select.POLLIN)
        self._name = name
        self._while_waiting = while_waiting
        self._called = monotonic()
        self._encrypted = False
        # Of the handshake, until octets from the server show that it has accepted its end too.
        self._unconfirmed: Callable[[ssl.SSLError], HandshakeError] | None = None
        self.sent = 0

    @property
    def encrypted(self) -> bool:
        """TLS is in use."""
        return self._encrypted

    @property
    def tls(self) -> str:
        """Protocol version and cipher such as "TLSv1.3 TLS_AES_256_GCM_SHA384", "" without TLS."""
        if not self._encrypted:
            return ""
        connection = self._tls_socket()
        cipher = connection.cipher()
        return f"{connection.version()} {cipher[0] if cipher else 'no cipher'}"

    @property
    def channel_binding(self) -> ChannelBinding | None:
        """What AUTH can tie itself to this connection by; None without TLS, or when it has nothing of the kind."""
        if not self._encrypted:
            return None
        from minisend.smtp.binding import channel_binding

        return channel_binding(self._tls_socket())

    def read(self, limit: int, timeout: float) -> bytes:
        """At least one and at most ``limit`` octets, ``b""`` at end of file; waits up to ``timeout`` seconds.

        0 takes only what is there; less than 0 is a deadline that has passed, so that a server which always has one
        more octet does not outlive it.
        """
        if timeout < 0:
            raise NetworkError("timed out")
        deadline = monotonic() + timeout
        if timeout > 0 and not self._encrypted:
            # Nearly always there is nothing yet, and an exception costs more than to ask.
            self._wait(select.POLLIN, deadline)
        while True:
            octets, blocked_on = self._receive(limit)
            if octets is not None:
                return octets
            self._wait(blocked_on, deadline)

    def write(self, octets: bytes, timeout: float) -> None:
        """Write all of ``octets`` and read nothing."""
        deadline = monotonic() + timeout
        with memoryview(octets) as view:
            done = 0
            while done < len(view):
                count, blocked_on = self._send(view[done : done + _WRITE_SIZE])
                done += count
                if blocked_on:
                    self._wait(blocked_on, deadline)

    def exchange(self, octets: bytes, timeout: float, received: Callable[[bytes], bool]) -> None:
        """Write all of ``octets``; what arrives meanwhile, ``b""`` at end of file, goes to ``received``.

        Stops writing when ``received`` returns False.  What arrives is looked at before each piece is written, and
        not any more after the last.
        """
        deadline = monotonic() + timeout
        with memoryview(octets) as view:
            done = 0
            while done < len(view):
                if self._encrypted or self._incoming.poll(0):
                    arrived, _ = self._receive(READ_SIZE)
                    if arrived is not None:
                        if not received(arrived):
                            return
                        continue
                count, blocked_on = self._send(view[done : done + _WRITE_SIZE])
                done += count
                if blocked_on:
                    self._wait(blocked_on | select.POLLIN, deadline)

    def start_tls(self, trust: Trust, server_name: str | None, timeout: float) -> None:
        """The handshake.  ``server_name`` goes into SNI, unless it is an address, and is what the certificate is checked against.

        Raises ``HandshakeError``, which says what is wrong with a certificate that does not hold.
        """
        import ssl

        from minisend.smtp.handshake import Fault, failed, refused_certificate

        deadline = monotonic() + timeout
        who = server_name or self._name
        kept = trust.session(server_name, self._name)

        def fault(kind: Fault, text: str) -> HandshakeError:
            trust.forget(server_name, self._name)
            error = HandshakeError(trust.advised(kind, text))
            error.taken_up = kept is not None
            return error

        try:
            connection = trust.context.wrap_socket(
                self._socket,  # type: ignore[arg-type]  # all that it needs of a socket.socket
                server_hostname=server_name,
                do_handshake_on_connect=False,
                session=kept,
            )
            self._socket = connection
            while True:
                try:
                    connection.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self._wait(select.POLLIN, deadline)
                except ssl.SSLWantWriteError:
                    self._wait(select.POLLOUT, deadline)
        except ssl.SSLCertVerificationError as error:
            raise fault(*refused_certificate(error, self._tls_socket(), who)) from error
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            closed = f"TLS handshake with {who}: server closed the connection"
            raise fault(Fault.OTHER, closed) from error
        except ssl.SSLError as error:
            raise fault(*failed(error, who)) from error
        except OSError as error:
            raise fault(Fault.OTHER, f"TLS handshake with {who}: {_reason(error)}") from error
        except (NetworkError, ValueError) as error:
            # ValueError: no name to check, or one that cannot be a host name.
            raise fault(Fault.OTHER, f"TLS handshake with {who}: {error}") from error
        self._encrypted = True
        mismatch = trust.mismatch(connection.getpeercert(binary_form=True), who)
        if mismatch:
            raise fault(Fault.FINGERPRINT, mismatch)
        self._unconfirmed = lambda error: fault(*failed(error, who))

    def keep_tls_session(self, trust: Trust, server_name: str | None) -> None:
        """Let the next handshake with this server begin where this one led, arguments as for ``start_tls``.

        Nothing is kept without TLS.  To be called when something has been read over it.
        """
        if self._encrypted:
            trust.keep(server_name, self._name, self._tls_socket())

    def close(self) -> None:
        """Close the connection, with close_notify when it has TLS but without waiting for the server's; never raises."""
        try:
            if self._encrypted:
                self._tls_socket().unwrap()
        except (OSError, ValueError):  # would block, lost, or closed before
            pass
        try:
            self._socket.close()
        except OSError:  # the descriptor is gone all the same
            pass

    def _tls_socket(self) -> ssl.SSLSocket:
        import ssl

        if not isinstance(self._socket, ssl.SSLSocket):
            raise LocalProtocolError("no TLS on this connection")
        return self._socket

    def _receive(self, limit: int) -> tuple[bytes | None, int]:
        """What is there to be read, or None and the poll events to wait for."""
        try:
            octets = self._socket.recv(limit)
            self._unconfirmed = None
            return octets, 0
        except OSError as error:
            return None, self._blocked_on(error, select.POLLIN)

    def _send(self, octets: memoryview) -> tuple[int, int]:
        """The count written, and the poll events to wait for before more can be."""
        try:
            count = self._socket.send(octets)
            self.sent += count
            return count, 0
        except OSError as error:
            return 0, self._blocked_on(error, select.POLLOUT)

    def _blocked_on(self, error: OSError, events: int) -> int:
        """The events after which to try again; raises the error's translation when there are none."""
        if isinstance(error, BlockingIOError):
            return events
        if self._encrypted:
            import ssl

            if isinstance(error, ssl.SSLWantReadError):
                return select.POLLIN
            if isinstance(error, ssl.SSLWantWriteError):
                return select.POLLOUT
            if isinstance(error, ssl.SSLError) and not isinstance(
                error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)
            ):
                if self._unconfirmed is not None:
                    # With TLS 1.3 a server refuses our certificate only here, after what is the handshake for us.
                    raise self._unconfirmed(error) from error
                from minisend.smtp.handshake import reason

                raise TlsError(f"TLS with {self._name}: {reason(error)}") from error
        raise NetworkError(
            f"lost connection: {_reason(error)}", local=error.errno in _LOCAL
        ) from error

    def _wait(self, events: int, deadline: float) -> None:
        poll = self._incoming
        if events != select.POLLIN:
            poll = select.poll()
            poll.register(self._socket, events)
        while True:
            now = monotonic()
            # Also between waits that are each short: a server may drip, or take a large message slowly.
            if now - self._called >= _PATIENCE:
                self._while_waiting()
                self._called = now = monotonic()
            left = max(0.0, deadline - now)
            if poll.poll(-int(-1000 * min(left, _PATIENCE) // 1)):
                return
            if left <= _PATIENCE:
                raise NetworkError("timed out")


def connect(
    address: str,
    port: int,
    timeout: float,
    while_waiting: Callable[[], None] = lambda: None,
    *,
    source: str = "",
) -> Stream:
    """Connect to one address: IPv4 or IPv6 (no brackets, a scope allowed).

    ``source``  the address of this machine to connect from, of the same family; "" leaves it to the system
    Names are not resolved.  Raises ``NetworkError`` with status 4.4.1 and phase "connect".
    """
    family, target = _numeric(address, port)
    name = f"[{address}]:{port}"
    if source:
        name = f"{name} from [{source}]"
    return _connected(
        family,
        target,
        name,
        timeout,
        while_waiting,
        source=_numeric(source, 0)[1] if source else None,
    )


def connect_unix(
    path: str, timeout: float, while_waiting: Callable[[], None] = lambda: None
) -> Stream:
    """Connect to a unix _socket.  Raises ``NetworkError`` as ``connect`` does: also when nobody is there to listen."""
    return _connected(_socket.AF_UNIX, path, path, timeout, while_waiting)


def _numeric(address: str, port: int) -> tuple[int, Address]:
    """Family and socket address.  Raises ``LocalProtocolError``."""
    try:
        if not address.isprintable():
            raise ValueError
        family, _, _, _, found = _socket.getaddrinfo(
            # As octets: from text it would make octets by way of IDNA, which takes 5 ms to load.
            address.encode("ascii"),
            port,
            type=_socket.SOCK_STREAM,
            flags=_socket.AI_NUMERICHOST | _socket.AI_NUMERICSERV,
        )[0]
    except (OSError, ValueError) as error:
        raise blame(LocalProtocolError(f"not an IP address: {address!r}"), "connect") from error
    return family, found


def _connected(
    family: int,
    target: Address,
    name: str,
    timeout: float,
    while_waiting: Callable[[], None],
    *,
    source: Address | None = None,
) -> Stream:
    """``name`` is for errors."""
    deadline = monotonic() + timeout
    connecting: _socket.socket | None = None
    try:
        connecting = _socket.socket(family, _socket.SOCK_STREAM)
        if family != _socket.AF_UNIX:
            # Every write is a whole command, flight or piece: Nagle's algorithm could only delay it.
            connecting.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        if source is not None:
            connecting.bind(source)
        stream = Stream(connecting, name, while_waiting)
        code = connecting.connect_ex(target)
        if code == errno.EINPROGRESS:
            stream._wait(select.POLLOUT, deadline)
            code = connecting.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if code:
            raise OSError(code, posix.strerror(code))
    except BaseException as error:
        if connecting is not None:
            connecting.close()
        if isinstance(error, NetworkError):
            fault = NetworkError(f"connect to {name}: timed out", "4.4.1")
        elif isinstance(error, OSError):
            is_file = family == _socket.AF_UNIX
            no_ipv6 = family == _socket.AF_INET6 and source is None and error.errno in _NO_IPV6
            fault = NetworkError(
                f"connect to {name}: {_reason(error)}",
                "4.4.1",
                local=error.errno in (_LOCAL - _FORBIDDEN if is_file else _LOCAL),
                lasting=no_ipv6 and _has_ipv4(),
            )
        else:
            raise
        raise blame(fault, "connect") from error
    return stream


def _has_ipv4() -> bool:
    """There is a route into the world (here to a documentation address, RFC 5737); no packet is sent."""
    try:
        probe = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    except OSError:
        return False
    try:
        return probe.connect_ex(("192.0.2.1", 9)) == 0
    finally:
        probe.close()


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
