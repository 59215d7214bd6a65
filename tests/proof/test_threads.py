"""Runs event loops of both kinds in many threads, with their own managers and with shared ones.

The seed determines what each thread does, but not in which order the threads run. So a seed repeats
most failures, but not all. `OWNERTASK_SEED` sets the seed. `nox -s proof` runs each test for minutes.
"""

import logging
import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress

import anyio
import pytest
from anyio.lowlevel import checkpoint
from proof.search import PROFILE
from proof.threads import JOIN_TIMEOUT, KINDS, LOOPS, Crew, fork_and_check, run_and_abandon, run_loop

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionState,
    ConnectionStoppedError,
    ManagerInUseError,
    NotConnectedError,
    StartTimeoutError,
    WrongEventLoopError,
)

SEED = int(os.environ.get("OWNERTASK_SEED") or random.randrange(2**32))
SECONDS = {"long": 40, "mutants": 4}.get(PROFILE, 1)
NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


class Shared(ConnectionManager[object]):
    """A manager that any thread may use. Its context manager can be abandoned with its event loop.

    Attributes:
        alive: The connections that are open, or half open.
        yielded: All connections so far.
    """

    def __init__(self, name="shared", *, fails=False):
        super().__init__(name=name)
        self.fails = fails
        self.alive = []
        self.yielded = []

    def open_connection(self):
        return Opened(self)

    def check(self):
        alive = len(self.alive)
        assert alive <= 1, f"9: {alive} owners of {self.name} are alive at once"


class Opened:
    def __init__(self, manager):
        self.manager = manager

    async def __aenter__(self):
        self.manager.alive.append(self)
        self.manager.check()
        try:
            await checkpoint()
            if self.manager.fails:
                raise OSError("refused")
        except BaseException:
            self.forget()
            raise
        self.manager.yielded.append(self)
        return self

    async def __aexit__(self, exc_type, *_):
        try:
            if exc_type is not GeneratorExit:  # the loop is closed, and this is being collected
                await checkpoint()
        finally:
            self.forget()

    def forget(self):
        """May be called twice: when a loop is about to be abandoned, and by the garbage collector."""
        with suppress(ValueError):
            self.manager.alive.remove(self)


class Around(ConnectionManager[object]):
    """Opens another manager as part of its own run.

    Args:
        inner: The other manager.
        name: See `ConnectionManager`.
        meet: Called before that, to meet another thread.
    """

    def __init__(self, inner, name="around", meet=None):
        super().__init__(name=name)
        self.inner = inner
        self.meet = meet

    def open_connection(self):
        if self.meet is not None:
            self.meet()
        return self.open_inner(self.inner)


@pytest.fixture
def crew(record_property):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads then change places within a function, not only between them
    logger = logging.getLogger("ownertask")
    logger.propagate = False  # pytest would keep thousands of records of losses
    handler = logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield Crew(SEED, SECONDS, record_property)
    finally:
        sys.setswitchinterval(interval)
        logger.propagate = True
        logger.removeHandler(handler)


def test_F2_forty_threads_each_use_managers_in_their_own_loops(crew):
    async def use(rng):
        manager = Around(Around(Shared())) if rng.random() < 0.5 else Shared()
        for _ in range(rng.randrange(1, 3)):
            if rng.random() < 0.5:
                async with manager as connection:
                    assert manager.connection is connection
            else:
                await manager.start()
                assert manager.state is OPEN
                manager.connection_lost()
                with pytest.raises(ConnectionLostError):
                    await manager.wait_closed()
        await manager.stop()

    for _ in range(40):
        crew.start(lambda rng: run_loop(rng.choice(KINDS), use, rng))
    crew.join()


