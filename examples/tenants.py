"""A web application that opens an MCP session for each tenant, with at most four sessions at a time.

Usage: python examples/tenants.py
The example starts a server and the application, and sends 240 requests to the application at once.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvicorn
from http_server import running_uvicorn
from mcp import ClientSession
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ownertask import ConnectionManager, ConnectionPool, ConnectionState
from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager

if TYPE_CHECKING:
    import httpx2 as httpx
else:
    try:
        import httpx2 as httpx
    except ImportError:
        import httpx

TENANTS = [f"tenant {number}" for number in range(1, 13)]


class OpenSessions:
    """Counts the sessions that are not closed, as a listener of their managers."""

    def __init__(self) -> None:
        self._managers = set[ConnectionManager[object]]()
        self.most = 0

    def changed(
        self, manager: ConnectionManager[object], old: ConnectionState, new: ConnectionState
    ) -> None:
        if new in {ConnectionState.CLOSED, ConnectionState.FAILED}:
            self._managers.discard(manager)
        else:
            self._managers.add(manager)
        self.most = max(self.most, len(self._managers))


open_sessions = OpenSessions()


# --8<-- [start:app]
def create_app(urls: dict[str, str], keys: dict[str, str]) -> Starlette:
    def open_session(tenant: str) -> SessionConnectionManager:
        """Creates the manager; the pool calls this each time it opens a session."""
        headers = {"X-API-Key": keys[tenant]}
        transport = StreamableHttpConnectionManager(urls[tenant], headers=headers)
        manager = SessionConnectionManager(transport, name=f"session of {tenant}")
        manager.add_listener(open_sessions.changed)
        return manager

    pool = ConnectionPool[str, ClientSession](open_session, max_open=4, idle_timeout=60)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with pool:
            yield

    async def get_account(request: Request) -> JSONResponse:
        tenant: str = request.path_params["tenant"]
        if tenant not in keys:
            return JSONResponse({"error": "unknown tenant"}, status_code=404)
        try:
            async with pool.acquire(tenant, timeout=30) as session:
                result = await session.call_tool("account", {})
        except Exception as error:  # noqa: BLE001 - for example StartTimeoutError
            return JSONResponse({"error": type(error).__name__}, status_code=503)
        return JSONResponse([content.model_dump()["text"] for content in result.content])

    async def put_key(request: Request) -> JSONResponse:
        tenant: str = request.path_params["tenant"]
        keys[tenant] = (await request.body()).decode()
        await pool.discard(tenant)  # the next request opens a session with the new key
        return JSONResponse(None)

    async def get_stats(_: Request) -> JSONResponse:
        stats = pool.stats()
        return JSONResponse({"open": stats.open, "idle": stats.idle, "waiting": stats.waiting})

    routes = [
        Route("/{tenant}/account", get_account),
        Route("/{tenant}/key", put_key, methods=["PUT"]),
        Route("/stats", get_stats),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


# --8<-- [end:app]
async def send_requests(client: httpx.AsyncClient) -> None:
    async def get_status(tenant: str) -> int:
        response = await client.get(f"/{tenant}/account")
        if response.status_code == 200:
            assert response.json() == [f"key of {tenant}"]  # not the session of another tenant
        return response.status_code

    async with asyncio.TaskGroup() as task_group:
        tasks = [task_group.create_task(get_status(tenant)) for tenant in TENANTS * 20]
    print("requests:", dict(Counter(task.result() for task in tasks)))
    print("sessions open at once:", open_sessions.most)
    print("a tenant whose server is down:", await get_status("down"))
    await client.put("/tenant 1/key", content="new key")
    print("after the change of a key:", (await client.get("/tenant 1/account")).json())
    print("stats:", (await client.get("/stats")).json())


async def main(url: str) -> None:
    urls = dict.fromkeys(TENANTS, url) | {"down": "http://127.0.0.1:9/mcp"}  # nothing listens there
    app = create_app(urls, {tenant: f"key of {tenant}" for tenant in urls})
    web_server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    serving = asyncio.create_task(web_server.serve())
    while not web_server.started:  # uvicorn has no event to wait for
        await asyncio.sleep(0.01)
    [[host, port]] = [listener.getsockname() for listener in web_server.servers[0].sockets]
    # A connection that the client keeps for its next request may be closed by uvicorn at that moment.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=60, limits=limits) as client:
        await send_requests(client)
    web_server.should_exit = True
    await serving


if __name__ == "__main__":
    with running_uvicorn(app="tenants_server:server.streamable_http_app") as url:
        asyncio.run(main(url))
