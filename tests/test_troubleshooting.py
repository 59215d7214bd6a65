"""Tests that each error and symptom on the page *Troubleshooting* occurs, and that the solution works.

A test names the heading of the page that it causes. If the heading shows the text of an error, the test
compares it with the real text. `…` stands for text that varies. Errors that break an event loop occur in
a subprocess. `doctor/test_troubles.py` tests the errors of servers.
"""

import asyncio
import os
import re
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from importlib.metadata import requires, version
from pathlib import Path
from tempfile import TemporaryFile
from traceback import format_exception_only

import anyio
import mcp
import pytest
from http_server import http_server, result_of_initialize
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from packaging.requirements import Requirement
from probe import Probe, Stage
from servers import STUBBORN, TINY, python_server

from ownertask import (
    ConnectionGroup,
    ConnectionLostError,
    ConnectionManager,
    ConnectionStoppedError,
    ManagerInUseError,
    NotConnectedError,
    OwnerTaskError,
    StartTimeoutError,
    StopTimeoutError,
)
from ownertask.mcp import (
    SessionConnectionManager,
    StreamableHttpConnectionManager,
    _sdk,
)

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/how-to/troubleshooting.md"
HEADINGS = re.findall(r"^### (.+)$", PAGE.read_text(), re.MULTILINE)
ERROR = mcp.MCPError if _sdk.HAS_CLIENT else mcp.McpError

# The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("forked_python"),
]

only_posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such processes")
slow = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
caused = set()


class Shown:
    """A heading of the page."""

    def __init__(self, heading):
        self.texts = re.findall(r"`([^`]+)`", heading)

    def occurs_in(self, text):
        """Returns whether one of the heading's error texts occurs in a text or an exception."""
        if isinstance(text, BaseException):
            text = "".join(format_exception_only(text))
        text = text.replace("McpError", "MCPError")
        patterns = [".+".join(re.escape(part) for part in shown.split("…")) for shown in self.texts]
        return any(re.search(pattern, text) for pattern in patterns)


def causes(words):
    """Passes the heading that contains these words to a test, as `shown`."""
    (heading,) = [heading for heading in HEADINGS if words in heading]
    caused.add(heading)
    return pytest.mark.parametrize("shown", [pytest.param(Shown(heading), id=heading)])


# Programs. `bare` is the SDK alone. `stubborn` ignores the end of its stdin and SIGTERM.

PRELUDE = """
import asyncio, gc, os, signal, sys, threading, time
from contextlib import AsyncExitStack
import anyio
from mcp import ClientSession, StdioServerParameters, stdio_client
from ownertask.mcp import SessionConnectionManager

tiny, stubborn = [StdioServerParameters(command=sys.executable, args=[path]) for path in sys.argv[1:3]]

async def connect(stack, server=tiny):
    streams = await stack.enter_async_context(stdio_client(server))
    session = await stack.enter_async_context(ClientSession(*streams))
    await session.initialize()
    return session

def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(child) for child in file.read().split()]

def state_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]

def exit_if_it_hangs(after=1):
    threading.Thread(target=lambda: (time.sleep(after), os._exit(7)), daemon=True).start()
"""
HANGS = 7
"""The exit code of a program that hung."""


def run(code, *, exit_code=0):
    """Runs a program, and returns its output and its errors."""
    arguments = [sys.executable, "-c", PRELUDE + code]
    # Servers that the program leaves behind would hold pipes open.
    with TemporaryFile("w+") as out, TemporaryFile("w+") as errors:
        done = subprocess.run(
            [*arguments, *TINY.args, *STUBBORN.args],
            stdout=out,
            stderr=errors,
            timeout=60,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "PYTHONWARNINGS": "default::ResourceWarning",
            },
            check=False,
        )
        out.seek(0)
        errors.seek(0)
        texts = out.read(), errors.read()
    assert done.returncode == exit_code, texts
    return texts


# Opened in one task, closed in another


@causes("exit cancel scope in a different task")
def test_a_connection_is_closed_in_another_task(shown):
    _, errors = run(
        """
async def main():
    stack = AsyncExitStack()
    await asyncio.create_task(connect(stack))
    await asyncio.create_task(stack.aclose())
asyncio.run(main())
""",
        exit_code=1,
    )
    assert shown.occurs_in(errors)
    _, errors = run(
        """
async def main():
    stack = AsyncExitStack()
    for function in (lambda: connect(stack)), stack.aclose:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(function)
anyio.run(main, backend="trio")
""",
        exit_code=1,
    )
    assert "TrioInternalError" in errors or re.search("RuntimeError: .+ stack corrupted", errors), errors
    out, errors = run(
        """
async def main():
    manager = SessionConnectionManager(tiny)
    await asyncio.create_task(manager.start())
    await asyncio.create_task(manager.stop())
    print(manager.state.value)
asyncio.run(main())
"""
    )
    assert (out, errors) == ("closed\n", "")


