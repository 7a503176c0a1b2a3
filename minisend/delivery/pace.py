"""Pace: how many connections to one destination are of use, as the time shows that its messages take.  Pure.

    a message takes                                      a further connection is
    longer than with fewer connections                   of no use: the server, the network or the disk has its hands full
    little longer than we work at it and at one for      of no use: we have ours full, and who is beside us needs the
    each of the others                                   processors too
    its time, at a server far away                       of use with each delivery
    its time, at a server that is near                   of use with every _LOOK deliveries: it is the server's work that is
                                                         waited for, to which the connection adds a process, perhaps, and
                                                         a TLS handshake

How far away a server is, its quickest answer says.  What a message takes is found from _LOOK of them: with CHUNKING the
answers to several come at once.
"""

# Seconds of the quickest answer from where a server is far away.
_FAR = 0.005
# Deliveries after which is looked at how long they took.
_LOOK = 20
# So many times as long as it was: no more messages go through for more connections.
_SLOWER = 2.0
# So many times as long as we work: threads that take turns at one interpreter are slower than one of them.
_SPARE = 2.0


class Pace:
    """That of one destination; times are seconds of one clock.

    ``is_far``  it is worth while to begin with several connections
    """

    __slots__ = ("_count", "_least", "_since", "_took", "is_far")

    def __init__(self) -> None:
        self.is_far = False
        # deliveries since the last look, and when that was
        self._count = 0
        self._since = 0.0
        # what a message took its connection then, and the shortest that this has been
        self._took = 0.0
        self._least = float("inf")

    def let_in(self, now: float, quickest: float) -> None:
        """The first connection is ready for its first message, and its quickest answer so far took so long."""
        self.is_far = quickest >= _FAR
        self._count = 0
        self._since = now

    def more(self, now: float, connections: int, work: float) -> float:
        """How many more connections there may be, now that a message is through; ``work``: processor time that one takes."""
        self._count += 1
        looked = self._count == _LOOK
        if looked:
            self._took = connections * (now - self._since) / _LOOK
            self._least = min(self._least, self._took)
            self._count = 0
            self._since = now
        if self._took > _SLOWER * self._least or _SPARE * (connections + 1) * work > self._least:
            return 0.0
        return 1.0 if self.is_far or looked else 0.0
