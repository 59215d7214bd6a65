"""What the owner task relies on in asyncio, anyio and trio; a change of theirs fails here."""

import asyncio
import subprocess
import sys

import anyio
import pytest
from probe import Probe

from ownertask import ConnectionState, _backend
from ownertask._backend import _ANYIO_CANCELLATION, _SELF_CANCELLING_MODULES, current_event_loop


def test_anyio_marks_its_cancellations_by_the_text_of_their_message():
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


def test_asyncios_own_cancellations_come_from_the_modules_that_are_known():
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


async def test_the_owner_is_not_made_by_the_task_factory_of_the_application(asyncio_only):
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
def test_C8_a_run_that_went_down_with_trio_is_over():
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
    _backend._event_loops.clear()

    trio.run(probe.start)


async def test_a_trio_run_that_goes_on_is_seen_from_another_thread(trio_only):
    import trio

    async with Probe() as connection:
        loop = current_event_loop()
        assert not await trio.to_thread.run_sync(loop.is_closed)
    assert connection


def test_a_trio_run_that_is_finished_is_closed_and_calls_nothing_back():
    import trio

    async def main():
        return current_event_loop()

    loop = trio.run(main)
    assert loop.is_closed()
    loop.call_soon_threadsafe(pytest.fail)


def test_a_trio_run_that_is_a_guest_of_asyncio_is_a_run_of_trios():
    import trio

    probe = Probe()

    async def as_a_guest():
        await probe.start()
        assert "trio" in type(probe._life.run._loop).__name__.lower()
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
    """What anyio imports is not ownertask's to choose: 4.14 imports asyncio, later ones do not."""
    code = (
        "import sys, anyio\n"
        "unwanted = {'asyncio', 'mcp', 'trio', 'typing_extensions', 'websockets'} - sys.modules.keys()\n"
        "import ownertask\n"
        "print(len(unwanted), sorted(unwanted & sys.modules.keys()))"
    )
    unwanted, imported = subprocess.check_output([sys.executable, "-c", code], text=True).split(" ", 1)
    assert int(unwanted) >= 3
    assert imported == "[]\n"


def test_ownertask_needs_no_trio():
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
