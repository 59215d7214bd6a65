"""A web application with connections to several servers. One of the servers is down.

Usage: python examples/web_app.py
The example starts a server and the application, and sends it a few requests.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.error import HTTPError
from urllib.request import urlopen

import uvicorn
from http_server import running_server
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ownertask import ConnectionGroup
from ownertask.mcp import SessionConnectionManager


# --8<-- [start:app]
def create_app(urls: dict[str, str]) -> Starlette:
    managers = {name: SessionConnectionManager(url, name=name) for name, url in urls.items()}
    group = ConnectionGroup(managers, member_timeout=10)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with group:
            for name, error in group.failures.items():  # the application runs without these servers
                print(f"{name} is down: {type(error).__name__}")
            yield

    async def add(request: Request) -> JSONResponse:
        manager = managers[request.path_params["server"]]
        try:
            session = await manager.start(timeout=10)  # opens the connection if necessary
        except Exception as error:  # noqa: BLE001 - any error means that the server is unavailable
            return JSONResponse({"error": type(error).__name__}, status_code=503)
        result = await session.call_tool("add", {"a": 1, "b": 2})
        return JSONResponse([content.model_dump()["text"] for content in result.content])

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({name: manager.state.value for name, manager in managers.items()})

    return Starlette(routes=[Route("/add/{server}", add), Route("/health", health)], lifespan=lifespan)


# --8<-- [end:app]
def fetch(url: str) -> str:
    try:
        with urlopen(url, timeout=30) as response:
            return f"200 {json.load(response)}"
    except HTTPError as error:
        with error:
            return f"{error.code} {json.load(error)}"


async def main(url: str) -> None:
    app = create_app({"calculator": url, "search": "http://127.0.0.1:9/mcp"})  # nothing listens there
    web_server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    serving = asyncio.create_task(web_server.serve())
    while not web_server.started:  # uvicorn has no event to wait for
        await asyncio.sleep(0.01)
    [[host, port]] = [listener.getsockname() for listener in web_server.servers[0].sockets]
    for path in ("health", "add/calculator", "add/search"):
        print(f"/{path}:", await asyncio.to_thread(fetch, f"http://{host}:{port}/{path}"))
    web_server.should_exit = True
    await serving


if __name__ == "__main__":
    with running_server("streamable-http") as url:
        asyncio.run(main(url))
