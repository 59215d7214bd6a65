"""Tests an application with a fake connection that fails on cue, and with a server in the same process.

Usage: pytest test_an_application.py
"""

from collections.abc import AsyncGenerator
from math import inf
from typing import TYPE_CHECKING, cast
from unittest.mock import create_autospec

import anyio
import pytest
from mcp import ClientSession
from mcp.types import CallToolResult, TextContent
from trio.testing import MockClock

from ownertask import ConnectionLostError, ConnectionManager, ReconnectPolicy, StartTimeoutError
from ownertask.mcp import SessionConnectionManager
from ownertask.testing import Resources, ScriptedConnectionManager, ScriptedRun

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer
else:
    try:
        from mcp.server.mcpserver import MCPServer
    except ImportError:  # mcp 1.x
        from mcp.server.fastmcp import FastMCP as MCPServer


class Calculator:
    """Adds numbers with a tool of a server."""

    def __init__(self, manager: ConnectionManager[ClientSession], timeout: float = 10) -> None:
        self.manager = manager
        self.timeout = timeout

    async def add(self, a: int, b: int) -> str:
        try:
            session = await self.manager.start(self.timeout)  # opens the connection if necessary
        except StartTimeoutError:
            return "the calculator is starting, please try again later"
        except Exception as error:  # noqa: BLE001 - any error means that the server is unavailable
            return f"the calculator is down: {error}"
        result = await session.call_tool("add", {"a": a, "b": b})
        [content] = result.content
        assert content.type == "text"
        return content.text

    def status(self) -> str:
        """Describes the connection on a status page."""
        state = self.manager.state.value
        if (reconnecting := self.manager.reconnecting) is not None:
            return f"{state} after {reconnecting.failures} failures: {reconnecting.exception}"
        return state if self.manager.exception is None else f"{state}: {self.manager.exception}"


@pytest.fixture
def session() -> ClientSession:
    """Returns a fake session in which each tool returns 3."""
    fake = create_autospec(ClientSession, instance=True)
    fake.call_tool.return_value = CallToolResult(content=[TextContent(type="text", text="3")])
    return cast("ClientSession", fake)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.anyio
async def test_the_application_reports_a_server_that_starts_too_slowly(session: ClientSession) -> None:
    manager = ScriptedConnectionManager(session, ScriptedRun(opens_after=inf))
    calculator = Calculator(manager, timeout=0.01)
    assert await calculator.add(1, 2) == "the calculator is starting, please try again later"


refused = ScriptedRun(fails_with=OSError("connection refused"))


@pytest.mark.anyio
async def test_the_first_call_waits_until_the_server_works(session: ClientSession) -> None:
    policy = ReconnectPolicy(initial_delay=0)
    manager = ScriptedConnectionManager(session, refused, refused, ScriptedRun(), reconnect=policy)
    calculator = Calculator(manager)
    assert await calculator.add(1, 2) == "3"
    assert manager.openings == 3
    await manager.stop()


@pytest.mark.anyio
async def test_without_a_policy_the_application_shows_the_error(session: ClientSession) -> None:
    calculator = Calculator(ScriptedConnectionManager(session, refused, ScriptedRun()))
    assert await calculator.add(1, 2) == "the calculator is down: connection refused"
    assert calculator.status() == "failed: connection refused"
    assert await calculator.add(1, 2) == "3"
    await calculator.manager.stop()


@pytest.mark.anyio
async def test_the_status_page_shows_why_a_connection_was_lost(session: ClientSession) -> None:
    crash = anyio.Event()
    run = ScriptedRun(lost_after=crash.wait, lost_with=OSError("connection reset"))
    manager = ScriptedConnectionManager(session, run, name="calculator")
    calculator = Calculator(manager)
    assert await calculator.add(1, 2) == "3"
    assert calculator.status() == "open"
    crash.set()
    with pytest.raises(ConnectionLostError):
        await manager.wait_closed()
    assert calculator.status() == "failed: calculator: the connection was lost: connection reset"


virtual_time = ("trio", {"clock": MockClock(autojump_threshold=0)})


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [virtual_time], ids=["virtual time"])
async def test_the_application_works_after_a_long_outage(session: ClientSession) -> None:
    outage = [refused] * 30
    manager = ScriptedConnectionManager(session, *outage, ScriptedRun(), reconnect=ReconnectPolicy())
    calculator = Calculator(manager)
    assert await calculator.add(1, 2) == "the calculator is starting, please try again later"
    async with manager:
        assert anyio.current_time() > 300  # seconds, although the test takes only milliseconds
        assert await calculator.add(1, 2) == "3"


server = MCPServer("calculator")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@pytest.mark.anyio
async def test_the_calculator_uses_the_real_tool() -> None:
    manager = SessionConnectionManager(server)
    async with manager:
        assert await Calculator(manager).add(20, 22) == "42"


@pytest.fixture
async def nothing_left() -> AsyncGenerator[Resources]:
    """Fails the test if it leaves a task, thread, descriptor or process behind."""
    before = Resources()
    yield before
    assert await before.left() == []


@pytest.mark.anyio
async def test_the_application_stops_its_manager(nothing_left: Resources) -> None:
    calculator = Calculator(SessionConnectionManager(server))
    assert await calculator.add(1, 2) == "3"
    await calculator.manager.stop()  # without this line, an owner task is left
