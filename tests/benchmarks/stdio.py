"""Benchmarks of the stdio transport, as ratios from one run. Not a test: run `nox -s benchmark`.

Compares the managers with the SDK's `stdio_client`, which a single task enters and exits. Both sides run
the same server, which does almost nothing, so that the client's time dominates. The speed of a machine
drifts, so the two sides of a ratio are measured right after each other, and the order alternates. Each
line shows the median of the ratios and, in parentheses, the range of the middle half and both times.

`stdio.py --pairs 2 --backend asyncio` is a quick trial. `--profile` shows where the time of the calls
goes, instead of the ratios.
"""

import cProfile
import os
import pstats
import statistics
import sys
import time
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from importlib.metadata import version

import anyio
from mcp import ClientSession, StdioServerParameters, stdio_client
from mcp.types import CallToolRequest, CallToolRequestParams, CallToolResult
from report import Report, parser

from ownertask.mcp import SessionConnectionManager, StdioConnectionManager

# The argument is the size of each answer. The server does not parse messages. It treats each line with
# an id as a request, and the first request as `initialize`. Depending on its version, the SDK writes the
# id before or after the parameters.
SERVER = """
import os, sys

answer = b'{"content":[{"type":"text","text":"%s"}]}' % (b"x" * int(sys.argv[1]))
result = (
    b'{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},'
    b'"serverInfo":{"name":"fast","version":"1"}}'
)
with os.fdopen(0, "rb", buffering=1 << 20) as requests, os.fdopen(1, "wb", buffering=0) as answers:
    for line in requests:
        start = line.find(b'"id":') + 5
        if start < 5:
            continue
        digits = line[start : start + 20].replace(b"}", b",").partition(b",")[0]
        rest = memoryview(b'{"jsonrpc":"2.0","id":%s,"result":%s}\\n' % (digits, result))
        while rest:
            rest = rest[answers.write(rest) :]
        result = answer
"""

SMALL, LARGE = 50, 1_000_000
# The sizes of the request's and the answer's text, and the number of calls in one measurement.
CALLS = {
    "small": (SMALL, SMALL, 300),
    "1 MB received": (SMALL, LARGE, 15),
    "1 MB sent": (LARGE, SMALL, 15),
}
TEN = 10


def server(answer_size=SMALL):
    return StdioServerParameters(
        command=sys.executable, args=["-I", "-S", "-c", SERVER, str(answer_size)]
    )


@asynccontextmanager
async def bare_session(parameters):
    async with stdio_client(parameters) as streams, ClientSession(*streams) as session:
        await session.initialize()
        yield session


def managed_session(parameters):
    return SessionConnectionManager(parameters)


async def calls(open_session, request_size, answer_size, count, profiler=None):
    """Calls a tool. Each measurement has a new server, because the speed of a process varies, too."""
    params = CallToolRequestParams(name="tool", arguments={"text": "x" * request_size})

    async def call():  # unlike call_tool(), this never requests the list of tools
        await session.send_request(CallToolRequest(params=params), CallToolResult)

    async with open_session(server(answer_size)) as session:
        for _ in range(3):
            await call()
        with profiler or nullcontext():
            before = time.perf_counter()
            for _ in range(count):
                await call()
            return (time.perf_counter() - before) / count


async def managed_cycles(number, count, *, with_stop=True):
    """Starts a number of servers at once, then stops them. Returns the mean seconds for one such cycle.

    `start()` does not wait until Python runs in the server, but `stop()` waits until the server exits.
    If there are more servers than cores, the first servers compete with the starts of the others.
    """
    seconds = 0.0
    for _ in range(count):
        managers = [StdioConnectionManager(server()) for _ in range(number)]
        before = time.perf_counter()
        async with anyio.create_task_group() as tg:
            for manager in managers:
                tg.start_soon(manager.start)
        started = time.perf_counter()
        async with anyio.create_task_group() as tg:
            for manager in managers:
                tg.start_soon(manager.stop)
        seconds += (time.perf_counter() if with_stop else started) - before
    return seconds / count


async def bare_cycles(number, count, *, with_stop=True):
    """Does the same with the SDK, with a task for each server."""

    async def run(all_open):
        nonlocal unopened, started
        async with stdio_client(server()):
            unopened -= 1
            if not unopened:
                started = time.perf_counter()
                all_open.set()
            await all_open.wait()

    seconds = started = 0.0
    for _ in range(count):
        unopened = number
        all_open = anyio.Event()
        before = time.perf_counter()
        async with anyio.create_task_group() as tg:
            for _ in range(number):
                tg.start_soon(run, all_open)
        seconds += (time.perf_counter() if with_stop else started) - before
    return seconds / count


async def managed_cycle(count):
    """Starts and stops one manager, again and again."""
    manager = StdioConnectionManager(server())
    before = time.perf_counter()
    for _ in range(count):
        await manager.start()
        await manager.stop()
    return (time.perf_counter() - before) / count


async def bare_cycle(count):
    before = time.perf_counter()
    for _ in range(count):
        async with stdio_client(server()):
            pass
    return (time.perf_counter() - before) / count


async def compare(report, label, above, below, count, pairs, to="the bare SDK"):
    """Prints the ratio of the times that two functions return."""
    await above(count), await below(count)
    times = []
    for number in range(pairs):
        if number % 2:
            b, a = await below(count), await above(count)
        else:
            a, b = await above(count), await below(count)
        times.append((a, b))
    median, low, high = report(label, to, [a / b for a, b in times])
    a, b = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    print(
        f"{label:<23} {median:5.2f} times {to:<14} ({low:.2f} to {high:.2f}; {a:.2f} and {b:.2f} ms)",
        flush=True,
    )


async def ratios(report, pairs):
    for label, (*sizes, count) in CALLS.items():

        async def managed(count, sizes=sizes):
            return await calls(managed_session, *sizes, count)

        async def bare(count, sizes=sizes):
            return await calls(bare_session, *sizes, count)

        await compare(report, f"a call, {label}", managed, bare, count, pairs)
    await compare(report, "start and stop", managed_cycle, bare_cycle, 5, pairs)
    for label, with_stop in (("start", False), ("both", True)):
        ten = partial(managed_cycles, TEN, with_stop=with_stop)
        one = partial(managed_cycles, 1, with_stop=with_stop)
        bare_ten = partial(bare_cycles, TEN, with_stop=with_stop)
        await compare(report, f"ten at once, {label}", ten, one, 2, pairs, to="one")
        await compare(report, f"ten at once, {label}", ten, bare_ten, 2, pairs, to="ten, bare SDK")


async def profile():
    for label, (*sizes, count) in CALLS.items():
        for side in (managed_session, bare_session):
            profiler = cProfile.Profile()
            await calls(side, *sizes, count, profiler)
            print(f"\n{label}, {side.__name__}")
            pstats.Stats(profiler).sort_stats("tottime").print_stats(12)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument(
        "--pairs", type=int, default=20, help="measurements of each side (default: 20)"
    )
    arguments.add_argument("--backend", choices=("asyncio", "trio"), help="(default: both)")
    arguments.add_argument("--profile", action="store_true", help="profile the calls instead")
    options = arguments.parse_args()
    if options.pairs < 1:
        arguments.error("--pairs must be at least 1")
    report = Report("stdio")
    for backend in (options.backend,) if options.backend else ("asyncio", "trio"):
        print(f"mcp {version('mcp')}, {backend}, {os.cpu_count()} cores", flush=True)
        if options.profile:
            anyio.run(profile, backend=backend)
        else:
            anyio.run(ratios, partial(report.add, backend=backend), options.pairs, backend=backend)
    report.save(options.json)
