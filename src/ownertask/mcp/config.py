"""Session managers from a configuration with the key `mcpServers`, the format that MCP clients use.

An error names the server and the key, and shows no value.
"""

import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, Generic, TypeAlias, cast

from mcp import ClientSession, StdioServerParameters
from typing_extensions import TypeVar, Unpack

from ..manager import ConnectionManager
from ..policy import ReconnectPolicy
from ._config_values import invalid, members_of, parsed_file, seconds_from, text_from
from .session import SessionConnectionManager, SessionOptions
from .sse import SseConnectionManager
from .stdio import StdioConnectionManager
from .streamable_http import StreamableHttpConnectionManager
from .streams import TransportStreams
from .websocket import WebSocketConnectionManager

__all__ = ["SessionManagerOptions", "managers_from_config"]

S = TypeVar("S", bound=ClientSession, default=ClientSession)

UrlTransport: TypeAlias = (
    type[StreamableHttpConnectionManager] | type[SseConnectionManager] | type[WebSocketConnectionManager]
)

KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "command": ("command", "args", "env", "cwd"),
    "url": ("url", "headers"),
}
"""The keys of a server, by the key that selects its transport."""

COMMON_KEYS: Final = ("type", "transport", "timeout", "disabled")

URL_TYPES: Final[Mapping[str, UrlTransport]] = {
    "http": StreamableHttpConnectionManager,
    "streamable-http": StreamableHttpConnectionManager,
    "streamableHttp": StreamableHttpConnectionManager,
    "streamable_http": StreamableHttpConnectionManager,
    "sse": SseConnectionManager,
    "ws": WebSocketConnectionManager,
    "websocket": WebSocketConnectionManager,
}

TYPES: Final[Mapping[str, tuple[str, ...]]] = {"command": ("stdio",), "url": tuple(URL_TYPES)}
"""The values of `type`, by the key that selects the transport. The first value is the default."""


class SessionManagerOptions(SessionOptions, Generic[S], total=False):
    """The options of a `SessionConnectionManager`, without its transport and its name.

    All `SessionOptions` are also accepted.
    """

    session_class: type[S]
    """The class of each session; `ClientSession` by default."""
    initialize: bool | Callable[[S], Awaitable[object]]
    """Selects the MCP handshake, as in `SessionConnectionManager`; `True` by default."""
    start_timeout: float | None
    """Maximum time for opening a transport and completing the handshake, in seconds; 60 by default."""
    reconnect: ReconnectPolicy | None
    """When to open a connection again after a failure; `None`, the default, means never."""
    watch: Callable[[S], Awaitable[object]] | None
    """An async function that is called with each session; `None` by default."""


def managers_from_config(
    config: Mapping[str, object] | str | os.PathLike[str],
    *,
    environment: Mapping[str, str] = os.environ,
    **options: Unpack[SessionManagerOptions[S]],
) -> dict[str, SessionConnectionManager[S]]:
    """Returns a session manager for each server of a configuration, without opening anything.

    The guide *A configuration file* describes the keys. The result does not contain servers with
    `"disabled": true`, and their other keys are not checked.

    Example:
        ```python
        managers = managers_from_config("mcp.json", reconnect=ReconnectPolicy())
        async with ConnectionGroup(managers) as sessions:
            for name, session in sessions.items():
                print(name, await session.list_tools())
        ```

    Args:
        config: A mapping with the key `mcpServers`, only the mapping of names to servers, or the path of
            a JSON file that contains one of these. Keys next to `mcpServers` are ignored.
        environment: The variables for `${VAR}` and `${VAR:-default}`. The servers do not inherit them.
        **options: Passed to each `SessionConnectionManager`. The name of a manager is the name of its
            server. The `timeout` of a server takes precedence over `read_timeout_seconds`.

    Raises:
        OSError: The file cannot be read.
        ImportError: A server uses a WebSocket, and the extra `ownertask[websocket]` is not installed.
        TypeError: An argument has the wrong type, or the installed SDK does not accept one of the
            options.
        ValueError: The configuration is invalid, or a variable is not set. The error names the server
            and the key, and shows no value. Or an option has an invalid value.
    """
    if "name" in options:
        raise TypeError("name is not an option, because each manager has the name of its server")
    if not isinstance(environment, Mapping):
        raise TypeError(f"environment must be a mapping, not {type(environment).__name__}")
    if isinstance(config, str | os.PathLike):
        config = members_of(repr(os.fspath(config)), parsed_file(config))
    elif not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping or a path, not {type(config).__name__}")
    entries = members_of("mcpServers", config.get("mcpServers", config))
    servers = [_Server(name, entry, environment) for name, entry in entries.items()]
    return {server.name: server.manager(options) for server in servers if not server.is_disabled()}


