"""Connects to all servers in a configuration file, and lists their tools.

Usage: python several_servers.py [claude_desktop_config.json]
"""

import asyncio
import os
import sys
from pathlib import Path

from ownertask import ConnectionGroup, ReconnectPolicy
from ownertask.mcp import managers_from_config

FOLDER = Path(__file__).parent

managers = managers_from_config(
    sys.argv[1] if len(sys.argv) > 1 else FOLDER / "several_servers.json",
    environment={**os.environ, "FOLDER": str(FOLDER), "PYTHON": sys.executable},  # for ${...}
    reconnect=ReconnectPolicy(),  # restarts servers that die
)
group = ConnectionGroup(managers, member_timeout=10)  # seconds to wait for each server


async def main() -> None:
    async with group as sessions:  # name -> session of each server that is open
        for name, session in list(sessions.items()):
            tools = (await session.list_tools()).tools
            print(f"{name}: {', '.join(tool.name for tool in tools)}")
        for name, error in group.failures.items():
            print(f"{name} is not open: {error}")


if __name__ == "__main__":
    asyncio.run(main())
