"""The backends, and fixtures that check that tests leave nothing behind."""

import asyncio
import gc
import inspect
import itertools
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from math import inf
from pathlib import Path
from weakref import ref

import anyio
import pytest
from forked_python import fork_server
from garbage import collect_silently
from xdist.scheduler import WorkStealingScheduling

from ownertask import _backend, _owner

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells start background jobs with SIGINT ignored, and subprocesses inherit that. Tests send SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)


if "PYTEST_XDIST_WORKER" in os.environ:
    # Coverage measures this process, but not the servers that the tests start. It would slow them down.
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


# Each HTTP client loads the trusted authorities. Loading those of the system takes 20 to 40 ms, and no
# test connects to a server with a certificate that they signed. Nor does this authority sign any.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("authority.pem"))


# The debug mode of asyncio finds more faults, but tests take half as long again in it. Users run without
# it, and so do the sessions of nox.
DEBUG = os.environ.get("OWNERTASK_DEBUG") != "0"
# In debug mode, asyncio records the stack of each call that creates a callback, future or task. That
# takes longer than most tests. C code ignores the constant, and calls this function without arguments.
asyncio.constants.DEBUG_STACK_DEPTH = 0
traceback.extract_stack.__defaults__ = (None, 0)  # the frame and the limit


def eager_event_loop():
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop


def patient_event_loop():
    loop = asyncio.new_event_loop()
    loop.slow_callback_duration = inf  # debug mode would log each callback that a busy machine delays
    return loop


BACKENDS = [
    pytest.param(("asyncio", {"debug": DEBUG, "loop_factory": patient_event_loop}), id="asyncio"),
    pytest.param(("trio", {}), id="trio"),
]
if sys.version_info >= (3, 12):  # Python 3.11 has no eager tasks
    BACKENDS.append(pytest.param(("asyncio", {"loop_factory": eager_event_loop}), id="eager"))
if sys.platform != "win32":  # uvloop does not support Windows
    import uvloop

    BACKENDS.append(pytest.param(("asyncio", {"loop_factory": uvloop.new_event_loop}), id="uvloop"))
    uvloop.run(asyncio.sleep(0))  # the first run opens a pipe that is never closed


@pytest.fixture(params=BACKENDS)
def anyio_backend(request):
    return request.param


@pytest.fixture
def asyncio_only(anyio_backend_name):
    if anyio_backend_name != "asyncio":
        pytest.skip("tests a feature of asyncio")


@pytest.fixture
def trio_only(anyio_backend_name):
    if anyio_backend_name != "trio":
        pytest.skip("tests a feature of trio")


def all_tasks():
    """Returns all tasks of the running event loop, including trio's system tasks."""
    if "trio" in sys.modules:
        from trio.lowlevel import current_root_task, in_trio_run

        if in_trio_run():
            found, unseen = set(), [current_root_task()]
            while unseen:
                task = unseen.pop()
                found.add(task)
                for nursery in task.child_nurseries:
                    unseen.extend(nursery.child_tasks)
            return found
    return asyncio.all_tasks()


HAS_PROC = Path("/proc/self/fd").is_dir()


def resources():
    """Returns the file descriptors, threads and child processes of this process.

    It runs twice per test, and takes three times as long with `pathlib`.
    """
    found = {
        f"thread {thread.name}"
        for thread in threading.enumerate()
        if not thread.name.startswith("Trio thread")  # trio keeps idle workers for ten seconds
    }
    if HAS_PROC:
        for descriptor in os.listdir("/proc/self/fd"):  # noqa: PTH208
            with suppress(FileNotFoundError):  # the descriptor that listdir() used
                target = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
                found.add(f"descriptor {descriptor} {target}")
        # If a thread ends, its children become those of the main thread, which is therefore read last.
        for task in sorted(os.listdir("/proc/self/task"), key=str(os.getpid()).__eq__):  # noqa: PTH208
            with suppress(FileNotFoundError, ProcessLookupError):  # the thread has just ended
                with open(f"/proc/self/task/{task}/children") as children:  # noqa: PTH123
                    found |= {f"process {child}" for child in children.read().split()}
    return found


@pytest.hookimpl(optionalhook=True)  # pytest-xdist calls it, but not in a run without workers
def pytest_xdist_make_scheduler(config, log):
    """Lets an idle worker take tests from another, so that all finish at about the same time."""
    if config.getoption("dist") == "load":  # the default value
        return WorkStealingScheduling(config, log)
    return None


def pass_over_objects():
    """Makes collections of garbage faster. They pass over all objects that exist now."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish():
    pass_over_objects()  # those of modules and of pytest


def pytest_sessionfinish():
    gc.unfreeze()  # if hypothesis is imported for pytest's summary, it looks for referrers


TEARDOWNS = itertools.count(1)


def may_leave_garbage(item):
    return any("Unraisable" in mark.args[0] for mark in item.iter_markers("filterwarnings"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item):
    """Collects the test's garbage after pytest has dropped the log records, which may refer to it.

    Otherwise a later test would collect it, and fail because of the exceptions that this causes.
    """
    result = yield
    if may_leave_garbage(item):
        collect_silently()
    if next(TEARDOWNS) % 50 == 0:
        # Modules, caches and reports pile up. Otherwise, a collection soon takes 50 ms, and some tests
        # collect after each step.
        pass_over_objects()
    return result


@pytest.fixture(autouse=True)
def _no_resource_is_left():
    before = resources()
    yield
    left = resources() - before
    if left:  # garbage does not count
        gc.collect()
        for thread in threading.enumerate():
            if thread.name == "AnyIO worker thread":  # anyio tells them to end, but does not wait
                thread.join(1)
        left = resources() - before
    assert not left, f"the test left behind {left}"


@pytest.fixture(autouse=True)
def _no_owner_is_left(request, monkeypatch, _no_resource_is_left):
    loops = []
    create = _backend.EventLoop.__init__

    def init(self, *args):
        create(self, *args)
        loops.append(ref(self))

    monkeypatch.setattr(_backend.EventLoop, "__init__", init)
    if inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("_no_task_is_left")
    yield
    alive = [loop for loop in (reference() for reference in loops) if loop is not None]
    left = {task for loop in alive if loop.is_alive() for task in loop.owner_tasks}
    assert not left, f"the test left behind the owners of {left}"


@pytest.fixture
async def _no_task_is_left(request):
    """Checks for leftover tasks, and ends a hanging test.

    The limit is five seconds, or the number of seconds in the `within` marker.
    """
    marker = request.node.get_closest_marker("within")
    before = all_tasks()
    with anyio.fail_after(marker.args[0] if marker else 5):
        yield
    left = {task for task in all_tasks() - before if not task_of_the_runner(task)}
    assert not left, f"the test left behind {left}"


def task_of_the_runner(task):
    return "TestRunner" in repr(task)


@pytest.fixture
def grace(monkeypatch):
    """Shortens `CANCEL_GRACE` and returns the new value, in seconds."""
    monkeypatch.setattr(_owner, "CANCEL_GRACE", 0.05)
    return 0.05


@pytest.fixture(scope="session")
def fork_client():
    with fork_server() as client:
        yield client


@pytest.fixture(scope="module")
def forked_python(request):
    """Lets `subprocess` fork the Python programs that the tests of a module start."""
    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux":
            request.getfixturevalue("fork_client").install(patch.setattr)
        yield
