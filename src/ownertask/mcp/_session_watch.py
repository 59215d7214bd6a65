"""Detects that a session can no longer work, and reports the loss of the connection.

This works for every transport. When the peer dies, the SDK's transports end their read stream but report
nothing else, and some stop accepting messages after a failure. A session whose receive loop ended can't
process calls, even if its transport still works.
"""

from collections.abc import Callable
from math import inf
from typing import Final

from anyio import (
    ClosedResourceError,
    current_effective_deadline,
    current_time,
    get_cancelled_exc_class,
)

from .._reason import leaves
from .streams import TransportStreams, watched, watched_for_writing

__all__ = ["SessionWatch"]

RECENT: Final = 1.0
"""In seconds. An exception received this recently before a loss is used as its reason."""


class SessionWatch:
    """Watches the streams of one session."""

    def __init__(
        self,
        connection_lost: Callable[[BaseException | None], object],
        is_closing: Callable[[], bool],
    ) -> None:
        self._connection_lost = connection_lost
        self._is_closing = is_closing
        self._exception: Exception | None = None
        self._exception_time = -inf
        self._reason: Exception | None = None

    def watched(self, streams: TransportStreams, *, for_writing: bool) -> TransportStreams:
        """Returns the streams for the session.

        Args:
            streams: The transport's streams.
            for_writing: Whether a failure to write is a loss. A transport that detects this on its own
                reports a better reason.
        """
        if for_writing:
            streams = watched_for_writing(streams, self._broken)
        return watched(streams, self._ended, self._received_exception, self._left)

    def closed(self, error: BaseException | None) -> None:
        """Reports the reason that the streams gave, unless closing the transport raised a better one.

        Args:
            error: The exception with which the transport was closed.
        """
        if self._reason is None or isinstance(error, GeneratorExit):
            return
        cancelled = get_cancelled_exc_class()
        if error is None or all(isinstance(leaf, cancelled) for leaf in leaves(error)):
            self._connection_lost(self._reason)

    def _received_exception(self, exception: Exception) -> None:
        # A ValueError is a message that could not be parsed.
        if not isinstance(exception, ValueError):
            self._exception = exception
            self._exception_time = current_time()

    def _ended(self) -> None:
        self._lose(EOFError("the transport's read stream ended"))

    def _broken(self) -> None:
        self._lose(ConnectionError("the transport no longer accepts messages"))

    def _lose(self, reason: Exception) -> None:
        if self._is_closing():
            return  # for example, because the transport reported the loss
        is_recent = current_time() - self._exception_time < RECENT
        self._reason = self._exception if is_recent else reason
        # The transport may know a better reason, and raise it when it is closed.
        self._connection_lost(None)

    def _left(self, error: BaseException | None, failed_with: type[BaseException] | None) -> None:
        try:
            is_left_on_purpose = current_effective_deadline() == -inf
            cancelled = get_cancelled_exc_class()
        except RuntimeError:  # the event loop is closed, and its tasks are garbage collected
            return
        if is_left_on_purpose:
            return
        if isinstance(error, Exception):
            self._connection_lost(error)
        elif (
            isinstance(error, cancelled)
            and failed_with is not None
            and issubclass(failed_with, cancelled)
        ):
            self._connection_lost(None)  # the event loop is ending
        elif error is None or isinstance(error, cancelled):
            why = "" if error is None else " because one of its handlers was cancelled"
            if failed_with is not None and issubclass(failed_with, ClosedResourceError):
                why = " because its read stream was closed"
            self._connection_lost(RuntimeError(f"the session stopped reading messages{why}"))
