"""Tests for managers that are opened inside other managers, and for callbacks of runs that are over.

Tests of many cases print each one, so the last line that a failed test printed names its case.
"""

import asyncio
import contextvars
import gc
import threading
import time
from contextlib import asynccontextmanager
from functools import partial
from itertools import product

import anyio
import pytest
from anyio.lowlevel import checkpoint
from probe import Probe, Stage
from reopening import settle

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionManagerError,
    ConnectionState,
    ConnectionStoppedError,
    OwnerTaskError,
)

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


class Outer(ConnectionManager[object]):
    """Opens another manager's connection inside its own run."""

    def __init__(self, inner, name):
        super().__init__(name=name)
        self.inner = inner

    @asynccontextmanager
    async def open_connection(self):
        async with self.open_inner(self.inner) as connection:
            yield connection


class HeldOpen:
    """Awaits nothing on exit, so the garbage collector can close it."""

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        return None


def chain(depth):
    """Returns managers that are part of each other, outermost first."""
    managers = [ConnectionManager.from_factory(HeldOpen, name="innermost")]
    for number in range(1, depth):
        managers.insert(0, Outer(managers[0], name=f"outer {number}"))
    return managers


def abandon(anyio_backend, function):
    """Calls an async function in an event loop that then ends without ending its tasks."""
    name, options = anyio_backend

    async def bounded():
        with anyio.fail_after(5):
            await function()

    if name == "trio":
        abandon_on_trio(bounded)
        return
    loop = options.get("loop_factory", asyncio.new_event_loop)()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending"
    try:
        loop.run_until_complete(bounded())
    finally:
        loop.close()


def abandon_on_trio(function):
    """A fault in trio itself is the only way to end a trio run without ending its tasks."""
    import trio

    class BrokenClock(trio.abc.Clock):
        is_broken = False

        def start_clock(self):
            pass

        def current_time(self):
            return time.monotonic()

        def deadline_to_sleep_time(self, deadline):
            if self.is_broken:
                raise LookupError
            return deadline - self.current_time()

    clock = BrokenClock()

    async def main():
        await function()
        clock.is_broken = True
        await trio.sleep_forever()

    with pytest.raises(trio.TrioInternalError):
        trio.run(main, clock=clock)


def run(anyio_backend, function):
    name, options = anyio_backend

    async def bounded():
        with anyio.fail_after(5):
            await function()

    anyio.run(bounded, backend=name, backend_options=options)


# F4: what is lent is known through any number of levels.


def abandoned_tasks_are_garbage(test):
    for mark in (
        pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
        pytest.mark.usefixtures("only_explicit_collections"),
    ):
        test = mark(test)
    return test


@pytest.fixture
def only_explicit_collections():
    """Prevents automatic collections.

    If a collection closes the tasks of a crashed trio run, it can crash another trio run.
    """
    gc.disable()
    yield
    gc.enable()


ORDERS = [
    *((0, 1), (1, 0)),
    *((0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)),
    *((0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1)),
]


@abandoned_tasks_are_garbage
def test_F4_after_its_loop_was_closed_each_manager_of_a_chain_can_be_started(anyio_backend):
    for order in ORDERS:
        print("started in the order", order)
        managers = chain(len(order))
        abandon(anyio_backend, managers[0].start)
        assert managers[0].state is CLOSED
        assert {manager.state for manager in managers[1:]} == {NEW}
        for position in order:
            manager = managers[position]

            async def start_and_stop(manager=manager):
                connection = await manager.start()
                assert connection is manager.connection
                await manager.stop()

            run(anyio_backend, start_and_stop)
            assert manager.state is CLOSED
    gc.collect()


@abandoned_tasks_are_garbage
def test_F4_a_chain_can_be_abandoned_at_any_depth_and_lent_again_at_any_depth(anyio_backend):
    for first, second in product(range(4), repeat=2):
        print("abandoned at depth", first, "and lent again at depth", second)
        abandon_and_lend_again(anyio_backend, first, second)
    gc.collect()


def abandon_and_lend_again(anyio_backend, first, second):
    managers = chain(4)
    abandon(anyio_backend, managers[first].start)

    async def start_and_stop():
        connection = await managers[second].start()
        gc.collect()  # ends what the abandoned run left
        for inner in managers[second + 1 :]:
            with pytest.raises(RuntimeError, match=f"^{inner.name}: .* part of outer"):
                await inner.start()
            with pytest.raises(RuntimeError, match=f"^{inner.name}: .*already part of outer"):
                await Outer(inner, name="stranger").start()
        assert managers[second].connection is connection
        await managers[second].stop()
        for manager in managers:
            await manager.start()
            await manager.stop()

    run(anyio_backend, start_and_stop)


