"""The type of the connection in groups and pools."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Mapping
from typing import assert_type

from ownertask import ConnectionGroup, ConnectionManager, ConnectionPool


class Database:
    pass


class Replica(Database):
    pass


async def groups(first: ConnectionManager[Database], second: ConnectionManager[Database]) -> None:
    group = ConnectionGroup({"a": first, "b": second})
    assert_type(group, ConnectionGroup[str, Database])
    assert_type(await group.start(), Mapping[str, Database])
    assert_type(await group.wait_open(), Mapping[str, Database])
    assert_type(group.connection["a"], Database)
    assert_type(group.current["a"], Database)
    async with group as connections:
        assert_type(connections["a"], Database)
    assert_type(group.managers["a"], ConnectionManager[Database])
    assert_type(group.failures, Mapping[str, BaseException])
    assert_type(await group.add("c", first), Database)
    group.connection[1]  # type: ignore[index]
    group.connection["a"] = Database()  # type: ignore[index]
    await group.remove(1)  # type: ignore[arg-type]


async def group_members(
    database: ConnectionManager[Database],
    replicas: dict[str, ConnectionManager[Replica]],
    text: ConnectionManager[str],
) -> None:
    group = ConnectionGroup[str, Database](replicas)
    assert_type(await group.add("d", database), Database)
    mixed: Mapping[str, ConnectionManager[Database | str]] = {"a": database, "b": text}
    assert_type(await ConnectionGroup(mixed).start(), Mapping[str, Database | str])
    await group.add("t", text)  # type: ignore[arg-type]


async def pools(manager: ConnectionManager[Database]) -> None:
    def for_tenant(tenant: str) -> ConnectionManager[Database]:
        return manager

    pool = ConnectionPool(for_tenant, max_open=3)
    assert_type(pool, ConnectionPool[str, Database])
    assert_type(await pool.start(), ConnectionPool[str, Database])
    async with pool as opened, opened.acquire("a") as connection:
        assert_type(connection, Database)
    async with pool.current.acquire("a", 5) as connection:
        assert_type(connection, Database)
    pool.acquire(1)  # type: ignore[arg-type]
    ConnectionPool[str, str](for_tenant)  # type: ignore[arg-type]
