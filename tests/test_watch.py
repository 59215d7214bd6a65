"""Tests for `watch`, which runs beside an open connection. When it ends, the connection is lost."""

import asyncio
import contextvars
import logging
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from anyio.lowlevel import checkpoint
from probe import Probe, Stage, raises
from reopening import AT_ONCE, Call, in_turn, settle

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionState,
    OwnerTaskError,
    StopTimeoutError,
)

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


class Watch:
    """A watch that records its calls, and ends when the test says so.

    Attributes:
        connections: The argument of each call.
        alive: The number of calls that have not ended.
        events: Its ends, and what the test adds.
        error: What it raises at its end, or `None` if it returns.
    """

    def __init__(self, error=None):
        self.connections = []
        self.alive = 0
        self.events = []
        self.error = error
        self.end = anyio.Event()

    async def __call__(self, connection):
        self.connections.append(connection)
        self.alive += 1
        assert self.alive == 1
        try:
            await self.end.wait()
            self.end = anyio.Event()
            if self.error is not None:
                raise self.error
        except anyio.get_cancelled_exc_class():
            self.events.append("cancelled")
            raise
        finally:
            self.alive -= 1
            self.events.append("ended")


class WithMethod(Probe):
    """A manager with a `watch` method."""

    def __init__(self, function, **options):
        super().__init__(**options)
        self.function = function

    async def watch(self, connection):
        await self.function(connection)


def from_factory(function):
    @asynccontextmanager
    async def opened():
        yield object()

    return ConnectionManager.from_factory(opened, name="probe", watch=function)


def with_attribute(function):
    probe = Probe()
    probe.watch = function
    return probe


WAYS = {"attribute": with_attribute, "method": WithMethod, "from_factory": from_factory}

each_way = pytest.mark.parametrize("create", WAYS.values(), ids=WAYS)


class Outer(ConnectionManager[object]):
    """Opens another manager's connection inside its own run."""

    def __init__(self, inner, name="outer"):
        super().__init__(name=name)
        self.inner = inner

    @asynccontextmanager
    async def open_connection(self):
        async with self.open_inner(self.inner) as connection:
            yield ("outer", connection)


async def wait_lost(manager):
    """Waits until the connection is lost, and returns the loss."""
    with pytest.raises(ConnectionLostError) as caught:
        await manager.wait_closed()
    return caught.value


# A watch that runs until it is stopped.


@each_way
async def test_a_watch_gets_the_connection_and_is_cancelled_when_the_manager_stops(create, caplog):
    watch = Watch()
    manager = create(watch)
    for number in range(1, 4):
        connection = await manager.start()
        await settle()
        assert watch.connections[-1] is connection
        assert len(watch.connections) == number
        assert watch.alive == 1
        assert manager.state is OPEN
        await manager.stop()
        assert watch.alive == 0
        assert watch.events == ["cancelled", "ended"] * number
        assert manager.state is CLOSED
        assert manager.exception is None
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


async def test_a_watch_runs_in_a_child_task_of_the_owner_while_the_connection_is_open():
    seen = []

    async def watch(connection):
        seen.append((probe.state, probe.connection, variable.get(), anyio.get_current_task().id))
        await anyio.sleep_forever()

    variable = contextvars.ContextVar("variable", default="default")
    probe = with_attribute(watch)
    variable.set("start")
    connection = await probe.start()
    variable.set("later")
    await settle()
    [(state, seen_connection, value, task)] = seen
    assert state is OPEN
    assert seen_connection is connection
    assert value == "start"
    assert task not in (probe.entered[0], anyio.get_current_task().id)
    await probe.stop()


@in_turn("end", ["stopped", "forced", "lost", "watch returns", "watch raises"])
async def test_a_watch_ends_before_the_context_manager_is_exited(end):
    watch = Watch(OSError("watch") if end == "watch raises" else None)
    closing = Stage()

    async def close():
        watch.events.append("closing")
        await closing()

    probe = with_attribute(watch)
    probe.closing = close
    await probe.start()
    await settle()
    async with anyio.create_task_group() as tg:
        if end == "stopped":
            tg.start_soon(probe.stop)
        elif end == "forced":
            tg.start_soon(probe.stop, 0)
        elif end == "lost":
            probe.connection_lost()
        else:
            watch.end.set()
        await closing.reached.wait()
        await settle()
        ended = ["ended"] if end.startswith("watch") else ["cancelled", "ended"]
        assert watch.events == [*ended, "closing"]
        if end == "forced":
            assert not probe.is_acquired
        else:  # closing is not cancelled, although the watch was
            assert probe.state is CLOSING
            assert probe.is_acquired
            closing.let_go.set()
    await settle()
    assert probe.state is (CLOSED if end in ("stopped", "forced") else FAILED)
    assert len(probe.exited) == 1


