"""The server of the examples on HTTP, by the transport that is named, on any port.

It has one tool more, which tells of its progress again and again, and never answers.
"""

import sys
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))
from server import server

try:
    from mcp.server.mcpserver import Context
except ImportError:  # mcp 1.x
    from mcp.server.fastmcp import Context


@server.tool()
async def wait(ctx: Context) -> str:
    while True:  # the first may come too early for the stream that it belongs into
        await ctx.report_progress(1)
        await anyio.sleep(0.05)


if hasattr(server.settings, "port"):  # mcp 1.x
    server.settings.port = 0
    server.run(sys.argv[1])
else:
    server.run(sys.argv[1], port=0)
