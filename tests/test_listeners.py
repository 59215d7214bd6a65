"""Tests for `add_listener()`: each change of the state is announced in the event loop, in order."""

import asyncio
import contextvars
import copy
import functools
import gc
import logging
import os
import pickle
import signal
import sys
import threading
from itertools import pairwise

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint
from conftest import BACKENDS
from garbage import collect_silently
from probe import Probe, Stage, raises
from reopening import AT_ONCE, NOT_YET, Call, in_turn, settle

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionState,
    ConnectionStoppedError,
    ReconnectPolicy,
    StartTimeoutError,
)
from ownertask._signal_handlers import in_signal_handler
from ownertask.state import TRANSITIONS

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState

LIFE = [OPENING, OPEN, CLOSING, CLOSED]
LOSS = [OPENING, OPEN, CLOSING, FAILED]


class Custom(BaseException):
    pass


class Recorder:
    """A listener that records each change.

    Attributes:
        states: The new state of each change.
    """

    def __init__(self, manager, first=NEW):
        self.manager = manager
        self.states = []
        self._last = first
        manager.add_listener(self)

    def __call__(self, manager, old_state, new_state):
        assert manager is self.manager
        self.states.append(new_state)
        if old_state is not self._last or new_state not in TRANSITIONS[old_state]:
            self.states.append(f"{old_state} -> {new_state} after {self._last}")
        self._last = new_state

    def take(self):
        """Returns the changes since the last call."""
        states, self.states = self.states, []
        return states


# Order and pairs.


async def test_a_listener_hears_of_each_change_before_the_call_that_caused_it_returns():
    probe = Probe()
    recorder = Recorder(probe)
    assert recorder.take() == []
    for _ in range(3):  # the second and third run begin with CLOSED -> OPENING
        await probe.start()
        assert recorder.take() == [OPENING, OPEN]
        await probe.stop()
        assert recorder.take() == [CLOSING, CLOSED]
        await probe.stop()
        assert recorder.take() == []


async def test_the_arguments_are_the_manager_and_the_old_and_the_new_state():
    probe = Probe()
    calls = []
    probe.add_listener(lambda *args: calls.append(args))
    async with probe:
        pass
    async with probe:
        pass
    first = [(probe, NEW, OPENING), *((probe, *pair) for pair in pairwise(LIFE))]
    assert calls == [*first, (probe, CLOSED, OPENING), *first[1:]]


async def test_without_a_policy_the_manager_is_in_the_new_state_during_the_call():
    probe = Probe()
    seen = []
    probe.add_listener(lambda manager, _, new: seen.append((new, manager.state, manager.exception)))
    async with probe:
        assert seen == [(OPENING, OPENING, None), (OPEN, OPEN, None)]
    seen.clear()
    refused = OSError("refused")
    probe.opening = raises(refused)
    with pytest.raises(OSError, match="refused"):
        await probe.start()
    assert seen == [(OPENING, OPENING, None), (FAILED, FAILED, refused)]


async def test_failures_losses_timeouts_and_stops_are_announced():
    probe = Probe(raises(OSError("refused")))
    recorder = Recorder(probe)
    for _ in range(2):
        with pytest.raises(OSError, match="refused"):
            await probe.start()
        assert recorder.take() == [OPENING, FAILED]

    probe.opening = checkpoint
    for _ in range(2):
        await probe.start()
        probe.connection_lost()
        assert recorder.take() == [OPENING, OPEN, CLOSING]
        with pytest.raises(ConnectionLostError):
            await probe.wait_closed()
        assert recorder.take() == [FAILED]

    probe.opening = anyio.sleep_forever
    with pytest.raises(StartTimeoutError):
        await probe.start(timeout=0.01)
    assert recorder.take() == [OPENING, CLOSING, FAILED]

    opening = probe.opening = Stage()
    async with anyio.create_task_group() as tg:
        starting = Call(tg, probe.start)
        await opening.reached.wait()
        await probe.stop()
    assert type(starting.error) is ConnectionStoppedError
    assert recorder.take() == [OPENING, CLOSING, CLOSED]


