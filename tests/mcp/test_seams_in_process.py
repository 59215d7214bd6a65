"""Tests SDK servers that run in this process, in the owner task of their connection."""

import copy
import gc
import pickle
import weakref
from contextlib import asynccontextmanager

import anyio
import mcp
import pytest
from in_process import Calls, Lifespan, MCPServer, high_level, low_level
from mcp import types
from mcp.server import Server
from proof.clocks import in_virtual_time
from reopening import AT_ONCE, lost, opened_again

from ownertask import (
    ConnectionGroup,
    ConnectionLostError,
    ConnectionPool,
    ConnectionState,
    ConnectionStoppedError,
    StartTimeoutError,
)
from ownertask.mcp import ClientConnectionManager, SessionConnectionManager, _sdk, ping_every

# pydantic-settings warns about the `FastMCP` of mcp 1.24.
pytestmark = pytest.mark.filterwarnings("ignore:Field 'lifespan' has an incomplete definition")
ERROR = mcp.MCPError if _sdk.HAS_CLIENT else mcp.McpError
# On mcp 1.x, a call that was not sent raises one of the other two.
FAILURES = (ERROR, anyio.ClosedResourceError, anyio.BrokenResourceError)

SESSION = pytest.param(SessionConnectionManager, {}, id="session")
OPENERS, LEGACY = [SESSION], [SESSION]
if _sdk.HAS_CLIENT:
    AUTO = pytest.param(ClientConnectionManager, {"mode": "auto"}, id="auto")
    LEGACY.append(pytest.param(ClientConnectionManager, {"mode": "legacy"}, id="legacy"))
    OPENERS = [*LEGACY, AUTO]

kinds = pytest.mark.parametrize(("kind", "options"), OPENERS)
legacy = pytest.mark.parametrize(("kind", "options"), LEGACY)
levels = pytest.mark.parametrize("create", [high_level, low_level])
only_2 = pytest.mark.skipif(not _sdk.HAS_CLIENT, reason="mcp 1.x has no Client")


async def sum_of(session, a=1, b=2):
    result = await session.call_tool("add", {"a": a, "b": b})
    return result.content[0].text


def failed(result):
    return result.is_error if _sdk.HAS_CLIENT else result.isError


def errors_in(caplog):
    return [
        record for record in caplog.records if record.name == "ownertask" and record.levelname != "DEBUG"
    ]


def leaf_of(error):
    """Returns the error that explains a failure: the error itself, or the cause of a loss."""
    return error.__cause__ if isinstance(error, ConnectionLostError) else error


@kinds
@levels
async def test_a_server_can_be_used_in_other_tasks_and_restarted(kind, options, create):
    lifespan = Lifespan()
    manager = kind(create(lifespan), **options)
    assert lifespan.entered == []
    for run in range(1, 4):
        async with anyio.create_task_group() as tg:
            tg.start_soon(manager.start)
        sums = []

        async def add(number, sums=sums):
            sums.append(await sum_of(manager.connection, number, number))

        async with anyio.create_task_group() as tg:
            for number in range(10):
                tg.start_soon(add, number)
        assert {int(each) for each in sums} == set(range(0, 20, 2))
        tools = await manager.connection.list_tools()
        assert "add" in [tool.name for tool in tools.tools]
        async with anyio.create_task_group() as tg:
            tg.start_soon(manager.stop)
        assert manager.state is ConnectionState.CLOSED
        assert manager.exception is None
        assert len(lifespan.entered) == len(lifespan.exited) == run
    assert lifespan.entered == lifespan.exited
    assert anyio.get_current_task().id not in lifespan.entered


@kinds
@levels
async def test_a_server_that_is_stopped_logs_nothing(kind, options, create, caplog):
    for timeout in (30, None):
        manager = kind(create(), **options)
        await manager.start()
        await manager.stop(timeout)
    assert not errors_in(caplog)


@only_2
@pytest.mark.parametrize("mode", ["auto", "legacy"])
@levels
async def test_the_mode_of_a_client_selects_the_protocol_version(mode, create):
    async with ClientConnectionManager(create(), mode=mode) as client:
        assert (client.protocol_version >= "2026") == (mode == "auto")
        assert await sum_of(client) == "3"


