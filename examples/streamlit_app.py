"""A Streamlit app that calls an MCP server. All of its users share one session.

Usage: streamlit run streamlit_app.py
"""

import atexit
import sys
from contextlib import ExitStack
from pathlib import Path

import streamlit as st
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import ClientSession, StdioServerParameters

from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])


@st.cache_resource  # runs once, although Streamlit runs the script again for each interaction
def open_portal() -> tuple[BlockingPortal, SessionConnectionManager]:
    stack = ExitStack()
    portal = stack.enter_context(start_blocking_portal())
    manager = SessionConnectionManager(server)
    stack.callback(lambda: portal.call(manager.stop))
    atexit.register(stack.close)  # stops the manager, then the portal
    return portal, manager


portal, manager = open_portal()
session: ClientSession = portal.call(manager.start, 30)  # opens the connection if necessary
a = st.number_input("a", value=1)
b = st.number_input("b", value=2)
result = portal.call(session.call_tool, "add", {"a": a, "b": b})
st.write("".join(content.text for content in result.content if content.type == "text"))
