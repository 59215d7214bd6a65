"""ownertask: a manager. The application uses `manager.current`."""

from behaviors import Peer
from mcp import StdioServerParameters
from running import run

from ownertask import ConnectionLostError, ReconnectPolicy
from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager


class OwnerTask(Peer):
    packages = ("ownertask", "mcp")
    loggers = ("ownertask",)

    def __init__(self, target, *, start_timeout=60.0, reconnect=False):
        if target.url:
            transport = StreamableHttpConnectionManager(target.url, target.headers)
        else:
            transport = StdioServerParameters(
                command=target.command, args=list(target.args), env=target.env
            )
        policy = ReconnectPolicy() if reconnect else None
        self.manager = SessionConnectionManager(transport, start_timeout=start_timeout, reconnect=policy)

    async def open(self):
        await self.manager.start()

    async def call(self, tool):
        return (await self.manager.current.call_tool(tool, {})).content[0].text

    async def close(self):
        await self.manager.stop()

    async def lost(self):
        try:
            await self.manager.wait_closed()
        except ConnectionLostError:
            pass

    def objects(self):
        return [self.manager]


if __name__ == "__main__":
    run("ownertask", OwnerTask)
