import functools
import signal
import subprocess
import sys
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


def test_F12_a_loss_may_be_reported_while_the_interpreter_exits():
    """By then, nothing more can be imported."""
    script = """
import asyncio, builtins
from contextlib import nullcontext
from ownertask import ConnectionManager

class Transport:
    def __del__(self, manager=ConnectionManager.from_factory(nullcontext)):
        manager.connection_lost()

manager, = Transport.__del__.__defaults__
loop = asyncio.new_event_loop()
loop.run_until_complete(manager.start())
builtins.keep = Transport(), loop
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "ImportError" not in done.stderr
