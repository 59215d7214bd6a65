"""The client that the conformance suite starts for each scenario.

Usage: python client.py SIDE KIND BACKEND URL

SIDE is `alone` for the SDK alone, or `managed` for the SDK with a connection manager, which is started
in one task, used in another, and stopped in a third. Everything else is the same on both sides. KIND
is `session` or `client`. The suite passes the scenario in environment variables.
"""

import json
import os
import sys
from contextlib import asynccontextmanager

import anyio
from authorization import auth_for
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from scenarios import answer_question, scenario_for


@asynccontextmanager
async def open_alone(kind, url, auth, options):
    """Opens the SDK's session or client in the caller's task."""
    async with create_mcp_http_client(auth=auth) as http_client:
        transport = streamable_http_client(url, http_client=http_client)
        if kind == "session":
            async with transport as streams, ClientSession(*streams[:2], **options) as session:
                await session.initialize()
                yield session
        else:
            from mcp import Client  # only mcp 2.x has it

            async with Client(transport, **options) as client:
                yield client


@asynccontextmanager
async def open_managed(kind, url, auth, options):
    """Starts a manager in one task, and stops it in another. The caller uses it in a third."""
    from ownertask import mcp  # the SDK alone must not need it

    types = {"session": mcp.SessionConnectionManager, "client": mcp.ClientConnectionManager}
    manager = types[kind](mcp.StreamableHttpConnectionManager(url, auth=auth), **options)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.start)
    try:
        yield manager.connection
    finally:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.stop)


async def main(side, kind, url):
    name = os.environ["MCP_CONFORMANCE_SCENARIO"]
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
    options = {"elicitation_callback": answer_question}
    if kind == "client":
        is_modern = os.environ["MCP_CONFORMANCE_PROTOCOL_VERSION"] >= "2026"
        options["mode"] = "auto" if is_modern else "legacy"
    auth = await auth_for(name, url, context)
    opener = {"alone": open_alone, "managed": open_managed}[side]
    async with opener(kind, url, auth, options) as connection:
        await scenario_for(name)(connection, context)


if __name__ == "__main__":
    side, kind, backend, url = sys.argv[1:]
    anyio.run(main, side, kind, url, backend=backend)
