"""Creates a manager for each server in a configuration file, and uses one of them.

Usage: python examples/config_file.py [asyncio|trio]
"""

import os
import sys
from pathlib import Path

import anyio

# --8<-- [start:config_file]
from ownertask import ReconnectPolicy
from ownertask.mcp import managers_from_config

folder = Path(__file__).parent
managers = managers_from_config(
    folder / "config_file.json",
    environment={**os.environ, "EXAMPLES": str(folder), "PYTHON": sys.executable},
    reconnect=ReconnectPolicy(),
)


async def main() -> None:
    async with managers["calculator"] as session:
        result = await session.call_tool("add", {"a": 1, "b": 2})
        print(result.content)


# --8<-- [end:config_file]

if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
