"""A small MCP server for the other examples. It runs on mcp 1.x and 2.x."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer
else:
    try:
        from mcp.server.mcpserver import MCPServer
    except ImportError:  # mcp 1.x
        from mcp.server.fastmcp import FastMCP as MCPServer

server = MCPServer("examples", log_level="WARNING")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def process_id() -> int:
    """Returns the process ID of the server."""
    return os.getpid()


if __name__ == "__main__":
    server.run()
