"""Tests the arguments, the time limits and the cleanup of `check_connection_manager()`."""

import _thread
import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, nan

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint
from reopening import settle
from testing import broken

from ownertask import ConnectionManager, ConnectionState, ReconnectPolicy
from ownertask.testing import (
    _leaks,
    _rules,
    _steps,
    check_connection_manager,
    connection_manager_tests,
)

WRONG = [
    ({"make_manager": None}, TypeError),
    ({"use": 1}, TypeError),
    ({"lose": 1}, TypeError),
    ({"timeout": None}, TypeError),
    ({"timeout": True}, TypeError),
    ({"timeout": 0}, ValueError),
    ({"timeout": nan}, ValueError),
    ({"timeout": inf}, ValueError),
]


@pytest.mark.parametrize("function", [check_connection_manager, connection_manager_tests])
@pytest.mark.parametrize(("arguments", "error"), WRONG, ids=str)
def test_a_wrong_argument_is_named(function, arguments, error):
    [name] = arguments

    async def check():
        result = function(**{"make_manager": broken.Good, **arguments})
        if function is check_connection_manager:
            await result

    with pytest.raises(error, match=f"^{name} must be"):
        anyio.run(check)


@pytest.mark.parametrize(("backends", "error"), [("asyncio", TypeError), (["curio"], ValueError)])
def test_a_wrong_backend_is_named(backends, error):
    with pytest.raises(error, match="^backends must"):
        connection_manager_tests(broken.Good, backends=backends)


async def test_make_manager_must_return_a_manager():
    async def make():
        pass

    with pytest.raises(TypeError, match="make_manager must return a ConnectionManager, not NoneType"):
        await check_connection_manager(lambda: None)
    with pytest.raises(TypeError, match="make_manager must return a ConnectionManager, not coroutine"):
        await check_connection_manager(make)


async def test_make_manager_must_return_a_new_manager_before_anything_is_opened():
    manager = broken.Good()
    with pytest.raises(ValueError, match="make_manager must return a new manager each time"):
        await check_connection_manager(lambda: manager)
    assert manager.state is ConnectionState.NEW


async def test_a_server_that_is_not_running_is_the_cause():
    with pytest.raises(AssertionError, match="start\\(\\) raised ConnectionRefusedError") as caught:
        await check_connection_manager(broken.Refused)
    assert type(caught.value.__cause__) is ConnectionRefusedError


async def test_cancelling_the_check_stops_the_managers():
    managers = []
    reached = anyio.Event()

    def make():
        managers.append(broken.Good())
        return managers[-1]

    async def use(peer):
        reached.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(lambda: check_connection_manager(make, use=use))
        await reached.wait()
        assert ConnectionState.OPEN in {manager.state for manager in managers}
        task_group.cancel_scope.cancel()
    assert not {manager.state for manager in managers} - {ConnectionState.NEW, ConnectionState.CLOSED}


async def test_a_native_cancellation_while_managers_are_stopped_stops_all_of_them(asyncio_only):
    """anyio's shield does not protect from it."""
    managers = []

    def count(state):
        return [manager.state for manager in managers].count(state)

    class CancelsCheck(broken.Good):
        async def say_goodbye(self):
            if count(ConnectionState.OPEN) == 1:
                check.cancel()
            await super().say_goodbye()

    def make():
        managers.append(CancelsCheck())
        return managers[-1]

    async def use(peer):
        if count(ConnectionState.OPEN) == 2:
            raise ValueError

    check = asyncio.create_task(check_connection_manager(make, use=use))
    with pytest.raises(asyncio.CancelledError):
        await check
    assert count(ConnectionState.OPEN) == 0


class Odd(BaseException):
    pass


