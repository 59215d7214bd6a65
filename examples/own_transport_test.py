"""Checks that the manager of own_transport.py keeps the rules for managers.

Usage: pytest own_transport_test.py
"""

import subprocess
import sys
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from own_transport import LineConnection, LineConnectionManager

from ownertask.testing import connection_manager_tests

SERVER = Path(__file__).with_name("own_transport_server.py")


@pytest.fixture(scope="module", autouse=True)
def server() -> Generator[None]:
    with subprocess.Popen([sys.executable, SERVER], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        address["port"] = int(process.stdout.readline())
        yield
        process.kill()


address = {"port": 0}  # the fixture sets the port


def make_manager() -> LineConnectionManager:
    return LineConnectionManager("127.0.0.1", address["port"])


async def use(connection: LineConnection) -> None:
    assert await connection.request("hello") == "HELLO"


async def lose(connection: LineConnection) -> None:
    with suppress(anyio.IncompleteRead):
        await connection.request("quit")  # the server closes the connection


test_line_connections = connection_manager_tests(make_manager, use=use, lose=lose)
