"""Tries each way to hold connections in several situations, and prints what happens, as JSON.

Usage: python tests/mcp/alternatives.py
"""

import asyncio
import json
import os
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from anyio.from_thread import start_blocking_portal
from mcp import ClientSession, ClientSessionGroup, StdioServerParameters, stdio_client

from ownertask.mcp import SessionConnectionManager

SERVER = Path(__file__).parent / "servers" / "tiny.py"
GOOD = StdioServerParameters(command=sys.executable, args=[str(SERVER), "process_id"])
BAD = StdioServerParameters(command=sys.executable, args=["-c", "import sys; sys.exit('no license')"])

GROUP = ClientSessionGroup(component_name_hook=lambda name, info: os.urandom(4).hex() + name)


@asynccontextmanager
async def session_to(server):
    async with stdio_client(server) as streams, ClientSession(*streams) as session:
        await session.initialize()
        yield session


class Stack:
    async def connect(self, server=GOOD):
        self.stack = AsyncExitStack()
        self.session = await self.stack.enter_async_context(session_to(server))

    async def call(self, tool, **arguments):
        return await self.session.call_tool(tool, arguments)

    async def close(self):
        await self.stack.aclose()


class Group(Stack):
    async def connect(self, server=GOOD):
        self.session = await GROUP.connect_to_server(server)

    async def close(self):
        await GROUP.disconnect_from_server(self.session)


class Thread(Stack):
    async def connect(self, server=GOOD):
        self.thread = start_blocking_portal()
        self.portal = await asyncio.to_thread(self.thread.__enter__)
        self.held = self.portal.wrap_async_context_manager(session_to(server))
        self.session = await asyncio.to_thread(self.held.__enter__)

    async def call(self, tool, **arguments):
        return await asyncio.to_thread(self.portal.call, self.session.call_tool, tool, arguments)

    async def close(self):
        await asyncio.to_thread(self.held.__exit__, None, None, None)
        await asyncio.to_thread(self.thread.__exit__, None, None, None)


class Actor:
    async def connect(self, server=GOOD):
        self.queue = asyncio.Queue()
        opened = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self.run(server, opened))
        await opened

    async def run(self, server, opened):
        try:
            async with session_to(server) as session:
                opened.set_result(None)
                while (item := await self.queue.get()) is not None:
                    tool, arguments, answer = item
                    try:
                        answer.set_result(await session.call_tool(tool, arguments))
                    except Exception as error:
                        answer.set_exception(error)
        except Exception as error:
            if opened.done():
                raise
            opened.set_exception(error)

    async def call(self, tool, **arguments):
        answer = asyncio.get_running_loop().create_future()
        await self.queue.put((tool, arguments, answer))
        return await answer

    async def close(self):
        await self.queue.put(None)
        await self.task


class OwnerTask:
    def __init__(self):
        self.manager = SessionConnectionManager(GOOD, name="calculator")

    async def connect(self, server=GOOD):
        if server is BAD:
            self.manager = SessionConnectionManager(BAD, name="calculator")
        await self.manager.start()

    async def call(self, tool, **arguments):
        return await self.manager.connection.call_tool(tool, arguments)

    async def close(self):
        await self.manager.stop()


async def in_a_task(function, *args):
    return await asyncio.create_task(function(*args))


async def process_id(way):
    result = await way.call("process_id")
    return int(result.content[0].text)


async def closed_in_another_task(way):
    """Closes in another task, while the task that opened goes on with something else."""
    opened, ended = asyncio.Event(), asyncio.Event()

    async def opener():
        await way.connect()
        opened.set()
        await ended.wait()

    task = asyncio.create_task(opener())
    await opened.wait()
    error = await error_of(in_a_task(way.close))
    ended.set()
    await asyncio.wait([task])
    return [error, "cancelled" if task.cancelled() else "undisturbed"]


async def closed_first_in_first_out(way):
    """Closes the first of two connections in the task that opened both."""
    second = type(way)()
    await way.connect()
    await second.connect()
    error = await error_of(way.close())
    return [error, await error_of(second.call("process_id")), await error_of(second.close())]


async def server_killed(way):
    await in_a_task(way.connect)
    os.kill(await process_id(way), signal.SIGKILL)

    def call():  # with mcp 1.x, it may never return
        return error_of(asyncio.wait_for(way.call("process_id"), 2))

    while await call() == "ok":  # until the session has detected it
        pass
    return await call()


async def server_exits_at_once(way):
    return await error_of(in_a_task(way.connect, BAD))


async def error_of(call):
    try:
        await call
    except BaseException as error:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        return f"{type(error).__name__}: {error}"
    return "ok"


SITUATIONS = [
    closed_in_another_task,
    closed_first_in_first_out,
    server_killed,
    server_exits_at_once,
]
WAYS = {"stack": Stack, "group": Group, "thread": Thread, "actor": Actor, "ownertask": OwnerTask}


def in_a_fork(way, situation):
    """Starts a fork that prints the result. Returns the pipe from which to read it.

    After some of the errors, an orderly end would hang or fail. A fork is faster than a new interpreter,
    which would import the SDK again.
    """
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        return open(reader)  # noqa: PTH123
    signal.alarm(45)

    async def run():
        os.write(writer, json.dumps(await situation(way())).encode())
        os._exit(0)

    try:
        asyncio.run(run())
    finally:
        os._exit(1)


if __name__ == "__main__":
    pipes = {(way, each.__name__): in_a_fork(WAYS[way], each) for way in WAYS for each in SITUATIONS}
    results = {way: {} for way in WAYS}
    for (way, situation), pipe in pipes.items():
        with pipe:
            results[way][situation] = json.loads(pipe.read() or "null")
    print(json.dumps(results, indent=2))
