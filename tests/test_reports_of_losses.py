"""Tests for `connection_lost(connection=...)`: only a report of the open connection has an effect."""

import asyncio
import contextvars
import os
import signal
import threading
from contextlib import asynccontextmanager
from functools import partial

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint
from probe import Probe, Stage
from reopening import AT_ONCE, REOPENING, Call, in_turn, reopen, settle

from ownertask import ConnectionLostError, ConnectionManager, ConnectionState

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


class Yielding(ConnectionManager[object]):
    """A manager whose runs yield the given values, one after another."""

    def __init__(self, *values):
        super().__init__(name="yielding")
        self.values = list(values)

    @asynccontextmanager
    async def open_connection(self):
        yield self.values.pop(0)


class Outer(ConnectionManager[object]):
    """Opens another manager's connection inside its own run, and yields another object."""

    def __init__(self, inner, name="outer"):
        super().__init__(name=name)
        self.inner = inner
        self.inner_connection = None
        self.opening = checkpoint

    @asynccontextmanager
    async def open_connection(self):
        async with self.open_inner(self.inner) as self.inner_connection:
            await self.opening()
            yield (self.inner_connection,)


class Noting(Probe):
    """A manager that notes the context of each of its runs."""

    def __init__(self, **options):
        super().__init__(self._note, **options)
        self.contexts = []

    async def _note(self):
        self.contexts.append(contextvars.copy_context())


async def from_here(report):
    report()


async def from_a_thread(report):
    await anyio.to_thread.run_sync(report)


async def from_a_plain_thread(report):
    """The thread inherits no context variables."""
    thread = threading.Thread(target=report)
    thread.start()
    await anyio.to_thread.run_sync(thread.join, 5)


async def from_a_loop_in_a_thread(report):
    async def main():
        report()

    await anyio.to_thread.run_sync(anyio.run, main)


async def from_a_signal_handler(report):
    previous = signal.signal(signal.SIGTERM, lambda *_: report())
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, previous)


PLACES = [from_here, from_a_thread, from_a_plain_thread, from_a_loop_in_a_thread, from_a_signal_handler]

each_place = in_turn("place", PLACES)


async def wait_lost(manager, cause):
    """Waits until the connection is lost with that cause."""
    with pytest.raises(ConnectionLostError) as caught:
        await manager.wait_closed()
    assert str(caught.value.__cause__) == cause
    assert caught.value.name == manager.name


# Many callers.


@in_turn("late", ["attempt", "open"])
async def test_K3_twenty_callers_that_report_the_same_connection_cause_one_reconnect(late):
    probe = Probe()
    probe.reconnect = AT_ONCE
    dead = await probe.start()
    attempt = probe.opening = Stage()
    one_is_late = anyio.Event()
    connections = []

    async def call(number):
        if number == 7:
            await one_is_late.wait()
        probe.connection_lost(OSError(f"caller {number}"), connection=dead)
        connections.append(await probe.wait_open())

    async with anyio.create_task_group() as tg:
        for number in range(20):
            tg.start_soon(call, number)
        await attempt.reached.wait()
        if late == "attempt":
            one_is_late.set()
            await settle()
            assert probe.state is OPENING
        attempt.let_go.set()
        if late == "open":
            await probe.wait_open()
            one_is_late.set()
    assert probe.state is OPEN
    assert connections == [probe.connection] * 20
    assert probe.connection is not dead
    assert len(probe.entered) == 2
    await probe.stop()


async def test_K3_callers_that_report_each_connection_again_and_again_cause_one_reconnect_each():
    probe = Probe()
    probe.reconnect = AT_ONCE
    seen = [await probe.start()]
    for _ in range(10):
        for connection in (*seen, *reversed(seen)):
            probe.connection_lost(OSError("dead"), connection=connection)
        seen.append(await probe.wait_open())
        await settle()
    assert len(set(map(id, seen))) == len(probe.entered) == 11
    assert probe.connection is seen[-1]
    await probe.stop()


