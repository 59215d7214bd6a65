"""The class of the session, from `session_class` to each place of use."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Mapping
from typing import assert_type

from mcp import ClientSession
from mcp.types import InitializeResult
from typing_extensions import TypeVar, Unpack

from ownertask import (
    ConnectionGroup,
    ConnectionManager,
    ConnectionPool,
    ConnectionState,
    ReconnectPolicy,
)
from ownertask.mcp import (
    SessionConnectionManager,
    SessionManagerOptions,
    managers_from_config,
    ping_every,
)

URL = "http://localhost/mcp"


class MySession(ClientSession):
    async def negotiate(self) -> str:
        return "2025-06-18"


class OtherSession(ClientSession):
    pass


S = TypeVar("S", bound=ClientSession)


class MyManager(SessionConnectionManager[MySession]):
    pass


class PlainManager(SessionConnectionManager):
    pass


class GenericManager(SessionConnectionManager[S]):
    pass


async def negotiate(session: MySession) -> str:
    return await session.negotiate()


async def initialize(session: ClientSession) -> InitializeResult:
    return await session.initialize()


async def use_other(session: OtherSession) -> None:
    pass


async def use_text(session: str) -> None:
    pass


async def without_a_class(bare: SessionConnectionManager) -> None:
    manager = SessionConnectionManager(URL)
    assert_type(manager, SessionConnectionManager[ClientSession])
    assert_type(bare, SessionConnectionManager[ClientSession])
    assert_type(await bare.start(), ClientSession)
    assert_type(await bare.start(5), ClientSession)
    assert_type(bare.current, ClientSession)


async def with_a_class() -> None:
    manager = SessionConnectionManager(URL, session_class=MySession)
    assert_type(manager, SessionConnectionManager[MySession])
    assert_type(await manager.start(), MySession)
    assert_type(await manager.wait_open(), MySession)
    assert_type(manager.connection, MySession)
    assert_type(manager.current, MySession)
    assert_type(await manager.current.negotiate(), str)
    async with manager as session:
        assert_type(session, MySession)
    SessionConnectionManager(URL, session_class=int)  # type: ignore[type-var]


def covariance(
    plain: SessionConnectionManager,
    mine: SessionConnectionManager[MySession],
    other: SessionConnectionManager[OtherSession],
) -> None:
    managers: list[SessionConnectionManager] = [plain, mine, other]
    assert_type(managers[0].connection, ClientSession)
    mine = plain  # type: ignore[assignment]
    mine = other  # type: ignore[assignment]


def handshakes(class_of_session: type[S]) -> SessionConnectionManager[S]:
    SessionConnectionManager(URL, initialize=False)
    SessionConnectionManager(URL, initialize=initialize)
    SessionConnectionManager(URL, initialize=lambda session: session.initialize())
    SessionConnectionManager(URL, session_class=MySession, initialize=initialize)
    SessionConnectionManager(URL, session_class=MySession, initialize=negotiate)
    SessionConnectionManager(URL, session_class=MySession, initialize=lambda s: s.negotiate())
    SessionConnectionManager(URL, session_class=MySession, initialize=use_other)  # type: ignore[arg-type]
    SessionConnectionManager(URL, initialize="no")  # type: ignore[arg-type]
    return SessionConnectionManager(URL, session_class=class_of_session, initialize=initialize)


def watches() -> None:
    SessionConnectionManager(URL, watch=ping_every(30))
    SessionConnectionManager(URL, session_class=MySession, watch=ping_every(30))
    SessionConnectionManager(URL, session_class=MySession, watch=negotiate)
    SessionConnectionManager(URL, session_class=MySession, watch=use_other)  # type: ignore[arg-type]
    SessionConnectionManager(URL, watch=use_text)  # type: ignore[type-var]


def options() -> None:
    manager = SessionConnectionManager(
        URL, read_timeout_seconds=5, reconnect=ReconnectPolicy(), name="a"
    )
    assert_type(manager.name, str)
    assert_type(manager.transport.name, str)
    SessionConnectionManager(URL, sampling_callback=None, client_info=None, message_handler=None)
    SessionConnectionManager(URL, read_timeout_seconds="5")  # type: ignore[arg-type]
    SessionConnectionManager(URL, read_timeout=5)  # type: ignore[call-arg]


def listeners(manager: SessionConnectionManager[MySession]) -> None:
    def mine(changed: ConnectionManager[MySession], old: ConnectionState, new: ConnectionState) -> None:
        assert_type(changed.connection, MySession)

    def other(
        changed: ConnectionManager[OtherSession], old: ConnectionState, new: ConnectionState
    ) -> None:
        pass

    manager.add_listener(mine)
    manager.add_listener(other)  # type: ignore[arg-type]


async def subclasses(generic: GenericManager[MySession]) -> None:
    assert_type(await MyManager(URL, session_class=MySession).start(), MySession)
    assert_type(await PlainManager(URL).start(), ClientSession)
    assert_type(await generic.start(), MySession)
    assert_type(GenericManager(URL, session_class=MySession), GenericManager[MySession])
    MyManager(URL, session_class=OtherSession)  # type: ignore[arg-type]


async def many(mine: SessionConnectionManager[MySession], plain: SessionConnectionManager) -> None:
    managers: list[SessionConnectionManager] = [mine, plain]
    assert_type(await managers[0].start(), ClientSession)
    group = ConnectionGroup({"a": mine})
    assert_type(await group.start(), Mapping[str, MySession])

    def for_tenant(tenant: str) -> SessionConnectionManager[MySession]:
        return mine

    pool = ConnectionPool(for_tenant)
    async with pool.acquire("a") as session:
        assert_type(session, MySession)


async def configurations() -> None:
    managers = managers_from_config({"mcpServers": {}}, watch=ping_every(30), start_timeout=5)
    assert_type(managers, dict[str, SessionConnectionManager[ClientSession]])
    async with ConnectionGroup(managers) as sessions:
        assert_type(sessions["a"], ClientSession)
    assert_type(ConnectionGroup(managers).current["a"], ClientSession)


async def configurations_with_a_class() -> None:
    managers = managers_from_config("servers.json", session_class=MySession, initialize=negotiate)
    assert_type(managers, dict[str, SessionConnectionManager[MySession]])
    assert_type(await managers["a"].start(), MySession)
    managers_from_config({}, session_class=MySession, watch=negotiate)
    managers_from_config({}, session_class=MySession, initialize=use_other)  # type: ignore[arg-type]
    managers_from_config({}, initialize=initialize, watch=initialize)
    wrap(session_class=MySession)


def wrap(**options: Unpack[SessionManagerOptions]) -> dict[str, SessionConnectionManager]:
    return managers_from_config({}, **options)
