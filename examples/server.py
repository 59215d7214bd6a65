"""A small MCP server on stdio, for the other examples. Runs on mcp 1.x and 2.x."""

import os
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
    server.run()
