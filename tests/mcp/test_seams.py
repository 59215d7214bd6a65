"""Tests transports that are functions, and the checks of the argument `transport`."""

import copy
import gc
import os
import pickle
import signal
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import mcp
import pytest
from mcp import ClientSession, stdio_client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from memory_server import MemoryServer, memory_transport
from reopening import AT_ONCE, lost, opened_again
from servers import TINY, http_process, websocket_process

from ownertask import (
    ConnectionGroup,
    ConnectionManager,
    ConnectionPool,
    ConnectionState,
    ReconnectPolicy,
    StartTimeoutError,
)
from ownertask.mcp import (
    ClientConnectionManager,
    SessionConnectionManager,
    StdioConnectionManager,
    _sdk,
)

KINDS = [SessionConnectionManager, *([ClientConnectionManager] if _sdk.HAS_CLIENT else [])]
ERROR = mcp.MCPError if _sdk.HAS_CLIENT else mcp.McpError
SERVERS = Path(__file__).parent / "servers"

kinds = pytest.mark.parametrize("kind", KINDS)
few_backends = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
leaves_garbage = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""The SDK leaves its generator of server-sent events to the garbage collector; trio warns about it."""


@pytest.fixture
def server():
    server = MemoryServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _garbage_causes_no_warning(request):
    """Warnings are errors, even warnings about an unused coroutine or context manager."""
    yield
    if request.node.get_closest_marker("filterwarnings") is None:
        gc.collect(1)


def all_of(error):
    """Returns all text that could be shown for an error, its causes and its groups."""
    parts, seen, rest = [], set(), [error]
    while rest:
        error = rest.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            parts += [repr(error), str(error), *getattr(error, "__notes__", ())]
            rest += [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]
    return "\n".join(parts)


# Functions of the SDK with real servers.


@kinds
@pytest.mark.within(20)
async def test_the_stdio_function_of_the_sdk_works_and_a_killed_server_is_a_loss(kind):
    manager = kind(partial(stdio_client, TINY))
    ids = []
    for _ in range(2):
        session = await manager.start()
        result = await session.call_tool("process_id", {})
        ids.append(int(result.content[0].text))
        os.kill(ids[-1], signal.SIGKILL)
        error = await lost(manager)
        assert error.__cause__ is not None
    assert len(set(ids)) == 2
    async with manager as session:
        await session.list_tools()
    assert manager.exception is None


@kinds
@pytest.mark.within(20)
async def test_a_killed_server_of_the_stdio_function_is_started_again_by_a_policy(kind):
    manager = kind(lambda: stdio_client(TINY), reconnect=AT_ONCE)
    session = await manager.start()
    result = await session.call_tool("process_id", {})
    again = opened_again(manager)
    os.kill(int(result.content[0].text), signal.SIGKILL)
    await again.wait()
    assert manager.connection is not session
    answer = await manager.connection.call_tool("process_id", {})
    assert answer.content[0].text != result.content[0].text
    await manager.stop()


@pytest.fixture(params=["sse", "streamable-http"])
def server_over_http(request):
    with http_process(request.param) as (process, url):
        yield request.param, process, url


@few_backends
@pytest.mark.within(20)
@leaves_garbage
async def test_the_http_functions_of_the_sdk_work_and_a_dead_sse_server_is_a_loss(server_over_http):
    transport, process, url = server_over_http
    client = sse_client if transport == "sse" else streamable_http_client
    manager = KINDS[-1](lambda: client(url))
    for _ in range(2):
        async with manager as session:
            result = await session.call_tool("add", {"a": 1, "b": 2})
            assert result.content[0].text == "3"
        assert manager.exception is None
    if transport == "sse":
        await manager.start()
        process.kill()
        assert (await lost(manager)).__cause__ is not None


@pytest.fixture
def server_over_websocket():
    with websocket_process("websockets") as (process, url):
        yield process, url


@pytest.mark.skipif(_sdk.HAS_CLIENT, reason="mcp 2.x has no WebSocket transport")
@few_backends
@pytest.mark.within(20)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_the_websocket_function_of_the_sdk_works_and_a_dead_server_is_a_loss(
    server_over_websocket, asyncio_only
):
    from mcp.client.websocket import websocket_client

    process, url = server_over_websocket
    manager = SessionConnectionManager(partial(websocket_client, url))
    session = await manager.start()
    result = await session.call_tool("add", {"a": 1, "b": 2})
    assert result.content[0].text == "3"
    process.kill()
    await lost(manager)


# What a function may be, and what it may yield.


class Transport:
    """An async context manager without a generator, on a transport in memory."""

    async def __aenter__(self):
        self._transport = memory_transport()
        return await self._transport.__aenter__()

    async def __aexit__(self, *exc_info):
        return await self._transport.__aexit__(*exc_info)


class Factory:
    @asynccontextmanager
    async def open(self):
        async with memory_transport() as streams:
            yield streams

    @staticmethod
    def open_statically():
        return memory_transport()

    def __call__(self):
        return memory_transport()


FUNCTIONS = {
    "a function": memory_transport,
    "a lambda": lambda: memory_transport(),  # noqa: PLW0108
    "a partial": partial(memory_transport),
    "a partial of a partial": partial(partial(memory_transport)),
    "a method": Factory().open,
    "a static method": Factory.open_statically,
    "a callable object": Factory(),
    "a class": Transport,
    "the method of a manager": StdioConnectionManager(TINY).open_connection,
    "a function that returns another object": lambda: Transport(),  # noqa: PLW0108
}


@few_backends
@kinds
@pytest.mark.parametrize("what", FUNCTIONS)
@pytest.mark.within(10)
async def test_a_transport_may_be_any_callable(kind, what):
    manager = kind(FUNCTIONS[what])
    for _ in range(2):
        async with manager as session:
            await session.list_tools()
        assert manager.state is ConnectionState.CLOSED
        assert manager.exception is None


@few_backends
@kinds
@pytest.mark.parametrize("values", [2, 3])
@pytest.mark.parametrize("as_list", [False, True])
async def test_a_function_may_yield_two_or_three_streams(kind, values, as_list):
    server = MemoryServer(values)

    @asynccontextmanager
    async def transport():
        async with server() as streams:
            yield list(streams) if as_list else streams

    async with kind(transport) as session:
        await session.list_tools()
    server.close()


@kinds
async def test_a_function_is_called_once_per_run_and_not_before(kind, server):
    manager = kind(server)
    assert server.opened == 0
    for run in range(1, 4):
        session = await manager.start()
        assert await manager.start() is session
        assert server.opened == run
        await manager.stop()
    assert server.opened == 3


@kinds
async def test_the_context_manager_is_entered_and_exited_in_the_owner_task(kind, server):
    tasks = []

    @asynccontextmanager
    async def transport():
        tasks.append(anyio.get_current_task())
        async with server() as streams:
            yield streams
        tasks.append(anyio.get_current_task())

    manager = kind(transport, name="tiny")
    async with anyio.create_task_group() as tg:
        tg.start_soon(manager.start)
    async with anyio.create_task_group() as tg:
        tg.start_soon(manager.stop)
    assert tasks[0].id == tasks[1].id != anyio.get_current_task().id
    assert "owner task of tiny" in str(tasks[0].name)


@kinds
async def test_the_function_is_called_in_the_owner_task(kind, server):
    names = []

    def transport():
        names.append(str(anyio.get_current_task().name))
        return server()

    async with kind(transport, name="tiny"):
        assert len(names) == 1
        assert "owner task of tiny" in names[0]


@kinds
@pytest.mark.parametrize("how", ["ends", "crashes", "refuses messages"])
async def test_the_loss_of_such_a_transport_is_detected_and_a_restart_works(kind, server, how):
    manager = kind(server)
    session = await manager.start()
    crash = OSError("crash")
    if how == "ends":
        server.end()
    elif how == "crashes":
        server.crash(crash)
    else:
        server.refuse_messages("broken")
        with pytest.raises((ERROR, anyio.BrokenResourceError, anyio.ClosedResourceError)):
            await session.list_tools()
    error = await lost(manager)
    assert error.__cause__ is not None
    if how == "crashes":
        assert error.__cause__ is crash
    assert manager.name in str(error)
    async with manager as session:
        await session.list_tools()
    assert server.opened == 2


@kinds
async def test_a_policy_calls_the_function_once_for_each_attempt(kind, server):
    failures = [OSError("first"), OSError("second")]

    def transport():
        if failures:
            raise failures.pop(0)
        return server()

    manager = kind(transport, reconnect=AT_ONCE)
    session = await manager.start()
    assert server.opened == 1
    again = opened_again(manager)
    server.end()
    await again.wait()
    assert server.opened == 2
    assert manager.connection is not session
    await manager.connection.list_tools()
    await manager.stop()


@kinds
async def test_the_current_connection_works_again_after_a_loss(kind, server):
    manager = kind(server, reconnect=AT_ONCE)
    await manager.start()
    current = manager.current
    await current.list_tools()
    again = opened_again(manager)
    server.end()
    await again.wait()
    await current.list_tools()
    await manager.stop()


# Functions that fail.


@kinds
@pytest.mark.parametrize("where", ["in the function", "before it yields", "a group"])
async def test_the_error_of_a_function_is_raised_with_a_note_and_its_type(kind, where):
    error = LookupError("no such server")

    def function():
        raise error

    @asynccontextmanager
    async def before():
        raise error
        yield

    @asynccontextmanager
    async def group():
        raise ExceptionGroup("group", [ExceptionGroup("group", [error])])
        yield

    functions = {"in the function": function, "before it yields": before, "a group": group}
    manager = kind(functions[where])
    with pytest.raises(LookupError) as caught:
        await manager.start()
    assert caught.value is error
    assert error.__notes__ == [f"ownertask: raised by {manager.name} while opening"]
    assert manager.state is ConnectionState.FAILED
    assert manager.exception is error


async def coroutine_function():
    raise AssertionError("it was called")


async def generator_function():
    yield None, None


RESULTS = {
    "an async function": coroutine_function,
    "an async generator function": generator_function,
    "a lambda that returns a coroutine": lambda: coroutine_function(),  # noqa: PLW0108
    "a partial of an async function": partial(coroutine_function),
}


@few_backends
@kinds
@pytest.mark.parametrize("policy", [None, AT_ONCE])
@pytest.mark.parametrize("what", RESULTS)
async def test_if_the_decorator_is_missing_the_error_names_it(kind, what, policy):
    manager = kind(RESULTS[what], reconnect=policy)
    with pytest.raises(TypeError, match="asynccontextmanager") as caught:
        await manager.start()
    assert "async context manager" in str(caught.value)
    assert manager.state is ConnectionState.FAILED


class Unusable:
    def __repr__(self):
        return "s3cret"


@few_backends
@kinds
@pytest.mark.parametrize("policy", [None, AT_ONCE])
@pytest.mark.parametrize(
    "value", [None, 1, "s3cret", (), Unusable(), Unusable], ids=lambda value: type(value).__name__
)
async def test_a_function_that_returns_something_else_raises_a_type_error(kind, value, policy):
    calls = []

    def transport():
        calls.append(None)
        return value

    manager = kind(transport, reconnect=policy)
    with pytest.raises(TypeError, match="async context manager") as caught:
        await manager.start()
    assert f"not {type(value).__name__}" in str(caught.value)
    assert "s3cret" not in all_of(caught.value)
    assert len(calls) == 1
    assert manager.state is ConnectionState.FAILED


@kinds
async def test_a_function_that_returns_streams_without_a_context_manager_raises_a_type_error(kind):
    sender, receiver = anyio.create_memory_object_stream(1)
    manager = kind(lambda: (receiver, sender))
    with pytest.raises(TypeError, match="async context manager, not tuple"):
        await manager.start()
    sender.close()
    receiver.close()


@kinds
async def test_a_class_that_is_not_an_async_context_manager_raises_a_type_error(kind):
    class Plain:
        pass

    with pytest.raises(TypeError, match="async context manager, not Plain"):
        await kind(Plain).start()


@kinds
async def test_a_function_that_requires_arguments_raises_a_type_error_that_names_them(kind):
    manager = kind(stdio_client)
    with pytest.raises(TypeError, match="server"):
        await manager.start()
    assert manager.state is ConnectionState.FAILED


@few_backends
@kinds
@pytest.mark.parametrize("policy", [None, AT_ONCE])
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "NoneType"),
        (("reader",), "tuple[str]"),
        ((1, 2), "tuple[int, int]"),
        ((1, 2, 3, 4), "tuple[int, int, int, int]"),
        ("s3cret", "str"),
    ],
)
async def test_a_function_that_yields_something_else_raises_a_type_error(kind, value, found, policy):
    exits = []

    @asynccontextmanager
    async def transport():
        try:
            yield value
        finally:
            exits.append(None)

    manager = kind(transport, reconnect=policy)
    with pytest.raises(TypeError) as caught:
        await manager.start()
    assert "a transport must yield a read stream and a write stream" in str(caught.value)
    assert str(caught.value).endswith(f", not {found}")
    assert "s3cret" not in all_of(caught.value)
    assert len(exits) == 1
    assert manager.state is ConnectionState.FAILED


@kinds
async def test_the_time_to_open_such_a_transport_is_limited(kind):
    exits = []

    @asynccontextmanager
    async def transport():
        try:
            await anyio.sleep_forever()
            yield
        finally:
            exits.append(None)

    manager = kind(transport, start_timeout=0.05)
    with pytest.raises(StartTimeoutError):
        await manager.start()
    assert len(exits) == 1


@kinds
@pytest.mark.parametrize("when", ["opening", "handshake", "waiting"])
async def test_if_the_start_is_cancelled_the_transport_is_exited_in_its_task(kind, server, when):
    begun, tasks = anyio.Event(), []

    @asynccontextmanager
    async def transport():
        tasks.append(anyio.get_current_task().id)
        try:
            if when == "opening":
                begun.set()
                await anyio.sleep_forever()
            async with server() as streams:
                yield streams
        finally:
            tasks.append(anyio.get_current_task().id)

    if when != "opening":
        server.on_handshake = lambda request: begun.set()
    manager = kind(transport)
    async with anyio.create_task_group() as tg:
        tg.start_soon(manager.start)
        await begun.wait()
        if when == "waiting":
            await anyio.wait_all_tasks_blocked()
        tg.cancel_scope.cancel()
    assert len(tasks) == 2
    assert tasks[0] == tasks[1]
    assert manager.state is ConnectionState.CLOSED


@kinds
async def test_an_error_while_the_transport_closes_is_kept_in_the_exception(kind, server, caplog):
    error = OSError("it cannot close")

    @asynccontextmanager
    async def transport():
        async with server() as streams:
            yield streams
        raise error

    manager = kind(transport)
    await manager.start()
    await manager.stop()
    assert manager.exception is error
    assert len([record for record in caplog.records if record.name == "ownertask"]) == 1


# Context managers and coroutines that were passed instead of functions.


CONTEXT_MANAGERS = {
    "stdio": lambda: stdio_client(TINY),
    "SSE": lambda: sse_client("http://user:s3cret@127.0.0.1:9/sse?token=s3cret"),
    "streamable HTTP": lambda: streamable_http_client("http://127.0.0.1:9/mcp?token=s3cret"),
    "a decorated function": memory_transport,
    "an object": Transport,
}
if _sdk.HAS_CLIENT:
    CONTEXT_MANAGERS["a Client"] = lambda: mcp.Client(TINY)


@kinds
@pytest.mark.parametrize("what", CONTEXT_MANAGERS)
def test_a_context_manager_is_rejected_with_the_advice_to_pass_a_function(kind, what):
    opened = CONTEXT_MANAGERS[what]()
    with pytest.raises(TypeError, match=r"^transport must be .*function") as caught:
        kind(opened)
    assert "s3cret" not in all_of(caught.value)
    del opened
    gc.collect()


@kinds
@pytest.mark.parametrize("function", [coroutine_function, generator_function])
def test_a_coroutine_and_an_async_generator_are_rejected_without_a_warning(kind, function):
    with pytest.raises(TypeError, match=r"^transport must be .*function"):
        kind(function())
    gc.collect()


@kinds
@pytest.mark.parametrize(
    "value",
    [1, None, {}, b"http://127.0.0.1/mcp", [], 1.5, True, ("a", "b"), object(), Path("server.py")],
)
def test_the_error_for_another_value_lists_the_accepted_values(kind, value):
    with pytest.raises(TypeError) as caught:
        kind(value)
    text = str(caught.value)
    assert text.startswith("transport must be ")
    for word in ("ConnectionManager", "StdioServerParameters", "URL", "function"):
        assert word in text
    assert "an SDK server" in text
    assert type(value).__name__ in text


async def test_a_session_is_rejected_as_a_transport():
    sender, receiver = anyio.create_memory_object_stream(1)
    for each in KINDS:
        with pytest.raises(TypeError, match=r"^transport must be .*ClientSession"):
            each(ClientSession(receiver, sender))
    sender.close()
    receiver.close()


@kinds
async def test_the_streams_themselves_are_rejected_as_a_transport(kind):
    sender, receiver = anyio.create_memory_object_stream(1)
    for value in [(receiver, sender), [receiver, sender], receiver]:
        with pytest.raises(TypeError, match="^transport must be "):
            kind(value)
    sender.close()
    receiver.close()


@kinds
def test_a_string_that_is_not_a_url_is_still_a_value_error(kind):
    with pytest.raises(
        ValueError, match="starts with http.*; for a command, pass StdioServerParameters"
    ):
        kind("python server.py")


# Names and secrets.


SECRET_URL = "http://user:s3cret@127.0.0.1:9/s3cret/sse?token=s3cret#s3cret"
HEADERS = {"Authorization": "Bearer s3cret"}


class Secretive:
    def __init__(self, url):
        self.url = url

    def __repr__(self):
        return f"Secretive({self.url})"

    __str__ = __repr__

    def __call__(self):
        raise LookupError("no")


def fails(url, headers=None):
    raise LookupError("no")


def yields_nothing(url, headers=None):
    @asynccontextmanager
    async def transport():
        yield url

    return transport()


SECRETIVE = {
    "a lambda": lambda: sse_client(SECRET_URL, headers=HEADERS),
    "a partial": partial(sse_client, SECRET_URL, headers=HEADERS),
    "a partial of a partial": partial(partial(sse_client, SECRET_URL), headers=HEADERS),
    "a partial that fails": partial(fails, SECRET_URL, headers=HEADERS),
    "a partial that yields something else": partial(yields_nothing, SECRET_URL),
    "a partial that returns a string": partial(str, SECRET_URL),
    "an object": Secretive(SECRET_URL),
    "a method": Secretive(SECRET_URL).__call__,
}


@few_backends
@kinds
@pytest.mark.parametrize("what", SECRETIVE)
@leaves_garbage
async def test_names_and_errors_contain_no_secret(kind, what, caplog):
    """The SDK's HTTP client also shows no secret in its errors. No server listens at the address."""
    caplog.set_level("DEBUG", "ownertask")
    manager = kind(SECRETIVE[what], reconnect=ReconnectPolicy(initial_delay=0, max_retries=1))
    with pytest.raises(Exception) as caught:
        await manager.start()
    shown = [
        manager.name,
        repr(manager),
        str(manager),
        repr(manager.current),
        all_of(caught.value),
        *(record.getMessage() for record in caplog.records if record.name == "ownertask"),
    ]
    assert "s3cret" not in "\n".join(shown)


