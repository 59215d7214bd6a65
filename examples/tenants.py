"""A web application with an MCP session for each tenant, and at most four sessions at a time.

Usage: uvicorn tenants:app
"""

import logging
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from mcp import ClientSession, StdioServerParameters
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ownertask import ConnectionPool
from ownertask.mcp import SessionConnectionManager

SERVER = str(Path(__file__).with_name("server.py"))
api_keys = {f"tenant-{number}": f"key of tenant {number}" for number in range(1, 13)}
logger = logging.getLogger("tenants")


def open_session(tenant: str) -> SessionConnectionManager:
    """Creates a manager. The pool calls this function each time it opens a session."""
    env = {"API_KEY": api_keys[tenant]}
    server = StdioServerParameters(command=sys.executable, args=[SERVER], env=env)
    return SessionConnectionManager(server, name=f"session of {tenant}")


pool = ConnectionPool[str, ClientSession](open_session, max_open=4, idle_timeout=60)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncGenerator[None]:
    async with pool:
        yield


async def add(request: Request) -> JSONResponse:
    tenant: str = request.path_params["tenant"]
    if tenant not in api_keys:
        return JSONResponse({"error": "unknown tenant"}, status_code=404)
    try:
        async with pool.acquire(tenant, timeout=30) as session:
            result = await session.call_tool("add", {"a": 1, "b": 2})
    except Exception:
        logger.exception("%s: the call failed", tenant)
        return JSONResponse({"error": "try again later"}, status_code=503)
    return JSONResponse([content.model_dump()["text"] for content in result.content])


async def change_key(request: Request) -> JSONResponse:
    tenant: str = request.path_params["tenant"]
    api_keys[tenant] = (await request.body()).decode()
    await pool.discard(tenant)  # the next request opens a session with the new key
    return JSONResponse(None)


routes = [Route("/{tenant}/add", add), Route("/{tenant}/key", change_key, methods=["PUT"])]
app = Starlette(routes=routes, lifespan=lifespan)