class _Server:
    """A server of the configuration."""

    def __init__(self, name: str, entry: object, environment: Mapping[str, str]) -> None:
        self.name = name
        self.place = f"server {name!r}"
        self.entry = members_of(self.place, entry)
        self.environment = environment

    def is_disabled(self) -> bool:
        disabled = self.entry.get("disabled", False)
        if not isinstance(disabled, bool):
            raise invalid(self._at("disabled"), "must be true or false")
        return disabled

    def manager(self, options: SessionManagerOptions[S]) -> SessionConnectionManager[S]:
        create = self._transport()
        if "timeout" in self.entry:
            seconds = seconds_from(self._at("timeout"), self.entry["timeout"])
            options = {**options, "read_timeout_seconds": seconds}
        try:
            transport = create(name=self.name)
        except ValueError as error:
            # The text shows no value, but the context of the error might.
            problem = str(error).removeprefix("server_params.")
        else:
            return SessionConnectionManager(transport, name=self.name, **options)
        raise invalid(self.place, problem)

    def _transport(self) -> Callable[..., ConnectionManager[TransportStreams]]:
        """Returns the class of the transport with its arguments, except the name."""
        selector = self._selector()
        type_key = "transport" if "transport" in self.entry else "type"
        transport = self.entry.get(type_key, TYPES[selector][0])
        if not isinstance(transport, str) or transport not in TYPES[selector]:
            supported = ", ".join(TYPES[selector])
            problem = f"a server with the key {selector!r} supports only {supported}"
            raise invalid(self._at(type_key), problem)
        if selector == "url":
            return partial(URL_TYPES[transport], self._text("url"), self._texts("headers"))
        return partial(
            StdioConnectionManager,
            StdioServerParameters(
                command=self._text("command"),
                args=self._list("args"),
                env=self._texts("env"),
                cwd=self._text("cwd") if "cwd" in self.entry else None,
            ),
        )

    def _selector(self) -> str:
        """Returns the key that selects the transport, after it has checked all keys."""
        known = (*KEYS["command"], *KEYS["url"], *COMMON_KEYS)
        for key in self.entry:
            if key not in known:
                raise invalid(self._at(key), f"unknown key; the known keys are {', '.join(known)}")
        selectors = [key for key in KEYS if key in self.entry]
        if len(selectors) != 1:
            raise invalid(self.place, "must have either the key 'command' or the key 'url'")
        for key in self.entry:
            if key not in (*KEYS[selectors[0]], *COMMON_KEYS):
                raise invalid(self._at(key), f"cannot be combined with the key {selectors[0]!r}")
        if "type" in self.entry and "transport" in self.entry:
            raise invalid(self._at("transport"), "cannot be combined with the key 'type'")
        return selectors[0]

    def _at(self, key: str) -> str:
        return f"{self.place}, key {key!r}"

    def _text(self, key: str) -> str:
        return text_from(self._at(key), self.entry[key], self.environment)

    def _texts(self, key: str) -> dict[str, str]:
        members = members_of(self._at(key), self.entry.get(key, {}))
        return {
            name: text_from(self._at(f"{key}.{name}"), value, self.environment)
            for name, value in members.items()
        }

    def _list(self, key: str) -> list[str]:
        values = self.entry.get(key, [])
        if not isinstance(values, list | tuple):
            raise invalid(self._at(key), "must be a list of strings")
        return [
            text_from(self._at(f"{key}[{index}]"), value, self.environment)
            for index, value in enumerate(cast("list[object]", values))
        ]
