"""Runs two sessions over one HTTP/2 connection.

Usage: python http_2.py [asyncio|trio]
The example starts a server that supports HTTP/2. It requires hypercorn. The client
requires httpx2[http2] or, on mcp 1.x, httpx[http2].
"""

import ssl
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import anyio
from certificates import create_certificate
from http_server import running

from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager

if TYPE_CHECKING:
    import httpx2 as httpx
else:
    try:
        import httpx2 as httpx  # the HTTP library of mcp 2.x
    except ImportError:
        import httpx  # the HTTP library of mcp 1.x


async def main(url: str, context: ssl.SSLContext) -> None:
    seen: set[str] = set()

    async def note_connection(response: httpx.Response) -> None:
        address = response.extensions["network_stream"].get_extra_info("client_addr")
        seen.add(f"{response.http_version} from {address}")

    async with httpx.AsyncClient(
        http2=True,
        verify=context,
        timeout=httpx.Timeout(30, read=300),
        event_hooks={"response": [note_connection]},
    ) as client:
        first = SessionConnectionManager(StreamableHttpConnectionManager(url, http_client=client))
        second = SessionConnectionManager(StreamableHttpConnectionManager(url, http_client=client))
        async with first as session, second as other_session:
            print((await session.call_tool("add", {"a": 1, "b": 2})).content)
            print((await other_session.call_tool("add", {"a": 2, "b": 2})).content)
    print(*seen)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        pem = Path(folder) / "pem"
        create_certificate(pem)
        command = ("hypercorn", "--bind=127.0.0.1:0", "--workers=0", "--graceful-timeout=1")
        tls = (f"--keyfile={pem}", f"--certfile={pem}")
        with running(*command, *tls, "server:server.streamable_http_app()") as url:
            backend = sys.argv[1] if len(sys.argv) > 1 else "asyncio"
            anyio.run(main, f"{url}/mcp", ssl.create_default_context(cafile=pem), backend=backend)
