"""Tests for servers whose event loop can no longer end them."""

import asyncio
import gc
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from unittest.mock import patch

import anyio
import pytest
from conftest import eager_event_loop
from forked_python import forking
from mcp import StdioServerParameters
from servers import HERE, TINY, python_server

from ownertask import ConnectionLostError, ConnectionState, _leftovers
from ownertask._leftovers import Leftover, end_leftovers
from ownertask._leftovers import leftovers as registered
from ownertask.mcp import SessionConnectionManager, StdioConnectionManager, _spawning

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="on Windows, the SDK runs the server")

TEXT = (
    "stubborn: the server process {} was still running and was killed; "
    "call stop() before the event loop ends"
)

# This server ignores SIGTERM, and holds a named pipe open until it ends.
STUBBORN_CODE = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pipe = os.open(sys.argv[1], os.O_WRONLY)
print('something', file=sys.stderr, flush=True)
print('ready', flush=True)
while True:
    signal.pause()
"""

PRELUDE = """
import asyncio, ctypes, gc, os, sys, threading, warnings
import anyio
from mcp import StdioServerParameters
from ownertask.mcp import SessionConnectionManager, StdioConnectionManager, _spawning
code, pipe = sys.argv[1:]
server = StdioServerParameters(command=sys.executable, args=["-c", code, pipe])
manager = StdioConnectionManager(server, name="stubborn")
pids = []

async def start():
    reader, _ = await manager.start()
    await reader.receive()
    print(manager.pid, flush=True)
