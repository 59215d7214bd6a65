"""Runs a scenario once for every place at which something can strike, and checks what must hold.

A coroutine is driven by hand: each time it is about to suspend, and each time it wakes up, is a
point. A *blow* is something that strikes at one point: a cancellation of the caller or of the owner,
a stop by a third task, a loss, a crash inside the transport. A scenario is run with each blow at
each point, and, for pairs, with each second blow at each point after the first.

Nothing here waits for real time, and nothing is random: the same code is struck in the same places.
"""

import asyncio
import logging
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import count
from typing import NamedTuple

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint
from conftest import all_tasks

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionState,
    ConnectionStoppedError,
    NotConnectedError,
)
from ownertask._owner import Run

LOSSES = ["loss", "owner_task_is_cancelled", "transport_ends", "transport_crashes"]


class Blow(NamedTuple):
    """What strikes, and where: the k-th time that `who` is about to suspend, or has woken up.

    The second of two counts from the first.
    """

    what: str
    who: str
    when: str
    k: int

    def __str__(self):
        return f"{self.what} {self.when} suspension {self.k} of the {self.who}"


class Driven:
    """Awaits a coroutine, and calls `at_point()` at each of its points.

    Where something has struck as it woke up, others get turns before it goes on.
    """

    def __init__(self, coroutine, at_point):
        self.coroutine = coroutine
        self.at_point = at_point

    def __await__(self):
        resume, value = self.coroutine.send, None
        while True:
            try:
                trap = resume(value)
            except StopIteration as stop:
                return stop.value
            self.at_point("before")
            resume, value = yield from self.suspend(trap)
            if isinstance(value, GeneratorExit):
                continue
            if self.at_point("after"):
                for _ in range(2):
                    turn = yield from self.suspend_for_a_turn()
                    resume, value = turn or (resume, value)

    def suspend(self, trap):
        try:
            return self.coroutine.send, (yield trap)
        except BaseException as exc:
            return self.coroutine.throw, exc

    def suspend_for_a_turn(self):
        try:
            yield from cancel_shielded_checkpoint_of_this_loop().__await__()
        except BaseException as exc:
            return self.coroutine.throw, exc
        return None


def cancel_shielded_checkpoint_of_this_loop():
    # On asyncio, anyio's opens a scope, which a native cancellation would be mistaken in.
    return asyncio.sleep(0) if is_asyncio() else cancel_shielded_checkpoint()


def is_asyncio():
    return asyncio._get_running_loop() is not None


class Boom(Exception):  # noqa: N818 - short, as it is in every report
    """What crashes raise here."""


class Harbour(ConnectionManager[object]):
    """Its connection has a child task, and records what is done to it.

    Args:
        opening: Awaited before the connection is yielded.
        closing: Awaited after that.
    """

    def __init__(self, opening, closing, start_timeout=None):
        super().__init__(name="harbour")
        self.start_timeout = start_timeout
        self.opening = opening
        self.closing = closing
        self.entered = []
        self.exited = []
        self.closings_cancelled = 0
        self.errors = []
        self.group = None
        self.crash = None

    @property
    def is_acquired(self):
        return len(self.entered) != len(self.exited)

    async def child(self, crash):
        await crash.wait()
        self.errors.append(Boom("crash"))
        raise self.errors[-1]

    @asynccontextmanager
    async def open_connection(self):
        assert not self.is_acquired, "9: there are two owners at once"
        self.entered.append(anyio.get_current_task().id)
        try:
            async with anyio.create_task_group() as self.group:
                self.crash = anyio.Event()
                self.group.start_soon(self.child, self.crash)
                await self.raising(self.opening)
                try:
                    yield object()
                finally:
                    try:
                        await self.raising(self.closing)
                    except anyio.get_cancelled_exc_class():
                        self.closings_cancelled += 1
                        raise
                    self.group.cancel_scope.cancel()
        finally:
            self.group = self.crash = None
            self.exited.append(anyio.get_current_task().id)

    async def raising(self, stage):
        try:
            await stage()
        except Boom as error:
            self.errors.append(error)
            raise


