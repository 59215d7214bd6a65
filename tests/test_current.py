"""Tests for `ConnectionManager.current`, the object that follows a manager through restarts."""

import asyncio
import copy
import gc
import inspect
import pickle
import threading
import weakref
from collections.abc import AsyncIterable, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from unittest.mock import AsyncMock, Mock, create_autospec

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from probe import Stage

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionState,
    NotConnectedError,
    OwnerTaskError,
    WrongEventLoopError,
)


class Pipeline:
    pass


class Client:
    """A client in the style of redis: most of its methods are functions that return coroutines."""

    kind = "client"
    on_message = None

    def __init__(self, number):
        self.number = number
        self.sent = []
        self.failure = None
        self.hang = anyio.Event()

    async def execute(self, *args):
        """Sends a command."""
        self.sent.append(args)
        await checkpoint()
        if self.failure is not None:
            raise self.failure
        return self.number, *args

    async def wait(self):
        self.sent.append(("WAIT",))
        await self.hang.wait()
        raise OSError("connection closed")

    def get(self, key, *, default=None):
        """Returns the value of a key."""
        return self.execute("GET", key)

    def slow_get(self):
        return self.wait()

    def pipeline(self):
        return Pipeline()

    def decode(self, text):
        return f"{self.number}: {text}"

    def future(self):
        return Answer(self.number)

    async def messages(self):
        yield self.number

    @asynccontextmanager
    async def lock(self):
        yield self.number

    @classmethod
    async def create(cls):
        return cls.__name__

    @staticmethod
    async def escape(text):
        return text.upper()

    @property
    def host(self):
        return f"host {self.number}"

    async def __aenter__(self):
        return self

    async def __aexit__(self, *args):
        pass

    def __await__(self):
        return checkpoint().__await__()


class Answer:
    """An awaitable that is not a coroutine."""

    def __init__(self, value):
        self.value = value

    def __await__(self):
        yield from checkpoint().__await__()
        return self.value


class Manager(ConnectionManager[object]):
    """Opens what `make(number)` returns, with the number of the run. A test can hold up the opening."""

    def __init__(self, make=Client):
        super().__init__(name="probe")
        self.make = make
        self.opened = []
        self.stage = checkpoint

    @asynccontextmanager
    async def open_connection(self):
        await self.stage()
        self.opened.append(self.make(len(self.opened) + 1))
        yield self.opened[-1]

    async def lose(self, cause=None):
        """Loses the connection, and waits until it is closed."""
        self.connection_lost(cause)
        with suppress(ConnectionLostError):
            await self.wait_closed()

    async def restart(self):
        await self.lose()
        return await self.start()


class Typed(Manager):
    connection_type = Client


@asynccontextmanager
async def opening(manager):
    """Keeps a manager in `OPENING`. The block gets a function that lets it open, and waits for that."""
    manager.stage = stage = Stage()

    async def finish():
        stage.let_go.set()
        await manager.start()

    async with anyio.create_task_group() as tg:
        tg.start_soon(manager.start)
        await stage.reached.wait()
        try:
            yield finish
        finally:
            stage.let_go.set()
            manager.stage = checkpoint


@pytest.fixture
async def manager():
    manager = Manager()
    yield manager
    await manager.stop()


# Calls.


async def test_K9_a_call_while_the_manager_reopens_waits_and_is_answered_by_the_new_connection(manager):
    current = manager.current
    await manager.start()
    assert await current.get("a") == (1, "GET", "a")
    await manager.lose()
    answers = {}

    async def call(name, function, *args):
        answers[name] = await function(*args)

    async with opening(manager) as finish, anyio.create_task_group() as tg:
        tg.start_soon(call, "coroutine function", current.execute, "A")
        tg.start_soon(call, "returned a coroutine", current.get, "b")
        await wait_all_tasks_blocked()
        assert answers == {}
        await finish()
    assert answers == {"coroutine function": (2, "A"), "returned a coroutine": (2, "GET", "b")}
    old, new = manager.opened
    assert old.sent == [("GET", "a")]
    assert sorted(new.sent) == [("A",), ("GET", "b")]