@in_turn("end", ["stopped", "lost", "forced"])
async def test_closing_waits_for_a_watch_that_shields_itself_for_a_while(end):
    started, shielded = anyio.Event(), Stage(shield=True)

    async def watch(connection):
        try:
            started.set()
            await anyio.sleep_forever()
        finally:
            await shielded()

    closing = Stage()
    probe = with_attribute(watch)
    probe.closing = closing
    await probe.start()
    await started.wait()
    async with anyio.create_task_group() as tg:
        if end == "lost":
            probe.connection_lost(OSError("gone"))
        else:
            stopping = Call(tg, probe.stop, 0 if end == "forced" else None)
        await shielded.reached.wait()
        await settle()
        assert probe.state is CLOSING
        assert not closing.reached.is_set()
        if end != "lost":
            assert not stopping.is_over
        shielded.let_go.set()
        await closing.reached.wait()
        closing.let_go.set()
        await settle()
        assert probe.state is (FAILED if end == "lost" else CLOSED)
    assert not probe.is_acquired


async def test_C3_a_watch_that_does_not_end_cannot_be_stopped(grace, caplog):
    started, shielded = anyio.Event(), Stage(shield=True)

    async def watch(connection):
        started.set()
        await shielded()

    probe = with_attribute(watch)
    await probe.start()
    await started.wait()
    with pytest.raises(StopTimeoutError, match="owner task of probe"):
        await probe.stop(0)
    assert probe.state is CLOSING
    shielded.let_go.set()
    with suppress(ConnectionLostError):
        await probe.wait_closed()
    assert not probe.is_acquired


async def test_a_watch_that_swallows_its_cancellation_at_a_stop_is_no_loss(caplog):
    async def watch(connection):
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep_forever()

    probe = with_attribute(watch)
    await probe.start()
    await settle()
    await probe.stop()
    assert probe.state is CLOSED
    assert probe.exception is None
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


async def test_a_watch_that_raises_when_it_is_cancelled_prevents_neither_stop_nor_close():
    async def watch(connection):
        try:
            await anyio.sleep_forever()
        finally:
            raise OSError("late")

    probe = with_attribute(watch)
    await probe.start()
    await settle()
    await probe.stop()
    assert probe.state in (CLOSED, FAILED)
    assert not isinstance(probe.exception, ConnectionLostError)
    assert not probe.is_acquired
    probe.watch = None
    async with probe:
        pass
    assert probe.state is CLOSED


async def test_a_crash_of_the_connection_cancels_the_watch_and_is_the_cause():
    class Crashing(Probe):
        @asynccontextmanager
        async def open_connection(self):
            async with anyio.create_task_group() as tg:
                tg.start_soon(crash)
                yield object()

    async def crash():
        await go.wait()
        raise OSError("crash")

    go, watch = anyio.Event(), Watch()
    manager = Crashing()
    manager.watch = watch
    await manager.start()
    await settle()
    go.set()
    assert str((await wait_lost(manager)).__cause__) == "crash"
    assert watch.events == ["cancelled", "ended"]


async def test_a_watch_is_not_called_if_opening_fails():
    watch = Watch()
    probe = with_attribute(watch)
    probe.opening = raises(OSError("refused"))
    with pytest.raises(OSError, match="refused"):
        await probe.start()
    assert not watch.connections


# A watch that ends.


@each_way
async def test_if_a_watch_returns_the_connection_is_lost_and_the_error_says_so(create, caplog):
    watch = Watch()
    manager = create(watch)
    await manager.start()
    await settle()
    watch.end.set()
    error = await wait_lost(manager)
    assert str(error).startswith("probe: the connection was lost")
    assert "watch() returned" in str(error)
    [record] = [record for record in caplog.records if record.levelno > logging.DEBUG]
    assert record.levelno == logging.WARNING
    assert "watch() returned" in record.getMessage()


