"""What one look has found.

ok     as it should be
warn   mail goes out, but somebody should know
fail   mail is refused, or lost sight of, or somebody may do what they should not; with the command that repairs it
-      not to be seen by who asks: root sees all
"""

from collections.abc import Iterator

from minisend.admin.terminal import printable

OK, WARN, FAIL, UNSEEN = "ok", "warn", "fail", "-"


class Check:
    """``state`` a word of the table above, ``what`` was looked at, ``text``, and the ``command`` that repairs it or ""."""

    __slots__ = ("command", "state", "text", "what")

    def __init__(self, state: str, what: str, text: str, command: str = "") -> None:
        self.state = state
        self.what = printable(what)
        self.text = printable(text)
        self.command = printable(command)


Checks = Iterator[Check]
