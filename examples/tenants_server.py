"""An MCP server for the example `tenants.py`. It runs on mcp 1.x and 2.x."""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context, MCPServer
else:
    try:
        from mcp.server.mcpserver import Context, MCPServer
    except ImportError:  # mcp 1.x
        from mcp.server.fastmcp import Context
        from mcp.server.fastmcp import FastMCP as MCPServer

logging.getLogger("mcp").setLevel(logging.WARNING)  # mcp 1.x would log each request

server = MCPServer("tenants")


@server.tool()
def account(context: Context) -> str:
    """Returns the API key of the caller. Another server would look up the caller's account."""
    request = context.request_context.request
    assert request is not None
    return str(request.headers["X-API-Key"])
