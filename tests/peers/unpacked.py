"""Where the files of a real server are, and the one rule for a server that cannot be had.

Mail servers exclude each other as Debian packages.  ``.ci/run`` therefore unpacks each into a directory of its own,
``$MINISEND_PEERS/PACKAGE`` (default ``/var/tmp/minisend-peers``), and installs only the libraries.  Nothing is
downloaded or installed from here.
"""

import os
from pathlib import Path
from typing import NoReturn

import pytest


def unavailable(reason: str) -> NoReturn:
    """End the test: skipped with ``reason``, or failed in CI, where every peer has to be there (``CI=true``)."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (a skip elsewhere, a failure in CI)", pytrace=False)
    pytest.skip(reason)


def unpacked(package: str) -> Path:
    """The directory that holds the files of a Debian package, laid out as under ``/``."""
    cache = Path(os.environ.get("MINISEND_PEERS") or "/var/tmp/minisend-peers")
    directory = cache / package
    if not directory.is_dir():
        unavailable(f"{package} is not unpacked in {cache}: run .ci/run install")
    # In /var/tmp anybody could have made it, and the tests may be run by root.
    if directory.stat().st_uid not in (0, os.geteuid()):
        unavailable(f"{directory} belongs to somebody else")
    return directory
