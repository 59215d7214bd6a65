"""Tests for the ends of event loops, for two event loops in one thread, and for errors that must not
reach an event loop.

Tests of many cases print each one, so the last line that a failed test printed names its case.
"""

import asyncio
import gc
import io
import logging
import sys
import weakref
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import product

import anyio
import pytest
from anyio.lowlevel import checkpoint
from conftest import BACKENDS
from garbage import collect, collect_silently
from probe import Probe, raises

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionState,
    ConnectionStoppedError,
    StopTimeoutError,
    WrongEventLoopError,
)

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


class Custom(BaseException):
    pass


class Thing:
    """An object that weak references can refer to."""


on_asyncio = pytest.mark.parametrize(
    "anyio_backend",
    [backend for backend in BACKENDS if backend.values[0][0] == "asyncio"],
    indirect=True,
)


def run(function, anyio_backend):
    """Runs an async function in an event loop of its own, for at most five seconds."""

    async def bounded():
        with anyio.fail_after(5):
            return await function()

    name, options = anyio_backend
    return anyio.run(bounded, backend=name, backend_options=options)


# Two event loops in one thread.


@asynccontextmanager
async def guest():
    """Runs trio as a guest of the running asyncio loop.

    Yields a function that calls an async function in trio and returns what it returns.
    """
    import trio

    loop = asyncio.get_running_loop()
    ready, finished = loop.create_future(), loop.create_future()

    async def trio_main():
        async with trio.open_nursery() as nursery:
            ready.set_result((nursery, trio.lowlevel.current_trio_token()))
            await trio.sleep_forever()

    trio.lowlevel.start_guest_run(
        trio_main,
        run_sync_soon_threadsafe=loop.call_soon_threadsafe,
        done_callback=finished.set_result,
        host_uses_signal_set_wakeup_fd=True,
    )
    nursery, token = await ready

    async def in_trio(function):
        done = loop.create_future()

        async def call():
            try:
                with trio.fail_after(3):
                    result = await function()
            except Exception as error:
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(result)

        token.run_sync_soon(nursery.start_soon, call)
        return await done

    try:
        yield in_trio
    finally:
        token.run_sync_soon(nursery.cancel_scope.cancel)
        (await finished).unwrap()


async def in_asyncio(function):
    with anyio.fail_after(3):
        return await function()


@asynccontextmanager
async def both_loops(home):
    """Yields functions that call a function in the loop named `home`, and in the other one."""
    async with guest() as in_trio:
        yield (in_asyncio, in_trio) if home == "asyncio" else (in_trio, in_asyncio)


async def enter(manager):
    async with manager:
        pass


async def read(manager):
    return manager.connection


CALLS = {
    "start": lambda manager: manager.start(),
    "start with a timeout": lambda manager: manager.start(timeout=1),
    "stop": lambda manager: manager.stop(),
    "stop at once": lambda manager: manager.stop(timeout=0),
    "run": lambda manager: manager.run(),
    "wait_closed": lambda manager: manager.wait_closed(),
    "enter": enter,
    "exit": lambda manager: manager.__aexit__(None, None, None),
    "connection": read,
}


@on_asyncio
@pytest.mark.parametrize("home", ["asyncio", "trio"])
async def test_F15_each_method_raises_in_the_other_loop_of_the_thread(home):
    async with both_loops(home) as (at_home, abroad):
        for call in CALLS:
            print("call:", call)
            await call_abroad(call, at_home, abroad)


async def call_abroad(call, at_home, abroad):
    probe = Probe()
    connection = await at_home(probe.__aenter__ if call == "exit" else probe.start)
    with pytest.raises(WrongEventLoopError):
        await abroad(lambda: CALLS[call](probe))
    assert probe.state is OPEN
    assert await at_home(probe.start) is connection
    assert await at_home(lambda: read(probe)) is connection
    await at_home(probe.stop)
    assert probe.state is CLOSED
    await abroad(probe.wait_closed)  # the run is over
    await abroad(probe.start)
    with pytest.raises(WrongEventLoopError):
        await at_home(probe.stop)
    await abroad(probe.stop)
    assert probe.entered == probe.exited
    assert len(probe.entered) == 2


