"""Managers that open each other, up to four deep, and a harness that records what truly happens."""

import asyncio
import contextvars
import gc
import logging
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import anyio
from anyio.lowlevel import checkpoint
from proof.odd import ODD, REPLACED, leaf_of
from proof.search import let_all_tasks_run
from proof.sweep import is_asyncio

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionManagerError,
    ConnectionState,
    ManagerInUseError,
    NotConnectedError,
    StartTimeoutError,
)

COUNT = 4
ALIVE = {ConnectionState.OPENING, ConnectionState.OPEN, ConnectionState.CLOSING}


class Nested(ConnectionManager[object]):
    """A manager that opens others inside its own run, and records what truly happens.

    Attributes:
        inside: The managers to open inside the next run.
        user: The connection of which the connection of this manager is a part, if any.
        alive: The connections that are open, or half open.
        runs: The connections that were opened by this manager itself.
    """

    def __init__(self, world, number):
        super().__init__(name=f"w{number}")
        self.world = world
        self.inside = []
        self.user = None
        self.alive = []
        self.runs = []
        self.script = iter(())
        self.entries = []

    def open_connection(self):
        opened = Opened(self)
        if self.user is None:
            self.runs.append(opened)
            self.world.roots.append(opened)
        return opened

    @property
    def is_alive(self):
        return self.state in ALIVE

    @property
    def root(self):
        """The run of which this manager's connection is a part, or the last that it began."""
        if self.user is not None:
            return self.user.root
        return self.runs[-1] if self.runs else None

    async def stage(self, errors):
        outcome = "ok" if self.world.is_ending else next(self.script, "ok")
        if outcome == "hang":
            await anyio.sleep_forever()
        if outcome == "slow":
            await anyio.sleep(2.5)
        await checkpoint()
        if outcome not in {"ok", "slow"}:
            errors.append((outcome, ODD[outcome]()))
            raise errors[-1][1]


class Opened:
    """A connection of a `Nested`.

    No context manager of the standard library is used, since these touch the exceptions that pass.

    Attributes:
        root: The connection whose owner task this is.
        members: The managers that were part of the run (root only).
        errors: The exceptions that the stages of the run raised, with their names (root only).
    """

    def __init__(self, manager):
        self.manager = manager
        self.world = manager.world
        self.generation = manager.world.generation
        self.root = self if manager.user is None else manager.user.root
        self.members = []
        self.errors = []
        self.refusals = []
        self.begun_by = None
        self.is_over = False
        self.stack = []
        self.context = None
        self.task = None

    async def __aenter__(self):
        self.root.members.append(self.manager)
        self.manager.alive.append(self)
        self.world.check(len(self.manager.alive) == 1, f"9: {self.manager.name} is open twice")
        self.task = anyio.get_current_task().id
        self.context = contextvars.copy_context()
        try:
            for inner in self.manager.inside:
                await self.open_inside(inner)
            self.manager._add_fact("noted while opening")
            await self.manager.stage(self.root.errors)
        except BaseException as error:
            await self.close(error)
            raise
        return self

    async def open_inside(self, inner):
        is_busy = inner.user is not None or inner.is_alive
        if not is_busy:
            inner.user = self
        context_manager = self.manager.open_inner(inner)
        try:
            await context_manager.__aenter__()
        except BaseException as error:
            is_refused = type(error) is ManagerInUseError and str(error) not in self.root.refusals
            self.world.check(is_refused == is_busy, f"{inner.name}: {is_busy=}, but {is_refused=}")
            if is_refused:
                self.root.refusals.append(str(error))
            if not is_busy:
                self.take_back(inner)
            raise
        self.world.check(not is_busy, f"{inner.name} was lent, although it is in use")
        self.stack.append((inner, context_manager))

    def take_back(self, inner):
        if inner.user is self:
            inner.user = None

    async def __aexit__(self, exc_type, error, traceback):
        is_collected = exc_type is GeneratorExit and self.generation != self.world.generation
        try:
            if not is_collected:
                await self.manager.stage(self.root.errors)
        except BaseException as raised:
            await self.close(raised)
            raise
        await self.close(error)

    async def close(self, error):
        while self.stack:
            inner, context_manager = self.stack.pop()
            try:
                await context_manager.__aexit__(None if error is None else type(error), error, None)
            except BaseException as raised:
                self.take_back(inner)
                await self.close(raised)
                if raised is not error:
                    raise
            self.take_back(inner)
        if not self.is_over:
            self.is_over = True
            if self.generation == self.world.generation:
                self.manager.alive.remove(self)
                same = self.task == anyio.get_current_task().id
                self.world.check(same, "8: entered and exited in different tasks")


