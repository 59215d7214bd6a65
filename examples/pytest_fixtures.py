"""A session as a fixture, with anyio's pytest plugin, on asyncio and on trio.

Usage: pytest pytest_fixtures.py
"""

import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from mcp import ClientSession, StdioServerParameters

from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])


@pytest.fixture(params=["asyncio", "trio"], scope="module")
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
async def session(anyio_backend: str) -> AsyncGenerator[ClientSession]:
    async with SessionConnectionManager(server) as session:
        yield session


@pytest.mark.anyio
async def test_server_adds_numbers(session: ClientSession) -> None:
    result = await session.call_tool("add", {"a": 1, "b": 2})
    assert not result.model_dump().get("isError")


@pytest.mark.anyio
async def test_session_is_reused(session: ClientSession) -> None:
    await session.call_tool("add", {"a": 3, "b": 4})
