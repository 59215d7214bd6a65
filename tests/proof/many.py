"""Runs a scenario of a group or a pool once for every point at which it can be interrupted.

The caller, the owner task of the group or pool, and the owner tasks of the members are driven by hand;
see `sweep.py`. Here an interruption cancels the caller or stops the group or pool, or something happens
to a member.
"""

import asyncio
import logging
from collections import Counter
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count

import anyio
from anyio.lowlevel import checkpoint
from conftest import all_tasks
from proof.sweep import Boom, Driven, Interruption, RecordingManager, Records, is_asyncio, task_name

from ownertask import (
    ConnectionGroup,
    ConnectionLostError,
    ConnectionPool,
    ConnectionState,
    ConnectionStoppedError,
    ManagerInUseError,
    NotConnectedError,
    ReconnectPolicy,
)
from ownertask._owner import Run

AT_ONCE = ReconnectPolicy(initial_delay=0, jitter=0)


async def fail():
    await checkpoint()
    raise Boom("the stage fails")


def lasting(duration):
    """Returns a stage that takes `duration` seconds."""
    return partial(anyio.sleep, duration)


def shielded(duration):
    """Returns a stage that takes `duration` seconds even if it is cancelled."""

    async def stage():
        with anyio.CancelScope(shield=True):
            await anyio.sleep(duration)

    return stage


class Scenario:
    """A scenario to sweep. Its functions are called with the world.

    Args:
        caller: The function that runs in the caller's task.
        create: Returns the group or pool.
        others: Functions that run in other tasks, at the same time as the caller.
        is_started: Whether the group or pool is started before the caller runs.
        bound: How long a call may take, in seconds.
        allowed: The exceptions that a call may raise without an interruption.
    """

    def __init__(self, caller, create, *, others=(), is_started=True, bound=0.0, allowed=()):
        self.caller = caller
        self.create = create
        self.others = others
        self.is_started = is_started
        self.bound = bound
        self.allowed = allowed


