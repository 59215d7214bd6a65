"""The types of a transport's streams, with both mcp 1.x and 2.x."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import assert_type

from mcp import ClientSession, StdioServerParameters, stdio_client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.lowlevel import Server
from mcp.shared.memory import create_client_server_memory_streams
from mcp.shared.message import SessionMessage

from ownertask import ConnectionManager
from ownertask.mcp import (
    SessionConnectionManager,
    SseConnectionManager,
    StdioConnectionManager,
    StreamableHttpConnectionManager,
    TransportSource,
    TransportStreams,
    WebSocketConnectionManager,
)

PARAMETERS = StdioServerParameters(command="server")
URL = "http://localhost/mcp"


async def messages(manager: StdioConnectionManager, message: SessionMessage) -> None:
    read_stream, write_stream = await manager.start()
    assert_type(await read_stream.receive(), SessionMessage | Exception)
    async for item in read_stream:
        assert_type(item, SessionMessage | Exception)
    async with read_stream as reading, write_stream as writing:
        assert_type(await reading.receive(), SessionMessage | Exception)
        await writing.send(message)
    await write_stream.send(message)
    await write_stream.aclose()
    await write_stream.send("text")  # type: ignore[arg-type]


async def sessions_of_the_sdk(manager: ConnectionManager[TransportStreams]) -> None:
    async with (
        manager as (read_stream, write_stream),
        ClientSession(read_stream, write_stream) as session,
    ):
        assert_type(session, ClientSession)
        await session.initialize()
    async with manager as streams, ClientSession(*streams) as session:
        assert_type(session, ClientSession)


async def transport_managers() -> None:
    assert_type(await StdioConnectionManager(PARAMETERS).start(), TransportStreams)
    assert_type(await SseConnectionManager(URL, {"a": "b"}).start(), TransportStreams)
    assert_type(await StreamableHttpConnectionManager(URL).start(), TransportStreams)
    assert_type(await WebSocketConnectionManager("ws://localhost").start(), TransportStreams)
    assert_type(StdioConnectionManager(PARAMETERS).get_streams(), TransportStreams | None)
    assert_type(SseConnectionManager(URL).headers, dict[str, str] | None)


@asynccontextmanager
async def memory_streams() -> AsyncGenerator[TransportStreams]:
    async with create_client_server_memory_streams() as (client_streams, _):
        yield client_streams


@asynccontextmanager
async def text() -> AsyncGenerator[tuple[str, str]]:
    yield "", ""


def functions_as_transports() -> None:
    SessionConnectionManager(memory_streams)
    SessionConnectionManager(lambda: stdio_client(PARAMETERS))
    SessionConnectionManager(partial(stdio_client, PARAMETERS))
    SessionConnectionManager(lambda: sse_client(URL))
    SessionConnectionManager(partial(sse_client, URL))
    SessionConnectionManager(lambda: streamable_http_client(URL))
    SessionConnectionManager(partial(streamable_http_client, URL))
    SessionConnectionManager(memory_streams())  # type: ignore[arg-type]
    SessionConnectionManager(text)  # type: ignore[arg-type]


def managers_as_transports(inner: ConnectionManager[str]) -> None:
    SessionConnectionManager(StdioConnectionManager(PARAMETERS))
    SessionConnectionManager(ConnectionManager.from_factory(memory_streams))
    SessionConnectionManager(ConnectionManager.from_factory(lambda: stdio_client(PARAMETERS)))
    SessionConnectionManager(ConnectionManager.from_factory(partial(sse_client, URL)))
    with_three_values = ConnectionManager.from_factory(partial(streamable_http_client, URL))
    SessionConnectionManager(with_three_values)
    SessionConnectionManager(inner)  # type: ignore[arg-type]


def other_transports(server: Server[object], source: TransportSource) -> None:
    SessionConnectionManager(PARAMETERS)
    SessionConnectionManager(URL)
    SessionConnectionManager(server)
    SessionConnectionManager(source)
    SessionConnectionManager(8000)  # type: ignore[arg-type]
    SessionConnectionManager({"command": "server"})  # type: ignore[arg-type]
