"""Tests for the public contract of `ConnectionManager`, called from any task, thread or event loop."""

import asyncio
import copy
import gc
import pickle
import threading
import weakref
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from probe import Probe, Stage, raises

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionState,
    ConnectionStoppedError,
    NotConnectedError,
    OwnerTaskError,
    StartTimeoutError,
    WrongEventLoopError,
)

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


async def test_a_manager_can_be_started_used_and_stopped_in_three_different_tasks():
    probe = Probe()
    seen = []

    async def start():
        seen.append(await probe.start())

    async def use():
        seen.append(probe.connection)

    for task in (start, use, probe.stop):
        async with anyio.create_task_group() as tg:
            tg.start_soon(task)
    assert seen[0] is seen[1]
    assert probe.state is CLOSED
    assert probe.entered == probe.exited  # in the same task


@pytest.mark.parametrize("order", ["fifo", "lifo", "at once"])
async def test_five_connections_can_be_closed_in_any_order(order):
    probes = [Probe(name=str(number)) for number in range(5)]
    bystander_was_cancelled = False

    async def stand_by():
        nonlocal bystander_was_cancelled
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            bystander_was_cancelled = True
            raise

    async with anyio.create_task_group() as bystanders:
        bystanders.start_soon(stand_by)
        async with anyio.create_task_group() as tg:
            for probe in probes:
                tg.start_soon(probe.start)
        assert {probe.state for probe in probes} == {OPEN}
        if order == "at once":
            async with anyio.create_task_group() as tg:
                for probe in probes:
                    tg.start_soon(probe.stop)
        else:
            for probe in probes if order == "fifo" else reversed(probes):
                await probe.stop()
        assert {probe.state for probe in probes} == {CLOSED}
        assert not bystander_was_cancelled
        bystanders.cancel_scope.cancel()


async def test_concurrent_starts_share_one_connection():
    probe = Probe()
    connections = []

    async def start():
        connections.append(await probe.start())

    async with anyio.create_task_group() as tg:
        tg.start_soon(start)
        tg.start_soon(start)
    assert connections[0] is connections[1]
    assert await probe.start() is connections[0]
    assert len(probe.entered) == 1
    await probe.stop()


async def test_O15_cancelling_one_start_does_not_affect_another():
    stage = Stage()
    probe = Probe(stage)
    connections = []

    async def start():
        connections.append(await probe.start())

    async with anyio.create_task_group() as tg:
        tg.start_soon(start)
        async with anyio.create_task_group() as impatient:
            impatient.start_soon(start)
            await stage.reached.wait()
            impatient.cancel_scope.cancel()
        assert probe.state is OPENING
        stage.let_go.set()
    assert connections == [probe.connection]
    await probe.stop()


async def test_O15_cancelling_the_only_start_cancels_the_attempt_and_waits_for_the_owner_task():
    stage = Stage()
    closed = []

    async def clean_up():
        try:
            await stage()
        finally:
            with anyio.CancelScope(shield=True):
                await checkpoint()
                closed.append(True)

    probe = Probe(clean_up)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tg:
            tg.start_soon(probe.start)
            await stage.reached.wait()
            scope.cancel()
    assert scope.cancelled_caught
    assert closed
    assert probe.state is CLOSED
    assert probe.exception is None
    assert not probe.is_acquired


async def test_O15_a_start_cancelled_just_as_the_connection_opens_closes_the_connection():
    scope = anyio.CancelScope()

    async def open_and_cancel():
        await checkpoint()
        scope.cancel()

    probe = Probe(open_and_cancel)
    with scope:
        await probe.start()
    assert scope.cancelled_caught
    assert probe.state is CLOSED
    assert not probe.is_acquired


async def test_a_cancelled_start_does_not_close_a_connection_that_another_start_returned():
    scope = anyio.CancelScope()
    received = []

    async def open_and_cancel():
        await checkpoint()
        scope.cancel()

    probe = Probe(open_and_cancel)

    async def start():
        received.append(await probe.start())

    async with anyio.create_task_group() as tg:
        tg.start_soon(start)
        await wait_all_tasks_blocked()
        with scope:
            await probe.start()
    assert probe.state is OPEN
    assert received == [probe.connection]
    await probe.stop()


async def test_a_start_in_a_cancelled_task_leaves_no_open_connection():
    probe = Probe()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await probe.start()
    assert probe.state is CLOSED
    assert not probe.is_acquired


