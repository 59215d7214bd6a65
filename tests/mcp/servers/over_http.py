"""Runs the server of the examples over HTTP, on a free port.

Usage: over_http.py TRANSPORT. It has one additional tool, which reports progress forever.
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
        # On 1.x report_progress() uses the stream of the GET request, which may not be open yet.
        await ctx.session.send_progress_notification(token, 1, related_request_id=ctx.request_id)


@server.tool()
async def wait(ctx: Context) -> str:
    while True:  # the first report may be sent before its stream is open
        await report_progress(ctx)
        await anyio.sleep(0.05)


server.settings.log_level = "INFO"  # uvicorn logs the URL
if hasattr(server.settings, "port"):  # mcp 1.x
    server.settings.port = 0
    server.run(sys.argv[1])
else:
    server.run(sys.argv[1], port=0)