@causes("current cancel scope")
def test_connections_are_closed_in_the_order_in_which_they_were_opened(shown):
    out, _ = run(
        """
async def main():
    first, second = AsyncExitStack(), AsyncExitStack()
    await connect(first)
    await connect(second)
    try:
        await first.aclose()
    except RuntimeError as error:
        print(f"RuntimeError: {error}", flush=True)
    os._exit(0)
asyncio.run(main())
"""
    )
    assert shown.occurs_in(out)
    out, errors = run(
        """
async def main():
    first, second = SessionConnectionManager(tiny), SessionConnectionManager(tiny)
    await first.start()
    await second.start()
    await first.stop()
    await second.stop()
    print(first.state.value, second.state.value)
asyncio.run(main())
"""
    )
    assert (out, errors) == ("closed closed\n", "")


BYSTANDER = """
async def main():
    opened = asyncio.Event()
    async def open_and_work():
        await start()
        opened.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            print(f"{type(error).__module__}.{type(error).__name__}: {error}", flush=True)
    worker = asyncio.create_task(open_and_work())
    await opened.wait()
    try:
        await stop()
    except RuntimeError:
        pass
    print("still working" if worker.cancelling() == 0 and not worker.done() else "cancelled", flush=True)
    os._exit(0)
asyncio.run(main())
"""


@causes("Cancelled via cancel scope")
def test_the_task_that_opened_a_connection_is_cancelled_when_another_task_closes_it(shown):
    out, _ = run(
        "stack = AsyncExitStack()\nstart, stop = lambda: connect(stack), stack.aclose" + BYSTANDER
    )
    assert shown.occurs_in(out)
    assert out.endswith("cancelled\n")
    out, _ = run(
        "manager = SessionConnectionManager(tiny)\nstart, stop = manager.start, manager.stop" + BYSTANDER
    )
    assert out == "still working\n"


LEFT_OPEN = """
async def main():
    global stack
    stack = AsyncExitStack()
    await connect(stack)
"""


@pytest.mark.skipif(_sdk.HAS_CLIENT, reason="with mcp 2.x, this program hangs; see the next test")
@causes("closing of asynchronous generator")
def test_a_connection_is_not_closed(shown):
    _, errors = run(LEFT_OPEN + "asyncio.run(main())")
    assert shown.occurs_in(errors)


LEFT_OPEN_WITH_A_MANAGER = """
async def main():
    global manager
    manager = SessionConnectionManager(tiny)
    await manager.start()
asyncio.run(main())
print(manager.state.value)
"""


@pytest.mark.skipif(not _sdk.HAS_CLIENT, reason="mcp 1.x logs an error instead; see the previous test")
@causes("hangs at exit")
def test_asyncio_can_not_end_a_connection_that_is_not_closed(shown):
    run(LEFT_OPEN + "with asyncio.Runner() as r: r.run(main()); exit_if_it_hangs()", exit_code=HANGS)


def test_a_manager_that_is_not_stopped_neither_hangs_nor_logs_an_error():
    assert run(LEFT_OPEN_WITH_A_MANAGER) == ("failed\n", "")


@causes("hangs at exit")
def test_a_function_in_a_thread_that_does_not_return_keeps_the_program_from_ending(shown):
    program = """
def block(is_running, loop):
    loop.call_soon_threadsafe(is_running.set)
    threading.Event().wait({timeout})
async def main():
    is_running = asyncio.Event()
    task = asyncio.create_task(asyncio.to_thread(block, is_running, asyncio.get_running_loop()))
    await is_running.wait()
    task.cancel()
    await asyncio.wait([task])
    exit_if_it_hangs(after={seconds})
asyncio.run(main())
"""
    run(program.format(timeout=None, seconds=1), exit_code=HANGS)
    run(program.format(timeout=0.01, seconds=30))


async def refuse(request):
    await request.answer("401 Unauthorized", www_authenticate="Bearer")


