"""Fixtures over the real servers: each is started when a test asks for it and stopped when the test ends."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeVar

import pytest

from peers.certificate import Certificate
from peers.nameserver import NameServer
from peers.postfix import Postfix
from peers.process import Server

S = TypeVar("S", bound=Server)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate for localhost, every name below example.test, and 127.0.0.1 to 127.0.0.9."""
    addresses = [f"127.0.0.{host}" for host in range(1, 10)]
    return Certificate(
        tmp_path_factory.mktemp("certificate"), "localhost", "*.example.test", *addresses
    )


def starter(kind: Callable[..., S]) -> Iterator[Callable[..., S]]:
    with ExitStack() as servers:

        def start(*arguments: object, **options: object) -> S:
            server = kind(*arguments, **options)
            servers.enter_context(server)
            # pytest shows it for a test that fails.
            servers.callback(
                lambda: print(f"--- log of {server.name} {server.directory}\n{server.log()}")
            )
            return server

        yield start


@pytest.fixture
def start_postfix() -> Iterator[Callable[..., Postfix]]:
    """``start_postfix(...)``: a Postfix that serves, with the arguments of the class; any number of them."""
    yield from starter(Postfix)


@pytest.fixture
def start_nameserver() -> Iterator[Callable[..., NameServer]]:
    """``start_nameserver(zone, ...)``: a NameServer that answers, with the arguments of the class."""
    yield from starter(NameServer)
