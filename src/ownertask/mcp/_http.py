"""What the two transports over HTTP share: their arguments, and the truth about their failures.

The SDK's transports look at some failures only to log them, and go on as if nothing had been. So the
`send()` of the HTTP client is looked at, which all requests go through: what it raises and returns is
known as exactly as the SDK knows it, and the client of a caller is not touched.
"""

import re
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from copy import copy
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self, cast

from anyio import CancelScope, get_cancelled_exc_class
from typing_extensions import override

from ..manager import ConnectionManager
from ..state import ConnectionState
from . import _sdk
from .streams import TransportStreams, watched

if TYPE_CHECKING:
    from httpx2 import AsyncByteStream, AsyncClient, Auth, Request, Response
    from mcp.shared._httpx_utils import McpHttpClientFactory

__all__ = ["HttpConnectionManager", "Traffic", "check_http_type", "checked_url", "leaves", "shown_url"]

TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""What HTTP lets a header be called, and an authentication scheme."""

UNDERSTOOD: Final = {"application/json", "text/event-stream"}
EVENT_ID: Final = re.compile(rb"[\r\n]id: ?[^\r\n ]")
URL_IN_TEXT: Final = re.compile(r"(https?://)(?:[^\s/?#'\"]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?")


def checked_url(argument: str, url: str) -> str:
    """A URL of HTTP, if it is one. What it is instead is not shown, as it may hold a secret.

    Raises:
        TypeError: It is no string.
        ValueError: It is another URL, or none.
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
    """The URL without user-info, query and fragment, which may be secret."""
    return str(_sdk.http.URL(url).copy_with(userinfo=b"", query=None, fragment=None))


def check_http_type(argument: str, value: object, expected: type[object]) -> None:
    """Refuses what is of another type, such as that of the other line's HTTP library.

    Raises:
        TypeError: It is.
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
            raise ValueError("headers must have names that contain only letters, digits and hyphens")
        if not value.isascii() or not value.isprintable() or value != value.strip():
            # The HTTP library would say so, too, and show the value.
            raise ValueError(
                f"headers[{name!r}] must be printable ASCII without leading or trailing spaces"
            )
    return dict(headers)


class HttpConnectionManager(ConnectionManager[TransportStreams]):
    """The base of the transports over HTTP; see the module.

    Attributes:
        url: Where the server is.
        headers: Sent with every request.
        auth: Authenticates every request.
        httpx_client_factory: Makes the HTTP client of each run.
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
        """The pair of streams while the state is `OPEN`, else `None`."""
        return self.connection if self.state is ConnectionState.OPEN else None

    @abstractmethod
    def _open_transport(self, traffic: "Traffic") -> AbstractAsyncContextManager[TransportStreams]:
        """The SDK's transport, on a client that `traffic.observed()` has returned."""

    @abstractmethod
    def _why_fatal(self, request: "Request", response: "Response") -> str | None:
        """What such an answer means, if nothing can come any more after it; else `None`."""

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
            # Many requests can fail of the same, of which the first tells enough.
            cancelled = get_cancelled_exc_class()
            kinds = [type(leaf) for leaf in leaves(error) if not isinstance(leaf, cancelled)]
            are_http = kinds and all(issubclass(kind, _sdk.http.HTTPError) for kind in kinds)
            if traffic.failure is None or not are_http:
                raise
        if traffic.failure is not None:
            self._tell(traffic.failure, traffic.refusal)
            raise traffic.failure

    def _tell(self, error: BaseException | None, refusal: str | None) -> None:
        """Has all that is known noted, and no secret left in the text of an error."""
        if refusal is not None:
            self._add_fact(refusal)
        for leaf in leaves(error) if error is not None else ():
            if isinstance(leaf, _sdk.http.HTTPError):
                _make_presentable(leaf)
                if reason := _reason_of(leaf):
                    self._add_fact(reason)


class Traffic:
    """What is seen of the requests of one run.

    Attributes:
        scope: Around the transport; cancelled by a failure, as the SDK's own task group is.
        has_asked: Whether a request was made, and did not fail.
        failure: What has ended the transport without the SDK's saying so.
        refusal: The last answer, if it was one that helps nobody on.
        is_over: Whether the transport is being closed, and can fail no more.
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
        """Ends the transport, unless that is going on already."""
        if not self.is_over and self.failure is None:
            self.failure = error
            self.scope.cancel()

    def observed(self, client: "AsyncClient") -> "AsyncClient":
        """The client with its requests seen; the one that is given stays as it is."""
        client_send = cast("Callable[..., Awaitable[Response]]", client.send)

        async def send(request: "Request", **options: object) -> "Response":
            self.has_asked = True
            try:
                response = await client_send(request, **options)
            except Exception as error:
                self.has_asked = False
                # The SDK can do without the stream of a GET; but where nobody listens for that,
                # nobody does for messages.
                if request.method == "POST" or isinstance(error, _sdk.http.ConnectError):
                    self.fail(error)
                raise
            if (why := self._why_fatal(request, response)) is not None:
                # In the place of the SDK's error, which shows and logs the whole URL.
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
            return  # so does a server say that it has no stream of its own
        content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not response.is_success:
            self.refusal = _status(response)
        elif (
            response.status_code == HTTPStatus.OK
            and content_type not in UNDERSTOOD
            and response.headers.get("content-length") != "0"  # which acknowledges a notification
        ):
            self.refusal = f"{_status(response)}, Content-Type: {content_type or 'none'}"
        else:
            self.refusal = None
        if _sdk.FORGETS_BROKEN_RESPONSES and request.method == "POST":
            response.stream = _Body(cast("AsyncByteStream", response.stream), self.fail)

    def read_instead(self, error: Exception) -> None:
        """Is told what the SDK has put into the read stream instead of a message."""
        if isinstance(error, _sdk.http.TransportError):
            self._lose(error)
        else:
            first_line = str(error).partition("\n")[0]
            self.refusal = f"a response could not be processed: {type(error).__name__}: {first_line}"


class _Body(_sdk.http.AsyncByteStream):
    """The body of an answer; tells of a break after which the SDK would wait for ever.

    It does not if there was an event with an id, from which the SDK takes it up again. A proper end
    without an answer is no break: so may a server end a call that was cancelled.
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


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions at the bottom of its groups."""
    if isinstance(error, BaseExceptionGroup):
        for part in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from leaves(part)
    else:
        yield error


def _make_presentable(error: BaseException) -> None:
    """Takes user-info, query and fragment out of the URLs in its text; its type and all else stay."""
    response = error.response if isinstance(error, _sdk.http.HTTPStatusError) else None
    # These two may be of a shape that no pattern tells from the text around them.
    urls = () if response is None else (str(response.url), response.headers.get("location", ""))

    def presentable(text: str) -> str:
        for url in urls:
            if f"'{url}'" in text:  # as the HTTP library shows both
                text = text.replace(f"'{url}'", f"'{shown_url(url)}'")
        return URL_IN_TEXT.sub(r"\1\2", text)

    error.args = tuple(presentable(arg) if isinstance(arg, str) else arg for arg in error.args)


def _reason_of(error: BaseException) -> str | None:
    """What an error without a text was raised from. trio's and anyio's often have none."""
    found: BaseException | None = error
    while found is not None and not str(found):
        found = found.__cause__ or found.__context__
    return None if found is None or found is error else f"{type(found).__name__}: {found}"
