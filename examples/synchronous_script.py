"""Calls a server from a script without an event loop.

Usage: python synchronous_script.py
"""

import sys
from pathlib import Path

from anyio.from_thread import start_blocking_portal
from mcp import StdioServerParameters

from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
manager = SessionConnectionManager(server)
with start_blocking_portal() as portal, portal.wrap_async_context_manager(manager) as session:
    result = portal.call(session.call_tool, "add", {"a": 1, "b": 2})
    print(result.content)
