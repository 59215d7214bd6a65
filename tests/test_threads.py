"""Tests for managers that are used in several threads, and for signal handlers.

Tests of many cases print each one, so the last line that a failed test printed names its case.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from conftest import BACKENDS
from probe import Probe, raises

import ownertask
from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionState,
    NotConnectedError,
    StartTimeoutError,
    WrongEventLoopError,
)
from ownertask._owner import Run
from ownertask.state import TRANSITIONS

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState

LOOPS = {parameter.id: parameter.values[0] for parameter in BACKENDS}
FAMILIES = ["asyncio", "trio"]


def run(function, loop):
    """Runs an async function in an event loop of its own, for at most five seconds."""

    async def bounded():
        with anyio.fail_after(5):
            return await function()

    name, options = LOOPS[loop]
    return anyio.run(bounded, backend=name, backend_options=options)


def in_threads(*functions, switch_interval=None):
    """Calls all functions at the same time, each in a thread. Returns what they return."""
    results = {}
    errors = []
    barrier = threading.Barrier(len(functions))

    def work(index, function):
        try:
            barrier.wait(5)
            results[index] = function()
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=work, args=item, name=f"worker {item[0]}", daemon=True)
        for item in enumerate(functions)
    ]
    before = sys.getswitchinterval()
    if switch_interval is not None:
        sys.setswitchinterval(switch_interval)
    try:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))
    finally:
        sys.setswitchinterval(before)
    assert not [thread.name for thread in threads if thread.is_alive()]
    if errors:
        raise BaseExceptionGroup(f"{len(errors)} of {len(functions)} threads failed", errors)
    return [results[index] for index in range(len(functions))]


# Each thread has its own loop and its own managers.


@pytest.mark.parametrize("mix", ["trio", "asyncio", "all"])
def test_F2_many_threads_can_each_run_managers_in_their_own_loops(mix):
    loops = list(LOOPS) if mix == "all" else [mix]

    def work(loop):
        async def main():
            probe = Probe()
            for _ in range(2):
                await probe.start()
                await probe.stop()
            async with probe:
                assert probe.state is OPEN

        for _ in range(2):
            run(main, loop)
        return "done"

    functions = [partial(work, loops[number % len(loops)]) for number in range(40)]
    assert in_threads(*functions, switch_interval=1e-6) == ["done"] * 40


def lines_in_ownertask(frame):
    return frame.f_code.co_filename.startswith(PACKAGE)


PACKAGE = str(Path(ownertask.__file__).parent)


@contextmanager
def traced(at_line):
    """Calls a function before each line of ownertask in this thread."""
    inside = False

    def trace(frame, event, _):
        nonlocal inside
        if not lines_in_ownertask(frame):
            return None
        if event == "line" and not inside:
            inside = True
            try:
                at_line(frame)
            finally:
                inside = False
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


# Two threads that begin at the same time: one gets the connection, the other is refused.


CALLS = {
    "start": lambda manager, _: manager.start(),
    "enter": lambda manager, _: manager.__aenter__(),
    "run": lambda manager, tg: tg.start(manager.run),
}


ROUNDS = 3


def begin_in_two_threads(loops, calls, managers):
    """Lets two threads begin at the same time. Returns each manager that began, and each error."""
    both = threading.Barrier(2)
    outcomes = []

    def work(index):
        manager, call = managers[index], CALLS[calls[index]]

        async def main():
            async with anyio.create_task_group() as tg:
                both.wait(5)
                try:
                    await call(manager, tg)
                except Exception as error:
                    outcomes.append(error)
                    both.wait(5)
                else:
                    outcomes.append(manager)
                    both.wait(5)  # the other thread has its outcome while the connection is open
                    await manager.stop()

        try:
            for _ in range(ROUNDS):
                run(main, loops[index])
                both.wait(5)
        except BaseException:
            both.abort()
            raise

    in_threads(partial(work, 0), partial(work, 1), switch_interval=1e-6)
    assert len(outcomes) == 2 * ROUNDS
    return outcomes


PAIRS = list(product(FAMILIES, repeat=2))
in_two_loops = pytest.mark.parametrize("loops", PAIRS, ids="-".join)


@in_two_loops
def test_F3_only_one_of_two_threads_gets_a_manager(loops):
    for calls in product(CALLS, repeat=2):
        print("calls:", *calls)
        probe = Probe()
        outcomes = begin_in_two_threads(loops, calls, [probe, probe])
        won = [outcome for outcome in outcomes if outcome is probe]
        refused = [outcome for outcome in outcomes if outcome is not probe]
        assert [type(error) for error in refused] == [WrongEventLoopError] * ROUNDS
        assert len(won) == ROUNDS
        assert probe.entered == probe.exited
        assert len(probe.entered) == ROUNDS
        assert probe.state is CLOSED


@in_two_loops
@pytest.mark.parametrize("managers", ["one manager", "an inner manager"])
def test_F3_one_of_two_starts_is_refused_if_another_thread_starts_at_any_line(loops, managers):
    """Before each line of a start, this thread stands still while another thread starts.

    If this thread holds a lock at that line, the other thread goes on later.
    """
    inner = probe = Probe(name="inner")
    other_manager = probe if managers == "one manager" else Outer(inner, "outer")

    def attempt(line):
        """Returns how many lines were executed, and what each thread got."""
        lines = 0
        outcomes = {}
        decided, release = threading.Event(), threading.Event()

        async def elsewhere():
            outcomes["there"] = await result(other_manager)
            decided.set()
            assert release.wait(5)
            if outcomes["there"] is None:
                await other_manager.stop()

        def work():
            try:
                run(elsewhere, loops[1])
            finally:
                decided.set()

        thread = threading.Thread(target=work, name="there", daemon=True)

        def at_line(_):
            nonlocal lines
            lines += 1
            if lines == line:
                thread.start()
                outcomes["waits"] = not decided.wait(0.03)  # a start takes 2 ms

        async def here():
            with traced(at_line):
                outcomes["here"] = await result(probe)
            if lines >= line:
                assert decided.wait(5)
            release.set()
            if outcomes["here"] is None:
                await probe.stop()

        try:
            run(here, loops[0])
        finally:
            release.set()
            if lines >= line:
                thread.join(10)
        return lines, outcomes.pop("waits", None), outcomes

    line = lines = 1
    while line <= lines:
        lines, waited, outcomes = attempt(line)
        if lines < line:
            break
        assert list(outcomes.values()).count(None) == 1, f"{outcomes} at line {line}"
        [error] = [error for error in outcomes.values() if error is not None]
        assert isinstance(error, RuntimeError)
        assert "inner" in str(error)
        if managers == "one manager":
            assert type(error) is WrongEventLoopError
        assert inner.entered == inner.exited
        assert inner.state is other_manager.state is CLOSED or managers != "one manager"
        line += 5 if waited else 1  # while this thread holds a lock, one line is like another
    assert line > 10


async def result(manager):
    """Returns what `start()` raises, or `None`."""
    try:
        await manager.start()
    except Exception as error:
        return error
    return None


class Outer(ConnectionManager[object]):
    def __init__(self, inner, name):
        super().__init__(name=name)
        self.inner = inner

    @asynccontextmanager
    async def open_connection(self):
        async with self.open_inner(self.inner) as connection:
            yield connection


@in_two_loops
def test_F3_only_one_of_two_managers_in_two_threads_gets_an_inner_one(loops):
    inner = Probe(name="inner")
    outers = [Outer(inner, "first"), Outer(inner, "second")]
    outcomes = begin_in_two_threads(loops, ("start", "start"), outers)
    errors = [outcome for outcome in outcomes if outcome not in outers]
    assert [isinstance(error, RuntimeError) and "inner" in str(error) for error in errors] == [
        True
    ] * ROUNDS
    assert inner.entered == inner.exited
    assert len(inner.entered) == ROUNDS


@in_two_loops
def test_F3_a_manager_is_either_started_or_lent_if_two_threads_try_both(loops):
    inner = Probe(name="inner")
    outer = Outer(inner, "outer")
    outcomes = begin_in_two_threads(loops, ("start", "start"), [inner, outer])
    errors = [outcome for outcome in outcomes if outcome is not inner and outcome is not outer]
    assert [isinstance(error, RuntimeError) and "inner" in str(error) for error in errors] == [
        True
    ] * ROUNDS
    assert inner.entered == inner.exited
    assert len(inner.entered) == ROUNDS


# Reading in another thread.


def observed(probe, function, loop):
    """Runs `function`. Returns what another thread could read before each line of ownertask."""
    rows = []

    def at_line(_):
        rows.append((probe.state, probe.exception))

    with traced(at_line):
        run(function, loop)
    rows.append((probe.state, probe.exception))
    return rows


def check_rows(rows, expected):
    states = [rows[0][0]]
    for (old, _), (new, exception) in pairwise(rows):
        if new is not old:
            assert new in TRANSITIONS[old], f"{old} -> {new}"
            states.append(new)
        assert (exception is not None) == (new is FAILED), f"{exception!r} while {new}"
    assert states == expected


async def failing_to_open(probe):
    probe.opening = raises(OSError("no"))
    with pytest.raises(OSError, match="no"):
        await probe.start()


async def failing_to_close(probe):
    probe.closing = raises(OSError("no"))
    await probe.start()
    await probe.stop()


async def losing(probe):
    await probe.start()
    probe.connection_lost()
    with pytest.raises(ConnectionLostError):
        await probe.wait_closed()


async def losing_from_a_thread(probe):
    await probe.start()
    await anyio.to_thread.run_sync(probe.connection_lost)
    with pytest.raises(ConnectionLostError):
        await probe.wait_closed()


async def stopping(probe):
    await probe.start()
    await probe.stop()


async def stopping_at_once(probe):
    await probe.start()
    await probe.stop(timeout=0)


async def cancelling(probe):
    probe.opening = anyio.sleep_forever
    with anyio.move_on_after(0.01):
        await probe.start()


async def timing_out(probe):
    probe.opening = anyio.sleep_forever
    probe.start_timeout = 0.01
    with pytest.raises(StartTimeoutError):
        await probe.start()


async def failing_twice(probe):
    await failing_to_open(probe)
    await failing_to_open(probe)


async def failing_and_opening(probe):
    await failing_to_open(probe)
    probe.opening = checkpoint
    await stopping(probe)


SEQUENCES = {
    failing_to_open: [NEW, OPENING, FAILED],
    failing_to_close: [NEW, OPENING, OPEN, CLOSING, FAILED],
    losing: [NEW, OPENING, OPEN, CLOSING, FAILED],
    losing_from_a_thread: [NEW, OPENING, OPEN, CLOSING, FAILED],
    stopping: [NEW, OPENING, OPEN, CLOSING, CLOSED],
    stopping_at_once: [NEW, OPENING, OPEN, CLOSING, CLOSED],
    cancelling: [NEW, OPENING, CLOSING, CLOSED],
    timing_out: [NEW, OPENING, CLOSING, FAILED],
    failing_twice: [NEW, OPENING, FAILED, OPENING, FAILED],
    failing_and_opening: [NEW, OPENING, FAILED, OPENING, OPEN, CLOSING, CLOSED],
}


@pytest.mark.parametrize("loop", LOOPS)
def test_F11_at_each_line_another_thread_reads_a_state_that_was_and_its_exception(loop):
    for function, expected in SEQUENCES.items():
        print("case:", function.__name__)
        probe = Probe()
        rows = observed(probe, partial(function, probe), loop)
        assert len(rows) > 30
        check_rows(rows, expected)


@pytest.mark.parametrize("loop", LOOPS)
def test_F11_a_state_read_in_the_moment_of_failing_was_not_closed(loop):
    """The reader has seen that the run is not over, and then the run fails before it reads on."""

    probe = Probe()
    fail, failed = threading.Event(), threading.Event()
    states = []

    def read(value_at):
        lines = 0

        def at_line(_):
            nonlocal lines
            lines += 1
            if lines == value_at:
                fail.set()
                assert failed.wait(5)

        with traced(at_line):
            states.append(probe.state)
        return lines >= value_at

    def read_from_outside(value_at):
        opened.wait(5)
        try:
            return read(value_at)
        finally:
            fail.set()

    async def main():
        await probe.start()
        opened.set()
        assert await anyio.to_thread.run_sync(fail.wait, 5)
        probe.connection_lost()
        with pytest.raises(ConnectionLostError):
            await probe.wait_closed()
        failed.set()

    value_at, goes_on = 0, True
    while goes_on:
        value_at += 1
        opened = threading.Event()
        fail.clear()
        failed.clear()
        _, goes_on = in_threads(lambda: run(main, loop), lambda at=value_at: read_from_outside(at))
    assert value_at > 2
    assert set(states) <= {OPEN, CLOSING, FAILED}


# Signal handlers.


def new_main_loop(loop):
    """Returns a function that runs an async function in a loop that has no timer and no other task."""
    name, options = LOOPS[loop]
    if name == "trio":
        import trio

        return trio.run
    # The debug mode of asyncio is left out: it is not idle.
    factory = options.get("loop_factory", asyncio.new_event_loop)

    def run_it(function):
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(function())

    return run_it


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no such timer")
@pytest.mark.parametrize("how", ["timer", "kill"])
@pytest.mark.parametrize("loop", LOOPS)
def test_F12_a_loss_reported_in_a_signal_handler_wakes_an_idle_loop(loop, how):
    probe = Probe()
    times = {}

    def report(*_):
        times.setdefault("reported", time.monotonic())
        probe.connection_lost(OSError("signal"))

    async def main():
        await probe.start()
        if how == "timer":
            signal.setitimer(signal.ITIMER_REAL, 0.05)
        else:
            killer.start()
        with pytest.raises(ConnectionLostError) as caught:
            await probe.wait_closed()
        times["woken"] = time.monotonic()
        assert str(caught.value.__cause__) == "signal"

    def kill():
        time.sleep(0.05)  # the loop should be idle by now, otherwise the test passes for nothing
        os.kill(os.getpid(), signal.SIGALRM)

    killer = threading.Thread(target=kill, name="killer", daemon=True)
    rescuer = threading.Timer(2.5, lambda: probe.connection_lost(OSError("rescued")))
    rescuer.daemon = True
    previous = signal.signal(signal.SIGALRM, report)
    rescuer.start()
    try:
        new_main_loop(loop)(main)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        rescuer.cancel()
        rescuer.join(5)
        if how == "kill":
            killer.join(5)
    assert times["woken"] - times["reported"] < 2
    assert probe.state is FAILED


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no such timer")
@pytest.mark.parametrize("loop", LOOPS)
def test_F12_a_loss_while_opening_reported_in_a_signal_handler_wakes_an_idle_loop(loop):
    event = None
    times = {}

    async def hang():
        nonlocal event
        event = anyio.Event()
        await event.wait()

    probe = Probe(hang)

    def report(*_):
        times.setdefault("reported", time.monotonic())
        probe.connection_lost(OSError("signal"))

    async def main():
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(ConnectionLostError):
            await probe.start()
        times["woken"] = time.monotonic()

    rescuer = threading.Timer(2.5, lambda: probe._life.run.loop.call_soon_threadsafe(event.set))
    rescuer.daemon = True
    previous = signal.signal(signal.SIGALRM, report)
    rescuer.start()
    try:
        new_main_loop(loop)(main)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        rescuer.cancel()
        rescuer.join(5)
    assert times["woken"] - times["reported"] < 2
    assert probe.state is FAILED


# Another loop in another thread.


async def read(manager):
    return manager.connection


ABROAD = {
    "start": lambda manager: manager.start(),
    "start with a timeout": lambda manager: manager.start(timeout=1),
    "stop": lambda manager: manager.stop(),
    "stop at once": lambda manager: manager.stop(timeout=0),
    "run": lambda manager: manager.run(),
    "wait_closed": lambda manager: manager.wait_closed(),
    "enter": lambda manager: manager.__aenter__(),
    "exit": lambda manager: manager.__aexit__(None, None, None),
    "connection": read,
}


async def test_F23_each_method_raises_in_the_loop_of_another_thread():
    for abroad, call in product(LOOPS, ABROAD):
        print("abroad:", abroad, "call:", call)
        probe = Probe()
        connection = await probe.__aenter__()

        async def use(probe=probe, call=call):
            with pytest.raises(WrongEventLoopError):
                await ABROAD[call](probe)

        await anyio.to_thread.run_sync(run, use, abroad)
        assert probe.connection is connection
        await probe.stop()
        assert probe.state is CLOSED


async def test_F23_threads_without_a_loop_can_read_the_connection():
    probe = Probe()

    def read():
        return probe.connection

    async with probe as connection:
        assert read() is connection
        assert await anyio.to_thread.run_sync(read) is connection
        seen = []
        thread = threading.Thread(target=lambda: seen.append(read()))
        thread.start()
        thread.join(5)
        assert seen == [connection]


@pytest.mark.parametrize("abroad", LOOPS)
async def test_F23_a_callback_in_another_loop_cannot_read_the_connection(abroad):
    probe = Probe()

    async def use():
        seen = []

        def callback():
            try:
                seen.append(probe.connection)
            except WrongEventLoopError as error:
                seen.append(error)

        if LOOPS[abroad][0] == "trio":
            import trio

            trio.lowlevel.current_trio_token().run_sync_soon(callback)
        else:
            asyncio.get_running_loop().call_soon(callback)
        await wait_all_tasks_blocked()
        [refused] = seen
        assert isinstance(refused, WrongEventLoopError)

    async with probe:
        await anyio.to_thread.run_sync(run, use, abroad)
        assert probe.state is OPEN


@pytest.mark.parametrize("abroad", LOOPS)
async def test_F23_a_manager_that_is_not_running_is_not_refused_in_another_loop(abroad):
    probe = Probe()

    async def use():
        with pytest.raises(NotConnectedError):
            await read(probe)
        await probe.wait_closed()
        await probe.stop()
        async with probe as connection:
            assert await read(probe) is connection

    await anyio.to_thread.run_sync(run, use, abroad)
    async with probe:
        pass
    await anyio.to_thread.run_sync(run, use, abroad)


@pytest.mark.parametrize("loops", list(product(FAMILIES, FAMILIES)), ids="-".join)
def test_F3_a_block_that_cannot_enter_does_not_touch_a_run_of_another_thread(loops, monkeypatch):
    """While the block waits for the end of a run, another thread begins one, and exits its own block."""
    probe = Probe()
    is_over, second_is_closing = threading.Event(), threading.Event()
    may_close_first, may_close_second = threading.Event(), threading.Event()
    errors = []

    async def wait_for(event):
        await anyio.to_thread.run_sync(event.wait, 5)

    async def waits():
        async def close():
            await wait_for(may_close_first)

        async def enter():
            try:
                await probe.__aenter__()
            except WrongEventLoopError as error:
                errors.append(error)
                may_close_second.set()

        probe.closing = close
        await probe.start()
        first = probe._life.run
        changed = Run.changed

        async def change_late(run, deadline=None):
            """When the block wakes up at the end of the run, another thread has begun one."""
            await changed(run, deadline)
            if run is first and run.is_over:
                is_over.set()
                await wait_for(second_is_closing)

        async with anyio.create_task_group() as tg:
            tg.start_soon(probe.stop)
            await wait_all_tasks_blocked()
            monkeypatch.setattr(Run, "changed", change_late)
            tg.start_soon(enter)
            await wait_all_tasks_blocked()
            may_close_first.set()

    async def uses():
        await wait_for(is_over)

        async def close():
            second_is_closing.set()
            await wait_for(may_close_second)

        probe.closing = close
        async with probe:
            pass
        assert probe.state is CLOSED

    in_threads(partial(run, waits, loops[0]), partial(run, uses, loops[1]))
    assert len(errors) == 1


def test_two_threads_that_use_a_new_manager_share_its_state(monkeypatch):
    """The other thread is faster: it creates the state while this one waits for the lock."""
    manager = ConnectionManager.from_factory(nullcontext)
    states = []

    class SlowLock:
        def __enter__(self):
            if not states:
                states.append(None)
                states[0] = manager._life

        def __exit__(self, *exc):
            pass

    monkeypatch.setattr("ownertask.manager.claiming", SlowLock())
    vars(manager).pop("_life", None)
    assert manager._life is states[0]


def test_two_threads_that_enter_the_first_blocks_share_them(monkeypatch):
    """The other thread is faster: it creates them while this one waits for the lock."""
    life = ConnectionManager.from_factory(nullcontext)._life
    blocks = []

    class SlowLock:
        def __enter__(self):
            if not blocks:
                blocks.append(None)
                blocks[0] = life.blocks

        def __exit__(self, *exc):
            pass

    monkeypatch.setattr("ownertask._life.claiming", SlowLock())
    assert life.blocks is blocks[0]
