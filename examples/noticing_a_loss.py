"""How an application is told that a connection has ended by itself, and starts it again."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

from mooring import ConnectionLostError, ConnectionManager


@asynccontextmanager
async def open_counter() -> AsyncGenerator[int]:
    yield 1


manager = ConnectionManager.from_factory(open_counter, name="counter")


# --8<-- [start:supervise]
async def supervise(starts: int) -> None:
    for _ in range(starts):
        await manager.start()
        try:
            await manager.wait_closed()
        except ConnectionLostError as error:
            print(f"{error}, because: {error.__cause__}")


# --8<-- [end:supervise]
async def main() -> None:
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(supervise, 2)
        for reason in ("the cable was cut", "the cable was cut again"):
            await anyio.wait_all_tasks_blocked()
            manager.connection_lost(ConnectionError(reason))


if __name__ == "__main__":
    anyio.run(main)
