"""Counts lost connections and reconnects with prometheus_client.

Usage: python metrics.py [asyncio|trio]
The example kills its own server twice. It requires the package prometheus_client.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import anyio
from mcp import StdioServerParameters
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from ownertask import ConnectionLostError, ConnectionManager, ConnectionState, ReconnectPolicy
from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
policy = ReconnectPolicy(initial_delay=0.1)
manager = SessionConnectionManager(server, name="calculator", reconnect=policy)


class ConnectionMetrics:
    """Counts what happens to the connections of any number of managers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["manager"]
        self.open = Gauge("connection_open", "1 if it is open", labels, registry=registry)
        self.losses = Counter("connection_losses", "Lost connections", labels, registry=registry)
        self.failures = Counter("connection_failures", "Failed attempts", labels, registry=registry)
        self.reconnects = Counter("connection_reconnects", "Reconnects", labels, registry=registry)
        self._opened: set[str] = set()
        self._reopening: set[str] = set()

    def add(self, manager: ConnectionManager[object]) -> None:
        manager.add_listener(self.changed)

    def changed(
        self, manager: ConnectionManager[object], old: ConnectionState, new: ConnectionState
    ) -> None:
        name, reconnecting = manager.name, manager.reconnecting
        self.open.labels(name).set(new is ConnectionState.OPEN)
        if new is ConnectionState.OPENING:
            self._opened.discard(name)
            (self._reopening.discard if reconnecting is None else self._reopening.add)(name)
        elif new is ConnectionState.OPEN:
            self._opened.add(name)
            if name in self._reopening:
                self.reconnects.labels(name).inc()
        elif new is ConnectionState.FAILED:
            # If another attempt follows, the manager has moved on from this failure.
            error = manager.exception if reconnecting is None else reconnecting.exception
            if name not in self._opened:
                self.failures.labels(name).inc()
            elif isinstance(error, ConnectionLostError):  # not an error while closing
                self.losses.labels(name).inc()


async def kill_server() -> None:
    session = await manager.wait_open()
    [content] = (await session.call_tool("process_id", {})).content
    assert content.type == "text"
    os.kill(int(content.text), signal.SIGTERM)
    with suppress(Exception):
        await session.send_ping()  # fails when the loss is detected


async def main() -> None:
    registry = CollectorRegistry()
    ConnectionMetrics(registry).add(manager)
    async with manager:
        await kill_server()
        await kill_server()
        await manager.wait_open()
    for line in generate_latest(registry).decode().splitlines():
        if "_created" not in line:  # a time stamp
            print(line)


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