"""


class Stubborn:
    """A server that ignores SIGTERM. `is_gone()` returns whether all of its processes are gone."""

    def __init__(self, path):
        os.mkfifo(path)
        self.end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.path = str(path)
        params = StdioServerParameters(
            command=sys.executable, args=["-c", STUBBORN_CODE, self.path], env=dict(os.environ)
        )
        self.manager = StdioConnectionManager(
            params, exit_timeout=0.1, terminate_timeout=0.1, name="stubborn"
        )

    async def start(self):
        reader, _ = await self.manager.start()
        await reader.receive()

    def is_gone(self, within=10):
        # poll() also reports a pipe whose writing end has been closed.
        poller = select.poll()
        poller.register(self.end, 0)
        return bool(poller.poll(within * 1000))

    def run(self, code, *options, within=60):
        """Runs a program. Returns its exit status, the ids of its servers, and its stderr."""
        program = PRELUDE + textwrap.dedent(code)
        command = [sys.executable, *options, "-c", program, STUBBORN_CODE, self.path]
        with forking():
            result = subprocess.run(
                command, capture_output=True, encoding="utf-8", timeout=within, check=False
            )
        assert self.is_gone()
        return result.returncode, result.stdout.split(), result.stderr


@pytest.fixture
def stubborn(tmp_path):
    server = Stubborn(tmp_path / "pipe")
    yield server
    os.close(server.end)
    for thread in threading.enumerate():
        if thread.name == "errlog of stubborn":
            thread.join(10)


LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio")]
if sys.version_info >= (3, 12):  # Python 3.11 has no eager tasks
    LOOPS.append(pytest.param(eager_event_loop, id="eager"))
if sys.platform != "win32":
    import uvloop

    LOOPS.append(pytest.param(uvloop.new_event_loop, id="uvloop"))
each_loop = pytest.mark.parametrize("create_loop", LOOPS)


def run_and_close(create_loop, function, *args):
    """Runs a function and closes the loop, while other tasks are still waiting in it."""
    loop = create_loop()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending"
    try:
        loop.run_until_complete(function(*args))
    finally:
        loop.close()
    return loop


@contextmanager
def warns_once(pid):
    with pytest.warns(ResourceWarning) as caught:
        yield
    assert [str(warning.message) for warning in caught] == [TEXT.format(pid)]


async def wait_closed(manager):
    with pytest.raises(ConnectionLostError) if manager.exception else nullcontext():
        await manager.wait_closed()


async def start_and_stop(manager):
    await manager.start()
    await manager.stop()


async def enter(manager):
    async with manager:
        pass


CALLS = {
    "start": start_and_stop,
    "async with": enter,
    "stop": lambda manager: manager.stop(),
    "wait_closed": wait_closed,
}


@each_loop
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("whose", ["the same", "another", "a session's"])
def test_S5_the_next_call_on_any_manager_ends_the_server_of_a_closed_loop(
    create_loop, call, whose, stubborn
):
    manager = stubborn.manager
    if whose != "the same":
        manager = StdioConnectionManager(TINY)
    if whose == "a session's":
        manager = SessionConnectionManager(manager)
    loop = run_and_close(create_loop, stubborn.start)
    assert not stubborn.is_gone(within=0)
    pid = stubborn.manager.pid
    other = create_loop()
    with warns_once(pid):
        other.run_until_complete(CALLS[call](manager))
    assert stubborn.is_gone()
    assert not registered
    assert stubborn.manager.state is ConnectionState.CLOSED
    other.close()
    del loop, other
    gc.collect()  # does not warn again


@each_loop
@pytest.mark.parametrize("is_in_session", [False, True])
def test_S5_a_new_loop_for_each_call_leaves_one_server(create_loop, is_in_session):
    transport = StdioConnectionManager(TINY, name="stubborn")
    manager = SessionConnectionManager(transport) if is_in_session else transport
    pids = set()
    for attempt in range(3):
        expected = warns_once(transport.pid) if attempt else nullcontext()
        loop = create_loop()
        loop.set_exception_handler(lambda *_: None)
        with expected:
            loop.run_until_complete(manager.start())
        assert manager.state is ConnectionState.OPEN
        assert transport.pid not in pids
        pids.add(transport.pid)
        os.kill(transport.pid, 0)
        if attempt == 2:
            loop.run_until_complete(manager.stop())
        loop.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not registered
    del loop
    gc.collect()


@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.parametrize("create_loop", ["asyncio.new_event_loop", "uvloop.new_event_loop"])
@pytest.mark.xfail(reason="anyio keeps a loop in which a task waits for a pipe")
def test_S5_the_collection_of_a_loop_ends_its_server(create_loop, is_closed, stubborn):
    code = f"""
        import uvloop
        loop = {create_loop}()
        loop.set_exception_handler(lambda *_: None)
        loop.run_until_complete(start())
        if {is_closed}:
            loop.close()
        del loop, manager
        for _ in range(3):
            gc.collect()
        print("collected", file=sys.stderr, flush=True)
    """
    _, [pid], stderr = stubborn.run(code, "-W", "always::ResourceWarning")
    assert TEXT.format(pid) in stderr.partition("collected")[0]
    assert stderr.count(TEXT.format(pid)) == 1


@pytest.mark.parametrize("where", ["here", "in a thread"])
def test_S5_a_crashed_trio_run_leaves_no_server(where, stubborn):
    import trio

    class Crash(Exception):  # noqa: N818 - short, and never seen
        pass

    async def crash():
        raise Crash

    async def main():
        await stubborn.start()
        trio.lowlevel.spawn_system_task(crash)
        await trio.sleep_forever()

    def run():
        with pytest.raises(trio.TrioInternalError):
            trio.run(main)

    if where == "here":
        run()
    else:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    with warnings.catch_warnings(record=True) as caught:  # trio cleans up if it can
        warnings.simplefilter("always", ResourceWarning)
        end_leftovers()
        gc.collect()
    assert stubborn.is_gone()
    assert [str(w.message) for w in caught] in ([], [TEXT.format(stubborn.manager.pid)])
    assert not registered


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_P8_a_run_that_ends_without_a_stop_ends_the_server_at_once(backend, caplog):
    """`asyncio.run()` cancels all tasks, including those that watch the server."""
    manager = StdioConnectionManager(TINY, exit_timeout=100)

    async def main():
        with anyio.fail_after(30):
            await manager.start()

    thread = threading.Thread(target=anyio.run, args=[main], kwargs={"backend": backend})
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert manager.returncode == 0
    assert "could not kill" not in caplog.text
    assert not registered


WAYS_TO_EXIT = {
    "the loop is closed": """
        loop = asyncio.new_event_loop()
        loop.run_until_complete(start())
        loop.close()
    """,
    "the loop was stopped inside a task, and is closed": """
        loop = asyncio.new_event_loop()
        async def main():
            await start()
            loop.stop()
        task = loop.create_task(main())
        loop.run_forever()
        loop.close()
    """,
    "a task still waits for a start, and the loop is closed": """
        loop = asyncio.new_event_loop()
        async def main():
            await start()
            loop.stop()
            await asyncio.Event().wait()
        task = loop.create_task(main())
        loop.run_forever()
        loop.close()
    """,
    "the loop is open": """
        loop = asyncio.new_event_loop()
        loop.run_until_complete(start())
    """,
    "a daemon thread runs the loop": """
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(start(), loop).result()
    """,
    "a portal was not closed": """
        context = anyio.from_thread.start_blocking_portal()
        # anyio waits forever for its thread if the context manager is collected at exit.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(context))
        context.__enter__().call(start)
    """,
    "sys.exit() is called in the loop": """
        loop = asyncio.new_event_loop()
        async def main():
            await start()
            sys.exit(3)
        loop.run_until_complete(main())
    """,
}


@pytest.mark.parametrize("way", WAYS_TO_EXIT)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_S5_the_interpreter_exits_and_ends_the_server(way, loop, stubborn):
    code = "import anyio.from_thread\n" + textwrap.dedent(WAYS_TO_EXIT[way])
    if loop == "uvloop":
        if "portal" in way:
            pytest.skip("a portal chooses its loop")
        code = "import uvloop\n" + code.replace("asyncio.new_event_loop", "uvloop.new_event_loop")
    status, [pid], stderr = stubborn.run(code, "-W", "always::ResourceWarning")
    assert status == (3 if "sys.exit" in way else 0)
    lines = [line for line in stderr.splitlines() if TEXT.format(pid) in line]
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr, stderr
    assert "Error" not in stderr


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("end", ["sys.exit(3)", "raise SystemExit(3)", "os.kill(os.getpid(), 2)"])
def test_S5_the_end_of_the_whole_run_ends_the_server_without_a_warning(backend, end, stubborn):
    code = f"""
        manager.exit_timeout = manager.terminate_timeout = 0.1
        async def main():
            await start()
            {end}
            await anyio.sleep(60)
        try:
            anyio.run(main, backend={backend!r})
        except KeyboardInterrupt:
            sys.exit(3)
    """
    status, _, stderr = stubborn.run(code, "-W", "error::ResourceWarning:ownertask")
    assert status == 3
    assert "ResourceWarning: stubborn" not in stderr
    assert "could not kill" not in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("options", [["-W", "error"], []])
def test_S5_the_warning_is_never_raised(options, stubborn):
    code = """
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)
        loop.run_until_complete(start())
        loop.close()
        other = StdioConnectionManager(server)
        asyncio.run(other.stop())
        print("survived")
    """
    status, [pid, survived], stderr = stubborn.run(code, *options)
    assert (status, survived) == (0, "survived")
    assert (TEXT.format(pid) in stderr) == bool(options)  # by default, Python hides the warning


FORKS = """
def with_os_fork():
    if (child := os.fork()) == 0:
        in_child()
        sys.exit(0)  # runs the functions of atexit
    assert os.waitpid(child, 0)[1] == 0

