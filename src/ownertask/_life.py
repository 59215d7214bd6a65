"""The private state of a manager: its run, its `async with` blocks, and the manager that uses it.

Threads can start or lend the same manager at the same time, so each check and the change that follows it
are one step; see `claiming`.
"""

import os
from collections.abc import Callable
from threading import RLock
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast
from weakref import ref

from ._blocks import Blocks
from ._owner import runs_around_caller

if TYPE_CHECKING:
    from ._backend import EventLoop
    from ._owner import Run

__all__ = ["Life", "Loan", "claiming"]

T = TypeVar("T")

claiming: Final = RLock()
"""Hold it while you check that a manager is not in use and then begin to use it. Do not await."""

if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows cannot fork
    # Otherwise, a child that was forked while another thread holds the lock could never acquire it.
    os.register_at_fork(
        before=claiming.acquire, after_in_parent=claiming.release, after_in_child=claiming.release
    )


class Loan:
    """The use of a manager as a part of another one.

    Attributes:
        borrower: The name of the other manager.
        run: The run that the connection is part of. `None` if there is none because `open_connection()`
            was called directly.
    """

    def __init__(self, borrower: str, run: "Run[object] | None", loop: "EventLoop") -> None:
        self.borrower = borrower
        self.run = run
        self._loop = loop

    @property
    def is_alive(self) -> bool:
        """`True` unless the run is over, or the event loop can no longer run."""
        return self._loop.is_alive() if self.run is None else self.run.is_alive


class Life(Generic[T]):
    """The private state of a manager.

    Attributes:
        key: Identifies the manager in `Run.parts`.
        manager: A weak reference to the manager. If a copy of the manager holds the `Life` of the
            original, this reference shows it.
        run: The current or last run.
        stops: The number of `stop()` calls. Each one ends all `start()` calls made before it.
        blocks: The `async with` blocks.
        loan: The use by another manager, which may be over.
    """

    def __init__(self, manager: object) -> None:
        self.key = object()
        self.manager = ref(manager)
        self.run: Run[T] | None = None
        self.stops = 0
        self.blocks = Blocks()
        self.loan: Loan | None = None

    # Pydantic models are copied and pickled with all of their attributes.
    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()

    @property
    def borrower(self) -> str | None:
        """The name of the manager that uses this one, if any."""
        loan = self.loan  # read once: another thread may end the loan at any time
        return loan.borrower if loan is not None and loan.is_alive else None

    def run_of_caller(self) -> "Run[object] | None":
        """Returns the run that the connection is part of, unless the caller belongs to another run.

        Child tasks and callbacks of an owner task inherit its context, so they belong to its run.
        """
        own = cast("Run[object] | None", self.run)
        loan = self.loan  # read once, as in `borrower`
        current = own if loan is None or not loan.is_alive else loan.run
        runs = [run for run in runs_around_caller() if self.key in run.parts]
        return None if runs and runs[-1] is not current else current


def _nothing() -> None:
    """Replaces the private state in a copy."""