@on_asyncio
@pytest.mark.parametrize("home", ["asyncio", "trio"])
async def test_F15_an_attempt_in_progress_cannot_be_used_in_the_other_loop(home):
    async with both_loops(home) as (at_home, abroad):
        probe = Probe(anyio.sleep_forever)

        async def begin():
            with pytest.raises(ConnectionStoppedError):
                await probe.start()

        async def look():
            for call in ("start", "stop", "wait_closed", "run"):
                with pytest.raises(WrongEventLoopError):
                    await CALLS[call](probe)
            assert probe.state is OPENING

        async def until_it_is_opening():
            while not probe.entered:
                await checkpoint()

        task = asyncio.ensure_future(at_home(begin))
        await at_home(until_it_is_opening)
        await abroad(look)
        await at_home(probe.stop)
        await task
        assert probe.state is CLOSED


@on_asyncio
async def test_F15_managers_of_both_loops_work_at_the_same_time():
    async with guest() as in_trio:
        probes = {in_asyncio: Probe(), in_trio: Probe()}
        for loop, probe in probes.items():
            await loop(probe.start)
        for loop, probe in probes.items():
            with pytest.raises(WrongEventLoopError):
                await loop(next(other for other in probes.values() if other is not probe).stop)
            assert probe.state is OPEN
        await in_asyncio(probes[in_asyncio].stop)
        assert probes[in_trio].state is OPEN
        for loop, probe in probes.items():
            probe.start_timeout = 2
            await loop(probe.start)
            await loop(lambda probe=probe: probe.stop(timeout=1))
            await loop(lambda probe=probe: enter(probe))
            assert probe.state is CLOSED


@on_asyncio
@pytest.mark.parametrize("home", ["asyncio", "trio"])
async def test_F15_a_loss_can_be_reported_in_the_other_loop(home):
    probe = Probe()
    async with both_loops(home) as (at_home, abroad):
        await at_home(probe.start)

        async def report():
            probe.connection_lost(OSError("reset"))

        await abroad(report)
        with pytest.raises(ConnectionLostError) as caught:
            await at_home(probe.wait_closed)
        assert str(caught.value.__cause__) == "reset"


@on_asyncio
@pytest.mark.parametrize("home", ["asyncio", "trio"])
async def test_F15_a_callback_can_read_the_connection_of_its_own_loop_only(home):
    loop = asyncio.get_running_loop()
    probe = Probe()
    seen = {}

    def look(side):
        try:
            seen[side] = probe.connection
        except WrongEventLoopError as error:
            seen[side] = error

    async def in_a_callback_of_trio():
        import trio

        trio.lowlevel.current_trio_token().run_sync_soon(look, "trio")
        while "trio" not in seen:
            await trio.lowlevel.checkpoint()

    async with both_loops(home) as (at_home, abroad):
        in_trio = at_home if home == "trio" else abroad
        connection = await at_home(probe.start)
        loop.call_soon(look, "asyncio")
        while "asyncio" not in seen:
            await asyncio.sleep(0)
        await in_trio(in_a_callback_of_trio)
        assert seen.pop(home) is connection
        [refused] = seen.values()
        assert isinstance(refused, WrongEventLoopError)
        await at_home(probe.stop)


@on_asyncio
@pytest.mark.parametrize("home", ["asyncio", "trio"])
async def test_F15_a_callback_in_either_loop_can_report_a_loss(home):
    loop = asyncio.get_running_loop()
    async with both_loops(home) as (at_home, abroad):
        for side in ("asyncio", "trio"):
            probe = Probe()
            await at_home(probe.start)

            async def report(probe=probe):
                import trio

                trio.lowlevel.current_trio_token().run_sync_soon(probe.connection_lost)

            if side == "asyncio":
                loop.call_soon(probe.connection_lost)
            else:
                await (at_home if home == "trio" else abroad)(report)
            with pytest.raises(ConnectionLostError):
                await at_home(probe.wait_closed)


@on_asyncio
async def test_F15_an_inner_manager_of_one_loop_cannot_be_opened_in_the_other():
    class Outer(ConnectionManager[object]):
        @asynccontextmanager
        async def open_connection(self):
            async with self.open_inner(inner) as connection:
                yield connection

    inner = Probe(name="inner")
    first, second = Outer(name="first"), Outer(name="second")
    async with guest() as in_trio:
        await in_asyncio(first.start)
        with pytest.raises(RuntimeError, match="inner"):
            await in_trio(second.start)
        assert first.state is OPEN
        await in_asyncio(first.stop)
        await in_trio(second.start)
        with pytest.raises(WrongEventLoopError):
            await in_asyncio(second.stop)
        await in_trio(second.stop)


# The end of a loop.