@abandoned_tasks_are_garbage
def test_F4_a_chain_can_be_abandoned_again_and_again(anyio_backend):
    managers = chain(3)
    for manager in (*managers, *reversed(managers), *managers):
        abandon(anyio_backend, manager.start)
        assert manager.state is CLOSED

    async def start_and_stop():
        for manager in managers:
            await manager.start()
            await manager.stop()

    run(anyio_backend, start_and_stop)
    gc.collect()


@abandoned_tasks_are_garbage
def test_F4_a_part_of_an_abandoned_chain_can_become_part_of_another_manager(anyio_backend):
    managers = chain(3)
    abandon(anyio_backend, managers[0].start)

    async def lend_to_another():
        for inner in managers[1:]:
            other = Outer(inner, name="other")
            async with other:
                with pytest.raises(RuntimeError, match="part of other"):
                    await inner.start()
            async with inner:
                pass

    run(anyio_backend, lend_to_another)
    gc.collect()


@abandoned_tasks_are_garbage
def test_F4_a_loss_after_the_loop_was_closed_is_that_of_the_run_that_is_alive(anyio_backend):
    for depth in range(3):
        managers = chain(3)
        abandon(anyio_backend, managers[0].start)
        manager = managers[depth]
        print("started", manager)

        async def lose(innermost=managers[-1], manager=manager):
            await manager.start()
            innermost.connection_lost(OSError("gone"))
            with pytest.raises(ConnectionLostError, match=f"^{manager.name}: ") as caught:
                await manager.wait_closed()
            assert str(caught.value.__cause__) == "gone"

        run(anyio_backend, lose)
    gc.collect()


# F5: a run that is over changes nothing.


class Family:
    """A manager that can be used by itself or as part of others.

    Attributes:
        inner: The manager.
        users: Whom to start for each use of it.
        contexts: The contexts of its runs, whichever manager was started.
    """

    def __init__(self):
        self.contexts = []
        self.stage = None
        self.inner = Probe(self._note_context, name="inner")
        middle = Outer(self.inner, name="middle")
        self.users = {
            "by itself": self.inner,
            "lent": middle,
            "lent twice": Outer(middle, name="outer"),
            "lent to another": Outer(self.inner, name="other"),
        }

    async def _note_context(self):
        self.contexts.append(contextvars.copy_context())
        await (checkpoint() if self.stage is None else self.stage())


USES = ["by itself", "lent", "lent twice", "lent to another"]


async def report(how, context, manager, *args):
    """Calls `connection_lost()` in a context that a run left behind."""
    if how == "context":
        context.run(manager.connection_lost, *args)
    elif how == "task":

        async def call():
            manager.connection_lost(*args)

        async with anyio.create_task_group() as tg:
            context.run(tg.start_soon, call)
    else:
        thread = threading.Thread(target=context.run, args=(manager.connection_lost, *args))
        thread.start()
        thread.join(5)
        assert not thread.is_alive()
    for _ in range(10):  # until the event loop has run what the thread asked for
        await checkpoint()


REPORTS = ["context", "task", "thread"]


@pytest.mark.parametrize("how", REPORTS)
async def test_F5_a_late_report_does_nothing_however_the_manager_is_used_now(how):
    for before, now in product(USES, repeat=2):
        print("before:", before, "now:", now)
        await report_late(before, now, how)


async def report_late(before, now, how):
    family = Family()
    await family.users[before].start()
    await family.users[before].stop()

    user = family.users[now]
    connection = await user.start()
    await report(how, family.contexts[0], family.inner, OSError("late"))
    assert user.connection is connection
    # A report of the current run works, however deep it is.
    await report(how, family.contexts[1], family.inner, OSError("gone"))
    with pytest.raises(ConnectionLostError, match=f"^{user.name}: ") as caught:
        await user.wait_closed()
    assert str(caught.value.__cause__) == "gone"


@pytest.mark.parametrize("how", REPORTS)
async def test_F5_a_late_report_does_not_end_an_attempt(how):
    for before, now in product(USES, repeat=2):
        print("before:", before, "now:", now)
        await report_while_opening(before, now, how)


async def report_while_opening(before, now, how):
    family = Family()
    await family.users[before].start()
    await family.users[before].stop()

    user = family.users[now]
    family.stage = Stage()
    async with anyio.create_task_group() as tg:
        tg.start_soon(user.start)
        await family.stage.reached.wait()
        await report(how, family.contexts[0], family.inner, OSError("late"))
        assert user.state is OPENING
        family.stage.let_go.set()
    assert user.state is OPEN
    await user.stop()
    assert user.state is CLOSED