@each_way
async def test_if_a_watch_raises_the_connection_is_lost_with_that_cause(create, caplog):
    silent = OSError("silent")
    watch = Watch(silent)
    manager = create(watch)
    await manager.start()
    await settle()
    watch.end.set()
    error = await wait_lost(manager)
    assert error.__cause__ is silent
    assert "silent" in str(error)
    assert "returned" not in str(error)
    assert len([record for record in caplog.records if record.levelno > logging.DEBUG]) == 1


@in_turn("depth", [1, 3])
async def test_a_group_of_one_that_a_watch_raises_is_reported_as_its_only_exception(depth):
    silent = error = OSError("silent")
    for _ in range(depth):
        error = ExceptionGroup("nested", [error])
    watch = Watch(error)
    probe = with_attribute(watch)
    await probe.start()
    watch.end.set()
    assert (await wait_lost(probe)).__cause__ is silent


async def test_a_group_of_two_that_a_watch_raises_stays_a_group():
    watch = Watch(ExceptionGroup("two", [OSError("one"), ValueError("two")]))
    probe = with_attribute(watch)
    await probe.start()
    watch.end.set()
    cause = (await wait_lost(probe)).__cause__
    assert isinstance(cause, ExceptionGroup)
    assert {type(error) for error in cause.exceptions} == {OSError, ValueError}


@in_turn("outcome", ["returns", "raises"])
async def test_a_watch_that_ends_at_once_never_hangs_anything(outcome):
    async def watch(connection):
        if outcome == "raises":
            raise OSError("at once")

    probe = with_attribute(watch)
    with suppress(ConnectionLostError):  # the connection may be lost before start() can return it
        await probe.start()
    error = await wait_lost(probe)
    assert ("at once" if outcome == "raises" else "watch() returned") in str(error)
    assert len(probe.entered) == len(probe.exited) == 1


async def test_an_error_while_closing_after_a_watch_raised_does_not_replace_the_cause():
    silent = OSError("silent")
    watch = Watch(silent)
    probe = with_attribute(watch)
    probe.closing = raises(ValueError("closing"))
    await probe.start()
    watch.end.set()
    assert (await wait_lost(probe)).__cause__ is silent


class Awaitable:
    """Is awaitable, but not a coroutine."""

    def __init__(self, coroutine):
        self.coroutine = coroutine

    def __await__(self):
        return self.coroutine.__await__()


async def test_a_watch_may_be_a_plain_function_that_returns_an_awaitable():
    watch = Watch()

    def coroutine(connection):
        return watch(connection)

    def other_awaitable(connection):
        return Awaitable(watch(connection))

    for function in (watch, coroutine, other_awaitable):
        probe = with_attribute(function)
        connection = await probe.start()
        await settle()
        assert watch.connections[-1] is connection
        assert probe.state is OPEN
        watch.end.set()
        assert "watch() returned" in str(await wait_lost(probe))
    assert len(watch.connections) == 3


@in_turn("policy", [None, AT_ONCE])
@in_turn("result", [None, 3, object()])
async def test_K5_a_watch_that_returns_no_awaitable_is_a_permanent_loss(policy, result):
    probe = with_attribute(lambda connection: result)
    probe.reconnect = policy
    with suppress(ConnectionLostError):
        await probe.start()
    error = await wait_lost(probe)
    assert isinstance(error.__cause__, TypeError)
    assert "watch" in str(error.__cause__)
    assert type(result).__name__ in str(error.__cause__)
    await settle()
    assert probe.state is FAILED
    assert probe.reconnecting is None
    assert len(probe.entered) == 1


