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


async def report_progress(ctx):
    if not hasattr(server.settings, "port"):
        await ctx.report_progress(1)
    elif (meta := ctx.request_context.meta) is not None and (token := meta.progressToken) is not None:
        # On 1.x report_progress() sends it on the stream of a GET, which may not be there yet.
        await ctx.session.send_progress_notification(token, 1, related_request_id=ctx.request_id)


@server.tool()
async def wait(ctx: Context) -> str:
    while True:  # the first may come too early for the stream that it belongs into
        await report_progress(ctx)
        await anyio.sleep(0.05)


if hasattr(server.settings, "port"):  # mcp 1.x
    server.settings.port = 0
    server.run(sys.argv[1])
else:
    server.run(sys.argv[1], port=0)