async def test_the_end_of_a_failed_run_is_announced_before_the_beginning_of_the_next():
    probe = Probe()
    probe.reconnect = AT_ONCE
    recorder = Recorder(probe)
    await probe.start()
    for _ in range(3):
        probe.connection_lost()
        await probe.wait_open()
    assert recorder.take() == [*LOSS, *LOSS, *LOSS, OPENING, OPEN]

    async def fail_twice():
        await checkpoint()
        if len(probe.entered) < 7:
            raise OSError("refused")

    probe.opening = fail_twice
    probe.connection_lost()
    await probe.wait_open()
    assert recorder.take() == [CLOSING, FAILED, OPENING, FAILED, OPENING, FAILED, OPENING, OPEN]
    await probe.stop()
    assert recorder.take() == [CLOSING, CLOSED]
    assert len(probe.entered) == 7


async def test_a_stop_during_the_delay_and_the_end_of_a_policy_are_announced():
    probe = Probe()
    probe.reconnect = NOT_YET
    recorder = Recorder(probe)
    await probe.start()
    probe.connection_lost()
    await settle()
    assert recorder.take() == [*LOSS, OPENING]
    await probe.stop()
    assert recorder.take() == [CLOSING, CLOSED]

    probe.reconnect = ReconnectPolicy(initial_delay=0, jitter=0, max_retries=1)
    await probe.start()
    probe.opening = raises(OSError("refused"))
    probe.connection_lost()
    await settle()
    assert recorder.take() == [*LOSS, OPENING, FAILED]
    assert probe.state is FAILED


async def test_listeners_may_come_and_go_at_any_time():
    probe = Probe()
    early = Recorder(probe)
    await probe.start()
    late = Recorder(probe, first=OPEN)
    probe.remove_listener(early)
    await probe.stop()
    assert early.take() == [OPENING, OPEN]
    assert late.take() == [CLOSING, CLOSED]


async def test_the_listeners_of_a_lent_manager_hear_nothing():
    class Outer(ConnectionManager[object]):
        def open_connection(self):
            return self.open_inner(probe)

    probe, outer = Probe(), Outer(name="outer")
    inner_recorder, recorder = Recorder(probe), Recorder(outer)
    await outer.start()
    probe.connection_lost()
    await settle()
    assert inner_recorder.take() == []
    assert recorder.take() == LOSS


async def test_a_subclass_that_forgets_to_call_super_may_have_listeners():
    class ForgetsSuper(Probe):
        def __init__(self):
            self.opening = self.closing = checkpoint
            self.entered, self.exited = [], []

    probe = ForgetsSuper()
    probe.remove_listener(print)
    recorder = Recorder(probe)
    async with probe:
        pass
    assert recorder.take() == LIFE


# The place where they are called.


class Place:
    """A listener that records where it is called."""

    def __init__(self):
        self.seen = []

    def __call__(self, manager, old, new):
        self.seen.append((new, here(), in_signal_handler()))


def here():
    """Returns the thread, and the event loop that is running in it."""
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_run():
            return threading.get_ident(), trio.lowlevel.current_trio_token()
    try:
        return threading.get_ident(), asyncio.get_running_loop()
    except RuntimeError:
        return threading.get_ident(), None


@in_turn("policy", [None, AT_ONCE])
@in_turn("where", ["a thread", "a loop in a thread", "a signal handler"])
async def test_a_listener_is_called_in_the_event_loop_also_if_the_change_was_caused_elsewhere(
    where, policy
):
    probe, place = Probe(), Place()
    probe.reconnect = policy
    probe.add_listener(place)
    await probe.start()
    report = functools.partial(probe.connection_lost, OSError("gone"))
    if where == "a thread":
        await anyio.to_thread.run_sync(report)
    elif where == "a loop in a thread":

        async def main():
            report()

        await anyio.to_thread.run_sync(anyio.run, main)
    else:
        previous = signal.signal(signal.SIGTERM, lambda *_: report())
        try:
            signal.raise_signal(signal.SIGTERM)
            assert [new for new, *_ in place.seen] == [OPENING, OPEN]
        finally:
            signal.signal(signal.SIGTERM, previous)
    await settle()
    await probe.stop()
    expected = LOSS if policy is None else [*LOSS, *LIFE]
    assert place.seen == [(new, here(), False) for new in expected]


