"""`pause_start_timeout()`: stops the clock of `start_timeout`, for example while a person logs in.

Each run has its own clock (`_start_clock.py`). This module only finds the clocks of the runs that the
caller is part of.
"""

from collections.abc import Generator
from contextlib import contextmanager

from ._owner import runs_around_caller

__all__ = ["pause_start_timeout"]


@contextmanager
def pause_start_timeout() -> Generator[None]:
    """Stops the clock of `start_timeout` inside a `with` block, so that a person can take their time.

    Use it in code that runs while a connection is being opened, such as `open_connection()` or a
    callback of an `auth` object. That code runs in the owner task, in one of its child tasks, or in a
    callback that one of them set. If the connection is being opened inside another one that is also not
    open yet, both clocks stop. Blocks may be nested, and several tasks may be inside a block at the same
    time. When the last block exits, the clock continues with the time that was left.

    The block does nothing if the caller is not part of a connection, if the connection is already open,
    or if its manager has no `start_timeout`. Any task may exit the block, even after the attempt ended.

    If the block runs in another thread or event loop, the clock stops and continues only when the event
    loop of the connection runs next. The thread needs a copy of the context variables, which
    `anyio.to_thread.run_sync()` and `asyncio.to_thread()` provide.

    The `timeout` of a `start()` call is not affected: if it expires and no other call is waiting, the
    attempt is cancelled.

    Example:
        ```python
        with pause_start_timeout():
            password = await ask_user("Password for the database: ")
        ```

    Cancellation:
        Not affected. `stop()`, a loss and a cancelled `start()` end the attempt as they do outside the
        block.
    """
    clocks = [
        (run, run.start_clock)
        for run in runs_around_caller()
        if run.is_alive and run.start_clock is not None
    ]
    for run, clock in clocks:
        run.command_from_any_thread(clock.pause)
    try:
        yield
    finally:
        for run, clock in clocks:
            run.command_from_any_thread(clock.resume)