class Held:
    """A connection that awaits nothing on exit, so that the garbage collector can close it."""

    def __init__(self, opened):
        self.opened = opened

    async def __aenter__(self):
        connection = Thing()
        self.opened.append(weakref.ref(connection))
        return connection

    async def __aexit__(self, *_):
        return None


class Hanging(Held):
    """A connection that waits while it opens or closes, until the garbage collector closes it."""

    def __init__(self, opened, phase):
        super().__init__(opened)
        self.phase = phase

    async def __aenter__(self):
        if self.phase == "opening":
            await forever()
        return await super().__aenter__()

    async def __aexit__(self, *_):
        if self.phase == "closing":
            await forever()


async def forever():
    """Ignores cancellations, until the garbage collector closes it."""
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()


def new_loop(options):
    loop = options.get("loop_factory", asyncio.new_event_loop)()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending"
    return loop


@pytest.fixture
def unraisable(monkeypatch):
    """Returns a list of the exceptions that Python would print as unraisable."""
    collect_silently()
    found = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: found.append(repr(args.exc_value)))
    return found


@pytest.mark.parametrize("end", ["stopped", "ended", "abandoned"])
def test_F17_a_loop_is_freed_with_all_that_was_open_in_it(end, anyio_backend, unraisable):
    for failed in (False, True):
        print("failed:", failed)
        free_a_loop(end, failed, anyio_backend, unraisable)


def free_a_loop(end, failed, anyio_backend, unraisable):
    name, options = anyio_backend
    opened = []
    references = []

    async def main():
        manager = ConnectionManager.from_factory(lambda: Held(opened), name="held")
        references.append(weakref.ref(manager))
        references.append(weakref.ref(anyio.lowlevel.current_token().native_token))
        await manager.start()
        if failed:
            manager.connection_lost()
            with suppress(ConnectionLostError):
                await manager.wait_closed()
            await manager.start()
        if end == "stopped":
            await manager.stop()
        references.append(weakref.ref(manager._life.run))

    def use():
        if name == "trio":
            import trio

            if end == "abandoned":
                with pytest.raises(trio.TrioInternalError):
                    trio.run(crash_after, main)
            else:
                trio.run(main)
        elif end == "abandoned":
            loop = new_loop(options)
            loop.run_until_complete(main())
            loop.close()
        else:
            anyio.run(main, backend=name, backend_options=options)

    use()
    references += opened
    assert len(references) == 3 + len(opened)
    collect()
    assert [reference() for reference in references if reference() is not None] == []
    if name != "trio" or end != "abandoned":  # a crash of trio leaves its own coroutines behind
        assert unraisable == []


async def crash_after(main):
    import trio

    async def crash():
        raise LookupError

    await main()
    trio.lowlevel.spawn_system_task(crash)
    await trio.sleep_forever()


WAITS = {
    "stop": ("closing", lambda manager: manager.stop()),
    "stop forever": ("closing", lambda manager: manager.stop(timeout=None)),
    "forced stop": ("closing", lambda manager: manager.stop(timeout=0)),
    "start": ("opening", lambda manager: manager.start()),
    "start with a timeout": ("opening", lambda manager: manager.start(timeout=9)),
    "run": ("opening", lambda manager: manager.run()),
    "run, open": ("open", lambda manager: manager.run()),
    "wait_closed": ("open", lambda manager: manager.wait_closed()),
    "enter": ("opening", enter),
    "exit": ("closing", enter),
}


async def wait_in(wait):
    """Returns a coroutine of a call that will wait."""
    phase, call = WAITS[wait]
    manager = ConnectionManager.from_factory(lambda: Hanging([], phase), name="hanging")
    if wait in {"stop", "stop forever", "forced stop", "wait_closed"}:
        await manager.start()
    return call(manager)


# Trio ends all tasks before a run ends, also if it crashes.


@on_asyncio
def test_F18_a_waiting_task_that_is_collected_with_its_loop_prints_nothing(
    anyio_backend, unraisable, caplog
):
    for wait in WAITS:
        print("wait:", wait)
        collected = []
        abandon(wait, anyio_backend[1], partial(note_collection, collected))
        assert not collected
        collect()
        assert collected == [1]
        assert unraisable == []
        assert not caplog.records


def note_collection(collected, coroutine):
    weakref.finalize(coroutine, collected.append, 1)


def abandon(wait, options, note):
    """Closes an asyncio loop in which a call is waiting."""
    loop = new_loop(options)

    async def main():
        coroutine = await wait_in(wait)
        note(coroutine)
        task = loop.create_task(coroutine)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done()

    loop.run_until_complete(main())
    loop.close()


