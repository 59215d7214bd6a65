"""Tests a FastAPI application with its MCP server, and with a fake session.

Usage: pytest fastapi_test.py
"""

from fastapi.testclient import TestClient
from fastapi_app import app, get_session
from mcp.types import CallToolResult, TextContent


def test_with_the_server() -> None:
    with TestClient(app) as client:  # the block runs the lifespan handler
        assert client.get("/add", params={"a": 1, "b": 2}).json() == "3"


class FakeSession:
    async def call_tool(self, name: str, arguments: dict[str, int]) -> CallToolResult:
        return CallToolResult(content=[TextContent(type="text", text="fake")])


def test_with_a_fake_session() -> None:
    app.dependency_overrides[get_session] = FakeSession
    try:
        client = TestClient(app)  # no block, so no server is started
        assert client.get("/add", params={"a": 1, "b": 2}).json() == "fake"
    finally:
        app.dependency_overrides.clear()