async def test_F5_late_reports_of_every_member_of_a_chain_do_nothing():
    for now, how in product(USES, REPORTS):
        print("now:", now, "reported by a", how)
        family = Family()
        outer = family.users["lent twice"]
        await outer.start()
        await outer.stop()
        user = family.users[now]
        connection = await user.start()
        for manager in (outer, outer.inner, family.inner):
            await report(how, family.contexts[0], manager, OSError("late"))
            assert user.connection is connection
        await user.stop()


async def test_F5_a_late_report_does_nothing_after_the_run_it_was_part_of_is_over():
    family = Family()
    outer = family.users["lent twice"]
    await outer.start()
    await outer.stop()
    family.contexts[0].run(family.inner.connection_lost, OSError("late"))
    assert outer.state is CLOSED
    assert family.inner.state is NEW
    connection = await family.inner.start()
    family.contexts[0].run(outer.inner.connection_lost, OSError("late"))
    family.contexts[0].run(family.inner.connection_lost, OSError("late"))
    assert family.inner.connection is connection
    await family.inner.stop()


async def test_F5_a_report_of_a_run_that_began_another_one_is_that_of_its_own_run():
    """The second run was started by a task of the first one, so it carries the marks of both."""
    family = Family()
    other = Probe(name="other")
    await family.inner.start()
    first = family.contexts[0]
    async with anyio.create_task_group() as tg:
        first.run(tg.start_soon, other.start)
    first.run(other.connection_lost, OSError("reported by the code that started it"))
    with pytest.raises(ConnectionLostError):
        await other.wait_closed()
    assert family.inner.state is OPEN
    await family.inner.stop()


# F19: misuse.


async def misuse(call, message):
    """Asserts that a call is refused with an error that any kind of handler catches."""
    with pytest.raises(RuntimeError, match=message) as caught:
        await call()
    assert isinstance(caught.value, ConnectionManagerError)
    assert type(caught.value).__name__ == "ManagerInUseError"
    assert caught.value.name == message.partition(":")[0].removeprefix("^")


@pytest.mark.parametrize("phase", [OPENING, OPEN, CLOSING], ids=str)
async def test_F19_run_is_refused_while_the_manager_is_running_and_changes_nothing(phase):
    opening, closing = Stage(), Stage()
    probe = Probe(opening, closing)
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.start)
        await opening.reached.wait()
        if phase is not OPENING:
            opening.let_go.set()
            await settle()
        if phase is CLOSING:
            tg.start_soon(probe.stop)
            await closing.reached.wait()
        await misuse(probe.run, rf"^probe: run\(\) .*{phase.value}.*stop\(\)")
        assert probe.state is phase
        opening.let_go.set()
        closing.let_go.set()
        await settle()
        assert probe.state is (CLOSED if phase is CLOSING else OPEN)
        await probe.stop()
    assert len(probe.entered) == 1
    async with anyio.create_task_group() as tg:
        await tg.start(probe.run)
        await probe.stop()


async def test_F19_a_lent_manager_cannot_be_started_on_its_own():
    for method, depth in product(["start", "run", "__aenter__"], [1, 2]):
        print(method, "at depth", depth)
        probe = Probe()
        middle = Outer(probe, name="middle")
        user = middle if depth == 1 else Outer(middle, name="outer")
        connection = await user.start()
        await misuse(getattr(probe, method), r"^probe: .*part of (middle|outer).*start that manager")
        assert probe.state is NEW
        assert user.connection is connection
        assert len(probe.entered) == 1
        await probe.stop()  # does nothing
        assert user.connection is connection
        await user.stop()
        async with probe:
            pass
        assert probe.state is CLOSED


@pytest.mark.parametrize("phase", [OPENING, OPEN, CLOSING], ids=str)
async def test_F19_a_running_manager_cannot_become_part_of_another(phase):
    opening, closing = Stage(), Stage()
    probe = Probe(opening, closing)
    outer = Outer(probe, name="outer")
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.start)
        await opening.reached.wait()
        if phase is not OPENING:
            opening.let_go.set()
            await settle()
        if phase is CLOSING:
            tg.start_soon(probe.stop)
            await closing.reached.wait()
        await misuse(outer.start, rf"^probe: .*part of outer.*{phase.value}.*stop\(\)")
        assert outer.state is FAILED
        assert probe.state is phase
        opening.let_go.set()
        closing.let_go.set()
        await settle()
        await probe.stop()
    assert len(probe.entered) == 1
    async with outer:
        pass
    assert outer.state is CLOSED


