"""Checks the rules about interruptions at each step of an opening or a closing."""

from collections.abc import Callable
from typing import TypeVar

from anyio import CancelScope, Event, sleep_forever

from ..errors import ConnectionStoppedError
from ..manager import ConnectionManager
from ..state import ConnectionState
from ._steps import Steps, chosen_steps, count_steps
from ._trial import BrokenRuleError, Trial, alongside, described

__all__ = ["cancelled_start", "cancelled_stop", "stopped_while_opening"]

T = TypeVar("T")


async def cancelled_start(trial: Trial[T]) -> None:
    """Cancels the only caller of `start()` at each step of the opening."""
    manager = trial.make()
    for step in chosen_steps(trial.opening_steps):
        scope = CancelScope()
        place = f"step {step} of {trial.opening_steps}"
        interrupt_opening(trial, manager, step, scope.cancel)

        async def start(scope: CancelScope = scope) -> None:
            with scope:
                await manager.start()

        await trial.call(f"start(), to be cancelled at {place},", start)
        if scope.cancel_called:
            trial.check_closed(manager, f"after start() was cancelled at {place}")
        await after_interruption(trial, manager, f"start() was cancelled at {place}")
    await trial.check_works_again(manager, "start() was cancelled at each step")


async def stopped_while_opening(trial: Trial[T]) -> None:
    """Calls `stop()` at each step of the opening."""
    manager = trial.make()
    for step in chosen_steps(trial.opening_steps):
        place = f"step {step} of {trial.opening_steps}"
        when = f"stop() was called at {place}"
        reached, stopped = Event(), Event()
        interrupt_opening(trial, manager, step, reached.set)

        async def stop(reached: Event = reached, stopped: Event = stopped) -> None:
            await reached.wait()
            try:
                await manager.stop(timeout=None)
            finally:
                stopped.set()
            await sleep_forever()

        async with alongside(stop):
            error = await trial.error_of(f"start(), to be stopped at {place},", manager.start)
            if reached.is_set():
                await trial.call(f"stop(), called at {place},", stopped.wait)
        if error is not None and not isinstance(error, ConnectionStoppedError):
            raise BrokenRuleError(f"start(), to be stopped at {place}, raised {described(error)}", error)
        if reached.is_set():
            trial.check_closed(manager, f"after {when}")
        await after_interruption(trial, manager, when)
    await trial.check_works_again(manager, "stop() was called at each step")


async def cancelled_stop(trial: Trial[T]) -> None:
    """Cancels the caller of `stop()` at each step of the closing."""
    manager = trial.make()
    for step in chosen_steps(trial.closing_steps):
        scope = CancelScope()
        place = f"step {step} of {trial.closing_steps}"
        count_steps(manager, Steps(), Steps(step, scope.cancel))

        async def stop(scope: CancelScope = scope) -> None:
            with scope:
                await manager.stop(timeout=None)

        await trial.start(manager)
        await trial.call(f"stop(), to be cancelled at {place},", stop)
        await after_interruption(trial, manager, f"stop() was cancelled at {place}")
    await trial.check_works_again(manager, "stop() was cancelled at each step")


def interrupt_opening(
    trial: Trial[T], manager: ConnectionManager[T], step: int, interrupt: Callable[[], object]
) -> None:
    """Makes the next opening call `interrupt` at a step, and remember the processes at that moment."""

    def look_and_interrupt() -> None:
        trial.look()
        interrupt()

    count_steps(manager, Steps(step, look_and_interrupt), Steps())


async def after_interruption(trial: Trial[T], manager: ConnectionManager[T], when: str) -> None:
    """Checks that an interrupted call left nothing behind."""
    if manager.state is ConnectionState.OPEN:  # the opening took fewer steps than before
        await trial.stop(manager)
    trial.check_closed(manager, f"after {when}")
    await trial.check_nothing_is_left(f"after {when}")
