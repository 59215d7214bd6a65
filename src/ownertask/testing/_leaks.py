"""Compares the tasks, threads, descriptors and processes before and after a connection.

On Linux, all four are compared. On other systems, processes are not compared, and descriptors are
compared only if the directory `/dev/fd` exists, as on macOS.
"""

import gc
import os
import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple, cast

from anyio import TaskInfo, current_time, get_current_task, get_running_tasks, sleep

from .._call_stack import waiting_place

__all__ = ["LEAKS", "Leak", "Process", "Snapshot", "first_leak", "processes", "what_is_left"]

END_TIME: Final = 2.0
"""Maximum time for resources to disappear, in seconds. For example, a server in this event loop closes
its side of a connection only after the client's side is closed, and a thread takes time to end."""

LONGEST_PAUSE: Final = 0.05

PYTEST_TASK: Final = "TestRunner._call_in_runner_task"
"""On asyncio, anyio's pytest plugin runs such a task during each call of a test or fixture."""


class Leak(NamedTuple):
    """Describes a kind of resource that a connection can leave behind.

    Attributes:
        sentence: The rule that the leak breaks.
        found: Returns the existing resources and their descriptions.
    """

    sentence: str
    found: Callable[[], dict[Hashable, str]]


class Process(NamedTuple):
    """Identifies a process. The system can reuse its ID, but not with the same start time."""

    id: int
    start_time: str


def _tasks() -> dict[Hashable, str]:
    # A later task can have the same ID. While a coroutine is a key here, no other coroutine equals it.
    return {
        cast("Hashable", task.coro): f"the task {task.name!r} is waiting {waiting_place(task.coro)}"
        for task in get_running_tasks()
        if getattr(task.coro, "__qualname__", "") != PYTEST_TASK
    }


def _threads() -> dict[Hashable, str]:
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage] - documented
    return {
        thread: f"the thread {thread.name!r} is running"
        for thread in threading.enumerate()
        # A thread of a C library that called Python code stays in the list after its end.
        if thread.ident in frames and not _is_idle_worker(thread, frames)
    }


def _is_idle_worker(thread: threading.Thread, frames: dict[int, FrameType]) -> bool:
    """Returns whether a thread is waiting for a job in a thread pool of asyncio, anyio or trio."""
    if thread.name.startswith("Trio thread "):  # a worker with a job has another name
        return True
    frame, inner = frames.get(thread.ident or 0), ""
    while frame is not None and frame.f_globals.get("__name__") in {"queue", "threading"}:
        inner, frame = frame.f_code.co_name, frame.f_back
    function = "" if frame is None else frame.f_code.co_name
    if thread.name == "AnyIO worker thread":
        return (function, inner) == ("run", "get")
    # The threads of uvloop's executor have such a name since 0.23. Older ones count.
    return thread.name.startswith(("asyncio_", "uvloop_")) and (function, inner) == ("_worker", "")


def _descriptors() -> dict[Hashable, str]:
    folder = "/proc/self/fd" if _names_in("/proc/self/fd") else "/dev/fd"
    found: dict[Hashable, str] = {}
    for number in _names_in(folder):
        with suppress(OSError):  # the descriptor that read the directory is already closed
            status = os.fstat(int(number))
            target = ""
            with suppress(OSError):  # not on macOS
                target = f" ({os.readlink(f'{folder}/{number}')})"  # noqa: PTH115 - three times as fast
            found[number, status.st_dev, status.st_ino] = f"the descriptor {number}{target} is open"
    return found


def _children() -> dict[Hashable, str]:
    return {process: _description(process) for process in _children_of("self")}


def processes() -> set[Process]:
    """Returns the children of this process and all of their descendants."""
    found: set[Process] = set()
    unseen = list(_children_of("self"))
    while unseen:
        process = unseen.pop()
        found.add(process)
        unseen.extend(_children_of(str(process.id)))
    return found


def _children_of(parent: str) -> Iterator[Process]:
    for thread in _names_in(f"/proc/{parent}/task"):
        with suppress(OSError):  # the thread has just ended
            for child in Path(f"/proc/{parent}/task/{thread}/children").read_text().split():
                yield Process(int(child), _status(int(child))[-1])


def _status(process_id: int) -> tuple[str, str, str]:
    """Returns the command, state and start time of a process, or empty strings if it does not exist."""
    try:
        text = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return "", "", ""
    command, _, rest = text.partition(" (")[2].rpartition(") ")
    fields = rest.split()
    return command, fields[0], fields[19]


def _description(process: Process) -> str:
    command, state, _ = _status(process.id)
    return f"the process {process.id} ({command}) {'is not reaped' if state == 'Z' else 'is running'}"


def _is_running(process: Process) -> bool:
    # If a zombie is not a child of this process, another process must reap it.
    _, state, start_time = _status(process.id)
    return start_time == process.start_time and state not in {"", "Z", "X"}


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - faster
    except OSError:
        return []


TASKS: Final = Leak("No task is left", _tasks)
PROCESSES: Final = Leak("No process is left", _children)
LEAKS: Final = (
    TASKS,
    Leak("No thread is left", _threads),
    PROCESSES,
    Leak("No descriptor is left", _descriptors),
)


class Snapshot:
    """Records the resources that exist when it is created.

    Attributes:
        seen: The processes that `look()` found later, including descendants of children. After a child
            is gone, the operating system no longer shows that its descendants belong to this process.
    """

    def __init__(self) -> None:
        self._existing = {leak: leak.found() for leak in LEAKS}
        self._processes = processes()
        self.seen: set[Process] = set()

    def look(self) -> None:
        """Remembers the new processes that exist now."""
        self.seen |= processes() - self._processes

    def is_new(self, task: TaskInfo) -> bool:
        """Returns whether a task began after the resources were recorded."""
        return cast("Hashable", task.coro) not in self._existing[TASKS]

    def new_resources(self) -> dict[Leak, list[str]]:
        """Returns descriptions of the new resources by kind, except the task that calls this method."""
        found: dict[Leak, list[str]] = {}
        for leak in LEAKS:
            now = leak.found()
            if leak is TASKS:
                now.pop(cast("Hashable", get_current_task().coro), None)
            elif leak is PROCESSES:
                now |= {process: _description(process) for process in self.seen if _is_running(process)}
            left = [now[key] for key in now.keys() - self._existing[leak].keys()]
            if left:
                found[leak] = left
        return found


async def what_is_left(before: Snapshot, within: float) -> dict[Leak, list[str]]:
    """Waits until no new resource is left, or returns the new resources after a time limit.

    Resources that are only waiting for the garbage collector do not count.

    Args:
        before: The resources to compare with.
        within: Maximum time for resources to disappear, in seconds.
    """
    deadline = current_time() + within
    pause = 0.001
    while before.new_resources():
        gc.collect()
        left = before.new_resources()
        if not left or current_time() >= deadline:
            return left
        # No event reports that a descriptor was closed, or that any thread or process ended.
        await sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    return {}


async def first_leak(before: Snapshot, within: float) -> tuple[Leak, str] | None:
    """Waits until no new resource is left, or returns the first kind of leak after a time limit.

    Args:
        before: The resources to compare with.
        within: Maximum time for resources to disappear, in seconds. `END_TIME` also limits it.
    """
    left = await what_is_left(before, min(within, END_TIME))
    for leak, descriptions in left.items():
        return leak, "; ".join(sorted(descriptions))
    return None