# Changes that a listener causes.


class Shared:
    """Listeners that write to the same list."""

    def __init__(self, manager, *actions):
        self.calls = []
        self.number = len(actions)
        for number, action in enumerate(actions):
            manager.add_listener(functools.partial(self._call, number, action))

    def _call(self, number, action, manager, old, new):
        self.calls.append((number, old, new))
        action(manager, old, new)

    def changes(self):
        """Returns the changes. Each was announced to all listeners before the next."""
        changes = []
        for start in range(0, len(self.calls), self.number):
            group = self.calls[start : start + self.number]
            assert {number for number, *_ in group} == set(range(self.number)), self.calls
            [change] = {change for _, *pair in group for change in [tuple(pair)]}
            changes.append(change)
        return changes


def nothing(manager, old, new):
    pass


@in_turn("position", [0, 1, 2])
@in_turn("moment", [OPENING, OPEN])
async def test_a_change_that_a_listener_causes_is_announced_after_the_present_one(moment, position):
    probe = Probe()

    def lose(manager, old, new):
        if new is moment:
            manager.connection_lost(OSError("the listener"))
            assert manager.state is CLOSING

    actions = [nothing, nothing, nothing]
    actions[position] = lose
    shared = Shared(probe, *actions)
    with pytest.raises(ConnectionLostError, match="the listener"):
        await probe.start()
    with pytest.raises(ConnectionLostError, match="the listener"):
        await probe.wait_closed()
    expected = LOSS if moment is OPEN else [OPENING, CLOSING, FAILED]
    assert shared.changes() == list(pairwise([NEW, *expected]))


