"""semantic-kernel: a plugin keeps the session that it is given. It requires mcp 1.x."""

from scenario import Integration, run
from semantic_kernel import Kernel
from semantic_kernel.connectors.mcp import MCPPluginBase


class McpPlugin(MCPPluginBase):
    """Adds nothing: the base class lacks only a transport, and the manager opens the transport."""


class SemanticKernel(Integration):
    async def start(self) -> None:
        await self.manager.start()
        self.plugin = McpPlugin("examples", session=self.manager.current, load_prompts=False)
        await self.plugin.connect()

    async def stop(self) -> None:
        await self.plugin.close()
        await self.manager.stop()

    async def tools(self) -> list[str]:
        self.kernel = Kernel()
        return list(self.kernel.add_plugin(self.plugin, "examples").functions)

    async def call(self, tool: str, **arguments: int) -> object:
        result = await self.kernel.invoke(plugin_name="examples", function_name=tool, **arguments)
        return result.value


if __name__ == "__main__":
    run(SemanticKernel, "semantic-kernel")