class Call:
    def __init__(self, kind, manager):
        self.kind = kind
        self.manager = manager
        self.run = None
        self.scope = self.task = self.error = None
        self.leave = anyio.Event()
        self.is_inside = self.is_over = self.is_cancelled = self.has_connection = False
        self.joined = self.exited = None

    @property
    def waits_for_run(self):
        return not self.is_over and not self.is_inside


class World:
    """The managers, and the calls that were made to them in the present event loop.

    Args:
        exact: Whether all tasks run until they are idle after each step, so that its effect is exact.
        turns: How many iterations of the event loop that takes.
    """

    def __init__(self, *, exact, turns=40):
        self.generation = 0
        self.exact = exact
        self.turns = turns
        self.is_settled = False
        self.problems = []
        self.roots = []
        self.managers = [Nested(self, number) for number in range(COUNT)]
        self.begin_loop()

    def begin_loop(self):
        self.calls = []
        self.tasks = set()
        self.is_ending = False

    def check(self, holds, message):
        if not holds:
            self.problems.append(message)

    def end_loop(self):
        """The loop is closed: what was open in it counts as over."""
        self.generation += 1
        for root in self.roots:
            root.is_over = True
        for manager in self.managers:
            manager.alive.clear()
            manager.user = None
            manager.entries = [(None, run) for _, run in manager.entries]
            self.check(not manager.is_alive, f"{manager.name} is {manager.state} in a closed loop")
        self.begin_loop()

    def spawn(self, function, *args):
        # No task group, because those that are abandoned are noisy when they are collected.
        if is_asyncio():
            task = asyncio.get_running_loop().create_task(function(*args))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        else:
            import trio

            trio.lowlevel.spawn_system_task(function, *args)

    # Calls.

    async def perform(self, call, function):
        call.task = asyncio.current_task() if is_asyncio() else None
        try:
            with anyio.CancelScope() as call.scope:
                try:
                    await function()
                except anyio.get_cancelled_exc_class():
                    raise
                except BaseException as error:
                    call.error = error
                    self.check_error(call, error)
                self.check_end(call)
        except asyncio.CancelledError:
            pass
        call.is_over = True
        call.is_inside = False

    def check_error(self, call, error):
        manager = call.manager
        if self.is_refused(call):
            is_misuse = call.kind == "run" and manager.is_alive
            self.check(manager.user or is_misuse, f"{call.kind}() raised {error}, but it is free")
        elif type(error) is AssertionError:
            self.problems.append(f"{call.kind}() raised {error!r}")
        elif manager.exception is not None and not issubclass(type(error), ConnectionManagerError):
            self.check(error is manager.exception, f"{call.kind}() raised {type(error)} instead")

    def is_refused(self, call):
        """Returns whether the call was refused, and not a manager that it was about to open inside."""
        error, root = call.error, call.manager.root
        is_own = type(error) is ManagerInUseError and error.name == call.manager.name
        return is_own and (root is None or str(error) not in root.refusals)

    def check_end(self, call):
        manager = call.manager
        if call.kind == "start" and call.error is None:
            self.check(manager.state is ConnectionState.OPEN, "start() returned, but it is not open")
        if call.kind == "stop" and call.error is None and call.run is not None:
            self.check(call.run.is_over, "3: stop() returned, but the owner is alive")

    async def start(self, call, timeout):
        await call.manager.start(timeout)
        call.has_connection = True

    async def run(self, call):
        def started(_connection):
            call.has_connection = True

        await call.manager.run(task_status=SimpleNamespace(started=started))

    async def block(self, call):
        async with call.manager as connection:
            self.enter(call, connection)
            call.is_inside = True
            try:
                await call.leave.wait()
            finally:
                call.is_inside = False
                self.exit(call)

    async def enter_only(self, call):
        self.enter(call, await call.manager.__aenter__())

    async def exit_only(self, call):
        self.exit(call)
        await call.manager.__aexit__(None, None, None)

    def enter(self, call, connection):
        call.has_connection = True
        call.run = connection
        call.manager.entries.append((call, connection))

    def exit(self, call):
        """Predicts to which entry the exit belongs."""
        entries = call.manager.entries
        own = [entry for entry in entries if entry[0] is call]
        over = [entry for entry in entries if entry[1].is_over]
        if entries:
            entry = own[-1] if own else (over or entries)[0]
            entries.remove(entry)
            call.exited = entry[1]

    def call(self, kind, number, argument):
        manager = self.managers[number]
        call = Call(kind, manager)
        if manager.is_alive:
            call.run = manager.root
        if manager.state is ConnectionState.OPENING:
            call.joined = manager.root
        functions = {
            "start": partial(self.start, call, argument),
            "stop": partial(manager.stop, argument),
            "wait_closed": manager.wait_closed,
            "run": partial(self.run, call),
            "enter": partial(self.block, call),
            "enter only": partial(self.enter_only, call),
            "exit only": partial(self.exit_only, call),
        }
        self.calls.append(call)
        self.spawn(self.perform, call, functions[kind])
        return call

    # Steps.

    async def settle(self):
        await let_all_tasks_run(self.turns)
        self.is_settled = True

    async def do(self, step, first, second, turns):
        self.is_settled = False
        if step == "pass time":
            await anyio.sleep(first)
        elif step in {"start", "stop", "wait_closed", "run", "enter", "enter only"}:
            await self.do_call(step, first, second)
        elif step == "enter instead":
            await self.do_enter_instead(first)
        elif step == "exit":
            await self.do_exit(first)
        elif step == "exit only":
            await self.do_exit_only(first)
        elif step in {"cancel", "cancel natively"}:
            await self.do_cancel(step, first)
        elif step == "collect":
            gc.collect()
        elif step == "lose":
            in_use = [manager for manager in self.managers if manager.is_alive or manager.user]
            if in_use:
                await self.do_lose(in_use[first % len(in_use)], second)
        elif step == "lose late":
            await self.do_lose_late(first, *second)
        elif step == "open inside":
            self.open_inside(first, second)
        elif step == "log":
            set_log_fault(first)
        for _ in range(turns):
            await checkpoint()
            self.check_any_time()
        if self.exact:
            if not self.is_settled:
                await self.settle()
            self.check_idle()

    def open_inside(self, number, numbers):
        inside = [self.managers[other] for other in sorted(numbers) if other != number]
        self.managers[number].inside = inside

    def snapshot(self):
        return [(manager.state, manager.root, self.readable(manager)) for manager in self.managers]

    async def do_call(self, step, number, argument):
        if not self.exact:
            self.call(step, number, argument)
            return
        manager = self.managers[number]
        before = self.snapshot()
        was_lent, was_alive = manager.user is not None, manager.is_alive
        call = self.call(step, number, argument)
        await self.settle()
        if step not in {"stop", "wait_closed"}:
            must_refuse = was_lent or (step == "run" and was_alive)
            is_refused = self.is_refused(call)
            self.check(is_refused == must_refuse, f"{manager.name}: {must_refuse=}, but {is_refused=}")
            root = manager.root
            if root is not None and not was_alive and not was_lent and root is not before[number][1]:
                root.begun_by = call
        if not was_alive and (was_lent or step in {"stop", "wait_closed"}):
            self.check(before == self.snapshot(), f"{step}() changed a manager that is not running")

    async def do_enter_instead(self, number):
        """Joins the attempt of a start() with a block, and cancels that start()."""
        await self.do_call("start", number, None)
        start = self.calls[-1]
        await self.do_call("enter", number, None)
        if not start.is_over:
            start.scope.cancel()
            await self.settle()

    async def do_exit(self, number):
        blocks = [call for call in self.calls if call.is_inside]
        if blocks:
            call = blocks[number % len(blocks)]
            before = self.snapshot()
            call.leave.set()
            await self.check_exit(call, before)

    async def do_exit_only(self, number):
        if self.managers[number].entries:
            before = self.snapshot()
            await self.check_exit(self.call("exit only", number, None), before)

    async def check_exit(self, call, before):
        """Checks that the last exit stops the run that a block began, and that no other exit does."""
        if not self.exact:
            return
        await self.settle()
        manager, run = call.manager, call.exited
        state = before[self.managers.index(manager)][0]
        is_in_use = run is not None and run is manager.root and state in ALIVE
        is_last = is_in_use and run not in [entered for _, entered in manager.entries]
        begun_by_block = is_last and self.is_begun_by_block(run)
        if is_in_use and state is not ConnectionState.OPEN:
            return  # it is closing, and a cancelled exit forces that
        if begun_by_block:
            self.check(manager.state is not ConnectionState.OPEN, "the last exit did not stop the run")
        elif begun_by_block is False:
            self.check(before == self.snapshot(), "an exit closed a connection in use")

    def is_begun_by_block(self, run):
        """Returns whether the run belongs to its blocks, or `None` if that depends on more."""
        begun_by = run.begun_by
        if begun_by is None:
            return None
        if begun_by.has_connection:
            return begun_by.kind.startswith("enter")
        joined = [call for call in self.calls if call.joined is run and call.kind.startswith("enter")]
        return True if joined else None

    async def do_cancel(self, step, number):
        pending = [call for call in self.calls if not call.is_over and call.scope is not None]
        if not pending:
            return
        call = pending[number % len(pending)]
        was_inside, before = call.is_inside, self.snapshot()
        if step == "cancel natively" and call.task is not None:
            if not call.is_cancelled:  # a second one ends the wait of a stop()
                call.task.cancel()
        else:
            call.scope.cancel()
        call.is_cancelled = True
        if was_inside:
            await self.check_exit(call, before)

    async def do_lose(self, manager, reason):
        manager.connection_lost(None if reason is None else ODD[reason]())
        await self.check_lost(manager.root)

    async def check_lost(self, run):
        if not self.exact or run is None:
            return
        await self.settle()
        state = run.manager.state
        is_running = run.manager.root is run and not run.is_over
        ends = state not in {ConnectionState.OPENING, ConnectionState.OPEN}
        self.check(ends or not is_running, f"a loss is reported, but {run.manager.name} is {state}")

    async def do_lose_late(self, number, which, reason, by_task):
        """Reports a loss from the context of a run that is over, or, if `number` is 0, may be alive."""
        runs = [run for run in self.roots if run.context is not None and (run.is_over or number == 0)]
        if not runs:
            return
        run = runs[-1 - number % len(runs)]
        manager = run.members[which % len(run.members)]
        await self.settle()
        is_over, before = run.is_over, self.snapshot()

        async def report():
            manager.connection_lost(None if reason is None else ODD[reason]())

        context = run.context.copy()
        if by_task and is_asyncio():
            context.run(self.spawn, report)
        else:
            context.run(run_now, report())
        await self.settle()
        if is_over:
            name = manager.name
            self.check(
                before == self.snapshot(), f"{name}: a callback of a run that is over had effects"
            )
        else:
            await self.check_lost(run)

    # Checks.

    def readable(self, manager):
        try:
            return manager.connection
        except (NotConnectedError, ConnectionLostError):
            return None

    def check_any_time(self):
        for manager in self.managers:
            state, connection = manager.state, self.readable(manager)
            is_open = state is ConnectionState.OPEN
            self.check((connection is not None) == is_open, f"{manager.name}: read while {state}")
            self.check(
                not is_open or manager.alive == [connection], "the connection is not the open one"
            )
            has_failed = manager.exception is not None
            self.check(has_failed == (state is ConnectionState.FAILED), f"{has_failed=} while {state}")
            self.check(not (manager.is_alive and manager.user), f"{manager.name} is lent, and alive")

    def check_idle(self):
        self.check_any_time()
        for manager in self.managers:
            if not manager.is_alive and manager.user is None:
                self.check(not manager.alive, f"1: {manager.name} is {manager.state}, but still open")
                waiting = [
                    call.kind for call in self.calls if call.manager is manager and call.waits_for_run
                ]
                self.check(not waiting, f"7: {waiting} wait, but {manager.name} is {manager.state}")
            self.check_outcome(manager)
        assert not self.problems, self.problems[0]

    def check_outcome(self, manager):
        """If exactly one stage of the last run raised, and nothing else happened, that error arrives."""
        run = manager.runs[-1] if manager.runs else None
        error = manager.exception
        if run is None or error is None or run.refusals or len(run.errors) != 1:
            return
        [(name, raised)] = run.errors
        has_cause = type(error) in {ConnectionLostError, StartTimeoutError}
        chain = [error, error.__cause__] if has_cause else [error]
        arrived = any(each is raised or each is leaf_of(raised) for each in chain)
        known = type(error) is ConnectionLostError or name in REPLACED
        # If a timeout cancels the cleanup after an error, the cancellation replaces the error.
        known = known or (type(error) is StartTimeoutError and error.__cause__ is None)
        self.check(arrived or known, f"{name}: {type(error)} arrived instead")

    # The end of a loop.

    async def end(self):
        set_log_fault("")
        self.is_ending = True  # from now on, each stage succeeds
        for call in self.calls:
            call.leave.set()
        await self.settle()
        for manager in self.managers:
            await manager.stop(5.3)
        await self.settle()
        for manager in self.managers:
            self.check(not manager.is_alive, f"{manager.name} was stopped, but is {manager.state}")
            self.check(manager.user is None, f"{manager.name} is still lent")
        self.check(all(call.is_over for call in self.calls), "7: a call is still waiting after the end")
        self.check_idle()

    async def use_all(self):
        """Starts each manager by itself, and then all of them inside the first one."""
        self.is_ending = True
        for manager in self.managers:
            manager.inside = []
            async with manager as connection:
                self.check(manager.connection is connection, f"{manager.name} cannot be used again")
        for manager, inner in zip(self.managers, self.managers[1:], strict=False):
            manager.inside = [inner]
        await self.managers[0].start()
        self.check(
            all(manager.alive for manager in self.managers), "the managers cannot be nested again"
        )
        await self.end()


def run_now(coroutine):
    """Runs a coroutine that does not suspend."""
    try:
        coroutine.send(None)
    except StopIteration:
        pass


# Logging.


class Fault(logging.Handler):
    """A handler and a filter of the logger. Each of them raises if it is the present fault."""

    present = ""

    def emit(self, record):
        if self.present == "handler":
            raise LookupError("a handler that raises")
        if self.present == "formatter":
            self.format(record)  # which may raise what an odd exception raises

    def filter(self, record):
        if self.present == "filter":
            raise LookupError("a filter that raises")
        return True


FAULT = Fault()


def set_log_fault(which):
    FAULT.present = which


@contextmanager
def faulty_logging():
    """Lets `set_log_fault()` decide what raises when the core logs something."""
    logger = logging.getLogger("ownertask")
    logger.addHandler(FAULT)
    logger.addFilter(FAULT)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
        logger.removeFilter(FAULT)
        logger.removeHandler(FAULT)
        set_log_fault("")
