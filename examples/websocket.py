"""Connects to a server over a WebSocket, with new headers each time. The example starts the server."""

import subprocess
import sys
from pathlib import Path

import anyio

from ownertask.mcp import SessionConnectionManager, WebSocketConnectionManager

SERVER = Path(__file__).parents[1] / "tests" / "mcp" / "servers" / "websocket.py"


# --8<-- [start:headers]
async def fresh_headers() -> dict[str, str]:
    return {"Authorization": "Bearer " + "a-new-token"}


def create_manager(url: str) -> SessionConnectionManager:
    return SessionConnectionManager(WebSocketConnectionManager(url, fresh_headers))


# --8<-- [end:headers]
async def main(url: str) -> None:
    async with create_manager(url) as session:
        print((await session.call_tool("add", {"a": 1, "b": 2})).content)


if __name__ == "__main__":
    with subprocess.Popen([sys.executable, SERVER, "websockets"], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        anyio.run(main, f"ws://127.0.0.1:{port}/mcp?token=hidden")
        server.terminate()