class World:
    """One run of a scenario.

    Attributes:
        holder: The group or pool.
        managers: All managers that were created, including those that do not belong to it.
        removed: The managers that were removed from the group, and belong to the caller.
        is_calm: Whether a pool's new connections open and close at once.
        problems: The checks that failed.
    """

    def __init__(self, scenario, plan):
        self.scenario = scenario
        self.plan = plan
        self.points = Counter()
        self.is_armed = False
        self.interruption = None
        self.caller_task = self.caller_scope = self.tasks = None
        self.stops_by_others = 0
        self.managers = []
        self.removed = []
        self.is_calm = self.is_over = False
        self.problems = []
        self.runs = []
        self.holder = scenario.create(self)

    def manager(self, opening=checkpoint, closing=checkpoint, **options):
        manager = RecordingManager(opening, closing, **options)
        self.managers.append(manager)
        return manager

    def check(self, message, holds):
        if not holds and message not in self.problems:
            self.problems.append(message)

    # Interruptions.

    def at_point(self, who, when):
        self.check_always()
        if not self.is_armed or self.interruption is not None or self.plan is None:
            return False
        self.points[who, when] += 1
        planned = self.plan
        if (who, when) != (planned.who, planned.when) or self.points[who, when] != planned.k:
            return False
        self.interruption = planned
        if when == "before" and not is_asyncio():
            # A trio task that is about to suspend must not wake itself up. Another task interrupts it.
            self.tasks.start_soon(self.interrupt_soon)
        else:
            getattr(self, planned.kind)()
        return True

    async def interrupt_soon(self):
        if self.is_armed:
            getattr(self, self.interruption.kind)()

    def caller_scope_is_cancelled(self):
        self.caller_scope.cancel()

    def caller_task_is_cancelled(self):
        self.caller_task.cancel()

    def stop(self, timeout=300):
        async def stop():
            await self.stopped(timeout)
            self.stops_by_others -= 1

        self.stops_by_others += 1
        self.tasks.start_soon(stop)

    def stop_now(self):
        self.stop(0)

    def first_in(self, *states):
        return next((manager for manager in self.managers if manager.state in states), None)

    def member_is_lost(self):
        if (manager := self.first_in(ConnectionState.OPEN)) is not None:
            manager.connection_lost(Boom("loss"))

    def member_crashes(self):
        manager = self.first_in(ConnectionState.OPEN, ConnectionState.OPENING)
        if manager is not None and manager.crash is not None:
            manager.crash.set()

    def member_is_stopped(self):
        if (manager := self.first_in(ConnectionState.OPEN, ConnectionState.OPENING)) is not None:
            self.tasks.start_soon(manager.stop)

    def holder_is_lost(self):
        self.holder.connection_lost(Boom("loss"))

    # Checks.

    def was_interrupted_by(self, *kinds):
        return self.interruption is not None and self.interruption.kind in kinds

    @property
    def was_cancelled(self):
        return self.was_interrupted_by("caller_scope_is_cancelled", "caller_task_is_cancelled")

    @property
    def acquired(self):
        return [each for each in self.managers if each.is_acquired and each not in self.removed]

    def may_raise(self, error):
        if isinstance(error, anyio.get_cancelled_exc_class()):
            return self.was_cancelled
        if isinstance(error, self.scenario.allowed):
            return True
        if isinstance(error, ConnectionStoppedError):
            return self.was_interrupted_by("stop", "stop_now", "member_is_stopped", "holder_is_lost")
        if isinstance(error, ManagerInUseError | NotConnectedError):
            return self.was_interrupted_by("stop", "stop_now", "holder_is_lost")
        if isinstance(error, ConnectionLostError):
            return self.was_interrupted_by("member_is_lost", "member_crashes", "holder_is_lost")
        if isinstance(error, BaseExceptionGroup):
            return all(map(self.may_raise, error.exceptions))
        return isinstance(error, Boom) and self.was_interrupted_by("member_crashes", "member_is_lost")

    @contextmanager
    def bounded(self, call):
        began = anyio.current_time()
        try:
            yield
        finally:
            took = anyio.current_time() - began
            self.check(f"7: {call} took {took:.2f} s", took <= self.scenario.bound + 1e-6)

    async def started(self):
        """Starts the group or pool, and checks the guarantees at the moment when the call ends."""
        try:
            with self.bounded("start()"):
                return await self.holder.start()
        except BaseException as error:
            self.check(f"start() raised {error!r}", self.may_raise(error))
            self.check("1: start() raised, but a member is open", not self.acquired)
            self.check("1: start() raised, but tasks are left", not self.library_tasks())
            raise

    async def stopped(self, timeout=300):
        """Stops the group or pool, and checks the guarantees at the moment when the call ends."""
        try:
            with self.bounded("stop()"):
                await self.holder.stop(timeout)
        except BaseException as error:
            is_cancellation = isinstance(error, anyio.get_cancelled_exc_class())
            self.check(f"stop() raised {error!r}", is_cancellation and self.was_cancelled)
            raise
        finally:
            self.check("3: stop() ended, but a member is open", not self.acquired)
            left = [] if self.removed else self.library_tasks()
            self.check(f"3: stop() ended, but tasks are left: {left}", not left)

    def library_tasks(self):
        names = map(task_name, all_tasks())
        return [name for name in names if name.startswith(("owner task of ", "ownertask "))]

    def check_always(self):
        if self.is_over:
            return
        if isinstance(self.holder, ConnectionPool):
            self.check_pool()
        elif isinstance(self.holder, ConnectionGroup):
            self.check_group()

    def check_group(self):
        if self.holder.state is ConnectionState.OPEN:
            members = self.holder.managers
            is_open = {key for key, member in members.items() if member.state is ConnectionState.OPEN}
            view = self.holder.connection
            self.check("the view does not contain the open members", set(view) == is_open)
            for key in is_open:
                is_own = view[key] is members[key].connection
                self.check("a connection of the view is not that of the member", is_own)

    def check_pool(self):
        limit = self.holder.max_open
        runs = [manager._life.run for manager in self.managers]
        alive = sum(run is not None and run.is_alive for run in runs)
        self.check(
            f"{alive} connections exist, but max_open is {limit}", limit is None or alive <= limit
        )
        if self.holder.state is ConnectionState.OPEN:
            stats = self.holder.stats()
            is_open = sum(manager.state is ConnectionState.OPEN for manager in self.managers)
            self.check(f"{is_open} connections are open, but {stats}", stats.open == is_open)
            self.check(f"{stats}", 0 <= stats.idle <= stats.open and stats.waiting >= 0)

    async def check_slots(self):
        """Checks that the pool can open `max_open` new keys at once, so that it has lost no slot."""
        for _ in range(3):
            await checkpoint()  # the task of the pool that closes a connection may not have begun
        for manager in self.managers:
            if manager.state is ConnectionState.CLOSING:
                with suppress(Boom, ConnectionLostError):
                    await manager.wait_closed()
        pool = self.holder
        self.check(f"somebody still waits: {pool.stats()}", pool.stats().waiting == 0)
        self.check(f"a connection is not idle: {pool.stats()}", pool.stats().idle == pool.stats().open)
        self.is_calm = True
        inside = anyio.Event()
        entered = 0

        async def use(key):
            nonlocal entered
            async with pool.acquire(key):
                entered += 1
                await inside.wait()

        async with anyio.create_task_group() as tg:
            for k in range(pool.max_open or 3):
                tg.start_soon(use, f"fresh {k}")
            with anyio.move_on_after(10):
                while entered < (pool.max_open or 3):
                    await anyio.sleep(1)
            self.check(f"a slot was lost: {entered} of {pool.max_open}", entered == (pool.max_open or 3))
            inside.set()
            tg.cancel_scope.deadline = anyio.current_time() + 1