async def test_a_plain_function_that_raises_is_a_loss_with_that_cause():
    def watch(connection):
        raise OSError("at once")

    probe = with_attribute(watch)
    with suppress(ConnectionLostError):
        await probe.start()
    assert str((await wait_lost(probe)).__cause__) == "at once"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_O14_a_watch_that_ends_the_program_hangs_nothing(kind, anyio_backend):
    async def watch(connection):
        await checkpoint()
        raise kind

    probe = with_attribute(watch)
    closing = []

    async def close():
        closing.append(probe.state)

    async def main():
        with anyio.fail_after(5):
            with suppress(ConnectionLostError):
                await probe.start()
            with suppress(ConnectionLostError):
                await probe.wait_closed()

    probe.closing = close
    name, options = anyio_backend
    with suppress(kind):  # asyncio ends the event loop at once
        anyio.run(main, backend=name, backend_options=options)
    assert closing == [CLOSING]
    assert not probe.is_acquired
    assert probe.state is FAILED
    assert isinstance(probe.exception, ConnectionLostError)


# Calls from inside a watch.


@pytest.mark.parametrize("then", ["return", "raise", "wait"])
async def test_a_watch_may_report_the_loss_itself(then, caplog):
    async def watch(connection):
        await checkpoint()
        probe.connection_lost(OSError("reported"))
        if then == "raise":
            raise ValueError("consequence")
        if then == "wait":
            await anyio.sleep_forever()

    probe = with_attribute(watch)
    with suppress(ConnectionLostError):
        await probe.start()
    error = await wait_lost(probe)
    assert str(error.__cause__) == "reported"
    assert "watch() returned" not in str(error)
    losses = [record for record in caplog.records if "was lost" in record.getMessage()]
    assert len(losses) == 1


@in_turn("timeout", [0, 30, None])
@in_turn("policy", [None, AT_ONCE])
async def test_a_watch_may_stop_the_manager(timeout, policy):
    async def watch(connection):
        await go.wait()
        await probe.stop(timeout)

    go = anyio.Event()
    probe = with_attribute(watch)
    probe.reconnect = policy
    await probe.start()
    go.set()
    await probe.wait_closed()
    assert probe.state is CLOSED
    assert len(probe.entered) == len(probe.exited) == 1


async def test_a_watch_may_use_and_wait_for_its_own_manager():
    async def watch(connection):
        seen.append(await probe.start())
        seen.append(await probe.wait_open())
        seen.append(probe.connection)
        with suppress(OwnerTaskError):
            await probe.wait_closed()

    seen = []
    probe = with_attribute(watch)
    connection = await probe.start()
    await settle()
    assert seen == [connection] * 3
    await probe.stop()
    assert not probe.is_acquired


# With a policy.


async def test_K1_each_run_has_its_own_watch():
    watch = Watch()
    probe = with_attribute(watch)
    probe.reconnect = AT_ONCE
    connections = [await probe.start()]
    for number in range(6):
        await settle()
        assert watch.connections == connections
        assert watch.alive == 1
        if number % 3 == 0:
            probe.connection_lost()
        else:
            watch.error = OSError("watch") if number % 3 == 1 else None
            watch.end.set()
        await settle()
        connections.append(await probe.wait_open())
    assert len(set(map(id, connections))) == 7
    await settle()
    await probe.stop()
    assert watch.alive == 0
    assert len(watch.connections) == 7


async def test_a_watch_is_read_when_a_series_of_runs_begins_and_kept_for_all_of_them():
    first, second = Watch(), Watch()
    probe = with_attribute(first)
    probe.reconnect = AT_ONCE
    await probe.start()
    probe.watch = second
    probe.connection_lost()
    await probe.wait_open()
    await settle()
    assert len(first.connections) == 2
    assert not second.connections
    await probe.stop()

    connection = await probe.start()
    await settle()
    assert second.connections == [connection]
    await probe.stop()
    probe.watch = None
    async with probe:
        await settle()
    assert len(first.connections) == 2
    assert len(second.connections) == 1


async def test_K2_a_stop_while_a_shielded_watch_of_a_lost_connection_ends_prevents_the_next_run():
    shielded = Stage(shield=True)

    async def watch(connection):
        try:
            await anyio.sleep_forever()
        finally:
            await shielded()

    probe = with_attribute(watch)
    probe.reconnect = AT_ONCE
    await probe.start()
    await settle()
    probe.connection_lost(OSError("gone"))
    await shielded.reached.wait()
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.stop)
        await settle()
        assert len(probe.entered) == 1
        shielded.let_go.set()
    assert probe.state is FAILED
    assert str(probe.exception.__cause__) == "gone"
    assert len(probe.entered) == 1


# Managers that are lent.


