"""A FastAPI application with several MCP servers. One of them is down.

Usage: uvicorn fastapi_servers:app
"""

import logging
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException
from mcp import ClientSession, StdioServerParameters

from ownertask import ConnectionGroup
from ownertask.mcp import SessionConnectionManager

logger = logging.getLogger("uvicorn.error")
server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
managers = {
    "calculator": SessionConnectionManager(server, name="calculator"),
    "search": SessionConnectionManager("http://127.0.0.1:9/mcp", name="search"),  # nothing listens there
}
group = ConnectionGroup(managers, member_timeout=10)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    async with group:
        for name, error in group.failures.items():  # the application runs without these servers
            logger.warning("%s is down: %s", name, error)
        yield


app = FastAPI(lifespan=lifespan)


async def get_session(name: str) -> ClientSession:
    if name not in managers:
        raise HTTPException(404)
    try:
        return await managers[name].start(timeout=10)  # opens the connection if necessary
    except Exception as error:
        logger.warning("%s is down: %s", name, error)
        raise HTTPException(503, f"{name} is down") from error


@app.get("/servers/{name}/tools")
async def tools(session: Annotated[ClientSession, Depends(get_session)]) -> list[str]:
    return [tool.name for tool in (await session.list_tools()).tools]


@app.get("/health")
async def health() -> dict[str, str]:
    return {name: manager.state.value for name, manager in managers.items()}


async def add_in_background(a: int, b: int) -> None:
    session = await managers["calculator"].start(timeout=10)
    result = await session.call_tool("add", {"a": a, "b": b})
    logger.info("the background task got %s", result.content)


@app.post("/jobs", status_code=202)
async def create_job(background_tasks: BackgroundTasks) -> None:
    background_tasks.add_task(add_in_background, 1, 2)  # runs after the response
