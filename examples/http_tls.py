"""Trusts a private CA, and sends a client certificate.

Usage: python examples/http_tls.py [asyncio|trio]
The example starts a server that requires a client certificate.
"""

import ssl
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import anyio
from certificates import create_certificates
from http_server import running_uvicorn

from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager

if TYPE_CHECKING:
    import httpx2 as httpx
else:
    try:
        import httpx2 as httpx
    except ImportError:
        import httpx


# --8<-- [start:http_tls]
async def main(url: str, folder: Path) -> None:
    context = ssl.create_default_context(cafile=folder / "ca.pem")

    def make_client(
        headers: dict[str, str] | None = None,
        timeout: httpx.Timeout | None = None,
        auth: httpx.Auth | None = None,
    ) -> httpx.AsyncClient:
        return httpx.AsyncClient(verify=context, headers=headers, timeout=timeout, auth=auth)

    transport = StreamableHttpConnectionManager(url, httpx_client_factory=make_client)
    manager = SessionConnectionManager(transport)
    try:
        await manager.start()
    except httpx.TransportError:
        print("the server refuses a client without a certificate")

    context.load_cert_chain(folder / "client.pem")  # the private key and the certificate
    async with manager as session:
        print((await session.call_tool("add", {"a": 1, "b": 2})).content)


# --8<-- [end:http_tls]

if __name__ == "__main__":
    with TemporaryDirectory() as name:
        create_certificates(Path(name))
        own = f"--ssl-keyfile={name}/server.pem", f"--ssl-certfile={name}/server.pem"
        clients = f"--ssl-ca-certs={name}/ca.pem", f"--ssl-cert-reqs={ssl.CERT_REQUIRED.value}"
        with running_uvicorn(*own, *clients) as url:
            backend = sys.argv[1] if len(sys.argv) > 1 else "asyncio"
            anyio.run(main, url, Path(name), backend=backend)
