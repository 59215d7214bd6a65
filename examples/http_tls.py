"""Trusts a private CA, and sends a client certificate.

Usage: python http_tls.py [asyncio|trio]
The example starts a server that requires a client certificate.
"""

import ssl
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import anyio
from certificates import create_certificate
from http_server import running_uvicorn

from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager

if TYPE_CHECKING:
    import httpx2 as httpx
else:
    try:
        import httpx2 as httpx  # the HTTP library of mcp 2.x
    except ImportError:
        import httpx  # the HTTP library of mcp 1.x


async def main(url: str, ca: Path, client: Path) -> None:
    context = ssl.create_default_context(cafile=ca)
    transport = StreamableHttpConnectionManager(
        url,
        httpx_client_factory=lambda headers=None, timeout=None, auth=None: httpx.AsyncClient(
            verify=context, headers=headers, timeout=timeout, auth=auth
        ),
    )
    manager = SessionConnectionManager(transport)
    try:
        await manager.start()
    except httpx.TransportError as error:
        print(f"without a client certificate: {error!r}")

    context.load_cert_chain(client)  # the private key and the certificate
    async with manager as session:
        print((await session.call_tool("add", {"a": 1, "b": 2})).content)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        pem = Path(folder) / "pem"
        create_certificate(pem)
        own = f"--ssl-keyfile={pem}", f"--ssl-certfile={pem}"
        clients = f"--ssl-ca-certs={pem}", f"--ssl-cert-reqs={ssl.CERT_REQUIRED.value}"
        with running_uvicorn(*own, *clients) as url:
            anyio.run(main, url, pem, pem, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
