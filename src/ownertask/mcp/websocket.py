"""The WebSocket transport: each text message is one JSON-RPC message.

The MCP specification has no WebSocket transport. mcp 1.x has a client for it and mcp 2.x does not, but
such servers still exist. This manager works the same with both.

Source: https://modelcontextprotocol.io/specification/2025-11-25/basic/transports
"""

import re
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Final, Literal, cast
from urllib.parse import urlsplit, urlunsplit

from typing_extensions import TypeAliasType, override

from .._arguments import checked_count, checked_timeout
from ..manager import ConnectionManager
from ..state import ConnectionState
from ._permanent import has_untrusted_certificate
from .streams import TransportStreams

if TYPE_CHECKING:
    from websockets.exceptions import ConnectionClosed

__all__ = ["WebSocketConnectionManager", "WebSocketHeaders"]

WebSocketHeaders = TypeAliasType(
    "WebSocketHeaders",
    "Mapping[str, str] | Callable[[], Mapping[str, str] | Awaitable[Mapping[str, str]]]",
)
"""The headers of the upgrade: a mapping, or a function or coroutine function that returns one."""

PLAIN_CLOSE_CODES: Final = frozenset({1000, 1001, 1005})
"""Normal closure, going away, and a close frame without a code: the peer reported no error.

Source: https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
"""

# Source: https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class WebSocketConnectionManager(ConnectionManager[TransportStreams]):
    """Opens a WebSocket; the connection is a pair of streams to the server.

    To call the server, pass this manager to a `SessionConnectionManager` or
    `ClientConnectionManager`.

    If the server closes the WebSocket with code 1000 or 1001, or without a code, the
    `ConnectionLostError` has no cause. If the WebSocket ends in any other way, the cause is a
    `ConnectionClosed` of the `websockets` library, with the code and the reason. Redirects are not
    followed.

    Example:
        ```python
        transport = WebSocketConnectionManager("ws://localhost:8000/mcp", ping_interval=5)
        async with SessionConnectionManager(transport) as session:
            print(await session.list_tools())
        ```
    """

    def __init__(  # noqa: PLR0913 - the options of a WebSocket client
        self,
        url: str,
        headers: WebSocketHeaders | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | Literal[True] | None = True,
        open_timeout: float | None = 10.0,
        close_timeout: float | None = 2.0,  # short, because a frozen peer should not delay `stop()`
        ping_interval: float | None = 20.0,
        ping_timeout: float | None = 20.0,
        max_message_bytes: int | None = 16 * 2**20,  # a result can contain an image
        compression: Literal["deflate"] | None = None,
        subprotocols: Sequence[str] = ("mcp",),
        name: str | None = None,
    ) -> None:
        """Creates a manager without opening anything.

        Args:
            url: A URL that starts with `ws://` or `wss://`. A user name and password in it are sent
                in an `Authorization` header.
            headers: Sent with the upgrade request: a mapping, or a function or coroutine function that
                returns one and is called each time a connection is opened.
            ssl_context: For `wss://` only. `None` uses the system's certificates.
            proxy: The URL of a proxy. `True` uses the proxy from the environment, if there is one;
                `None` uses no proxy. Requires websockets 15. With an older version, a URL raises
                `ValueError`, and `True` uses no proxy.
            open_timeout: Maximum time for connecting, TLS and the upgrade together, in seconds, after
                which `start()` raises `TimeoutError`; `None` waits indefinitely.
            close_timeout: Maximum time for finishing a write and for the closing handshake together,
                in seconds; `None` waits indefinitely.
            ping_interval: Time between pings, in seconds; `None` disables pings.
            ping_timeout: Maximum time for the response to a ping, in seconds, after which the
                connection is lost; `None` waits indefinitely.
            max_message_bytes: Maximum size of a message from the server, in bytes; `None` disables the
                limit. A larger message ends the connection with code 1009.
            compression: `"deflate"` offers compression to the server, which makes large messages much
                slower. `None` disables it.
            subprotocols: The subprotocols to offer. The server may choose one of them or none.
            name: See `ConnectionManager`. The default contains the scheme, host and path of the URL.

        Raises:
            ImportError: The extra `ownertask[websocket]` is not installed, or websockets is too old.
            TypeError: An argument has the wrong type.
            ValueError: `url` is not a WebSocket URL, or another argument has an invalid value.
        """
        client = _websocket_client()
        if not isinstance(url, str):
            raise TypeError(f"url must be a string, not {type(url).__name__}")
        client.check_url(url)
        parts = urlsplit(url)
        if name is None:
            host = parts.netloc.rpartition("@")[2]
            shown = urlunsplit((parts.scheme, host, parts.path, "", ""))
            name = f"{type(self).__name__}({shown})"
        super().__init__(name=name)
        if ssl_context is not None and not isinstance(ssl_context, ssl.SSLContext):
            kind = type(ssl_context).__name__
            raise TypeError(f"ssl_context must be an ssl.SSLContext or None, not {kind}")
        if ssl_context is not None and parts.scheme != "wss":
            raise ValueError("ssl_context requires a url that starts with wss://")
        if isinstance(proxy, str):
            client.check_proxy(proxy)
        elif proxy is not None and proxy is not True:
            raise TypeError(f"proxy must be a URL, True or None, not {type(proxy).__name__}")
        if compression not in {None, "deflate"}:
            raise ValueError(f"compression must be 'deflate' or None, not {compression!r}")
        if ping_interval == 0:
            raise ValueError("ping_interval must be a positive number of seconds or None, not 0")
        self.url: str = url
        self.headers: WebSocketHeaders | None = _checked_headers(headers)
        self.ssl_context: ssl.SSLContext | None = ssl_context
        self.proxy: str | Literal[True] | None = proxy
        self.open_timeout: float | None = checked_timeout("open_timeout", open_timeout)
        self.close_timeout: float | None = checked_timeout("close_timeout", close_timeout)
        self.ping_interval: float | None = checked_timeout("ping_interval", ping_interval)
        self.ping_timeout: float | None = checked_timeout("ping_timeout", ping_timeout)
        self.max_message_bytes: int | None = checked_count("max_message_bytes", max_message_bytes)
        self.compression: Literal["deflate"] | None = compression
        self.subprotocols: Sequence[str] = _checked_subprotocols(subprotocols)

    @override
    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[TransportStreams]:
        client = _websocket_client()
        headers = self.headers() if callable(self.headers) else self.headers
        options: dict[str, object] = {
            "additional_headers": _checked_mapping(
                await headers if isinstance(headers, Awaitable) else headers
            ),
            "open_timeout": self.open_timeout,
            "ping_interval": self.ping_interval,
            "ping_timeout": self.ping_timeout,
            "max_size": self.max_message_bytes,
            "compression": self.compression,
            "subprotocols": self.subprotocols or None,
        }
        if self.ssl_context is not None:
            options["ssl"] = self.ssl_context
        if client.HAS_PROXY:
            options["proxy"] = self.proxy
        async with client.websocket_streams(
            self.url,
            options,
            close_timeout=self.close_timeout,
            on_end=self._ended,
            add_fact=self._add_fact,
        ) as streams:
            yield streams

    @override
    def is_permanent(self, exc: BaseException) -> bool:
        """Returns whether trying again is pointless after a failure; see `ConnectionManager`.

        In addition to programming errors, these are an upgrade that the server refused with HTTP status
        401 or 403, and a server certificate that is not trusted.
        """
        return (
            _websocket_client().is_refusal(exc)
            or has_untrusted_certificate(exc)
            or super().is_permanent(exc)
        )

    def _ended(self, closed: "ConnectionClosed") -> None:
        self._add_fact(f"the WebSocket closed: {closed}")
        is_plain = closed.rcvd is not None and closed.rcvd.code in PLAIN_CLOSE_CODES
        self.connection_lost(None if is_plain else closed)

    def get_streams(self) -> TransportStreams | None:
        """Returns the pair of streams if the state is `OPEN`, otherwise `None`.

        It is also `None` if a session manager opened this transport.
        """
        return self.connection if self.state is ConnectionState.OPEN else None


