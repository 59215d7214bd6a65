"""autogen-ext: its tools keep the session that they are given. It requires mcp 1.x."""

from autogen_core import CancellationToken
from autogen_ext.tools.mcp import StdioServerParams, mcp_server_tools
from scenario import Integration, run


class AutoGen(Integration):
    async def start(self) -> None:
        await self.manager.start()
        unused = StdioServerParams(command="unused")  # autogen requires parameters, even with a session
        self.toolkit = await mcp_server_tools(unused, session=self.manager.current)

    async def tools(self) -> list[str]:
        return [tool.name for tool in self.toolkit]

    async def call(self, tool: str, **arguments: int) -> object:
        (adapter,) = (found for found in self.toolkit if found.name == tool)
        return await adapter.run_json(arguments, CancellationToken())


if __name__ == "__main__":
    run(AutoGen, "autogen-ext")
