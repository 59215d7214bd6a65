"""`start()` and `wait_open()`: which run a call refers to, how long it waits, and what it leaves.

Only callers of `start()` count as waiting for a connection. If the last of them goes away before the
first connection is open, the attempts end.
"""

from typing import NoReturn, TypeVar

from ._arguments import checked_seconds
from ._life import Life
from ._owner import STOP_TIMEOUT, Run, current_event_loop
from ._run_view import CLOSING, OPEN, OPENING
from ._waiting import over_or_given_up, seen_through
from .errors import ConnectionStoppedError, OwnerTaskError

__all__ = ["start", "wait_open"]

T = TypeVar("T")


async def start(life: Life[T], timeout: float | None, *, is_kept: bool) -> T:
    """Opens the connection and returns it; see `ConnectionManager.start()`.

    Args:
        life: The private state of the manager.
        timeout: Maximum time to wait, in seconds; `None` waits indefinitely.
        is_kept: Whether the connection stays open after the last `async with` block exits, if this call
            begins the run.
    """
    deadline = None if timeout is None else _deadline(timeout)
    stops = life.stops
    while (run := life.alive_run("start")) is not None and run.state is CLOSING:
        life.check_not_refused()
        if (received := await _behind_close(life, run, stops, timeout, deadline)) is not None:
            return received[0]
    if life.stops != stops:
        raise ConnectionStoppedError(life.name)
    keeps = run is None and is_kept
    if run is None:
        run = life.begin(is_kept=is_kept)
    elif (received := run.received_connection()) is not None:
        return received[0]
    elif run.surrounds_caller():
        raise OwnerTaskError(life.name, "start")
    received, run = await _take_part(life, run, timeout, deadline, keeps=keeps)
    if received is None:
        run.raise_for_starter()
    return received[0]


async def wait_open(life: Life[T], timeout: float | None) -> tuple[T] | None:
    """Waits for the connection; see `ConnectionManager.wait_open()`.

    Returns:
        The connection in a tuple, or `None` if none is open and none will be.
    """
    deadline = None if timeout is None else _deadline(timeout)
    while True:
        run = life.alive_run("wait_open")
        if run is None or run.state is OPEN:
            if run is not None:
                return (run.connection,)
            last = life.run
            if last is None or not last.queued or not last.loop.is_current():
                return None
            await last.loop.checkpoint()  # a start() that was also woken up will begin a run
            continue
        if run.state is CLOSING and not run.queued and run.series.policy is None:
            return None
        if run.surrounds_caller():
            raise OwnerTaskError(life.name, "wait_open")
        if run.gave_up:
            raise run.stop_timeout_error()
        if timeout is not None and run.has_passed(deadline):
            raise run.start_timeout_error(timeout)
        await run.changed(deadline)


def _deadline(timeout: float) -> float:
    checked_seconds("timeout", timeout, " or None")
    return current_event_loop().time() + timeout


async def _behind_close(
    life: Life[T], run: Run[T], stops: int, timeout: float | None, deadline: float | None
) -> tuple[T] | None:
    """Waits while a run closes. Returns the connection of a run that follows by a policy, in a tuple."""
    run.queued += life.stops == stops  # the caller begins another run if no policy does
    try:
        is_expired = run.gave_up or run.has_passed(deadline)
        if is_expired or run.surrounds_caller() or run.series.policy is None:
            await _wait_for_close(life, run, stops, timeout, deadline)
            return None
        received, last = await _take_part(life, run, timeout, deadline, keeps=False)
    finally:
        if life.stops == stops:  # otherwise, stop() has set it to zero
            run.queued -= 1
            if not run.queued:
                run.notify()  # wait_open() may wait for another run
    if received is None and last is not run:
        last.raise_for_starter()
    return received


async def _wait_for_close(
    life: Life[T], run: Run[T], stops: int, timeout: float | None, deadline: float | None
) -> None:
    if run.is_owner_task():
        raise OwnerTaskError(life.name, "start")
    if run.gave_up:
        if life.stops != stops:
            raise ConnectionStoppedError(life.name)
        raise run.stop_timeout_error()
    if timeout is not None and run.has_passed(deadline):
        raise run.start_timeout_error(timeout)
    if run.surrounds_caller():
        run.force_within(STOP_TIMEOUT)  # closing may wait for the caller
    await run.changed(deadline)


async def _take_part(
    life: Life[T], run: Run[T], timeout: float | None, deadline: float | None, *, keeps: bool
) -> tuple[tuple[T] | None, Run[T]]:
    """Counts as a caller that waits for a connection, through all attempts of the series.

    Args:
        life: The private state of the manager.
        run: The attempt.
        timeout: The caller's timeout.
        deadline: The time at which it expires.
        keeps: Whether this call keeps the connection open after the last block exits.

    Returns:
        The connection in a tuple, or `None` if the series ended without one; and the last run.
    """
    cancellation: BaseException | None = None
    series = run.series
    series.starters += 1
    try:
        while True:
            await _attempt(run, deadline)
            # Other tasks may have stopped or lost it since the wake-up, so check again.
            if (received := run.received_connection()) is not None:
                return received, run
            if run is series.newest:
                break
            run = series.newest
    except run.cancelled_type as exc:
        cancellation = exc
        run = series.newest
    finally:
        series.starters -= 1
    has_left = not run.is_over and not run.gave_up
    if has_left and series.starters == 0 and not series.received:
        series.end()
        if timeout is not None and cancellation is None:
            run.expire(timeout)
        cancellation = await seen_through(run) or cancellation
    elif keeps and life.blocks.need(series):
        series.is_kept = False
    # Raise it outside the `except` block, in which a second, native cancellation would look like
    # anyio's.
    if cancellation is not None:
        raise cancellation
    if has_left and timeout is not None:
        _raise_expired(run, timeout)
    return None, run


def _raise_expired(run: Run[T], timeout: float) -> NoReturn:
    if run.is_over or run.gave_up:
        run.raise_for_starter()
    raise run.start_timeout_error(timeout)


async def _attempt(run: Run[T], deadline: float | None) -> None:
    """Waits until an attempt has succeeded, its owner task ends, or `deadline` passes."""
    if run.state is OPENING and not run.has_passed(deadline):
        await run.loop.checkpoint()  # many attempts take only one iteration of the event loop
    while run.state is OPENING and not run.has_passed(deadline):
        await run.changed(deadline)
    if run.state is not OPENING and run.state is not OPEN:
        await over_or_given_up(run, deadline)
