"""Reports a loss before each line of the core, as a signal handler may do.

A handler of `signal.signal()` interrupts the event loop's thread between any two instructions. Here a
trace function raises the signal, so each line is tried once, and nothing depends on timing.
"""

import signal
import sys
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from proof import clocks
from proof.sweep import RecordingManager

import ownertask
from ownertask import ConnectionLostError, ConnectionState, ConnectionStoppedError

CORE = str(Path(ownertask.__file__).parent)
ALIVE = {ConnectionState.OPENING, ConnectionState.OPEN}


class Handler:
    """Calls `handle` once, before the k-th line of the core that is executed."""

    def __init__(self, k, handle):
        self.lines_left = k
        self.handle = handle

    def __enter__(self):
        self.previous = sys.gettrace()
        self.previous_handler = signal.signal(signal.SIGTERM, self.handle_signal)
        sys.settrace(self.enter_function)
        return self

    def __exit__(self, *_):
        sys.settrace(self.previous)
        signal.signal(signal.SIGTERM, self.previous_handler)

    def handle_signal(self, number, frame):
        self.handle(self.place)

    def enter_function(self, frame, event, argument):
        is_core = frame.f_code.co_filename.startswith(CORE)
        return self.next_line if is_core and self.lines_left > 0 else None

    def next_line(self, frame, event, argument):
        if event != "line":
            return self.next_line
        self.lines_left -= 1
        if self.lines_left == 0:
            self.place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            signal.raise_signal(signal.SIGTERM)
        return self.next_line if self.lines_left > 0 else None


async def interrupted_at(k):
    """Opens and stops a manager, and reports a loss before the k-th line.

    Returns:
        Whether there are that many lines.
    """
    manager = RecordingManager(anyio.lowlevel.checkpoint, anyio.lowlevel.checkpoint)
    is_lost = is_stopped = False
    place = None

    def handle(where):
        nonlocal is_lost, place
        place = f"interrupted before {where} while {manager.state.value}"
        is_lost = manager.state in ALIVE and not is_stopped
        manager.connection_lost(OSError("a signal"))

    with Handler(k, handle):
        with anyio.move_on_after(3) as scope:
            with suppress(ConnectionLostError, ConnectionStoppedError):
                await manager.start()
                await anyio.sleep(1)
                if is_lost:
                    await manager.wait_closed()
                is_stopped = True
                await manager.stop()
    assert not scope.cancelled_caught, f"{place}: a call did not return"
    assert manager.entered == manager.exited, f"{place}: the owner is alive, but no call waits for it"
    error = manager.exception
    assert (error is not None) == (manager.state is ConnectionState.FAILED), f"{place}: {error!r}"
    assert error is None or isinstance(error, ConnectionLostError), f"{place}: {error!r}"
    if is_lost:
        assert isinstance(error, ConnectionLostError), f"{place}: the loss was forgotten"
        assert str(error.__cause__) == "a signal", f"{place}: {error.__cause__!r}"
    await manager.start()
    await manager.stop()
    return place is not None


@pytest.mark.parametrize("clock", [clock for clock in clocks.CLOCKS if clock != "uvloop"])
def test_F12_a_loss_may_be_reported_before_any_line(clock, record_property):
    failures = []

    async def main():
        k, is_reached = 0, True
        while is_reached:
            k += 1
            try:
                is_reached = await interrupted_at(k)
            except Exception as error:
                failures.append(str(error).partition("\n")[0])
        return k - 1

    lines = clocks.run(main, clock=clock)
    assert not failures, "\n".join(failures)
    assert lines > 50
    record_property("interrupted lines", lines)