class Scenario:
    """What is swept. `caller` is the task that is struck; the others are not.

    Args:
        caller: Awaited with the world.
        prepare: Awaited with the world before, undisturbed.
        others: Tasks that run beside the caller.
        bound: Seconds that no `start()` may outlive.
        stop_bound: The same of `stop()`, if it is another.
        is_forced: Whether the caller itself has its close cancelled.
        has_task_group: Whether the caller opens one.
        outcome: How the caller ends if nothing strikes.
        allowed: What else `start()` may raise, whatever strikes.
        create_manager: What the manager is made by.
        settings: What the manager is made of; see `Harbour`.
    """

    def __init__(
        self,
        caller,
        *,
        prepare=None,
        others=(),
        bound=0.0,
        stop_bound=None,
        is_forced=False,
        has_task_group=False,
        outcome=None,
        allowed=(),
        create_manager=Harbour,
        **settings,
    ):
        self.caller = caller
        self.prepare = prepare
        self.others = others
        self.bound = bound
        self.stop_bound = bound if stop_bound is None else stop_bound
        self.is_forced = is_forced
        self.has_task_group = has_task_group
        self.outcome = outcome
        self.allowed = allowed
        self.create_manager = create_manager
        self.settings = settings


class World:
    """One run of a scenario."""

    def __init__(self, scenario, plan, manager, *, unit):
        self.scenario = scenario
        self.plan = list(plan)
        self.manager = manager
        self.unit = unit
        self.is_virtual = unit == 1
        self.lost = []
        self.lost_while_opening = []
        self.struck_while_open = []
        self.struck = []
        self.points = Counter()
        self.is_armed = False
        self.caller_task = None
        self.caller_scope = None
        self.tasks = None
        self.wanted_by_others = 0
        self.stops_by_others = 0
        self.problems = []
        self.runs = []

    def __repr__(self):
        return " | ".join(map(str, self.struck))

    # What strikes.

    def at_point(self, who, when):
        self.check("5: it can be read if and only if it is open", self.is_readable() == self.is_open())
        if not self.is_armed or not self.plan:
            return False
        self.points[who, when] += 1
        blow = self.plan[0]
        if (who, when) != (blow.who, blow.when) or self.points[who, when] != blow.k:
            return False
        self.points.clear()
        self.plan.pop(0)
        if when == "before" and not is_asyncio():
            # In the middle of a suspension trio's task must not be woken up by itself.
            self.tasks.start_soon(self.strike_soon, blow)
        else:
            self.strike(blow)
        return True

    async def strike_soon(self, blow):
        if self.is_armed:
            self.strike(blow)

    def strike(self, blow):
        self.struck.append(blow)
        if self.is_open():
            self.struck_while_open.append((blow.what, anyio.current_time()))
        getattr(self, blow.what)()

    def caller_scope_is_cancelled(self):
        self.caller_scope.cancel()

    def caller_task_is_cancelled(self):
        self.caller_task.cancel()

    def owner_task_is_cancelled(self):
        run = self.manager._life.run
        if run is not None and run._task is not None:
            run._task.cancel()

    def transport_ends(self):
        if self.manager.group is not None:
            self.manager.group.cancel_scope.cancel()

    def transport_crashes(self):
        if self.manager.crash is not None:
            self.manager.crash.set()

    def loss(self):
        if self.is_open():
            self.lost.append(self.manager._life.run)
        elif self.manager.state is ConnectionState.OPENING:
            self.lost_while_opening.append(self.manager._life.run)
        self.manager.connection_lost(Boom("loss"))

    def stop(self):
        self.stop_by_a_third(300)

    def stop_now(self):
        self.stop_by_a_third(0)

    def stop_by_a_third(self, timeout):
        async def stop():
            await self.stopped(timeout)
            self.stops_by_others -= 1

        self.stops_by_others += 1
        self.tasks.start_soon(stop)

    # What is checked.

    def check(self, what, holds):
        if not holds:
            self.problems.append(what)

    def is_open(self):
        return self.manager.state is ConnectionState.OPEN

    def is_readable(self):
        try:
            _ = self.manager.connection
        except (NotConnectedError, ConnectionLostError):
            return False
        return True

    def was_struck_by(self, *blows):
        return any(blow.what in blows for blow in self.struck)

    @property
    def was_cancelled(self):
        return self.was_struck_by("caller_scope_is_cancelled", "caller_task_is_cancelled")

    async def check_that_it_stays_open(self, seconds):
        """If nothing but the caller of something else was struck."""
        await anyio.sleep(seconds * self.unit)
        ended = any(not blow.what.startswith("caller") for blow in self.struck)
        self.check("a connection that start() returned was closed", ended or self.is_open())

    def may_raise(self, error, *, starting):
        if isinstance(error, anyio.get_cancelled_exc_class()):
            return self.was_cancelled
        if not starting:
            return False
        if isinstance(error, self.scenario.allowed):
            return True
        if isinstance(error, ConnectionStoppedError):
            return self.was_struck_by("stop", "stop_now")
        if isinstance(error, ConnectionLostError):
            return self.was_struck_by(*LOSSES)
        if isinstance(error, RuntimeError) and "didn't yield" in str(error):
            return self.was_struck_by("transport_ends")
        if isinstance(error, BaseExceptionGroup):
            return all(self.may_raise(each, starting=True) for each in error.exceptions)
        return isinstance(error, Boom) and self.was_struck_by("transport_crashes")

    @contextmanager
    def bounded(self, call, bound):
        began = anyio.current_time()
        try:
            yield
        finally:
            took = anyio.current_time() - began
            latest = bound * self.unit + (1e-6 if self.is_virtual else 5)
            self.check(f"7: {call} took {took:.2f} s", took <= latest)

    def is_over(self):
        run = self.manager._life.run
        return not self.manager.is_acquired and (run is None or run.is_over)

    def was_cancelled_again(self):
        """Whether a native cancellation came second, which ends the wait of a cancelled `stop()`."""
        blows = [blow.what for blow in self.struck if blow.what.startswith("caller")]
        return "caller_task_is_cancelled" in blows[1:]

    def library_tasks(self):
        names = map(task_name, all_tasks())
        return [name for name in names if name.startswith(("owner task of ", "ownertask "))]

    async def started(self, timeout=None, *, by_other=False):
        """`start()`, and what must hold at the moment it returns."""
        self.wanted_by_others += by_other
        ahead = self.manager._life.run if self.manager.state is ConnectionState.CLOSING else None
        try:
            with self.bounded("start()", self.scenario.bound):
                connection = await self.manager.start(timeout=timeout)
        except BaseException as error:
            self.wanted_by_others -= by_other
            self.check(f"start() raised {error!r}", self.may_raise(error, starting=True))
            if not self.wanted_by_others and (ahead is None or ahead is not self.manager._life.run):
                self.check("1: start() raised, and its owner lives", self.is_over())
                self.check("1: start() raised, and there are tasks left", not self.library_tasks())
            raise
        self.check("start() returned what is not open", self.is_open())
        is_lost = self.manager._life.run in self.lost_while_opening
        self.check("start() returned what was lost while it was opened", not is_lost)
        self.check("start() returned another", connection is self.manager.connection)
        return connection

    async def stopped(self, timeout=300):
        """`stop()`, and what must hold at the moment it returns."""
        run = self.manager._life.run
        try:
            with self.bounded("stop()", self.scenario.stop_bound):
                await self.manager.stop(timeout)
        except BaseException as error:
            self.check(f"stop() raised {error!r}", self.may_raise(error, starting=False))
            raise
        finally:
            if not self.was_cancelled_again():
                self.check("3: stop() returned, and the owner lives", run is None or run.is_over)
                if self.is_over():
                    left = self.library_tasks()
                    self.check(f"3: stop() returned, and there are {left}", not left)

    async def waited(self):
        """`wait_closed()`, which raises a loss and only that."""
        began = anyio.current_time()
        try:
            await self.manager.wait_closed()
        except ConnectionLostError as error:
            self.check("a loss of nothing", self.may_raise(error, starting=True))
        else:
            at_once = began + self.unit if self.is_virtual else began
            losses = [what for what, at in self.struck_while_open if what in LOSSES and at < at_once]
            stopped = self.was_struck_by("stop", "stop_now")
            self.check(f"{losses} not told", stopped or not losses)


