"""Tests that `Resources` finds the resources that were left behind, and no others."""

import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from math import inf, nan

import anyio
import pytest
from anyio.lowlevel import checkpoint
from testing import broken

from ownertask.testing import Resources, _leaks


@contextmanager
def running_thread():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="reader")
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()


@contextmanager
def running_process(code="input()"):
    with subprocess.Popen(
        [sys.executable, "-ISc", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def without_pipes(descriptions):
    return [text for text in descriptions if not text.startswith("the descriptor")]


async def test_nothing_is_left():
    before = Resources()
    before.look()
    assert await before.left() == []
    assert await before.left(0) == []


async def test_a_task_is_left():
    before = Resources()
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(anyio.sleep_forever, name="heartbeats")
        await checkpoint()
        [left] = await before.left(0)
        assert left == "the task 'heartbeats' is waiting inside anyio, asyncio or trio"
        task_group.cancel_scope.cancel()
    assert await before.left() == []


async def test_the_calling_task_does_not_count():
    before = Resources()
    answers = []

    async def ask():
        answers.append(await before.left(0))

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(ask)
    assert answers == [[]]


async def test_a_thread_is_left():
    before = Resources()
    with running_thread():
        assert await before.left(0) == ["the thread 'reader' is running"]
    assert await before.left() == []


async def test_an_idle_worker_thread_does_not_count():
    before = Resources()
    await anyio.to_thread.run_sync(bool)
    assert await before.left() == []


async def test_a_descriptor_is_left():
    before = Resources()
    with socket.socket() as left_open:
        [left] = await before.left(0)
        assert left.startswith(f"the descriptor {left_open.fileno()} ")
        assert left.endswith(" is open")
    assert await before.left() == []


async def test_garbage_does_not_count():
    before = Resources()
    garbage = broken.Descriptor()
    garbage.itself = garbage
    del garbage
    assert await before.left(0) == []


async def test_a_process_is_left():
    before = Resources()
    with running_process() as process:
        [left] = without_pipes(await before.left(0))
        assert re.fullmatch(rf"the process {process.pid} \(.*\) is running", left)
    assert await before.left() == []


async def test_a_process_whose_exit_status_was_not_read_is_left():
    before = Resources()
    with running_process() as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
        before.look()
        [left] = without_pipes(await before.left(0))
        assert re.fullmatch(rf"the process {process.pid} \(.*\) is not reaped", left)
    assert await before.left() == []


LAUNCHER = """
import subprocess, sys
code = "import time; time.sleep(60)"  # the launcher's stdin ends when the test kills the launcher
server = subprocess.Popen([sys.executable, "-ISc", code], stdout=subprocess.DEVNULL)
print(server.pid, flush=True)
server.wait()
"""


@pytest.mark.parametrize("looks", [True, False])
async def test_a_process_that_lost_its_parent_is_found_if_it_was_seen(looks):
    before = Resources()
    with running_process(LAUNCHER) as launcher:
        server = int(launcher.stdout.readline())
        if looks:
            before.look()
    try:
        left = await before.left(0)
        if looks:
            [description] = left
            assert re.fullmatch(rf"the process {server} \(.*\) is running", description)
        else:
            assert left == []
    finally:
        broken.kill(server)
    assert await before.left() == []


async def test_all_kinds_are_described_in_alphabetical_order():
    before = Resources()
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(anyio.sleep_forever, name="b")
        task_group.start_soon(anyio.sleep_forever, name="a")
        with running_thread(), running_process(), socket.socket():
            await checkpoint()
            left = await before.left(0)
        task_group.cancel_scope.cancel()
    kinds = [" ".join(text.split()[:2]) for text in left]
    assert kinds == [*["the descriptor"] * 3, "the process", "the task", "the task", "the thread"]
    assert left == sorted(left)
    assert await before.left() == []


async def test_equal_descriptions_are_all_returned():
    before = Resources()
    with running_thread(), running_thread():
        assert await before.left(0) == ["the thread 'reader' is running"] * 2


async def test_resources_that_disappear_in_time_do_not_count():
    before = Resources()
    with running_thread() as stop:
        async with anyio.create_task_group() as task_group:

            async def stop_later():
                await anyio.wait_all_tasks_blocked()
                stop.set()

            task_group.start_soon(stop_later)
            assert await before.left(inf) == []


async def test_waiting_can_be_cancelled_and_repeated():
    before = Resources()
    with running_thread():
        with anyio.move_on_after(0.01) as scope:
            await before.left(inf)
        assert scope.cancelled_caught
        assert await before.left(0.01) == ["the thread 'reader' is running"]
    assert await before.left() == []


async def test_a_time_limit_of_zero_does_not_wait(monkeypatch):
    monkeypatch.setattr(_leaks, "sleep", None)
    before = Resources()
    with running_thread():
        assert await before.left(0) == ["the thread 'reader' is running"]


@pytest.mark.parametrize(
    ("within", "error"),
    [
        (None, TypeError),
        ("1", TypeError),
        (True, TypeError),
        (-1, ValueError),
        (nan, ValueError),
    ],
    ids=str,
)
async def test_a_wrong_time_limit_is_rejected_immediately(within, error):
    before = Resources()
    with running_thread():
        with pytest.raises(error, match=r"^within must be a .*number of seconds, not"):
            await before.left(within)


def test_resources_are_recorded_in_an_event_loop():
    with pytest.raises(anyio.NoEventLoopError):
        Resources()


@pytest.fixture
async def before():
    resources = Resources()
    yield resources
    assert await resources.left() == []


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_fixture_can_compare_the_resources_before_and_after_a_test(before):
    """On asyncio, anyio's pytest plugin calls the test and the end of the fixture from other tasks."""
    assert await before.left(0) == []
