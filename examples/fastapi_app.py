"""A FastAPI application that calls an MCP server.

Usage: uvicorn fastapi_app:app
"""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI
from mcp import ClientSession, StdioServerParameters

from ownertask.mcp import SessionConnectionManager

# Your server: its command, or the URL of its MCP endpoint, as in SessionConnectionManager("https://...")
server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
manager = SessionConnectionManager(server)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    await manager.start(timeout=30)
    yield
    await manager.stop()


async def get_session() -> ClientSession:
    return await manager.start(timeout=10)  # returns the open session, or opens a new one after a loss


app = FastAPI(lifespan=lifespan)


@app.get("/add")
async def add(a: int, b: int, session: Annotated[ClientSession, Depends(get_session)]) -> str:
    result = await session.call_tool("add", {"a": a, "b": b})
    return "".join(content.text for content in result.content if content.type == "text")
