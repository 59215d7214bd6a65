"""The base class of the two HTTP transports, and the checks of their arguments."""

from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Final

from anyio import get_cancelled_exc_class
from typing_extensions import override

from .._owner import Run
from .._reason import is_a, leaves
from ..manager import ConnectionManager
from ..state import ConnectionState
from . import _sdk
from ._http_errors import TOKEN, notes_on, shown_url
from ._permanent import REFUSALS, has_untrusted_certificate
from .streams import TransportStreams, watched

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Auth
    from mcp.shared._httpx_utils import McpHttpClientFactory

    from ._http_traffic import Traffic

__all__ = ["HttpConnectionManager", "check_http_type", "checked_url"]

MAX_PORT: Final = 65535


def checked_url(argument: str, url: str) -> str:
    """Returns the URL if it is an HTTP URL. The errors do not show it, since it may contain a secret.

    Raises:
        TypeError: It is not a string.
        ValueError: It is not an HTTP URL.
    """
    if not isinstance(url, str):
        raise TypeError(f"{argument} must be a URL, not {type(url).__name__}")
    try:
        parsed = _sdk.http.URL(url)
    except (_sdk.http.InvalidURL, UnicodeError):  # a UnicodeError contains the URL
        parsed = _sdk.http.URL()
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ValueError(f"{argument} must be a URL that starts with http:// or https://")
    if parsed.port is not None and parsed.port > MAX_PORT:
        raise ValueError(f"{argument} must not have a port above {MAX_PORT}")
    return url


def check_http_type(argument: str, value: object, expected: type[object]) -> None:
    """Checks the type of a value that must come from the HTTP library of the installed SDK.

    Raises:
        TypeError: It has another type, such as the same class of the other HTTP library.
    """
    if not isinstance(value, expected):
        kind = f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"
        raise TypeError(f"{argument} must be an {_sdk.http.__name__}.{expected.__name__}, not {kind}")


def _checked_headers(headers: Mapping[str, str] | None) -> dict[str, str] | None:
    if headers is None:
        return None
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers must be a mapping or None, not {type(headers).__name__}")
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError("headers must map strings to strings")
        if not TOKEN.fullmatch(name):
            raise ValueError(
                "headers must have ASCII names without spaces, control characters or separators"
            )
        if not value.isascii() or not value.isprintable() or value != value.strip():
            # The HTTP library would also reject it, but its error would show the value.
            raise ValueError(
                f"headers[{name!r}] must be printable ASCII without leading or trailing spaces"
            )
    return dict(headers)


class HttpConnectionManager(ConnectionManager[TransportStreams]):
    """Base class of the HTTP transports.

    Attributes:
        url: The server's URL.
        headers: Sent with every request.
        auth: Authenticates every request.
        httpx_client_factory: Creates the HTTP client of each run. By default, it is the SDK's factory.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None,
        auth: "Auth | None",
        httpx_client_factory: "McpHttpClientFactory | None",
        *,
        name: str | None,
    ) -> None:
        self.url: str = checked_url("url", url)
        super().__init__(name=f"{type(self).__name__}({shown_url(url)})" if name is None else name)
        self.headers: dict[str, str] | None = _checked_headers(headers)
        if auth is not None:
            check_http_type("auth", auth, _sdk.http.Auth)
        self.auth: Auth | None = auth
        if httpx_client_factory is not None and not callable(httpx_client_factory):
            kind = type(httpx_client_factory).__name__
            raise TypeError(f"httpx_client_factory must be callable or None, not {kind}")
        self.httpx_client_factory: McpHttpClientFactory = (
            _sdk.create_mcp_http_client if httpx_client_factory is None else httpx_client_factory
        )

    def _make_client(self, timeout: float | None, read_timeout: float | None) -> "AsyncClient":
        timeouts = _sdk.http.Timeout(timeout, read=read_timeout)
        client = self.httpx_client_factory(headers=self.headers, timeout=timeouts, auth=self.auth)
        check_http_type("the return value of httpx_client_factory", client, _sdk.http.AsyncClient)
        return client

    def get_streams(self) -> TransportStreams | None:
        """Returns the pair of streams if the state is `OPEN`, otherwise `None`.

        It is also `None` if a session manager opened this transport.
        """
        return self.connection if self.state is ConnectionState.OPEN else None

    @override
    def is_permanent(self, exc: BaseException) -> bool:
        """Returns whether trying again is pointless after a failure; see `ConnectionManager`.

        In addition to programming errors, these are the HTTP statuses 401 and 403, and a server
        certificate that is not trusted.
        """
        if is_a(exc, _sdk.http.HTTPStatusError) and exc.response.status_code in REFUSALS:
            return True
        return has_untrusted_certificate(exc) or super().is_permanent(exc)

    @abstractmethod
    def _create_traffic(
        self, lose: "Callable[[Exception], object]", run: "Run[object] | None"
    ) -> "Traffic":
        """Creates the observer of the requests of a run. `lose` reports a loss."""

    @abstractmethod
    def _open_transport(self, traffic: "Traffic") -> AbstractAsyncContextManager[TransportStreams]:
        """Opens the SDK's transport in `traffic.guarded()`, on a client from `traffic.observed()`."""

    @override
    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[TransportStreams]:
        run = self._run_of_caller()

        def tell(error: BaseException | None) -> None:
            # In an open connection, a refused request does not explain why the connection ended.
            if traffic.refusal is not None and not (run is not None and run.outcome.was_open):
                self._add_fact(traffic.refusal)
            for note in notes_on(error):
                self._add_fact(note)

        def lose(error: Exception | None = None) -> None:
            tell(error)
            self.connection_lost(error)

        traffic = self._create_traffic(lose, run)
        try:
            async with self._open_transport(traffic) as streams:
                try:
                    yield watched(streams, lose, traffic.read_instead, answers_itself=True)
                finally:
                    traffic.is_over = True
        except BaseException as error:
            tell(error)
            # Many requests can fail for the same reason, so the first failure is enough.
            cancelled = get_cancelled_exc_class()
            kinds = [type(leaf) for leaf in leaves(error) if not isinstance(leaf, cancelled)]
            are_http = kinds and all(issubclass(kind, _sdk.http.HTTPError) for kind in kinds)
            if traffic.failure is None or not are_http:
                raise
        if traffic.failure is not None:
            tell(traffic.failure)
            raise traffic.failure
