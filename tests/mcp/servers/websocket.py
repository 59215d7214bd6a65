"""Runs the server of the examples over WebSockets and prints its port. Usage: websocket.py KIND.

KIND is `websockets` (the library), `uvicorn` (a Starlette application) or `sdk` (the application of
mcp 1.x). The first two use `streams_of()` between the socket and the server.
"""

import socket
import sys
import warnings
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import uvicorn
from mcp.shared.message import SessionMessage
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))
from server import server

try:
    from mcp_types import jsonrpc_message_adapter

    low_level = server._lowlevel_server
    from_json = jsonrpc_message_adapter.validate_json
except ImportError:  # mcp 1.x
    from mcp.types import JSONRPCMessage

    low_level = server._mcp_server
    from_json = JSONRPCMessage.model_validate_json


async def run(streams):
    await low_level.run(*streams, low_level.create_initialization_options())


@asynccontextmanager
async def streams_of(receive, send):
    to_server, read_stream = anyio.create_memory_object_stream(0)
    write_stream, from_server = anyio.create_memory_object_stream(0)

    async def read():
        async with to_server:
            while True:
                try:
                    text = await receive()
                except (ConnectionClosed, WebSocketDisconnect):
                    return
                await to_server.send(SessionMessage(from_json(text)))

    async def write():
        async for message in from_server:
            await send(message.message.model_dump_json(by_alias=True, exclude_none=True))

    async with anyio.create_task_group() as tg, read_stream, write_stream:
        tg.start_soon(read)
        tg.start_soon(write)
        yield read_stream, write_stream
        tg.cancel_scope.cancel()


async def handle(websocket):
    async with streams_of(websocket.recv, websocket.send) as streams:
        await run(streams)


async def endpoint(websocket):
    await websocket.accept(subprotocol="mcp")
    async with streams_of(websocket.receive_text, websocket.send_text) as streams:
        await run(streams)


async def application_of_the_sdk(scope, receive, send):
    from mcp.server.websocket import websocket_server

    with warnings.catch_warnings(action="ignore"):
        opening = websocket_server(scope, receive, send)
    async with opening as streams:
        await run(streams)


async def main(kind, port=0):
    listener = socket.create_server(("127.0.0.1", port))
    print(listener.getsockname()[1], flush=True)
    if kind == "websockets":
        async with serve(handle, sock=listener, subprotocols=["mcp"]):
            await anyio.sleep_forever()
    app = Starlette(routes=[WebSocketRoute("/mcp", endpoint)])
    if kind == "sdk":
        app = application_of_the_sdk
    config = uvicorn.Config(app, log_level="error", ws="websockets-sansio", lifespan="off")
    await uvicorn.Server(config).serve([listener])


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