async def test_K3_reports_from_many_threads_cause_one_reconnect():
    probe = Probe()
    probe.reconnect = AT_ONCE
    dead = await probe.start()
    async with anyio.create_task_group() as tg:
        for number in range(20):
            report = partial(probe.connection_lost, OSError(str(number)), connection=dead)
            tg.start_soon(anyio.to_thread.run_sync, report)
    await settle()
    assert await probe.wait_open() is not dead
    assert len(probe.entered) == 2
    await probe.stop()


async def test_K3_without_a_policy_a_late_report_does_not_end_the_connection_of_the_next_start():
    probe = Probe()
    dead = await probe.start()
    for number in range(5):
        probe.connection_lost(OSError(f"caller {number}"), connection=dead)
    await wait_lost(probe, "caller 0")
    connection = await probe.start()
    probe.connection_lost(OSError("late"), connection=dead)
    await settle()
    assert probe.connection is connection
    await probe.stop()


# Which connection.


@each_place
async def test_a_report_of_the_open_connection_is_a_loss_from_everywhere(place):
    probe = Probe()
    connection = await probe.start()
    await place(partial(probe.connection_lost, OSError("gone"), connection=connection))
    await wait_lost(probe, "gone")


@each_place
async def test_K3_a_report_of_another_connection_does_nothing_from_anywhere(place):
    probe = Probe()
    dead = await probe.start()
    await probe.stop()
    connection = await probe.start()
    for other in (dead, object(), probe, 0, ""):
        await place(partial(probe.connection_lost, OSError("other"), connection=other))
        await settle()
        assert probe.connection is connection
    await probe.stop()
    assert probe.state is CLOSED


async def test_a_connection_is_compared_by_identity_not_by_equality():
    class Equal:
        __hash__ = None

        def __eq__(self, other):
            return True

    connection = Equal()
    manager = Yielding(connection)
    await manager.start()
    manager.connection_lost(OSError("other"), connection=Equal())
    await settle()
    assert manager.state is OPEN
    manager.connection_lost(OSError("gone"), connection=connection)
    await wait_lost(manager, "gone")


class Odd:
    """An object of which nothing but the identity can be used."""

    def _fail(self, *_):
        raise LookupError

    __eq__ = __hash__ = __bool__ = __len__ = __getattr__ = __repr__ = __str__ = _fail


@in_turn("create", [Odd, list, dict, float, str])
async def test_a_connection_may_be_false_or_odd(create):
    connection = create()
    manager = Yielding(connection)
    await manager.start()
    manager.connection_lost(OSError("other"), connection=Odd())
    await settle()
    assert manager.state is OPEN
    manager.connection_lost(OSError("gone"), connection=connection)
    await wait_lost(manager, "gone")


async def test_without_a_connection_a_report_is_one_of_the_present_run():
    probe = Probe()
    await probe.start()
    probe.connection_lost(OSError("gone"), connection=None)
    await wait_lost(probe, "gone")


async def test_a_report_without_a_reason_is_a_loss_too():
    probe = Probe()
    connection = await probe.start()
    probe.connection_lost(connection=connection)
    with pytest.raises(ConnectionLostError) as caught:
        await probe.wait_closed()
    assert caught.value.__cause__ is None


async def test_the_connection_is_given_by_keyword_only():
    probe = Probe()
    connection = await probe.start()
    with pytest.raises(TypeError):
        probe.connection_lost(None, connection)
    with pytest.raises(TypeError, match="exc must be an exception or None, not object"):
        probe.connection_lost(connection)
    with pytest.raises(TypeError, match="exc must be an exception or None, not str"):
        probe.connection_lost("broken", connection=connection)
    assert probe.state is OPEN
    await probe.stop()


# A connection that is not open.


