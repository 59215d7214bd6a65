"""Sends MCP messages over TCP, one per line.

Usage: python own_mcp_transport.py [asyncio|trio]
The example starts a server. It connects each TCP connection to a new process of server.py.
"""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.abc import AnyByteReceiveStream, AnyByteSendStream, SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from mcp.shared.message import SessionMessage

from ownertask.mcp import SessionConnectionManager, TransportStreams

if TYPE_CHECKING:
    from mcp_types import jsonrpc_message_adapter
else:
    try:
        from mcp_types import jsonrpc_message_adapter
    except ImportError:  # mcp 1.x
        from mcp.types import JSONRPCMessage
        from pydantic import TypeAdapter

        jsonrpc_message_adapter = TypeAdapter(JSONRPCMessage)


@asynccontextmanager
async def connect(port: int) -> AsyncGenerator[TransportStreams]:
    to_session, read_stream = anyio.create_memory_object_stream[SessionMessage | Exception]()
    write_stream, from_session = anyio.create_memory_object_stream[SessionMessage]()

    async def receive() -> None:
        lines = BufferedByteReceiveStream(tcp)
        while True:
            line = await lines.receive_until(b"\n", max_bytes=16 * 1024 * 1024)
            await to_session.send(SessionMessage(jsonrpc_message_adapter.validate_json(line)))

    async def send() -> None:
        async for message in from_session:
            line = message.message.model_dump_json(by_alias=True, exclude_unset=True)
            await tcp.send(f"{line}\n".encode())

    async with (
        await anyio.connect_tcp("127.0.0.1", port) as tcp,
        to_session,
        from_session,
        read_stream,
        write_stream,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(receive)
        tasks.start_soon(send)
        yield read_stream, write_stream
        tasks.cancel_scope.cancel()


async def serve(tcp: SocketStream) -> None:
    async def copy(source: AnyByteReceiveStream, target: AnyByteSendStream) -> None:
        with suppress(anyio.BrokenResourceError):
            async for data in source:
                await target.send(data)
        tasks.cancel_scope.cancel()

    command = [sys.executable, str(Path(__file__).with_name("server.py"))]
    async with tcp, await anyio.open_process(command, stderr=None) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(copy, process.stdout, tcp)
            tasks.start_soon(copy, tcp, process.stdin)


async def main() -> None:
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as server,
    ):
        server.start_soon(listener.serve, serve)
        port = listener.extra(SocketAttribute.local_port)
        async with SessionConnectionManager(lambda: connect(port)) as session:
            print((await session.call_tool("add", {"a": 1, "b": 2})).content)
        server.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
