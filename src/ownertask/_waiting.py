"""Waiting for an owner task to end: without a limit, with one, or after cancelling it.

Each function returns at once if the run is over.
"""

from typing import TypeVar

from ._owner import STOP_TIMEOUT, Run
from ._run_view import CLOSING

__all__ = [
    "forced",
    "forced_shielded",
    "over",
    "over_for_good",
    "over_inside",
    "over_or_given_up",
    "seen_through",
]

T = TypeVar("T")


async def over(run: Run[T], within: float | None = None) -> None:
    """Waits until the owner task has exited the context manager, for at most `within` seconds."""
    if within is None:
        while not run.is_over:
            await run.changed()
    elif within > 0:
        deadline = run.loop.time() + within
        # Many owner tasks end soon, and letting them run is cheaper than setting a timer. trio may run
        # the caller first, but then runs the owner task before the second checkpoint returns.
        for _ in range(2):
            await run.loop.checkpoint()
            if run.is_over:
                return
        while not run.is_over and not run.has_passed(deadline):
            await run.changed(deadline)


async def over_for_good(run: Run[T]) -> Run[T]:
    """Waits for the end of the series of runs, and returns the last one."""
    series = run.series
    while True:
        if run.surrounds_caller():
            await over_inside(run)
        else:
            await over(run)
        if run is series.newest:
            return run
        run = series.newest


async def over_inside(run: Run[T]) -> None:
    """Waits as `over()` does, in a task that closing may have to wait for."""
    while not run.is_over:
        if run.state is CLOSING:
            run.force_within(STOP_TIMEOUT)
        await run.changed()


async def over_or_given_up(run: Run[T], deadline: float | None = None) -> None:
    """Waits until the owner task ends, `gave_up` is set, or `deadline` has passed."""
    while not (run.is_over or run.gave_up or run.has_passed(deadline)):
        await run.changed(deadline)


async def forced(run: Run[T]) -> None:
    """Cancels the owner task, and waits until it ends or `gave_up` is set."""
    run.force()
    await over_or_given_up(run)


async def forced_shielded(run: Run[T]) -> None:
    """Cancels the owner task and waits as `forced()` does, shielded from the caller's cancellation.

    On asyncio, a native cancellation ends the wait.
    """
    await run.loop.shielded(lambda: forced(run))


async def seen_through(run: Run[T]) -> BaseException | None:
    """Waits as `forced_shielded()` does, but also through native cancellations. Returns the last one."""
    run.force()
    cancellation: BaseException | None = None
    while not (run.is_over or run.gave_up):
        try:
            await run.loop.shielded(lambda: over_or_given_up(run))
        except run.cancelled_type as exc:
            cancellation = exc
    return cancellation
