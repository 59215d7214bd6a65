"""Tests `session_class` and `initialize`, which let frameworks use their own sessions."""

import copy
import logging
import pickle
from functools import partial

import anyio
import mcp
import pytest
from mcp import ClientSession
from memory_server import MemoryServer, memory_transport
from reopening import AT_ONCE, lost, opened_again

from ownertask import (
    ConnectionGroup,
    ConnectionLostError,
    ConnectionPool,
    ConnectionState,
    ConnectionStoppedError,
    NotConnectedError,
    OwnerTaskError,
    StartTimeoutError,
)
from ownertask.mcp import ClientConnectionManager, SessionConnectionManager, _sdk

ERROR = mcp.MCPError if _sdk.HAS_CLIENT else mcp.McpError
few_backends = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


class Recorder(MemoryServer):
    """Records the methods of all messages that it receives."""

    def __init__(self):
        super().__init__()
        self.methods = []

    def _handle(self, request):
        self.methods.append(request.get("method"))
        super()._handle(request)


@pytest.fixture
def server():
    server = Recorder()
    yield server
    server.close()


@pytest.fixture
def exits(server):
    """Counts how often the transport was exited."""
    counted = []
    enter = server.__call__

    class Transport:
        async def __aenter__(self):
            self._opened = enter()
            return await self._opened.__aenter__()

        async def __aexit__(self, *exc_info):
            counted.append(anyio.get_current_task().id)
            return await self._opened.__aexit__(*exc_info)

    server.transport = Transport
    return counted


HANDSHAKE = ["initialize", "notifications/initialized"]


class Session(ClientSession):
    """A session that adds an option and a method. Its constructor accepts any option."""

    def __init__(self, *args, label="none", **options):
        super().__init__(*args, **options)
        self.label = label

    async def tool_names(self):
        return [tool.name for tool in (await self.list_tools()).tools]


class Strict(ClientSession):
    """A session whose constructor names its only option."""

    def __init__(self, read_stream, write_stream, *, label="none"):
        super().__init__(read_stream, write_stream)
        self.label = label


class Tenant(ClientSession):
    """A session whose options have the names of arguments that the SDK's own classes take."""

    def __init__(self, read_stream, write_stream, *, url, server=None, http_client=None, **options):
        super().__init__(read_stream, write_stream, **options)
        self.own = (url, server, http_client)


class Negotiating(ClientSession):
    """A session that has its own handshake, and records each handshake."""

    was_initialized = 0

    async def initialize(self):
        self.was_initialized += 1
        return await super().initialize()


# `session_class`


async def test_start_returns_an_instance_of_the_session_class(server):
    manager = SessionConnectionManager(server, session_class=Session, label="mine")
    session = await manager.start()
    assert type(session) is Session
    assert session.label == "mine"
    assert await session.tool_names() == []
    assert manager.connection is session
    assert server.methods[:2] == HANDSHAKE
    await manager.stop()
    async with manager as another:
        assert type(another) is Session
        assert another is not session
        assert another.label == "mine"


async def test_the_default_session_class_is_the_class_of_the_sdk(server):
    manager = SessionConnectionManager(server)
    assert manager.connection_type is ClientSession
    assert SessionConnectionManager.connection_type is ClientSession
    async with manager as session:
        assert type(session) is ClientSession
    async with SessionConnectionManager(server, session_class=ClientSession) as session:
        assert type(session) is ClientSession


async def test_current_is_an_instance_before_a_connection_is_open(server):
    manager = SessionConnectionManager(server, session_class=Session)
    assert manager.connection_type is Session
    current = manager.current
    assert isinstance(current, Session)
    assert not isinstance(SessionConnectionManager(server).current, Session)
    async with manager:
        assert isinstance(current, Session)
        assert current.label == "none"
        assert await current.tool_names() == []


async def test_watch_group_and_pool_receive_such_sessions(server):
    seen = []

    async def watch(session):
        seen.append(session)
        await anyio.sleep_forever()

    def create(key="a"):
        return SessionConnectionManager(memory_transport, session_class=Session, watch=watch, label=key)

    async with ConnectionGroup({"a": create("a"), "b": create("b")}) as sessions:
        assert {key: session.label for key, session in sessions.items()} == {"a": "a", "b": "b"}
        await anyio.wait_all_tasks_blocked()
        assert sorted(session.label for session in seen) == ["a", "b"]
    async with ConnectionPool(create) as pool, pool.acquire("c") as session:
        assert (type(session), session.label) == (Session, "c")