@on_asyncio
def test_F18_a_waiting_call_can_be_closed_outside_of_any_loop(anyio_backend, unraisable):
    for wait in WAITS:
        print("wait:", wait)
        coroutines = []
        abandon(wait, anyio_backend[1], coroutines.append)
        [coroutine] = coroutines
        coroutine.close()
        assert coroutine.cr_frame is None
        del coroutine
        coroutines.clear()
        collect()
        assert unraisable == []


async def start_and_stop(manager):
    cancelled = asyncio.ensure_future(manager.start())
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    await manager.start(timeout=9)
    await manager.stop()
    await manager.start()
    manager.connection_lost()
    await manager.stop(timeout=9)


@on_asyncio
def test_F17_a_loop_that_is_closed_after_any_iteration_is_freed_without_a_message(
    anyio_backend, unraisable, caplog
):
    iterations = 1
    while close_after(iterations, anyio_backend[1]):
        print("iterations:", iterations)
        collect()
        # Python warns about each task that has not taken its first step.
        assert [message for message in unraisable if "never awaited" not in message] == []
        iterations += 1
    assert iterations > 10
    assert {record.levelname for record in caplog.records} == {"WARNING"}  # the loss


def close_after(iterations, options):
    """Closes a loop after that many iterations. Returns whether a call was still waiting."""
    loop = new_loop(options)
    probe = Probe()
    task = loop.create_task(start_and_stop(probe))
    for _ in range(iterations):
        loop.call_soon(loop.stop)
        loop.run_forever()
    loop.close()
    return not task.done()


@pytest.mark.parametrize("how", ["main returns", "main raises"])
def test_F24_the_end_of_a_loop_is_named_as_the_reason_of_a_loss(how, anyio_backend, anyio_backend_name):
    probe = Probe()

    async def main():
        await probe.start()
        if how == "main raises":
            raise LookupError

    with suppress(LookupError):
        if anyio_backend_name == "trio":
            import trio

            trio.run(main)
        else:
            anyio.run(main, backend="asyncio", backend_options=anyio_backend[1])
    assert probe.state is FAILED
    assert type(probe.exception) is ConnectionLostError
    text = str(probe.exception)
    assert "the event loop was shut down while the connection was open" in text
    assert "stop()" in text
    assert "from outside" not in text


@on_asyncio
async def test_F24_a_cancellation_of_the_owner_by_other_code_is_named_as_before():
    probe = Probe()
    await probe.start()
    [owner] = [task for task in asyncio.all_tasks() if task.get_name() == "owner task of probe"]
    owner.cancel()
    with pytest.raises(ConnectionLostError, match="its owner task was cancelled from outside"):
        await probe.wait_closed()
    assert "event loop" not in str(probe.exception)


# Nothing leaves the owner task.


class Careless(ConnectionManager[object]):
    """A manager whose connection is `kind`, a class of connections."""

    def __init__(self, kind):
        super().__init__(name="careless")
        self.kind = kind

    def open_connection(self):
        return self.kind()


class Forgetful:
    """Enters `make()` and forgets to exit it."""

    fails = False

    @staticmethod
    def make():
        raise NotImplementedError

    async def __aenter__(self):
        self.forgotten = self.make()
        if hasattr(self.forgotten, "__aenter__"):
            await self.forgotten.__aenter__()
        else:
            self.forgotten.__enter__()
        await checkpoint()
        if self.fails:
            raise OSError("while opening")
        return self

    async def __aexit__(self, *_):
        await checkpoint()


class TaskGroup(Forgetful):
    make = staticmethod(anyio.create_task_group)


class TaskGroupWhileOpening(TaskGroup):
    fails = True


class TaskGroupWithChild(TaskGroup):
    async def __aenter__(self):
        await super().__aenter__()
        self.forgotten.start_soon(anyio.sleep, 0.01)
        return self


class Scope(Forgetful):
    make = staticmethod(anyio.CancelScope)


class ScopeWhileOpening(Scope):
    fails = True


class CancelledScope(Scope):
    async def __aexit__(self, *_):
        self.forgotten.cancel()


class TwoScopes(Scope):
    """Forgets two scopes."""

    async def __aenter__(self):
        self.other = anyio.CancelScope()
        self.other.__enter__()
        return await super().__aenter__()


