"""Tests for the threads in which functions may block."""

import threading

import anyio
import pytest

from ownertask.mcp import _in_thread
from ownertask.mcp._in_thread import in_thread


@pytest.fixture
def no_threads(monkeypatch):
    class Thread(threading.Thread):
        def start(self):
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_in_thread, "Thread", Thread)


async def test_a_function_runs_in_a_daemon_thread_that_ends_with_it():
    thread = await in_thread(threading.current_thread)
    assert thread.daemon
    assert not thread.is_alive()
    assert thread is not threading.current_thread()


@pytest.mark.parametrize("abandon", [False, True])
async def test_an_exception_of_the_function_is_raised(abandon):
    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await in_thread(fail, abandon_on_cancel=abandon)


@pytest.mark.parametrize("abandon", [False, True])
async def test_a_cancelled_caller_waits_for_the_function_unless_it_abandons_it(abandon):
    let_go, ended = threading.Event(), []

    def block():
        let_go.wait(5)
        ended.append(threading.current_thread())

    async def call():
        await in_thread(block, abandon_on_cancel=abandon)

    async with anyio.create_task_group() as tg:
        tg.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        tg.cancel_scope.cancel()
        if not abandon:
            let_go.set()
    assert bool(ended) is not abandon
    let_go.set()
    for thread in threading.enumerate():
        if thread.name == "ownertask":
            thread.join(5)


async def test_without_a_new_thread_a_fast_function_is_called_directly(no_threads):
    assert await in_thread(threading.current_thread) is threading.current_thread()


async def test_without_a_new_thread_a_function_that_may_block_is_not_called(no_threads):
    with pytest.raises(RuntimeError, match="can't start new thread"):
        await in_thread(pytest.fail, abandon_on_cancel=True)