async def test_K9_a_call_after_stop_raises_not_connected_error_and_starts_nothing(manager):
    current = manager.current
    await manager.start()
    await current.get("a")
    await manager.stop()
    for call in [current.execute, current.get]:
        with pytest.raises(NotConnectedError, match=r"state: closed"):
            await call("a")
    with pytest.raises(NotConnectedError, match=r"state: closed"):
        current.decode("a")
    assert len(manager.opened) == 1
    assert manager.state is ConnectionState.CLOSED


async def test_K9_a_call_after_a_loss_raises_the_loss(manager):
    await manager.start()
    await manager.lose(OSError("broken pipe"))
    with pytest.raises(ConnectionLostError, match="broken pipe"):
        await manager.current.execute()
    with pytest.raises(ConnectionLostError, match="broken pipe"):
        _ = manager.current.host


def in_another_loop(function, *args):
    """Runs an async function in an asyncio event loop in another thread. Returns what it raised."""
    raised = []

    def work():
        try:
            asyncio.run(function(*args))
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(5)
    return raised[0] if raised else None


async def test_K9_a_use_from_another_event_loop_raises_wrong_event_loop_error_at_once(manager):
    current = manager.current
    await manager.start()
    await current.get("a")
    sent = len(manager.opened[0].sent)

    async def read():
        return current.execute

    async def call(method):
        await method("a")

    async def first(coroutine):
        await coroutine

    async def list_attributes():
        assert "execute" in dir(current)

    execute, get = current.execute, current.get
    called = get("b")  # in this loop
    for function, *args in [(read,), (call, execute), (call, get), (first, called)]:
        error = in_another_loop(function, *args)
        assert isinstance(error, WrongEventLoopError), (function, error)
    assert in_another_loop(list_attributes) is None
    await manager.lose()
    async with opening(manager):
        for method in [execute, get]:
            assert isinstance(in_another_loop(call, method), WrongEventLoopError)
    assert len(manager.opened[0].sent) == sent


async def test_methods_that_were_looked_up_before_a_restart_call_the_new_connection(manager):
    await manager.start()
    current = manager.current
    execute, get, decode = current.execute, current.get, current.decode
    await manager.restart()
    assert await execute("A") == (2, "A")
    assert await get("a") == (2, "GET", "a")
    assert decode("x") == "2: x"
    assert manager.opened[0].sent == []


async def test_a_coroutine_function_calls_the_connection_that_is_open_when_it_is_awaited(manager):
    await manager.start()
    call = manager.current.execute("A")
    await manager.restart()
    assert await call == (2, "A")


async def test_a_function_is_called_immediately(manager):
    await manager.start()
    call = manager.current.get("a")
    await manager.restart()
    assert await call == (1, "GET", "a")


@pytest.mark.parametrize("name", ["get", "execute"])
async def test_a_coroutine_that_is_never_awaited_causes_one_warning_with_the_name_of_the_method(
    manager, name
):
    await manager.start()
    calls = [getattr(manager.current, name)("a")]
    with pytest.warns(RuntimeWarning, match=r"'Client.execute' was never awaited") as caught:
        calls.clear()
    assert len(caught) == 1


async def test_a_coroutine_can_be_closed_without_a_warning(manager):
    await manager.start()
    manager.current.get("a").close()
    manager.current.execute("a").close()
    gc.collect()
    assert manager.opened[0].sent == []


async def test_K7_a_cancelled_call_raises_only_its_cancellation_and_sends_nothing(manager):
    current = manager.current
    await manager.start()
    await manager.lose()
    async with opening(manager) as finish:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tg:
                tg.start_soon(current.execute, "A")
                await wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        await finish()
    assert manager.state is ConnectionState.OPEN
    assert manager.opened[1].sent == []


async def test_nothing_is_awaited_between_the_wait_and_the_call(manager):
    """When the wait ends, another task is about to lose the connection. The call begins before that."""

    class Watched(Client):
        async def execute(self, *args):
            states.append(manager.state)

    async def lose():
        await waited.wait()
        manager.connection_lost()

    async def wait_open():
        connection = await ConnectionManager.wait_open(manager)
        waited.set()
        return connection

    states, waited = [], anyio.Event()
    await manager.start()
    execute = manager.current.execute
    await manager.lose()
    manager.make, manager.wait_open = Watched, wait_open
    async with anyio.create_task_group() as tg:
        tg.start_soon(lose)
        async with opening(manager) as finish:
            tg.start_soon(execute, "A")
            await wait_all_tasks_blocked()
            await finish()
    assert states == [ConnectionState.OPEN]
    with suppress(ConnectionLostError):
        await manager.wait_closed()