async def test_reports_of_a_connection_that_is_over_do_nothing():
    probe = Probe()
    probe.connection_lost(OSError("never open"), connection=object())
    assert probe.state is NEW
    connection = await probe.start()
    await probe.stop()
    probe.connection_lost(OSError("late"), connection=connection)
    assert probe.state is CLOSED
    connection = await probe.start()
    probe.connection_lost(OSError("gone"), connection=connection)
    await wait_lost(probe, "gone")
    probe.connection_lost(OSError("late"), connection=connection)
    assert str(probe.exception.__cause__) == "gone"


async def test_a_report_while_the_connection_closes_does_nothing():
    closing = Stage()
    probe = Probe(closing=closing)
    connection = await probe.start()
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.stop)
        await closing.reached.wait()
        probe.connection_lost(OSError("late"), connection=connection)
        probe.connection_lost(OSError("late"), connection=probe.current)
        closing.let_go.set()
    assert probe.state is CLOSED
    assert probe.exception is None


async def test_a_report_of_an_earlier_connection_does_not_end_an_attempt():
    probe = Probe()
    dead = await probe.start()
    await probe.stop()
    opening = probe.opening = Stage()
    async with anyio.create_task_group() as tg:
        starting = Call(tg, probe.start)
        await opening.reached.wait()
        probe.connection_lost(OSError("late"), connection=dead)
        await settle()
        assert not starting.is_over
        opening.let_go.set()
    assert starting.result is probe.connection
    await probe.stop()


@in_turn("phase", REOPENING)
@in_turn("how", ["connection", "current", "other"])
async def test_K3_while_reopening_a_report_of_a_connection_does_nothing(how, phase):
    probe = Probe()
    dead = []

    async def watch(connection):
        dead.append(connection)
        await anyio.sleep_forever()

    def listen(manager, old, new):
        if new is OPEN and not dead:
            dead.append(manager.connection)

    probe.add_listener(listen)
    stage = await reopen(probe, phase)
    state, reconnecting, entered = probe.state, probe.reconnecting, len(probe.entered)
    reported = {"connection": dead[0], "current": probe.current, "other": object()}[how]
    probe.connection_lost(OSError("late"), connection=reported)
    await settle()
    assert probe.state is state
    assert probe.reconnecting == reconnecting
    assert len(probe.entered) == entered
    if phase != "delay":
        stage.let_go.set()
        assert await probe.wait_open() is not dead[0]
        assert len(probe.entered) == 2
    await probe.stop()


@each_place
async def test_during_the_delay_of_a_policy_a_report_does_nothing(place):
    probe = Probe()
    await reopen(probe, "delay")
    before = probe.reconnecting
    assert before.failures == 1
    await place(partial(probe.connection_lost, OSError("during the delay")))
    await settle()
    assert probe.state is OPENING
    assert probe.reconnecting == before
    assert "during the delay" not in str(before.exception)
    assert len(probe.entered) == 1
    await probe.stop()
    assert probe.state is CLOSED


@in_turn("exc", [None, OSError("attempt")])
async def test_during_an_attempt_of_a_policy_a_report_without_a_connection_ends_the_attempt(exc):
    probe = Probe()
    await reopen(probe, "attempt")
    probe.connection_lost(exc)
    await probe.wait_open()
    assert len(probe.entered) == 3
    assert len(probe.exited) == 2
    await probe.stop()


def test_in_a_fork_or_after_its_loop_was_closed_a_report_does_nothing(monkeypatch, anyio_backend):
    probe = Probe()
    name, options = anyio_backend

    async def main():
        connection = await probe.start()
        monkeypatch.setattr(os, "getpid", lambda: -1)
        probe.connection_lost(OSError("fork"), connection=connection)
        monkeypatch.undo()
        await settle()
        assert probe.connection is connection
        await probe.stop()
        return connection

    connection = anyio.run(main, backend=name, backend_options=options)
    probe.connection_lost(OSError("late"), connection=connection)
    assert probe.state is CLOSED


# `current`.


