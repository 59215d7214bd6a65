"""Connects to a server over a WebSocket, with new headers each time.

Usage: python websocket.py
The example starts a server. It connects each WebSocket to a new process of server.py.
"""

import asyncio
import sys
from asyncio.subprocess import PIPE, create_subprocess_exec
from pathlib import Path

from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from ownertask.mcp import SessionConnectionManager, WebSocketConnectionManager


async def fresh_headers() -> dict[str, str]:
    return {"Authorization": "Bearer " + "a-new-token"}


def create_manager(url: str) -> SessionConnectionManager:
    return SessionConnectionManager(WebSocketConnectionManager(url, fresh_headers))


async def handle(socket: ServerConnection) -> None:
    server = Path(__file__).with_name("server.py")
    process = await create_subprocess_exec(sys.executable, str(server), stdin=PIPE, stdout=PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send_lines(process.stdout, socket))
        async for message in socket:
            assert isinstance(message, str)
            process.stdin.write(f"{message}\n".encode())
        process.stdin.close()
    await process.wait()


async def send_lines(lines: asyncio.StreamReader, socket: ServerConnection) -> None:
    async for line in lines:
        await socket.send(line.decode())


async def main() -> None:
    async with serve(handle, "127.0.0.1", 0, subprotocols=[Subprotocol("mcp")]) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with create_manager(f"ws://127.0.0.1:{port}/mcp?token=hidden") as session:
            print((await session.call_tool("add", {"a": 1, "b": 2})).content)


if __name__ == "__main__":
    asyncio.run(main())