async def test_stop_can_be_called_in_any_state():
    stage = Stage()
    probe = Probe(stage)
    await probe.stop()
    assert probe.state is NEW
    stage.let_go.set()
    await probe.start()
    await probe.stop()
    await probe.stop()
    assert probe.state is CLOSED
    await probe.start()
    assert probe.state is OPEN
    await probe.stop()
    assert len(probe.exited) == 2


async def test_O17_start_raises_if_stop_is_called_while_opening():
    stage = Stage()
    probe = Probe(stage)
    async with anyio.create_task_group() as tg:

        async def start():
            with pytest.raises(ConnectionStoppedError, match="probe"):
                await probe.start()
            assert not probe.is_acquired

        tg.start_soon(start)
        tg.start_soon(start)
        await stage.reached.wait()
        await probe.stop(timeout=None)
    assert probe.state is CLOSED
    assert probe.exception is None


async def test_O17_a_stop_just_as_the_connection_opens_leaves_nothing_open():
    probe = Probe()

    async def stop_soon():
        await checkpoint()
        task_group.start_soon(probe.stop)

    probe.opening = stop_soon
    async with anyio.create_task_group() as task_group:
        try:
            connection = await probe.start()
        except ConnectionStoppedError:
            pass
        else:  # start() returned before stop() was called
            assert connection is not None
    assert probe.state is CLOSED
    assert not probe.is_acquired


async def test_C7_ten_concurrent_stops_close_the_connection_once():
    stage = Stage()
    probe = Probe(closing=stage)
    await probe.start()
    async with anyio.create_task_group() as tg:
        for _ in range(10):
            tg.start_soon(probe.stop)
        await stage.reached.wait()
        assert probe.state is CLOSING
        stage.let_go.set()
    assert probe.state is CLOSED
    assert len(probe.exited) == 1


async def test_a_start_while_closing_waits_and_then_opens_a_new_connection():
    stage = Stage()
    probe = Probe(closing=stage)
    first = await probe.start()
    connections = []

    async def start():
        connections.append(await probe.start())

    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.stop)
        await stage.reached.wait()
        tg.start_soon(start)
        tg.start_soon(start)
        await wait_all_tasks_blocked()
        assert len(probe.entered) == 1
        stage.let_go.set()
    assert connections[0] is connections[1] is not first
    assert len(probe.entered) == 2
    await probe.stop()


async def test_O18_a_second_stop_ends_a_start_that_is_waiting_for_the_close():
    stage = Stage()
    probe = Probe(closing=stage)
    await probe.start()
    async with anyio.create_task_group() as tg:

        async def start():
            with pytest.raises(ConnectionStoppedError):
                await probe.start()

        tg.start_soon(probe.stop)
        await stage.reached.wait()
        tg.start_soon(start)
        await wait_all_tasks_blocked()
        tg.start_soon(probe.stop)
        await wait_all_tasks_blocked()
        stage.let_go.set()
    assert probe.state is CLOSED
    assert len(probe.entered) == 1


async def test_a_start_that_waits_for_a_close_can_be_cancelled_and_can_time_out():
    stage = Stage()
    probe = Probe(closing=stage)
    await probe.start()
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.stop)
        await stage.reached.wait()
        with pytest.raises(
            StartTimeoutError, match=r"0\.01 s; the task 'owner task of probe' is waiting in"
        ):
            await probe.start(timeout=0.01)
        with anyio.move_on_after(0.01) as scope:
            await probe.start()
        assert scope.cancelled_caught
        assert probe.state is CLOSING
        stage.let_go.set()
    assert len(probe.entered) == 1


async def test_O3_a_start_that_times_out_cancels_the_attempt_and_raises():
    probe = Probe(anyio.sleep_forever)
    with pytest.raises(StartTimeoutError, match=r"^probe: not connected after 0\.01 s$") as caught:
        await probe.start(timeout=0.01)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.timeout == 0.01
    assert type(probe.exception) is StartTimeoutError
    assert not probe.is_acquired


async def test_O3_a_start_that_times_out_does_not_affect_another():
    stage = Stage()
    probe = Probe(stage)
    connections = []

    async def start():
        connections.append(await probe.start(timeout=5))

    async with anyio.create_task_group() as tg:
        tg.start_soon(start)
        await stage.reached.wait()
        with pytest.raises(StartTimeoutError):
            await probe.start(timeout=0.01)
        assert probe.state is OPENING
        stage.let_go.set()
    assert connections == [probe.connection]
    await probe.stop()