async def test_the_options_of_the_sdk_reach_a_session_class(server):
    messages, received = [], anyio.Event()

    async def on_message(message):
        messages.append(message)
        received.set()

    manager = SessionConnectionManager(
        server, session_class=Session, message_handler=on_message, read_timeout_seconds=0.2
    )
    async with manager as session:
        server.put({"method": "notifications/tools/list_changed"})
        await received.wait()
        with pytest.raises(ERROR, match="Timed out|timed out"):
            await session.call_tool("anything", {})


async def test_an_option_of_a_strict_constructor_is_checked_by_name(server):
    async with SessionConnectionManager(server, session_class=Strict, label="a") as session:
        assert session.label == "a"
    for option in ("color", "client_info", "read_stream", "write_stream"):
        with pytest.raises(TypeError, match=f"unexpected argument '{option}'.*Strict.* label"):
            SessionConnectionManager(server, session_class=Strict, **{option: None})
    with pytest.raises(TypeError, match="unexpected argument 'label'"):
        SessionConnectionManager(server, label="a")


async def test_a_session_class_may_have_options_with_any_name_except_for_those_of_the_streams(server):
    options = {"url": "a", "server": "b", "http_client": "c", "client_info": None}
    async with SessionConnectionManager(server, session_class=Tenant, **options) as session:
        assert session.own == ("a", "b", "c")
    message = (
        "^unexpected argument 'read_stream': Tenant accepts http_client, server, url, any other option$"
    )
    with pytest.raises(TypeError, match=message):
        SessionConnectionManager(server, session_class=Tenant, read_stream=None)


def test_only_a_class_of_the_sdk_is_said_to_be_one(server):
    with pytest.raises(TypeError, match=r"color.: Strict accepts label$"):
        SessionConnectionManager(server, session_class=Strict, color=1)
    with pytest.raises(TypeError, match=r"color.: ClientSession of mcp \d.* accepts client_info"):
        SessionConnectionManager(server, color=1)


@pytest.mark.parametrize("policy", [None, AT_ONCE])
async def test_a_constructor_that_accepts_any_option_may_reject_it_itself(server, exits, policy):
    manager = SessionConnectionManager(
        server.transport, session_class=Session, reconnect=policy, color="red"
    )
    with pytest.raises(TypeError, match="color") as caught:
        await manager.start()
    assert f"ownertask: raised by {manager.name} while opening" in caught.value.__notes__
    assert len(exits) == 1
    assert manager.state is ConnectionState.FAILED


@pytest.mark.parametrize("option", ["read_stream", "write_stream"])
async def test_the_streams_cannot_be_passed_as_options(server, option):
    with pytest.raises(TypeError, match=option):
        await SessionConnectionManager(server, session_class=Session, **{option: None}).start()


async def test_an_error_of_the_constructor_is_raised_and_the_transport_is_closed(server, exits):
    class Broken(ClientSession):
        def __init__(self, *args, **options):
            raise LookupError("no configuration")

    manager = SessionConnectionManager(server.transport, session_class=Broken)
    with pytest.raises(LookupError, match="no configuration") as caught:
        await manager.start()
    assert caught.value.__notes__ == [f"ownertask: raised by {manager.name} while opening"]
    assert len(exits) == 1


@pytest.mark.parametrize("where", ["before", "after"])
async def test_an_error_while_a_session_is_entered_closes_the_transport(server, exits, where):
    class Broken(ClientSession):
        async def __aenter__(self):
            if where == "before":
                raise LookupError("cannot enter")
            await super().__aenter__()
            try:
                raise LookupError("cannot enter")
            except LookupError as error:
                await super().__aexit__(type(error), error, error.__traceback__)
                raise

    manager = SessionConnectionManager(server.transport, session_class=Broken)
    with pytest.raises(LookupError, match="cannot enter"):
        await manager.start()
    assert len(exits) == 1


