"""Detects whether a handler that was set by `signal.signal()` is running.

Such a handler runs in the main thread between any two instructions, so it must not change anything that
the interrupted code may be changing, such as the timers of an event loop.
"""

import signal
import threading
from functools import partial
from inspect import currentframe
from types import CodeType
from typing import Final, cast

__all__ = ["in_signal_handler"]

CALL: Final = "__call__"


def in_signal_handler() -> bool:
    """Returns whether the caller runs in a signal handler that is written in Python."""
    if threading.get_ident() != threading.main_thread().ident:
        return False
    handlers = [_code_of(signal.getsignal(number)) for number in signal.valid_signals()]
    codes = {id(code) for code in handlers if code is not None}
    frame = currentframe()
    while frame is not None:
        if id(frame.f_code) in codes:
            return True
        frame = frame.f_back
    return False


def _code_of(handler: object) -> CodeType | None:
    if isinstance(handler, partial):
        handler = cast("partial[object]", handler).func
    # Functions and methods have code, and so has the __call__() of other objects.
    code = getattr(handler, "__code__", None) or getattr(
        getattr(type(handler), CALL, None), "__code__", None
    )
    return code if isinstance(code, CodeType) else None
