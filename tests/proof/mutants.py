"""Puts faults into a copy of the core, one at a time, and checks that the search finds each of them.

Run it with `nox -s mutants` or `python tests/proof/mutants.py [NUMBER ...]`. It exits with status 1 if a
fault is not found.
"""

# ruff: noqa: E501 - the snippets are lines of the core

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SEARCH = [f"tests/proof/test_{name}.py" for name in ("odd", "nested", "random", "sweep")]
THREADS = ["tests/proof/test_threads.py"]
SIGNALS = ["tests/proof/test_signals.py"]
TIMEOUT = 240


class Mutant(NamedTuple):
    description: str
    file: str
    old: str
    new: str
    search: list[str] = SEARCH


MUTANTS = [
    Mutant(
        "stop() does not wait for the owner task to end",
        "manager.py",
        (
            "            await run.over(timeout)\n"
            "            if not run.is_over:\n"
            "                await run.forced()\n"
        ),
        "            pass\n",
    ),
    Mutant(
        "a cancelled start() does not wait for the owner task to end",
        "manager.py",
        "cancellation = await run.seen_through() or cancellation",
        "run.force()",
    ),
    Mutant(
        "a cancelled start() does not cancel the attempt",
        "manager.py",
        "if run.starters == 0 and not run.received and not run.is_over and not run.gave_up:",
        "if False:",
    ),
    Mutant(
        "a cancelled start() cancels an attempt that other calls wait for",
        "manager.py",
        "if run.starters == 0 and not run.received and not run.is_over and not run.gave_up:",
        "if not run.received and not run.is_over and not run.gave_up:",
    ),
    Mutant(
        "a cancelled start() closes a connection that another call received",
        "manager.py",
        "if run.starters == 0 and not run.received and not run.is_over and not run.gave_up:",
        "if run.starters == 0 and not run.is_over and not run.gave_up:",
    ),
    Mutant(
        "a failed start() does not wait for the owner task to end",
        "manager.py",
        (
            "            if run.state is not ConnectionState.OPENING:\n"
            "                await run.over_or_given_up(deadline)\n"
        ),
        "",
    ),
    Mutant(
        "start() does not check the state again after it wakes up",
        "manager.py",
        (
            "            if (received := run.received_connection()) is not None:\n"
            "                return received[0]\n"
            "            if"
        ),
        (
            "            if run.was_open:\n"
            "                run.received = True\n"
            "                return run._status[1]\n"
            "            if"
        ),
    ),
    Mutant(
        "start() swallows its cancellation",
        "manager.py",
        "        raise cancellation\n",
        "        return run.raise_for_starter()\n",
    ),
    Mutant(
        "stop() swallows its cancellation",
        "manager.py",
        (
            "                await run.forced_shielded()\n"
            "            raise\n"
            "        if not run.is_over:\n"
        ),
        ("                await run.forced_shielded()\n        if not run.is_over:\n"),
    ),
    Mutant(
        "a cancelled stop() does not force the close",
        "manager.py",
        (
            "                await run.forced_shielded()\n"
            "            raise\n"
            "        if not run.is_over:\n"
        ),
        ("                pass\n            raise\n        if not run.is_over:\n"),
    ),
    Mutant(
        "stop() does not end queued calls of start()",
        "manager.py",
        "        self._life.stops += 1\n",
        "",
    ),
    Mutant(
        "stop() while opening waits for the attempt instead of cancelling it",
        "manager.py",
        ("        if run.state is ConnectionState.OPENING:\n            timeout = 0\n        elif"),
        (
            "        if run.state is ConnectionState.OPENING:\n"
            "            await run.changed()\n"
            "        elif"
        ),
    ),
    Mutant(
        "every stop() forces the close",
        "manager.py",
        ("        run.close()\n        try:\n"),
        ("        run.force()\n        try:\n"),
    ),
    Mutant(
        "start() while closing does not wait for the close to end",
        "manager.py",
        "            await self._wait_for_close(run, stops, timeout, deadline)\n",
        ("            run = None\n            break\n"),
    ),
    Mutant(
        "exiting an `async with` block does not stop its run",
        "manager.py",
        (
            "        if belongs and run is not None and self._is_left(run):\n"
            "            await self._stop(run, STOP_TIMEOUT)\n"
        ),
        "",
    ),
    Mutant(
        "a cancelled run() does not close the connection",
        "manager.py",
        ("            await run.forced_shielded()\n            raise\n        run.raise_exception()\n"),
        ("            raise\n        run.raise_exception()\n"),
    ),
    Mutant(
        "the start_timeout is ignored",
        "_owner.py",
        "            self._set_timer(self._time_left, lambda: self.expire(timeout))\n",
        "            pass\n",
    ),
    Mutant(
        "an attempt that runs out of time is not cancelled",
        "_owner.py",
        (
            "            self._expired_timeout = timeout\n"
            "            self._move(CLOSING)\n"
            "            self._cancel()\n"
        ),
        ("            self._expired_timeout = timeout\n            self._move(CLOSING)\n"),
    ),
    Mutant(
        "the connection is published although the attempt was ended in the same tick",
        "_owner.py",
        "        if self.state is not OPENING:\n            return  # stopped",
        "        if self.is_over:\n            return  # stopped",
    ),
    Mutant(
        "a loss while opening is ignored",
        "_owner.py",
        "        if was_opening or self.state is OPEN:\n            self._loss",
        "        if self.state is OPEN:\n            self._loss",
    ),
    Mutant(
        "a crash of the transport does not count as a loss",
        "_owner.py",
        ("                    self.lose(None)\n                    raise\n"),
        "                    raise\n",
    ),
    Mutant(
        "a loss does not wake up the owner",
        "_owner.py",
        "            self._move(CLOSING)\n            if was_opening:\n",
        "            self._status = (CLOSING, None, None)\n            if was_opening:\n",
    ),
    Mutant(
        "a close after a loss has no time limit",
        "_owner.py",
        "            else:\n                self.force_within(STOP_TIMEOUT)\n        elif",
        "        elif",
    ),
    Mutant(
        "a state change does not wake up waiting calls",
        "_owner.py",
        ("        self._status = (state, connection, failure)\n        self._notify()\n"),
        "        self._status = (state, connection, failure)\n",
    ),
    Mutant(
        "a state change wakes up only one waiting call",
        "_owner.py",
        ("        for wake_up in tuple(self._wake_ups):\n            wake_up()\n"),
        ("        for wake_up in tuple(self._wake_ups)[:1]:\n            wake_up()\n"),
    ),
    Mutant(
        "a forced close does not cancel the owner",
        "_owner.py",
        "            self._scope.cancel()\n",
        "",
    ),
    Mutant(
        "cancelling the owner task from outside does not close the connection",
        "_owner.py",
        ("            self.lose(None, CANCELLED_OUTSIDE)\n            self._cancel()\n"),
        "            pass\n",
    ),
    Mutant(
        "the owner closes the connection as soon as it is open",
        "_owner.py",
        (
            "                    while self.state is OPEN:\n"
            "                        await self.changed()\n"
        ),
        "",
    ),
    Mutant(
        "a cancellation escapes from the owner task",
        "_owner.py",
        ("            if self._raised is None:\n                self._raised = exc\n"),
        "            raise\n",
    ),
    Mutant(
        "an error while closing is not logged",
        "_owner.py",
        '                log(WARNING, "%s: error while closing", self.name, exc_info=error)\n',
        "                pass\n",
    ),
    Mutant(
        "a loss is logged twice",
        "_owner.py",
        '            log(level, "%s", failure.exception, exc_info=failure.exception)\n',
        (
            "            for _ in range(2):\n"
            '                log(level, "%s", failure.exception, exc_info=failure.exception)\n'
        ),
    ),
    Mutant(
        "the connection can be read while it is closing",
        "_owner.py",
        "        if state is OPEN:\n            if self._loop.is_other",
        "        if state is OPEN or state is CLOSING:\n            if self._loop.is_other",
    ),
    Mutant(
        "the owner task does not cancel its timers when it ends",
        "_owner.py",
        (
            "            self._timer.cancel()\n"
            "            self._timer = None\n"
            "            for _ in range(3):"
        ),
        "            self._timer = None\n            for _ in range(3):",
    ),
    Mutant(
        "a timer that stop() sets in the owner task's last step is not cancelled",
        "_owner.py",
        "        while self._timer is not None:",
        "        if self._timer is not None:",
    ),
    Mutant(
        "the owner task ends before its timers",
        "_owner.py",
        "            for _ in range(3):",
        "            for _ in range(1):",
    ),
    Mutant(
        "a second native cancellation ends the wait of a cancelled start()",
        "_owner.py",
        ("            except self.cancelled_type as exc:\n                cancellation = exc\n"),
        ("            except self.cancelled_type as exc:\n                return exc\n"),
    ),
    Mutant(
        "the wait of a cancelled stop() is not shielded",
        "_owner.py",
        "        await self._loop.shielded(self.forced)\n",
        "        await self.forced()\n",
    ),
    Mutant(
        "a cancellation from outside reaches the owner task natively",
        "_backend.py",
        ("        if self.done():\n            return False\n"),
        "        return super().cancel(msg)\n",
    ),
    Mutant(
        "a wait on asyncio does not remove its callback",
        "_backend.py",
        "            wake_ups.discard(wake_up)\n",
        "            pass\n",
    ),
    Mutant(
        "a wait on trio does not remove its callback",
        "_backend.py",
        "            wake_ups.discard(event.set)\n",
        "            pass\n",
    ),
    Mutant(
        "stop() keeps waiting after its timeout instead of forcing the close",
        "_owner.py",
        "            while not self.is_over and not self.has_passed(deadline):\n",
        "            while not self.is_over:\n",
    ),
    Mutant(
        "a loss while opening does not cancel the attempt",
        "_owner.py",
        "            if was_opening:\n                self._cancel()\n            else:\n                self.force_within",
        "            if not was_opening:\n                self.force_within",
    ),
    Mutant(
        "the consequence of a loss while opening is raised instead of its reason",
        "_owner.py",
        "        is_bare = loss is None or (loss.cause is None and loss.message is LOST and not self.was_open)\n",
        "        is_bare = loss is None or not self.was_open\n",
    ),
    Mutant(
        "a start() that runs out of time does not fail its attempt",
        "manager.py",
        "                run.expire(timeout)\n",
        "                pass\n",
    ),
    Mutant(
        "a second native cancellation does not end the wait of a cancelled run()",
        "manager.py",
        ("            await run.forced_shielded()\n            raise\n        run.raise_exception()\n"),
        ("            await run.seen_through()\n            raise\n        run.raise_exception()\n"),
    ),
    Mutant(
        "the first exit of several blocks stops the manager",
        "_blocks.py",
        "        return not self.need(run) and self._run is run and self._has_exit\n",
        "        return self._run is run and self._has_exit\n",
    ),
    Mutant(
        "an exit stops the manager although a block waits to enter",
        "_blocks.py",
        "        return is_used or any(run.is_in(waiting.loop) for waiting in tuple(self._waiting))\n",
        "        return is_used\n",
    ),
    Mutant(
        "a block that waits in a closed event loop counts forever",
        "_blocks.py",
        "any(run.is_in(waiting.loop) for waiting in tuple(self._waiting))",
        "bool(self._waiting)",
    ),
    Mutant(
        "the last exit stops what start() opened",
        "manager.py",
        "        return run.is_alive and not run.is_kept and",
        "        return run.is_alive and",
    ),
    Mutant(
        "a start() that goes away keeps the run open for longer than its blocks",
        "manager.py",
        "            run.is_kept = False\n",
        "            pass\n",
    ),
    Mutant(
        "a block that is cancelled while it enters leaves the connection open",
        "manager.py",
        "                error = await run.seen_through() or error\n",
        "                pass\n",
    ),
    Mutant(
        "an exit is never matched with the entry of the same task",
        "_blocks.py",
        "        if here in self._tasks:\n",
        "        if False:\n",
    ),
    Mutant(
        "an exit in a task without an entry is matched with a run in use",
        "_blocks.py",
        (
            "        elif self._over > sum(self._over_by_task.values()):\n"
            "            self._over -= 1\n"
            "        elif self._over:\n"
        ),
        "        elif self._over and not self._tasks:\n",
    ),
    Mutant(
        "a manager that is lent can be started",
        "manager.py",
        (
            "            if life.borrower is not None:\n"
            "                raise ManagerInUseError(\n"
            "                    self.name,"
        ),
        (
            "            if False:\n"
            "                raise ManagerInUseError(\n"
            "                    self.name,"
        ),
    ),
    Mutant(
        "a manager can be lent twice",
        "manager.py",
        (
            "            if life.borrower is not None:\n"
            "                raise ManagerInUseError(\n"
            "                    manager.name,"
        ),
        (
            "            if False:\n"
            "                raise ManagerInUseError(\n"
            "                    manager.name,"
        ),
    ),
    Mutant(
        "a manager that is running can be lent",
        "manager.py",
        "            if life.run is not None and life.run.is_alive:\n                raise ManagerInUseError(",
        "            if False:\n                raise ManagerInUseError(",
    ),
    Mutant(
        "what was lent to a run in a closed event loop stays lent",
        "_life.py",
        "        return self._loop.is_alive() if self.run is None else self.run.is_alive\n",
        "        return True\n",
    ),
    Mutant(
        "the run of a loan is known only one level deep",
        "manager.py",
        "        runs = [run for run in runs_around_caller() if own.key in run.parts]\n",
        "        runs = [run for run in runs_around_caller() if run is own.run]\n",
    ),
    Mutant(
        "a callback of a run that is over reports a loss of the present one",
        "_life.py",
        "        return None if runs and runs[-1] is not current else current\n",
        "        return current\n",
    ),
    Mutant(
        "a callback of a run that is over reports a loss of a manager that was lent to it",
        "_life.py",
        "        runs = [run for run in runs_around_caller() if self.key in run.parts]\n",
        "        runs = [run for run in runs_around_caller() if run is own]\n",
    ),
    Mutant(
        "a loss of an inner manager is ignored",
        "_life.py",
        "        current = own if loan is None or not loan.is_alive else loan.run\n",
        "        current = own\n",
    ),
    Mutant(
        "a method of an exception is called when it is raised",
        "_failure.py",
        "            raise BaseException.with_traceback(self.exception, self._traceback)\n",
        "            raise self.exception.with_traceback(self._traceback)\n",
    ),
    Mutant(
        "the text of an exception may keep a run from ending",
        "_reason.py",
        "    except BaseException:  # noqa: BLE001 - a foreign method may raise anything\n",
        "    except ValueError:\n",
    ),
    Mutant(
        "the reason is searched for without end",
        "_reason.py",
        "    while error is not None and id(error) not in seen:\n",
        "    while error is not None:\n",
    ),
    Mutant(
        "a handler of the log may keep a run from ending",
        "_log.py",
        "    except BaseException:  # noqa: BLE001 - it must not affect the connection\n",
        "    except ValueError:\n",
    ),
    Mutant(
        "threads share one dictionary of event loops",
        "_backend.py",
        (
            "    event_loop = getattr(loop, _ATTRIBUTE, None)\n"
            "    if type(event_loop) is not _AsyncioEventLoop or not event_loop.is_of_this_process():\n"
            "        event_loop = _AsyncioEventLoop(loop)\n"
            "        setattr(loop, _ATTRIBUTE, event_loop)\n"
        ),
        (
            '    known = globals().setdefault("known", {})\n'
            "    for closed in [key for key, value in known.items() if not value.is_alive()]:\n"
            "        del known[closed]\n"
            "    event_loop = known.get(loop) or known.setdefault(loop, _AsyncioEventLoop(loop))\n"
        ),
        THREADS,
    ),
    Mutant(
        "another thread may start a manager between the check and the start",
        "manager.py",
        (
            "        with claiming:\n"
            "            if life.borrower is not None:\n"
            "                raise ManagerInUseError(\n"
            "                    self.name,"
        ),
        (
            "        if True:\n"
            "            if life.borrower is not None:\n"
            "                raise ManagerInUseError(\n"
            "                    self.name,"
        ),
        THREADS,
    ),
    Mutant(
        "start() does not check again for a run in another thread",
        "manager.py",
        '            self._alive_run("start")  # raises if a thread with another event loop was faster\n',
        "",
        THREADS,
    ),
    Mutant(
        "another thread may start a manager between the check and the loan",
        "manager.py",
        (
            "        with claiming:\n"
            "            if life.borrower is not None:\n"
            "                raise ManagerInUseError(\n"
            "                    manager.name,"
        ),
        (
            "        if True:\n"
            "            if life.borrower is not None:\n"
            "                raise ManagerInUseError(\n"
            "                    manager.name,"
        ),
        THREADS,
    ),
    Mutant(
        "a forked child inherits a lock that is held",
        "_life.py",
        'if hasattr(os, "register_at_fork"):  #',
        "if False:  #",
        THREADS,
    ),
    Mutant(
        "a run of the parent process counts as alive in a forked child",
        "_backend.py",
        "        return self.is_of_this_process() and not self._is_closed()\n",
        "        return not self._is_closed()\n",
        THREADS,
    ),
    Mutant(
        "the state is read in two steps",
        "_owner.py",
        (
            "        status = self._status  # read last, so that a failure just before the loop closes is still seen\n"
            "        return status if can_change or status[0] in OVER else (CLOSED, None, None)\n"
        ),
        "        return self._status if self.is_over or self.is_alive else (CLOSED, None, None)\n",
        THREADS,
    ),
    Mutant(
        "a loss in a signal handler takes effect at once",
        "_owner.py",
        "        if self.is_in_this_loop() and not in_signal_handler():\n",
        "        if self.is_in_this_loop():\n",
        SIGNALS,
    ),
]