@kinds
@levels
async def test_the_session_knows_the_server(kind, options, create):
    async with kind(create(), **options) as connection:
        if kind is SessionConnectionManager:
            result = await connection.send_ping()
            assert isinstance(result, types.EmptyResult)
        else:
            assert connection.server_info.name == "demo"


@kinds
@levels
def test_the_default_name_contains_the_name_of_the_server(kind, options, create):
    assert "demo" in kind(create(), **options).name
    assert kind(create(), **options).name.startswith(kind.__name__)
    assert kind(create(), name="mine", **options).name == "mine"


@kinds
@levels
async def test_one_server_can_be_the_target_of_two_managers_at_the_same_time(kind, options, create):
    lifespan = Lifespan()
    server = create(lifespan)
    first, second = (kind(server, **options) for _ in range(2))
    async with first as one:
        async with second as two:
            assert one is not two
            assert await sum_of(one) == await sum_of(two) == "3"
            assert len(set(lifespan.entered)) == 2
        assert len(lifespan.exited) == 1
        assert await sum_of(one) == "3"
    assert sorted(lifespan.entered) == sorted(lifespan.exited)


@kinds
@levels
async def test_a_copy_of_a_manager_uses_the_same_server(kind, options, create):
    lifespan = Lifespan()
    manager = kind(create(lifespan), **options)
    async with manager as session:
        copied = copy.copy(manager)
        assert copied.state is ConnectionState.NEW
        async with copied as another:
            assert another is not session
            assert await sum_of(another) == await sum_of(session) == "3"
    assert len(lifespan.exited) == 2


@kinds
@pytest.mark.parametrize("protocol", [0, pickle.HIGHEST_PROTOCOL])
async def test_a_manager_can_be_pickled_if_its_server_can(kind, options, protocol):
    manager = kind(Server("plain"), **options)
    unpickled = pickle.loads(pickle.dumps(manager, protocol))
    assert unpickled.name == manager.name
    async with manager as session, unpickled as another:
        assert another is not session


@kinds
@levels
async def test_a_deep_copy_of_a_manager_uses_the_same_server(kind, options, create):
    lifespan = Lifespan()
    manager = kind(create(lifespan), **options)
    copied = copy.deepcopy(manager)
    async with manager as session, copied as another:
        assert await sum_of(another) == await sum_of(session) == "3"
    assert len(lifespan.exited) == 2


@kinds
@levels
def test_a_server_can_be_used_in_several_event_loops_in_turn(kind, options, create):
    manager = kind(create(), **options)

    async def main():
        async with manager as session:
            assert await sum_of(session) == "3"

    for backend in ("asyncio", "trio", "asyncio"):
        anyio.run(main, backend=backend)


@kinds
@levels
async def test_only_the_manager_keeps_a_reference_to_the_server(kind, options, create):
    server = create()
    manager = kind(server, **options)
    async with manager as session:
        assert await sum_of(session) == "3"
    reference = weakref.ref(server)
    del server, manager, session
    gc.collect()
    assert reference() is None


@kinds
@levels
async def test_a_group_and_a_pool_can_hold_such_managers(kind, options, create):
    lifespan = Lifespan()
    server = create(lifespan)
    group = ConnectionGroup({key: kind(server, **options) for key in "abc"})
    async with group as sessions:
        for session in sessions.values():
            assert await sum_of(session) == "3"
    assert sorted(lifespan.entered) == sorted(lifespan.exited)
    assert len(set(lifespan.entered)) == 3
    async with ConnectionPool(lambda key: kind(server, **options)) as pool:
        async with pool.acquire("a") as session, pool.acquire("b") as another:
            assert await sum_of(session) == await sum_of(another) == "3"
        assert len(lifespan.entered) == 5
    assert len(lifespan.exited) == 5


async def test_a_server_can_have_a_session_class_and_a_handshake():
    class Session(mcp.ClientSession):
        pass

    async def handshake(session):
        session.result = await session.initialize()

    manager = SessionConnectionManager(high_level(), session_class=Session, initialize=handshake)
    async with manager as session:
        assert type(session) is Session
        assert await sum_of(session) == "3"
        info = session.result.server_info if _sdk.HAS_CLIENT else session.result.serverInfo
        assert info.name == "demo"