async def test_a_base_exception_passes_through_and_stops_the_managers():
    managers = []

    def make():
        managers.append(broken.Good())
        return managers[-1]

    async def use(peer):
        raise Odd

    with pytest.raises(Odd):
        await check_connection_manager(make, use=use)
    assert ConnectionState.OPEN not in {manager.state for manager in managers}


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_use_that_ignores_its_cancellation_does_not_hang(grace, monkeypatch):
    monkeypatch.setattr(_leaks, "END_TIME", 0.5)
    release = anyio.Event()

    async def use(peer):
        with anyio.CancelScope(shield=True):
            await release.wait()

    with pytest.raises(AssertionError, match=r"use\(\) did not end within 0\.1 s; .* waiting in .*use"):
        await check_connection_manager(broken.Good, use=use, timeout=0.1)
    release.set()
    await settle()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_use_may_hang_after_the_end_of_the_connection(grace, monkeypatch):
    """Even its cancellation has no effect."""
    monkeypatch.setattr(_leaks, "END_TIME", 0.5)
    release = anyio.Event()

    async def use(peer):
        if peer.ended.is_set():
            with anyio.CancelScope(shield=True):
                await release.wait()
        await peer.ping()

    async def lose(peer):
        await peer.end()

    try:
        with pytest.raises(AssertionError, match=r"No task is left: .*use \(test_check_arguments"):
            await check_connection_manager(broken.Good, use=use, lose=lose)
    finally:
        release.set()
        await settle()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_step_that_blocks_the_event_loop_for_too_long_breaks_the_rule():
    """The task that limits the time cannot run in the meantime."""

    class Blocks(broken.Good):
        async def say_goodbye(self):
            time.sleep(0.2)  # noqa: ASYNC251 - the mistake

    with pytest.raises(AssertionError, match=r"stop\(\) did not end within 0\.1 s; "):
        await check_connection_manager(Blocks, timeout=0.1)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_step_that_is_shielded_for_too_long_breaks_the_rule():
    class Shields(broken.Good):
        async def start(self, timeout=None):
            with anyio.CancelScope(shield=True):
                return await super().start(timeout)

        async def handshake(self):
            await anyio.sleep(0.2)

    with pytest.raises(
        AssertionError, match=r": start\(\) did not end within 0\.1 s; .* in .*handshake"
    ):
        await check_connection_manager(Shields, timeout=0.1)


@dataclass(frozen=True, slots=True)
class HasPolicy(broken.Good):
    reconnect: ReconnectPolicy | None


class ComputesPolicy(broken.Good):
    @property
    def reconnect(self):
        return None


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_manager_with_a_policy_passes():
    def make():
        return HasPolicy(ReconnectPolicy(initial_delay=0))

    await check_connection_manager(make, use=broken.Peer.ping, lose=broken.Peer.end, timeout=1)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_manager_that_does_not_accept_a_policy_is_not_opened_again():
    with pytest.raises(AssertionError, match="A lost connection is opened again: .* wait_open"):
        await check_connection_manager(ComputesPolicy)


class UsesForeignThread(broken.Good):
    """Uses a library whose thread calls Python code, and ends."""

    async def handshake(self):
        await checkpoint()
        called = threading.Event()

        def call():
            threading.current_thread()
            called.set()

        _thread.start_new_thread(call, ())
        called.wait()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_foreign_threads_that_ended_do_not_count():
    with dummy_threads_forgotten():
        await check_connection_manager(UsesForeignThread)


@contextmanager
def dummy_threads_forgotten():
    """Removes the threads that `threading.enumerate()` still returns although they ended."""
    before = set(threading.enumerate())
    try:
        yield
    finally:
        for thread in set(threading.enumerate()) - before:
            if isinstance(thread, threading._DummyThread):
                threading._active.pop(thread.ident, None)


class LeavesGarbage(broken.Good):
    """Closes a descriptor only when the garbage collector runs."""

    def __init__(self):
        super().__init__()
        garbage = broken.Descriptor()
        garbage.itself = garbage


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_garbage_does_not_count():
    await check_connection_manager(LeavesGarbage)


class CancelsEverything(broken.Good):
    """Cancels all tasks except its own."""

    async def say_goodbye(self):
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


def test_a_manager_that_cancels_the_test_breaks_a_rule():
    test = connection_manager_tests(CancelsEverything)
    with pytest.raises(
        AssertionError, match="^Other tasks are never cancelled: the task of the test was cancelled\nSee"
    ) as caught:
        test(backend="asyncio", rule=_rules.RULES[0])
    assert type(caught.value.__cause__) is asyncio.CancelledError


def test_an_interrupt_is_not_taken_for_a_broken_rule():
    async def use(peer):
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep_forever()

    for backend in ("asyncio", "trio"):
        with pytest.raises(KeyboardInterrupt):
            connection_manager_tests(broken.Good, use=use)(backend=backend, rule=_rules.RULES[0])