@slow
@causes("unhandled errors in a TaskGroup")
async def test_the_sdk_puts_an_error_into_groups(shown):
    async with http_server(refuse) as url:
        with pytest.raises(ExceptionGroup) as caught:
            async with (
                streamable_http_client(f"{url}/mcp") as streams,
                ClientSession(*streams[:2]) as session,
            ):
                await session.initialize()
        assert shown.occurs_in(caught.value)
        if _sdk.HAS_CLIENT:
            assert "Server returned an error response" in repr(caught.value)
        manager = SessionConnectionManager(StreamableHttpConnectionManager(f"{url}/mcp"))
        with pytest.raises(_sdk.http.HTTPStatusError, match="401 Unauthorized"):
            await manager.start()


# How a program ends


@only_posix
@causes("left behind")
def test_a_server_outlives_a_program_that_does_not_close_its_connection(shown):
    end = """
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
print(*children())
loop.close()
"""
    out, _ = run(LEFT_OPEN.replace("(stack)", "(stack, stubborn)") + end)
    os.kill(int(out), 9)  # raises if the server was gone
    managed = LEFT_OPEN_WITH_A_MANAGER.replace("tiny", "stubborn").partition("asyncio.run")[0]
    out, errors = run(managed + end)
    with pytest.raises(ProcessLookupError):
        os.kill(int(out), 9)
    assert "ResourceWarning" in errors


ZOMBIE = """
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
(pid,) = children()
os.kill(pid, signal.SIGKILL)
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
print(state_of(pid), flush=True)
"""


@only_posix
@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="on Python 3.11, asyncio waits for it in a thread"
)
@causes("left behind")
def test_a_server_becomes_a_zombie_if_it_ends_after_its_event_loop(shown):
    assert run(LEFT_OPEN + ZOMBIE + "os._exit(0)")[0] == "Z\n"
    managed = LEFT_OPEN_WITH_A_MANAGER.partition("asyncio.run")[0] + ZOMBIE
    again = """
async def again():
    async with manager:
        print(pid in children())
asyncio.run(again())
"""
    assert run(managed + again)[0] == "Z\nFalse\n"


@causes("100 % CPU")
def test_anyio_that_cancels_a_task_forever_after_an_exit_in_another_task_is_not_supported(
    shown,
):
    """With anyio 4.13, it costs a core. No supported version does that, so only this is tested."""
    (anyio_requirement,) = [
        requirement
        for requirement in map(Requirement, requires("ownertask"))
        if requirement.name == "anyio"
    ]
    assert "4.13.0" not in anyio_requirement.specifier
    assert version("anyio") in anyio_requirement.specifier


class Swallows:
    """Code that swallows cancellations, and counts them."""

    def __init__(self):
        self.count = 0
        self.may_end = False

    async def __call__(self):
        while not self.may_end:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                self.count += 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@causes("100 % CPU")
async def test_code_that_swallows_cancellations_is_cancelled_again_and_again(shown, grace):
    swallows = Swallows()
    async with anyio.create_task_group() as tg:
        tg.start_soon(swallows)
        await anyio.wait_all_tasks_blocked()
        tg.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            while swallows.count < 1000:  # once in each iteration of the event loop
                await asyncio.sleep(0)
        swallows.may_end = True
    swallows = Swallows()
    manager = Probe(closing=swallows)
    await manager.start()
    with pytest.raises(StopTimeoutError):
        await manager.stop(0)
    [owner] = [task for task in asyncio.all_tasks() if "owner task of " in task.get_name()]
    count = swallows.count
    for _ in range(1000):
        await asyncio.sleep(0)
    assert swallows.count == count  # it is no longer cancelled
    swallows.may_end = True
    owner.cancel()
    await manager.wait_closed()


@causes("Event loop is closed")
def test_a_connection_is_closed_after_its_event_loop(shown):
    end = "loop = asyncio.new_event_loop(); loop.run_until_complete(main()); loop.close()\n"
    _, errors = run(LEFT_OPEN + end + "loop.run_until_complete(stack.aclose())", exit_code=1)
    assert shown.occurs_in(errors)
    again = """
async def again():
    async with manager:
        print(manager.state.value)
asyncio.run(again())
"""
    managed = LEFT_OPEN_WITH_A_MANAGER.partition("asyncio.run")[0]
    assert run(managed + end + again)[0] == "open\n"


