import functools
import signal
import threading

import pytest

from ownertask._signal_handlers import in_signal_handler

seen = []


def function(number, frame):
    def inner():
        seen.append(in_signal_handler())

    inner()


class Handler:
    def method(self, number, frame):
        seen.append(in_signal_handler())

    __call__ = method


HANDLERS = {
    "function": function,
    "method": Handler().method,
    "object": Handler(),
    "partial": functools.partial(function),
    "partial of a method": functools.partial(Handler().method),
    "lambda": lambda number, frame: seen.append(in_signal_handler()),
}


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
def test_F12_a_running_handler_is_detected(handler):
    seen.clear()
    previous = signal.signal(signal.SIGTERM, handler)
    try:
        signal.raise_signal(signal.SIGTERM)
        assert seen == [True]
        assert not in_signal_handler()
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_F12_another_thread_is_never_in_a_handler():
    seen.clear()
    previous = signal.signal(signal.SIGTERM, function)
    try:
        thread = threading.Thread(target=function, args=(0, None))
        thread.start()
        thread.join(5)
        assert seen == [False]
    finally:
        signal.signal(signal.SIGTERM, previous)