async def test_a_call_from_inside_a_run_that_is_not_open_yet_raises_owner_task_error():
    class Calls(Typed):
        @asynccontextmanager
        async def open_connection(self):
            await self.current.execute("A")
            yield Client(1)

    with pytest.raises(OwnerTaskError):
        await Calls().start()


async def test_a_plain_function_that_once_returned_a_coroutine_waits_even_through_a_new_object(manager):
    """The manager keeps what was learned, although it does not keep the object."""
    await manager.start()
    await manager.current.get("a")
    gc.collect()
    await manager.lose()
    answers = []

    async def call():
        answers.append(await manager.current.get("b"))

    async with opening(manager) as finish, anyio.create_task_group() as tg:
        tg.start_soon(call)
        await wait_all_tasks_blocked()
        await finish()
    assert answers == [(2, "GET", "b")]


@pytest.mark.parametrize("change", ["a value", "a future"])
async def test_a_waiting_method_may_return_something_else_after_the_restart(manager, change):
    await manager.start()
    get = manager.current.get
    await get("a")
    await manager.lose()

    class Changed(Client):
        def get(self, key):
            return key if change == "a value" else Answer(key)

    manager.make = Changed
    answers = []

    async def call():
        answers.append(await get("b"))

    async with opening(manager) as finish, anyio.create_task_group() as tg:
        tg.start_soon(call)
        await wait_all_tasks_blocked()
        await finish()
    assert answers == ["b"]


async def test_a_function_that_never_returned_a_coroutine_raises_while_the_manager_reopens(manager):
    await manager.start()
    get, decode = manager.current.get, manager.current.decode
    await manager.lose()
    async with opening(manager):
        for function in [get, decode, manager.current.pipeline]:
            with pytest.raises(NotConnectedError, match="state: opening"):
                function("a")


async def test_results_that_are_not_coroutines_are_returned_as_they_are(manager):
    client = await manager.start()
    current = manager.current
    assert type(current.pipeline()) is Pipeline
    future = current.future()
    assert type(future) is Answer
    assert await future == 1
    messages = current.messages()
    assert inspect.isasyncgen(messages)
    assert [message async for message in messages] == [1]
    lock = current.lock()
    assert type(lock) is type(client.lock())
    async with lock as number:
        assert number == 1
    await manager.lose()
    async with opening(manager):
        for name in ["pipeline", "future", "messages", "lock"]:
            with pytest.raises(NotConnectedError):
                getattr(current, name)()


async def test_class_methods_and_static_methods_are_passed_on(manager):
    await manager.start()
    current = manager.current
    assert await current.create() == "Client"
    assert await current.escape("a") == "A"
    await manager.lose()
    answers = []

    async def call(method, *args):
        answers.append(await method(*args))

    async with opening(manager) as finish, anyio.create_task_group() as tg:
        tg.start_soon(call, current.create)
        tg.start_soon(call, current.escape, "b")
        await wait_all_tasks_blocked()
        await finish()
    assert sorted(answers) == ["B", "Client"]


# The note about a loss.


@pytest.mark.parametrize("method", ["wait", "slow_get"])
@pytest.mark.parametrize("how", ["lost", "lost with a reason", "replaced", "stopped"])
async def test_if_the_connection_is_lost_during_a_call_its_error_has_a_note(manager, method, how):
    client = await manager.start()
    errors = []

    async def call():
        try:
            await getattr(manager.current, method)()
        except OSError as error:
            errors.append(error)

    async with anyio.create_task_group() as tg:
        tg.start_soon(call)
        await wait_all_tasks_blocked()
        if how == "replaced":
            await manager.restart()
        elif how == "stopped":
            await manager.stop()
        else:
            await manager.lose(EOFError("server exited") if how == "lost with a reason" else None)
        client.hang.set()
    assert client.sent == [("WAIT",)]
    assert str(errors[0]) == "connection closed"
    assert errors[0].__notes__ == [
        {
            "lost": "ownertask: probe lost its connection during this call",
            "lost with a reason": "ownertask: probe lost its connection during this call: server exited",
        }.get(how, "ownertask: probe lost or closed its connection during this call")
    ]
    assert errors[0].__context__ is None


