"""Runs all servers of `http_failures.py` in one process, and prints their URLs as JSON.

In the process of the command, their open sockets would count as left behind. The process ends when its
stdin is closed.
"""

import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parents[2]))

from http_failures import CASES


async def main():
    async with AsyncExitStack() as stack:
        urls = {
            transport: {
                case: await stack.enter_async_context(serve(answer))
                for case, (serve, answer) in cases.items()
            }
            for transport, cases in CASES.items()
        }
        print(json.dumps(urls), flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)
        sys.exit()


anyio.run(main)
