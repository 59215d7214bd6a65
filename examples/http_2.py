"""Runs two sessions over one HTTP/2 connection.

Usage: python examples/http_2.py [asyncio|trio]
The example starts a server that supports HTTP/2. It requires hypercorn. The client
requires httpx2[http2] or, on mcp 1.x, httpx[http2].
"""

import ssl
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import anyio
from certificates import create_certificates
from http_server import running_hypercorn

from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager

if TYPE_CHECKING:
    import httpx2 as httpx
else:
    try:
        import httpx2 as httpx
    except ImportError:
        import httpx

seen: set[tuple[str, object]] = set()


async def note_connection(response: httpx.Response) -> None:
    """Stores the HTTP version and the client's address of the connection."""
    address = response.extensions["network_stream"].get_extra_info("client_addr")
    seen.add((response.http_version, address))


# --8<-- [start:http_2]
async def main(url: str, context: ssl.SSLContext) -> None:
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


# --8<-- [end:http_2]

if __name__ == "__main__":
    with TemporaryDirectory() as name:
        create_certificates(Path(name))
        tls_context = ssl.create_default_context(cafile=f"{name}/ca.pem")
        with running_hypercorn(f"--keyfile={name}/server.pem", f"--certfile={name}/server.pem") as url:
            backend = sys.argv[1] if len(sys.argv) > 1 else "asyncio"
            anyio.run(main, url, tls_context, backend=backend)
    print(f"{len(seen)} connection, {', '.join(version for version, _ in seen)}")