def with_multiprocessing():
    import multiprocessing
    child = multiprocessing.get_context("fork").Process(target=in_child)
    child.start()
    child.join()
    assert child.exitcode == 0

def do_nothing():
    pass

def collect():
    global manager, loop
    manager = loop = None
    for _ in range(3):
        gc.collect()

def call_a_manager():
    asyncio.run(StdioConnectionManager(server).stop())

def call_the_manager():
    asyncio.run(manager.stop())

def in_child():
    warnings.simplefilter("always")
    do()
    asyncio._set_running_loop(None)

def fork_in_all_ways():
    global do
    warnings.simplefilter("ignore")  # forking with threads
    for fork in (with_os_fork, with_multiprocessing):
        for do in (do_nothing, collect, call_a_manager, call_the_manager):
            print(fork.__name__, do.__name__, file=sys.stderr, flush=True)
            fork()
            os.kill(manager.pid, 0)
            print("alive", flush=True)
"""


@pytest.mark.parametrize("where", ["inside the loop", "with an open loop", "with a closed loop"])
def test_S5_a_forked_child_neither_ends_the_server_nor_warns(where, stubborn):
    """One program forks all children, because its imports take most of the time.

    The last line on its stderr that is not of an error names the case.
    """
    program = (
        FORKS
        + "async def main():\n    await start()\n"
        + ("    fork_in_all_ways()\n" if where == "inside the loop" else "")
        + "loop = asyncio.new_event_loop()\nloop.set_exception_handler(lambda *_: None)\n"
        + "loop.run_until_complete(main())\n"
        + ("loop.close()\n" if where == "with a closed loop" else "")
        + ("fork_in_all_ways()\n" if where != "inside the loop" else "")
        + "warnings.simplefilter('ignore')\n"
    )
    status, [_, *alive], stderr = stubborn.run(program)
    assert (status, alive) == (0, ["alive"] * 8), stderr
    assert "Warning" not in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("then", ["exit", "next call", "collection"])
@pytest.mark.parametrize("created", ["before", "after"])
def test_S5_the_loop_is_closed_while_the_server_is_being_started(then, created, stubborn):
    """The process has just been created, but the loop does not know."""
    code = f"""
        created, go_on = threading.Event(), threading.Event()
        create = _spawning.Popen
        def popen(*args, **kwargs):
            process = create(*args, **kwargs)
            process.stdout.readline()
            print(process.pid, flush=True)
            created.set()
            go_on.wait()
            return process
        _spawning.Popen = popen
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)
        task = loop.create_task(manager.start())
        async def main():
            while not created.is_set():
                await asyncio.sleep(0.01)
        loop.run_until_complete(main())
        loop.close()
        if {created == "before"}:
            go_on.set()
        else:
            threading.Timer(0.2, go_on.set).start()
        if {then == "next call"}:
            asyncio.run(StdioConnectionManager(server).stop())
        elif {then == "collection"}:
            del loop, task, manager
            gc.collect()
        else:
            sys.exit()
    """
    status, [pid], stderr = stubborn.run(code, "-W", "always::ResourceWarning")
    assert status == 0
    assert stderr.count(f"stubborn: the server process {pid} was being started and was killed") == 1
    assert "Traceback" not in stderr


def test_S5_a_command_that_cannot_be_started_is_not_left_behind_by_a_closed_loop():
    at, go_on = threading.Event(), threading.Event()

    def popen(*_, **__):
        at.set()
        go_on.wait()
        raise FileNotFoundError

    async def main():
        task = asyncio.create_task(StdioConnectionManager(TINY).start())
        while not at.is_set():
            await asyncio.sleep(0.01)
        return task

    with patch.object(_spawning, "Popen", popen):
        loop = run_and_close(asyncio.new_event_loop, main)
        go_on.set()
        end_leftovers()  # does not warn
    assert not registered
    del loop
    gc.collect()


async def stop(manager):
    await manager.stop()


async def forced_stop(manager):
    await manager.stop(timeout=0)


async def cancelled_stop(manager):
    with anyio.CancelScope() as scope:
        scope.cancel()
        await manager.stop()


async def killed(manager):
    os.kill(manager.pid, signal.SIGKILL)
    await wait_lost(manager)


async def closed_stdout(manager):
    await manager.stop()
    manager.server_params = python_server("import os, sys; os.close(1); sys.stdin.read()")
    reader, _ = await manager.start()
    with pytest.raises(anyio.EndOfStream):
        await reader.receive()
    await wait_lost(manager)


async def wait_lost(manager):
    with pytest.raises(ConnectionLostError):
        await manager.wait_closed()


async def failed_start(manager):
    await manager.stop()
    manager.server_params = StdioServerParameters(command="/nonexistent")
    with pytest.raises(FileNotFoundError):
        await manager.start()


async def cancelled_start(manager):
    await manager.stop()
    with anyio.move_on_after(0):
        await manager.start()


async def failed_handshake(manager):
    await manager.stop()
    session = SessionConnectionManager(StdioConnectionManager(python_server("raise SystemExit(3)")))
    with pytest.raises(ConnectionLostError):
        await session.start()


@pytest.mark.parametrize(
    "end",
    [
        stop,
        forced_stop,
        cancelled_stop,
        killed,
        closed_stdout,
        failed_start,
        cancelled_start,
        failed_handshake,
    ],
)
@pytest.mark.within(30)
async def test_S5_an_open_loop_leaves_no_registration_and_does_not_warn(end):
    manager = StdioConnectionManager(TINY)
    await manager.start()
    assert len(registered) == 1
    await end(manager)
    assert not registered


class Loop:
    """An event loop that can be closed."""

    def __init__(self):
        self.is_open = True

    def is_alive(self):
        return self.is_open


class Thing:
    pass


def test_a_leftover_is_ended_once_even_if_threads_race():
    for _ in range(50):
        loop, thing, ended = Loop(), Thing(), []

        def end(number, ended=ended):
            ended.append(number)
            return ""

        leftovers = [Leftover(loop, thing, partial(end, number)) for number in range(5)]
        end_leftovers()
        assert not ended  # the loop is open
        loop.is_open = False
        barrier = threading.Barrier(4)
        calls = [end_leftovers, end_leftovers, leftovers[2].end, leftovers[3].end]

        def race(call, barrier=barrier):
            barrier.wait()
            call()

        with ExitStack() as stack:
            for call in calls:
                thread = threading.Thread(target=race, args=[call])
                thread.start()
                stack.callback(thread.join)
        assert sorted(ended) == list(range(5))
        assert not registered
        del leftovers


@pytest.mark.parametrize("first", ["forget", "end", "freed"])
def test_a_leftover_is_ended_at_most_once(first):
    loop, thing, ended = Loop(), Thing(), []
    leftover = Leftover(loop, thing, lambda: ended.append(1) or "the text")
    expected = nullcontext() if first == "forget" else pytest.warns(ResourceWarning, match="^the text$")
    with expected:
        if first == "freed":
            del thing
        else:
            getattr(leftover, first)()
    assert len(ended) == (first != "forget")
    leftover.end()
    leftover.forget()
    loop.is_open = False
    end_leftovers()
    assert len(ended) == (first != "forget")
    assert not registered


def test_a_leftover_is_ended_if_its_loop_was_freed():
    loop, thing, ended = Loop(), Thing(), []
    leftover = Leftover(loop, thing, lambda: ended.append(1) or "the text")
    del loop
    with pytest.warns(ResourceWarning, match="^the text$"):
        end_leftovers()
    assert ended
    assert not registered
    del leftover


def test_all_leftovers_are_ended_at_exit():
    loop, thing, ended = Loop(), Thing(), []
    leftovers = [Leftover(loop, thing, lambda: ended.append(1) or "") for _ in range(3)]
    _leftovers._end_all()
    assert len(ended) == len(leftovers)
    assert not registered


def test_a_leftover_is_not_ended_by_a_forked_child(monkeypatch):
    loop, thing, ended = Loop(), Thing(), []
    leftover = Leftover(loop, thing, lambda: ended.append(1) or "")
    monkeypatch.setattr(_leftovers.os, "getpid", lambda: 0)
    leftover.end()
    assert not ended


@pytest.mark.parametrize("is_open", [True, False])
def test_S5_closing_the_coroutine_of_a_closed_loop_ends_the_server(is_open):
    """This is what the garbage collector does, unless anyio prevents it."""
    loop = asyncio.new_event_loop()
    if is_open:
        opened = StdioConnectionManager(TINY, name="tiny").open_connection()
        coroutine = opened.__aexit__(GeneratorExit, GeneratorExit(), None)
    else:
        opened, coroutine = None, _spawning.spawned("tiny", TINY, keep_children=False)

    async def main():
        await (opened.__aenter__() if is_open else step(coroutine))

    async def step(coroutine):
        coroutine.send(None)

    loop.run_until_complete(main())
    loop.close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with suppress(Exception, GeneratorExit):  # anyio cannot exit a scope outside its loop
            if is_open:
                coroutine.send(None)
            else:
                coroutine.close()
    assert "and was killed; call stop() before" in str(caught[0].message)
    assert not registered


def test_an_abandoned_process_is_not_created():
    spawning = _spawning._Spawning(TINY, keep_children=False)
    spawning.abandon(0)
    spawning.run()
    assert spawning.group is None
    assert not spawning.end_left_behind("tiny")


def test_S5_a_function_that_was_registered_with_atexit_can_still_stop_the_manager():
    """Even before the first start: weakref's own function, which runs at exit, would run before it."""
    code = (
        "import atexit, sys\n"
        "from anyio.from_thread import start_blocking_portal\n"
        "from ownertask.mcp import StdioConnectionManager\n"
        "from servers import TINY\n"
        "def close():\n"
        "    portal.call(manager.stop)\n"
        "    context.__exit__(None, None, None)\n"
        "    print(manager.state.value, manager.returncode)\n"
        "atexit.register(close)\n"
        "context = start_blocking_portal()\n"
        "portal = context.__enter__()\n"
        "manager = StdioConnectionManager(TINY)\n"
        "portal.call(manager.start)\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code],
        check=False,
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("closed 0\n", "")