async def run_case(scenario, plan):
    """Runs a scenario with the planned interruption. Returns the world, with its failed checks."""
    tasks_before = all_tasks()
    world = World(scenario, plan)
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
        if is_asyncio():
            times = world.was_interrupted_by("caller_task_is_cancelled")
            world.check(
                "6: the caller's cancelling() has changed", world.caller_task.cancelling() == times
            )

    async def call_in_scope():
        if is_asyncio():
            world.caller_task = asyncio.current_task()
        with world.caller_scope:
            try:
                await Driven(scenario.caller(world), partial(world.at_point, "caller"))
            except BaseException as error:
                world.check(f"the caller raised {error!r}", world.may_raise(error))
                if isinstance(error, anyio.get_cancelled_exc_class()):
                    raise
            else:
                swallowed = world.was_interrupted_by("caller_task_is_cancelled")
                world.check("a native cancellation was swallowed", not swallowed)

    async def other(function):
        try:
            await function(world)
        except Exception as error:
            world.check(f"another task raised {error!r}", world.may_raise(error))

    with watched(world) as records:
        if scenario.is_started:
            await world.holder.start()
        async with anyio.create_task_group() as world.tasks:
            world.tasks.start_soon(stand_by)
            async with anyio.create_task_group() as tg:
                for function in scenario.others:
                    tg.start_soon(other, function)
                world.caller_scope = anyio.CancelScope()
                world.is_armed = True
                tg.start_soon(call)
            world.is_armed = False
            while world.stops_by_others:
                await anyio.sleep(0.01)
            await check_end(world, records)
            world.check("6: a bystander was cancelled", not bystander_was_cancelled)
            world.tasks.cancel_scope.cancel()
        left = all_tasks() - tasks_before
    world.check(f"10: tasks are left: {left}", not left)
    return world


@contextmanager
def watched(world):
    """Drives each owner task by hand, and collects the runs and the log records."""
    own, records = Run._own, Records()

    async def driven_own(run):
        world.runs.append(run)
        who = "holder" if run.series.key is world.holder._life.key else "member"
        await Driven(own(run), partial(world.at_point, who))

    logger = logging.getLogger("ownertask")
    Run._own = driven_own
    logger.addHandler(records)
    logger.propagate = False
    try:
        yield records.records
    finally:
        Run._own = own
        logger.removeHandler(records)
        logger.propagate = True


async def check_end(world, records):
    """Makes the final checks, and uses the group or pool and all managers once more."""
    holder = world.holder
    if isinstance(holder, ConnectionPool) and holder.state is ConnectionState.OPEN:
        await world.check_slots()
    world.check_always()
    await holder.stop()
    world.check("3: stop() ended, but a member is open", not world.acquired)
    for manager in world.managers:
        world.check(
            "8: entered and exited once each, in the same task", manager.entered == manager.exited
        )
        manager.opening = manager.closing = checkpoint
    for run in world.runs:
        world.check("a waiting call is left", not run._waiters)
        world.check("an owner task is left", run.is_over and run._task is None)
    attempts = sum(len(manager.entered) for manager in world.managers)
    await anyio.sleep(400)  # would fire a timer that is left
    again = sum(len(manager.entered) for manager in world.managers)
    world.check("K2: an attempt follows the last stop()", again == attempts)
    logged = [record.exc_info[1] for record in records if record.exc_info]
    world.check("8: an error was logged twice", len(set(map(id, logged))) == len(logged))
    world.check("ownertask logged at ERROR", not any(record.levelno >= 40 for record in records))
    # A manager that is still claimed could not become part of another group.
    world.is_calm = True
    await holder.start()
    world.check_always()
    await holder.stop()
    world.is_over = True
    async with ConnectionGroup(dict(enumerate(world.managers)), name="other") as connections:
        world.check("a manager cannot be used again", len(connections) == len(world.managers))


INTERRUPTIONS = [
    "caller_scope_is_cancelled",
    "caller_task_is_cancelled",
    "stop",
    "stop_now",
    "member_is_lost",
    "member_crashes",
    "member_is_stopped",
    "holder_is_lost",
]


async def sweep(scenario, *, interruptions=INTERRUPTIONS, points=None):
    """Runs a scenario with each interruption at each point.

    Args:
        scenario: The scenario.
        interruptions: The interruptions.
        points: Pairs of a task and a moment; `None` means all.

    Returns:
        The number of runs, and a dictionary from interruptions to failed checks.
    """
    if points is None:
        points = [(who, when) for who in ("caller", "holder", "member") for when in ("before", "after")]
    runs = 0
    failures = {}

    async def run(plan):
        nonlocal runs
        runs += 1
        try:
            with anyio.fail_after(1000):
                world = await run_case(scenario, plan)
        except Exception as error:
            failures[plan] = [repr(error)]
            return False
        if world.problems:
            failures[plan] = world.problems
        return world.interruption is not None

    await run(None)
    for kind in interruptions:
        if "task" in kind and not is_asyncio():
            continue
        for who, when in points:
            for k in count(1):
                if not await run(Interruption(kind, who, when, k)):
                    break
    return runs, failures
