"""A server for patched_mcp_use.py, for mcp 1.x. It prints its port when it accepts connections.

Usage: patched_mcp_use_server.py stdio|SSE|"streamable HTTP"|WebSocket [PORT]
"""

import asyncio
import os
import socket
import sys
import warnings
from typing import TYPE_CHECKING

from mcp.server.fastmcp import FastMCP

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

server = FastMCP("example", log_level="ERROR")


@server.tool()
def process_id() -> int:
    """Returns the process ID of the server."""
    return os.getpid()


async def websocket_app(scope: "Scope", receive: "Receive", send: "Send") -> None:
    from mcp.server.websocket import websocket_server

    with warnings.catch_warnings(action="ignore"):  # the SDK's server is deprecated
        opening = websocket_server(scope, receive, send)
    async with opening as streams:
        low_level = server._mcp_server
        await low_level.run(*streams, low_level.create_initialization_options())


def serve(transport: str, port: int) -> None:
    import uvicorn

    apps = {"SSE": server.sse_app, "streamable HTTP": server.streamable_http_app}
    app = apps[transport]() if transport in apps else websocket_app
    lifespan = "on" if transport in apps else "off"
    listener = socket.create_server(("127.0.0.1", port))
    print(listener.getsockname()[1], flush=True)
    options = uvicorn.Config(app, lifespan=lifespan, log_level="critical", ws="websockets-sansio")
    asyncio.run(uvicorn.Server(options).serve([listener]))


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run()
    else:
        serve(sys.argv[1], int(sys.argv[2]))
