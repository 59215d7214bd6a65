"""Finds the exception that ended a run, and raises it for each caller.

See `_reason.py` for how exceptions of any class are handled.
"""

from contextlib import suppress
from copy import copy
from typing import Any, Final, NoReturn, TypeVar, cast

from ._reason import exceptions_of, is_a, is_group, leaves
from .errors import ConnectionLostError, ConnectionManagerError

__all__ = ["Failure", "add_note", "copied", "leaf"]

E = TypeVar("E", bound=ConnectionManagerError)

# Any: descriptors; see _reason.py.
_context: Final[Any] = BaseException.__dict__["__context__"]
_traceback: Final[Any] = BaseException.__dict__["__traceback__"]
_message: Final[Any] = BaseExceptionGroup.__dict__["message"]


def leaf(error: BaseException | None, cancelled_type: type[BaseException]) -> BaseException | None:
    """Strips cancellations from an exception, and unwraps groups that hold a single exception."""
    all_leaves = leaves(error)
    rest = [this for this in all_leaves if not is_a(this, cancelled_type)]
    if len(rest) < 2:
        return rest[0] if rest else None
    group = cast("BaseExceptionGroup[BaseException]", error)
    if len(rest) < len(all_leaves):
        group = _without(cancelled_type, group, rest)
    while len(exceptions_of(group)) == 1:
        (inner,) = exceptions_of(group)
        assert is_group(inner)  # it holds at least two leaves
        group = inner
    return group


def _without(
    cancelled_type: type[BaseException],
    group: "BaseExceptionGroup[BaseException]",
    rest: list[BaseException],
) -> "BaseExceptionGroup[BaseException]":
    # split() calls derive(), which a subclass may override, and fails if a group is very deep.
    with suppress(BaseException):
        stripped = BaseExceptionGroup.split(group, cancelled_type)[1]
        if stripped is not None and list(map(id, leaves(stripped))) == list(map(id, rest)):
            return stripped
    flat: BaseExceptionGroup[BaseException] = BaseExceptionGroup(_message.__get__(group), rest)
    return flat.with_traceback(_traceback.__get__(group))


def add_note(error: BaseException, note: str) -> None:
    """Adds a note to an exception, once, if the exception accepts notes."""
    try:
        notes = getattr(error, "__notes__", None)
        if not (isinstance(notes, list) and note in notes):
            error.add_note(note)
    except KeyboardInterrupt:  # from the user, not from the exception
        raise
    except BaseException:  # noqa: BLE001, S110 - some are immutable, and a method may raise anything
        pass


def copied(error: E) -> E:
    """Returns a copy without traceback and context, so that each caller can raise its own."""
    result = copy(error)
    result.__cause__ = error.__cause__
    return result


class Failure:
    """The exception with which a run failed. Each caller raises it with its original traceback.

    Attributes:
        exception: The exception.
    """

    def __init__(self, exception: BaseException, *, is_ours: bool) -> None:
        self.exception = exception
        self._is_ours = is_ours
        self._traceback = _traceback.__get__(exception)
        self._context = _context.__get__(exception)

    @property
    def is_loss(self) -> bool:
        """`True` if the exception says that the run lost its connection."""
        return self._is_ours and isinstance(self.exception, ConnectionLostError)

    def has_cause(self, error: BaseException) -> bool:
        """Returns whether ownertask created the exception, with `error` as its cause."""
        return self._is_ours and self.exception.__cause__ is error

    def raise_(self) -> NoReturn:
        """Raises the exception. Each caller gets its own copy of an error that ownertask defines."""
        if self._is_ours or type(self.exception).__module__ == ConnectionManagerError.__module__:
            exception = cast("ConnectionManagerError", self.exception)
            raise copied(exception).with_traceback(self._traceback)
        try:
            raise BaseException.with_traceback(self.exception, self._traceback)
        finally:
            # Raising replaced the context with the exception that the caller was handling.
            _context.__set__(self.exception, self._context)
            del self  # this frame is in the traceback
