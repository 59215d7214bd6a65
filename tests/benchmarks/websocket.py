"""Benchmarks of the WebSocket transport, as ratios from one run. Not a test: run `nox -s benchmark`.

The sides of a ratio are measured in turn, because the speed of a machine drifts. The median of the
ratios is printed. Each server runs in its own process; `websocket.py serve KIND PORT` starts one.
"""

import asyncio
import socket
import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from mcp import StdioServerParameters
from mcp.client.sse import sse_client
from report import Report, parser
from websockets.asyncio.client import connect

from ownertask import ConnectionManager
from ownertask.mcp import (
    SessionConnectionManager,
    WebSocketConnectionManager,
    _sdk,
)

SERVERS = Path(__file__).parents[1] / "mcp" / "servers"
SIZES = {"small": (50, 300), "1 MB": (1_000_000, 15)}


def serve(kind, port):
    sys.path.insert(0, str(SERVERS))
    import websocket

    @websocket.server.tool()
    def text(size: int) -> str:
        """Returns a text of `size` characters."""
        return "x" * size

    if kind == "websocket":
        asyncio.run(websocket.main("websockets", port))
    elif kind == "stdio":
        websocket.server.run()
    else:
        websocket.server.run(kind, port=port)


@contextmanager
def process(*command):
    """Runs the command with a port as its last argument. Yields the port once the process listens."""
    port = free_port()
    arguments = [sys.executable, *map(str, command), str(port)]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                time.sleep(0.05)
            else:
                break
        yield port
        running.kill()


def free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


async def per_round(measures, count, rounds):
    """Returns the median time of each measure, and its ratios to the first measure."""
    for measure in measures:
        await measure(count)
    times = []
    for _ in range(rounds):
        times.append([])
        for measure in measures:
            before = time.perf_counter()
            await measure(count)
            times[-1].append((time.perf_counter() - before) / count)
    columns = list(zip(*times, strict=True))
    return [
        (
            statistics.median(column),
            [a / b for a, b in zip(column, columns[0], strict=True)],
        )
        for column in columns
    ]


async def transports(report, rounds):
    """Compares our streams with the bare library, with and without the JSON work of a transport."""
    with process(SERVERS / "websocket_echo.py") as port:
        url = f"ws://127.0.0.1:{port}/"
        options = {"subprotocols": ["mcp"], "compression": None, "max_size": None, "proxy": None}
        async with AsyncExitStack() as stack:
            bare = await stack.enter_async_context(connect(url, **options))
            read_stream, write_stream = await stack.enter_async_context(
                WebSocketConnectionManager(url, proxy=None, max_message_bytes=None)
            )
            for label, (size, count) in SIZES.items():
                message = _sdk.message_from_json(
                    '{"jsonrpc":"2.0","id":1,"result":{"text":"' + "x" * size + '"}}'
                )
                text = _sdk.message_to_json(message)

                async def as_it_is(count, text=text):
                    for _ in range(count):
                        await bare.send(text)
                        await bare.recv()

                async def with_json(count, message=message):
                    for _ in range(count):
                        await bare.send(_sdk.message_to_json(message))
                        _sdk.message_from_json(await bare.recv())

                async def ours(count, message=message):
                    for _ in range(count):
                        await write_stream.send(message)
                        await read_stream.receive()

                results = await per_round([with_json, as_it_is, ours], count, rounds)
                value, *_ = report.add(f"echo, {label}", "the bare library with JSON", results[2][1])
                micros = ", ".join(f"{seconds * 1e6:.0f}" for seconds, _ in results)
                print(
                    f"echo, {label:<6} {value:5.2f} times the bare library with JSON, "
                    f"{results[2][0] / results[1][0]:5.2f} times without   (us: {micros})"
                )


async def sessions(report, rounds):
    """Compares calls through a session over each transport."""
    stdio = StdioServerParameters(command=sys.executable, args=[__file__, "serve", "stdio", "0"])
    async with AsyncExitStack() as stack:
        ports = {
            kind: stack.enter_context(process(__file__, "serve", kind))
            for kind in ("websocket", "sse", "streamable-http")
        }
        sse_url = f"http://127.0.0.1:{ports['sse']}/sse"
        http_url = f"http://127.0.0.1:{ports['streamable-http']}/mcp"
        managers = {
            "websocket": WebSocketConnectionManager(f"ws://127.0.0.1:{ports['websocket']}/", proxy=None),
            "stdio": stdio,
            "sse": ConnectionManager.from_factory(lambda: sse_client(sse_url)),
            "streamable HTTP": http_url,
        }
        opened = {
            kind: await stack.enter_async_context(SessionConnectionManager(manager))
            for kind, manager in managers.items()
        }
        # A result contains its text twice, and a server-sent event of more than 1 MB is refused.
        for label, size, count in (("small", 50, 100), ("400 kB", 400_000, 5)):
            measures = [caller(session, size) for session in opened.values()]
            results = await per_round(measures, count, rounds)
            for kind, (seconds, ratios) in zip(opened, results, strict=True):
                ratio, *_ = report.add(f"call, {label}, {kind}", "a WebSocket", ratios)
                print(
                    f"call, {label:<6} {kind:<16} {ratio:5.2f} times a WebSocket's time"
                    f"   ({1 / seconds:.0f} calls/s, {size / seconds / 1e6:.1f} MB/s)"
                )


def caller(session, size):
    async def measure(count):
        for _ in range(count):
            await session.call_tool("text", {"size": size})

    return measure


async def main(report):
    await transports(report, 20)
    await sessions(report, 10)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        options = parser(__doc__).parse_args()
        report = Report("websocket")
        asyncio.run(main(report))
        report.save(options.json)