@pytest.mark.parametrize("method", ["execute", "get"])
async def test_an_error_of_a_call_on_a_healthy_connection_has_no_note(manager, method):
    client = await manager.start()
    client.failure = LookupError("no such key")
    with pytest.raises(LookupError) as caught:
        await getattr(manager.current, method)("a")
    assert caught.value is client.failure
    assert not hasattr(caught.value, "__notes__")
    del client.failure, caught


# Attributes.


async def test_attributes_are_read_set_and_deleted_on_the_open_connection(manager):
    current = manager.current
    first = await manager.start()
    current.label = "x"
    assert (first.label, current.label) == ("x", "x")
    second = await manager.restart()
    assert (current.number, current.host, current.kind) == (2, "host 2", "client")
    assert not hasattr(current, "label")
    second.label = "y"
    del current.label
    assert not hasattr(second, "label")
    assert vars(current) is vars(second)
    with pytest.raises(AttributeError, match="'Client' object has no attribute 'lbl'"):
        _ = current.lbl


async def test_other_uses_while_the_manager_reopens_raise_the_error_of_connection(manager):
    await manager.start()
    current = manager.current
    await manager.lose()
    async with opening(manager):
        for use in [
            lambda: current.host,
            lambda: current.number,
            lambda: current.unknown,
            lambda: hasattr(current, "unknown"),
            lambda: setattr(current, "label", 1),
            lambda: delattr(current, "label"),
            lambda: current["a"],
            lambda: len(current),
            lambda: list(current),
            current,
            lambda: "a" in current,
            lambda: aiter(current),
        ]:
            with pytest.raises(NotConnectedError, match="state: opening"):
                use()


async def test_probes_for_features_do_not_raise_while_no_connection_is_open(manager):
    current = manager.current
    for _ in range(2):
        assert not hasattr(current, "__fspath__")
        assert not hasattr(current, "_repr_html_")
        assert not inspect.iscoroutinefunction(current)
        assert callable(current)
        assert bool(current)
        await manager.start()
        await manager.stop()
    assert hasattr(current, "__aenter__")


async def test_attributes_that_hold_callables(manager):
    """Functions are replaced by methods, other callable objects are not."""
    client = await manager.start()
    current = manager.current
    seen = []
    client.on_message = seen.append
    assert current.on_message is not client.on_message
    current.on_message(1)
    assert seen == [1]
    client.on_message = on_message = Mock()
    assert current.on_message is on_message
    current.pipeline_class = Pipeline
    assert current.pipeline_class is Pipeline
    client.on_message = None
    assert current.on_message is None
    client.get = AsyncMock(return_value="mocked")
    get = current.get
    assert inspect.iscoroutinefunction(get)
    assert await get("a") == "mocked"
    client.get.assert_awaited_once_with("a")
    await manager.restart()
    assert await get("a") == (2, "GET", "a")


def patched(client):
    async def get(key):
        return client.number

    return get


async def test_a_stored_function_of_a_connection_does_not_keep_the_connection_alive(manager):
    client = await manager.start()
    client.get = patched(client)
    get = manager.current.get
    assert await get("a") == 1
    reference = weakref.ref(client)
    manager.opened.clear()
    await manager.stop()
    del client
    gc.collect()
    assert reference() is None
    assert callable(get)


async def test_methods_that_the_connection_creates_are_passed_on_and_wait_once_they_were_called(manager):
    class Dynamic:
        def __init__(self, number):
            self.number = number

        def __getattr__(self, name):
            if name.startswith("_"):
                raise AttributeError(name)

            async def call():
                return self.number, name

            return call

    manager.make = Dynamic
    current = manager.current
    await manager.start()
    assert await current.anything() == (1, "anything")
    await manager.lose()
    answers = []

    async def call():
        answers.append(await current.anything())

    async with opening(manager) as finish, anyio.create_task_group() as tg:
        tg.start_soon(call)
        await wait_all_tasks_blocked()
        with pytest.raises(NotConnectedError):
            _ = current.something
        await finish()
    assert answers == [(2, "anything")]