async def test_F19_a_manager_cannot_be_part_of_two_others():
    probe = Probe()
    first, second = Outer(probe, name="first"), Outer(probe, name="second")
    connection = await first.start()
    await misuse(second.start, r"^probe: .*part of first.*only one")
    assert first.connection is connection
    assert second.state is FAILED
    await first.stop()
    async with second:
        pass


# A task that a callback of the connection created carries the mark of the run, but the connection
# does not wait for it.


async def in_run(family, function):
    """Calls an async function in a task with the context of the last run, outside of the connection."""
    outcome = []

    async def call():
        try:
            outcome.append(await function())
        except Exception as error:
            outcome.append(error)

    async with anyio.create_task_group() as tg:
        family.contexts[-1].run(tg.start_soon, call)
    return outcome[0]


def families():
    """Yields families, and the member to use: each time another one."""
    for use in USES:
        print("used:", use)
        family = Family()
        yield family, family.users[use]


async def test_O21_while_open_start_in_a_task_of_a_callback_returns_the_connection():
    for family, user in families():
        connection = await user.start()
        assert await in_run(family, user.start) is connection
        await user.stop()


async def test_O21_while_open_stop_in_a_task_of_a_callback_stops_and_waits():
    for family, user in families():
        for timeout in (0, 30, None):
            print("timeout:", timeout)
            await user.start()
            assert await in_run(family, partial(user.stop, timeout)) is None
            assert user.state is CLOSED
            assert not family.inner.is_acquired


async def test_O21_wait_closed_in_a_task_of_a_callback_waits_for_the_end():
    for family, user in families():
        await user.start()
        outcomes = []

        async def wait(family=family, user=user, outcomes=outcomes):
            outcomes.append(await in_run(family, user.wait_closed))

        async with anyio.create_task_group() as tg:
            tg.start_soon(wait)
            await settle()
            assert not outcomes
            user.connection_lost(OSError("gone"))
        assert isinstance(outcomes[0], ConnectionLostError)


async def test_O21_while_opening_start_in_a_task_of_a_callback_raises():
    """The connection may be waiting for that task."""
    for family, user in families():
        family.stage = Stage()
        async with anyio.create_task_group() as tg:
            tg.start_soon(user.start)
            await family.stage.reached.wait()
            assert isinstance(await in_run(family, user.start), OwnerTaskError)
            assert user.state is OPENING
            family.stage.let_go.set()
        assert user.state is OPEN
        await user.stop()


async def test_O21_while_opening_stop_in_a_task_of_a_callback_cancels_the_attempt():
    for family, user in families():
        family.stage = Stage()

        async def start(user=user):
            with pytest.raises(ConnectionStoppedError):
                await user.start()

        async with anyio.create_task_group() as tg:
            tg.start_soon(start)
            await family.stage.reached.wait()
            assert await in_run(family, user.stop) is None
        assert user.state is CLOSED


async def test_O21_start_in_a_task_of_a_callback_waits_for_the_close_and_opens_again():
    family = Family()
    closing = family.inner.closing = Stage()
    first = await family.inner.start()
    connections = []

    async def start():
        connections.append(await in_run(family, family.inner.start))

    async with anyio.create_task_group() as tg:
        tg.start_soon(family.inner.stop)
        await closing.reached.wait()
        tg.start_soon(start)
        await settle()
        assert not connections
        closing.let_go.set()
    assert connections == [family.inner.connection]
    assert connections[0] is not first
    await family.inner.stop()


async def test_O21_a_task_of_a_run_that_is_over_joins_and_stops_a_later_attempt():
    for before, now in product(USES, repeat=2):
        print("before:", before, "now:", now)
        await join_and_stop(before, now)


async def join_and_stop(before, now):
    family = Family()
    await family.users[before].start()
    await family.users[before].stop()
    user = family.users[now]
    family.stage = Stage()
    late = family.contexts[0]
    connections = []

    async def start():
        connections.append(await user.start())

    async with anyio.create_task_group() as tg:
        tg.start_soon(user.start)
        await family.stage.reached.wait()
        late.run(tg.start_soon, start)
        await settle()
        family.stage.let_go.set()
    assert connections == [user.connection]
    async with anyio.create_task_group() as tg:
        late.run(tg.start_soon, user.stop)
    assert user.state is CLOSED


async def test_O21_in_a_task_of_a_callback_the_lent_manager_does_nothing_by_itself():
    family = Family()
    outer = family.users["lent twice"]
    connection = await outer.start()
    assert isinstance(await in_run(family, family.inner.start), RuntimeError)
    assert await in_run(family, family.inner.stop) is None
    assert await in_run(family, family.inner.wait_closed) is None
    assert outer.connection is connection
    await outer.stop()
