"""Tests for the behavior of asyncio, anyio and trio that the owner task relies on."""

import asyncio
import gc
import subprocess
import sys

import anyio
import pytest
from probe import Probe

from ownertask import ConnectionState
from ownertask._backend import _ANYIO_CANCELLATION, _SELF_CANCELLING_MODULES, current_event_loop


def test_anyio_cancellations_are_recognizable_by_their_message():
    messages = []

    class Spy(asyncio.Task):
        def cancel(self, msg=None):
            messages.append(msg)
            return super().cancel(msg)

    async def main():
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_soon(scope.cancel)
            await anyio.sleep_forever()

    async def run():
        await Spy(main())

    asyncio.run(run())
    assert messages
    assert all(message.startswith(_ANYIO_CANCELLATION) for message in messages)


def test_asyncio_timeouts_and_task_groups_cancel_from_the_known_modules():
    modules = set()

    class Spy(asyncio.Task):
        def cancel(self, msg=None):
            modules.add(sys._getframe(1).f_globals["__name__"])
            return super().cancel(msg)

    async def fail():
        raise OSError

    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.sleep(60)
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as tg:
                tg.create_task(fail())
                await asyncio.sleep(60)

    async def run():
        await Spy(main())

    asyncio.run(run())
    assert modules == {module for module in _SELF_CANCELLING_MODULES if module.startswith("asyncio")}


async def test_the_owner_task_is_not_created_by_the_applications_task_factory(asyncio_only):
    loop = asyncio.get_running_loop()
    made = []

    def factory(loop, coroutine, **options):
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    previous = loop.get_task_factory()
    loop.set_task_factory(factory)
    try:
        async with Probe():
            pass
    finally:
        loop.set_task_factory(previous)
    assert not made


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_C8_a_run_is_over_after_trio_crashes():
    import trio

    probe = Probe()

    async def crash():
        raise LookupError

    async def main():
        await probe.start()
        trio.lowlevel.spawn_system_task(crash)
        await trio.sleep_forever()

    with pytest.raises(trio.TrioInternalError):
        trio.run(main)
    assert probe.state in {ConnectionState.CLOSED, ConnectionState.FAILED}
    probe.connection_lost()

    trio.run(probe.start)


async def test_a_running_trio_loop_is_not_reported_as_closed_in_another_thread(trio_only):
    import trio

    async with Probe() as connection:
        loop = current_event_loop()
        assert await trio.to_thread.run_sync(loop.is_alive)
    assert connection


def test_a_finished_trio_loop_is_closed_and_runs_no_callback():
    import trio

    async def main():
        return current_event_loop()

    loop = trio.run(main)
    assert not loop.is_alive()
    loop.call_soon_threadsafe(pytest.fail)


def test_an_asyncio_loop_that_was_freed_is_not_alive_and_runs_no_callback():
    async def main():
        return current_event_loop()

    loop = asyncio.run(main())
    gc.collect()
    assert loop.native is None
    assert not loop.is_alive()
    loop.call_soon_threadsafe(pytest.fail)


def test_trio_in_guest_mode_on_asyncio_is_detected_as_trio():
    import trio

    probe = Probe()

    async def as_a_guest():
        await probe.start()
        assert "trio" in type(probe._life.run.loop).__name__.lower()
        await probe.stop()
        return "done"

    async def host():
        loop = asyncio.get_running_loop()
        finished = loop.create_future()
        trio.lowlevel.start_guest_run(
            as_a_guest,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=finished.set_result,
            host_uses_signal_set_wakeup_fd=True,
        )
        return (await finished).unwrap()

    assert asyncio.run(host()) == "done"


def test_importing_ownertask_imports_neither_an_event_loop_nor_the_sdk():
    """Modules that anyio imports don't count: anyio 4.14 imports asyncio, later versions don't."""
    code = (
        "import sys, anyio\n"
        "unwanted = {'asyncio', 'mcp', 'trio', 'typing_extensions', 'websockets'} - sys.modules.keys()\n"
        "import ownertask\n"
        "print(len(unwanted), sorted(unwanted & sys.modules.keys()))"
    )
    unwanted, imported = subprocess.check_output([sys.executable, "-c", code], text=True).split(" ", 1)
    assert int(unwanted) >= 3
    assert imported == "[]\n"


def test_ownertask_works_without_trio():
    code = (
        "import sys; sys.modules['trio'] = None\n"
        "import asyncio, contextlib, ownertask\n"
        "@contextlib.asynccontextmanager\n"
        "async def open(): yield 1\n"
        "async def main():\n"
        "    async with ownertask.ConnectionManager.from_factory(open) as one: print(one)\n"
        "asyncio.run(main())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1\n"
