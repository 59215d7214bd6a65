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
RECONNECT = [
    "tests/test_reconnect.py",
    "tests/test_reconnect_series.py",
    "tests/test_reconnect_delays.py",
]
POLICY = ["tests/proof/test_random.py", *RECONNECT, "tests/proof/test_sweep.py"]
WAIT_OPEN = ["tests/proof/test_random.py", "tests/proof/test_sweep.py", "tests/test_wait_open.py"]
REPORTS = ["tests/test_reports_of_losses.py"]
BLOCKS = ["tests/test_blocks.py"]
WATCH = ["tests/test_watch.py"]
LISTENERS = ["tests/proof/test_random.py", "tests/test_listeners.py"]
GROUPS = [
    "tests/proof/test_many_finds.py",
    "tests/proof/test_many_random.py",
    "tests/test_group.py",
    "tests/test_group_members.py",
    "tests/test_group_endings.py",
    "tests/proof/test_many_sweep.py",
]
POOLS = [
    "tests/proof/test_many_finds.py",
    "tests/proof/test_many_random.py",
    "tests/test_pool.py",
    "tests/test_pool_idle.py",
    "tests/test_pool_limits.py",
    "tests/test_pool_rare.py",
    "tests/proof/test_many_sweep.py",
]
MANY = [*POOLS[:2], *GROUPS[2:-1], *POOLS[2:]]
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
        "_stopping.py",
        (
            "        await over(run, timeout)\n"
            "        if not run.is_over:\n"
            "            await forced(run)\n"
        ),
        "        pass\n",
    ),
    Mutant(
        "a cancelled start() does not wait for the owner task to end",
        "_starting.py",
        "        cancellation = await seen_through(run) or cancellation\n",
        "        run.force()\n",
    ),
    Mutant(
        "a cancelled start() does not cancel the attempt",
        "_starting.py",
        "if has_left and series.starters == 0 and not series.received:",
        "if False:",
    ),
    Mutant(
        "a cancelled start() cancels an attempt that other calls wait for",
        "_starting.py",
        "if has_left and series.starters == 0 and not series.received:",
        "if has_left and not series.received:",
    ),
    Mutant(
        "a cancelled start() closes a connection that another call received",
        "_starting.py",
        "if has_left and series.starters == 0 and not series.received:",
        "if has_left and series.starters == 0:",
    ),
    Mutant(
        "a failed start() does not wait for the owner task to end",
        "_starting.py",
        "    if run.state is not OPENING and run.state is not OPEN:\n        await over_or_given_up(run, deadline)\n",
        "",
    ),
    Mutant(
        "start() does not check the state again after it wakes up",
        "_starting.py",
        "            if (received := run.received_connection()) is not None:\n                return received, run\n",
        "            if run.outcome.was_open:\n                series.received = True\n                return (run._status[1],), run\n",
    ),
    Mutant(
        "start() swallows its cancellation",
        "_starting.py",
        "        raise cancellation\n",
        "        run.raise_for_starter()\n",
    ),
    Mutant(
        "stop() swallows its cancellation",
        "_stopping.py",
        ("            await forced_shielded(run)\n        raise\n    if not run.is_over:\n"),
        ("            await forced_shielded(run)\n    if not run.is_over:\n"),
    ),
    Mutant(
        "a cancelled stop() does not force the close",
        "_stopping.py",
        ("            await forced_shielded(run)\n        raise\n    if not run.is_over:\n"),
        ("            pass\n        raise\n    if not run.is_over:\n"),
    ),
    Mutant(
        "stop() does not end queued calls of start()",
        "_stopping.py",
        "    life.stops += 1\n",
        "",
    ),
    Mutant(
        "stop() while opening waits for the attempt instead of cancelling it",
        "_stopping.py",
        ("    if run.state is OPENING:\n        timeout = 0\n    elif"),
        ("    if run.state is OPENING:\n        await run.changed()\n    elif"),
    ),
    Mutant(
        "every stop() forces the close",
        "_stopping.py",
        ("    run.close()\n    try:\n"),
        ("    run.force()\n    try:\n"),
    ),
    Mutant(
        "start() while closing does not wait for the close to end",
        "_starting.py",
        "        if (received := await _behind_close(life, run, stops, timeout, deadline)) is not None:\n            return received[0]\n",
        "        run = None\n        break\n",
    ),
    Mutant(
        "exiting an `async with` block does not stop its run",
        "_stopping.py",
        (
            "    if belongs and run is not None and _is_left(life, run):\n"
            "        await _close(run, STOP_TIMEOUT)\n"
        ),
        "",
    ),
    Mutant(
        "a cancelled run() does not close the connection",
        "_stopping.py",
        ("        await forced_shielded(series.newest)\n        raise\n    run.raise_exception()\n"),
        ("        raise\n    run.raise_exception()\n"),
    ),
    Mutant(
        "the start_timeout is ignored",
        "_start_clock.py",
        "            self._run.timer.set(self._time_left, lambda: self._run.expire(self._timeout))\n",
        "            pass\n",
    ),
    Mutant(
        "an attempt that runs out of time is not cancelled",
        "_owner.py",
        (
            "            self.outcome.expired_timeout = timeout\n"
            "            self._move(CLOSING)\n"
            "            self._cancel()\n"
        ),
        ("            self.outcome.expired_timeout = timeout\n            self._move(CLOSING)\n"),
    ),
    Mutant(
        "the connection is published although the attempt was ended in the same tick",
        "_owner.py",
        ("        if self.state is not OPENING:\n            return  # stopped"),
        ("        if self.is_over:\n            return  # stopped"),
    ),
    Mutant(
        "a loss while opening is ignored",
        "_owner.py",
        ("        if was_opening or self.state is OPEN:\n            self.outcome.loss"),
        ("        if self.state is OPEN:\n            self.outcome.loss"),
    ),
    Mutant(
        "a crash of the transport does not count as a loss",
        "_owner.py",
        ("                            self.lose(None)\n                            raise\n"),
        "                            raise\n",
    ),
    Mutant(
        "a run that was lost ends as if it was stopped",
        "_outcome.py",
        "return self.loss is None and self.expired_timeout is None",
        "return self.expired_timeout is None",
    ),
    Mutant(
        "scopes that a connection left open stay open",
        "_owner.py",
        "        self.loop.leave_scopes(is_broken=is_broken)\n",
        "",
        ["tests/test_loops.py"],
    ),
    Mutant(
        "a loss does not wake up the owner",
        "_owner.py",
        ("            self._move(CLOSING)\n            if was_opening:\n"),
        (
            "            self._status, self.state = (CLOSING, None, None), CLOSING\n            if was_opening:\n"
        ),
    ),
    Mutant(
        "a close after a loss has no time limit",
        "_owner.py",
        ("            else:\n                self.force_within(STOP_TIMEOUT)\n        elif"),
        "        elif",
    ),
    Mutant(
        "a state change does not wake up waiting calls",
        "_owner.py",
        "        self.notify()\n        log(DEBUG",
        "        log(DEBUG",
    ),
    Mutant(
        "a state change wakes up only one waiting call",
        "_owner.py",
        "        for waiter in tuple(self._waiters):\n",
        "        for waiter in tuple(self._waiters)[:1]:\n",
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
        ("        while self.state is OPEN:\n            await self.changed()\n"),
        "        pass\n",
    ),
    Mutant(
        "a cancellation escapes from the owner task",
        "_owner.py",
        ("            if self._raised is None:\n                self._raised = exc\n"),
        "            raise\n",
    ),
    Mutant(
        "an error while closing is not logged",
        "_outcome.py",
        '                log(WARNING, "%s: error while closing", self._name, exc_info=error)\n',
        "                pass\n",
    ),
    Mutant(
        "a loss is logged twice",
        "_outcome.py",
        '            log(level, "%s", failure.exception, exc_info=failure.exception)\n',
        (
            "            for _ in range(2):\n"
            '                log(level, "%s", failure.exception, exc_info=failure.exception)\n'
        ),
    ),
    Mutant(
        "the connection can be read while it is closing",
        "_run_view.py",
        ("        if state is OPEN:\n            if self.loop.is_other"),
        ("        if state is OPEN or state is CLOSING:\n            if self.loop.is_other"),
    ),
    Mutant(
        "the owner task does not cancel its timers when it ends",
        "_timer.py",
        (
            "            self._timer.cancel()\n"
            "            self._timer = None\n"
            "            for _ in range(3):"
        ),
        ("            self._timer = None\n            for _ in range(3):"),
    ),
    Mutant(
        "a timer that stop() sets in the owner task's last step is not cancelled",
        "_timer.py",
        "        while self._timer is not None:",
        "        if self._timer is not None:",
    ),
    Mutant(
        "the owner task ends before its timers",
        "_timer.py",
        "            for _ in range(3):",
        "            for _ in range(1):",
    ),
    Mutant(
        "a second native cancellation ends the wait of a cancelled start()",
        "_waiting.py",
        ("        except run.cancelled_type as exc:\n            cancellation = exc\n"),
        ("        except run.cancelled_type as exc:\n            return exc\n"),
    ),
    Mutant(
        "the wait of a cancelled stop() is not shielded",
        "_waiting.py",
        "    await run.loop.shielded(lambda: forced(run))\n",
        "    await forced(run)\n",
    ),
    Mutant(
        "a cancellation from outside reaches the owner task natively",
        "_backend.py",
        ("        if self.done():\n            return False\n"),
        "        return super().cancel(msg)\n",
    ),
    Mutant(
        "a wait on asyncio does not remove its waiter",
        "_backend.py",
        "            waiters.discard(future)\n",
        "            pass\n",
    ),
    Mutant(
        "a wait on trio does not remove its waiter",
        "_backend.py",
        "            waiters.discard(event)\n",
        "            pass\n",
    ),
    Mutant(
        "stop() keeps waiting after its timeout instead of forcing the close",
        "_waiting.py",
        "        while not run.is_over and not run.has_passed(deadline):\n",
        "        while not run.is_over:\n",
    ),
    Mutant(
        "a loss while opening does not cancel the attempt",
        "_owner.py",
        (
            "            if was_opening:\n"
            "                self._cancel()\n"
            "            else:\n"
            "                self.force_within"
        ),
        ("            if not was_opening:\n                self.force_within"),
    ),
    Mutant(
        "the consequence of a loss while opening is raised instead of its reason",
        "_outcome.py",
        "        is_bare = loss is None or (loss.cause is None and loss.message is LOST and not self.was_open)\n",
        "        is_bare = loss is None or not self.was_open\n",
    ),
    Mutant(
        "a start() that runs out of time does not fail its attempt",
        "_starting.py",
        "            run.expire(timeout)\n",
        "            pass\n",
    ),
    Mutant(
        "a second native cancellation does not end the wait of a cancelled run()",
        "_stopping.py",
        ("        await forced_shielded(series.newest)\n        raise\n    run.raise_exception()\n"),
        ("        await seen_through(series.newest)\n        raise\n    run.raise_exception()\n"),
    ),
    Mutant(
        "the first exit of several blocks stops the manager",
        "_blocks.py",
        "        return not self.need(series) and self._series is series and self._has_exit\n",
        "        return self._series is series and self._has_exit\n",
    ),
    Mutant(
        "an exit stops the manager although a block waits to enter",
        "_blocks.py",
        "        return is_used or any(series.is_in(waiting.loop) for waiting in tuple(self._waiting))\n",
        "        return is_used\n",
    ),
    Mutant(
        "a block that waits in a closed event loop counts forever",
        "_blocks.py",
        "any(series.is_in(waiting.loop) for waiting in tuple(self._waiting))",
        "bool(self._waiting)",
    ),
    Mutant(
        "the last exit stops what start() opened",
        "_stopping.py",
        "    return run.is_alive and not run.series.is_kept and",
        "    return run.is_alive and",
    ),
    Mutant(
        "a start() that goes away keeps the run open for longer than its blocks",
        "_starting.py",
        "        series.is_kept = False\n",
        "        pass\n",
    ),
    Mutant(
        "a block that is cancelled while it enters leaves the connection open",
        "_stopping.py",
        "            error = await seen_through(run) or error\n",
        "            pass\n",
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
        "_life.py",
        (
            "            if self.loan is not None and self.borrower is not None:\n"
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
        "_lending.py",
        (
            "        if (user := life.borrower or life.holder) is not None:\n"
            "            raise ManagerInUseError(\n"
            "                manager.name,"
        ),
        ("        if False:\n            raise ManagerInUseError(\n                manager.name,"),
    ),
    Mutant(
        "a manager that is running can be lent",
        "_lending.py",
        ("        if life.run is not None and life.run.is_alive:\n            raise ManagerInUseError("),
        ("        if False:\n            raise ManagerInUseError("),
    ),
    Mutant(
        "what was lent to a run in a closed event loop stays lent",
        "_life.py",
        "        return self.loop.is_alive() if self.run is None else self.run.is_alive\n",
        "        return True\n",
    ),
    Mutant(
        "the run of a loan is known only one level deep",
        "_life.py",
        "        runs = [run for run in runs_around_caller() if self.key in run.parts]\n        return runs[-1] if",
        "        runs = [run for run in runs_around_caller() if run.series.key is self.key]\n        return runs[-1] if",
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
        "        runs = [run for run in runs_around_caller() if self.key in run.parts]\n        return None",
        "        runs = [run for run in runs_around_caller() if run is self.run]\n        return None",
    ),
    Mutant(
        "a loss of an inner manager is ignored",
        "_life.py",
        '        return cast("Run[object] | None", self.run) if loan is None or not loan.is_alive else loan.run\n',
        '        return cast("Run[object] | None", self.run)\n',
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
        "_life.py",
        (
            "        with claiming:\n"
            "            if self.loan is not None and self.borrower is not None:\n"
            "                raise ManagerInUseError(\n"
            "                    self.name,"
        ),
        (
            "        if True:\n"
            "            if self.loan is not None and self.borrower is not None:\n"
            "                raise ManagerInUseError(\n"
            "                    self.name,"
        ),
        THREADS,
    ),
    Mutant(
        "start() does not check again for a run in another thread",
        "_life.py",
        '            self.alive_run("start")  # raises if a thread with another event loop was faster\n',
        "",
        THREADS,
    ),
    Mutant(
        "another thread may start a manager between the check and the loan",
        "_lending.py",
        (
            "    with claiming:\n"
            "        if (user := life.borrower or life.holder) is not None:\n"
            "            raise ManagerInUseError(\n"
            "                manager.name,"
        ),
        (
            "    if True:\n"
            "        if (user := life.borrower or life.holder) is not None:\n"
            "            raise ManagerInUseError(\n"
            "                manager.name,"
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
        "_run_view.py",
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
        "        if self.loop.is_current() and not self.loop.in_signal_handler():\n",
        "        if self.loop.is_current():\n",
        SIGNALS,
    ),
    Mutant(
        "stop() during the delay or the attempt does not prevent the next attempt",
        "_owner.py",
        ("        self.series.end()\n        if self.state is OPENING or self.state is OPEN:\n"),
        (
            "        if self.state is OPENING:\n"
            "            self.outcome.loss = Loss(LOST, None)\n"
            "            self._move(CLOSING)\n"
            "        if self.state is OPEN:\n"
        ),
        POLICY,
    ),
    Mutant(
        "stop() while a lost connection closes does not prevent the next attempt",
        "_owner.py",
        ("        self.series.end()\n        if self.state is OPENING:\n            self.force()\n"),
        (
            "        if self.state is not CLOSING:\n"
            "            self.series.end()\n"
            "        if self.state is OPENING:\n"
            "            self.force()\n"
        ),
        POLICY,
    ),
    Mutant(
        "a forced close of a lost connection does not prevent the next attempt",
        "_owner.py",
        ("        self.series.end()\n        if self.state is OPENING or self.state is OPEN:\n"),
        (
            "        if self.state is not CLOSING:\n"
            "            self.series.end()\n"
            "        if self.state is OPENING or self.state is OPEN:\n"
        ),
        POLICY,
    ),
    Mutant(
        "a cancelled start() while reopening ends the policy",
        "_series.py",
        "        self.received = self.received or run.outcome.was_open\n",
        "        self.received = False\n",
        POLICY,
    ),
    Mutant(
        "an attempt of a start() that went away is repeated",
        "_starting.py",
        (
            "        series.end()\n"
            "        if timeout is not None and cancellation is None:\n"
            "            run.expire(timeout)\n"
            "        cancellation = await seen_through(run) or cancellation\n"
        ),
        (
            "        if timeout is not None and cancellation is None:\n"
            "            series.end()\n"
            "            run.expire(timeout)\n"
            "            cancellation = await seen_through(run) or cancellation\n"
        ),
        POLICY,
    ),
    Mutant(
        "a start() that goes away is not missed while a policy is at work",
        "_starting.py",
        "if has_left and series.starters == 0 and not series.received:",
        "if has_left and series.starters == 0 and not series.received and not series.may_continue:",
        POLICY,
    ),
    Mutant(
        "the next run begins while the last one is closing",
        "_owner.py",
        (
            "            self._move(CLOSING)\n"
            "            if was_opening:\n"
            "                self._cancel()\n"
            "            else:\n"
            "                self.force_within"
        ),
        (
            "            self._move(CLOSING)\n"
            "            if self.series.may_continue and not was_opening:\n"
            "                self.series.begin_next(self, Failure(self.outcome.loss_error(), is_ours=True))\n"
            "            if was_opening:\n"
            "                self._cancel()\n"
            "            else:\n"
            "                self.force_within"
        ),
        POLICY,
    ),
    Mutant(
        "a run that was open for long does not start the count of failures again",
        "_series.py",
        ("            self._failures = 0\n        self._failures += 1"),
        ("            pass\n        self._failures += 1"),
        POLICY,
    ),
    Mutant(
        "every run that was open starts the count of failures again",
        "_series.py",
        "        if run.outcome.was_open and run.open_for >= policy.stable_after:",
        "        if run.outcome.was_open:",
        POLICY,
    ),
    Mutant(
        "the time of closing counts as time in which the connection was open",
        "_series.py",
        "run.open_for >= policy.stable_after",
        "run.loop.time() - run._opened_at >= policy.stable_after",
        POLICY,
    ),
    Mutant(
        "a failed run is not counted",
        "_series.py",
        "        self._failures += 1\n",
        "        self._failures = self._failures or 1\n",
        POLICY,
    ),
    Mutant(
        "max_retries allows one more attempt",
        "_series.py",
        "self._failures > policy.max_retries",
        "self._failures > policy.max_retries + 1",
        POLICY,
    ),
    Mutant(
        "max_retries is ignored",
        "_series.py",
        "        is_spent = policy.max_retries is not None and self._failures > policy.max_retries\n",
        "        is_spent = False\n",
        POLICY,
    ),
    Mutant(
        "a permanent failure is tried again",
        "_series.py",
        "        if is_spent or self._is_permanent(failure, policy) or",
        "        if is_spent or",
        POLICY,
    ),
    Mutant(
        "a loss is judged by itself instead of its cause",
        "_series.py",
        "        cause = failure.exception.__cause__ if failure.is_loss else None\n",
        "        cause = None\n",
        POLICY,
    ),
    Mutant(
        "the next attempt begins at once",
        "_series.py",
        "Run(self, self._delay)",
        "Run(self, 0.0)",
        POLICY,
    ),
    Mutant(
        "the next run does not wait for its delay",
        "_series.py",
        "Run(self, self._delay)",
        "Run(self)",
        POLICY,
    ),
    Mutant(
        "the manager does not know its next run",
        "_series.py",
        "self.newest = self._life.run = Run(",
        "self.newest = Run(",
        POLICY,
    ),
    Mutant(
        "the beginning of the next run is not announced",
        "_owner.py",
        "            series.queue(state, OPENING)\n",
        "            pass\n",
        LISTENERS,
    ),
    Mutant(
        "listeners hear of the next run before they hear of the end of the failed one",
        "_owner.py",
        (
            "        is_observed = series.queue(old, state)\n"
            "        if series.newest is not self:\n"
            "            series.queue(state, OPENING)\n"
        ),
        (
            "        if series.newest is not self:\n"
            "            series.queue(state, OPENING)\n"
            "        is_observed = series.queue(old, state)\n"
        ),
        LISTENERS,
    ),
    Mutant(
        "a loss that is reported during the delay counts",
        "_owner.py",
        ("        if not self.is_delayed:\n            self.lose(cause, message)\n"),
        "        self.lose(cause, message)\n",
        POLICY,
    ),
    Mutant(
        "the start_timeout counts from the beginning of the delay",
        "_owner.py",
        "            if delay is None:\n                self.start_clock.resume()\n",
        "            self.start_clock.resume()\n",
        POLICY,
    ),
    Mutant(
        "an attempt after a delay has no start_timeout",
        "_owner.py",
        "            self.start_clock.resume()\n        self.notify()\n",
        "            pass\n        self.notify()\n",
        POLICY,
    ),
    Mutant(
        "the delay does not end",
        "_owner.py",
        "        self.is_delayed = False\n",
        "        pass\n",
        POLICY,
    ),
    Mutant(
        "a loss of the owner task by cancellation from outside is followed by another run",
        "_owner.py",
        ("            self.series.end()\n            self.lose(None, CANCELLED_OUTSIDE)\n"),
        "            self.lose(None, CANCELLED_OUTSIDE)\n",
        POLICY,
    ),
    Mutant(
        "the end of the event loop is followed by another run",
        "_owner.py",
        "        if not is_exiting and self.series",
        "        if self.series",
        POLICY,
    ),
    Mutant(
        "the runs of a series share their context variables",
        "_series.py",
        "        return self._context.copy() if self.policy is not None else self._context\n",
        "        return self._context\n",
        POLICY,
    ),
    Mutant(
        "a block does not move to the next run",
        "_blocks.py",
        "if self._series is not None and (self._series is not series or not self._series.is_alive)",
        "if self._series is not None and (self._series is not series or self._series._failures)",
        POLICY,
    ),
    Mutant(
        "the last exit while a lost connection closes does not end the policy",
        "_stopping.py",
        ("    if belongs and run is not None and _is_left(life, run):\n        await _close("),
        (
            "    if belongs and run is not None and run.state is not ConnectionState.CLOSING and _is_left(life, run):\n"
            "        await _close("
        ),
        POLICY,
    ),
    Mutant(
        "the last exit during the delay does not end the policy",
        "_stopping.py",
        ("    if belongs and run is not None and _is_left(life, run):\n        await _close("),
        (
            "    if belongs and run is not None and not run.is_delayed and _is_left(life, run):\n"
            "        await _close("
        ),
        POLICY,
    ),
    Mutant(
        "a block that is cancelled behind a close forces it",
        "_stopping.py",
        ("            if run.state is CLOSING:\n                run.series.end()  #"),
        ("            if False:\n                run.series.end()  #"),
        BLOCKS,
    ),
    Mutant(
        "a block that is cancelled behind a close leaves the policy at work",
        "_stopping.py",
        "                run.series.end()  # another call closes the connection, or it was lost\n",
        "                pass\n",
        POLICY,
    ),
    Mutant(
        "wait_open() returns while the connection closes",
        "_starting.py",
        (
            "        if run is None or run.state is OPEN:\n"
            "            if run is not None:\n"
            "                return (run.connection,)"
        ),
        (
            "        if run is None or run.state is OPEN or run.outcome.was_open:\n"
            "            if run is not None:\n"
            "                return (run._status[1],)"
        ),
        WAIT_OPEN,
    ),
    Mutant(
        "wait_open() counts as a caller that waits for an attempt",
        "_starting.py",
        ("        await run.changed(deadline)\n\n\ndef _deadline"),
        (
            "        run.series.starters += 1\n"
            "        try:\n"
            "            await run.changed(deadline)\n"
            "        finally:\n"
            "            run.series.starters -= 1\n"
            "\n"
            "\n"
            "def _deadline"
        ),
        WAIT_OPEN,
    ),
    Mutant(
        "wait_open() raises while a lost connection closes",
        "_starting.py",
        "if run.state is CLOSING and not run.queued and run.series.policy is None:",
        "if run.state is CLOSING and not run.queued:",
        WAIT_OPEN,
    ),
    Mutant(
        "wait_open() forgets a start() that waits behind a close",
        "_starting.py",
        "if run.state is CLOSING and not run.queued and run.series.policy is None:",
        "if run.state is CLOSING and run.series.policy is None:",
        WAIT_OPEN,
    ),
    Mutant(
        "wait_open() raises before the start() behind a close begins a run",
        "_starting.py",
        "            if last is None or not last.queued or not last.loop.is_current():\n",
        "            if last is None or True:\n",
        WAIT_OPEN,
    ),
    Mutant(
        "wait_open() forgets a start() that waits for the policy behind a close",
        "_starting.py",
        "    run.queued += life.stops == stops  # the caller",
        "    run.queued += run.series.policy is None and life.stops == stops  # the caller",
        WAIT_OPEN,
    ),
    Mutant(
        "wait_open() waits for a start() that was stopped",
        "_stopping.py",
        "        life.run.queued = 0\n",
        "        pass\n",
        WAIT_OPEN,
    ),
    Mutant(
        "wait_open() ignores its timeout",
        "_starting.py",
        (
            "        if timeout is not None and run.has_passed(deadline):\n"
            "            raise run.start_timeout_error(timeout)\n"
            "        await run.changed(deadline)\n"
            "\n"
            "\n"
            "def _deadline"
        ),
        ("        await run.changed()\n\n\ndef _deadline"),
        WAIT_OPEN,
    ),
    Mutant(
        "start() while a lost connection closes waits only for that run",
        "_starting.py",
        "if is_expired or run.surrounds_caller() or run.series.policy is None:",
        "if True:",
        POLICY,
    ),
    Mutant(
        "start() waits only for the present attempt",
        "_starting.py",
        "            if run is series.newest:\n                break\n",
        "            break\n",
        POLICY,
    ),
    Mutant(
        "start() begins a run although the one it waited for failed",
        "_starting.py",
        "    if received is None and last is not run:\n        last.raise_for_starter()\n",
        "",
        POLICY,
    ),
    Mutant(
        "wait_closed() returns at the end of the first run",
        "_waiting.py",
        "        if run is series.newest:\n            return run\n        run = series.newest\n",
        "        return run\n",
        POLICY,
    ),
    Mutant(
        "`reconnecting` describes a series that is over",
        "_series.py",
        "        if failure is None or self.newest.visible_state is not ConnectionState.OPENING:\n",
        "        if failure is None:\n",
        POLICY,
    ),
    Mutant(
        "`connection` does not say why it is reopened",
        "_run_view.py",
        "            failure = self._last_failure\n",
        "            pass\n",
        POLICY,
    ),
    Mutant(
        "a StartTimeoutError does not name the last failure",
        "_outcome.py",
        ("        if last is not None:\n            details ="),
        ("        if False:\n            details ="),
        POLICY,
    ),
    Mutant(
        "the context manager is exited while watch() is running",
        "_watching.py",
        ("        yield\n        task_group.cancel_scope.cancel()\n"),
        "        yield\n",
        WATCH,
    ),
    Mutant(
        "the end of watch() is not a loss",
        "_watching.py",
        ("        else:\n            lose(None, WATCH_ENDED)\n"),
        "",
        WATCH,
    ),
    Mutant(
        "an exception of watch() is not a loss",
        "_watching.py",
        "            lose(exc, LOST)\n",
        "            pass\n",
        WATCH,
    ),
    Mutant(
        "only the first run of a series is watched",
        "_owner.py",
        "            if series.newest is self:\n                series.end()\n",
        "            series.watch = None\n            if series.newest is self:\n                series.end()\n",
        WATCH,
    ),
    Mutant(
        "a connection that is no longer open can be reported lost",
        "_life.py",
        "        return run is not None and run.is_open(connection)\n",
        "        return run is not None\n",
        REPORTS,
    ),
    Mutant(
        "a group does not stop its members",
        "group.py",
        "        await self._members.stop()\n",
        "        pass\n",
        GROUPS,
    ),
    Mutant(
        "a strict group still listens to members that it closes",
        "group.py",
        (
            "        self.is_open = False\n"
            "        for mark in self._marks.values():\n"
            "            mark.report_failures(None)\n"
        ),
        ("        for mark in self._marks.values():\n            mark.report_failures(None)\n"),
        GROUPS,
    ),
    Mutant(
        "a member that could not be added stays claimed",
        "group.py",
        ("            if self.is_open:\n                mark.remove()\n            raise\n"),
        "            raise\n",
        GROUPS,
    ),
    Mutant(
        "a member that could not be added while the group closes is released",
        "group.py",
        ("            if self.is_open:\n                mark.remove()\n            raise\n"),
        ("            mark.release()\n            raise\n"),
        GROUPS,
    ),
    Mutant(
        "two calls of add() may use one key",
        "group.py",
        "        if key in self._managers or opened.is_adding(key):\n",
        "        if key in self._managers:\n",
        GROUPS,
    ),
    Mutant(
        "add() works while the group opens",
        "group.py",
        "        if opened is None or not opened.is_open:\n",
        "        if opened is None:\n",
        GROUPS,
    ),
    Mutant(
        "add() ignores the limit of concurrent starts",
        "group.py",
        "            async with self._turns:\n                self._check_open()\n",
        "            if True:\n                self._check_open()\n",
        GROUPS,
    ),
    Mutant(
        "add() does not check whether the group closed while it waited for its turn",
        "group.py",
        "            async with self._turns:\n                self._check_open()\n                connection",
        "            async with self._turns:\n                connection",
        GROUPS,
    ),
    Mutant(
        "add() ignores `member_timeout`",
        "group.py",
        "connection = await mark.manager.start(self._group.member_timeout)",
        "connection = await mark.manager.start()",
        GROUPS,
    ),
    Mutant(
        "a strict group does not notice the loss of a member that was added",
        "group.py",
        "        self._marks[key] = mark\n        if self._group.strict:\n",
        "        self._marks[key] = mark\n        if False:\n",
        GROUPS,
    ),
    Mutant(
        "a strict group is lost when one of its members is removed",
        "group.py",
        ("        mark = self._marks.pop(key)\n        mark.report_failures(None)\n"),
        "        mark = self._marks.pop(key)\n",
        GROUPS,
    ),
    Mutant(
        "a member can be started while it is being removed",
        "group.py",
        "        mark.refuses_start = True\n        try:\n            await mark.manager.stop()\n",
        "        try:\n            await mark.manager.stop()\n",
        GROUPS,
    ),
    Mutant(
        "a removed member stays claimed",
        "group.py",
        ("        finally:\n            mark.remove()\n"),
        ("        finally:\n            pass\n"),
        GROUPS,
    ),
    Mutant(
        "a removed member that did not stop is released",
        "_members.py",
        ("        if not self.is_running:\n            self.release()\n"),
        "        self.release()\n",
        GROUPS,
    ),
    Mutant(
        "remove() keeps a member that was cancelled while it stopped",
        "group.py",
        "        del self._managers[key]\n        if opened is not None:\n            await opened.remove(key)\n",
        "        if opened is not None:\n            await opened.remove(key)\n        del self._managers[key]\n",
        GROUPS,
    ),
    Mutant(
        "start() of a group waits indefinitely for a member with a policy",
        "group.py",
        "            with move_on_after(timeout):\n",
        "            with move_on_after(None):\n",
        GROUPS,
    ),
    Mutant(
        "the attempt of a member without a policy is not limited",
        "group.py",
        "timeout = self._group.member_timeout if manager.reconnect is None else None",
        "timeout = None",
        GROUPS,
    ),
    Mutant(
        "the attempt of a member with a policy is limited",
        "group.py",
        "timeout = self._group.member_timeout if manager.reconnect is None else None",
        "timeout = self._group.member_timeout",
        GROUPS,
    ),
    Mutant(
        "a strict group waits for a member that is late",
        "group.py",
        "                if self._group.strict and error is not None:\n",
        "                if False:\n",
        GROUPS,
    ),
    Mutant(
        "`failures` keeps a timeout after the member opened",
        "group.py",
        "            self.late.pop(key, None)\n",
        "            pass\n",
        GROUPS,
    ),
    Mutant(
        "a strict group ends when a member is closed with an error by its own stop()",
        "_members.py",
        "        was_stopped = self.life.run is not None and self.life.run.outcome.was_stopped\n",
        "        was_stopped = False\n",
        GROUPS,
    ),
    Mutant(
        "a strict group survives a loss",
        "group.py",
        "            self._group.connection_lost(error)\n",
        "            pass\n",
        GROUPS,
    ),
    Mutant(
        "a strict group raises the last failure instead of the first",
        "group.py",
        "raise self._errors[0]",
        "raise self._errors[-1]",
        MANY,
    ),
    Mutant(
        "a strict start() waits for the other members after a failure",
        "group.py",
        "            self._first_attempts.cancel()\n",
        "            pass\n",
        GROUPS,
    ),
    Mutant(
        "`max_concurrent_starts` is ignored",
        "group.py",
        "Semaphore(group.max_concurrent_starts or sys.maxsize, fast_acquire=True)",
        "Semaphore(sys.maxsize, fast_acquire=True)",
        GROUPS,
    ),
    Mutant(
        "the view contains members that are not open",
        "group.py",
        "            if manager.state is ConnectionState.OPEN:\n                yield key\n",
        "            yield key\n",
        GROUPS,
    ),
    Mutant(
        "a group takes members that are part of another one",
        "_members.py",
        "        if (borrower := life.borrower or life.holder) is not None:\n",
        "        if (borrower := life.borrower) is not None:\n",
        MANY,
    ),
    Mutant(
        "a group takes members that are running",
        "_members.py",
        "        if member.is_running:\n            raise ManagerInUseError(\n",
        "        if False:\n            raise ManagerInUseError(\n",
        MANY,
    ),
    Mutant(
        "members stay claimed after the end of the run",
        "_members.py",
        (
            "        for member in tuple(self._members):\n"
            "            member.release()\n"
            "        if self.run is not None:\n"
        ),
        "        if self.run is not None:\n",
        MANY,
    ),
    Mutant(
        "members can be started while the group closes",
        "_members.py",
        "        for member in self._members:\n            member.refuses_start = True\n",
        "",
        MANY,
    ),
    Mutant(
        "members are stopped one after another",
        "_members.py",
        "                    task_group.start_soon(_stop, member)\n",
        "                    await _stop(member)\n",
        MANY,
    ),
    Mutant(
        "stop() does not report a member that did not end",
        "_members.py",
        ("                if error is not None:\n                    raise error\n"),
        "                pass\n",
        MANY,
    ),
    Mutant(
        "a membership counts although its run is over",
        "_members.py",
        "        return self._members.is_alive and (self.is_running or not self.is_removed)\n",
        "        return True\n",
        MANY,
    ),
    Mutant(
        "a member that is being closed can be started",
        "_life.py",
        "        if member.refuses_start:\n",
        "        if False:\n",
        MANY,
    ),
    Mutant(
        "members run with the context of the caller",
        "_life.py",
        "context=copy_context() if member is None else member.context.copy(),",
        "context=copy_context(),",
        MANY,
    ),
    Mutant(
        "a manager is still held after the end of the group's run",
        "_life.py",
        "        return member.holder if member is not None and member.is_valid else None\n",
        "        return member.holder if member is not None else None\n",
        MANY,
    ),
    Mutant(
        "a group has no more time than its members to report a stubborn one",
        "_owner.py",
        "self.timer.set(CANCEL_GRACE * (1 + 0.1 * self.levels), self._give_up)",
        "self.timer.set(CANCEL_GRACE, self._give_up)",
        MANY,
    ),
    Mutant(
        "stop() does not raise the StopTimeoutError of a member",
        "_stopping.py",
        "    if run.state is FAILED and run.exception is not None and is_a(run.exception, StopTimeoutError):\n        run.raise_exception()",
        "    if False:\n        run.raise_exception()",
        MANY,
    ),
    Mutant(
        "a user of an idle connection does not keep it open",
        "pool.py",
        "            if not entry.users:\n                self._pool.idle.pop(entry, None)\n",
        "",
        POOLS,
    ),
    Mutant(
        "a user who joins a connection that is idle and not open does not keep it",
        "pool.py",
        "        if not entry.users:\n            self.idle.pop(entry, None)\n        entry.users += 1\n        return entry\n",
        "        entry.users += 1\n        return entry\n",
        POOLS,
    ),
    Mutant(
        "a user who gets a slot while being cancelled loses it",
        "pool.py",
        "            self._end(entry)  # its only user was cancelled when the entry got its slot\n",
        "            pass\n",
        POOLS,
    ),
    Mutant(
        "a cancelled waiter keeps its place in the queue",
        "pool.py",
        "            del self._queue[entry], self._entries[entry.key]\n",
        "            pass\n",
        POOLS,
    ),
    Mutant(
        "an idle connection does not make room",
        "pool.py",
        "                self._idle_again = None\n            self._give_slots()\n",
        "                self._idle_again = None\n",
        POOLS,
    ),
    Mutant(
        "the most recently used idle connection makes room",
        "pool.py",
        "                self._close(next(iter(self.idle)))\n            else:\n                break\n",
        "                self._close(next(reversed(self.idle)))\n            else:\n                break\n",
        POOLS,
    ),
    Mutant(
        "more idle connections than needed make room",
        "pool.py",
        "            elif self.idle and self._leaving < len(self._queue):\n",
        "            elif self.idle:\n",
        POOLS,
    ),
    Mutant(
        "the newest waiter is served first",
        "pool.py",
        "                entry = next(iter(self._queue))\n",
        "                entry = next(reversed(self._queue))\n",
        POOLS,
    ),
    Mutant(
        "there may be one connection too many",
        "pool.py",
        "            if limit is None or self._slots < limit:\n",
        "            if limit is None or self._slots <= limit:\n",
        POOLS,
    ),
    Mutant(
        "the end of a connection does not free its slot",
        "pool.py",
        "        self._slots -= 1\n        self._give_slots()\n",
        "        self._give_slots()\n",
        POOLS,
    ),
    Mutant(
        "a slot that is free is not given to a waiter",
        "pool.py",
        "        self._slots -= 1\n        self._give_slots()\n",
        "        self._slots -= 1\n",
        POOLS,
    ),
    Mutant(
        "a discarded connection stays open after its last user",
        "pool.py",
        "        elif entry.has_begun:\n            self._close(entry)\n",
        "        elif entry.has_begun:\n            pass\n",
        POOLS,
    ),
    Mutant(
        "new users get a connection that was discarded",
        "pool.py",
        "            entry.is_discarded = True\n            del self._entries[key]\n            self.open.pop(key, None)\n",
        "            entry.is_discarded = True\n            del self._entries[key]\n",
        POOLS,
    ),
    Mutant(
        "discard() does not wait for the end of an unused connection",
        "pool.py",
        "            self._detach(entry)\n            self._leaving += 1\n            await self._stop(entry)\n",
        "            self._close(entry)\n",
        POOLS,
    ),
    Mutant(
        "discard() closes a connection that is used",
        "pool.py",
        "        if entry.users:\n            entry.is_discarded = True\n",
        "        if False:\n            entry.is_discarded = True\n",
        POOLS,
    ),
    Mutant(
        "a connection that opens after it was discarded gets new users",
        "pool.py",
        "            if self._entries.get(entry.key) is entry:\n                self.open[entry.key] = entry\n",
        "            self.open[entry.key] = entry\n",
        POOLS,
    ),
    Mutant(
        "new users get a connection that was lost",
        "pool.py",
        ("                self._open -= 1\n                self._hide(entry)\n"),
        "                self._open -= 1\n",
        POOLS,
    ),
    Mutant(
        "a lost connection with a policy is not waited for",
        "pool.py",
        "                await manager.wait_open(timeout)\n",
        "                await manager.start(timeout)\n",
        POOLS,
    ),
    Mutant(
        "a user spins on a connection that will not be opened again",
        "pool.py",
        "            except (ConnectionLostError, NotConnectedError):  # it will not be opened again\n                self._detach(entry)\n",
        "            except (ConnectionLostError, NotConnectedError):\n                pass\n",
        POOLS,
    ),
    Mutant(
        "stop() does not wake the calls that wait for a slot",
        "pool.py",
        "            entry.turn.set()\n        await self._members.stop()\n",
        "            pass\n        await self._members.stop()\n",
        POOLS,
    ),
    Mutant(
        "a pool that closes opens a connection for a waiter",
        "pool.py",
        (
            "        if self.is_closing:\n"
            '            raise ConnectionStoppedError(self._pool.name, "acquire()")\n'
            "        if entry.failure is not None:\n"
        ),
        "        if entry.failure is not None:\n",
        POOLS,
    ),
    Mutant(
        "open() is called in the context of the user",
        "pool.py",
        "self._members.claim([context.run(self._create, entry.key)])",
        "self._members.claim([self._create(entry.key)])",
        POOLS,
    ),
    Mutant(
        "the wait for a slot does not count for the timeout",
        "pool.py",
        "                    remaining = None if deadline is None else max(0.0, deadline - self.loop.time())\n                if await",
        "                    remaining = timeout\n                if await",
        POOLS,
    ),
    Mutant(
        "the idle timeout counts from the start of the use",
        "pool.py",
        "            self.idle[entry] = self.loop.time() + self.idle_timeout\n",
        "            self.idle.setdefault(entry, self.idle_timeout)\n",
        POOLS,
    ),
    Mutant(
        "the task that closes idle connections is not woken",
        "pool.py",
        "                self._idle_again.set()\n                self._idle_again = None\n",
        "                self._idle_again = None\n",
        POOLS,
    ),
    Mutant(
        "a connection that cannot be closed ends the pool",
        "pool.py",
        "        with suppress(StopTimeoutError):  # the manager has logged it\n            await self._stop(entry)\n",
        "        await self._stop(entry)\n",
        POOLS,
    ),
    Mutant(
        "connections are closed in the context of a user",
        "pool.py",
        "        context = self._members.context.copy()  # the user may be part of another run\n        context.run(self._task_group.start_soon, self._stop_quietly, entry)\n",
        "        self._task_group.start_soon(self._stop_quietly, entry)\n",
        POOLS,
    ),
    Mutant(
        "a waiting call is still counted after its end",
        "pool.py",
        "            finally:\n                self._waiting -= 1\n",
        "            finally:\n                pass\n",
        POOLS,
    ),
    Mutant(
        "a call that tries again leaves a user behind",
        "pool.py",
        "            # It ended before this call could use it.\n            self.leave(entry)\n",
        "            # It ended before this call could use it.\n",
        POOLS,
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
