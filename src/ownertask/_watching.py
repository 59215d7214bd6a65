"""Runs a `watch` function in a child task of the owner task while a connection is open."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from anyio import create_task_group, get_cancelled_exc_class
from anyio.lowlevel import checkpoint_if_cancelled

from ._outcome import LOST

__all__ = ["watched"]

T = TypeVar("T")

WATCH_ENDED: Final = "the connection was lost because watch() returned"
WATCH_CANCELLED: Final = "the connection was lost because watch() was cancelled"


@asynccontextmanager
async def watched(
    watch: Callable[[T], Awaitable[object]],
    connection: T,
    lose: Callable[[BaseException | None, str], object],
) -> AsyncGenerator[None]:
    """Calls and awaits `watch` during the block. If `watch` ends first, the connection is lost.

    Args:
        watch: Called with the connection. Cancelled when the block exits. The exit waits for its end.
        connection: The connection.
        lose: Called with the exception that `watch` raised, or `None`, and the text of the loss.
    """

    async def observe() -> None:
        try:
            awaitable = watch(connection)
            if not isinstance(awaitable, Awaitable):
                kind = type(awaitable).__name__
                raise TypeError(f"watch() must return an awaitable, not {kind}")  # noqa: TRY301
            await awaitable
        except get_cancelled_exc_class():
            await checkpoint_if_cancelled()  # raises if the block is being exited
            lose(None, WATCH_CANCELLED)  # for example, a client cancelled the future that it waits for
        except Exception as exc:  # noqa: BLE001 - it is the cause of the loss
            lose(exc, LOST)
        else:
            lose(None, WATCH_ENDED)

    async with create_task_group() as task_group:
        task_group.start_soon(observe)
        yield
        task_group.cancel_scope.cancel()
