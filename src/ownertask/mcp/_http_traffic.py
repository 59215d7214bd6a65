"""Observes the HTTP requests of one run.

The SDK's transports log some failures and continue as if nothing had happened, and crash on others. All
requests pass through `send()` of the HTTP client. `Traffic` replaces it on a copy of the client, and
never modifies the caller's client.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from copy import copy
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

from anyio import CancelScope

from .._reason import text_of
from . import _sdk
from ._http_errors import content_type_of, status_of

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Request, Response

__all__ = ["Traffic"]

UNDERSTOOD: Final = {"application/json", "text/event-stream"}


class Traffic(ABC):
    """Observes the requests of one run.

    Attributes:
        failure: The first failure that ended the transport. The SDK may only have logged it.
        refusal: Why the last response could not be used, or `None`.
        is_over: Whether the transport is closing. Failures are ignored from then on.
    """

    def __init__(self, lose: Callable[[Exception], object]) -> None:
        self._scope = CancelScope()
        self.failure: Exception | None = None
        self.refusal: str | None = None
        self.is_over = False
        self._lose = lose

    def fail(self, error: Exception) -> None:
        """Ends the transport, unless it is already ending."""
        if not self.is_over and self.failure is None:
            self.failure = error
            self._scope.cancel()

    @contextmanager
    def guarded(self) -> Generator[None]:
        """Surrounds the SDK's transport. On exit, raises the failure that ended it, if any."""
        with self._scope:
            yield
        if self.failure is not None:
            raise self.failure

    def observed(self, client: "AsyncClient") -> "AsyncClient":
        """Returns a copy of the client whose requests are observed."""
        client_send = cast("Callable[..., Awaitable[Response]]", client.send)

        async def send(request: "Request", **options: object) -> "Response":
            return await self.send(request, partial(client_send, request, **options))

        clone = copy(client)
        vars(clone)["send"] = send
        return clone

    @abstractmethod
    async def send(self, request: "Request", send: "Callable[[], Awaitable[Response]]") -> "Response":
        """Sends a request by calling `send()`, and returns the response for the SDK."""

    def note(self, request: "Request", response: "Response") -> None:
        """Notes whether the SDK can use a response."""
        if request.method == "GET" and response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            return  # the server does not offer an event stream, as the specification allows
        self.refusal = None
        if not response.is_success or (
            response.status_code == HTTPStatus.OK
            and content_type_of(response) not in UNDERSTOOD
            and response.headers.get("content-length") != "0"  # acknowledges a notification
        ):
            self.refusal = status_of(response)

    def read_instead(self, error: Exception) -> None:
        """Handles an exception that the SDK put into the read stream in place of a message."""
        if isinstance(error, _sdk.http.TransportError):
            self._lose(error)
        else:
            first_line = text_of(error).partition("\n")[0]
            self.refusal = f"a response could not be processed: {type(error).__name__}: {first_line}"