async def test_methods_have_the_name_documentation_and_signature_of_the_original(manager):
    client = await manager.start()
    current = manager.current
    for _ in range(2):
        for name in ["execute", "get", "create"]:
            method, original = getattr(current, name), getattr(client, name)
            assert method.__name__ == name
            assert method.__qualname__ == f"Client.{name}"
            assert method.__doc__ == original.__doc__
            assert inspect.signature(method) == inspect.signature(original)
            assert inspect.iscoroutinefunction(method) is inspect.iscoroutinefunction(original)
            assert inspect.ismethod(method)
        assert current.escape.__name__ == "escape"
        assert str(inspect.signature(current.escape)) == "(*args, **kwargs)"
        assert inspect.iscoroutinefunction(current.escape)
        assert current.get == current.get
        assert len({current.get, current.get, current.execute}) == 2
        await manager.stop()  # the second time, no connection is open


def test_methods_have_the_signature_of_the_original_before_the_first_connection():
    for name in ["execute", "get", "create"]:
        method, original = getattr(Typed().current, name), getattr(Client(1), name)
        assert inspect.signature(method) == inspect.signature(original)


async def test_methods_that_are_looked_up_after_a_restart_are_those_of_the_new_class(manager):
    class Changed(Client):
        async def decode(self, text):
            """Decodes a text."""

    await manager.start()
    assert not inspect.iscoroutinefunction(manager.current.decode)
    manager.make = Changed
    await manager.restart()
    assert inspect.iscoroutinefunction(manager.current.decode)
    assert manager.current.decode.__doc__ == "Decodes a text."


# Special methods.


class Box:
    def __init__(self, number):
        self.items = {"number": number}

    def __getitem__(self, key):
        return self.items[key]

    def __setitem__(self, key, value):
        self.items[key] = value

    def __delitem__(self, key):
        del self.items[key]

    def __contains__(self, key):
        return key in self.items

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        return iter(self.items)

    def __reversed__(self):
        return reversed(self.items)

    async def __aiter__(self):
        for key in self.items:
            yield key

    async def __call__(self, key):
        return self.items[key]


async def test_special_methods_are_passed_on():
    manager = Manager(Box)
    box = manager.current
    await manager.start()
    await manager.restart()
    box["a"] = 1
    assert (box["number"], len(box), "a" in box, "b" in box) == (2, 2, True, False)
    assert list(box) == ["number", "a"]
    assert list(reversed(box)) == ["a", "number"]
    assert [key async for key in box] == ["number", "a"]
    del box["number"]
    (key,) = box
    assert key == "a"
    assert await box("a") == 1
    del box["a"]
    assert not box
    await manager.stop()
    assert box
    with pytest.raises(NotConnectedError):
        len(box)


async def test_K9_a_call_of_the_object_itself_waits():
    manager = Manager(Box)
    box = manager.current
    await manager.start()
    await manager.lose()
    answers = []

    async def call():
        answers.append(await box("number"))

    async with opening(manager) as finish, anyio.create_task_group() as tg:
        tg.start_soon(call)
        await wait_all_tasks_blocked()
        await finish()
    assert answers == [2]
    await manager.stop()


async def test_the_connection_can_be_a_function():
    async def double(number):
        return 2 * number

    manager = Manager(lambda number: double)
    assert await manager.start() is double
    assert await manager.current(4) == 8
    await manager.stop()


async def test_special_methods_that_the_connection_lacks_raise_type_error(manager):
    await manager.start()
    current = manager.current
    for use in [lambda: current["a"], lambda: len(current), lambda: list(current), current]:
        with pytest.raises(TypeError, match="Client"):
            use()