@only_posix
@causes("was still running and was killed")
def test_an_event_loop_is_closed_without_stopping_a_manager(shown):
    managed = LEFT_OPEN_WITH_A_MANAGER.partition("asyncio.run")[0]
    start = "loop = asyncio.new_event_loop(); loop.run_until_complete(main()); "
    _, errors = run(managed + start + "loop.close()")
    assert shown.occurs_in(errors)
    _, errors = run(managed + start + "loop.run_until_complete(manager.stop()); loop.close()")
    assert errors == ""


@causes("never retrieved")
def test_no_task_waits_for_a_start_that_fails(shown):
    program = """
async def main():
    manager = SessionConnectionManager(StdioServerParameters(command="no-such-command"))
    task = asyncio.create_task(manager.start())
    await asyncio.wait([task])
    {}
asyncio.run(main())
"""
    _, errors = run(program.format("pass"))
    assert shown.occurs_in(errors)
    _, errors = run(program.format("await task"), exit_code=1)
    assert not shown.occurs_in(errors)
    assert "FileNotFoundError" in errors


@causes("Task was destroyed")
def test_an_event_loop_is_closed_while_a_task_waits(shown):
    program = """
async def wait():
    await asyncio.Event().wait()
async def main():
    asyncio.create_task(wait())
    await asyncio.sleep(0)
"""
    run_it = "loop = asyncio.new_event_loop(); loop.run_until_complete(main()); loop.close()\n"
    _, errors = run(program + run_it + "del loop; gc.collect()")
    assert shown.occurs_in(errors)
    assert run(program + "asyncio.run(main())") == ("", "")


# Calls


@slow
@causes("Connection closed")
async def test_a_server_exits_during_a_call(shown):
    manager = SessionConnectionManager(TINY)
    session = await manager.start()
    with pytest.raises(ERROR) as caught:
        await session.call_tool("exit", {"code": 3})
    assert shown.occurs_in(caught.value)
    with pytest.raises(ConnectionLostError, match="the server exited with status 3"):
        await manager.wait_closed()
    await manager.start()
    with pytest.raises(ERROR) as caught:
        await manager.current.call_tool("exit", {"code": 4})
    assert "the server exited with status 4" in str(caught.value.__notes__)
    with suppress(ConnectionLostError):
        await manager.wait_closed()


@slow
@causes("timed out")
async def test_a_tool_call_takes_too_long(shown):
    seconds = 0.1 if _sdk.HAS_CLIENT else timedelta(seconds=0.1)
    async with SessionConnectionManager(TINY) as session:
        with pytest.raises(ERROR) as caught:
            await session.call_tool("hang", {}, read_timeout_seconds=seconds)
        assert shown.occurs_in(caught.value)
        await session.list_tools()  # the connection is still open


@slow
@causes("never returns")
async def test_a_tool_call_waits_until_the_server_responds(shown):
    async with SessionConnectionManager(TINY) as session, anyio.create_task_group() as tg:
        tg.start_soon(session.call_tool, "hang", {})
        await session.list_tools()  # the server answered a later request
        await anyio.wait_all_tasks_blocked()
        assert len(tg._tasks if hasattr(tg, "_tasks") else tg._nursery.child_tasks) == 1
        tg.cancel_scope.cancel()


@causes("never returns")
def test_a_tool_call_from_another_event_loop_waits_forever(shown):
    program = """
async def main():
    global manager, session
    manager = SessionConnectionManager(tiny)
    session = await manager.start()
async def use():
    with anyio.move_on_after(0.5) as scope:
        await session.list_tools()
    print(scope.cancelled_caught, flush=True)
    try:
        await manager.connection.list_tools()
    except RuntimeError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(0)
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
asyncio.run(use())
"""
    out, _ = run(program)
    assert out.startswith("True\nWrongEventLoopError: ")


def session_server(answer):
    """Answers the handshake, and other requests with `answer(request)`."""

    async def serve(request):
        if request.method == "DELETE":
            await request.answer()
        elif request.method == "GET":
            await request.answer("405 Method Not Allowed")
        elif request.message["method"] == "initialize":
            await request.answer(body=result_of_initialize(request), mcp_session_id="1")
        elif "id" not in request.message:
            await request.answer("202 Accepted")
        else:
            await answer(request)

    return http_server(serve)


@slow
@causes("Session terminated")
async def test_a_server_does_not_recognize_the_session(shown):
    async def forget(request):
        await request.answer("404 Not Found")

    async with session_server(forget) as url:
        manager = SessionConnectionManager(StreamableHttpConnectionManager(f"{url}/mcp"))
        session = await manager.start()
        with pytest.raises(ERROR) as caught:
            await session.list_tools()
        assert shown.occurs_in(caught.value)
        with pytest.raises(ConnectionLostError):
            await manager.wait_closed()


