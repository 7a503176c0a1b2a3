"""The machines, one of each for all tests: making one takes as long as ten tests."""

from collections.abc import Iterator

import pytest

from callers.machine import Machine


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    with Machine("callers") as made:
        yield made


@pytest.fixture(scope="session")
def cronie_machine() -> Iterator[Machine]:
    with Machine("cronie") as made:
        yield made
