"""A server of the SDK over streamable HTTP, on a free port, which it prints."""

import socket

import uvicorn
from mcp.server.mcpserver import MCPServer

server = MCPServer("text", log_level="ERROR")


@server.tool()
def text(text: str) -> str:
    return text


listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="error")).run([listener])
