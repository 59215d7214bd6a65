"""A manager that records when it is entered and exited, and that can be made to misbehave."""

from contextlib import asynccontextmanager

import anyio
from anyio.lowlevel import checkpoint

from ownertask import ConnectionManager


class Probe(ConnectionManager[object]):
    """A manager whose connection is a new object in each run.

    Args:
        opening: Awaited before the connection is yielded.
        closing: Awaited after the `yield`, even if the `yield` raised.
    """

    def __init__(self, opening=checkpoint, closing=checkpoint, *, name="probe"):
        super().__init__(name=name)
        self.opening = opening
        self.closing = closing
        self.entered = []
        self.exited = []

    @property
    def is_acquired(self):
        return len(self.entered) != len(self.exited)

    @asynccontextmanager
    async def open_connection(self):
        self.entered.append(anyio.get_current_task().id)
        try:
            await self.opening()
            try:
                yield object()
            finally:
                await self.closing()
        finally:
            self.exited.append(anyio.get_current_task().id)


class Stage:
    """A point at which the owner waits until the test sets `let_go`.

    `await stage.reached.wait()` waits until the owner gets there.
    """

    def __init__(self, *, shield=False):
        self.shield = shield
        self.reached = anyio.Event()
        self.let_go = anyio.Event()

    async def __call__(self):
        self.reached.set()
        with anyio.CancelScope(shield=self.shield):
            await self.let_go.wait()


def raises(exception):
    """Returns an async function that raises `exception`."""

    async def raise_it():
        await checkpoint()
        raise exception

    return raise_it