@kinds
async def test_a_ping_can_watch_a_server(kind, options):
    manager = kind(high_level(), watch=ping_every(0.01, timeout=3), **options)
    session = await manager.start()
    await anyio.sleep(0.05)
    assert await sum_of(session) == "3"
    await manager.stop()
    assert manager.exception is None


@kinds
async def test_a_tool_may_be_a_function_that_the_sdk_calls_in_a_thread(kind, options):
    async with kind(high_level(), **options) as session:
        result = await session.call_tool("shout", {"text": "hello"})
        assert result.content[0].text == "HELLO"


# What a server sends on its own.


@kinds
async def test_progress_is_reported_through_such_a_connection(kind, options):
    reported = []

    async def on_progress(progress, total, message):
        reported.append((progress, total))

    async with kind(high_level(), **options) as session:
        result = await session.call_tool("count", {}, progress_callback=on_progress)
        assert result.content[0].text == "counted"
        await anyio.wait_all_tasks_blocked()
        assert reported == [(1, 3), (2, 3), (3, 3)]


@legacy
async def test_notifications_arrive_through_such_a_connection(kind, options):
    received = anyio.Event()

    async def on_message(message):
        notification = getattr(message, "root", message)
        if isinstance(notification, types.ToolListChangedNotification):
            received.set()

    async with kind(high_level(), message_handler=on_message, **options) as session:
        await session.call_tool("change", {})
        await received.wait()


@legacy
@pytest.mark.filterwarnings("ignore:The sampling capability is deprecated")
async def test_the_server_can_call_back_through_such_a_connection(kind, options):
    async def answer(context, params):
        assert "capital" in params.messages[0].content.text
        content = types.TextContent(type="text", text="Bern")
        return types.CreateMessageResult(role="assistant", content=content, model="none")

    async with kind(high_level(), sampling_callback=answer, **options) as session:
        result = await session.call_tool("ask", {})
        assert result.content[0].text == "Bern"


@legacy
@pytest.mark.filterwarnings("ignore:The sampling capability is deprecated")
async def test_O21_stop_in_a_callback_of_the_session_does_not_wait_for_itself(kind, options, caplog):
    async def stop(context, params):
        await manager.stop()

    manager = kind(high_level(), sampling_callback=stop, **options)
    session = await manager.start()
    with anyio.fail_after(5), pytest.raises(FAILURES):
        await session.call_tool("ask", {})
    with anyio.fail_after(5):
        await manager.wait_closed()
    assert manager.state is ConnectionState.CLOSED
    assert not errors_in(caplog)


@kinds
@pytest.mark.parametrize("error", [anyio.ClosedResourceError, anyio.BrokenResourceError, None])
async def test_a_server_that_cannot_send_a_response_while_it_is_closed_has_not_failed(
    kind, options, error, caplog
):
    server = low_level()
    manager = kind(server, **options)
    run = server.run

    async def run_and_fail(*args, **kwargs):
        await run(*args, **kwargs)
        raise ExceptionGroup("", [LookupError("a bug") if error is None else error()])

    server.run = run_and_fail
    await manager.start()
    await manager.stop()
    if error is None:
        assert isinstance(manager.exception, LookupError)
        assert len(errors_in(caplog)) == 1
    else:
        assert manager.state is ConnectionState.CLOSED
        assert not errors_in(caplog)


@kinds
async def test_a_tool_that_returns_while_the_connection_closes_is_not_an_error(kind, options, caplog):
    """Before mcp 1.25, the SDK does not cancel the tool, and sends its result."""
    server = high_level()
    began = anyio.Event()
    closing = anyio.Event()

    @server.tool()
    async def finish() -> str:
        began.set()
        await closing.wait()
        await anyio.wait_all_tasks_blocked()  # until the streams are closed
        return "finished"

    def listener(manager, old, new):
        if new is ConnectionState.CLOSING:
            closing.set()

    manager = kind(server, **options)
    manager.add_listener(listener)
    session = await manager.start()
    async with anyio.create_task_group() as tg:

        async def call():
            with pytest.raises(FAILURES):
                await session.call_tool("finish", {})

        tg.start_soon(call)
        await began.wait()
        await manager.stop()
    assert manager.state is ConnectionState.CLOSED
    assert not errors_in(caplog)