async def test_the_managers_start_timeout_applies_to_all_waiting_starts():
    probe = Probe(anyio.sleep_forever)
    probe.start_timeout = 0.02
    errors = []

    async def start():
        with pytest.raises(StartTimeoutError, match=r"0\.02 s") as caught:
            await probe.start()
        errors.append(caught.value)

    async with anyio.create_task_group() as tg:
        for _ in range(2):
            tg.start_soon(start)
    assert errors[0] is not errors[1]
    assert probe.state is FAILED
    assert isinstance(probe.exception, StartTimeoutError)
    assert not probe.is_acquired


async def test_an_error_raised_after_the_start_timeout_expires_becomes_the_cause_of_the_timeout_error():
    async def fail_when_cancelled():
        try:
            await anyio.sleep_forever()
        finally:
            raise OSError("half open")

    probe = Probe(fail_when_cancelled)
    probe.start_timeout = 0.01
    with pytest.raises(StartTimeoutError) as caught:
        await probe.start()
    assert isinstance(caught.value.__cause__, OSError)


async def test_connection_can_be_read_only_while_open():
    opening, closing = Stage(), Stage()
    probe = Probe(opening, closing)
    with pytest.raises(NotConnectedError, match="new"):
        probe.connection  # noqa: B018
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.start)
        await opening.reached.wait()
        with pytest.raises(NotConnectedError, match="opening") as caught:
            probe.connection  # noqa: B018
        assert caught.value.state is OPENING
        opening.let_go.set()
    assert probe.connection
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.stop)
        await closing.reached.wait()
        with pytest.raises(NotConnectedError, match="closing"):
            probe.connection  # noqa: B018
        closing.let_go.set()
    message = r"^probe: not connected \(state: closed\); call start\(\) first$"
    with pytest.raises(NotConnectedError, match=message) as caught:
        probe.connection  # noqa: B018
    assert caught.value.__cause__ is None
    assert not caught.value.__suppress_context__


@pytest.mark.parametrize("phase", ["opening", "closing"])
async def test_reading_the_connection_after_a_failed_run_raises_with_the_failure_as_the_cause(phase):
    failure = OSError("no")
    probe = Probe(**{phase: raises(failure)})
    with suppress(OSError):
        await probe.start()
    await probe.stop()
    with pytest.raises(NotConnectedError, match="failed") as caught:
        probe.connection  # noqa: B018
    assert caught.value.__cause__ is failure is probe.exception


async def test_reading_the_connection_after_opening_failed_does_not_call_it_lost():
    """A server that dies during the handshake ends the stream, and then the handshake raises."""
    failure = OSError("handshake")

    async def fail():
        probe.connection_lost()
        raise failure

    probe = Probe(fail)
    with pytest.raises(OSError, match="handshake"):
        await probe.start()
    with pytest.raises(NotConnectedError, match="failed") as caught:
        probe.connection  # noqa: B018
    assert caught.value.__cause__ is failure is probe.exception


@pytest.mark.parametrize("phase", ["opening", "closing"])
async def test_a_loss_of_another_connection_is_only_the_cause(phase):
    foreign = ConnectionLostError("other")
    probe = Probe(**{phase: raises(foreign)})
    with suppress(ConnectionLostError):
        await probe.start()
    await probe.stop()
    with pytest.raises(NotConnectedError, match="^probe: ") as caught:
        probe.connection  # noqa: B018
    assert caught.value.__cause__ is foreign is probe.exception


async def test_an_error_from_connection_keeps_no_frame_alive():
    probe = Probe()
    await probe.start()
    await probe.stop()
    gc.disable()
    try:
        held = Probe()
        read_in_a_frame_with(probe, held)
        reference = weakref.ref(held)
        del held
        assert reference() is None
    finally:
        gc.enable()


def read_in_a_frame_with(probe, _held):
    with suppress(NotConnectedError):
        probe.connection  # noqa: B018


async def test_wait_closed_waits_for_the_current_run_or_reports_the_last_one():
    probe = Probe()
    await probe.wait_closed()
    await probe.start()
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.wait_closed)
        await wait_all_tasks_blocked()
        await probe.stop()
    await probe.wait_closed()
    probe.opening = raises(OSError("no"))
    with pytest.raises(OSError, match="no"):
        await probe.start()
    with pytest.raises(OSError, match="no"):
        await probe.wait_closed()