@slow
@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
@causes("401 Unauthorized")
async def test_a_server_refuses_the_credentials(shown, status):
    async def answer(request):
        await request.answer(status)

    async with http_server(answer) as url:
        with pytest.raises(_sdk.http.HTTPStatusError) as caught:
            await SessionConnectionManager(StreamableHttpConnectionManager(f"{url}/mcp")).start()
        assert shown.occurs_in(caught.value)
        assert status in str(caught.value)


# ownertask's errors


@causes("NotConnectedError")
async def test_no_connection_is_open(shown):
    opening = Stage()
    manager = Probe(opening)
    with pytest.raises(NotConnectedError) as caught:
        _ = manager.connection
    assert shown.occurs_in(caught.value)
    assert "call start() first" in str(caught.value)
    async with anyio.create_task_group() as tg:
        tg.start_soon(manager.start)
        await opening.reached.wait()
        with pytest.raises(NotConnectedError) as caught:
            _ = manager.connection
        opening.let_go.set()
        assert shown.occurs_in(caught.value)
        assert "wait_open() waits for the connection" in str(caught.value)
        await manager.wait_open()
    assert manager.connection
    await manager.stop()


@slow
@causes("the connection was lost")
async def test_a_connection_is_lost(shown):
    manager = SessionConnectionManager(python_server("import sys; sys.exit('no license found')"))
    with pytest.raises(ConnectionLostError) as caught:
        await manager.start()
    assert shown.occurs_in(caught.value)
    assert "no license found" in str(caught.value)


@causes("not connected after")
async def test_a_connection_does_not_open_in_time(shown):
    with pytest.raises(StartTimeoutError) as caught:
        await Probe(Stage()).start(timeout=0)
    assert shown.occurs_in(caught.value)


@causes("could not be stopped")
async def test_a_transport_does_not_end(shown, grace):
    closing = Stage(shield=True)
    manager = Probe(closing=closing)
    await manager.start()
    with pytest.raises(StopTimeoutError) as caught:
        await manager.stop(0)
    assert shown.occurs_in(caught.value)
    assert "probe.py" in str(caught.value)
    closing.let_go.set()
    await manager.wait_closed()


@causes("stop() was called while")
async def test_a_manager_is_stopped_while_it_opens(shown):
    opening = Stage()
    manager = Probe(opening)

    async def start():
        with pytest.raises(ConnectionStoppedError) as caught:
            await manager.start()
        assert shown.occurs_in(caught.value)

    async with anyio.create_task_group() as tg:
        tg.start_soon(start)
        await opening.reached.wait()
        await manager.stop()


@causes("from another event loop")
async def test_a_manager_is_used_in_another_event_loop(shown):
    async with Probe() as _:
        pass
    manager = Probe()
    async with manager:

        async def start():
            await manager.start()

        with pytest.raises(RuntimeError) as caught:
            await anyio.to_thread.run_sync(anyio.run, start)
        assert shown.occurs_in(caught.value)


@causes("ManagerInUseError")
async def test_a_manager_is_already_running(shown):
    manager = Probe()
    async with manager:
        with pytest.raises(ManagerInUseError) as caught:
            await manager.run()
        assert shown.occurs_in(caught.value)
        group = ConnectionGroup({"probe": manager}, strict=True)
        with pytest.raises(ManagerInUseError) as caught:
            await group.start()
        assert shown.occurs_in(caught.value)


@causes("would deadlock")
async def test_a_connection_stops_its_own_manager(shown):
    errors = []

    class StopsItself(ConnectionManager[None]):
        @asynccontextmanager
        async def open_connection(self):
            yield
            try:
                await self.stop()
            except OwnerTaskError as error:
                errors.append(error)

    async with StopsItself():
        pass
    assert shown.occurs_in(errors[0])


def test_each_error_and_symptom_on_the_page_is_caused_by_a_test():
    assert caused == set(HEADINGS)


def test_an_error_text_that_does_not_occur_is_found():
    shown = Shown("`NotConnectedError: …: not connected` or `other`")
    assert shown.occurs_in(NotConnectedError("x", Probe().state))
    assert shown.occurs_in("another")
    assert not shown.occurs_in("NotConnectedError: not connected")
    assert not Shown("The program hangs").occurs_in("The program hangs")
