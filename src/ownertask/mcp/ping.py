"""Detects a server that no longer responds, as the `watch` of a session manager.

Any message from the server is a sign of life. Pings are sent only while no message arrives. Silence is
not a loss while a call of the application is under way, because many servers run one tool at a time and
answer nothing else meanwhile.
"""

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from anyio import Event, create_task_group, move_on_after, sleep, sleep_until

from .._owner import current_event_loop
from . import _sdk
from ._http_messages import CONNECTION_CLOSED
from .streams import observed

if TYPE_CHECKING:
    from mcp import ClientSession
    from mcp.shared.message import SessionMessage

__all__ = ["ping_every"]

GRACE: Final = 0.2
"""Seconds. If blocking code stopped the event loop, a response may have arrived unread."""

RETRY: Final = 1.0
"""Seconds between two pings if the transport could not send the first one."""

MAX_PINGS: Final = 2
"""Pings without a response at the same time. One can be stuck in an HTTP connection that is dead."""


class HasSession(Protocol):
    """A `Client` of mcp 2.x. Type checkers do not know that class if mcp 1.x is installed."""

    @property
    def session(self) -> "ClientSession":
        """The session of the client."""
        ...


def ping_every(
    interval: float, *, timeout: float | None = 20.0
) -> "Callable[[ClientSession | HasSession], Awaitable[None]]":
    """Returns a `watch` function that detects that the server of a session no longer responds.

    When no message has arrived from the server for `interval` seconds, the function sends a ping. Any
    message is a sign of life: a response, an error, a notification or a request. If none arrives within
    `timeout` seconds, the connection is lost, and the cause is a `TimeoutError`.

    Silence is not a loss while a call of the application is under way, or while a handler of the
    application keeps the session from reading. In the meantime, no further ping is sent. So limit your
    calls with `read_timeout_seconds` or a cancel scope. A subscription of mcp 2.x does not count as a
    call.

    The protocol version 2026-07-28 has no ping. With this version, `server/discover` is sent instead.

    The connection must be a `ClientSession` or, with mcp 2.x, a `Client`. If no manager opened its
    transport, only the responses to pings are signs of life.

    Example:
        ```python
        manager = SessionConnectionManager(
            "http://localhost:8000/mcp", watch=ping_every(30), reconnect=ReconnectPolicy()
        )
        ```

    Args:
        interval: Maximum time without a message before a ping is sent, in seconds.
        timeout: Maximum time from a ping to the next sign of life, in seconds. `None` waits
            indefinitely, so the pings only keep the connection from being idle.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is zero, negative or NaN, or `interval` is infinite.
    """
    _check("interval", interval)
    if math.isinf(interval):
        raise ValueError("interval must be finite")
    if timeout is not None:
        _check("timeout", timeout)
    # A partial of a function in a module can be pickled, as managers can.
    return partial(_watch, interval, math.inf if timeout is None else timeout)


def _check(argument: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be a number of seconds, not {value!r}")
    if not value > 0:
        raise ValueError(f"{argument} must be a positive number of seconds, not {value!r}")


async def _watch(interval: float, timeout: float, connection: "ClientSession | HasSession") -> None:
    """Sends pings to one server.

    Raises:
        TimeoutError: The server does not respond.
    """
    await _Watch(_sdk.session_of(connection), interval, timeout).run()


class _Watch:
    """Observes one session until its server no longer responds."""

    def __init__(self, session: "ClientSession", interval: float, timeout: float) -> None:
        self._session = session
        self._interval = interval
        self._timeout = timeout
        self._time = current_event_loop().time
        self._last_sign = self._time()
        self._sign = Event()
        self._pings = 0
        self._failure: Exception | None = None
        self._is_reading = True

    async def run(self) -> None:
        with observed(_sdk.read_stream_of(self._session), self):
            async with create_task_group() as pings:
                is_alive = True
                while is_alive:
                    await self._wait_for_silence()
                    self._sign = Event()
                    was_busy = self._is_busy()
                    if self._pings < MAX_PINGS:
                        pings.start_soon(self._ping, self._sign)
                    is_alive = await self._wait_for_sign(was_busy=was_busy)
                # Pings are not cancelled earlier: mcp 1.x would pass a late response to the application.
                pings.cancel_scope.cancel()
        text = f"the server did not respond to a ping within {self._timeout:g} s"
        raise TimeoutError(text) from self._failure

    async def _wait_for_silence(self) -> None:
        while (due := self._last_sign + self._interval) > self._time():
            await sleep_until(due)

    async def _wait_for_sign(self, *, was_busy: bool) -> bool:
        """Waits for a sign of life. Returns `False` after `timeout` seconds without one or a call.

        The server may still be busy with a call that was cancelled, so the time begins again then.
        """
        while not await self._has_sign_within(self._timeout) and not await self._has_sign_within(GRACE):
            is_busy = self._is_busy()
            if not (is_busy or was_busy):
                return False
            was_busy = is_busy
        return True

    async def _has_sign_within(self, seconds: float) -> bool:
        with move_on_after(seconds):
            await self._sign.wait()
        return self._sign.is_set()

    def _is_busy(self) -> bool:
        return not self._is_reading or _sdk.calls_under_way(self._session) > self._pings

    async def _ping(self, sign: Event) -> None:
        """Sends pings until one was sent and answered, or there is another sign of life."""
        while not sign.is_set():
            self._pings += 1
            try:
                await _sdk.ping(self._session)
            except Exception as error:  # noqa: BLE001 - each error is an answer, or the cause of the loss
                if _sdk.is_answer(error):
                    self._note_sign()
                else:
                    self._failure = error
            else:
                self._note_sign()
            finally:
                self._pings -= 1
            if not sign.is_set():
                await sleep(min(RETRY, self._timeout / 4))

    def _note_sign(self) -> None:
        self._last_sign = self._time()
        self._failure = None
        self._sign.set()

    # The methods of a `ReadObserver`.

    def reading(self) -> None:
        self._is_reading = True

    def received(self, item: "SessionMessage | Exception", *, answers_itself: bool) -> None:
        self._is_reading = False
        if isinstance(item, Exception):
            if isinstance(item, ValueError):  # a message that could not be parsed
                self._note_sign()
        elif not answers_itself or _sdk.error_code_of(item) != CONNECTION_CLOSED:
            self._note_sign()
