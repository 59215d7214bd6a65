"""Compares calls over streamable HTTP with calls on the bare SDK, to the same server."""

import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import anyio
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from stdio import SMALL, add_costs, cost_of_calls

from ownertask.mcp import SessionConnectionManager


@contextmanager
def server_process(file):
    """Runs a server that prints its port. Yields the port."""
    command = [sys.executable, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@asynccontextmanager
async def bare_session(url):
    async with streamable_http_client(url) as (read, write, *_), ClientSession(read, write) as session:
        await session.initialize()
        yield session


async def compare(report, url):
    async with SessionConnectionManager(url) as ours, bare_session(url) as bare:
        sides = (partial(cost_of_calls, session, SMALL, 50) for session in (ours, bare))
        pairs = await report.pairs(*sides, 60)
    add_costs(report, "a call, streamable HTTP", pairs, 1.02)


def measure(report):
    with server_process(Path(__file__).with_name("http_server.py")) as port:
        anyio.run(compare, report, f"http://127.0.0.1:{port}/mcp", backend=report.backend)