def _checked_headers(headers: object) -> WebSocketHeaders | None:
    if headers is None or callable(headers):
        return cast("WebSocketHeaders | None", headers)
    return _checked_mapping(headers)


def _checked_mapping(headers: object) -> Mapping[str, str]:
    """Rejects names and values that would end a header line early. The error shows no value."""
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        kind = type(headers).__name__
        raise TypeError(f"headers must be a mapping, a callable that returns one, or None, not {kind}")
    checked = cast("Mapping[object, object]", headers)
    for header, value in checked.items():
        if not isinstance(header, str) or not isinstance(value, str):
            raise TypeError("headers must map strings to strings")
        if not _TOKEN.fullmatch(header) or any(char in value for char in "\r\n\0"):
            raise ValueError(
                "headers must have ASCII names without spaces, control characters or separators, "
                "and values without line breaks or NUL characters"
            )
    return cast("Mapping[str, str]", headers)


def _checked_subprotocols(words: Sequence[str]) -> Sequence[str]:
    if isinstance(words, str) or not isinstance(words, Sequence):
        raise TypeError(f"subprotocols must be a sequence of strings, not {type(words).__name__}")
    if not all(isinstance(word, str) and _TOKEN.fullmatch(word) for word in words):
        raise ValueError("subprotocols must be HTTP tokens, without spaces or commas")
    return tuple(words)


# Imported on first use, so `import ownertask.mcp` works without the library.
def _websocket_client() -> ModuleType:
    try:
        from . import _websocket_client as client
    except ImportError as exc:
        raise ImportError(
            "WebSocketConnectionManager requires websockets 13.1 or newer; install ownertask[websocket]"
        ) from exc
    return client
