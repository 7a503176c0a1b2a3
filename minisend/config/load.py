"""The whole configuration, checked: what every command but ``sendmail`` begins with.

Never loaded by a submission.
"""

from minisend.config.checks import check_file, check_together, smarthost_tables
from minisend.config.files import default_spool, in_force
from minisend.config.keys import NAMED, NUMBERED
from minisend.config.sections import (
    Config,
    Delivery,
    Dns,
    Limits,
    Route,
    Smarthost,
    Spool,
    Submission,
)
from minisend.config.toml import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def load(explicit: "str | None", environ: "Mapping[bytes, bytes]", uid: int, euid: int) -> Config:
    """Read and check the whole configuration.

    ``explicit``  the value of -C, None without one
    ``environ``   as ``posix.environ`` and ``os.environb`` have it
    Raises ConfigError, one line: ``FILE:LINE: [table] key: expected this (got that)``.
    """
    main = None
    values: dict[str, dict[str, Any]] = {}
    origin: dict[tuple[str, str], tuple[str, str, str]] = {}
    routes = 0
    for path, text in in_force(explicit, environ, uid, euid):
        main = main or path
        for there, names in check_file(path, text, parse(path, text)).items():
            table = there
            if there.startswith(NUMBERED):
                routes += 1
                table = f"{NUMBERED}{routes}"
            values.setdefault(table, {}).update(names)
            origin[table, ""] = (path, text, there)
            for name in names:
                origin[table, name] = (path, text, there)
    check_together(values, origin)

    spool = values.get("spool", {})
    spool_path = spool.pop("path", None) or default_spool(environ, uid, euid)
    smarthosts = {
        table: Smarthost(values[table].pop("host", ()), **values[table])
        for table in smarthost_tables(values)
    }
    return Config(
        file=main,
        spool=Spool(spool_path, **spool),
        submission=Submission(**values.get("submission", {})),
        smarthost=smarthosts.pop("smarthost", None),
        smarthosts={table[len(NAMED) :]: found for table, found in smarthosts.items()},
        routes=tuple(Route(**values[f"{NUMBERED}{number + 1}"]) for number in range(routes)),
        delivery=Delivery(**values.get("delivery", {})),
        dns=Dns(**values.get("dns", {})),
        limits=Limits(**values.get("limits", {})),
        **values.get("", {}),
    )
