"""Describes where a suspended coroutine is waiting."""

import gc
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Final

__all__ = ["place", "waiting_place"]

# Every coroutine ends up waiting in one of these, so naming them would not help the reader.
_EVENT_LOOP_LIBRARIES = frozenset({"anyio", "asyncio", "contextlib", "ownertask", "outcome", "trio"})

# The frame, and what it awaits.
_ATTRIBUTES: Final[dict[type[object], tuple[str, str]]] = {
    CoroutineType: ("cr_frame", "cr_await"),
    AsyncGeneratorType: ("ag_frame", "ag_await"),
    GeneratorType: ("gi_frame", "gi_yieldfrom"),
}

# Not `ag_running`, which is also true while an async generator is suspended in an `await`.
_RUNNING: Final[dict[type[object], str]] = {CoroutineType: "cr_running", GeneratorType: "gi_running"}


def place(code: CodeType, line: int) -> str:
    """Returns a place in a file without its folder, as in `pool.py:12`."""
    file_name = code.co_filename.replace("\\", "/").rpartition("/")[2]
    return f"{file_name}:{line}"


def waiting_place(coroutine: object) -> str:
    """Returns the innermost frame outside the event loop libraries, as in `in close (pool.py:12)`.

    If the coroutine is running, its outermost frame is used.
    """
    found = "inside anyio, asyncio or trio"
    awaited: object = coroutine
    seen: set[int] = set()  # an awaitable may refer to one that awaits it
    while awaited is not None and id(awaited) not in seen:
        seen.add(id(awaited))
        frame, awaited = _frame_and_awaited(awaited)
        if frame is not None:
            library = str(frame.f_globals.get("__name__")).partition(".")[0]
            if library not in _EVENT_LOOP_LIBRARIES:
                found = f"in {frame.f_code.co_qualname} ({place(frame.f_code, frame.f_lineno)})"
    return found


def _frame_and_awaited(awaitable: object) -> tuple[FrameType | None, object]:
    # isinstance() could call a method of a foreign object.
    attributes = _ATTRIBUTES.get(type(awaitable))
    if attributes is not None:
        frame = getattr(awaitable, attributes[0])
        # Python 3.12 can crash if it is asked what a running coroutine awaits.
        if getattr(awaitable, _RUNNING.get(type(awaitable), ""), False):
            return frame, None
        return frame, getattr(awaitable, attributes[1])
    # The objects that asend(), athrow() and __await__() return expose what they drive only to the
    # garbage collector.
    for referent in gc.get_referents(awaitable):
        if type(referent) in _ATTRIBUTES:
            return None, referent
    return None, None
