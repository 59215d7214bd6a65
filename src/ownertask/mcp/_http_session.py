"""The session that a streamable HTTP server keeps for a connection. Probes the session and ends it."""

from collections.abc import Callable
from http import HTTPStatus
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Final

from anyio import CancelScope, current_effective_deadline, current_time, move_on_after, sleep
from anyio.lowlevel import checkpoint

from .._log import DEBUG, log
from .._owner import current_event_loop
from . import _sdk
from ._http_errors import (
    is_doubtful,
    is_event_stream,
    is_refusal,
    is_response_to,
    status_error,
    text_of_failure,
)
from ._http_messages import error_in, parsed

if TYPE_CHECKING:
    from anyio.abc import TaskGroup
    from httpx2 import URL, AsyncClient, Request, Response

__all__ = ["NO_VERDICT", "SESSION_ID", "ServerSession"]

SESSION_ID: Final = "mcp-session-id"
PROTOCOL_VERSION: Final = "mcp-protocol-version"

NO_VERDICT: Final = frozenset(
    {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS}
)
"""Statuses that do not show whether the session lives."""

METHOD_NOT_FOUND: Final = -32601

PROBE_TIMEOUT = 5.0
"""Seconds to wait for the response to a ping, and seconds for which a failing ping is repeated."""

LAST_PROBE_TIMEOUT: Final = 1.0
"""Seconds to wait at least for the response to a repeated probe."""

PROBE_INTERVAL = 0.5
"""Seconds between two pings of a probe."""

DELETE_TIMEOUT = 1.0
"""Maximum time for ending the session on the server after a loss or a failed start, in seconds."""

FORCED_DELETE_TIMEOUT = 0.1
"""Maximum time for ending the session on the server if the owner task was cancelled, in seconds."""

DELIVERY_STEPS: Final = 20
"""Iterations of the event loop that give a caller time to receive the error of its call."""


class ServerSession:
    """The session on the server. There may be none.

    Attributes:
        client: The HTTP client, whose requests are not observed.
    """

    def __init__(
        self,
        client: "AsyncClient",
        name: str,
        tasks: "TaskGroup",
        fail: Callable[[Exception], object],
    ) -> None:
        """Creates the state of one run.

        Args:
            client: The HTTP client, whose requests are not observed.
            name: The manager's name.
            tasks: Runs the probe and the end of the connection.
            fail: Ends the connection.
        """
        self.client = client
        self._name = name
        self._tasks = tasks
        self._fail = fail
        self._loop = current_event_loop()
        self._url: URL | str = ""
        self._headers: dict[str, str] = {}
        self._is_probing = False
        self._ids = count(1)

    def follow(self, request: "Request", response: "Response") -> None:
        """Remembers how to address the session, given a request and its response."""
        if response.is_success:
            headers = request.headers if SESSION_ID in request.headers else response.headers
            if SESSION_ID in headers:
                self._url = request.url
                self._headers = {
                    name: value
                    for name in (SESSION_ID, PROTOCOL_VERSION)
                    if (value := headers.get(name)) is not None
                }

    def doubt(self) -> None:
        """Probes the session, unless a probe is running. Ends the connection if the session is gone."""
        if self._headers and not self._is_probing:
            self._is_probing = True
            self._tasks.start_soon(self._probe)

    def gone(self, error: Exception) -> None:
        """Ends the connection after the failed call has received its error."""
        self._tasks.start_soon(self._fail_soon, error)

    def forgotten(self, error: Exception) -> None:
        """Ends the connection as `gone()` does, because the server no longer knows the session."""
        self._headers = {}
        self.gone(error)

    async def _fail_soon(self, error: Exception) -> None:
        for _ in range(DELIVERY_STEPS):
            await checkpoint()
        self._fail(error)

    async def _probe(self) -> None:
        end = current_time() + PROBE_TIMEOUT
        while True:
            error = None
            with move_on_after(max(end - current_time(), LAST_PROBE_TIMEOUT)):
                error = await self._ping()
            if error is None:
                break
            if not _can_pass(error) or current_time() + PROBE_INTERVAL >= end:
                await self._fail_soon(error)
                break
            await sleep(PROBE_INTERVAL)
        self._is_probing = False

    async def _ping(self) -> Exception | None:
        """Returns why the session seems to be gone, or `None` if it lives or its state is unknown."""
        ping = {"jsonrpc": "2.0", "id": f"ownertask-{next(self._ids)}", "method": "ping"}
        request = self._request("POST", ping)
        content = b""
        try:
            request, response = await self._send(request)
            content = response.content
        except Exception as error:  # noqa: BLE001 - what `auth` raises says nothing about the session
            if not is_refusal(error):
                return error if is_doubtful(error, request) else None
            response = error.response
        if response.status_code in NO_VERDICT or not is_response_to(request, response):
            return None
        message = parsed(content)
        if response.is_success:
            is_alive = "jsonrpc" in message or (is_event_stream(response) and b'"jsonrpc"' in content)
        else:
            said = error_in(content)
            is_alive = said is not None and (said.id, said.code) == (ping["id"], METHOD_NOT_FOUND)
        if is_alive:
            return None
        return status_error(response, "the server refused a ping in this session")

    def _request(self, method: str, message: object = None) -> "Request":
        headers = {"accept": "application/json, text/event-stream", **self._headers}
        return self.client.build_request(method, self._url, headers=headers, json=message)

    async def _send(self, request: "Request") -> "tuple[Request, Response]":
        """Sends a request, and follows redirects as the SDK does. Returns the last request."""
        if _sdk.FOLLOWS_ALL_REDIRECTS:
            return request, await self.client.send(request)
        response = await self.client.send(request, follow_redirects=False)
        for _ in range(self.client.max_redirects):
            following = _sdk.next_request_within_origin(response)
            if following is None:
                break
            request = following
            response = await self.client.send(request, follow_redirects=False)
        return request, response

    async def end(self, *, is_healthy: bool) -> None:
        """Ends the session on the server.

        If the connection is healthy, waits for the response until the task is cancelled. Otherwise, or
        if the task is already cancelled, waits for the time in the constants above. An error is only
        logged, because the server may be gone.
        """
        if not (self._headers and self._loop.is_current() and self._loop.is_of_this_process()):
            return
        is_forced = current_effective_deadline() == -inf
        seconds = FORCED_DELETE_TIMEOUT if is_forced else inf if is_healthy else DELETE_TIMEOUT
        with CancelScope(deadline=current_time() + seconds, shield=is_forced):
            try:
                await self._send(self._request("DELETE"))
            except Exception as error:  # noqa: BLE001 - it must not replace the reason for closing
                text = text_of_failure(error)
                log(DEBUG, "%s: the session could not be ended on the server: %s", self._name, text)


def _can_pass(error: Exception) -> bool:
    if isinstance(error, _sdk.http.HTTPStatusError):
        return error.response.is_server_error
    return not isinstance(error, _sdk.http.ConnectError)
