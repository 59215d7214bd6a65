"""Event loops with a virtual clock, which jumps to the next timer when no task can run."""

import asyncio
import selectors
import sys

import anyio


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


def run(function, *args, clock):
    """Runs `function` with `anyio.run()`.

    Time is virtual, except on uvloop. trio schedules tasks in the same order each time.
    """
    if clock == "trio":
        import trio.testing

        run_module = trio._core._run
        run_module._ALLOW_DETERMINISTIC_SCHEDULING = True
        run_module._r.seed(0)
        options = {"clock": trio.testing.MockClock(autojump_threshold=0)}
        return anyio.run(function, *args, backend="trio", backend_options=options)
    if clock == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    else:
        factory = JumpingEventLoop if clock == "asyncio" else eager_jumping_event_loop
    return anyio.run(function, *args, backend_options={"loop_factory": factory})
