"""Starts a real server for each test of an example in `examples/libraries`."""

import os
import sys
from contextlib import ExitStack
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "libraries"
sys.path.insert(0, str(EXAMPLES))

SERVERS = {  # for each library, the server and the program that it requires
    "aiomqtt": ("mosquitto", "mosquitto"),
    "asyncpg": ("postgres", "initdb"),
    "asyncssh": ("ssh", None),
    "grpc": ("grpc", None),
    "httpx": ("web", None),
    "psycopg_pool": ("postgres", "initdb"),
    "redis": ("redis", "redis-server"),
}


@pytest.fixture(scope="session", autouse=True)
def _grpc_keeps_its_descriptors():
    """Keeps a channel. After the last one, a thread of gRPC closes its pollers at some later time."""
    if find_spec("grpc") is None:
        yield
        return
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # a fork, before PostgreSQL is run, replaced a poller
    from grpc import insecure_channel

    with insecure_channel("127.0.0.1:1"):  # does not connect, since nothing uses it
        yield


@pytest.fixture
def example(library):
    """The module of the example for the library."""
    from local_servers import program  # in the folder that was added to `sys.path`

    if sys.platform == "win32":
        pytest.skip("Windows does not have these servers")
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed; `nox -s libraries` installs it")
    _, server_program = SERVERS[library]
    try:
        program(server_program or "sh")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return import_module(f"with_{library}")


@pytest.fixture(scope="session")
def server_of():
    """A function that returns the server of a kind, without starting it.

    Each server is created only once, because PostgreSQL needs a long time to create its files.
    """
    from local_servers import LocalServer  # in the folder that was added to `sys.path`

    with ExitStack() as stack:

        @cache
        def create(kind):
            folder = stack.enter_context(TemporaryDirectory(prefix="ownertask-"))
            return LocalServer(kind, Path(folder))

        yield create


@pytest.fixture
def server(library, example, server_of):
    """A running server for the library. It may not accept connections yet."""
    server = server_of(SERVERS[library][0])
    server.start()
    yield server
    server.kill()
