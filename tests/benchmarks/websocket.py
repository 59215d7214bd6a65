"""Compares echoes over a WebSocket with the bare library, which does the same work with JSON."""

import asyncio
from pathlib import Path
from time import perf_counter

from streamable_http import server_process
from websockets.asyncio.client import connect

from ownertask.mcp import WebSocketConnectionManager, _sdk

SERVER = Path(__file__).parents[1] / "mcp" / "servers" / "websocket_echo.py"


async def compare(report, url):
    options = {"subprotocols": ["mcp"], "compression": None, "max_size": None, "proxy": None}
    manager = WebSocketConnectionManager(url, proxy=None, max_message_bytes=None)
    async with connect(url, **options) as socket, manager as (read_stream, write_stream):
        for label, size, count in (("small", 50, 300), ("1 MB", 1_000_000, 15)):
            text = '{"jsonrpc":"2.0","id":1,"result":{"text":"' + "x" * size + '"}}'
            message = _sdk.message_from_json(text)

            async def bare(message=message, count=count):
                before = perf_counter()
                for _ in range(count):
                    await socket.send(_sdk.message_to_utf8(message), text=True)
                    _sdk.message_from_json(await socket.recv(decode=False))
                return (perf_counter() - before) / count

            async def ours(message=message, count=count):
                before = perf_counter()
                for _ in range(count):
                    await write_stream.send(message)
                    await read_stream.receive()
                return (perf_counter() - before) / count

            await report.compare(f"an echo, {label}", "bare websockets", ours, bare, 60, goal=1.0)


def measure(report):
    with server_process(SERVER) as port:
        asyncio.run(compare(report, f"ws://127.0.0.1:{port}/"))
