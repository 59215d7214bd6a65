"""Sends a header whose value depends on the call.

Usage: python examples/http_call_headers.py [asyncio|trio]
The example starts a server whose tool returns the value of the header `X-Tenant`.
"""

import json
import sys
from collections.abc import Awaitable, Callable, Generator
from contextvars import ContextVar
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import anyio
from http_server import running_uvicorn
from mcp import ClientSession

from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager

if TYPE_CHECKING:
    import httpx2 as httpx
    from mcp.server.mcpserver import Context, MCPServer
else:
    try:
        import httpx2 as httpx
        from mcp.server.mcpserver import Context, MCPServer
    except ImportError:  # mcp 1.x
        import httpx
        from mcp.server.fastmcp import Context
        from mcp.server.fastmcp import FastMCP as MCPServer

server = MCPServer("tenants")


@server.tool()
def received(context: Context) -> str:
    """Returns the value of the header."""
    request = context.request_context.request
    assert request is not None
    return str(request.headers.get("X-Tenant"))


# --8<-- [start:context]
tenant: ContextVar[str] = ContextVar("tenant")


class HeaderFromContext(httpx.Auth):
    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        if name := tenant.get(None):
            request.headers["X-Tenant"] = name
        yield request


async def call_in_context(session: ClientSession, name: str) -> None:
    tenant.set(name)
    print(f"{name}: {(await session.call_tool('received', {})).content}")


# --8<-- [end:context]


# --8<-- [start:meta]
class HeaderFromMeta(httpx.Auth):
    requires_request_body = True

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        if request.method == "POST":
            message: Any = json.loads(request.content)
            if name := message.get("params", {}).get("_meta", {}).get("example.com/tenant"):
                request.headers["X-Tenant"] = name
        yield request


async def call_with_meta(session: ClientSession, name: str) -> None:
    meta: Any = {"example.com/tenant": name}
    result = await session.call_tool("received", {}, meta=meta)
    print(f"{name}: {result.content}")


# --8<-- [end:meta]


async def main(url: str) -> None:
    pairs: list[tuple[httpx.Auth, Callable[[ClientSession, str], Awaitable[None]]]]
    if version("mcp").startswith("1."):  # requests do not run in the context of the call
        pairs = [(HeaderFromMeta(), call_with_meta)]
    else:
        pairs = [(HeaderFromContext(), call_in_context), (HeaderFromMeta(), call_with_meta)]
    for auth, call in pairs:
        transport = StreamableHttpConnectionManager(url, auth=auth)
        async with SessionConnectionManager(transport) as session:
            await call(session, "green")
            await call(session, "red")


if __name__ == "__main__":
    with running_uvicorn(app="http_call_headers:server.streamable_http_app") as url:
        anyio.run(main, url, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
