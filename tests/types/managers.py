"""The type of the connection, from `open_connection()` and `from_factory()` to each place of use."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Generic, Protocol, TypeVar, assert_type

from ownertask import ConnectionManager, ConnectionState, ReconnectPolicy

T = TypeVar("T")


class Database:
    async def fetch(self, query: str) -> list[str]:
        return [query]


class Replica(Database):
    pass


class Fetches(Protocol):
    async def fetch(self, query: str) -> list[str]: ...


class DatabaseManager(ConnectionManager[Database]):
    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[Database]:
        yield Database()


class LazyManager(ConnectionManager[Database]):
    def open_connection(self) -> AbstractAsyncContextManager[Database]:
        return DatabaseManager().open_connection()


class WatchedManager(DatabaseManager):
    async def watch(self, connection: Database) -> None:
        assert_type(connection, Database)


class WrongManager(ConnectionManager[Database]):
    def open_connection(self) -> AbstractAsyncContextManager[str]:  # type: ignore[override]
        raise NotImplementedError


class Wrapping(ConnectionManager[T], Generic[T]):
    def __init__(self, inner: ConnectionManager[T]) -> None:
        super().__init__()
        self.inner = inner

    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[T]:
        async with self.open_inner(self.inner) as connection:
            assert_type(connection, T)
            yield connection


@asynccontextmanager
async def open_database(_url: str = "") -> AsyncGenerator[Database]:
    yield Database()


@asynccontextmanager
async def open_either() -> AsyncGenerator[Database | str | None]:
    yield None


async def watch_database(database: Database) -> None:
    pass


async def watch_replica(database: Replica) -> None:
    pass


async def watch_anything(connection: object) -> None:
    pass


async def watch_text(connection: str) -> None:
    pass


async def uses_of_a_subclass(manager: DatabaseManager) -> None:
    assert_type(await manager.start(), Database)
    assert_type(await manager.start(5), Database)
    assert_type(await manager.wait_open(), Database)
    assert_type(manager.connection, Database)
    assert_type(manager.current, Database)
    assert_type(await manager.current.fetch("1"), list[str])
    async with manager as connection:
        assert_type(connection, Database)
    async with manager.open_connection() as connection:
        assert_type(connection, Database)
    assert_type(await LazyManager().start(), Database)
    assert_type(await WatchedManager().start(), Database)
    text: str = manager.connection  # type: ignore[assignment]
    await manager.current.fetch(text, 2)  # type: ignore[call-arg]


async def factories() -> None:
    assert_type(ConnectionManager.from_factory(open_database), ConnectionManager[Database])
    assert_type(ConnectionManager.from_factory(lambda: open_database("a")), ConnectionManager[Database])
    manager = ConnectionManager.from_factory(partial(open_database, "a"), name="a", start_timeout=5)
    assert_type(await manager.start(), Database)
    assert_type(manager.current, Database)
    assert_type(manager.reconnect, ReconnectPolicy | None)
    ConnectionManager.from_factory(Database)  # type: ignore[arg-type]
    ConnectionManager.from_factory(open_database())  # type: ignore[arg-type]


def watches(manager: DatabaseManager) -> None:
    ConnectionManager.from_factory(open_database, watch=watch_database)
    ConnectionManager.from_factory(open_database, watch=watch_anything)
    manager.watch = watch_database
    manager.watch = watch_anything
    manager.watch = None
    ConnectionManager.from_factory(open_database, watch=watch_text)  # type: ignore[misc]
    ConnectionManager.from_factory(open_database, watch=watch_replica)  # type: ignore[misc]
    manager.watch = watch_text  # type: ignore[assignment]


def listeners(manager: DatabaseManager) -> None:
    def narrow(changed: ConnectionManager[Database], old: ConnectionState, new: ConnectionState) -> None:
        assert_type(changed.connection, Database)

    def wide(changed: ConnectionManager[object], old: ConnectionState, new: ConnectionState) -> None:
        assert_type(changed.connection, object)

    def other(changed: ConnectionManager[str], old: ConnectionState, new: ConnectionState) -> None:
        pass

    manager.add_listener(narrow)
    manager.add_listener(wide)
    manager.add_listener(lambda changed, old, new: assert_type(changed.connection, Database))
    manager.remove_listener(narrow)
    manager.add_listener(other)  # type: ignore[arg-type]
    manager.remove_listener(other)  # type: ignore[arg-type]


async def unions(manager: ConnectionManager[Database | None]) -> None:
    assert_type(await manager.start(), Database | None)
    assert_type(manager.current, Database | None)
    assert_type(await ConnectionManager.from_factory(open_either).start(), Database | str | None)
    await manager.current.fetch("1")  # type: ignore[union-attr]


async def protocols(manager: ConnectionManager[Fetches]) -> None:
    assert_type(await manager.start(), Fetches)
    assert_type(await manager.current.fetch("1"), list[str])
    manager = DatabaseManager()
    manager = ConnectionManager.from_factory(open_database)
    manager = ConnectionManager[str].from_factory(open_either)  # type: ignore[arg-type]


async def generics(manager: Wrapping[T], database: DatabaseManager) -> T:
    assert_type(manager.current, T)
    assert_type(Wrapping(database), Wrapping[Database])
    assert_type(await Wrapping(Wrapping(database)).start(), Database)
    return await manager.start()


def covariance(
    database: ConnectionManager[Database],
    replica: ConnectionManager[Replica],
    text: ConnectionManager[str],
) -> None:
    managers: list[ConnectionManager[Database]] = [database, replica]
    assert_type(managers[0].connection, Database)
    everything: list[ConnectionManager[object]] = [database, replica, text]
    assert_type(everything[0].connection, object)
    replica = database  # type: ignore[assignment]
    database = text  # type: ignore[assignment]