def task_name(task):
    return task.get_name() if is_asyncio() else task.name


class Records(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.records = []

    def emit(self, record):
        self.records.append(record)


async def run_case(scenario, plan, *, unit):
    """Runs a scenario with its blows, and returns the world, with what did not hold in it."""
    tasks_before = all_tasks()
    manager = scenario.create_manager(**{key: make(unit) for key, make in scenario.settings.items()})
    world = World(scenario, plan, manager, unit=unit)
    bystander_was_cancelled = False

    async def stand_by():
        nonlocal bystander_was_cancelled
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            bystander_was_cancelled = True
            raise

    async def call():
        with suppress(asyncio.CancelledError):  # as a task of its own would end
            await call_in_scope()
        if is_asyncio():
            check_cancelling()

    async def call_in_scope():
        if is_asyncio():
            world.caller_task = asyncio.current_task()
        with anyio.CancelScope() as world.caller_scope:
            try:
                await Driven(scenario.caller(world), lambda when: world.at_point("caller", when))
            except BaseException as error:
                world.check(f"the caller raised {error!r}", is_outcome(world, error))
                if isinstance(error, anyio.get_cancelled_exc_class()):
                    raise
            else:
                # Below 4.16, anyio's task groups swallow it in the tick in which they are cancelled.
                natively = (
                    world.was_struck_by("caller_task_is_cancelled") and not scenario.has_task_group
                )
                world.check("a native cancellation was swallowed", not natively)
                expected = scenario.outcome is None or world.struck
                world.check(f"the caller did not raise {scenario.outcome}", expected)

    def check_cancelling():
        times = sum(blow.what == "caller_task_is_cancelled" for blow in world.struck)
        # A task group of anyio's takes back more native cancellations than its own.
        if not scenario.has_task_group:
            world.check("6: cancelling() is not what it was", world.caller_task.cancelling() == times)

    with Watch(world) as records:
        if scenario.prepare is not None:
            await scenario.prepare(world)
        async with anyio.create_task_group() as world.tasks:
            world.tasks.start_soon(stand_by)
            async with anyio.create_task_group() as tg:
                for other in scenario.others:
                    tg.start_soon(other, world)
                world.is_armed = True
                tg.start_soon(call)
            world.is_armed = False
            await check_the_end(world, records)
            world.check("6: a bystander was cancelled", not bystander_was_cancelled)
            world.tasks.cancel_scope.cancel()
        left = all_tasks() - tasks_before
    world.check(f"10: there are tasks left, {left}", not left)
    return world


def is_outcome(world, error):
    if not world.struck:
        return isinstance(error, world.scenario.outcome or world.scenario.allowed)
    expected = world.scenario.outcome or ()
    return isinstance(error, expected) or world.may_raise(error, starting=True)


class Watch:
    """Has each owner of the world driven by hand, too, and notes its runs and what is logged."""

    def __init__(self, world):
        self.world = world
        self.records = Records()

    def __enter__(self):
        self.own = own = Run._own
        world = self.world

        async def driven_own(run):
            world.runs.append(run)
            await Driven(own(run), lambda when: world.at_point("owner", when))

        Run._own = driven_own
        logger = logging.getLogger("ownertask")
        logger.addHandler(self.records)
        logger.propagate = False
        return self.records.records

    def __exit__(self, *_):
        Run._own = self.own
        logger = logging.getLogger("ownertask")
        logger.removeHandler(self.records)
        logger.propagate = True


async def check_the_end(world, records):
    """Stops what is left open by intent, and opens and closes it once more."""
    manager = world.manager
    if not world.is_open() and not world.is_over():
        # Nobody waits for the end after a loss, or after a second native cancellation of a stop().
        is_lost = world.lost or world.was_struck_by(*LOSSES)
        allowed = is_lost or world.was_cancelled_again() or world.stops_by_others
        world.check("1: an owner lives on", allowed)
    await manager.stop()
    world.check("3: stop() returned, and the owner lives", world.is_over())
    while world.stops_by_others:
        await checkpoint()
    failed = manager.state is ConnectionState.FAILED
    world.check("set if and only if it failed", failed == (manager.exception is not None))
    world.check("8: in one task, once each", manager.entered == manager.exited)
    if not world.was_struck_by("transport_ends", "transport_crashes", "owner_task_is_cancelled"):
        forced = world.was_cancelled or world.was_struck_by("stop_now") or world.scenario.is_forced
        world.check("4: a healthy close was cancelled", forced or not manager.closings_cancelled)
    for run in world.lost:
        world.check("a loss was not kept", isinstance(run.exception, ConnectionLostError))
    for run in world.runs:
        world.check("a waiter is left", not run._wake_ups)
        world.check("an owner is left", run.is_over and run._task is None and run.starters == 0)
    if world.is_virtual:
        await anyio.sleep(400)  # a timer that is left goes off
    logged = [record.exc_info[1] for record in records if record.exc_info]
    world.check("8: an error was logged twice", len(set(map(id, logged))) == len(logged))
    world.check("an error of ownertask's own", not any(record.levelno >= 40 for record in records))
    causes = [error.__cause__ for error in logged]
    for run in world.runs:
        error = run.exception
        told = error is None or not run._was_open or any(error is seen for seen in logged)
        world.check("8: an error was not logged", told)
    for error in manager.errors:
        seen = any(error is other for other in [*logged, *causes])
        raised = any(error is run.exception or is_inside(error, run.exception) for run in world.runs)
        world.check(f"8: {error!r} is told nowhere", seen or raised)
    if world.scenario.settings.get("start_timeout") is None:
        with suppress(Boom):
            with anyio.fail_after(100):
                await manager.start()
        await manager.stop()
        world.check("it cannot be used again", not manager.is_acquired)


def is_inside(error, other):
    seen = []
    while other is not None and other not in seen:
        seen.append(other)
        if other is error:
            return True
        if isinstance(other, BaseExceptionGroup):
            return any(is_inside(error, each) for each in other.exceptions)
        other = other.__cause__
    return False


BLOWS = [
    "caller_scope_is_cancelled",
    "caller_task_is_cancelled",
    "owner_task_is_cancelled",
    "transport_ends",
    "transport_crashes",
    "loss",
    "stop",
    "stop_now",
]
SECOND_BLOWS = ["caller_scope_is_cancelled", "caller_task_is_cancelled", "loss", "stop_now"]


async def sweep(scenario, *, unit, second_blows=()):
    """Runs a scenario with every blow, and with every second one after it.

    Returns how many runs that were, and what did not hold, by the blows.
    """
    runs = 0
    failures = {}

    async def run(*plan):
        nonlocal runs
        runs += 1
        try:
            with anyio.fail_after(1000):
                world = await run_case(scenario, plan, unit=unit)
        except Exception as error:
            failures[plan] = [repr(error)]
            return False
        if world.problems:
            failures[plan] = world.problems
        return not world.plan

    def places(blows):
        for what in blows:
            if "task" in what and not is_asyncio():
                continue
            for who in ("caller", "owner"):
                for when in ("before", "after"):
                    yield what, who, when

    await run()
    for place in places(BLOWS):
        for k in count(1):
            first = Blow(*place, k)
            if not await run(first):
                break
            for second_place in places(second_blows):
                if second_place[2] == "after":
                    continue
                for later in count(1):
                    if not await run(first, Blow(*second_place, later)):
                        break
    return runs, failures
