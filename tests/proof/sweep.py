"""Runs a scenario once for every point at which it can be interrupted, and checks the guarantees.

The caller and the owner task are driven by hand. A *point* is a moment at which one of them is about
to suspend, or has just woken up. An *interruption* happens at one point: the caller or the owner task
is cancelled, another task calls `stop()`, the connection is lost, or the transport ends or crashes. The
sweep runs a scenario with each interruption at each point. For pairs, it adds each second interruption
at each later point.

Nothing is chosen at random, and except on uvloop nothing waits for real time.
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


class Interruption(NamedTuple):
    """What happens, and at which point: the k-th time that `who` is about to suspend, or has woken up.

    For the second of two interruptions, `k` counts from the first.
    """

    kind: str
    who: str
    when: str
    k: int

    def __str__(self):
        return f"{self.kind} {self.when} suspension {self.k} of the {self.who}"


class Driven:
    """Awaits a coroutine, and calls `at_point()` at each of its points.

    If the coroutine is interrupted as it wakes up, other tasks run before it continues.
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
                    thrown = yield from self.let_others_run()
                    resume, value = thrown or (resume, value)

    def suspend(self, trap):
        try:
            return self.coroutine.send, (yield trap)
        except BaseException as exc:
            return self.coroutine.throw, exc

    def let_others_run(self):
        try:
            yield from shielded_checkpoint().__await__()
        except BaseException as exc:
            return self.coroutine.throw, exc
        return None


def shielded_checkpoint():
    # On asyncio, anyio's version opens a cancel scope, which mistakes native cancellations for its own.
    return asyncio.sleep(0) if is_asyncio() else cancel_shielded_checkpoint()


def is_asyncio():
    return asyncio._get_running_loop() is not None


class Boom(Exception):  # noqa: N818 - short, because it is in every report
    """The exception that crashes and failing stages raise."""


class RecordingManager(ConnectionManager[object]):
    """Records how its connection is opened and closed. The connection has a child task.

    Args:
        opening: Awaited before the connection is yielded.
        closing: Awaited after the `yield`.
        start_timeout: See `ConnectionManager`.
        reconnect: See `ConnectionManager`.
    """

    def __init__(self, opening, closing, start_timeout=None, reconnect=None):
        super().__init__(name="recording")
        self.start_timeout = start_timeout
        self.reconnect = reconnect
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
        assert not self.is_acquired, "9: two owner tasks are alive at once"
        self.entered.append(anyio.get_current_task().id)
        try:
            async with anyio.create_task_group() as self.group:
                self.crash = anyio.Event()
                self.group.start_soon(self.child, self.crash)
                await self.run_stage(self.opening)
                try:
                    yield object()
                finally:
                    try:
                        await self.run_stage(self.closing)
                    except anyio.get_cancelled_exc_class():
                        self.closings_cancelled += 1
                        raise
                    self.group.cancel_scope.cancel()
        finally:
            self.group = self.crash = None
            self.exited.append(anyio.get_current_task().id)

    async def run_stage(self, stage):
        try:
            await stage()
        except Boom as error:
            self.errors.append(error)
            raise


