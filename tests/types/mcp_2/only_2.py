"""The types of classes that only mcp 2.x has."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from typing import assert_type

from httpx2 import AsyncClient, BasicAuth
from mcp import Client, ClientSession
from mcp.server import MCPServer
from mcp.server.lowlevel import Server
from mcp.shared._httpx_utils import create_mcp_http_client

from ownertask import ConnectionGroup
from ownertask.mcp import (
    ClientConnectionManager,
    SessionConnectionManager,
    SseConnectionManager,
    StdioConnectionManager,
    ping_every,
)

URL = "http://localhost/mcp"


async def watch_client(client: Client) -> None:
    pass


async def watch_session(session: ClientSession) -> None:
    pass


def servers_in_this_process(server: MCPServer, lowlevel: Server[object]) -> None:
    assert_type(SessionConnectionManager(server), SessionConnectionManager[ClientSession])
    SessionConnectionManager(MCPServer("a"))
    SessionConnectionManager(lowlevel)
    SessionConnectionManager(Server("b"))
    ClientConnectionManager(server, raise_exceptions=True)
    SessionConnectionManager(MCPServer)  # type: ignore[arg-type]


async def clients(manager: ClientConnectionManager) -> None:
    assert_type(await manager.start(), Client)
    assert_type(await manager.wait_open(), Client)
    assert_type(manager.connection, Client)
    assert_type(manager.current, Client)
    async with manager as client:
        assert_type(client.session, ClientSession)
    assert_type(ConnectionGroup({"a": manager}).connection["a"], Client)


def watches() -> None:
    ClientConnectionManager(URL, watch=ping_every(30), mode="legacy")
    ClientConnectionManager(URL, watch=watch_client)
    ClientConnectionManager(URL, watch=watch_session)  # type: ignore[arg-type]
    ClientConnectionManager(URL, mode="none", cache=5)  # type: ignore[arg-type]


async def streams(manager: StdioConnectionManager) -> None:
    read_stream, _ = await manager.start()
    text: str = read_stream  # type: ignore[assignment] # 1.x accepts this
    read_stream.receive_nowait()  # type: ignore[attr-defined] # not in the protocol of the SDK
    assert text


def http() -> None:
    manager = SseConnectionManager(URL, auth=BasicAuth("a", "b"))
    assert manager.auth
    SseConnectionManager(URL, httpx_client_factory=create_mcp_http_client)
    SseConnectionManager(URL, httpx_client_factory=AsyncClient)  # type: ignore[arg-type]
