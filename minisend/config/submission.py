"""The few facts that a submission needs: read in every ``sendmail``, so from no more than they take.

Checks only the keys it returns: a mistake in [smarthost] must not stop a cron job from handing over its mail.
"""

from minisend.config.files import default_spool, in_force
from minisend.config.forms import in_form
from minisend.config.keys import KEYS
from minisend.config.toml import parse
from minisend.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_KEYS = (
    ("spool", "path"),
    ("spool", "max_message_size"),
    ("spool", "min_free"),
    ("spool", "min_free_inodes"),
    ("spool", "sync"),
    ("submission", "socket"),
    ("submission", "drop"),
)


class SubmissionFacts:
    """All that ``sendmail`` needs to know before it hands a message over; forms as in ``Config``.

    ``spool_path``  "" for a uid that has no home, and no spool is named: then the socket and the drop are left
    """

    __slots__ = (
        "drop",
        "file",
        "max_message_size",
        "min_free",
        "min_free_inodes",
        "socket",
        "spool_path",
        "sync",
    )

    def __init__(
        self,
        file: "str | None",
        spool_path: str,
        *,
        max_message_size: int,
        min_free: int,
        min_free_inodes: int,
        sync: str,
        socket: "str | None",
        drop: "str | None",
    ) -> None:
        self.file = file
        self.spool_path = spool_path
        self.max_message_size = max_message_size
        self.min_free = min_free
        self.min_free_inodes = min_free_inodes
        self.sync = sync
        self.socket = socket
        self.drop = drop


def submission_facts(
    explicit: "str | None", environ: "Mapping[bytes, bytes]", uid: int, euid: int
) -> SubmissionFacts:
    """Read what a submission needs; arguments as for ``load``.

    Raises ConfigError for a file that cannot be read or is not TOML, and for a wrong value of a key
    it returns; what else is wrong there is for ``load`` to say.
    """
    main = None
    rows = [row[:4] for row in KEYS if row[:2] in _KEYS]
    values = {name: in_form(kind, default, default) for _, name, kind, default in rows}
    for path, text in in_force(explicit, environ, uid, euid):
        main = main or path
        tables = parse(path, text)
        for table, name, kind, default in rows:
            section = tables.get(table, {})
            if not isinstance(section, dict):
                from minisend.config.mistakes import no_table

                raise no_table(path, text, table, section)
            if name in section:
                try:
                    values[name] = in_form(kind, section[name], default)
                except ValueError:
                    from minisend.config.mistakes import not_in_form

                    wrong = section[name]
                    raise not_in_form(path, text, table, name, kind, wrong) from None
    spool_path = values.pop("path")
    if spool_path is None:
        try:
            spool_path = default_spool(environ, uid, euid)
        except ConfigError:
            if not (values["socket"] or values["drop"]):
                raise
            spool_path = ""  # who has no place for a queue has the system's service
    return SubmissionFacts(main, spool_path, **values)