async def test_blocks_await_next_and_arithmetic_are_not_passed_on(manager):
    await manager.start()
    current = manager.current
    with pytest.raises(TypeError):
        async with current:
            pass
    with pytest.raises(TypeError):
        await current
    with pytest.raises(TypeError):
        next(current)
    with pytest.raises(TypeError):
        current + 1
    with pytest.raises(TypeError):
        sorted([current, current])
    assert not isinstance(Manager(Box).current, Awaitable)
    assert isinstance(Manager(Box).current, AsyncIterable)


async def test_equality_hash_and_repr_are_its_own(manager):
    class Same(Client):
        __hash__ = None

        def __eq__(self, other):
            return True

        def __repr__(self):
            return "s3cret"

        def __bool__(self):
            raise LookupError

    manager.make = Same
    current = manager.current
    assert (
        repr(current) == str(current) == f"{current}" == "<current connection of <Manager 'probe' new>>"
    )
    await manager.start()
    assert current == manager.current
    assert current != Client(1)
    assert current != Manager().current
    assert {current: 1}[manager.current] == 1
    assert bool(current) is True
    assert "open" in repr(current)
    assert "s3cret" not in repr(current)


# Classes.


async def test_isinstance_holds_once_a_connection_was_open_and_dir_shows_its_attributes(manager):
    assert not isinstance(manager.current, Client)
    assert "get" not in dir(manager.current)
    client = await manager.start()
    client.label = 1
    assert isinstance(manager.current, Client)
    assert "label" in dir(manager.current)
    await manager.stop()
    assert isinstance(manager.current, Client)
    assert "get" in dir(manager.current)
    assert "label" not in dir(manager.current)
    with pytest.raises(NotConnectedError):
        _ = manager.current.label


async def test_isinstance_holds_for_an_object_that_was_made_after_the_loss(manager):
    await manager.start()
    await manager.lose()
    assert isinstance(manager.current, Client)


async def test_with_a_connection_type_isinstance_and_methods_work_from_the_beginning():
    manager = Typed()
    current = manager.current
    assert isinstance(current, Client)
    execute = current.execute
    assert inspect.iscoroutinefunction(execute)
    with pytest.raises(NotConnectedError, match="state: new"):
        await execute("A")
    answers = []

    async def call():
        answers.append(await execute("A"))

    async with opening(manager) as finish, anyio.create_task_group() as tg:
        tg.start_soon(call)
        await wait_all_tasks_blocked()
        await finish()
    assert answers == [(1, "A")]
    await manager.stop()


async def test_a_connection_type_can_be_a_property_and_other_values_are_ignored():
    class Property(Manager):
        @property
        def connection_type(self):
            return Client

    class Other(Manager):
        connection_type = "tcp"

    assert isinstance(Property().current, Client)
    assert isinstance(Other().current.__class__, type)


async def test_the_class_of_a_mock_is_the_class_that_it_imitates(manager):
    manager.make = lambda number: create_autospec(Client, instance=True)
    mock = await manager.start()
    mock.execute.return_value = 3
    assert isinstance(manager.current, Client)
    assert await manager.current.execute("A") == 3
    await manager.stop()
    assert isinstance(manager.current, Client)


async def test_a_class_that_cannot_be_read_does_no_harm(manager):
    class Odd:
        def __init__(self, number):
            pass

        @property
        def __class__(self):
            raise LookupError

        async def ping(self):
            return 1

    manager.make = Odd
    await manager.start()
    assert await manager.current.ping() == 1


# Lifetimes and copies.


async def test_there_is_one_object_per_manager(manager):
    current = manager.current
    assert manager.current is current
    await manager.start()
    assert manager.current is current
    assert Manager().current is not current


def test_reference_counting_frees_the_object_and_its_manager():
    manager = Typed()
    current, method = manager.current, manager.current.execute
    references = [weakref.ref(manager), weakref.ref(current)]
    gc.collect()
    gc.disable()
    try:
        del manager, method
        assert references[0]() is not None  # the object keeps it alive
        del current
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


def test_many_threads_get_the_same_object():
    manager = Manager()
    barrier = threading.Barrier(8)
    found = []

    def read():
        barrier.wait()
        found.append(manager.current)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(current) for current in found}) == 1


