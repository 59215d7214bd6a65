"""Runs random actions in many threads, bounded in time, and collects what fails."""

import asyncio
import faulthandler
import os
import random
import signal
import sys
import threading
import time
import traceback

import anyio
from conftest import eager_event_loop
from proof.search import innermost

# Linux, macOS and Windows start a thread of another test process within this time, even under load.
JOIN_TIMEOUT = 30

LOOPS = {"asyncio": asyncio.new_event_loop}
if sys.version_info >= (3, 12):  # Python 3.11 has no eager tasks
    LOOPS["eager"] = eager_event_loop
if sys.platform != "win32":  # uvloop does not support Windows
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop
KINDS = [*LOOPS, "trio"]


def run_loop(kind, function, *args):
    """Runs an async function in a new event loop of this kind."""
    if kind == "trio":
        return anyio.run(function, *args, backend="trio")
    # In the forked child of a task, anyio.run() refuses to run, because it was running before the fork.
    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        return runner.run(function(*args))


def run_and_abandon(kind, function, *args):
    """Runs an async function in a new asyncio loop, and closes the loop without ending its tasks."""
    loop = LOOPS[kind]()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending"
    try:
        return loop.run_until_complete(function(*args))
    finally:
        loop.close()


class Crew:
    """Threads that repeat an action until the time is over.

    Args:
        seed: Each thread has its own random numbers, which depend on this seed.
        seconds: How long the threads repeat their action.
        record: Called with a name and a number: the seed, and how often an action was repeated.
    """

    def __init__(self, seed, seconds, record):
        self.seed = seed
        self.record = record
        self.deadline = time.monotonic() + seconds
        self.threads = []
        self.failures = []
        self.rounds = 0
        self._counting = threading.Lock()

    def is_working(self):
        return not self.failures and time.monotonic() < self.deadline

    def start(self, action, *args):
        """Starts a thread that repeats `action(rng, *args)`. At least one round always runs."""
        rng = random.Random(f"{self.seed} {len(self.threads)}")

        def work():
            rounds = 0
            try:
                while self.is_working() or not rounds:
                    action(rng, *args)
                    rounds += 1
            except BaseException as error:
                text = traceback.format_exc()
                # If another thread does not come to a barrier, its own failure tells more.
                where = len(self.failures) if "BrokenBarrierError" in text else 0
                self.failures.insert(where, f"{innermost(error)!r}\n{text}")
            with self._counting:
                self.rounds += rounds

        thread = threading.Thread(target=work, name=f"crew {len(self.threads)}", daemon=True)
        self.threads.append(thread)
        thread.start()

    def join(self):
        """Waits for all threads. Raises an `AssertionError` that lists the failures and the seed."""
        until = self.deadline + JOIN_TIMEOUT
        for thread in self.threads:
            thread.join(max(0, until - time.monotonic()))
        hanging = [thread for thread in self.threads if thread.is_alive()]
        for thread in hanging:
            frame = sys._current_frames().get(thread.ident)
            stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
            self.failures.append(f"{thread.name} hangs\n{stack}")
        assert not self.failures, (
            f"OWNERTASK_SEED={self.seed}: {len(self.failures)} of {len(self.threads)} threads failed:\n"
            + "\n".join(self.failures[:3])
        )
        self.record("seed", self.seed)
        self.record("rounds in threads", self.rounds)


def fork_and_check(function, *args, seconds=10):
    """Runs `function` in a forked child. Returns the text of its failure, or an empty string.

    A child that hangs is ended by a signal, and the text is its stack.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            faulthandler.register(signal.SIGALRM, write_end, all_threads=False, chain=True)
            signal.alarm(seconds)
            function(*args)
            status = 0
        except BaseException:
            os.write(write_end, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        report = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if status:
        report += f"the forked child ended with status {os.waitstatus_to_exitcode(status)}"
    return report