@pytest.mark.parametrize("method", ["start", "block", "run", "outer", "any"])
def test_F3_if_two_threads_start_one_manager_at_the_same_time_one_is_refused(crew, method):
    crew.deadline = time.monotonic() + SECONDS / 3
    barrier = threading.Barrier(2)
    managers = [None]
    results = []

    def meet():
        barrier.wait(JOIN_TIMEOUT)

    async def contend(rng, leads):
        [manager] = managers
        for _ in range(30):
            how = rng.choice(["start", "block", "run", "outer"]) if method == "any" else method
            user = (
                Around(manager, meet=meet if method == "outer" else None) if how == "outer" else manager
            )
            meet()
            async with anyio.create_task_group() as tasks:
                try:
                    if how == "run":
                        connection = await tasks.start(user.run)
                    else:
                        connection = await (user.__aenter__() if how == "block" else user.start())
                except (WrongEventLoopError, ManagerInUseError) as error:
                    connection = None
                    results.append(error)
                else:
                    results.append(connection)
                meet()
                manager.check()
                if connection is not None:
                    assert user.connection is connection
                    await user.stop()
            meet()
            if leads:
                crew.rounds += 1
                got = [result for result in results if isinstance(result, Opened)]
                assert len(got) == 1, f"{len(got)} of two callers got the connection: {results}"
                assert not manager.alive, "a connection is still open"
                results.clear()

    def work(rng, leads):
        try:
            while True:
                if leads:
                    managers[:] = [Shared()] if crew.is_working() else []
                meet()
                if not managers:
                    return
                run_loop(rng.choice(KINDS), contend, rng, leads)
        except BaseException:
            barrier.abort()
            raise

    crew.start(work, True)
    crew.start(work, False)
    crew.join()


class Observer:
    """Reads the properties of a manager in a thread without an event loop.

    Args:
        possible: The states that the manager can have after it was started once.
    """

    def __init__(self, manager, possible):
        self.manager = manager
        self.possible = possible

    def look(self, _rng):
        for _ in range(100):
            state = self.manager.state
            assert state in self.possible, f"the state was {state}, which it never had"
            exception = self.manager.exception
            assert exception is None or FAILED in self.possible, f"{exception!r} without a failure"
            try:
                connection = self.manager.connection
            except (NotConnectedError, ConnectionLostError) as error:
                if isinstance(error, NotConnectedError):
                    assert error.state in self.possible, f"{error} is not a state that it had"
                    assert error.state is not OPEN, f"{error}, but that is connected"
            else:
                assert isinstance(connection, Opened), f"the connection was {connection!r}"


@pytest.mark.parametrize("end", ["refused", "lost", "stopped", "restarted after a failure"])
def test_F11_threads_without_a_loop_see_only_states_that_the_manager_had(crew, end):
    crew.deadline = time.monotonic() + SECONDS / 3
    manager = Shared(fails=end == "refused")
    possible = {
        "refused": {OPENING, FAILED},
        "lost": {OPENING, OPEN, CLOSING, FAILED},
        "stopped": {OPENING, OPEN, CLOSING, CLOSED},
        "restarted after a failure": {OPENING, OPEN, CLOSING, CLOSED, FAILED},
    }[end]
    begun = threading.Event()

    async def cycle():
        manager.fails = end == "refused" or (end != "lost" and end != "stopped" and not manager.fails)
        with suppress(OSError):
            await manager.start()
            if end == "lost":
                manager.connection_lost()
                with suppress(ConnectionLostError):
                    await manager.wait_closed()
            else:
                await manager.stop()
        begun.set()

    async def cycles(rng):
        for _ in range(50):
            await cycle()

    crew.start(lambda rng: run_loop(rng.choice(KINDS), cycles, rng))
    assert begun.wait(JOIN_TIMEOUT)
    for _ in range(3):
        crew.start(Observer(manager, possible).look)
    crew.join()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pthread_kill")
@pytest.mark.parametrize("kind", KINDS)
def test_F12_one_loss_from_a_signal_handler_or_a_thread_is_seen_at_once(crew, kind):
    """It arrives while the loop is idle, and nothing else wakes it up, or it interrupts any line."""
    crew.deadline = time.monotonic() + SECONDS / 4
    manager = Shared()
    begun, handled, seen, done = (threading.Event() for _ in range(4))
    main = threading.main_thread().ident
    was_alive = []

    def report(reason):
        was_alive.append(manager.state in {OPENING, OPEN})
        manager.connection_lost(OSError(reason))
        handled.set()

    async def lose_again_and_again():
        while crew.is_working():
            begun.set()
            with anyio.fail_after(5), pytest.raises(ConnectionLostError) as caught:
                await manager.start()
                await manager.wait_closed()
            assert str(caught.value.__cause__) in {"a signal", "a thread"}
            assert not manager.alive
            seen.set()
            crew.rounds += 1

    def report_again_and_again(rng):
        while not done.is_set():
            if not begun.wait(0.1):
                continue
            begun.clear()
            time.sleep(rng.choice([0, 0, 0.003]) + rng.random() / 2000)
            was_alive.clear()
            while not any(was_alive) and not done.is_set():
                handled.clear()
                if rng.random() < 0.8:
                    signal.pthread_kill(main, signal.SIGUSR1)
                else:
                    report("a thread")
                # A signal that arrives just before select() does not end it. Then the next one does.
                handled.wait(0.05)
            while not seen.wait(0.1) and not done.is_set():
                pass
            seen.clear()

    previous = signal.signal(signal.SIGUSR1, lambda *_: report("a signal"))
    try:
        crew.start(report_again_and_again)
        run_loop(kind, lose_again_and_again)
    finally:
        done.set()
        crew.join()
        signal.signal(signal.SIGUSR1, previous)