async def test_a_copy_is_the_object_itself(manager):
    await manager.start()
    current = manager.current
    assert copy.copy(current) is current
    assert copy.deepcopy({"session": current})["session"] is current
    assert copy.copy(current.execute) == current.execute
    assert manager.opened[0].sent == []


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_unpickled_object_follows_the_unpickled_manager(protocol):
    manager = Typed()
    copied, current, method = pickle.loads(
        pickle.dumps((manager, manager.current, manager.current.execute), protocol)
    )
    assert copied is not manager
    assert current is copied.current
    assert method == current.execute
    assert copied.state is ConnectionState.NEW


async def test_a_thread_without_an_event_loop_can_read_attributes_and_pass_a_coroutine_to_the_loop(
    manager, asyncio_only
):
    await manager.start()
    current, loop = manager.current, asyncio.get_running_loop()

    def work():
        calls = [current.execute("A"), current.get("a")]
        answers = [asyncio.run_coroutine_threadsafe(call, loop).result(5) for call in calls]
        return current.host, current.decode("x"), *answers

    answers = await anyio.to_thread.run_sync(work)
    assert answers == ("host 1", "1: x", (1, "A"), (1, "GET", "a"))


# Connections of other kinds.


async def test_a_read_only_mapping():
    manager = Manager(lambda number: MappingProxyType({"a": number}))
    view = manager.current
    await manager.start()
    await manager.restart()
    assert isinstance(view, Mapping)
    assert (view["a"], view.get("b", 0), dict(view), list(view.items())) == (2, 0, {"a": 2}, [("a", 2)])
    assert {**view} == {"a": 2}
    get = view.get
    with pytest.raises(TypeError):
        view["b"] = 1
    await manager.restart()
    assert get("a") == 3
    await manager.stop()
    with pytest.raises(NotConnectedError):
        view.get("a")


async def test_a_pair_of_streams():
    manager = Manager(lambda number: anyio.create_memory_object_stream[int](1))
    pair = manager.current
    await manager.start()
    await manager.restart()
    send, receive = pair
    async with send, receive:
        assert (send, receive) == manager.connection
        await pair[0].send(5)
        assert await receive.receive() == 5
    await manager.stop()
    for stream in manager.opened[0]:
        stream.close()
    with pytest.raises(NotConnectedError):
        send, receive = pair


async def test_a_stream_of_messages():
    manager = Manager(lambda number: streams[1])
    streams = anyio.create_memory_object_stream[int](2)
    stream = manager.current
    await manager.start()
    with streams[0]:
        streams[0].send_nowait(1)
        streams[0].send_nowait(2)
    assert [message async for message in stream] == [1, 2]
    await manager.stop()
    streams[1].close()


async def test_a_pool_whose_method_returns_an_async_context_manager():
    class Pool:
        def __init__(self, number):
            self.number = number
            self.in_use = 0

        @asynccontextmanager
        async def acquire(self, *, timeout=None):
            self.in_use += 1
            yield self.number
            self.in_use -= 1

    manager = Manager(Pool)
    pool = manager.current
    await manager.start()
    async with pool.acquire(timeout=1) as first:
        assert (first, pool.in_use) == (1, 1)
        await manager.restart()
        assert pool.in_use == 0
        async with pool.acquire() as second:
            assert second == 2
    assert [pool.in_use for pool in manager.opened] == [0, 0]  # each block exited the pool it entered
    await manager.stop()


async def test_the_object_of_another_manager_can_be_the_connection(manager):
    await manager.start()
    outer = Manager(lambda number: manager.current)
    await outer.start()
    current = outer.current
    assert isinstance(current, Client)
    await manager.restart()
    assert await current.execute("A") == (2, "A")
    assert await current.get("a") == (2, "GET", "a")
    assert current.host == "host 2"
    await outer.stop()


async def test_a_connection_whose_class_is_false_keeps_its_class():
    class Registry(type):
        def __len__(cls):
            return 0

    class Connection(metaclass=Registry):
        async def ping(self):
            return "pong"

    @asynccontextmanager
    async def open_it():
        yield Connection()

    manager = ConnectionManager.from_factory(open_it)
    current = manager.current
    async with manager:
        assert isinstance(current, Connection)
        assert await current.ping() == "pong"
