"""A small MCP server for the other examples, on stdio or over HTTP. It runs on mcp 1.x and 2.x.

Usage: python examples/server.py [sse|streamable-http [TOKEN]]
"""

import logging
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer
    from starlette.types import ASGIApp, Receive, Scope, Send
else:
    try:
        from mcp.server.mcpserver import MCPServer
    except ImportError:  # mcp 1.x
        from mcp.server.fastmcp import FastMCP as MCPServer

logging.getLogger("mcp").setLevel(logging.WARNING)  # mcp 1.x would log each request

# --8<-- [start:server]
server = MCPServer("examples")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


# --8<-- [end:server]


@server.tool()
def process_id() -> int:
    """Returns the process ID of the server."""
    return os.getpid()


def require_token(app: "ASGIApp", token: str) -> "ASGIApp":
    """Wraps the application so that it refuses requests without the token."""
    from starlette.responses import Response

    async def guard(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http" or (b"authorization", f"Bearer {token}".encode()) in scope["headers"]:
            await app(scope, receive, send)
        else:
            await Response(status_code=401, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)

    return guard


if __name__ == "__main__":
    if sys.argv[1:]:
        import uvicorn

        transport, token = sys.argv[1], "".join(sys.argv[2:])
        app = server.sse_app() if transport == "sse" else server.streamable_http_app()
        app_to_serve = require_token(app, token) if token else app
        uvicorn.run(app_to_serve, port=0, access_log=False, timeout_graceful_shutdown=1)
    else:
        server.run()
