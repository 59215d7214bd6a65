"""The traffic of a streamable HTTP connection. A failed call does not affect other calls.

The SDK crashes on some failures of a request, and reports others without a reason. Once the connection
is open, the SDK sees none of them. It receives an error for the failed call, as if from the server.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from .._log import WARNING, log
from . import _sdk
from ._http_errors import (
    is_doubtful,
    is_event_stream,
    is_json,
    is_refusal,
    is_response_to,
    is_unreachable,
    shown_url,
    status_error,
    status_of,
    text_of_failure,
)
from ._http_events import CallEvents, ResumedEvents, Resumption, event
from ._http_messages import CONNECTION_CLOSED, CallError, call_id_of, error_in, is_answer
from ._http_session import NO_VERDICT, SESSION_ID
from ._http_traffic import Traffic

if TYPE_CHECKING:
    from httpx2 import Request, Response

    from ._http_listening import Listening
    from ._http_session import ServerSession

__all__ = ["CallTraffic"]

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"

REDIRECTS: Final = "ownertask.redirects"
"""The key of the number of redirects, in the extensions of a request."""


class CallTraffic(Traffic):
    """Observes the requests of a streamable HTTP connection.

    Attributes:
        refused: The last response to a message if its status was not a success, or `None`.
        session: The session on the server.
        listening: The event stream for the server's messages.
    """

    session: "ServerSession"
    listening: "Listening"

    def __init__(
        self, lose: Callable[[Exception], object], name: str, is_opening: Callable[[], bool]
    ) -> None:
        """Creates the traffic of one run.

        Args:
            lose: Reports the loss of the connection.
            name: The manager's name.
            is_opening: Returns whether the connection is being opened. Until it is open, failures are
                raised by `start()` instead of being turned into errors of calls.
        """
        super().__init__(lose)
        self.refused: Response | None = None
        self._name = name
        self._is_opening = is_opening

    @override
    def fail(self, error: Exception) -> None:
        """Reports the loss, so that the failing calls can name the reason, and ends the transport."""
        if not (self.is_over or self._is_opening()):
            self._lose(error)
        super().fail(error)

    @override
    async def send(self, request: "Request", send: "Callable[[], Awaitable[Response]]") -> "Response":
        # The HTTP library copies the count to the request that follows a redirect.
        request.extensions[REDIRECTS] = request.extensions.get(REDIRECTS, -1) + 1
        if request.method == "POST":
            return await self._post(request, send)
        if self.listening.is_for(request):
            return await self.listening.open(request, send)
        return await self._resume(request, send)

    def _is_followed(self, request: "Request", response: "Response") -> bool:
        """Returns whether the SDK follows a redirect. After too many, it may crash."""
        is_allowed = request.extensions[REDIRECTS] < self.session.client.max_redirects
        return is_allowed and _sdk.next_request_within_origin(response) is not None

    async def _post(self, request: "Request", send: "Callable[[], Awaitable[Response]]") -> "Response":
        try:
            response = await send()
            if response.is_success and is_json(response):
                await _read(response)
        except Exception as error:
            if self._is_opening():
                self.fail(error)
                raise
            if not is_refusal(error):
                return self._failed(request, error)
            response = error.response
        self.session.follow(request, response)
        if self._is_opening() and not response.is_success:
            self.note(request, response)
            self.refused = response
            return response
        if self._is_followed(request, response):
            return response
        if not is_response_to(request, response):
            await response.aclose()
            text = f"{status_of(response)} from {shown_url(response.request.url)}"
            return self._answer(request, CallError(text))
        if response.is_success:
            self.refused = self.refusal = None
            return await self._answered(request, response)
        return await self._refused(request, response)

    async def _resume(self, request: "Request", send: "Callable[[], Awaitable[Response]]") -> "Response":
        """Sends the request with which the SDK resumes the event stream of a call.

        If that fails, the SDK may crash, or forget the call. So it sees an empty event stream instead,
        after which it tries again, or the error of the call.
        """
        resumption = Resumption.current()
        try:
            response = await send()
        except Exception as error:  # noqa: BLE001 - the call fails with its text
            text = self._text_of(request, error)
        else:
            if response.is_success and is_event_stream(response):
                return ResumedEvents.replace(response, partial(self._cut_off, request), resumption)
            if self._is_followed(request, response):
                return response
            await response.aclose()
            self._doubt(request, response)
            text = status_of(response)
        message = CallError(text).message_for(call_id_of(request))
        return _response(request, EVENTS, event(message) if resumption.failed() else b"")

    async def _answered(self, request: "Request", response: "Response") -> "Response":
        if is_event_stream(response):
            response.status_code = HTTPStatus.OK  # mcp 1.x ignores the body if it is 202
            return CallEvents.replace(response, partial(self._cut_off, request))
        if is_json(response) and is_answer(response.content, request):
            response.status_code = HTTPStatus.OK
            return response
        call_id = call_id_of(request)
        if call_id is None:  # a notification has no result
            return response
        error = error_in(await _content_of(response))
        if error is None or error.id not in (None, call_id):
            error = CallError(f"{status_of(response)}: the response is not an answer to the call")
        self._doubt(request, response)
        return _response(request, JSON, error.message_for(call_id))

    def _cut_off(self, request: "Request", error: Exception | None) -> bytes:
        """Returns the message that ends a call whose event stream ended without a result."""
        if error is None:
            text = "the event stream ended without a response"
        elif self._is_opening():
            self.fail(error)
            raise error
        else:
            text = self._text_of(request, error)
        return CallError(text, CONNECTION_CLOSED).message_for(call_id_of(request))

    def _failed(self, request: "Request", error: Exception) -> "Response":
        """Returns the answer to a message that could not be sent or received no response."""
        return self._answer(request, CallError(self._text_of(request, error), CONNECTION_CLOSED))

    def _text_of(self, request: "Request", error: Exception) -> str:
        text = text_of_failure(error)
        if is_unreachable(error, request) or self.session.client.is_closed:
            self.session.gone(error)
        elif is_doubtful(error, request):
            self._doubt(request, None)
        return text

    async def _refused(self, request: "Request", response: "Response") -> "Response":
        """Returns the answer to a message that was refused."""
        error = error_in(await _content_of(response))
        text = status_of(response)
        call_id = call_id_of(request)
        if error is not None and call_id is not None and error.id == call_id:
            self._doubt(request, response)
            return self._answer(request, error)
        if response.status_code == HTTPStatus.NOT_FOUND and SESSION_ID in request.headers:
            self.session.forgotten(status_error(response, "the server no longer knows the session"))
            return self._answer(
                request, CallError(f"Session terminated: {text}", _sdk.SESSION_TERMINATED)
            )
        self._doubt(request, response)
        return self._answer(request, CallError(text if error is None else f"{text}: {error.text}"))

    def _doubt(self, request: "Request", response: "Response | None") -> None:
        """Probes the session, unless the message was sent without one or the status says nothing."""
        if SESSION_ID in request.headers and (
            response is None or response.status_code not in NO_VERDICT
        ):
            self.session.doubt()

    def _answer(self, request: "Request", error: CallError) -> "Response":
        call_id = call_id_of(request)
        if call_id is not None:
            return _response(request, JSON, error.message_for(call_id))
        log(WARNING, "%s: a notification or response failed: %s", self._name, error.text)
        return _sdk.http.Response(HTTPStatus.ACCEPTED, request=request)


async def _read(response: "Response") -> bytes:
    try:
        return await response.aread()
    except BaseException:  # as the HTTP library does it: the SDK will not close this response
        await response.aclose()
        raise


async def _content_of(response: "Response") -> bytes:
    """Reads a response whose content is not required."""
    try:
        return await _read(response)
    except (_sdk.http.HTTPError, _sdk.http.StreamError):
        return b""


def _response(request: "Request", content_type: str, content: bytes) -> "Response":
    headers = {"content-type": content_type}
    return _sdk.http.Response(HTTPStatus.OK, headers=headers, content=content, request=request)