@kinds
async def test_O21_stop_in_a_tool_of_the_server_does_not_wait_for_itself(kind, options, caplog):
    server = high_level()

    @server.tool()
    async def stop() -> str:
        await manager.stop()

    manager = kind(server, **options)
    session = await manager.start()
    with anyio.fail_after(5), pytest.raises(FAILURES):
        await session.call_tool("stop", {})
    with anyio.fail_after(5):
        await manager.wait_closed()
    assert manager.state is ConnectionState.CLOSED
    assert not errors_in(caplog)


# Calls that fail.


@kinds
@levels
async def test_a_tool_that_raises_does_not_end_the_connection(kind, options, create):
    manager = kind(create(), **options)
    session = await manager.start()
    try:
        result = await session.call_tool("fail", {})
    except ERROR:
        assert _sdk.HAS_CLIENT
        assert create is low_level
    else:
        assert failed(result)
    assert manager.state is ConnectionState.OPEN
    assert await sum_of(session) == "3"
    await manager.stop()
    assert manager.exception is None


@only_2
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_with_raise_exceptions_an_exception_of_the_server_ends_the_connection(mode, caplog):
    manager = ClientConnectionManager(low_level(), mode=mode, raise_exceptions=True)
    client = await manager.start()
    with pytest.raises(ERROR):
        await client.call_tool("fail", {})
    error = await lost(manager)
    assert isinstance(error.__cause__, LookupError)
    assert "a bug in the tool" in str(error)
    async with manager as client:
        assert await sum_of(client) == "3"


@only_2
def test_raise_exceptions_must_be_an_option_of_a_client():
    with pytest.raises(TypeError, match="unexpected argument 'raise_exceptions'"):
        SessionConnectionManager(high_level(), raise_exceptions=True)


@kinds
@levels
@pytest.mark.parametrize("timeout", [30, 0])
async def test_calls_under_way_fail_when_the_manager_is_stopped(kind, options, create, timeout, caplog):
    calls, outcomes, lifespan = Calls(), [], Lifespan()
    manager = kind(create(lifespan, calls), **options)
    session = await manager.start()

    async def call():
        with pytest.raises(ERROR, match="Connection closed"):
            await session.call_tool("hang", {})
        outcomes.append("failed")

    async with anyio.create_task_group() as tg:
        tg.start_soon(call)
        tg.start_soon(call)
        await calls.began.wait()
        await anyio.wait_all_tasks_blocked()
        await manager.stop(timeout)
    assert outcomes == ["failed"] * 2
    assert calls.cancelled == 2
    assert lifespan.entered == lifespan.exited
    assert manager.state is ConnectionState.CLOSED
    assert not errors_in(caplog)


@kinds
@levels
async def test_P11_after_a_call_was_cancelled_the_next_one_gets_its_own_answer(kind, options, create):
    calls = Calls()
    async with kind(create(None, calls), **options) as session:
        async with anyio.create_task_group() as tg:
            tg.start_soon(session.call_tool, "hang", {})
            await calls.began.wait()
            tg.cancel_scope.cancel()
        assert await sum_of(session, 20, 3) == "23"


# Servers that end or crash.


@kinds
async def test_if_the_server_ends_the_connection_is_lost_and_calls_fail(kind, options, caplog):
    calls, outcomes, lifespan = Calls(), [], Lifespan()
    server = low_level(lifespan, calls)
    manager = kind(server, **options)
    session = await manager.start()

    async def call():
        with pytest.raises(ERROR, match="Connection closed"):
            await session.call_tool("hang", {})
        outcomes.append("failed")

    async with anyio.create_task_group() as tg:
        tg.start_soon(call)
        await calls.began.wait()
        await anyio.wait_all_tasks_blocked()
        server.ending.set()
        error = await lost(manager)
    assert outcomes == ["failed"]
    assert error.__cause__ is not None
    assert str(error).startswith(f"{manager.name}: the connection was lost: ")
    assert lifespan.entered == lifespan.exited
    assert len(errors_in(caplog)) == 1
    async with manager as another:
        assert await sum_of(another) == "3"


