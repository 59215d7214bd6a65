"""Reports how a server exited, and changes how a server is ended.

Usage: python server_processes.py [asyncio|trio]
"""

import sys
from pathlib import Path

import anyio
from mcp import StdioServerParameters

from ownertask import ConnectionLostError
from ownertask.mcp import ServerExitedError, SessionConnectionManager, StdioConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
PROGRAM = "import sys; print('no license found', file=sys.stderr); sys.exit(3)"
unlicensed_server = StdioServerParameters(command=sys.executable, args=["-c", PROGRAM])


async def report_exit() -> None:
    try:
        await SessionConnectionManager(unlicensed_server).start()
    except ConnectionLostError as error:
        exited = error.__cause__
        if not isinstance(exited, ServerExitedError):
            raise  # the server is still running, but closed its stdout, for example
        print(exited)
        print("returncode:", exited.returncode)
        print("stderr_tail:", repr(exited.stderr_tail))


async def change_limits() -> None:
    transport = StdioConnectionManager(
        server,
        exit_timeout=10,  # how long the server may take to exit on its own
        keep_children=True,  # after that, its child processes may continue to run
    )
    async with SessionConnectionManager(transport):
        print("the server has a pid:", transport.pid is not None)
    print("returncode:", transport.returncode)


async def main() -> None:
    await report_exit()
    await change_limits()


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
