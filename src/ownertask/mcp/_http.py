"""Code shared by the two HTTP transports: argument checks and the detection of failures.

The SDK's transports log some failures and continue as if nothing had happened. This module observes
`send()` of the HTTP client, through which every request passes, so it sees each response and each
exception that the SDK sees. It works on a copy and never modifies the caller's client.
"""

import re
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from copy import copy
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self, cast

from anyio import CancelScope, get_cancelled_exc_class
from typing_extensions import override

from .._reason import leaves, text_of
from ..manager import ConnectionManager
from ..state import ConnectionState
from . import _sdk
from .streams import TransportStreams, watched

if TYPE_CHECKING:
    from httpx2 import AsyncByteStream, AsyncClient, Auth, Request, Response
    from mcp.shared._httpx_utils import McpHttpClientFactory

__all__ = ["HttpConnectionManager", "Traffic", "check_http_type", "checked_url", "shown_url"]

TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A valid name of a header or of an authentication scheme."""

UNDERSTOOD: Final = {"application/json", "text/event-stream"}
EVENT_ID: Final = re.compile(rb"[\r\n]id: ?[^\r\n ]")
URL_IN_TEXT: Final = re.compile(r"(https?://)(?:[^\s/?#'\"]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?")


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
    except _sdk.http.InvalidURL:
        parsed = _sdk.http.URL()
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ValueError(f"{argument} must be a URL that starts with http:// or https://")
    return url


def shown_url(url: str) -> str:
    """Returns the URL without user info, query and fragment, which may be secret."""
    return str(_sdk.http.URL(url).copy_with(userinfo=b"", query=None, fragment=None))


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
        httpx_client_factory: Creates the HTTP client of each run.
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
        self.httpx_client_factory: McpHttpClientFactory | None = httpx_client_factory

    def _make_client(self, timeout: float | None, read_timeout: float | None) -> "AsyncClient":
        make = self.httpx_client_factory or _sdk.create_mcp_http_client
        timeouts = _sdk.http.Timeout(timeout, read=read_timeout)
        client = make(headers=self.headers, timeout=timeouts, auth=self.auth)
        check_http_type("the return value of httpx_client_factory", client, _sdk.http.AsyncClient)
        return client

    def get_streams(self) -> TransportStreams | None:
        """Returns the pair of streams if the state is `OPEN`, otherwise `None`.

        It is also `None` if a session manager opened this transport.
        """
        return self.connection if self.state is ConnectionState.OPEN else None

    @abstractmethod
    def _open_transport(self, traffic: "Traffic") -> AbstractAsyncContextManager[TransportStreams]:
        """Opens the SDK's transport on a client that `traffic.observed()` returned."""

    @abstractmethod
    def _why_fatal(self, request: "Request", response: "Response") -> str | None:
        """Returns why the transport cannot continue after this response, or `None` if it can."""

    @override
    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[TransportStreams]:
        def lose(error: Exception | None = None) -> None:
            self._tell(error, traffic.refusal)
            self.connection_lost(error)

        traffic = Traffic(lose, self._why_fatal)
        try:
            with traffic.scope:
                async with self._open_transport(traffic) as streams:
                    try:
                        yield watched(streams, lose, traffic.read_instead)
                    finally:
                        traffic.is_over = True
        except BaseException as error:
            self._tell(error, traffic.refusal)
            # Many requests can fail for the same reason, so the first failure is enough.
            cancelled = get_cancelled_exc_class()
            kinds = [type(leaf) for leaf in leaves(error) if not isinstance(leaf, cancelled)]
            are_http = kinds and all(issubclass(kind, _sdk.http.HTTPError) for kind in kinds)
            if traffic.failure is None or not are_http:
                raise
        if traffic.failure is not None:
            self._tell(traffic.failure, traffic.refusal)
            raise traffic.failure

    def _tell(self, error: BaseException | None, refusal: str | None) -> None:
        """Adds all known facts as notes, and removes secrets from the text of the error."""
        if refusal is not None:
            self._add_fact(refusal)
        for leaf in leaves(error):
            if isinstance(leaf, _sdk.http.HTTPError):
                with suppress(Exception):  # an exception's methods may raise anything
                    _make_presentable(leaf)
                with suppress(Exception):
                    if reason := _reason_of(leaf):
                        self._add_fact(reason)