class Handler(logging.Handler):
    """Calls a function for each record, before the listeners hear of the change that caused it."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def emit(self, record):
        self.function(record.getMessage())


@pytest.fixture
def handle(caplog):
    caplog.set_level(logging.DEBUG, "ownertask")
    logger, handlers = logging.getLogger("ownertask"), []

    def add(function):
        handlers.append(Handler(function))
        logger.addHandler(handlers[-1])

    yield add
    for handler in handlers:
        logger.removeHandler(handler)


async def test_a_change_that_a_logging_handler_causes_is_announced_after_the_present_one(handle):
    probe = Probe(name="probe")
    recorder = Recorder(probe)
    handle(lambda text: probe.connection_lost() if text.endswith("-> open") else None)
    with pytest.raises(ConnectionLostError):
        await probe.start()
    assert recorder.take() == LOSS


@pytest.mark.parametrize("cause", ["listener", "closing -> failed", "the connection was lost"])
async def test_a_stop_at_the_end_of_a_failed_run_is_announced_after_the_beginning_of_the_next(
    cause, handle, asyncio_only
):
    probe = Probe(name="probe")
    probe.reconnect = NOT_YET
    recorder = Recorder(probe)
    stops = []

    def stop(*_):  # the first step of an eager task is taken at once
        stops.append(asyncio.get_running_loop().create_task(probe.stop()))

    if cause == "listener":
        probe.add_listener(lambda _manager, _old, new: stop() if new is FAILED else None)
    else:
        handle(lambda text: stop() if text.endswith(cause) else None)
    await probe.start()
    probe.connection_lost()
    await settle()
    await stops[0]
    assert recorder.take() == [*LOSS, OPENING, CLOSING, CLOSED]


async def test_a_listener_may_report_a_loss_at_each_change():
    probe = Probe()

    def lose(manager, old, new):
        manager.connection_lost(OSError(new.value))

    shared = Shared(probe, lose, lose)
    with pytest.raises(ConnectionLostError, match="opening"):
        await probe.start()
    await settle()
    assert shared.changes() == list(pairwise([NEW, OPENING, CLOSING, FAILED]))


async def test_a_listener_may_lose_another_manager_whose_listener_loses_the_first():
    first, second = Probe(name="first"), Probe(name="second")
    await first.start()
    await second.start()
    recorders = Recorder(first, OPEN), Recorder(second, OPEN)
    first.add_listener(lambda *_: second.connection_lost())
    second.add_listener(lambda *_: first.connection_lost())
    first.connection_lost()
    await settle()
    assert [recorder.take() for recorder in recorders] == [[CLOSING, FAILED]] * 2


@in_turn("position", [0, 1, 2])
async def test_a_listener_may_remove_itself_and_others(position):
    probe = Probe()
    recorders = []

    def remove(manager, old, new):
        if new is OPEN:
            manager.remove_listener(remove)
            manager.remove_listener(recorders[1])
        else:
            assert new is OPENING

    for number in range(3):
        if number == position:
            probe.add_listener(remove)
        recorders.append(Recorder(probe))
    async with probe:
        pass
    assert recorders[0].take() == recorders[2].take() == LIFE
    assert recorders[1].take() in ([OPENING], [OPENING, OPEN])


async def test_a_listener_may_add_another_which_hears_of_the_changes_that_follow():
    probe = Probe()
    added = []
    probe.add_listener(lambda manager, _, new: manager.add_listener(add(new)))

    def add(state):
        states = []
        added.append((state, states))
        return lambda manager, old, new: states.append(new)

    async with probe:
        pass
    assert [state for state, _ in added] == LIFE
    for state, states in added:
        following = LIFE[LIFE.index(state) + 1 :]
        assert states in (following, [state, *following])


@in_turn("end", [CLOSED, FAILED])
async def test_a_task_that_a_listener_creates_may_start_the_manager_again(end, anyio_backend_name):
    probe = Probe()
    recorder = Recorder(probe)
    tasks = []

    def restart(manager, old, new):
        if new is end and len(probe.entered) < 4:
            if anyio_backend_name == "asyncio":
                # Eager tasks begin to run before this call returns.
                tasks.append(asyncio.get_running_loop().create_task(manager.start()))
            else:
                tg.start_soon(manager.start)

    probe.add_listener(restart)
    late = Recorder(probe)
    async with anyio.create_task_group() as tg:
        await probe.start()
        for number in range(1, 5):
            assert len(probe.entered) == number
            if end is FAILED:
                probe.connection_lost()
            else:
                await probe.stop()
            await settle()
    expected = (LOSS if end is FAILED else LIFE) * 4
    assert recorder.take() == late.take() == expected
    assert len(probe.exited) == 4
    for task in tasks:
        await task


# Context variables.

variable = contextvars.ContextVar("variable", default="default")


@in_turn("policy", [None, AT_ONCE])
async def test_a_listener_runs_in_the_context_variables_of_the_call_that_added_it(policy):
    probe = Probe()
    probe.reconnect = policy
    seen = []
    for value in ("first", "second"):
        variable.set(value)
        probe.add_listener(lambda manager, old, new, value=value: seen.append((value, variable.get())))
    variable.set("start")
    await probe.start()
    variable.set("loss")
    probe.connection_lost()
    await settle()
    variable.set("stop")
    await probe.stop()
    assert len(seen) == (8 if policy is None else 16)
    assert all(value == found for value, found in seen)
    assert variable.get() == "stop"


@in_turn("moment", [OPENING, OPEN, CLOSING, FAILED])
async def test_a_task_that_a_listener_creates_is_not_part_of_the_run(moment):
    """A late report by a task of the run would do nothing, and its `start()` might raise."""
    probe = Probe()
    probe.reconnect = AT_ONCE
    connections = []

    async def start_and_report():
        connections.append(await probe.start())
        await go_on.wait()
        probe.connection_lost(OSError("the listener's task"))

    def listen(manager, old, new):
        if new is moment:
            probe.remove_listener(listen)
            tg.start_soon(start_and_report)

    go_on = anyio.Event()
    async with anyio.create_task_group() as tg:
        await probe.start()
        probe.add_listener(listen)
        for _ in range(2):
            probe.connection_lost()
            await settle()
        assert probe.state is OPEN
        assert len(connections) == 1
        entered = len(probe.entered)
        go_on.set()
        await settle()
        assert len(probe.entered) == entered + 1
        await probe.stop()


async def test_start_in_a_task_that_a_listener_creates_joins_the_attempt():
    """In a task of the run, it would raise an `OwnerTaskError`."""
    probe = Probe()
    probe.reconnect = AT_ONCE
    calls = []

    def listen(manager, old, new):
        if new is OPENING:
            calls.append(Call(tg, probe.start))
            calls.append(Call(tg, probe.wait_open))

    probe.add_listener(listen)
    async with anyio.create_task_group() as tg:
        await probe.start()
        first = probe.connection
        await settle()
        attempt = probe.opening = Stage()
        probe.connection_lost()
        await attempt.reached.wait()
        attempt.let_go.set()
        await settle()
        assert [call.error for call in calls] == [None] * 4
        assert [call.result for call in calls] == [first, first, probe.connection, probe.connection]
        await probe.stop()


# Listeners that raise.


@pytest.mark.parametrize("kind", [LookupError, Custom, SystemExit])
async def test_a_listener_that_raises_is_logged_and_hurts_nobody(kind, caplog):
    probe = Probe()
    errors = []

    def fail(manager, old, new):
        errors.append(kind("from the listener"))
        raise errors[-1]

    before = Recorder(probe)
    probe.add_listener(fail)
    after = Recorder(probe)
    await probe.start()
    assert probe.state is OPEN
    await probe.stop()
    await probe.start()
    probe.connection_lost(OSError("gone"))
    with pytest.raises(ConnectionLostError, match="gone"):
        await probe.wait_closed()
    assert before.take() == after.take() == [*LIFE, *LOSS]
    logged = [
        record
        for record in caplog.records
        if record.exc_info and record.exc_info[1] in errors and record.levelno >= logging.WARNING
    ]
    assert [record.exc_info[1] for record in logged] == errors
    assert len(errors) == 8
    for record in logged:
        assert record.name == "ownertask"
        assert "probe" in record.getMessage()


async def test_neither_a_listener_nor_a_logger_that_raises_hurts_anybody(capsys):
    class Broken(logging.Handler):
        def emit(self, record):
            raise OSError("disk full")

    def fail(manager, old, new):
        raise LookupError

    logger, handler = logging.getLogger("ownertask"), Broken()
    logger.addHandler(handler)
    try:
        probe = Probe()
        probe.add_listener(fail)
        recorder = Recorder(probe)
        async with probe:
            pass
    finally:
        logger.removeHandler(handler)
    assert recorder.take() == LIFE


# Adding and removing.


async def test_a_callback_that_is_added_twice_is_called_once_and_removed_at_once():
    class Listener:
        def __init__(self):
            self.states = []

        def listen(self, manager, old, new):
            self.states.append(new)

    probe, listener = Probe(), Listener()
    states = []

    def listen(manager, old, new):
        states.append(new)

    for _ in range(2):
        probe.add_listener(listen)
        probe.add_listener(listener.listen)  # bound methods are equal, but not identical
    await probe.start()
    assert states == listener.states == [OPENING, OPEN]
    probe.remove_listener(listen)
    probe.remove_listener(listener.listen)
    await probe.stop()
    assert states == listener.states == [OPENING, OPEN]
    probe.add_listener(listener.listen)
    await probe.start()
    assert listener.states == [OPENING, OPEN, OPENING, OPEN]
    await probe.stop()


async def test_equal_methods_of_two_objects_are_two_listeners():
    probe = Probe()
    first, second = Recorder(probe), Recorder(probe)
    probe.remove_listener(first.__call__)  # was not added
    probe.remove_listener(second)
    async with probe:
        pass
    assert first.take() == LIFE
    assert second.take() == []


async def test_removing_an_unknown_callback_is_no_error():
    probe = Probe()
    probe.remove_listener(nothing)
    probe.add_listener(nothing)
    probe.remove_listener(nothing)
    probe.remove_listener(nothing)
    async with probe:
        probe.remove_listener(nothing)


@pytest.mark.parametrize("callback", [None, 3, "print", ConnectionState.OPEN, []], ids=str)
def test_a_listener_must_be_callable(callback):
    probe = Probe()
    with pytest.raises(TypeError, match="^callback must be"):
        probe.add_listener(callback)
    assert probe.state is NEW


async def async_listener(manager, old, new):
    pass


class HasAsyncMethod:
    async def listen(self, manager, old, new):
        pass


@in_turn("callback", [async_listener, HasAsyncMethod().listen, functools.partial(async_listener)])
async def test_a_listener_must_not_be_async(callback):
    probe = Probe()
    with pytest.raises(TypeError, match="^callback must .*(async|coroutine)"):
        probe.add_listener(callback)
    async with probe:  # it would create a coroutine that is never awaited, and warnings are errors
        pass


# Copies, forks and closed loops.


@in_turn("how", ["copy", "deepcopy", *range(pickle.HIGHEST_PROTOCOL + 1)])
async def test_a_copy_has_no_listeners(how):
    probe = Probe()
    probe.add_listener(lambda manager, old, new: states.append(new))  # cannot be pickled
    states = []
    async with probe:
        pass
    states.clear()
    is_pickled = isinstance(how, int)
    other = pickle.loads(pickle.dumps(probe, how)) if is_pickled else getattr(copy, how)(probe)
    recorder = Recorder(other)
    async with other:
        assert states == []
    assert recorder.take() == LIFE
    assert states == []
    async with probe:
        pass
    assert states == LIFE
    assert recorder.take() == []


class HeldOpen:
    """Awaits nothing on exit, so the garbage collector can close it."""

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        return None


ASYNCIO_LOOPS = {
    parameter.id: parameter.values[0][1]["loop_factory"]
    for parameter in BACKENDS
    if parameter.values[0][0] == "asyncio"
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("loop_factory", ASYNCIO_LOOPS.values(), ids=ASYNCIO_LOOPS)
def test_a_closed_loop_announces_nothing(loop_factory):
    manager = ConnectionManager.from_factory(HeldOpen, name="held")
    recorder = Recorder(manager)
    loop = loop_factory()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending"
    loop.run_until_complete(manager.start())
    assert recorder.take() == [OPENING, OPEN]
    loop.close()
    assert manager.state is CLOSED
    manager.connection_lost()
    assert recorder.take() == []

    async def cycle():
        async with manager:
            pass

    recorder._last = CLOSED  # the next run begins with CLOSED -> OPENING
    loop = loop_factory()
    try:
        loop.run_until_complete(cycle())
    finally:
        loop.close()
    assert recorder.take() == LIFE
    collect_silently()  # closes the coroutine of the first run
    gc.collect()
    assert recorder.take() == []
    assert manager.state is CLOSED


def test_a_fork_announces_nothing(monkeypatch, anyio_backend):
    probe = Probe()
    recorder = Recorder(probe)

    async def main():
        await probe.start()
        assert recorder.take() == [OPENING, OPEN]
        monkeypatch.setattr(os, "getpid", lambda: -1)
        assert probe.state is CLOSED
        await probe.stop()
        probe.connection_lost()
        assert recorder.take() == []
        monkeypatch.undo()
        await probe.stop()

    name, options = anyio_backend
    anyio.run(main, backend=name, backend_options=options)
    assert recorder.take() == [CLOSING, CLOSED]


async def test_a_keyboard_interrupt_in_a_listener_reaches_the_caller():
    def interrupt(manager, old, new):
        if new is OPENING:
            raise KeyboardInterrupt

    probe = Probe()
    probe.add_listener(interrupt)
    with pytest.raises(KeyboardInterrupt):
        await probe.start()
    await probe.wait_closed()
    assert probe.state is CLOSED
