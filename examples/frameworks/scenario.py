"""Checks the integration of one framework with a real server, over stdio and over streamable HTTP.

One task starts the integration, other tasks use it, and another task stops it. In between, the check
kills the server process. The next call through the framework must reach a new server process.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Coroutine, Iterable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias, TypeVar

from mcp import StdioServerParameters

from ownertask import ConnectionManager, ConnectionState, ReconnectPolicy
from ownertask.mcp import SessionConnectionManager

sys.path.append(str(Path(__file__).parents[1]))  # in the repository, server.py is in the folder above
import http_server

logging.getLogger("ownertask").setLevel(logging.ERROR)  # the losses are intended
QUICKLY = ReconnectPolicy(initial_delay=0.1)
SERVER = Path(http_server.__file__).with_name("server.py")
STDIO = StdioServerParameters(command=sys.executable, args=[str(SERVER)])

Target: TypeAlias = StdioServerParameters | str

T = TypeVar("T")


class Integration:
    """Connects one framework to one server. Subclasses call the framework's functions."""

    def __init__(self, target: Target) -> None:
        self.manager: ConnectionManager[object] = SessionConnectionManager(target, reconnect=QUICKLY)

    async def start(self) -> None:
        await self.manager.start()

    async def tools(self) -> Iterable[str]:
        """Returns the names of the tools that the framework sees."""
        raise NotImplementedError

    async def call(self, tool: str, **arguments: int) -> object:
        """Calls a tool through the framework."""
        raise NotImplementedError

    async def stop(self) -> None:
        await self.manager.stop()


class HttpServer:
    """Serves streamable HTTP, on the same port after a restart."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._port = server.getsockname()[1]
        self._running = ExitStack()
        self.start()

    def start(self) -> None:
        self.url = self._running.enter_context(http_server.running_uvicorn("--port", str(self._port)))

    def stop(self) -> None:
        self._running.close()  # waits for the process


def digits(result: object) -> int:
    """Reads the number from a result. Each framework has different classes for results."""
    texts = [getattr(item, "text", None) for item in result] if isinstance(result, list) else [result]
    (text,) = texts
    return int(str(text))


def has_children() -> bool:
    """Returns whether this process has a child process."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


async def in_a_task(coroutine: Coroutine[object, object, T]) -> T:
    return await asyncio.create_task(coroutine)


async def check(kind: type[Integration], target: Target, http_server: HttpServer | None) -> None:
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    integration = kind(target)

    await in_a_task(integration.start())
    names = await in_a_task(integration.tools())
    print("tools:", ", ".join(sorted(names)))
    total = digits(await in_a_task(integration.call("add", a=2, b=3)))
    print("2 + 3 =", total)
    assert total == 5

    lost = threading.Event()
    integration.manager.add_listener(
        lambda _manager, old, _new: old is ConnectionState.OPEN and lost.set()
    )
    first = digits(await in_a_task(integration.call("process_id")))
    os.kill(first, signal.SIGKILL)
    assert await asyncio.to_thread(lost.wait, 10), "the loss was not reported"
    if http_server is not None:
        http_server.stop()
        await asyncio.to_thread(http_server.start)
    second = digits(await in_a_task(integration.call("process_id")))
    assert second != first
    print("another server responded after the first one was killed")

    await in_a_task(integration.stop())
    assert integration.manager.state is ConnectionState.CLOSED, integration.manager
    if http_server is not None:
        http_server.stop()
    assert not has_children(), "a process is left"
    left = [thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")]
    assert set(left) <= threads, left
    assert asyncio.all_tasks() == tasks, asyncio.all_tasks() - tasks
    print("no task, thread or process is left")


async def check_both(kind: type[Integration]) -> None:
    async with asyncio.timeout(120):
        print("over stdio")
        await check(kind, STDIO, None)
        print("over streamable HTTP")
        http_server = await asyncio.to_thread(HttpServer)
        try:
            await check(kind, http_server.url, http_server)
        finally:
            http_server.stop()


def run(kind: type[Integration], *distributions: str) -> None:
    """Checks an integration, and raises an error if the check fails."""
    print(", ".join(f"{name} {version(name)}" for name in (*distributions, "mcp")))
    asyncio.run(check_both(kind))
