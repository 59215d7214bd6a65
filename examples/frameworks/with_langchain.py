"""langchain-mcp-adapters: its tools keep the session that they are given."""

from langchain_mcp_adapters.tools import load_mcp_tools
from scenario import Integration, run


class LangChain(Integration):
    async def start(self) -> None:
        await self.manager.start()
        self.toolkit = {tool.name: tool for tool in await load_mcp_tools(self.manager.current)}

    async def tools(self) -> list[str]:
        return list(self.toolkit)

    async def call(self, tool: str, **arguments: int) -> object:
        [content] = await self.toolkit[tool].ainvoke(arguments)
        return content["text"]


if __name__ == "__main__":
    run(LangChain, "langchain-mcp-adapters")
