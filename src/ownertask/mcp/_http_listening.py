"""The event stream for the server's messages: notifications and requests that belong to no call.

The SDK opens it with a GET and gives up after two failures, but it always reopens a stream that ended
normally. So each failure is shown to the SDK as the normal end of an empty stream.
"""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from anyio import current_time, get_current_task, sleep
from typing_extensions import override

from . import _sdk
from ._http_errors import is_event_stream, is_refusal, is_response_to, is_unreachable, status_error
from ._http_events import EventStream
from ._http_session import NO_VERDICT

if TYPE_CHECKING:
    from httpx2 import Request, Response

    from ._http_session import ServerSession

__all__ = ["Listening"]

MAX_DELAY = 30.0
"""Maximum delay in seconds, unless the server asks for more. The SDK waits for one second of it."""


STABLE: Final = 1.0
"""Seconds. If a stream was open for at least as long, its end is not counted with earlier failures."""

_listener: ContextVar[int | None] = ContextVar("ownertask_listener", default=None)
"""The task in which the SDK keeps the stream."""


class Listening:
    """Keeps the event stream open for the SDK."""

    def __init__(self, session: "ServerSession", note: "Callable[[Request, Response], object]") -> None:
        self._session = session
        self._note = note
        self._failures = 0
        self._was_open = False
        self._unavailable: HTTPStatus | None = None

    def is_for(self, request: "Request") -> bool:
        """Returns whether a GET opens this stream. Other GETs resume the response to a call."""
        task = get_current_task().id
        if "last-event-id" not in request.headers:
            _listener.set(task)
        return _listener.get() == task  # other tasks may inherit the variable

    async def open(self, request: "Request", send: "Callable[[], Awaitable[Response]]") -> "Response":
        """Opens the stream. The delay before this grows with each failure in a row."""
        if self._unavailable is not None:
            return _sdk.http.Response(self._unavailable, request=request)
        if self._failures > 1:
            await sleep(max(min(2.0 ** min(self._failures - 1, 10), MAX_DELAY) - 1, 0))
        try:
            response = await send()
        except Exception as error:
            if is_unreachable(error, request) or self._session.client.is_closed:
                self._session.gone(error)
                raise
            if not is_refusal(error):
                return self._failed(request, error)
            response = error.response
        self._note(request, response)
        return await self._answered(request, response)

    async def _answered(self, request: "Request", response: "Response") -> "Response":
        if not is_response_to(request, response):
            await response.aclose()
            return self._failed(request, None)
        if response.is_success and is_event_stream(response):
            self._was_open = True
            response.stream = _Events(response, self)
            return response
        if response.next_request is not None:
            return response  # the SDK follows the redirect, or gives up
        if response.status_code == HTTPStatus.NOT_FOUND and self._was_open:
            self._session.forgotten(status_error(response, "the server no longer knows the session"))
        if response.status_code in {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}:
            self._unavailable = HTTPStatus(response.status_code)
            return response
        if self._was_open and response.is_client_error and response.status_code not in NO_VERDICT:
            self._session.doubt()  # many servers respond with 400 instead of 404 to an unknown session
        await response.aclose()
        return self._failed(request, None)

    def _failed(self, request: "Request", error: Exception | None) -> "Response":
        self.ended(error)
        headers = {"content-type": "text/event-stream"}
        return _sdk.http.Response(HTTPStatus.OK, headers=headers, content=b"", request=request)

    def worked(self) -> None:
        """Called when the server sent a message on the stream, or kept it open for a while."""
        self._failures = 0

    def ended(self, error: Exception | None) -> None:
        """Called when the stream ended, broke off or could not be opened."""
        # A read timeout only shows that the server had nothing to send.
        if not isinstance(error, _sdk.http.ReadTimeout):
            self._failures += 1


class _Events(EventStream):
    """The events. Shows the SDK a normal end even if the stream broke off."""

    def __init__(self, response: "Response", listening: Listening) -> None:
        super().__init__(response)
        self._listening = listening
        self._opened_at = current_time()

    @override
    def read(self, chunk: bytes) -> None:
        if b'"jsonrpc"' in chunk:
            self._listening.worked()

    @override
    def ended(self, error: Exception | None) -> bytes:
        if current_time() - self._opened_at >= STABLE:
            self._listening.worked()
        self._listening.ended(error)
        raise StopAsyncIteration
