"""Sends a header whose value depends on the call.

Usage: python http_call_headers.py [asyncio|trio]
The example starts a server whose tool returns the value of the header `X-Tenant`.
"""

import json
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import anyio
from http_server import running_uvicorn

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

server = MCPServer("tenants", log_level="WARNING")


@server.tool()
def received(context: Context) -> str:
    """Returns the value of the header."""
    request = context.request_context.request
    assert request is not None
    return str(request.headers.get("X-Tenant"))


class HeaderFromMeta(httpx.Auth):
    requires_request_body = True

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        if request.method == "POST":
            message: Any = json.loads(request.content)
            if name := message.get("params", {}).get("_meta", {}).get("example.com/tenant"):
                request.headers["X-Tenant"] = name
        yield request


async def main(url: str) -> None:
    transport = StreamableHttpConnectionManager(url, auth=HeaderFromMeta())
    async with SessionConnectionManager(transport) as session:
        for name in ("green", "red"):
            meta: Any = {"example.com/tenant": name}
            result = await session.call_tool("received", {}, meta=meta)
            print(f"{name}: {result.content}")


if __name__ == "__main__":
    with running_uvicorn(app="http_call_headers:server.streamable_http_app") as url:
        anyio.run(main, url, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