async def test_cancelling_wait_closed_does_not_affect_the_connection():
    probe = Probe()
    await probe.start()
    with anyio.move_on_after(0.01):
        await probe.wait_closed()
    assert probe.state is OPEN
    await probe.stop()


async def test_run_holds_the_connection_open_in_a_task_group():
    probe = Probe()
    async with anyio.create_task_group() as tg:
        connection = await tg.start(probe.run)
        assert connection is probe.connection
        with pytest.raises(RuntimeError, match="open"):
            await probe.run()
        await probe.stop()
    assert probe.state is CLOSED
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.run)  # without tg.start(), and for a second run
        await wait_all_tasks_blocked()
        assert probe.state is OPEN
        await probe.stop()


async def test_cancelling_run_closes_the_connection_without_reporting_a_loss(caplog):
    probe = Probe()
    async with anyio.create_task_group() as tg:
        await tg.start(probe.run)
        tg.cancel_scope.cancel()
    assert probe.state is CLOSED
    assert probe.exception is None
    assert not caplog.records


async def test_run_raises_if_the_connection_is_lost():
    probe = Probe()
    with pytest.raises(ExceptionGroup) as caught:
        async with anyio.create_task_group() as tg:
            await tg.start(probe.run)
            probe.connection_lost(OSError("gone"))
    [loss] = caught.value.exceptions
    assert isinstance(loss, ConnectionLostError)
    assert str(loss.__cause__) == "gone"


async def test_run_closes_the_connection_if_task_status_started_raises():
    class Unwilling:
        def started(self, value):
            raise LookupError("no")

    probe = Probe()
    with pytest.raises(LookupError):
        await probe.run(task_status=Unwilling())
    assert probe.state is CLOSED


async def test_C9_async_with_can_be_exited_in_another_task():
    probe = Probe()
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.__aenter__)
    assert probe.state is OPEN
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.__aexit__, None, None, None)
    assert probe.state is CLOSED


async def test_a_block_can_still_be_exited_after_a_refused_exit():
    probe = Probe()
    await probe.__aenter__()

    async def misuse():
        with pytest.raises(WrongEventLoopError):
            await probe.__aexit__(None, None, None)

    await anyio.to_thread.run_sync(anyio.run, misuse)

    async def leave():
        with pytest.raises(OwnerTaskError):
            await probe.__aexit__(None, None, None)

    probe.closing = leave
    await probe.__aexit__(None, None, None)
    assert probe.state is CLOSED


async def test_C8_every_method_raises_in_another_event_loop():
    probe = Probe()
    await probe.start()

    async def misuse():
        for call in (probe.start, probe.stop, probe.wait_closed, probe.run, probe.__aenter__):
            with pytest.raises(WrongEventLoopError, match="probe"):
                await call()

    for backend in ("asyncio", "trio"):
        await anyio.to_thread.run_sync(lambda backend=backend: anyio.run(misuse, backend=backend))
    assert probe.state is OPEN
    await probe.stop()


async def test_properties_and_connection_lost_can_be_used_from_any_thread():
    probe = Probe()
    await probe.start()
    seen = await anyio.to_thread.run_sync(lambda: (probe.state, probe.connection, probe.exception))
    assert seen == (OPEN, probe.connection, None)
    await anyio.to_thread.run_sync(probe.connection_lost, OSError("gone"))
    with pytest.raises(ConnectionLostError):
        await probe.wait_closed()
    await anyio.to_thread.run_sync(probe.connection_lost)  # too late, so it does nothing
    assert str(probe.exception.__cause__) == "gone"


async def test_from_factory_creates_a_manager_without_a_subclass():
    @asynccontextmanager
    async def numbers():
        yield 1

    manager = ConnectionManager.from_factory(numbers)
    assert manager.name == "from_factory(numbers)"
    async with manager as number:
        assert number == 1
    assert ConnectionManager.from_factory(numbers, name="one").name == "one"
    with pytest.raises(TypeError, match="factory must be callable, not int"):
        ConnectionManager.from_factory(1)
    hint = "; pass the function that returns it, without calling it"
    for opened in (numbers(), Probe()):
        with pytest.raises(
            TypeError, match=f"factory must be callable, not {type(opened).__name__}{hint}"
        ):
            ConnectionManager.from_factory(opened)


