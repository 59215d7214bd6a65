"""SDK servers that run in this process, for mcp 1.x and 2.x, and a record of their lifespans."""

import functools
from contextlib import asynccontextmanager

import anyio
from mcp import types
from mcp.server import Server

from ownertask.mcp import _sdk

if _sdk.HAS_CLIENT:
    from mcp.server.mcpserver import Context, MCPServer
    from mcp.server.mcpserver.tools import Tool
else:
    from mcp.server.fastmcp import Context
    from mcp.server.fastmcp import FastMCP as MCPServer
    from mcp.server.fastmcp.tools import Tool


class Lifespan:
    """Records which tasks entered and exited the lifespan of a server.

    Attributes:
        entered: The IDs of the tasks that entered the lifespan.
        exited: The IDs of the tasks that exited the lifespan.
        on_entry: An async function that is called before the server runs, or `None`.
        on_exit: An async function that is called after the server ran, or `None`.
    """

    def __init__(self, on_entry=None, on_exit=None):
        self.entered = []
        self.exited = []
        self.on_entry = on_entry
        self.on_exit = on_exit

    @asynccontextmanager
    async def __call__(self, server):
        self.entered.append(anyio.get_current_task().id)
        try:
            if self.on_entry is not None:
                await self.on_entry()
            yield {"lifespan": self}
        finally:
            self.exited.append(anyio.get_current_task().id)
            if self.on_exit is not None:
                await self.on_exit()


class Calls:
    """Records the calls of the tool `hang`: when the first call began, and how many were cancelled."""

    def __init__(self):
        self.began = anyio.Event()
        self.cancelled = 0

    async def hang(self):
        self.began.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise


async def add(a: int, b: int) -> int:  # 2.x calls other functions in threads, even in virtual time
    return a + b


def shout(text: str) -> str:
    return text.upper()


def fail() -> str:
    raise LookupError("a bug in the tool")


async def count(ctx: Context) -> str:
    for number in (1, 2, 3):
        await ctx.report_progress(number, 3)
    return "counted"


async def change(ctx: Context) -> str:
    await ctx.session.send_tool_list_changed()
    return "changed"


async def ask(ctx: Context) -> str:
    message = types.SamplingMessage(
        role="user", content=types.TextContent(type="text", text="What is the capital?")
    )
    result = await ctx.session.create_message([message], max_tokens=10)
    return result.content.text


@functools.cache
def tools():
    """Creates the tools once, because the SDK builds models of their arguments and results."""
    return [Tool.from_function(function) for function in (add, shout, fail, count, change, ask)]


def high_level(lifespan=None, calls=None):
    """Creates an `MCPServer` of 2.x, or a `FastMCP` of 1.x."""
    server = MCPServer("demo", lifespan=lifespan, tools=tools())
    if calls is not None:

        @server.tool()
        async def hang() -> str:
            await calls.hang()

    return server


class LowLevel(Server):
    """A low-level server that a test can end.

    Attributes:
        ending: The event that ends the server, of the last run.
        error: What the server raises when it is ended, or `None`.
        runs: How often the server ran.
    """

    ending = None
    error = None
    runs = 0
    ends_at_once = False

    async def run(self, *args, **options):
        self.runs += 1
        self.ending = anyio.Event()
        if self.ends_at_once:
            self.ending.set()
        async with anyio.create_task_group() as tg:

            async def serve():
                await super(LowLevel, self).run(*args, **options)
                tg.cancel_scope.cancel()

            tg.start_soon(serve)
            await self.ending.wait()
            if self.error is not None:
                raise self.error
            tg.cancel_scope.cancel()


async def _call(calls, name, arguments):
    if name == "hang":
        await calls.hang()
    if name == "fail":
        raise LookupError("a bug in the tool")
    return [types.TextContent(type="text", text=str(arguments["a"] + arguments["b"]))]


TOOLS = ("add", "hang", "fail")


def low_level(lifespan=None, calls=None):
    """Creates a low-level `Server`."""
    options = {} if lifespan is None else {"lifespan": lifespan}
    if _sdk.HAS_CLIENT:
        tools = [types.Tool(name=name, input_schema={"type": "object"}) for name in TOOLS]

        async def list_tools(ctx, params):
            return types.ListToolsResult(tools=tools)

        async def call_tool(ctx, params):
            return types.CallToolResult(content=await _call(calls, params.name, params.arguments))

        return LowLevel("demo", on_list_tools=list_tools, on_call_tool=call_tool, **options)
    server = LowLevel("demo", **options)
    server.list_tools()(_list_tools)

    @server.call_tool()
    async def call_tool(name, arguments):
        return await _call(calls, name, arguments)

    return server


async def _list_tools():
    return [types.Tool(name=name, inputSchema={"type": "object"}) for name in TOOLS]
