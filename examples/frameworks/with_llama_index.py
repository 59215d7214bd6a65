"""llama-index-tools-mcp: a tool specification keeps the session that it is given."""

from llama_index.tools.mcp import McpToolSpec
from scenario import Integration, run


class LlamaIndex(Integration):
    async def start(self) -> None:
        await self.manager.start()
        specification = McpToolSpec(client=self.manager.current)
        self.toolkit = await specification.to_tool_list_async()

    async def tools(self) -> list[str]:
        return [tool.metadata.get_name() for tool in self.toolkit]

    async def call(self, tool: str, **arguments: int) -> object:
        (function,) = (found for found in self.toolkit if found.metadata.get_name() == tool)
        output = await function.acall(**arguments)
        return output.raw_output.content


if __name__ == "__main__":
    run(LlamaIndex, "llama-index-tools-mcp")
