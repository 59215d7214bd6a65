"""Describes where a suspended coroutine is waiting."""

import gc
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import cast

__all__ = ["waiting_place"]

# Every coroutine ends up waiting in one of these, so naming them would not help the reader.
_EVENT_LOOP_LIBRARIES = frozenset({"anyio", "asyncio", "contextlib", "ownertask", "outcome", "trio"})


def waiting_place(coroutine: object) -> str:
    """Returns the innermost frame outside the event loop libraries, as in `in close (pool.py:12)`."""
    place = "inside anyio, asyncio or trio"
    awaited: object = coroutine
    while awaited is not None:
        frame, awaited = _frame_and_awaited(awaited)
        if frame is not None:
            library = str(frame.f_globals.get("__name__")).partition(".")[0]
            if library not in _EVENT_LOOP_LIBRARIES:
                code = frame.f_code
                file_name = code.co_filename.replace("\\", "/").rpartition("/")[2]
                place = f"in {code.co_qualname} ({file_name}:{frame.f_lineno})"
    return place


def _frame_and_awaited(awaitable: object) -> tuple[FrameType | None, object]:
    if isinstance(awaitable, CoroutineType):
        return awaitable.cr_frame, awaitable.cr_await
    if isinstance(awaitable, AsyncGeneratorType):
        return awaitable.ag_frame, awaitable.ag_await
    if isinstance(awaitable, GeneratorType):
        generator = cast("GeneratorType[object, object, object]", awaitable)
        return generator.gi_frame, generator.gi_yieldfrom
    # The objects that asend(), athrow() and __await__() return expose what they drive only to the
    # garbage collector.
    for referent in gc.get_referents(awaitable):
        if isinstance(referent, CoroutineType | AsyncGeneratorType | GeneratorType):
            return None, cast("object", referent)
    return None, None