def killed_by(number):
    """Returns the name of the first test that failed, or `None` if none did.

    Returns "hung" if the search did not finish, or ended without the result of a failed test.
    """
    mutant = MUTANTS[number]
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "ownertask")
        shutil.copytree(ROOT / "src" / "ownertask", package)
        source = package / mutant.file
        text = source.read_text()
        assert text.count(mutant.old) == 1, f"{mutant.description}: found {text.count(mutant.old)} times"
        source.write_text(text.replace(mutant.old, mutant.new))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "--no-header",
            "-k",
            "not uvloop",
            *mutant.search,
        ]
        environment = {**os.environ, "PYTHONPATH": folder, "OWNERTASK_PROOF": "mutants"}
        try:
            done = subprocess.run(  # noqa: PLW1510 - the exit status is the result
                command, env=environment, cwd=ROOT, timeout=TIMEOUT, capture_output=True, text=True
            )
        except subprocess.TimeoutExpired:
            return "hung"
        if done.returncode == 0:
            return None
        failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
        return failed[0].split("::")[-1].partition(" - ")[0] if failed else "hung"


def main():
    numbers = [int(number) - 1 for number in sys.argv[1:]] or range(len(MUTANTS))
    survivors = 0
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        for number, killer in zip(numbers, executor.map(killed_by, numbers), strict=True):
            survivors += killer is None
            print(
                f"| {number + 1} | {MUTANTS[number].description} | {killer or 'SURVIVED'} |", flush=True
            )
    print(f"{len(numbers) - survivors} of {len(numbers)} killed")
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