class WrongOrder(TwoScopes):
    """Exits the outer of two scopes first."""

    async def __aexit__(self, *exc_info):
        try:
            self.other.__exit__(*exc_info)
        finally:
            self.forgotten.__exit__(*exc_info)


class Twice(Scope):
    """Exits a scope twice."""

    async def __aexit__(self, *exc_info):
        self.forgotten.__exit__(*exc_info)
        self.forgotten.__exit__(*exc_info)


class Elsewhere(Scope):
    """Exits a scope in another task."""

    async def __aexit__(self, *exc_info):
        async def leave():
            self.forgotten.__exit__(*exc_info)

        async with anyio.create_task_group() as tg:
            tg.start_soon(leave)


def nursery():
    import trio

    return trio.open_nursery()


def trio_scope():
    import trio

    return trio.CancelScope()


class Nursery(Forgetful):
    make = staticmethod(nursery)


class NurseryWhileOpening(Nursery):
    fails = True


class NurseryWithChildren(Nursery):
    async def __aenter__(self):
        import trio

        self.forgotten = nursery()
        inner = await self.forgotten.__aenter__()
        inner.start_soon(trio.sleep_forever)
        inner.start_soon(trio.sleep, 0)
        return self


class NurseryWithCrash(Nursery):
    async def __aenter__(self):
        self.forgotten = nursery()
        inner = await self.forgotten.__aenter__()
        inner.start_soon(raises(LookupError("crash")))
        return self


class TrioScope(Forgetful):
    make = staticmethod(trio_scope)


CARELESS = [
    *(TaskGroup, TaskGroupWhileOpening, TaskGroupWithChild, Scope, ScopeWhileOpening, CancelledScope),
    *(TwoScopes, WrongOrder, Twice, Elsewhere),
]
CARELESS_ON_TRIO = [Nursery, NurseryWhileOpening, NurseryWithChildren, NurseryWithCrash, TrioScope]


class NurseryWithoutScope(Held):
    """Exits the cancel scope of a nursery, but not the nursery."""

    async def __aenter__(self):
        inner = await nursery().__aenter__()
        inner.cancel_scope.__exit__(None, None, None)
        return self


class Bystanders:
    """Another task and another manager, which a failing run must not affect."""

    def __init__(self):
        self.probe = Probe(name="bystander")
        self.was_cancelled = False

    async def __aenter__(self):
        self.task_group = await anyio.create_task_group().__aenter__()
        self.task_group.start_soon(self.stand_by)
        await self.probe.start()

    async def stand_by(self):
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.was_cancelled = True
            raise

    async def __aexit__(self, *exc_info):
        unaffected = self.probe.state is OPEN and not self.was_cancelled
        await self.probe.stop()
        self.task_group.cancel_scope.cancel()
        await self.task_group.__aexit__(*exc_info)
        assert exc_info[0] is not None or unaffected


async def outcome(call):
    """Returns what `call` raises, or `None`."""
    try:
        await call()
    except anyio.get_cancelled_exc_class():
        raise
    except BaseException as raised:
        return raised
    return None


def check_careless(kind, end, anyio_backend):
    async def main():
        async with Bystanders():
            manager = Careless(kind)
            failed = await outcome(manager.start)
            if failed is None:
                if end == "lost":
                    manager.connection_lost()
                assert await outcome(lambda: manager.stop(timeout=0 if end == "forced" else 1)) is None
            else:
                assert isinstance(failed, (OSError, RuntimeError, BaseExceptionGroup))
            with suppress(Exception):
                await manager.wait_closed()
            assert manager.state is FAILED
            assert manager.exception is not None
            await checkpoint()
            manager.kind = lambda: Held([])
            await manager.start()
            await manager.stop()
            assert manager.state is CLOSED
        return "done"

    print("kind:", kind.__name__, "end:", end)
    assert run(main, anyio_backend) == "done"


ENDS = ["stopped", "forced", "lost"]


def test_F7_only_its_own_run_fails_if_a_connection_leaves_its_scopes_broken(anyio_backend):
    for kind, end in product(CARELESS, ENDS):
        check_careless(kind, end, anyio_backend)
    gc.collect()


def test_F7_only_its_own_run_fails_if_a_connection_leaves_its_nurseries_broken():
    for kind, end in product(CARELESS_ON_TRIO, ENDS):
        check_careless(kind, end, ("trio", {}))
    gc.collect()


def raise_it(kind):
    def fail(record):
        raise kind("logging is odd")

    return fail


