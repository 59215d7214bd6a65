"""A trio program that Ctrl-C can end at any time, together with its server.

Usage: python ctrl_c_on_trio.py
"""

import sys
from pathlib import Path

import anyio
from mcp import StdioServerParameters

from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])


async def main() -> None:
    async with SessionConnectionManager(server):
        print("press Ctrl-C", flush=True)
        await anyio.sleep_forever()


if __name__ == "__main__":
    options = {"restrict_keyboard_interrupt_to_checkpoints": True}
    anyio.run(main, backend="trio", backend_options=options)
