"""Ctrl-C and other signals: the first one cancels the work, the second one forces the cleanup to end."""

import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Final

from anyio import TASK_STATUS_IGNORED, CancelScope, create_task_group, open_signal_receiver
from anyio.abc import TaskStatus

__all__ = ["Interrupts"]

SIGNALS: Final = ("SIGINT", "SIGTERM", "SIGHUP")


class Interrupts:
    """Receives signals.

    Attributes:
        received: The first signal.
        on_first: Called at the first signal.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.on_first: Callable[[], object] = lambda: None
        self._work = CancelScope()
        self._cleanups: set[CancelScope] = set()
        self._is_forced = False

    @contextmanager
    def cleanup(self) -> Generator[None]:
        """Shields a cleanup from the first signal, and cancels it at the second one."""
        with CancelScope(shield=True) as scope:
            self._cleanups.add(scope)
            if self._is_forced:
                scope.cancel()
            try:
                yield
            finally:
                self._cleanups.discard(scope)

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Runs the work until it ends or a signal arrives."""
        async with create_task_group() as tasks:
            await tasks.start(self._receive)
            with self._work:
                await work()
            tasks.cancel_scope.cancel()

    async def _receive(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        numbers = _numbers()
        if not numbers:
            task_status.started()
            return
        with open_signal_receiver(*numbers) as signals:
            task_status.started()
            async for number in signals:
                if self.received is None:
                    self.received = number
                    self._work.cancel()
                    self.on_first()
                else:
                    self._is_forced = True  # the cleanup may begin later
                    for scope in tuple(self._cleanups):
                        scope.cancel()


def _numbers() -> list[signal.Signals]:
    """Returns the signals to receive. A program that was started with `nohup` ignores SIGHUP."""
    is_main = threading.current_thread() is threading.main_thread()
    # asyncio cannot receive signals on Windows. Python delivers signals only to the main thread.
    if sys.platform == "win32" or not is_main:
        return []
    numbers = [signal.Signals[name] for name in SIGNALS]
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