class ForgetsSuper(ConnectionManager[int]):
    def __init__(self, url):
        self.url = url

    @asynccontextmanager
    async def open_connection(self):
        yield 1


@dataclass
class Data(ConnectionManager[int]):
    url: str

    @asynccontextmanager
    async def open_connection(self):
        yield 1


@dataclass(frozen=True)
class Frozen(ConnectionManager[int]):
    url: str

    @asynccontextmanager
    async def open_connection(self):
        yield 1


class Slotted(ForgetsSuper):
    __slots__ = ("extra",)

    def __init__(self, url):
        super().__init__(url)
        self.extra = "extra"


@pytest.mark.parametrize("kind", [ForgetsSuper, Data, Frozen, Slotted])
async def test_any_subclass_works_and_its_copies_are_new_and_keep_only_the_configuration(kind):
    manager = kind("redis://x")
    assert manager.name == kind.__name__
    async with manager:
        for other in copy.copy(manager), copy.deepcopy(manager), pickle.loads(pickle.dumps(manager)):
            assert other.state is NEW
            assert other.url == "redis://x"
            assert getattr(other, "extra", None) == getattr(manager, "extra", None)
            async with other as connection:
                assert connection == 1
        assert manager.state is OPEN


async def test_the_abstract_base_class_cannot_be_instantiated():
    with pytest.raises(TypeError, match="open_connection"):
        ConnectionManager()


async def test_repr_shows_the_name_and_the_state():
    probe = Probe(name="redis")
    assert repr(probe) == "<Probe 'redis' new>"


@pytest.mark.parametrize("value", [-1, -0.5, float("nan"), True, False, "1"])
async def test_an_invalid_timeout_is_rejected_before_anything_is_opened(value):
    probe = Probe()
    kind = TypeError if isinstance(value, (bool, str)) else ValueError
    with pytest.raises(kind, match="^timeout must be"):
        await probe.start(timeout=value)
    with pytest.raises(kind, match="^timeout must be"):
        await probe.stop(timeout=value)
    probe.start_timeout = value
    with pytest.raises(kind, match="^start_timeout must be"):
        await probe.start()
    assert probe.state is NEW
    assert not probe.entered


async def test_invalid_arguments_are_rejected():
    with pytest.raises(TypeError, match="name must be a string or None, not int"):
        Probe(name=1)
    with pytest.raises(TypeError, match="exc must be an exception or None, not str"):
        Probe().connection_lost("broken")


async def test_start_raises_a_helpful_error_if_open_connection_does_not_return_a_context_manager():
    class Forgotten(ConnectionManager[int]):
        async def open_connection(self):
            return 1

    class Generator(ConnectionManager[int]):
        async def open_connection(self):
            yield 1

    class Wrong(ConnectionManager[int]):
        def open_connection(self):
            return 1

    with pytest.raises(TypeError, match="not coroutine; is the decorator @asynccontextmanager missing"):
        await Forgotten().start()
    with pytest.raises(TypeError, match="not async_generator; is the decorator"):
        await Generator().start()
    with pytest.raises(TypeError, match="not int"):
        await Wrong().start()

    async def forgotten():
        yield 1

    from_factory = ConnectionManager.from_factory(forgotten)
    with pytest.raises(TypeError, match=r"^forgotten\(\) must return .* is the decorator"):
        await from_factory.start()


class Outer(ConnectionManager[object]):
    def __init__(self, inner):
        super().__init__(name="outer")
        self.inner = inner

    @asynccontextmanager
    async def open_connection(self):
        async with self.open_inner(self.inner) as connection:
            yield connection


async def test_open_inner_opens_another_managers_connection_in_this_run():
    probe = Probe()
    outer = Outer(probe)
    for _ in range(2):
        connection = await outer.start()
        assert connection is outer.connection
        assert probe.state is NEW
        with pytest.raises(RuntimeError, match="it is part of outer; start that manager instead"):
            await probe.start()
        with pytest.raises(
            RuntimeError, match="already part of outer; a manager can be part of only one"
        ):
            await Outer(probe).start()
        await outer.stop()
    assert len(probe.exited) == 2
    async with probe:
        with pytest.raises(
            RuntimeError, match=r"cannot become part of .* \(state: open\); call stop\(\) first"
        ):
            await outer.start()


