"""Sends a token with each request, and gets a new token when the server refuses the old one.

Usage: python auth.py [asyncio|trio]
The example starts a server that requires a token.
"""

import sys
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import TYPE_CHECKING

import anyio
from http_server import running_uvicorn

from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager

if TYPE_CHECKING:
    import httpx2 as httpx
else:
    try:
        import httpx2 as httpx  # the HTTP library of mcp 2.x
    except ImportError:
        import httpx  # the HTTP library of mcp 1.x


class TokenAuth(httpx.Auth):
    def __init__(self) -> None:
        self.token = "expired"
        self.lock = anyio.Lock()

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        token = self.token
        request.headers["Authorization"] = f"Bearer {token}"
        response = yield request
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            async with self.lock:
                if self.token == token:  # otherwise another request has already renewed it
                    self.token = await new_token()
            request.headers["Authorization"] = f"Bearer {self.token}"
            yield request


async def new_token() -> str:
    return "valid"


async def main(url: str) -> None:
    try:
        await SessionConnectionManager(url).start()
    except httpx.HTTPStatusError as error:
        print(error.__notes__[0])
    transport = StreamableHttpConnectionManager(url, auth=TokenAuth())
    async with SessionConnectionManager(transport) as session:
        print((await session.call_tool("add", {"a": 1, "b": 2})).content)


if __name__ == "__main__":
    with running_uvicorn(app="token_server:app") as url:
        anyio.run(main, url, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
