"""Compares calls over stdio with calls on the bare SDK: the time, and the CPU time of the client.

Run as a program, `stdio.py asyncio` or `stdio.py trio` shows where the time of the calls goes.
"""

import cProfile
import pstats
import sys
import time
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path

import anyio
from mcp import ClientSession, StdioServerParameters, stdio_client
from mcp.types import CallToolRequest, CallToolRequestParams, CallToolResult

from ownertask.mcp import SessionConnectionManager

SMALL, LARGE = 50, 1_000_000
# The sizes of the request's and the answer's text, the number of calls in one measurement, and the goal.
CALLS = {
    "small": (SMALL, SMALL, 300, 0.90),
    "1 MB received": (SMALL, LARGE, 15, 0.85),
    "1 MB sent": (LARGE, SMALL, 15, 0.85),
}
SERVER = str(Path(__file__).with_name("fast_server.py"))


def server(answer_size=SMALL, seconds=0):
    command = ["-I", "-S", SERVER, str(answer_size), str(seconds)]
    return StdioServerParameters(command=sys.executable, args=command)


@asynccontextmanager
async def bare_session(parameters):
    async with stdio_client(parameters) as streams, ClientSession(*streams) as session:
        await session.initialize()
        yield session


async def cost_of_calls(session, request_size, count, profiler=None):
    """Returns the time and the CPU time of this process for one call."""
    params = CallToolRequestParams(name="text", arguments={"text": "x" * request_size})

    async def call():  # unlike call_tool(), this never requests the list of tools
        await session.send_request(CallToolRequest(params=params), CallToolResult)

    for _ in range(3):
        await call()
    with profiler or nullcontext():
        before = time.perf_counter(), time.process_time()
        for _ in range(count):
            await call()
        after = time.perf_counter(), time.process_time()
    return [(end - start) / count for start, end in zip(before, after, strict=True)]


async def over_stdio(open_session, request_size, answer_size, count, profiler=None):
    """Returns the cost of a call to a new server, because the speed of servers varies, too."""
    async with open_session(server(answer_size)) as session:
        return await cost_of_calls(session, request_size, count, profiler)


def add_costs(report, label, pairs, goal):
    """Adds the ratios of the times and of the CPU times."""
    for index, name in enumerate((label, f"{label}, CPU of the client")):
        ratios = [ours[index] / bare[index] for ours, bare in pairs]
        report.add(name, "the bare SDK", ratios, None if index else goal)


async def compare(report):
    for label, (*sizes, goal) in CALLS.items():
        ours = partial(over_stdio, SessionConnectionManager, *sizes)
        pairs = await report.pairs(ours, partial(over_stdio, bare_session, *sizes), 40)
        add_costs(report, f"a call, {label}", pairs, goal)


def measure(report):
    anyio.run(compare, report, backend=report.backend)


async def profile():
    for label, (*sizes, _) in CALLS.items():
        for side in (SessionConnectionManager, bare_session):
            profiler = cProfile.Profile()
            await over_stdio(side, *sizes, profiler)
            print(f"\n{label}, {side.__name__}")
            pstats.Stats(profiler).sort_stats("tottime").print_stats(12)


if __name__ == "__main__":
    anyio.run(profile, backend=sys.argv[1])