@kinds
@pytest.mark.parametrize("when", ["idle", "during a call"])
async def test_if_the_server_crashes_its_exception_is_the_cause(kind, options, when, caplog):
    calls = Calls()
    server = low_level(None, calls)
    server.error = LookupError("a bug in the server")
    manager = kind(server, **options)
    session = await manager.start()

    async def call():
        with pytest.raises(FAILURES):
            await session.call_tool("hang", {})

    async with anyio.create_task_group() as tg:
        if when == "during a call":
            tg.start_soon(call)
            await calls.began.wait()
        server.ending.set()
        error = await lost(manager)
    assert error.__cause__ is server.error
    assert str(error).endswith("a bug in the server")
    assert len(errors_in(caplog)) == 1
    assert manager.exception is not None


@kinds
@levels
async def test_if_a_task_of_the_lifespan_crashes_its_exception_is_the_cause(kind, options, create):
    crash, error = anyio.Event(), LookupError("the database is gone")

    async def work():
        await crash.wait()
        raise error

    @asynccontextmanager
    async def lifespan(server):
        async with anyio.create_task_group() as tg:
            tg.start_soon(work)
            yield {}
            tg.cancel_scope.cancel()

    manager = kind(create(lifespan), **options)
    session = await manager.start()
    assert await sum_of(session) == "3"
    crash.set()
    assert (await lost(manager)).__cause__ is error
    assert str(manager.exception).endswith("the database is gone")


@levels
@pytest.mark.parametrize("how", ["stop", "a loss", "a handshake that fails"])
async def test_a_lifespan_can_await_while_it_is_exited(create, how):
    """The server ends because its streams are closed. It is cancelled only if it takes too long."""
    closed = []

    async def close():
        await anyio.wait_all_tasks_blocked()
        closed.append(None)

    async def handshake(session):
        await session.initialize()
        if how == "a handshake that fails":
            raise LookupError("too old")

    manager = SessionConnectionManager(create(Lifespan(on_exit=close)), initialize=handshake)
    if how == "a handshake that fails":
        with pytest.raises(LookupError, match="too old"):
            await manager.start()
    else:
        await manager.start()
        if how == "stop":
            await manager.stop()
        else:
            manager.connection_lost(OSError("the client knows better"))
            await lost(manager)
    assert len(closed) == 1


@kinds
async def test_a_policy_runs_the_server_again(kind, options):
    lifespan = Lifespan()
    server = low_level(lifespan)
    manager = kind(server, reconnect=AT_ONCE, **options)
    session = await manager.start()
    for crash in (None, OSError("crash")):
        again = opened_again(manager)
        server.error = crash
        server.ending.set()
        await again.wait()
        server.error = None
        assert manager.connection is not session
        assert await sum_of(manager.current) == "3"
    assert server.runs == 3
    await manager.stop()
    assert lifespan.entered == lifespan.exited
    assert len(lifespan.entered) == 3


@kinds
async def test_a_server_that_ends_at_once_is_reported_during_the_handshake(kind, options):
    server = low_level()
    server.ends_at_once = True
    manager = kind(server, **options)
    with pytest.raises((ConnectionLostError, *FAILURES)) as caught:
        await manager.start()
    assert manager.name in "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert manager.state is ConnectionState.FAILED


@kinds
async def test_a_server_that_crashes_at_once_is_reported_with_its_exception(kind, options):
    server = low_level()
    server.ends_at_once = True
    server.error = LookupError("a bug in the server")
    manager = kind(server, **options)
    with pytest.raises((LookupError, ConnectionLostError)) as caught:
        await manager.start()
    assert leaf_of(caught.value) is server.error
    assert "a bug in the server" in str(caught.value)


@kinds
@levels
async def test_an_error_when_the_lifespan_is_entered_is_reported_at_once(kind, options, create, caplog):
    error = LookupError("no database")

    async def fail():
        raise error

    lifespan = Lifespan(on_entry=fail)
    manager = kind(create(lifespan), **options)
    with pytest.raises((LookupError, ConnectionLostError)) as caught:
        await manager.start()
    assert leaf_of(caught.value) is error
    assert "no database" in str(caught.value)
    assert manager.name in "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert manager.state is ConnectionState.FAILED
    lifespan.on_entry = None
    async with manager as session:
        assert await sum_of(session) == "3"
    assert lifespan.entered == lifespan.exited


