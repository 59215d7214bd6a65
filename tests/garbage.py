"""Collects garbage, which includes the tasks in closed event loops."""

import gc
import sys

import pytest


def forget_closed_loops():
    """Forgets the tasks in closed loops that only anyio refers to.

    anyio keeps a task in a dictionary with weak keys. If the task never exits its cancel scope, the
    value refers to the task, so anyio keeps the task, its loop, and everything in them.
    """
    from anyio._backends._asyncio import _task_states

    for task in [task for task in _task_states if task.get_loop().is_closed()]:
        del _task_states[task]


def collect():
    """Collects all garbage, and also the tasks in closed loops."""
    forget_closed_loops()
    for _ in range(3):
        gc.collect()


def collect_silently():
    """Collects all garbage, and ignores the exceptions that this causes.

    pytest would report them, and keep what they refer to, perhaps until another test runs.
    """
    found = [None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", lambda _: found.append(None))
        forget_closed_loops()
        while found:
            found.clear()
            gc.collect()
