"""Opens a manager's connection as a part of another manager's run; see `open_inner()`."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from ._arguments import checked_opened
from ._life import Life, Loan, claiming, watch_of
from ._owner import current_event_loop
from .errors import ManagerInUseError

if TYPE_CHECKING:
    from .manager import ConnectionManager

__all__ = ["lent"]

T = TypeVar("T")


@asynccontextmanager
async def lent(
    manager: "ConnectionManager[T]", life: Life[T], borrower: str, outer: Life[Any]
) -> AsyncGenerator[T]:
    """Opens a connection in the run of another manager that the caller is part of.

    Args:
        manager: The manager of the connection.
        life: Its private state.
        borrower: The name of the other manager.
        outer: The private state of the other manager.
    """
    run = outer.run_around_caller()
    watch = watch_of(manager)
    _check_policies(manager, borrower)
    with claiming:
        if (user := life.borrower or life.holder) is not None:
            raise ManagerInUseError(
                manager.name,
                f"already part of {user}; a manager can be part of only one other manager at a time",
            )
        if life.run is not None and life.run.is_alive:
            raise ManagerInUseError(
                manager.name,
                f"cannot become part of {borrower} while it is running "
                f"(state: {manager.state.value}); call stop() first",
            )
        life.loan = loan = Loan(borrower, run, current_event_loop())
    if run is not None:
        run.parts += (life.key,)
        run.series.add_inner(manager)
    try:
        async with checked_opened(manager.open_connection()) as connection:
            loan.connection, loan.is_open = connection, True
            if run is not None and watch is not None:
                from ._watching import watched  # imports anyio, and few managers need it

                async with watched(watch, connection, run.lose):
                    yield connection
            else:
                yield connection
    finally:
        loan.connection, loan.is_open = None, False
        if life.loan is loan:
            life.loan = None


def _check_policies(manager: "ConnectionManager[T]", borrower: str) -> None:
    """Raises if `reconnect` or `watch` was set on an inner manager. A `watch` method is allowed."""
    if manager.reconnect is not None:
        raise TypeError(
            f"{manager.name}: reconnect must be None because this manager is part of {borrower}; "
            "set it on that manager instead"
        )
    if manager.watch is not None and getattr(manager.watch, "__self__", None) is not manager:
        raise TypeError(
            f"{manager.name}: watch must be None because this manager is part of {borrower}; "
            "set it on that manager instead"
        )
