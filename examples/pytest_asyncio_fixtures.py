"""A session as a fixture, with pytest-asyncio.

Usage: pytest pytest_asyncio_fixtures.py
"""

import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio
from mcp import ClientSession, StdioServerParameters

from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])


@pytest_asyncio.fixture
async def session() -> AsyncGenerator[ClientSession]:
    async with SessionConnectionManager(server) as session:
        yield session


@pytest.mark.asyncio
async def test_server_adds_numbers(session: ClientSession) -> None:
    await session.call_tool("add", {"a": 1, "b": 2})
