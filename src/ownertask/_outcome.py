"""How a run ended: decided from what happened to it, logged, and raised for each caller.

A run can be stopped, lost and timed out, and its context manager can raise an exception, all at the same
time. `Outcome` collects these facts and decides once, when the owner task ends.
"""

from typing import Final, NamedTuple, NoReturn, cast

from ._failure import Failure, add_note
from ._log import WARNING, log
from ._reason import is_a, reason
from .errors import ConnectionLostError, ConnectionStoppedError, StartTimeoutError, StopTimeoutError

__all__ = ["CANCELLED_OUTSIDE", "LOST", "Outcome"]

LOST: Final = "the connection was lost"
CANCELLED_OUTSIDE: Final = "the connection was lost because its owner task was cancelled from outside"
CANCELLED_WHILE_OPENING: Final = "opening was cancelled, but neither stop() nor a timeout requested it"
SHUT_DOWN: Final = (
    "the event loop was shut down while the connection was {}; call stop() before the event loop ends"
)


class Loss(NamedTuple):
    """A reported loss."""

    message: str
    cause: BaseException | None


class Outcome:
    """Collects what happened to a run so far.

    Attributes:
        was_open: Whether the connection was opened.
        was_stopped: Whether the run was stopped before it ended for another reason.
        loss: The loss, if one was reported.
        expired_timeout: The timeout that ended the attempt, in seconds.
        facts: Notes for the exception with which the run may fail.
    """

    __slots__ = ("_name", "expired_timeout", "facts", "loss", "was_open", "was_stopped")

    def __init__(self, name: str) -> None:
        self._name = name
        self.was_open = False
        self.was_stopped = False
        self.loss: Loss | None = None
        self.expired_timeout: float | None = None
        self.facts: tuple[str, ...] = ()

    @property
    def is_normal(self) -> bool:
        """`True` unless the run was lost or timed out."""
        return self.loss is None and self.expired_timeout is None

    def failure(self, error: BaseException | None, *, loop_ends: bool, last: Failure | None) -> Failure:
        """Decides how the run failed.

        Args:
            error: The exception that the context manager raised, if any. Without an exception, a loss or
                a timeout, something unknown ended the attempt to open the connection.
            loop_ends: Whether the shutdown of the event loop ended the run.
            last: The failure of the previous run, if no other run follows this one.
        """
        if self.expired_timeout is not None:
            return Failure(self._timeout_error(self.expired_timeout, error, last), is_ours=True)
        loss = self.loss
        if loss is None and error is None:
            loss = Loss(CANCELLED_WHILE_OPENING, None)
        # While opening, a loss without a reason says less than the exception.
        is_bare = loss is None or (loss.cause is None and loss.message is LOST and not self.was_open)
        if error is not None and is_bare:
            return Failure(error, is_ours=False)
        assert loss is not None
        if loss.cause is None and error is None and loop_ends:
            loss = Loss(SHUT_DOWN.format("open" if self.was_open else "being opened"), None)
        elif loss.cause is None:
            loss = Loss(loss.message, error)
        return Failure(self._error_of(loss), is_ours=True)

    def explain(self, failure: Failure, error: BaseException | None, level: int) -> None:
        """Adds notes to the exceptions of a run that failed, and logs failures that callers might miss.

        Args:
            failure: The failure of the run.
            error: The exception that the context manager raised, if any.
            level: The log level for a loss.
        """
        for fact in self.facts:
            add_note(failure.exception, fact)
        if error is not None:
            is_cause = failure.has_cause(error)
            phase = "opening" if not self.was_open else "open" if is_cause else "closing"
            add_note(error, f"ownertask: raised by {self._name} while {phase}")
            is_raised = failure.exception is error and not self.was_open and not self.was_stopped
            # A manager that could not be stopped has logged it, and stop() raises the error.
            if not is_cause and not is_raised and not is_a(error, StopTimeoutError):
                log(WARNING, "%s: error while closing", self._name, exc_info=error)
        if failure.is_loss:
            reported = None if self.loss is None else self.loss.cause
            if reported is not None and reported is not error:
                phase = "open" if self.was_open else "opening"
                add_note(reported, f"ownertask: raised by {self._name} while {phase}")
            log(level, "%s", failure.exception, exc_info=failure.exception)

    def loss_error(self) -> ConnectionLostError:
        """Returns the error for the loss that was reported."""
        return self._error_of(cast("Loss", self.loss))

    def start_timeout_error(
        self, timeout: float, cause: BaseException | None, last: Failure | None, whereabouts: str
    ) -> StartTimeoutError:
        """Returns the error for a call whose timeout has expired.

        Args:
            timeout: The timeout, in seconds.
            cause: The exception of the attempt, if it raised one.
            last: The failure of the previous run of the series, if there was one.
            whereabouts: Where the owner task is waiting, or an empty string.
        """
        error = self._timeout_error(timeout, cause, last, whereabouts)
        for fact in self.facts:
            add_note(error, fact)
        return error

    def raise_for_starter(self, failure: Failure | None, whereabouts: str) -> NoReturn:
        """Raises the error for a `start()` call that waited for this run and gets no connection."""
        is_serious = failure is not None and not is_a(failure.exception, Exception)
        if failure is not None and (is_serious or not self.was_stopped):
            failure.raise_()
        if self.was_stopped:
            raise ConnectionStoppedError(self._name)
        # The owner task did not end in time.
        if self.expired_timeout is not None:
            raise self.start_timeout_error(self.expired_timeout, None, None, whereabouts)
        raise self.loss_error()

    def _timeout_error(
        self, timeout: float, cause: BaseException | None, last: Failure | None, whereabouts: str = ""
    ) -> StartTimeoutError:
        details = ""
        if last is not None:
            details = f"; the last failure was: {reason(last.exception)}"
            cause = last.exception if cause is None else cause
        if whereabouts:
            details += f"; {whereabouts}"
        error = StartTimeoutError(self._name, timeout, details)
        error.__cause__ = cause
        return error

    def _error_of(self, loss: Loss) -> ConnectionLostError:
        return ConnectionLostError(self._name, loss.message, loss.cause)
