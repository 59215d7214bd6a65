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
SEARCH = ["tests/proof/test_sweep.py", "tests/proof/test_random.py"]
TIMEOUT = 240


class Mutant(NamedTuple):
    description: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant(
        "stop() does not wait for the owner task to end",
        "manager.py",
        "            await run.over(timeout)\n            if not run.is_over:\n                await run.forced()\n",
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
        "if run.starters == 0 and not run.received and not run.is_over:",
        "if False:",
    ),
    Mutant(
        "a cancelled start() cancels an attempt that other calls wait for",
        "manager.py",
        "if run.starters == 0 and not run.received and not run.is_over:",
        "if not run.received and not run.is_over:",
    ),
    Mutant(
        "a cancelled start() closes a connection that another call received",
        "manager.py",
        "if run.starters == 0 and not run.received and not run.is_over:",
        "if run.starters == 0 and not run.is_over:",
    ),
    Mutant(
        "a failed start() does not wait for the owner task to end",
        "manager.py",
        "            await run.over_or_given_up()\n        except anyio",
        "        except anyio",
    ),
    Mutant(
        "start() does not check the state again after it wakes up",
        "manager.py",
        "            if run.state is ConnectionState.OPEN:\n"
        "                run.received = True\n"
        "                return run.connection\n"
        "            await run.over",
        "            if run._was_open:\n"
        "                run.received = True\n"
        "                return run._connection\n"
        "            await run.over",
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
        "                await run.forced_shielded()\n            raise\n        if not run.is_over:\n",
        "                await run.forced_shielded()\n        if not run.is_over:\n",
    ),
    Mutant(
        "a cancelled stop() does not force the close",
        "manager.py",
        "                await run.forced_shielded()\n            raise\n        if not run.is_over:\n",
        "                pass\n            raise\n        if not run.is_over:\n",
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
        "        if run.state is ConnectionState.OPENING:\n            timeout = 0\n        run.close()\n",
        "        if run.state is ConnectionState.OPENING:\n            await run.changed()\n        run.close()\n",
    ),
    Mutant(
        "every stop() forces the close",
        "manager.py",
        "        run.close()\n        try:\n",
        "        run.force()\n        try:\n",
    ),
    Mutant(
        "start() while closing does not wait for the close to end",
        "manager.py",
        "            await run.changed()\n        if self._life.stops",
        "            run = None\n            break\n        if self._life.stops",
    ),
    Mutant(
        "exiting an `async with` block does not stop its run",
        "manager.py",
        "        if alive is not None and entry[1] is alive:\n",
        "        if alive is not None and entry[1] is not alive:\n",
    ),
    Mutant(
        "a cancelled run() does not close the connection",
        "manager.py",
        "        except anyio.get_cancelled_exc_class():\n"
        "            await run.forced_shielded()\n"
        "            raise\n"
        "        finally:\n"
        "            if not run.is_over and not run.gave_up:\n"
        "                await self._stop(run, STOP_TIMEOUT)\n",
        "        finally:\n            pass\n",
    ),
    Mutant(
        "the start_timeout is ignored",
        "_owner.py",
        "            self._set_timer(start_timeout, self._run_out_of_time)\n",
        "            pass\n",
    ),
    Mutant(
        "the start_timeout timer is not cancelled when the connection opens",
        "_owner.py",
        "        if self._timer is not None:\n            self._timer.cancel()\n        self._connection = ",
        "        self._connection = ",
    ),
    Mutant(
        "the connection is published although the owner was cancelled in the same tick",
        "_owner.py",
        "        if self.state is not OPENING or self._forced:\n            return",
        "        if self.state is not OPENING:\n            return",
    ),
    Mutant(
        "a loss while opening is ignored",
        "_owner.py",
        "        self._move(OPEN)\n        if self._loss is not None:\n            self.lose(None)\n",
        "        self._move(OPEN)\n",
    ),
    Mutant(
        "a crash of the transport does not count as a loss",
        "_owner.py",
        "                        self.lose(None)\n                        raise\n",
        "                        raise\n",
    ),
    Mutant(
        "a loss does not wake up the owner",
        "_owner.py",
        "            if self.state is OPEN:\n                self._move(CLOSING)\n                self.force_within",
        "            if self.state is OPEN:\n                self.state = CLOSING\n                self.force_within",
    ),
    Mutant(
        "a close after a loss has no time limit",
        "_owner.py",
        "                self.force_within(STOP_TIMEOUT)\n",
        "",
    ),
    Mutant(
        "a state change does not wake up waiting calls",
        "_owner.py",
        "        self.is_over = state is CLOSED or state is FAILED\n        self._notify()\n",
        "        self.is_over = state is CLOSED or state is FAILED\n",
    ),
    Mutant(
        "a state change wakes up only one waiting call",
        "_owner.py",
        "        for wake_up in tuple(self._wake_ups):\n            wake_up()\n",
        "        for wake_up in tuple(self._wake_ups)[:1]:\n            wake_up()\n",
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
        "            if self.state is OPENING:\n                self._move(CLOSING)\n            self._cancel()\n",
        "",
    ),
    Mutant(
        "the owner closes the connection as soon as it is open",
        "_owner.py",
        "                        while self.state is OPEN:\n                            await self.changed()\n",
        "",
    ),
    Mutant(
        "the owner closes the connection at the first wake-up",
        "_owner.py",
        "                        while self.state is OPEN:\n                            await self.changed()\n",
        "                        await self.changed()\n",
    ),
    Mutant(
        "an exception from the context manager escapes from the owner task",
        "_owner.py",
        "            raised = exc\n",
        "            raise\n",
    ),
    Mutant(
        "an error while closing is not logged",
        "_owner.py",
        '                _logger().warning("%s: error while closing", self.name, exc_info=error)\n',
        "                pass\n",
    ),
    Mutant(
        "a loss is logged twice",
        "_owner.py",
        '            log("%s", loss, exc_info=loss)\n',
        '            log("%s", loss, exc_info=loss)\n            log("%s", loss, exc_info=loss)\n',
    ),
    Mutant(
        "the connection can be read while it is closing",
        "_owner.py",
        "        if state is OPEN:\n            return cast",
        "        if state is OPEN or state is CLOSING:\n            return cast",
    ),
    Mutant(
        "the owner task does not cancel its timers when it ends",
        "_owner.py",
        "            self._timer.cancel()\n            self._timer = None\n            for _ in range(3):",
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
        "            except self._loop.cancelled_type as exc:\n                cancellation = exc\n",
        "            except self._loop.cancelled_type as exc:\n                return exc\n",
    ),
    Mutant(
        "the wait of a cancelled stop() is not shielded",
        "_owner.py",
        "        with self._loop.create_cancel_scope(shield=True):\n            await self.forced()\n",
        "        with self._loop.create_cancel_scope(shield=False):\n            await self.forced()\n",
    ),
    Mutant(
        "a cancellation from outside reaches the owner task natively",
        "_backend.py",
        "        if self.done():\n            return False\n",
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
        "            while not self.is_over and self._loop.time() < deadline:\n",
        "            while not self.is_over:\n",
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
            *SEARCH,
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