class Scenario:
    """A scenario to sweep. Only the caller and the owner task are interrupted.

    Its functions are called with the world. A unit of time is a second, on uvloop a millisecond.

    Args:
        caller: The function that runs in the caller's task.
        prepare: Runs before the caller, without interruptions.
        others: Functions that run in other tasks, at the same time as the caller.
        bound: How long a `start()` may take.
        stop_bound: How long a `stop()` may take; `None` means the same as `bound`.
        is_forced: Whether the close may be cancelled even without an interruption.
        is_reopening: Whether a lost connection is being opened again. Only `stop()` and the end of the
            owner task may end that.
        only_blocks: Whether only `async with` blocks use the manager, so that the last one closes it.
        has_task_group: Whether the caller opens a task group.
        fails_if_cancelled: Whether an opening that is cancelled raises something else.
        second_cancellation_ends_wait: Whether a second native cancellation of the caller ends its wait.
        outcome: The exception that the caller raises without an interruption, if any.
        allowed: Exceptions that `start()` may raise in any case.
        create_manager: The manager's class.
        settings: For each argument of `create_manager`, a function of the unit that returns it.
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
        is_reopening=False,
        only_blocks=False,
        has_task_group=False,
        fails_if_cancelled=False,
        second_cancellation_ends_wait=False,
        outcome=None,
        allowed=(),
        create_manager=RecordingManager,
        **settings,
    ):
        self.caller = caller
        self.prepare = prepare
        self.others = others
        self.bound = bound
        self.stop_bound = bound if stop_bound is None else stop_bound
        self.is_forced = is_forced
        self.is_reopening = is_reopening
        self.only_blocks = only_blocks
        self.has_task_group = has_task_group
        self.fails_if_cancelled = fails_if_cancelled
        self.second_cancellation_ends_wait = second_cancellation_ends_wait
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
        self.interruptions_while_open = []
        self.cancelled_at = self.cancelled_again_at = None
        self.is_started = scenario.prepare is not None  # a second cancellation ends no start()
        self.interruptions = []
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
        return " | ".join(map(str, self.interruptions))

    # Interruptions.

    def at_point(self, who, when):
        self.check(
            "5: the connection can be read if and only if it is open",
            self.is_readable() == self.is_open(),
        )
        if not self.is_armed or not self.plan:
            return False
        self.points[who, when] += 1
        planned = self.plan[0]
        if (who, when) != (planned.who, planned.when) or self.points[who, when] != planned.k:
            return False
        self.points.clear()
        self.plan.pop(0)
        if when == "before" and not is_asyncio():
            # A trio task that is about to suspend must not wake itself up. Another task interrupts it.
            self.tasks.start_soon(self.interrupt_soon, planned)
        else:
            self.interrupt(planned)
        return True

    async def interrupt_soon(self, interruption):
        if self.is_armed:
            self.interrupt(interruption)

    def interrupt(self, interruption):
        self.interruptions.append(interruption)
        if self.is_open():
            self.interruptions_while_open.append((interruption.kind, anyio.current_time()))
        getattr(self, interruption.kind)()
        if self.was_cancelled_again():
            self.cancelled_again_at = anyio.current_time()
        elif self.was_cancelled and self.is_started:
            self.cancelled_at = anyio.current_time()

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
        elif self.manager.state is ConnectionState.OPENING and not self.manager._life.run.is_delayed:
            self.lost_while_opening.append(self.manager._life.run)
        self.manager.connection_lost(Boom("loss"))

    def stop(self):
        self.stop_from_another_task(300)

    def stop_now(self):
        self.stop_from_another_task(0)

    def stop_from_another_task(self, timeout):
        async def stop():
            await self.checked_stop(timeout)
            self.stops_by_others -= 1

        self.stops_by_others += 1
        self.tasks.start_soon(stop)

    # Checks.

    def check(self, message, holds):
        if not holds:
            self.problems.append(message)

    def is_open(self):
        return self.manager.state is ConnectionState.OPEN

    def is_readable(self):
        try:
            _ = self.manager.connection
        except (NotConnectedError, ConnectionLostError):
            return False
        return True

    def was_interrupted_by(self, *kinds):
        return any(interruption.kind in kinds for interruption in self.interruptions)

    @property
    def was_cancelled(self):
        return self.was_interrupted_by("caller_scope_is_cancelled", "caller_task_is_cancelled")

    async def check_stays_open(self, seconds):
        """Checks that the connection stays open, unless an interruption may have ended it."""
        await anyio.sleep(seconds * self.unit)
        ended = any(not interruption.kind.startswith("caller") for interruption in self.interruptions)
        self.check("a connection that start() returned was closed", ended or self.is_open())

    def may_raise(self, error, *, starting):
        if isinstance(error, anyio.get_cancelled_exc_class()):
            return self.was_cancelled
        if not starting:
            return False
        if isinstance(error, self.scenario.allowed):
            return True
        if isinstance(error, ConnectionStoppedError):
            return self.was_interrupted_by("stop", "stop_now")
        if isinstance(error, ConnectionLostError):
            return self.was_interrupted_by(*LOSSES)
        if isinstance(error, RuntimeError) and "didn't yield" in str(error):
            return self.was_interrupted_by("transport_ends")
        if isinstance(error, BaseExceptionGroup):
            return all(self.may_raise(each, starting=True) for each in error.exceptions)
        return isinstance(error, Boom) and self.was_interrupted_by("transport_crashes")

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
        """Whether a native cancellation came second. It ends the wait of a cancelled `stop()`."""
        kinds = [each.kind for each in self.interruptions if each.kind.startswith("caller")]
        return "caller_task_is_cancelled" in kinds[1:]

    def library_tasks(self):
        names = map(task_name, all_tasks())
        return [name for name in names if name.startswith(("owner task of ", "ownertask "))]

    async def checked_start(self, timeout=None, *, by_other=False):
        """Calls `start()`, and checks the guarantees at the moment it returns or raises."""
        self.wanted_by_others += by_other
        ahead = self.manager._life.run if self.manager.state is ConnectionState.CLOSING else None
        try:
            with self.bounded("start()", self.scenario.bound):
                connection = await self.manager.start(timeout=timeout)
        except BaseException as error:
            self.wanted_by_others -= by_other
            self.check(f"start() raised {error!r}", self.may_raise(error, starting=True))
            if self.scenario.is_reopening and self.was_cancelled:
                self.check_policy_goes_on()
            elif not self.wanted_by_others and (ahead is None or ahead is not self.manager._life.run):
                self.check("1: start() raised, but its owner task is alive", self.is_over())
                self.check("1: start() raised, but tasks are left", not self.library_tasks())
            raise
        self.check("start() returned a connection that is not open", self.is_open())
        is_lost = self.manager._life.run in self.lost_while_opening
        self.check("start() returned a connection that was lost while opening", not is_lost)
        self.check("start() returned a different connection", connection is self.manager.connection)
        return connection

    async def checked_wait_open(self):
        """Calls `wait_open()`, and checks the guarantees at the moment it returns or raises."""
        try:
            with self.bounded("wait_open()", self.scenario.bound):
                connection = await self.manager.wait_open()
        except BaseException as error:
            self.check(f"wait_open() raised {error!r}", self.may_raise(error, starting=True))
            self.check_policy_goes_on()
            raise
        self.check("wait_open() returned a connection that is not open", self.is_open())
        self.check("wait_open() returned a different connection", connection is self.manager.connection)

    def check_policy_goes_on(self):
        ended = self.was_interrupted_by("stop", "stop_now", "owner_task_is_cancelled")
        self.check("K7: the end of a call ended the policy", ended or self.manager._life.run.is_alive)

    async def checked_stop(self, timeout=300):
        """Calls `stop()`, and checks the guarantees at the moment it returns or raises."""
        run = self.manager._life.run
        try:
            with self.bounded("stop()", self.scenario.stop_bound):
                await self.manager.stop(timeout)
        except BaseException as error:
            self.check(f"stop() raised {error!r}", self.may_raise(error, starting=False))
            raise
        finally:
            if not self.was_cancelled_again():
                self.check("3: stop() ended, but the owner task is alive", has_ended(run))
                if self.is_over():
                    left = self.library_tasks()
                    self.check(f"3: stop() ended, but tasks are left: {left}", not left)

    async def checked_wait_closed(self):
        """Calls `wait_closed()`, and checks that it raises a loss if there was one, and only then."""
        began = anyio.current_time()
        try:
            await self.manager.wait_closed()
        except ConnectionLostError as error:
            self.check(
                "wait_closed() raised a loss that did not happen", self.may_raise(error, starting=True)
            )
        else:
            at_once = began + self.unit if self.is_virtual else began
            losses = [
                kind for kind, at in self.interruptions_while_open if kind in LOSSES and at < at_once
            ]
            stopped = self.was_interrupted_by("stop", "stop_now")
            self.check(f"wait_closed() did not report {losses}", stopped or not losses)


def has_ended(run):
    """Returns whether a run, and each that followed it by a policy, is over."""
    last = run if run is None or run._series is None else run._series.newest
    return last is None or last.is_over


def task_name(task):
    return task.get_name() if is_asyncio() else task.name


class Records(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.records = []

    def emit(self, record):
        self.records.append(record)


async def run_case(scenario, plan, *, unit):
    """Runs a scenario with the planned interruptions. Returns the world, with its failed checks."""
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
        with suppress(asyncio.CancelledError):  # a native cancellation ends only this task
            await call_in_scope()
        first, second = world.cancelled_at, world.cancelled_again_at
        if None not in {first, second} and scenario.second_cancellation_ends_wait and second > first:
            waited = anyio.current_time() - second
            world.check(f"7: waited {waited:.2f} s after a second cancellation", waited < 1e-6)
        if is_asyncio():
            check_cancelling()

    async def call_in_scope():
        if is_asyncio():
            world.caller_task = asyncio.current_task()
        with world.caller_scope:
            try:
                await Driven(scenario.caller(world), lambda when: world.at_point("caller", when))
            except BaseException as error:
                world.check(f"the caller raised {error!r}", is_outcome(world, error))
                if isinstance(error, anyio.get_cancelled_exc_class()):
                    raise
            else:
                # Before anyio 4.16, a task group that is cancelled in the same tick swallows it.
                must_raise = (
                    world.was_interrupted_by("caller_task_is_cancelled") and not scenario.has_task_group
                )
                world.check("a native cancellation was swallowed", not must_raise)
                expected = scenario.outcome is None or world.interruptions
                world.check(f"the caller did not raise {scenario.outcome}", expected)

    def check_cancelling():
        times = sum(
            interruption.kind == "caller_task_is_cancelled" for interruption in world.interruptions
        )
        # An anyio task group calls uncancel() for more native cancellations than its own.
        if not scenario.has_task_group:
            world.check(
                "6: the caller's cancelling() has changed", world.caller_task.cancelling() == times
            )

    with Watch(world) as records:
        if scenario.prepare is not None:
            await scenario.prepare(world)
        async with anyio.create_task_group() as world.tasks:
            world.tasks.start_soon(stand_by)
            async with anyio.create_task_group() as tg:
                for other in scenario.others:
                    tg.start_soon(other, world)
                world.caller_scope = anyio.CancelScope()
                world.is_armed = True
                tg.start_soon(call)
            world.is_armed = False
            await check_end(world, records)
            world.check("6: a bystander was cancelled", not bystander_was_cancelled)
            world.tasks.cancel_scope.cancel()
        left = all_tasks() - tasks_before
    world.check(f"10: tasks are left: {left}", not left)
    return world


def is_outcome(world, error):
    if not world.interruptions:
        return isinstance(error, world.scenario.outcome or world.scenario.allowed)
    expected = world.scenario.outcome or ()
    return isinstance(error, expected) or world.may_raise(error, starting=True)


class Watch:
    """Drives each owner task by hand, and collects the runs and the log records."""

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


async def check_end(world, records):
    """Stops the manager, makes the final checks, and starts and stops it once more."""
    manager = world.manager
    if not world.is_open() and not world.is_over():
        # After a loss, or a second native cancellation of a stop(), no call waits for the owner task.
        is_lost = world.lost or world.was_interrupted_by(*LOSSES)
        allowed = is_lost or world.was_cancelled_again() or world.stops_by_others
        world.check("1: an owner task is still alive", allowed)
    world.check(
        "1: every block has exited, but the connection is open",
        not (world.scenario.only_blocks and world.is_open()),
    )
    await manager.stop()
    world.check("3: stop() returned, but the owner task is alive", world.is_over())
    while world.stops_by_others:
        await checkpoint()
    failed = manager.state is ConnectionState.FAILED
    world.check(
        "`exception` is set if and only if the state is FAILED",
        failed == (manager.exception is not None),
    )
    world.check("8: entered and exited once each, in the same task", manager.entered == manager.exited)
    if not world.was_interrupted_by("transport_ends", "transport_crashes", "owner_task_is_cancelled"):
        forced = world.was_cancelled or world.was_interrupted_by("stop_now") or world.scenario.is_forced
        world.check("4: a healthy close was cancelled", forced or not manager.closings_cancelled)
    for run in world.lost:
        world.check(
            "a loss is not in the `exception` of its run", isinstance(run.exception, ConnectionLostError)
        )
    for run in world.lost_while_opening:
        is_exact = world.scenario.fails_if_cancelled or not world.scenario.allowed
        if len(world.interruptions) == 1 and is_exact:
            error = run.exception
            is_reason = isinstance(error, ConnectionLostError) and isinstance(error.__cause__, Boom)
            world.check(f"a loss while opening, but the `exception` is {error!r}", is_reason)
    for run in world.runs:
        world.check("a waiting call is left", not run._waiters)
        world.check("an owner task is left", run.is_over and run._task is None)
        is_last = run._series is not None and run._series.newest is run
        world.check("the run still refers to its series", not is_last)
        world.check("a call is still counted", run._series is None or not run._series.starters)
    attempts = len(manager.entered)
    if world.is_virtual:
        await anyio.sleep(400)  # would fire a timer that is left
    world.check("K2: an attempt follows the last stop()", len(manager.entered) == attempts)
    logged = [record.exc_info[1] for record in records if record.exc_info]
    world.check("8: an error was logged twice", len(set(map(id, logged))) == len(logged))
    world.check("ownertask logged at ERROR", not any(record.levelno >= 40 for record in records))
    causes = [error.__cause__ for error in logged]
    for run in world.runs:
        error = run.exception
        was_logged = error is None or not run.outcome.was_open or any(error is seen for seen in logged)
        world.check("8: an error was not logged", was_logged)
    for error in manager.errors:
        seen = any(error is other or is_inside(error, other) for other in [*logged, *causes])
        raised = any(error is run.exception or is_inside(error, run.exception) for run in world.runs)
        world.check(f"8: {error!r} was neither logged nor raised", seen or raised)
    if world.scenario.settings.get("start_timeout") is None:
        with suppress(Boom):
            with anyio.fail_after(100):
                await manager.start()
        await manager.stop()
        world.check("the manager cannot be used again", not manager.is_acquired)


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


INTERRUPTIONS = [
    "caller_scope_is_cancelled",
    "caller_task_is_cancelled",
    "owner_task_is_cancelled",
    "transport_ends",
    "transport_crashes",
    "loss",
    "stop",
    "stop_now",
]
SECOND_INTERRUPTIONS = ["caller_scope_is_cancelled", "caller_task_is_cancelled", "loss", "stop_now"]


async def sweep(scenario, *, unit, second_interruptions=()):
    """Runs a scenario with each interruption at each point, and with each second one after it.

    Returns:
        The number of runs, and a dictionary from interruptions to failed checks.
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

    def combinations(kinds):
        for kind in kinds:
            if "task" in kind and not is_asyncio():
                continue
            for who in ("caller", "owner"):
                for when in ("before", "after"):
                    yield kind, who, when

    await run()
    for first_combination in combinations(INTERRUPTIONS):
        for k in count(1):
            first = Interruption(*first_combination, k)
            if not await run(first):
                break
            for second_combination in combinations(second_interruptions):
                if second_combination[2] == "after":
                    continue
                for later in count(1):
                    if not await run(first, Interruption(*second_combination, later)):
                        break
    return runs, failures
