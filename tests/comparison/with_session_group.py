"""The SDK's `ClientSessionGroup`: one group, whose servers are connected and disconnected by methods."""

import os
from datetime import timedelta
from importlib.metadata import version

from behaviors import Peer
from mcp import ClientSessionGroup, StdioServerParameters
from mcp.client.session_group import ClientSessionParameters, StreamableHttpParameters
from running import run

MAJOR = int(version("mcp").partition(".")[0])
GROUP = ClientSessionGroup(component_name_hook=lambda name, info: os.urandom(4).hex() + name)


class SessionGroup(Peer):
    packages = ("mcp",)
    loggers = ("mcp", "root")  # it also uses the root logger
    not_offered = frozenset({"lost"})

    def __init__(self, target, *, start_timeout=None, reconnect=False):
        if target.url:
            self.target = StreamableHttpParameters(url=target.url, headers=target.headers)
        else:
            self.target = StdioServerParameters(
                command=target.command, args=list(target.args), env=target.env
            )
        timeout = start_timeout
        if MAJOR == 1 and start_timeout is not None:
            timeout = timedelta(seconds=start_timeout)
        self.parameters = ClientSessionParameters(read_timeout_seconds=timeout)
        self.session = None

    async def open(self):
        self.session = await GROUP.connect_to_server(self.target, self.parameters)

    async def call(self, tool):
        return (await self.session.call_tool(tool, {})).content[0].text

    async def close(self):
        if self.session is not None:  # the group has no method to close what it did not open
            await GROUP.disconnect_from_server(self.session)

    def objects(self):
        return [GROUP]


if __name__ == "__main__":
    run(f"ClientSessionGroup, mcp {MAJOR}.x", SessionGroup)