async def test_current_stands_for_the_connection_that_is_open():
    probe = Probe()
    current = probe.current
    probe.connection_lost(OSError("never open"), connection=current)
    assert probe.state is NEW
    probe.reconnect = AT_ONCE
    for number in range(1, 4):
        await probe.start()
        assert len(probe.entered) == number
        probe.connection_lost(OSError("gone"), connection=current)
        await settle()
        assert probe.state is OPEN
    assert len(probe.entered) == 4
    await probe.stop()
    probe.connection_lost(OSError("late"), connection=current)
    assert probe.state is CLOSED


async def test_current_of_another_manager_stands_for_nothing():
    probe, other = Probe(), Probe(name="other")
    await probe.start()
    await other.start()
    probe.connection_lost(OSError("other"), connection=other.current)
    await settle()
    assert probe.state is other.state is OPEN
    await other.stop()
    await probe.stop()


# Managers that are lent.


@each_place
async def test_the_value_of_a_lent_manager_selects_the_run_that_it_is_part_of(place):
    inner = Probe(name="inner")
    for outer in (Outer(inner), Outer(Outer(inner, name="middle"))):
        await outer.start()
        innermost = outer.inner_connection
        while isinstance(innermost, tuple):
            [innermost] = innermost
        for other in (outer.connection, (innermost,), object()):
            await place(partial(inner.connection_lost, OSError("other"), connection=other))
            await settle()
            assert outer.state is OPEN
        await place(partial(inner.connection_lost, OSError("gone"), connection=innermost))
        await wait_lost(outer, "gone")
        assert inner.state is NEW


async def test_the_value_of_a_lent_manager_is_none_of_the_outer_one():
    inner = Probe(name="inner")
    outer = Outer(inner)
    await outer.start()
    outer.connection_lost(OSError("other"), connection=outer.inner_connection)
    await settle()
    assert outer.state is OPEN
    outer.connection_lost(OSError("gone"), connection=outer.connection)
    await wait_lost(outer, "gone")


async def test_a_manager_in_the_middle_of_a_chain_has_its_own_value():
    inner = Probe(name="inner")
    middle = Outer(inner, name="middle")
    outer = Outer(middle)
    await outer.start()
    for other in (middle.inner_connection, outer.connection):
        middle.connection_lost(OSError("other"), connection=other)
        await settle()
        assert outer.state is OPEN
    middle.connection_lost(OSError("gone"), connection=outer.inner_connection)
    await wait_lost(outer, "gone")


async def test_K3_an_earlier_value_of_a_lent_manager_does_nothing():
    inner = Probe(name="inner")
    outer = Outer(inner)
    outer.reconnect = AT_ONCE
    alone = await inner.start()
    await inner.stop()
    await outer.start()
    first = outer.inner_connection
    inner.connection_lost(OSError("gone"), connection=first)
    await outer.wait_open()
    assert len(inner.entered) == 3
    connection = outer.connection
    for dead in (alone, first):
        inner.connection_lost(OSError("late"), connection=dead)
        await settle()
        assert outer.connection is connection
    last = outer.inner_connection
    await outer.stop()
    connection = await inner.start()  # no longer lent
    for dead in (alone, first, last):
        inner.connection_lost(OSError("late"), connection=dead)
        await settle()
        assert inner.connection is connection
    await inner.stop()


async def test_the_value_of_a_lent_manager_selects_the_run_also_while_the_outer_one_opens():
    inner = Probe(name="inner")
    outer = Outer(inner)
    opening = outer.opening = Stage()
    async with anyio.create_task_group() as tg:
        starting = Call(tg, outer.start)
        await opening.reached.wait()
        inner.connection_lost(OSError("other"), connection=object())
        await settle()
        assert outer.state is OPENING
        inner.connection_lost(OSError("gone"), connection=outer.inner_connection)
    assert type(starting.error) is ConnectionLostError
    assert str(starting.error.__cause__) == "gone"


