"""A small MCP server for the other examples, on stdio or over HTTP. Runs on mcp 1.x and 2.x.

Usage: python examples/server.py [sse|streamable-http]
"""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer
else:
    try:
        from mcp.server.mcpserver import MCPServer
    except ImportError:  # mcp 1.x
        from mcp.server.fastmcp import FastMCP as MCPServer

server = MCPServer("examples")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def process_id() -> int:
    """The id of the server's process."""
    return os.getpid()


if __name__ == "__main__":
    if sys.argv[1:]:
        import uvicorn

        app = server.sse_app() if sys.argv[1] == "sse" else server.streamable_http_app()
        uvicorn.run(app, port=0, access_log=False, timeout_graceful_shutdown=1)
    else:
        server.run()
