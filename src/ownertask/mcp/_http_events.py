"""Event streams in responses. Detects how a stream ends, and whether the SDK can resume it."""

import re
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Self, cast
from urllib.parse import urljoin, urlsplit

from anyio import get_current_task
from typing_extensions import override

from . import _sdk

if TYPE_CHECKING:
    from httpx2 import AsyncByteStream, Response

__all__ = ["CallEvents", "EndpointEvents", "EventStream", "ResumedEvents", "Resumption", "event"]

ID_OR_END: Final = re.compile(rb"(?<=[\r\n])(id: ?[^\r\n ])|\n\r?\n|\r\r")
"""An id, or the empty line after an event. The client remembers the id when the event is complete."""

ENDPOINT_LIMIT: Final = 64 * 1024
"""Maximum number of bytes to search for the `endpoint` event. After them, only the SDK checks it."""

RESUMPTIONS: Final = 2
"""Failures in a row after which a call is not resumed again, as in the SDK."""


class EventStream(_sdk.http.AsyncByteStream):
    """The body of a response. `ended()` may add a last chunk to it."""

    def __init__(self, response: "Response") -> None:
        self._request = response.request
        self._body = cast("AsyncByteStream", response.stream)
        self._chunks: AsyncIterator[bytes] = aiter(self._body)
        self._is_over = False

    @override
    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise StopAsyncIteration
        error: Exception | None = None
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            pass
        except _sdk.http.RequestError as exc:
            exc.request = self._request
            error = exc
        else:
            self.read(chunk)
            return chunk
        self._is_over = True
        return self.ended(error)

    @override
    async def aclose(self) -> None:
        await self._body.aclose()

    def read(self, chunk: bytes) -> None:
        """Called with each chunk that was read."""

    @abstractmethod
    def ended(self, error: Exception | None) -> bytes:
        """Called when the body broke off with `error`, or ended. Returns a last chunk or raises."""


class CallEvents(EventStream):
    """The events with which a server answers a call.

    The SDK stops reading when it has received the result. So if the stream ends, the result is missing.
    If an event had an id, the SDK then resumes the stream. Otherwise, `answer()` is called with the
    exception, or with `None` after a normal end, and returns a message to use in place of the result.
    """

    def __init__(self, response: "Response", answer: Callable[[Exception | None], bytes]) -> None:
        super().__init__(response)
        self._answer = answer
        self._tail = b"\n"
        self._has_id = False
        self._can_be_resumed = False

    @override
    def read(self, chunk: bytes) -> None:
        text = self._tail + chunk
        self._tail = text[-5:]
        if self._can_be_resumed:
            return
        if self._has_id or b"id:" in text:
            for found in ID_OR_END.finditer(text):
                if found[1] is not None:
                    self._has_id = True
                elif self._has_id:
                    self._can_be_resumed = True

    @override
    def ended(self, error: Exception | None) -> bytes:
        if not self._can_be_resumed:
            return self._last_events(error)
        Resumption.begin()
        if error is None:
            raise StopAsyncIteration
        raise error

    def _last_events(self, error: Exception | None) -> bytes:
        """Returns an event that is the result. Before it, an incomplete event is made one to ignore."""
        end_of_line = b"" if self._tail.endswith((b"\r", b"\n")) else b"\n"
        return end_of_line + b"event: incomplete\n\n" + event(self._answer(error))

    @classmethod
    def replace(cls, response: "Response", *arguments: Any) -> "Response":  # noqa: ANN401 - of __init__()
        """Returns the response with such a stream as its body, decompressed if necessary."""
        if "content-encoding" in response.headers:
            response = _decoded(response)
        response.stream = cls(response, *arguments)
        return response


class ResumedEvents(CallEvents):
    """The rest of the events with which a server answers a call."""

    def __init__(
        self,
        response: "Response",
        answer: Callable[[Exception | None], bytes],
        resumption: "Resumption",
    ) -> None:
        super().__init__(response, answer)
        self._resumption = resumption

    @override
    def read(self, chunk: bytes) -> None:
        super().read(chunk)
        if b'"jsonrpc"' in chunk:
            self._resumption.failures = 0

    @override
    def ended(self, error: Exception | None) -> bytes:
        if error is None and self._resumption.is_automatic:
            raise StopAsyncIteration  # the SDK resumes again
        last_events = self._last_events(error)  # may also begin a probe
        if self._resumption.failed():
            return last_events
        raise StopAsyncIteration