@kinds
def test_the_default_name_contains_the_name_of_the_function(kind):
    assert "memory_transport" in kind(memory_transport).name
    assert "stdio_client" in kind(partial(stdio_client, TINY)).name
    assert "test_seams.py" in kind(lambda: stdio_client(TINY)).name
    assert kind(memory_transport).name.startswith(kind.__name__)
    assert kind(memory_transport, name="mine").name == "mine"


@kinds
def test_two_partials_of_one_function_have_different_names(kind):
    first, second = (kind(partial(stdio_client, TINY)) for _ in range(2))
    assert first.name != second.name


# Copies, groups and pools.


def pickled(manager):
    return pickle.loads(pickle.dumps(manager))


@few_backends
@kinds
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
@pytest.mark.parametrize("transport", [memory_transport, partial(memory_transport), Transport])
async def test_a_copy_of_an_open_manager_works_at_the_same_time(kind, duplicate, transport):
    manager = kind(transport, name="memory")
    async with manager as session:
        copied = duplicate(manager)
        assert copied.state is ConnectionState.NEW
        assert copied.name == "memory"
        async with copied as another:
            assert another is not session
            await another.list_tools()
        await session.list_tools()
    async with copied as another:
        await another.list_tools()


@kinds
async def test_one_function_can_be_the_transport_of_two_managers(kind):
    async with kind(memory_transport) as first, kind(memory_transport) as second:
        await first.list_tools()
        await second.list_tools()


@kinds
async def test_such_managers_can_be_in_a_group_and_in_a_pool(kind):
    group = ConnectionGroup({key: kind(memory_transport) for key in "ab"})
    async with group as sessions:
        assert set(sessions) == {"a", "b"}
        for session in sessions.values():
            await session.list_tools()
    pool = ConnectionPool(lambda key: kind(memory_transport, name=key))
    async with pool, pool.acquire("a") as session, pool.acquire("a") as again:
        assert again is session
        await session.list_tools()


@kinds
async def test_the_transport_of_such_a_manager_is_a_manager(kind):
    """The attribute `transport` then has the same type for all transports."""
    assert isinstance(kind(memory_transport).transport, ConnectionManager)