async def test_current_of_a_lent_manager_stands_for_its_value_in_the_run_that_it_is_part_of():
    inner = Probe(name="inner")
    outer = Outer(inner)
    await outer.start()
    inner.connection_lost(OSError("gone"), connection=inner.current)
    await wait_lost(outer, "gone")
    inner.connection_lost(OSError("late"), connection=inner.current)
    assert inner.state is NEW


# Callers that are part of a run. The connection alone selects the run.


async def in_context(context, report):
    context.run(report)


async def in_a_task(context, report):
    async with anyio.create_task_group() as tg:
        context.run(tg.start_soon, from_here, report)


async def in_a_thread(context, report):
    thread = threading.Thread(target=context.run, args=(report,))
    thread.start()
    await anyio.to_thread.run_sync(thread.join, 5)


CALLERS = [in_context, in_a_task, in_a_thread]


@in_turn("call", CALLERS)
@in_turn("is_lent", [False, True])
@in_turn("policy", [None, AT_ONCE])
async def test_a_task_of_an_earlier_run_may_report_the_present_connection(call, is_lent, policy):
    inner = Noting(name="inner")
    user = Outer(inner) if is_lent else inner
    user.reconnect = policy
    first = await user.start()
    if is_lent:
        first = user.inner_connection
    if policy is None:
        await user.stop()
        second = await user.start()
    else:
        inner.connection_lost(connection=first)
        second = await user.wait_open()
    value = user.inner_connection if is_lent else second
    early, present = inner.contexts
    await call(early, partial(inner.connection_lost, OSError("late")))
    await call(early, partial(inner.connection_lost, OSError("late"), connection=first))
    await call(present, partial(inner.connection_lost, OSError("late"), connection=first))
    await settle()
    assert user.connection is second
    await call(early, partial(inner.connection_lost, OSError("gone"), connection=value))
    await settle()
    if policy is None:
        assert user.state is FAILED
        assert str(user.exception.__cause__) == "gone"
    else:
        assert user.state is OPEN
        assert len(inner.entered) == 3
        await user.stop()


async def test_a_task_of_an_earlier_run_may_report_current():
    probe = Noting()
    probe.reconnect = AT_ONCE
    first = await probe.start()
    probe.connection_lost(connection=first)
    second = await probe.wait_open()
    probe.contexts[0].run(partial(probe.connection_lost, OSError("late")))
    await settle()
    assert probe.connection is second
    probe.contexts[0].run(partial(probe.connection_lost, OSError("gone"), connection=probe.current))
    await settle()
    assert probe.connection is not second
    assert len(probe.entered) == 3
    await probe.stop()


async def test_a_report_from_a_task_of_a_nested_run_selects_the_run_of_the_connection():
    """The task carries the marks of both runs."""
    outer, inner = Noting(name="outer"), Noting(name="inner")
    connection = await outer.start()
    async with anyio.create_task_group() as tg:
        outer.contexts[0].run(tg.start_soon, inner.start)
    inner.contexts[0].run(partial(outer.connection_lost, OSError("gone"), connection=connection))
    await wait_lost(outer, "gone")
    assert inner.state is OPEN
    await inner.stop()


# A native loop's own threads.


async def test_a_report_that_reaches_the_loop_late_does_not_end_the_next_connection(asyncio_only):
    probe = Probe()
    probe.reconnect = AT_ONCE
    dead = await probe.start()
    reports = [partial(probe.connection_lost, OSError("late"), connection=dead) for _ in range(5)]
    loop = asyncio.get_running_loop()
    threads = [threading.Thread(target=report) for report in reports]
    for thread in threads:
        thread.start()
    for thread in threads:  # all reports are queued before the first takes effect
        thread.join(5)
    for report in reports:
        loop.call_soon(report)
    await settle()
    assert await probe.wait_open() is not dead
    assert len(probe.entered) == 2
    await probe.stop()
