"""Tests for `current` of sessions on real servers, and of an HTTP client."""

import inspect
import os
import signal
from contextlib import asynccontextmanager, suppress

import anyio
import mcp
import pytest
from anyio.lowlevel import checkpoint
from servers import TINY

from ownertask import ConnectionLostError, ConnectionManager, NotConnectedError
from ownertask.mcp import ClientConnectionManager, SessionConnectionManager, _sdk

if _sdk.HAS_CLIENT:
    KINDS = [SessionConnectionManager, ClientConnectionManager]
    ERROR = mcp.MCPError
else:
    KINDS = [SessionConnectionManager]
    ERROR = mcp.McpError

kinds = pytest.mark.parametrize("kind", KINDS)


def text(result):
    return result.content[0].text


@kinds
async def test_isinstance_and_methods_work_before_the_first_connection(kind):
    manager = kind(TINY)
    session = manager.current
    real = mcp.ClientSession if kind is SessionConnectionManager else mcp.Client
    assert isinstance(session, real)
    assert inspect.iscoroutinefunction(session.call_tool)
    original = inspect.signature(real.call_tool)
    parameters = list(original.parameters.values())[1:]
    assert inspect.signature(session.call_tool) == original.replace(parameters=parameters)
    with pytest.raises(NotConnectedError, match="state: new"):
        await session.list_tools()


@kinds
@pytest.mark.within(20)
async def test_K9_calls_that_are_made_while_the_server_restarts_are_answered_by_the_new_server(kind):
    manager = kind(TINY)
    call_tool = manager.current.call_tool
    await manager.start()
    old = int(text(await call_tool("process_id", {})))
    os.kill(old, signal.SIGKILL)
    with suppress(ConnectionLostError):
        await manager.wait_closed()
    answers = []

    async def call():
        answers.append(int(text(await call_tool("process_id", {}))))

    async with anyio.create_task_group() as tg:
        tg.start_soon(manager.start)
        await checkpoint()
        await checkpoint()
        for _ in range(20):
            tg.start_soon(call)
    assert len(answers) == 20
    assert set(answers) == {int(text(await manager.connection.call_tool("process_id", {})))}
    assert old not in answers
    await manager.stop()


@kinds
@pytest.mark.within(20)
async def test_P1_if_the_server_dies_during_a_call_the_error_has_a_note_with_the_reason(kind):
    manager = kind(TINY)
    session = manager.current
    await manager.start()
    with pytest.raises(ERROR, match="Connection closed") as caught:
        await session.call_tool("exit", {"code": 3})
    lost = f"ownertask: {manager.name} lost its connection during this call"
    assert caught.value.__notes__ == [f"{lost}: the server exited with status 3"]
    with pytest.raises(ConnectionLostError):
        await manager.wait_closed()


@kinds
async def test_an_error_of_the_server_has_no_note(kind):
    manager = kind(TINY)
    async with manager:
        with pytest.raises(ERROR) as caught:
            await manager.current.get_prompt("unknown")
    assert not hasattr(caught.value, "__notes__")


class HttpManager(ConnectionManager[_sdk.http.AsyncClient]):
    connection_type = _sdk.http.AsyncClient

    @asynccontextmanager
    async def open_connection(self):
        async def answer(request):
            await checkpoint()
            return _sdk.http.Response(200, text=request.url.path)

        async with _sdk.http.AsyncClient(transport=_sdk.http.MockTransport(answer)) as client:
            yield client


async def test_an_http_client():
    manager = HttpManager(name="http")
    client = manager.current
    assert isinstance(client, _sdk.http.AsyncClient)
    get = client.get
    await manager.start()
    assert (await get("http://test/a")).text == "/a"
    client.headers["x-a"] = "b"
    assert manager.connection.headers["x-a"] == "b"
    client.timeout = 3
    assert manager.connection.timeout == _sdk.http.Timeout(3)
    async with client.stream("GET", "http://test/b") as response:
        assert await response.aread() == b"/b"
    manager.connection_lost()
    with suppress(ConnectionLostError):
        await manager.wait_closed()
    await manager.start()
    assert (await get("http://test/c")).text == "/c"
    assert "x-a" not in client.headers
    await manager.stop()