async def test_if_the_inner_connection_is_lost_so_is_the_outer_one():
    probe = Probe()
    outer = Outer(probe)
    await outer.start()
    probe.connection_lost(OSError("gone"))
    with pytest.raises(ConnectionLostError, match="outer") as caught:
        await outer.wait_closed()
    assert str(caught.value.__cause__) == "gone"
    probe.connection_lost()  # it is no longer lent, so this does nothing
    assert probe.state is NEW


def started_in_a_loop_that_is_closed():
    outer = Outer(ConnectionManager.from_factory(HeldOpen, name="inner"))
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending"
    loop.run_until_complete(outer.start())
    loop.close()
    return outer, outer._life.run


def test_C8_a_manager_lent_to_a_run_whose_loop_was_closed_can_be_lent_again():
    outer, abandoned = started_in_a_loop_that_is_closed()

    async def again():
        async with outer:
            abandoned._coroutine.close()  # as the garbage collector would
            assert outer.inner._life.borrower

    asyncio.run(again())
    assert not outer.inner._life.borrower


def test_C8_a_manager_lent_to_a_run_whose_loop_was_closed_can_report_its_own_loss():
    outer, abandoned = started_in_a_loop_that_is_closed()

    async def by_itself():
        await outer.inner.start()
        outer.inner.connection_lost()
        with pytest.raises(ConnectionLostError, match="inner"):
            await outer.inner.wait_closed()

    asyncio.run(by_itself())
    abandoned._coroutine.close()  # as the garbage collector would


class HeldOpen:
    async def __aenter__(self):
        return 1

    async def __aexit__(self, *_):
        return None


async def test_calling_open_connection_directly_opens_the_connection_in_the_calling_task():
    outer = Outer(Probe())
    async with outer.open_connection() as connection:
        assert connection
        outer.inner.connection_lost()  # does nothing because there is no run
        assert outer.state is NEW


async def test_the_owner_task_runs_in_the_context_of_the_start_that_began_the_run():
    from contextvars import ContextVar

    tenant = ContextVar("tenant")
    seen = []

    async def note():
        seen.append(tenant.get())

    probe = Probe(note, note)
    tenant.set("first")
    await probe.start()
    tenant.set("second")
    await probe.stop()
    await probe.start()
    await probe.stop()
    assert seen == ["first", "first", "second", "second"]


def test_C8_a_manager_works_in_one_event_loop_after_another(anyio_backend):
    probe = Probe()
    name, options = anyio_backend

    async def cycle():
        await probe.start()
        await probe.stop()

    for _ in range(2):
        anyio.run(cycle, backend=name, backend_options=options)
    assert len(probe.exited) == 2


def test_C8_a_run_counts_as_closed_once_its_event_loop_is_closed(caplog):
    class Held:
        """Awaits nothing on exit, so the garbage collector can close it."""

        async def __aenter__(self):
            return 1

        async def __aexit__(self, *_):
            return None

    manager = ConnectionManager.from_factory(Held)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending"
    loop.run_until_complete(manager.start())
    assert manager.state is OPEN
    loop.close()
    assert manager.state is CLOSED
    assert manager.exception is None
    with pytest.raises(NotConnectedError):
        manager.connection  # noqa: B018
    manager.connection_lost()
    manager._life.run._coroutine.close()  # as the garbage collector would
    assert manager.state is CLOSED

    async def go_on():
        await manager.stop()
        await manager.wait_closed()
        await manager.start()
        await manager.stop()

    asyncio.run(go_on())
    # a closed loop is the only case in which an owner task is left
    assert not caplog.records


def test_O20_start_raises_without_a_running_event_loop():
    probe = Probe()
    with pytest.raises(RuntimeError):
        probe.start().send(None)
    assert probe.state is NEW


def test_in_a_forked_child_the_parents_run_counts_as_closed(monkeypatch):
    import os

    probe = Probe()

    async def main():
        await probe.start()
        monkeypatch.setattr(os, "getpid", lambda: -1)
        assert probe.state is CLOSED
        with pytest.raises(NotConnectedError):
            probe.connection  # noqa: B018
        await probe.stop()
        monkeypatch.undo()
        assert probe.state is OPEN
        await probe.stop()

    anyio.run(main)


def test_two_threads_can_each_run_a_manager_in_their_own_event_loop():
    """The barrier makes the two runs overlap."""
    barrier = threading.Barrier(2)

    def work():
        probe = Probe()

        async def main():
            await probe.start()
            await anyio.to_thread.run_sync(barrier.wait)
            await probe.stop()

        anyio.run(main)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
