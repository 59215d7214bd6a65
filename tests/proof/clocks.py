"""Event loops with a virtual clock, which jumps to the next timer when no task can run."""

import asyncio
import functools
import inspect
import selectors
import sys
from math import inf

import anyio
import pytest


class Deadlock(BaseException):
    """No task can run, and no timer is set."""


class Spin(BaseException):
    """Tasks keep running, but the clock does not advance."""


class JumpingSelector(selectors.DefaultSelector):
    """Advances the clock instead of waiting."""

    now = 0.0
    turns = 0

    def select(self, timeout=None):
        ready = super().select(0)
        self.turns += 1
        if self.turns > 100_000:
            raise Spin
        if not ready and timeout is None:
            raise Deadlock
        if not ready:
            self.now += max(timeout, 0)
            self.turns = 0 if timeout > 0 else self.turns
        return ready


class JumpingEventLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self.jumping = JumpingSelector()
        super().__init__(self.jumping)

    def time(self):
        return self.jumping.now


def eager_jumping_event_loop():
    loop = JumpingEventLoop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop


CLOCKS = ["asyncio", "trio"]
if sys.version_info >= (3, 12):  # Python 3.11 has no eager tasks
    CLOCKS.append("eager")
if sys.platform != "win32":  # uvloop has no Windows version, and its clock cannot jump
    CLOCKS.append("uvloop")


def trio_options():
    """Returns options for a virtual clock. Tasks are scheduled in the same order each time."""
    import trio.testing

    run_module = trio._core._run
    run_module._ALLOW_DETERMINISTIC_SCHEDULING = True
    run_module._r.seed(0)
    clock = trio.testing.MockClock(autojump_threshold=0)
    sleep_time = clock.deadline_to_sleep_time

    class Watch(trio.abc.Instrument):
        has_polled = False

        def before_task_step(self, task):
            self.has_polled = False

    def detect_deadlock(deadline):
        is_settling = run_module.GLOBAL_RUN_CONTEXT.runner.waiting_for_idle
        if deadline < inf or is_settling:  # a task awaits wait_all_tasks_blocked()
            return sleep_time(deadline)
        if watch.has_polled:
            raise Deadlock
        watch.has_polled = True  # a callback may be scheduled, which only shows when trio polls
        return 0

    watch = Watch()
    clock.deadline_to_sleep_time = detect_deadlock
    return {"clock": clock, "instruments": [watch]}


def loop_factory(clock):
    if clock == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return JumpingEventLoop if clock == "asyncio" else eager_jumping_event_loop


def run(function, *args, clock):
    """Runs `function` with `anyio.run()`. Time is virtual, except on uvloop."""
    if clock == "trio":
        import trio

        try:
            return anyio.run(function, *args, backend="trio", backend_options=trio_options())
        except trio.TrioInternalError as error:
            if isinstance(error.__cause__, Deadlock):
                raise error.__cause__ from None
            raise
    return anyio.run(function, *args, backend_options={"loop_factory": loop_factory(clock)})


VIRTUAL_CLOCKS = [clock for clock in CLOCKS if clock != "uvloop"]


def in_virtual_time(test):
    """Runs an async test with each virtual clock, for a hundred days at most."""

    @functools.wraps(test)
    def run_in_loop(clock, **arguments):
        async def bounded():
            with anyio.fail_after(100 * 24 * 3600):
                await test(**arguments)

        run(bounded, clock=clock)

    parameters = inspect.signature(test).parameters.values()
    clock = inspect.Parameter("clock", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run_in_loop.__signature__ = inspect.Signature([clock, *parameters])
    return pytest.mark.parametrize("clock", VIRTUAL_CLOCKS)(run_in_loop)


def run_and_abandon(function, *args, clock):
    """Runs `function` until it awaits its last argument, a function. Then the loop ends at once.

    An asyncio loop is closed while tasks wait. A trio run crashes, which cancels all tasks.
    """
    if clock == "trio":
        crash_trio(function, args)
        return
    loop = loop_factory(clock)()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending"
    finished = loop.create_future()

    async def abandon():
        finished.set_result(None)
        await loop.create_future()

    def end_early(task):
        if not finished.done():
            finished.set_exception(task.exception())

    loop.create_task(function(*args, abandon)).add_done_callback(end_early)
    try:
        loop.run_until_complete(finished)
    finally:
        loop.close()


def crash_trio(function, args):
    import trio

    class Crash(Exception):  # noqa: N818 - short, and never seen
        pass

    async def crash():
        raise Crash

    async def abandon():
        trio.lowlevel.spawn_system_task(crash)
        await trio.sleep_forever()

    try:
        anyio.run(function, *args, abandon, backend="trio", backend_options=trio_options())
    except trio.TrioInternalError as error:
        cause = error.__cause__
        while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
            [cause] = cause.exceptions
        if not isinstance(cause, Crash):  # something else crashed trio
            raise