class Visitor:
    """Uses shared managers in one event loop after another."""

    def __init__(self, managers):
        self.managers = managers
        self.held = []

    def __call__(self, rng):
        self.held = []
        kind = rng.choice(KINDS)
        if kind != "trio" and rng.random() < 0.3:
            run_and_abandon(kind, self.visit, rng, False)
        else:
            run_loop(kind, self.visit, rng, True)

    async def visit(self, rng, stops):
        for _ in range(rng.randrange(1, 6)):
            await self.use(rng, rng.choice(self.managers))
            await checkpoint()
        for user, connection in self.held:
            if stops:
                await self.stop(user, connection)
            else:
                connection.forget()  # when this loop is closed, another one may open the next connection

    async def use(self, rng, manager):
        user = Around(Around(manager)) if rng.random() < 0.3 else manager
        try:
            connection = await user.start(rng.choice([None, None, 0.0]))
        except (WrongEventLoopError, ManagerInUseError, StartTimeoutError):
            return  # another loop has it
        except (ConnectionLostError, ConnectionStoppedError):
            return  # another thread called connection_lost() or stop() at this moment
        self.held.append((user, connection))
        manager.check()
        if rng.random() < 0.5:
            with suppress(NotConnectedError, ConnectionLostError):  # another thread has lost it
                assert user.connection is connection
        if rng.random() < 0.3:
            await self.stop(user, connection)

    async def stop(self, user, connection):
        try:
            with anyio.fail_after(JOIN_TIMEOUT):
                await user.stop()
        except WrongEventLoopError:
            pass  # it was lost, and another loop has it now
        assert connection not in connection.manager.alive, "3: stop() returned, but the owner is alive"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # that is the test
def test_C8_managers_survive_threads_that_share_them_abandon_loops_and_fork(crew):
    managers = [Shared(f"shared {number}") for number in range(4)]

    def disturb(rng):
        rng.choice(managers).connection_lost(OSError("a thread"))
        time.sleep(rng.random() / 500)

    def fork(rng):
        if rng.random() < 0.5:
            check_in_a_child(managers, rng.choice(KINDS))
        else:  # trio refuses to run in the child of a task
            kinds = list(LOOPS)
            run_loop(rng.choice(kinds), fork_in_a_task, managers, rng.choice(kinds))

    for _ in range(30):
        crew.start(Visitor(managers))
    for manager in managers:
        crew.start(Observer(manager, set(ConnectionState)).look)
    crew.start(disturb)
    # coverage's own lock may be held by another thread at the fork, and would then block the child.
    if hasattr(os, "fork") and "coverage" not in sys.modules:
        crew.start(fork)
    crew.join()
    run_loop(random.Random(crew.seed).choice(KINDS), use_all, managers)


def check_in_a_child(managers, kind):
    report = fork_and_check(use_all_in_a_child, managers, kind)
    assert not report, report


async def fork_in_a_task(managers, kind):
    async with Around(Shared("of the parent")) as connection:
        check_in_a_child([*managers, connection.manager], kind)
        assert connection in connection.manager.alive


def use_all_in_a_child(managers, kind):
    for manager in managers:
        assert manager.state in {NEW, CLOSED, FAILED}, f"the child sees {manager.state}"
        with pytest.raises((NotConnectedError, ConnectionLostError)):
            _ = manager.connection
        manager.alive.clear()  # those are open in the parent
    run_loop(kind, use_all, managers)


async def use_all(managers):
    for manager in managers:
        assert manager.state in {NEW, CLOSED, FAILED}
        manager.check()
        for user in (manager, Around(manager), manager):
            async with user as connection:
                assert user.connection is connection
        assert not manager.alive