class Traffic:
    """Observes the requests of one run.

    Attributes:
        scope: The scope around the transport. A failure cancels it.
        has_asked: Whether a request was sent and has not failed.
        failure: The first failure that ended the transport. The SDK may only have logged it.
        refusal: Why the last response could not be used, or `None`.
        is_over: Whether the transport is closing. Failures are ignored from then on.
    """

    def __init__(
        self,
        lose: Callable[[Exception], object],
        why_fatal: "Callable[[Request, Response], str | None]",
    ) -> None:
        self.scope = CancelScope()
        self.has_asked = False
        self.failure: Exception | None = None
        self.refusal: str | None = None
        self.is_over = False
        self._lose = lose
        self._why_fatal = why_fatal

    def fail(self, error: Exception) -> None:
        """Ends the transport, unless it is already ending."""
        if not self.is_over and self.failure is None:
            self.failure = error
            self.scope.cancel()

    def observed(self, client: "AsyncClient") -> "AsyncClient":
        """Returns a copy of the client whose requests are observed."""
        client_send = cast("Callable[..., Awaitable[Response]]", client.send)

        async def send(request: "Request", **options: object) -> "Response":
            self.has_asked = True
            try:
                response = await client_send(request, **options)
            except Exception as error:
                self.has_asked = False
                # The SDK can continue without the stream that a GET opens. But if the GET cannot
                # connect, messages cannot be sent either.
                if request.method == "POST" or isinstance(error, _sdk.http.ConnectError):
                    self.fail(error)
                raise
            if (why := self._why_fatal(request, response)) is not None:
                # Replaces the SDK's error, which shows and logs the whole URL.
                await response.aclose()
                text = f"{_status(response)}: {why}"
                refusal = _sdk.http.HTTPStatusError(text, request=request, response=response)
                self.fail(refusal)
                raise refusal
            self._see(request, response)
            return response

        clone = copy(client)
        vars(clone)["send"] = send
        return clone

    def _see(self, request: "Request", response: "Response") -> None:
        if request.method == "GET" and response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            return  # the server does not offer an event stream, as the specification allows
        content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not response.is_success:
            self.refusal = _status(response)
        elif (
            response.status_code == HTTPStatus.OK
            and content_type not in UNDERSTOOD
            and response.headers.get("content-length") != "0"  # acknowledges a notification
        ):
            self.refusal = f"{_status(response)}, Content-Type: {content_type or 'none'}"
        else:
            self.refusal = None
        if _sdk.FORGETS_BROKEN_RESPONSES and request.method == "POST":
            response.stream = _Body(cast("AsyncByteStream", response.stream), self.fail)

    def read_instead(self, error: Exception) -> None:
        """Handles an exception that the SDK put into the read stream in place of a message."""
        if isinstance(error, _sdk.http.TransportError):
            self._lose(error)
        else:
            first_line = text_of(error).partition("\n")[0]
            self.refusal = f"a response could not be processed: {type(error).__name__}: {first_line}"


class _Body(_sdk.http.AsyncByteStream):
    """The body of a response. Reports if it breaks off and the SDK would wait forever.

    If an event had an id, a break is not reported, because the SDK resumes the stream from there. A
    normal end of the stream is never reported: a server may end the stream of a cancelled call
    without a response.
    """

    def __init__(self, body: "AsyncByteStream", on_break: Callable[[Exception], object]) -> None:
        self._body = body
        self._on_break = on_break
        self._chunks = aiter(body)
        self._tail = b"\n"
        self._can_be_resumed = False

    @override
    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await anext(self._chunks)
        except _sdk.http.TransportError as error:
            if not self._can_be_resumed:
                self._on_break(error)
            raise
        self._can_be_resumed |= EVENT_ID.search(self._tail + chunk) is not None
        self._tail = (self._tail + chunk)[-5:]
        return chunk

    @override
    async def aclose(self) -> None:
        await self._body.aclose()


def _status(response: "Response") -> str:
    text = f"HTTP status {response.status_code} {response.reason_phrase}"
    scheme = TOKEN.match(response.headers.get("www-authenticate", ""))
    return text if scheme is None else f"{text}, WWW-Authenticate: {scheme[0]}"


def _make_presentable(error: BaseException) -> None:
    """Removes user info, query and fragment from the URLs in an error's text; changes nothing else."""
    response = error.response if isinstance(error, _sdk.http.HTTPStatusError) else None
    # A pattern cannot always find the end of a URL in a text. These two URLs are known.
    urls = () if response is None else (str(response.url), response.headers.get("location", ""))

    def presentable(text: str) -> str:
        for url in urls:
            if f"'{url}'" in text:  # the HTTP library quotes both
                text = text.replace(f"'{url}'", f"'{shown_url(url)}'")
        return URL_IN_TEXT.sub(r"\1\2", text)

    error.args = tuple(presentable(arg) if isinstance(arg, str) else arg for arg in error.args)


def _reason_of(error: BaseException) -> str | None:
    """Describes the cause of an error that has no text. Errors of trio and anyio often have none."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        if text := text_of(found):
            return None if found is error else f"{type(found).__name__}: {text}"
        seen.add(id(found))
        found = found.__cause__ or found.__context__
    return None
