"""The type of the connection that a fake opens."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from typing import assert_type

from ownertask import ConnectionGroup, ConnectionManager
from ownertask.testing import ScriptedConnectionManager, ScriptedRun


class Database:
    pass


class FakeDatabase(Database):
    pass


async def watch_fake(connection: FakeDatabase) -> None:
    pass


async def watch_text(connection: str) -> None:
    pass


async def fakes() -> None:
    manager = ScriptedConnectionManager(FakeDatabase(), ScriptedRun(opens_after=1), watch=watch_fake)
    assert_type(manager, ScriptedConnectionManager[FakeDatabase])
    assert_type(await manager.start(), FakeDatabase)
    assert_type(manager.current, FakeDatabase)
    async with manager as connection:
        assert_type(connection, FakeDatabase)
    real: ConnectionManager[Database] = manager
    ConnectionGroup[str, Database]({"a": manager, "b": real})
    ScriptedConnectionManager(FakeDatabase(), watch=watch_text)  # type: ignore[arg-type]
    ScriptedConnectionManager(FakeDatabase(), "lost")  # type: ignore[arg-type]