@in_turn("setting", ["watch", "reconnect", "watch of from_factory"])
@in_turn("policy", [None, AT_ONCE])
async def test_a_policy_that_was_set_on_a_lent_manager_is_refused_before_anything_opens(setting, policy):
    opened = []

    @asynccontextmanager
    async def connection():
        opened.append("connection")
        yield object()

    watch = Watch()
    if setting == "watch of from_factory":
        inner = ConnectionManager.from_factory(connection, name="inner", watch=watch)
    else:
        inner = ConnectionManager.from_factory(connection, name="inner")
        setattr(inner, setting, watch if setting == "watch" else AT_ONCE)
    outer = Outer(inner)
    outer.reconnect = policy
    with pytest.raises(TypeError, match=f"inner.*{setting.partition(' ')[0]}"):
        await outer.start()
    assert not opened
    assert not watch.connections
    assert outer.state is FAILED
    assert inner.state is NEW

    setattr(inner, setting.partition(" ")[0], None)
    async with outer:
        assert opened == ["connection"]
    assert outer.state is CLOSED


async def test_a_policy_that_is_set_while_a_manager_is_lent_has_no_effect():
    inner, watch = Probe(name="inner"), Watch()
    outer = Outer(inner)
    await outer.start()
    inner.watch = watch
    await settle()
    await outer.stop()
    assert not watch.connections


@in_turn("depth", [1, 2])
@in_turn("end", ["stopped", "returns", "raises"])
async def test_a_watch_method_of_a_lent_manager_runs_and_reports_to_the_outer_run(end, depth):
    watch = Watch(OSError("silent") if end == "raises" else None)
    inner = WithMethod(watch, name="inner")

    async def close():
        watch.events.append("closing")

    inner.closing = close
    outer = Outer(inner if depth == 1 else Outer(inner, name="middle"))
    connection = await outer.start()
    while isinstance(connection, tuple):
        connection = connection[1]
    await settle()
    assert watch.connections == [connection]
    assert watch.alive == 1
    if end == "stopped":
        await outer.stop()
        assert outer.state is CLOSED
        assert watch.events == ["cancelled", "ended", "closing"]
    else:
        watch.end.set()
        error = await wait_lost(outer)
        assert error.name == "outer"
        if end == "returns":
            assert "watch() returned" in str(error)
        else:
            assert error.__cause__ is watch.error
        assert watch.events == ["ended", "closing"]
    assert inner.state is NEW
    assert inner.exception is None


async def test_the_watches_of_an_outer_and_a_lent_manager_run_at_the_same_time():
    inner_watch, outer_watch = Watch(), Watch()
    outer = Outer(WithMethod(inner_watch, name="inner"))
    outer.watch = outer_watch
    outer.reconnect = AT_ONCE
    for watch in (inner_watch, outer_watch):
        connection = await outer.start()
        await settle()
        assert outer_watch.connections[-1] is connection
        assert inner_watch.connections[-1] is connection[1]
        assert inner_watch.alive == outer_watch.alive == 1
        watch.end.set()
        await settle()
        assert await outer.wait_open() is not connection
        await settle()
        assert inner_watch.alive == outer_watch.alive == 1
        await outer.stop()
        assert inner_watch.alive == outer_watch.alive == 0
    assert len(inner_watch.connections) == len(outer_watch.connections) == 4


# Misuse.


@in_turn("watch", [3, "watch", object()])
async def test_a_watch_that_is_not_callable_is_rejected_before_anything_opens(watch):
    probe = with_attribute(watch)
    for call in (probe.start, probe.run, probe.__aenter__):
        with pytest.raises(TypeError, match=f"^watch must be .*{type(watch).__name__}"):
            await call()
    assert probe.state is NEW
    assert not probe.entered
    with pytest.raises(TypeError, match="^watch must be"):
        from_factory(watch)
    probe.watch = None
    async with probe:
        pass


async def test_native_cancellation_of_the_task_of_a_watch_is_a_loss(asyncio_only):
    tasks = []

    async def watch(connection):
        tasks.append(asyncio.current_task())
        await anyio.sleep_forever()

    probe = with_attribute(watch)
    await probe.start()
    await settle()
    tasks[0].cancel()
    await wait_lost(probe)
    assert not probe.is_acquired