class Resumption:
    """The attempts to resume the event stream of a call, in the task of its request.

    Attributes:
        is_automatic: Whether the SDK began it. Otherwise, the caller passed a resumption token.
        failures: The number of failures in a row.
    """

    def __init__(self, *, is_automatic: bool) -> None:
        self.is_automatic = is_automatic
        self.failures = 0
        self._task = get_current_task().id

    @classmethod
    def begin(cls) -> None:
        """Begins a resumption by the SDK in this task."""
        _resumption.set(cls(is_automatic=True))

    @classmethod
    def current(cls) -> "Resumption":
        """Returns the resumption of this task."""
        current = _resumption.get()
        if current is not None and current._task == get_current_task().id:
            return current
        return cls(is_automatic=False)

    def failed(self) -> bool:
        """Counts a failure. Returns whether it was the last attempt."""
        self.failures += 1
        return not self.is_automatic or self.failures >= RESUMPTIONS


_resumption: ContextVar[Resumption | None] = ContextVar("ownertask_resumption", default=None)


def event(message: bytes) -> bytes:
    """Returns an event with a JSON-RPC message."""
    return b"event: message\ndata: " + message + b"\n\n"


class _DecodedBody(_sdk.http.AsyncByteStream):
    def __init__(self, response: "Response") -> None:
        self._response = response
        self._chunks = response.aiter_bytes()

    @override
    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks

    @override
    async def aclose(self) -> None:
        await self._response.aclose()


def _decoded(response: "Response") -> "Response":
    headers = [
        (name, value)
        for name, value in response.headers.multi_items()
        if name not in {"content-encoding", "content-length"}
    ]
    return _sdk.http.Response(
        response.status_code,
        headers=headers,
        stream=_DecodedBody(response),
        request=response.request,
        extensions=response.extensions,
    )


class EndpointEvents(EventStream):
    """The events of an SSE server. Checks the `endpoint` event, which names the URL for messages.

    If that URL has a different origin, the SDK alone would log an error and wait forever.
    """

    def __init__(self, response: "Response", url: str, refuse: Callable[[Exception], object]) -> None:
        super().__init__(response)
        self._url = url
        self._refuse = refuse
        self._line = b""
        self._event = self._data = ""
        self._unseen = ENDPOINT_LIMIT

    @override
    def read(self, chunk: bytes) -> None:
        if self._unseen <= 0:
            return
        self._unseen -= len(chunk)
        *lines, self._line = (self._line + chunk).split(b"\n")
        for line in lines:
            field, _, value = line.decode(errors="replace").strip().partition(":")
            if field == "event":
                self._event = value.strip()
            elif field == "data":
                self._data = value.strip()
            elif not line.strip():
                self._event_ended()

    def _event_ended(self) -> None:
        if self._event != "endpoint":
            self._event = ""
            return
        self._unseen = 0
        if why := _why_foreign(self._data, self._url):
            error = ValueError(why)
            self._refuse(error)
            raise error  # before the SDK sees the event, whose URL may be secret

    @override
    def ended(self, error: Exception | None) -> bytes:
        if error is None:
            raise StopAsyncIteration
        raise error


def _why_foreign(endpoint: str, url: str) -> str | None:
    """Returns why the SDK refuses the URL in an `endpoint` event, or `None`."""
    mine, other = urlsplit(url), urlsplit(urljoin(url, endpoint))
    if (mine.scheme, mine.netloc) == (other.scheme, other.netloc):
        return None
    origins = [f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" for parts in (other, mine)]
    if origins[0] == origins[1]:
        return (
            "the server's `endpoint` event does not repeat the user info of the URL, as the SDK "
            "requires; pass it as a header or `auth` instead"
        )
    return "the server's `endpoint` event has the origin {}, but the URL has {}".format(*origins)