class SlowToDetect(broken.Good):
    """Detects the end of the connection only at the third use after it."""

    uses = 0

    async def watch(self, peer):
        ping, detected = peer.ping, anyio.Event()

        async def counting():
            try:
                await ping()
            except anyio.ClosedResourceError:
                self.uses += 1
                if self.uses == 3:
                    detected.set()
                raise

        peer.ping = counting
        await detected.wait()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_connection_is_used_until_its_end_is_detected():
    async def use(peer):
        await peer.ping()

    async def lose(peer):
        await peer.end()

    await check_connection_manager(SlowToDetect, use=use, lose=lose)


def test_each_step_of_a_short_opening_is_interrupted():
    assert _steps.chosen_steps(0) == []
    assert _steps.chosen_steps(3) == [1, 2, 3]
    assert _steps.chosen_steps(16) == list(range(1, 17))
    for total in range(17, 200):
        steps = _steps.chosen_steps(total)
        assert len(set(steps)) == 16
        assert steps == sorted(steps)
        assert steps[:8] == list(range(1, 9))
        assert steps[-1] == total


class UsesWorkers(broken.Good):
    """Uses more worker threads at each opening."""

    number = 0

    async def handshake(self):
        UsesWorkers.number += 1
        with ThreadPoolExecutor() as own:
            own.submit(bool).result()
        async with anyio.create_task_group() as task_group:
            for _ in range(min(self.number, 9)):
                task_group.start_soon(anyio.to_thread.run_sync, bool)
                if not trio.lowlevel.in_trio_run():
                    task_group.start_soon(self.run_in_executor)

    async def run_in_executor(self):
        await asyncio.get_running_loop().run_in_executor(None, bool)


@pytest.mark.within(20)
async def test_idle_workers_do_not_count():
    if not trio.lowlevel.in_trio_run():
        thread = await asyncio.get_running_loop().run_in_executor(None, threading.current_thread)
        if thread.name.startswith("ThreadPoolExecutor"):
            pytest.skip("uvloop names the threads of its executor since 0.23")
    UsesWorkers.number = 0
    await check_connection_manager(UsesWorkers)


class Faster(broken.Good):
    """Takes only one step after the first two openings."""

    openings = 0

    async def handshake(self):
        type(self).openings += 1
        if type(self).openings > 2:
            await anyio.lowlevel.checkpoint()
        else:
            await super().handshake()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_an_opening_may_take_fewer_steps_than_before():
    await check_connection_manager(Faster)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_open_connection_may_return_any_async_context_manager():
    """Its methods need not be coroutine functions."""

    class Opened:
        def __aenter__(self):
            return anyio.lowlevel.checkpoint()

        def __aexit__(self, *exc_info):
            return anyio.lowlevel.checkpoint()

    class Plain(ConnectionManager[None]):
        def open_connection(self):
            return Opened()

    await check_connection_manager(Plain)


def test_the_check_is_not_imported_with_ownertask():
    code = """
import sys, ownertask
assert not [name for name in sys.modules if name.startswith("ownertask.testing")]
import ownertask.testing
assert "pytest" not in sys.modules
assert ownertask.testing.__all__ == sorted(ownertask.testing.__all__)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


test_good = connection_manager_tests(broken.Good, use=broken.Peer.ping, lose=broken.Peer.end, timeout=4)


def test_there_is_a_test_for_each_rule_and_installed_backend():
    marks = {mark.args[0]: mark.args[1] for mark in test_good.pytestmark}
    assert marks["backend"] == ["asyncio", "trio"]
    assert marks["rule"] == list(_rules.RULES)
    without_lose = connection_manager_tests(broken.Good, backends=["trio"])
    marks = {mark.args[0]: mark.args[1] for mark in without_lose.pytestmark}
    assert marks["backend"] == ["trio"]
    assert len(marks["rule"]) == len(_rules.RULES) - 1


def test_a_test_fails_with_the_rule():
    [rule] = [rule for rule in _rules.RULES if rule.sentence == "A forced stop ends the connection"]
    test = connection_manager_tests(broken.FailsWhenForced)
    with pytest.raises(AssertionError, match="A forced stop ends the connection: after stop"):
        test(backend="asyncio", rule=rule)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_without_proc_descriptors_are_found_in_dev_fd(monkeypatch):
    monkeypatch.setattr(_leaks, "END_TIME", 0.2)
    listdir = os.listdir

    def list_other_folder(path):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(path)
        return listdir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", list_other_folder)
        assert _leaks.processes() == set()
        await check_connection_manager(broken.Good)
        with (
            broken.leaks_ended(),
            pytest.raises(AssertionError, match=r"No descriptor is left: .* is open"),
        ):
            await check_connection_manager(broken.LeavesSocketWhenForced)
