"""Event loops whose clock jumps to the next timer as soon as nobody can run."""

import asyncio
import selectors
import sys

import anyio


class Deadlock(BaseException):
    """Nobody can run, and no timer is set."""


class Spin(BaseException):
    """Somebody runs and runs, and time does not get on."""


class JumpingSelector(selectors.DefaultSelector):
    """Never waits: moves the clock on instead."""

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
if sys.platform != "win32":  # uvloop does not exist there, and its clock cannot jump
    CLOCKS.append("uvloop")


def run(function, *args, clock):
    """`anyio.run`, the same each time."""
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