@kinds
@levels
async def test_an_error_when_the_lifespan_is_exited_is_kept_in_the_exception(
    kind, options, create, caplog
):
    error = LookupError("the database is gone")

    async def fail():
        raise error

    manager = kind(create(Lifespan(on_exit=fail)), **options)
    await manager.start()
    await manager.stop()
    assert manager.state is ConnectionState.FAILED
    assert manager.exception is error
    assert len(errors_in(caplog)) == 1
    with pytest.raises(LookupError):
        await manager.wait_closed()


@pytest.mark.parametrize(("kind", "options"), OPENERS)
@pytest.mark.parametrize("create", [high_level, low_level])
@in_virtual_time
async def test_a_lifespan_that_never_exits_is_cancelled_after_two_seconds(kind, options, create):
    cancelled = []

    async def hang():
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled.append(None)
            raise

    lifespan = Lifespan(on_exit=hang)
    manager = kind(create(lifespan), **options)
    session = await manager.start()
    assert await sum_of(session) == "3"
    began = anyio.current_time()
    await manager.stop()
    assert 1.9 <= anyio.current_time() - began <= 2.1
    assert len(cancelled) == 1
    assert manager.state is ConnectionState.CLOSED
    began = anyio.current_time()
    await manager.start()
    await manager.stop(timeout=0)
    assert anyio.current_time() - began <= 2.1
    assert len(cancelled) == 2


@pytest.mark.parametrize(("kind", "options"), OPENERS)
@in_virtual_time
async def test_a_lifespan_may_take_time_to_exit(kind, options):
    ended = []

    async def close():
        await anyio.sleep(1)
        ended.append(None)

    manager = kind(high_level(Lifespan(on_exit=close)), **options)
    await manager.start()
    began = anyio.current_time()
    await manager.stop()
    assert 0.9 <= anyio.current_time() - began <= 1.1
    assert len(ended) == 1


@pytest.mark.parametrize(("kind", "options"), OPENERS)
@in_virtual_time
async def test_a_lifespan_may_take_time_to_be_entered(kind, options):
    async def connect():
        await anyio.sleep(20)

    manager = kind(high_level(Lifespan(on_entry=connect)), **options)
    began = anyio.current_time()
    async with manager as session:
        assert anyio.current_time() - began >= 20
        assert await sum_of(session) == "3"


# Attempts that are given up.


@kinds
@levels
async def test_a_lifespan_that_never_begins_causes_a_start_timeout(kind, options, create):
    lifespan = Lifespan(on_entry=anyio.sleep_forever)
    manager = kind(create(lifespan), start_timeout=0.05, **options)
    with pytest.raises(StartTimeoutError):
        await manager.start()
    assert lifespan.entered == lifespan.exited
    assert len(lifespan.entered) == 1


@kinds
@levels
@pytest.mark.parametrize("how", ["cancelled", "stopped"])
async def test_nothing_is_left_of_an_attempt_that_was_given_up(kind, options, create, how):
    begun = anyio.Event()

    async def hang():
        begun.set()
        await anyio.sleep_forever()

    async def start():
        try:
            await manager.start()
        except ConnectionStoppedError:
            assert how == "stopped"

    lifespan = Lifespan(on_entry=hang)
    manager = kind(create(lifespan), **options)
    async with anyio.create_task_group() as tg:
        tg.start_soon(start)
        await begun.wait()
        if how == "stopped":
            await manager.stop()
        else:
            tg.cancel_scope.cancel()
    assert lifespan.entered == lifespan.exited
    assert len(lifespan.entered) == 1
    assert manager.state is ConnectionState.CLOSED
    lifespan.on_entry = None
    async with manager as session:
        assert await sum_of(session) == "3"


@kinds
@levels
async def test_an_attempt_can_be_given_up_at_any_step(kind, options, create):
    """The start is cancelled after any number of steps of the event loop, until it succeeds."""
    lifespan = Lifespan()
    manager = kind(create(lifespan), **options)
    steps, is_open = 0, False
    while not is_open:
        async with anyio.create_task_group() as tg:
            tg.start_soon(manager.start)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            is_open = manager.state is ConnectionState.OPEN
            tg.cancel_scope.cancel()
        assert lifespan.entered == lifespan.exited or is_open
        steps += 3
    await manager.stop()
    assert lifespan.entered == lifespan.exited


@kinds
async def test_the_class_of_a_server_is_not_a_server(kind, options):
    with pytest.raises(TypeError):
        await kind(MCPServer, **options).start()
