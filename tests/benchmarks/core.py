"""Benchmarks of the overhead of a manager, as ratios from one run. Not a test: run `nox -s benchmark`.

The two sides of a ratio are measured in turn, because the speed of a machine drifts. The median of the
ratios is printed.
"""

import asyncio
import statistics
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from mcp import Client, StdioServerParameters
from report import Report, parser

from ownertask import ConnectionManager
from ownertask.mcp import ClientConnectionManager
from ownertask.mcp.streams import watched


@asynccontextmanager
async def trivial():
    yield 1


class HandWritten:
    """A minimal owner task with two futures and no safety measures."""

    async def start(self):
        loop = asyncio.get_running_loop()
        self.ready = loop.create_future()
        self.wish_to_stop = loop.create_future()
        self.task = loop.create_task(self.own())
        return await self.ready

    async def own(self):
        try:
            async with trivial() as connection:
                self.ready.set_result(connection)
                await self.wish_to_stop
        except BaseException as error:
            if self.ready.done():
                raise
            self.ready.set_exception(error)

    async def stop(self):
        self.wish_to_stop.set_result(None)
        await self.task


async def cycles(manager, count):
    before = time.perf_counter()
    for _ in range(count):
        await manager.start()
        await manager.stop()
    return (time.perf_counter() - before) / count


async def calls(client, count):
    before = time.perf_counter()
    for _ in range(count):
        await client.call_tool("add", {"a": 1, "b": 2})
    return (time.perf_counter() - before) / count


async def messages(wrap, count):
    sender, receiver = anyio.create_memory_object_stream(0)
    reader, _ = wrap((receiver, None))

    async def send():
        with sender:
            for number in range(count):
                await sender.send(number)

    before = time.perf_counter()
    async with anyio.create_task_group() as tg, reader:
        tg.start_soon(send)
        async for _ in reader:
            getattr(reader, "last_context", None)  # the SDK does this for each message
    return (time.perf_counter() - before) / count


async def ratios(measure, ours, bare, count, rounds):
    await measure(ours, count), await measure(bare, count)
    pairs = [(await measure(ours, count), await measure(bare, count)) for _ in range(rounds)]
    micros = [statistics.median(values) * 1e6 for values in zip(*pairs, strict=True)]
    return [a / b for a, b in pairs], micros


def import_time(module):
    before = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - before


async def main(report):
    manager = ConnectionManager.from_factory(trivial)
    values, (ours, bare) = await ratios(cycles, manager, HandWritten(), 200, 100)
    value, *_ = report.add("start and stop", "a hand-written task", values)
    print(f"start and stop     {value:5.2f} times a hand-written task   ({ours:.0f} and {bare:.0f} us)")

    def ours(streams):
        return watched(streams, lambda: None)

    values, (ours, bare) = await ratios(messages, ours, lambda streams: streams, 1000, 60)
    value, *_ = report.add("a message", "the bare stream", values)
    print(f"a message          {value:5.2f} times the bare stream       ({ours:.1f} and {bare:.1f} us)")

    server = Path(__file__).parents[2] / "examples" / "server.py"
    parameters = StdioServerParameters(command=sys.executable, args=[str(server)])
    async with Client(parameters) as bare_client, ClientConnectionManager(parameters) as client:
        values, (ours, bare) = await ratios(calls, client, bare_client, 100, 40)
    value, *_ = report.add("a call", "a bare Client", values)
    print(f"a call             {value:5.2f} times a bare Client         ({ours:.0f} and {bare:.0f} us)")


if __name__ == "__main__":
    options = parser(__doc__).parse_args()
    report = Report("core")
    asyncio.run(main(report))
    for name in ("anyio", "ownertask"):
        import_time(name)
    pairs = [(import_time("ownertask"), import_time("anyio")) for _ in range(21)]
    value, *_ = report.add("import ownertask", "import anyio", [a / b for a, b in pairs])
    print(f"import ownertask   {value:5.2f} times import anyio")
    report.save(options.json)
