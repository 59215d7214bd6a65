"""`stop()`, `run()` and the exit of `async with`: how a connection is closed, and by whom."""

from typing import TYPE_CHECKING, TypeVar

from ._arguments import checked_seconds
from ._life import Life
from ._owner import STOP_TIMEOUT, Run, current_event_loop
from ._reason import is_a
from ._run_view import CLOSING, FAILED, OPENING
from ._starting import start
from ._waiting import forced, forced_shielded, over, over_for_good, seen_through
from .errors import OwnerTaskError, StopTimeoutError

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

__all__ = ["enter", "exit_block", "run_until_closed", "stop"]

T = TypeVar("T")


async def stop(life: Life[T], timeout: float | None) -> None:
    """Closes the connection and waits until the owner task ends; see `ConnectionManager.stop()`."""
    if timeout is not None:
        checked_seconds("timeout", timeout, " or None")
    run = _run_to_stop(life)
    life.stops += 1
    if life.run is not None and life.run.queued:
        life.run.queued = 0
        if run is not None:  # otherwise, the event loop of the waiting tasks may be closed
            run.notify()  # wait_open() may wait for another run
    if run is not None:
        await _close(run, timeout)


async def run_until_closed(life: Life[T], task_status: "TaskStatus[T] | None") -> None:
    """Opens the connection and waits for its end; see `ConnectionManager.run()`."""
    connection = await start(life, None, is_kept=True)
    run = life.run
    assert run is not None
    series = run.series
    if task_status is not None:
        try:
            task_status.started(connection)
        except BaseException:
            await _close(run, STOP_TIMEOUT)
            raise
    try:
        run = await over_for_good(run)
    except run.cancelled_type:
        await forced_shielded(series.newest)
        raise
    run.raise_exception()


async def enter(life: Life[T]) -> T:
    """Enters a block: opens the connection or joins the attempt, and returns the connection."""
    life.alive_run("start")
    waiting = life.blocks.wait(current_event_loop())
    try:
        connection = await start(life, None, is_kept=False)
    except (Exception, waiting.loop.cancelled_type) as exc:  # noqa: BLE001 - raised below
        error: BaseException = exc
    else:
        assert life.run is not None
        life.blocks.enter(waiting, life.run.series)
        return connection
    finally:
        life.blocks.give_up(waiting)
    # The last block may have exited in the meantime. It did not stop the run because of this block.
    run = life.run
    try:
        if run is not None and run.loop is waiting.loop and _is_left(life, run):
            if run.state is CLOSING:
                run.series.end()  # another call closes the connection, or it was lost
            else:
                error = await seen_through(run) or error
        raise error
    finally:
        del error  # breaks a reference cycle through this frame


async def exit_block(life: Life[T]) -> None:
    """Exits a block. If it was the last one, stops the run that the blocks opened."""
    run = _run_to_stop(life)
    belongs = life.blocks.exit(current_event_loop().current_task())
    if belongs and run is not None and _is_left(life, run):
        await _close(run, STOP_TIMEOUT)


def _is_left(life: Life[T], run: Run[T]) -> bool:
    """Returns whether an alive run was opened by `async with` blocks that have all exited."""
    return run.is_alive and not run.series.is_kept and life.blocks.have_finished(run.series)


def _run_to_stop(life: Life[T]) -> Run[T] | None:
    run = life.alive_run("stop")
    if run is not None and run.is_owner_task():
        raise OwnerTaskError(life.name, "stop")
    return run


async def _close(run: Run[T], timeout: float | None) -> None:
    if run.state is OPENING:
        timeout = 0
    elif run.surrounds_caller():
        # Closing may wait for the caller, so only its cancellation ends that wait.
        timeout = STOP_TIMEOUT if timeout is None else min(timeout, STOP_TIMEOUT)
    run.close()
    try:
        await over(run, timeout)
        if not run.is_over:
            await forced(run)
    except run.cancelled_type:
        if run.surrounds_caller():
            # Closing the connection cancels the caller itself. The timeout still applies.
            run.force_within(timeout)
        else:
            await forced_shielded(run)
        raise
    if not run.is_over:
        raise run.stop_timeout_error()
    if run.state is FAILED and run.exception is not None and is_a(run.exception, StopTimeoutError):
        run.raise_exception()  # the error of a member that could not be stopped