@pytest.fixture(params=["filter", "handler", "filter of a handler"])
def raising_log(request):
    """Returns a function that makes the logger raise exceptions of a class from a level on."""
    logger = logging.getLogger("ownertask")
    level, handlers, filters = logger.level, logger.handlers[:], logger.filters[:]

    def install(kind, at_level):
        logger.handlers[:], logger.filters[:] = handlers, filters
        logger.setLevel(at_level)
        handler = logging.NullHandler()
        match request.param:
            case "filter":
                logger.addFilter(raise_it(kind))
            case "handler":
                handler.handle = raise_it(kind)
            case "filter of a handler":
                handler = logging.StreamHandler(io.StringIO())
                handler.addFilter(raise_it(kind))
        logger.addHandler(handler)

    yield install
    logger.setLevel(level)
    logger.handlers[:], logger.filters[:] = handlers, filters


@pytest.mark.parametrize("end", ["stopped", "closing raises", "lost", "opening raises", "stuck"])
def test_F7_logging_that_raises_affects_nothing(end, raising_log, anyio_backend, grace):
    async def main(kind, level):
        raising_log(kind, level)
        let_go = anyio.Event()

        async def refuse():
            with anyio.CancelScope(shield=True):
                await let_go.wait()

        error = OSError("no")
        probe = Probe()
        if end == "closing raises":
            probe.closing = raises(error)
        elif end == "opening raises":
            probe.opening = raises(error)
        elif end == "stuck":
            probe.closing = refuse
        async with Bystanders():
            assert await outcome(probe.start) is (error if end == "opening raises" else None)
            if end == "lost":
                probe.connection_lost(error)
                assert type(await outcome(probe.wait_closed)) is ConnectionLostError
            stopped = await outcome(lambda: probe.stop(0 if end == "stuck" else 1))
            assert type(stopped) is (StopTimeoutError if end == "stuck" else type(None))
            let_go.set()
            await outcome(probe.wait_closed)
            assert probe.state in {CLOSED if end in {"stopped", "stuck"} else FAILED, FAILED}
            probe.opening = probe.closing = checkpoint
            await probe.start()
            await probe.stop()
            assert probe.state is CLOSED
        return "done"

    for kind, level in product([LookupError, Custom], [logging.DEBUG, logging.WARNING]):
        print("the log raises", kind.__name__, "from level", level)
        assert run(partial(main, kind, level), anyio_backend) == "done"


def test_F17_a_manager_that_lives_does_not_keep_the_loop_of_its_last_run(anyio_backend):
    manager = ConnectionManager.from_factory(lambda: Held([]), name="held")
    references = []

    async def main():
        references.append(weakref.ref(anyio.lowlevel.current_token().native_token))
        async with manager:
            pass

    run(main, anyio_backend)
    gc.collect()
    if anyio_backend[0] == "asyncio":  # a trio token refers to nothing of its run
        assert references[0]() is None
    run(main, anyio_backend)


def test_F15_trio_run_in_a_task_of_asyncio_is_told_apart():
    """Notebooks, for example, run their cells in a task of asyncio."""
    trio = pytest.importorskip("trio")
    at_home, abroad = Probe(name="at home"), Probe(name="abroad")

    async def inside():
        async with abroad as connection:
            assert abroad.connection is connection
            with pytest.raises(WrongEventLoopError):
                await at_home.stop()

    async def main():
        async with at_home as connection:
            trio.run(inside)
            assert at_home.connection is connection

    asyncio.run(main())


def test_F7_a_connection_that_forgets_a_nursery_without_a_scope_does_not_end_the_trio_run():
    async def main():
        async with Bystanders():
            manager = ConnectionManager.from_factory(lambda: NurseryWithoutScope([]))
            await manager.start()
            await manager.stop()
        return manager.state

    assert run(main, ("trio", {})) is CLOSED


def test_C8_stop_works_after_the_loop_was_closed_in_which_a_start_waited_for_a_close():
    async def begin():
        await probe.start()
        closing = asyncio.ensure_future(probe.stop())
        while probe.state is not CLOSING:
            await checkpoint()
        starting = asyncio.ensure_future(probe.start())
        while not probe._life.run.queued:
            await checkpoint()
        return closing, starting

    loop = asyncio.new_event_loop()
    probe = Probe(closing=anyio.sleep_forever)
    tasks = loop.run_until_complete(begin())
    loop.close()
    asyncio.run(probe.stop())
    assert probe.state is CLOSED
    del tasks
    collect_silently()