async def test_a_session_class_may_override_its_exit(server, exits):
    exited = []

    class Closing(ClientSession):
        async def __aexit__(self, *exc_info):
            exited.append(anyio.get_current_task().id)
            return await super().__aexit__(*exc_info)

    manager = SessionConnectionManager(server.transport, session_class=Closing)
    await manager.start()
    await manager.stop()
    assert exited == exits
    assert len(exited) == 1


@pytest.mark.parametrize(
    "value",
    [None, "ClientSession", 1, object, dict, anyio.Event, lambda *streams: None, Session.initialize],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_a_session_class_that_is_not_a_subclass_is_rejected(value):
    with pytest.raises(TypeError, match=r"^session_class must be .*ClientSession"):
        SessionConnectionManager(memory_transport, session_class=value)


async def test_an_instance_is_rejected_as_a_session_class():
    sender, receiver = anyio.create_memory_object_stream(1)
    with pytest.raises(TypeError, match=r"^session_class must be "):
        SessionConnectionManager(memory_transport, session_class=ClientSession(receiver, sender))
    sender.close()
    receiver.close()


@pytest.mark.skipif(not _sdk.HAS_CLIENT, reason="mcp 1.x has no Client")
def test_a_client_is_not_a_session_class_and_a_client_manager_has_neither_argument():
    with pytest.raises(TypeError, match=r"^session_class must be "):
        SessionConnectionManager(memory_transport, session_class=mcp.Client)
    for option in ({"session_class": Session}, {"initialize": False}):
        with pytest.raises(TypeError, match=f"unexpected argument '{next(iter(option))}'"):
            ClientConnectionManager(memory_transport, **option)


def pickled(manager):
    return pickle.loads(pickle.dumps(manager))


async def initialize_later(session):
    session.was_negotiated = True
    await session.initialize()


@few_backends
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
async def test_a_copy_has_the_session_class_the_handshake_and_the_options(duplicate):
    manager = SessionConnectionManager(
        memory_transport, session_class=Session, initialize=initialize_later, label="mine"
    )
    async with manager:
        copied = duplicate(manager)
        assert copied.connection_type is Session
        assert copied.options == manager.options == {"label": "mine"}
        async with copied as session:
            assert (type(session), session.label) == (Session, "mine")
            assert session.was_negotiated


# Losses of such sessions.


class Reading(ClientSession):
    """A session that overrides methods that the manager also needs."""

    async def initialize(self):
        return await super().initialize()

    async def send_request(self, *args, **options):
        return await super().send_request(*args, **options)


@pytest.mark.parametrize("session_class", [Session, Negotiating, Reading])
@pytest.mark.parametrize("initialize", [True, Negotiating.initialize, initialize_later])
async def test_F22_a_call_cancelled_in_the_tick_of_its_response_does_not_end_such_a_session(
    server, session_class, initialize
):
    if initialize is Negotiating.initialize and session_class is not Negotiating:
        initialize = session_class.initialize
    manager = SessionConnectionManager(server, session_class=session_class, initialize=initialize)
    session = await manager.start()
    for _ in range(30):  # the order of trio's tasks is random
        await server.cancel_call_with_response(session)
        await session.list_tools()
    assert manager.state is ConnectionState.OPEN
    await manager.stop()
    assert manager.exception is None


@pytest.mark.parametrize("initialize", [True, False])
async def test_F22_a_call_that_is_cancelled_during_a_handshake_does_not_end_the_session(
    server, initialize
):
    """Before `start()` returns the session, a framework may send requests and cancel them."""

    async def handshake(session):
        await session.initialize()
        for _ in range(10):
            await server.cancel_call_with_response(session)
            await session.list_tools()

    manager = SessionConnectionManager(
        server, session_class=Session, initialize=handshake if initialize else False
    )
    session = await manager.start()
    if not initialize:
        await handshake(session)
    assert manager.state is ConnectionState.OPEN
    await manager.stop()


@pytest.mark.parametrize("timeout", [30, 0])
async def test_calls_of_such_a_session_fail_when_it_is_stopped_or_lost(server, timeout):
    for end in ("stop", "loss"):
        manager = SessionConnectionManager(server, session_class=Negotiating)
        session = await manager.start()
        outcomes = []

        async def call(session=session, outcomes=outcomes):
            with pytest.raises(ERROR, match="Connection closed"):
                await session.call_tool("anything", {})
            outcomes.append("failed")

        async with anyio.create_task_group() as tg:
            tg.start_soon(call)
            await server.next_request()
            if end == "stop":
                await manager.stop(timeout)
            else:
                server.end()
                assert (await lost(manager)).__cause__ is not None
        assert outcomes == ["failed"]


async def test_a_policy_creates_another_instance_after_a_loss(server):
    manager = SessionConnectionManager(server, session_class=Session, reconnect=AT_ONCE, label="mine")
    session = await manager.start()
    again = opened_again(manager)
    server.end()
    await again.wait()
    assert type(manager.connection) is Session
    assert manager.connection is not session
    assert manager.connection.label == "mine"
    assert await manager.current.tool_names() == []
    await manager.stop()


# `initialize`


async def test_by_default_the_method_initialize_of_the_session_is_called_once(server):
    for options in ({}, {"initialize": True}):
        server.methods.clear()
        async with SessionConnectionManager(server, session_class=Negotiating, **options) as session:
            await session.list_tools()
            assert session.was_initialized == 1
            assert server.methods[:3] == [*HANDSHAKE, "tools/list"]


async def test_without_a_handshake_nothing_is_sent_until_the_caller_initializes(server):
    manager = SessionConnectionManager(server, session_class=Negotiating, initialize=False)
    session = await manager.start()
    await anyio.wait_all_tasks_blocked()
    assert server.methods == []
    assert session.was_initialized == 0
    assert manager.state is ConnectionState.OPEN
    await session.initialize()
    await session.list_tools()
    assert server.methods == [*HANDSHAKE, "tools/list"]
    await manager.stop()
    assert manager.exception is None


async def test_without_a_handshake_a_loss_is_detected(server):
    manager = SessionConnectionManager(server, initialize=False)
    await manager.start()
    server.end()
    assert isinstance((await lost(manager)).__cause__, EOFError)


async def test_a_session_that_was_not_initialized_can_be_stopped(server):
    for timeout in (30, 0):
        manager = SessionConnectionManager(server, initialize=False)
        await manager.start()
        await manager.stop(timeout)
        assert manager.state is ConnectionState.CLOSED


class Handshake:
    """Records each session with which the function was called, and the task that called it."""

    def __init__(self):
        self.sessions = []
        self.tasks = []

    async def __call__(self, session, *more):
        self.sessions.append(session)
        self.tasks.append(anyio.get_current_task())
        await session.initialize()
        return "ignored"

    async def method(self, session):
        await self(session)

    def returns_a_coroutine(self, session):
        return self(session)

    def returns_an_awaitable(self, session):
        return Awaitable(self(session))


class Awaitable:
    def __init__(self, coroutine):
        self._coroutine = coroutine

    def __await__(self):
        return self._coroutine.__await__()


HANDSHAKES = {
    "a callable object": lambda handshake: handshake,
    "a method": lambda handshake: handshake.method,
    "a lambda": lambda handshake: lambda session: handshake(session),  # noqa: PLW0108
    "a partial": lambda handshake: partial(Handshake.__call__, handshake),
    "a function that returns a coroutine": lambda handshake: handshake.returns_a_coroutine,
    "a function that returns an awaitable": lambda handshake: handshake.returns_an_awaitable,
}


@few_backends
@pytest.mark.parametrize("what", HANDSHAKES)
async def test_an_async_function_is_called_with_each_session_in_the_owner_task(server, what):
    handshake = Handshake()
    manager = SessionConnectionManager(server, initialize=HANDSHAKES[what](handshake), name="tiny")
    assert handshake.sessions == []
    for run in range(1, 3):
        session = await manager.start()
        assert await manager.start() is session
        assert handshake.sessions[-1] is session
        assert len(handshake.sessions) == run
        assert "owner task of tiny" in str(handshake.tasks[-1].name)
        await session.list_tools()
        await manager.stop()
    assert server.methods == [*HANDSHAKE, "tools/list"] * 2


async def test_the_method_of_a_session_class_can_be_the_function(server):
    manager = SessionConnectionManager(
        server, session_class=Negotiating, initialize=Negotiating.initialize
    )
    async with manager as session:
        assert session.was_initialized == 1
    async with SessionConnectionManager(server, initialize=ClientSession.initialize) as session:
        await session.list_tools()


async def test_the_manager_is_opening_while_the_function_runs(server):
    """While the function runs, the manager is opening and not connected."""
    seen = []

    async def handshake(session):
        seen.append(manager.state)
        with pytest.raises(NotConnectedError):
            manager.connection  # noqa: B018
        await session.initialize()
        await session.list_tools()
        seen.append(manager.state)

    manager = SessionConnectionManager(server, initialize=handshake)
    async with manager:
        assert seen == [ConnectionState.OPENING] * 2


async def async_generator(session):
    yield session


NOT_AWAITABLE = {
    "a sync function": lambda session: None,
    "a function that returns a session": lambda session: session,
    "a function that returns a number": lambda session: 1,
    "an async generator function": async_generator,
    "a class": list,
}


@few_backends
@pytest.mark.parametrize("policy", [None, AT_ONCE])
@pytest.mark.parametrize("what", NOT_AWAITABLE)
async def test_a_function_without_an_awaitable_result_raises_a_type_error(server, exits, what, policy):
    manager = SessionConnectionManager(
        server.transport, initialize=NOT_AWAITABLE[what], reconnect=policy
    )
    with pytest.raises(TypeError) as caught:
        await manager.start()
    if what != "a class":
        assert "initialize" in str(caught.value)
        assert "async" in str(caught.value) or "await" in str(caught.value)
    assert caught.value.__notes__ == [f"ownertask: raised by {manager.name} while opening"]
    assert manager.state is ConnectionState.FAILED
    assert len(exits) == 1


async def test_a_function_without_parameters_raises_a_type_error(server, exits):
    async def handshake():
        pass

    manager = SessionConnectionManager(server.transport, initialize=handshake)
    with pytest.raises(TypeError, match="argument"):
        await manager.start()
    assert len(exits) == 1


@pytest.mark.parametrize("how", ["at once", "later", "a group", "a sync function"])
async def test_the_error_of_the_function_is_raised_with_a_note_and_its_type(server, exits, how, caplog):
    caplog.set_level(logging.WARNING, "ownertask")
    error = LookupError("this server is too old")

    async def handshake(session):
        if how == "later":
            await session.initialize()
            await anyio.wait_all_tasks_blocked()
        if how == "a group":
            async with anyio.create_task_group() as tg:
                tg.start_soon(handshake_that_fails)
        raise error

    async def handshake_that_fails():
        raise error

    def sync(session):
        raise error

    manager = SessionConnectionManager(
        server.transport, initialize=sync if how == "a sync function" else handshake
    )
    with pytest.raises(LookupError) as caught:
        await manager.start()
    assert caught.value is error
    assert error.__notes__ == [f"ownertask: raised by {manager.name} while opening"]
    assert manager.exception is error
    assert manager.state is ConnectionState.FAILED
    assert len(exits) == 1


async def test_a_response_with_an_error_is_raised_as_the_sdk_raises_it(server, exits):
    server.on_handshake = lambda request: server.put(
        {"id": request["id"], "error": {"code": -32000, "message": "not today"}}
    )

    async def handshake(session):
        await session.initialize()

    with pytest.raises(ERROR, match="not today"):
        await SessionConnectionManager(server.transport, initialize=handshake).start()
    assert len(exits) == 1


class Fatal(BaseException):
    pass


async def test_a_base_exception_wakes_all_callers(server, exits, asyncio_only):
    async def handshake(session):
        await anyio.wait_all_tasks_blocked()
        raise Fatal

    caught = []

    async def start():
        try:
            await manager.start()
        except Fatal:
            caught.append("fatal")

    manager = SessionConnectionManager(server.transport, initialize=handshake)
    async with anyio.create_task_group() as tg:
        tg.start_soon(start)
        tg.start_soon(start)
    assert caught == ["fatal"] * 2
    assert len(exits) == 1


@pytest.mark.parametrize("timeout", ["of the manager", "of the call"])
async def test_a_function_that_never_ends_causes_a_start_timeout(server, exits, timeout):
    cancelled = []

    async def handshake(session):
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled.append(None)
            raise

    manager = SessionConnectionManager(
        server.transport, initialize=handshake, start_timeout=0.05 if "manager" in timeout else 60
    )
    with pytest.raises(StartTimeoutError):
        await manager.start(None if "manager" in timeout else 0.05)
    assert len(cancelled) == len(exits) == 1
    assert manager.state is ConnectionState.FAILED


@pytest.mark.parametrize("how", ["start", "stop", "both"])
async def test_a_function_is_cancelled_with_its_caller_and_by_a_stop(server, exits, how):
    begun, cancelled, outcomes = anyio.Event(), [], []

    async def handshake(session):
        begun.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled.append(anyio.get_current_task().id)
            raise

    async def start():
        try:
            await manager.start()
        except ConnectionStoppedError:
            outcomes.append("stopped")

    manager = SessionConnectionManager(server.transport, initialize=handshake)
    async with anyio.create_task_group() as tg:
        tg.start_soon(start)
        await begun.wait()
        if how != "start":
            await manager.stop()
        if how != "stop":
            tg.cancel_scope.cancel()
    assert cancelled == exits
    assert len(exits) == 1
    assert outcomes == (["stopped"] if how == "stop" else outcomes)
    assert manager.state is ConnectionState.CLOSED
    async with SessionConnectionManager(server.transport) as session:
        await session.list_tools()


@pytest.mark.parametrize("reason", [None, OSError("too old")])
@pytest.mark.parametrize("ending", ["returns", "waits", "raises"])
async def test_a_function_may_report_a_loss(server, exits, reason, ending):
    async def handshake(session):
        manager.connection_lost(reason)
        if ending == "waits":
            await anyio.sleep_forever()
        if ending == "raises":
            raise LookupError("a consequence")

    manager = SessionConnectionManager(server.transport, initialize=handshake)
    with pytest.raises((ConnectionLostError, LookupError)) as caught:
        await manager.start()
    if reason is not None:
        assert isinstance(caught.value, ConnectionLostError)
        assert caught.value.__cause__ is reason
        assert "too old" in str(caught.value)
    else:
        assert isinstance(caught.value, LookupError if ending == "raises" else ConnectionLostError)
    assert len(exits) == 1
    assert manager.state is ConnectionState.FAILED


@pytest.mark.parametrize("method", ["start", "stop", "wait_closed", "wait_open"])
async def test_a_function_that_waits_for_its_own_run_does_not_deadlock(server, exits, method):
    async def handshake(session):
        await getattr(manager, method)()

    manager = SessionConnectionManager(server.transport, initialize=handshake)
    with pytest.raises(OwnerTaskError, match=method):
        await manager.start()
    assert len(exits) == 1
    assert manager.state is ConnectionState.FAILED


async def test_a_function_that_ignores_the_end_of_the_server_does_not_hang(server, exits):
    begun = anyio.Event()

    async def handshake(session):
        begun.set()
        await anyio.sleep_forever()

    manager = SessionConnectionManager(server.transport, initialize=handshake)

    async def start():
        with pytest.raises(ConnectionLostError, match="the transport's read stream ended"):
            await manager.start()

    async with anyio.create_task_group() as tg:
        tg.start_soon(start)
        await begun.wait()
        server.end()
    assert len(exits) == 1


async def test_a_policy_calls_the_function_for_each_attempt(server):
    outcomes = [OSError("first"), OSError("second"), None, OSError("third"), None]
    sessions = []

    async def handshake(session):
        sessions.append(session)
        if (error := outcomes.pop(0)) is not None:
            raise error
        await session.initialize()

    manager = SessionConnectionManager(server, initialize=handshake, reconnect=AT_ONCE)
    await manager.start()
    assert len(sessions) == 3
    again = opened_again(manager)
    server.end()
    await again.wait()
    assert len(sessions) == len({id(session) for session in sessions}) == 5
    assert manager.connection is sessions[-1]
    await manager.stop()


@pytest.mark.parametrize(
    "value",
    [None, 1, 0, "yes", "", 1.0, [], {}, object()],
    ids=lambda value: f"{type(value).__name__} {value!s:.9}",
)
def test_another_value_for_initialize_is_rejected(value):
    with pytest.raises(TypeError, match=r"^initialize must be .*(True|False|bool).*async function"):
        SessionConnectionManager(memory_transport, initialize=value)


def test_an_argument_is_not_an_option_of_the_sdk():
    manager = SessionConnectionManager(
        memory_transport, session_class=Session, initialize=False, label="a"
    )
    assert manager.options == {"label": "a"}
