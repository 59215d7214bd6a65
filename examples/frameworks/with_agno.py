"""agno: a toolkit keeps the session that it is given."""

from agno.tools.function import FunctionCall
from agno.tools.mcp import MCPTools
from scenario import Integration, run


class Agno(Integration):
    async def start(self) -> None:
        await self.manager.start()
        self.toolkit = MCPTools(session=self.manager.current)
        await self.toolkit.build_tools()

    async def tools(self) -> list[str]:
        return list(self.toolkit.functions)

    async def call(self, tool: str, **arguments: int) -> object:
        call = FunctionCall(function=self.toolkit.functions[tool], arguments=arguments)
        result = await call.aexecute()
        assert result.status == "success", result
        return result.result.content


if __name__ == "__main__":
    run(Agno, "agno")
