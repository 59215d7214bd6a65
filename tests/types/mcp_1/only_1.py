"""The types of classes that only mcp 1.x has."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import assert_type

from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from httpx import AsyncClient, BasicAuth
from mcp import ClientSession
from mcp.server import FastMCP
from mcp.server.lowlevel import Server
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.memory import create_client_server_memory_streams
from mcp.shared.message import SessionMessage

from ownertask import ConnectionManager
from ownertask.mcp import SessionConnectionManager, SseConnectionManager, TransportStreams

URL = "http://localhost/mcp"

Reading = MemoryObjectReceiveStream[SessionMessage | Exception]
Writing = MemoryObjectSendStream[SessionMessage]


@asynccontextmanager
async def memory_streams() -> AsyncGenerator[tuple[Reading, Writing]]:
    async with create_client_server_memory_streams() as (client_streams, _):
        yield client_streams


@asynccontextmanager
async def wrong_way() -> AsyncGenerator[tuple[Writing, Reading]]:
    raise NotImplementedError
    yield


def servers_in_this_process(server: FastMCP, lowlevel: Server[object, object]) -> None:
    assert_type(SessionConnectionManager(server), SessionConnectionManager[ClientSession])
    SessionConnectionManager(FastMCP("a"))
    SessionConnectionManager(lowlevel)
    SessionConnectionManager(Server("b"))
    SessionConnectionManager(FastMCP)  # type: ignore[arg-type]


def transports_of_1(manager: ConnectionManager[tuple[Reading, Writing]]) -> None:
    SessionConnectionManager(memory_streams)
    SessionConnectionManager(manager)
    SessionConnectionManager(wrong_way)  # type: ignore[arg-type]


async def accept_memory_streams(read_stream: Reading, write_stream: Writing) -> None:
    """Is an application's function for 1.x. It also accepts the streams of a manager."""


async def streams_for_code_of_1(manager: ConnectionManager[TransportStreams]) -> None:
    async with manager as (read_stream, write_stream):
        await accept_memory_streams(read_stream, write_stream)


def http() -> None:
    SseConnectionManager(URL, auth=BasicAuth("a", "b"), httpx_client_factory=create_mcp_http_client)
    SseConnectionManager(URL, httpx_client_factory=AsyncClient)  # type: ignore[arg-type]
