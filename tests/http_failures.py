"""The ways in which opening a session over HTTP can fail, and the error that each one raises.

Run as a program, it updates the tables in `docs/reference/failures.md`. It fills in the column of the
installed SDK.
"""

import re
import socket
import ssl
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
from http_server import http_server, tcp_server

from ownertask.mcp import (
    SessionConnectionManager,
    SseConnectionManager,
    StreamableHttpConnectionManager,
    _sdk,
)

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "failures.md"
START_TIMEOUT = 1
SECRET = "s3cret"


def status(line, **headers):
    async def answer(request):
        await request.answer(line, b"no", **headers)

    return answer


def body(content, content_type):
    async def answer(request):
        await request.answer(body=content, content_type=content_type)

    return answer


async def silent(request):
    await anyio.sleep_forever()


async def hang_up(request):
    await request.stream.aclose()


async def end_events(request):
    await request.begin_events()
    await request.stream.aclose()


async def no_endpoint(request):
    await request.begin_events()
    await anyio.sleep_forever()


async def foreign_endpoint(request):
    await request.begin_events()
    await request.send_event("endpoint", "http://example.org/messages")
    await anyio.sleep_forever()


async def refuse_messages(request):
    if request.method == "POST":
        await request.answer("403 Forbidden")
    else:
        await request.begin_events()
        await request.send_event("endpoint", "/messages")
        await anyio.sleep_forever()


@asynccontextmanager
async def refused_port(answer):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


@asynccontextmanager
async def unknown_host(answer):
    yield "http://ownertask.invalid"


@asynccontextmanager
async def wrong_scheme(answer):
    async def serve(stream):
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

    async with tcp_server(serve) as port:
        yield f"https://127.0.0.1:{port}"


@asynccontextmanager
async def unknown_certificate(answer):
    async with http_server(silent, ssl_context()) as url:
        yield url


def ssl_context():
    """Returns a server context with a self-signed certificate.

    Each call generates a new key, so no key is stored in the repository.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context.load_cert_chain(path)
    return context


ANY = {
    "nothing is listening on the port": (refused_port, None),
    "the host name cannot be resolved": (unknown_host, None),
    "an `https` URL for a server without TLS": (wrong_scheme, None),
    "an untrusted certificate": (unknown_certificate, None),
    "the server closes the connection without responding": (http_server, hang_up),
    "the server never responds": (http_server, silent),
    "401": (http_server, status("401 Unauthorized", www_authenticate=f'Bearer realm="{SECRET}"')),
    "403": (http_server, status("403 Forbidden")),
    "404": (http_server, status("404 Not Found")),
    "500": (http_server, status("500 Internal Server Error")),
    "503": (http_server, status("503 Service Unavailable")),
    "a redirect to another origin": (
        http_server,
        status("307 Temporary Redirect", location=f"http://example.org/mcp?token={SECRET}"),
    ),
    "an HTML page instead of an MCP response": (http_server, body(b"<html>", "text/html")),
    "an empty event stream": (http_server, end_events),
}
CASES = {
    "streamable HTTP": {
        **ANY,
        "invalid JSON": (http_server, body(b'{"jsonrpc"', "application/json")),
        "an event that is not a message": (http_server, body(b"data: {\n\n", "text/event-stream")),
        "202 Accepted in response to a request": (http_server, status("202 Accepted")),
    },
    "SSE": {
        **ANY,
        "no `endpoint` event": (http_server, no_endpoint),
        "an `endpoint` event with a different origin": (http_server, foreign_endpoint),
        "403 in response to a message": (http_server, refuse_messages),
    },
}
MANAGERS = {"streamable HTTP": StreamableHttpConnectionManager, "SSE": SseConnectionManager}


@asynccontextmanager
async def failing(transport, case, kind=SessionConnectionManager, start_timeout=START_TIMEOUT):
    """Yields a manager that fails to start in the given way. Its URL and headers contain secrets."""
    server, answer = CASES[transport][case]
    async with server(answer) as origin:
        url = origin.replace("://", f"://{SECRET}:{SECRET}@") + f"/mcp?token={SECRET}"
        headers = {"X-Key": SECRET}
        if case != "401":  # the 401 case refuses the user-info in the URL
            headers["Authorization"] = f"Bearer {SECRET}"
        inner = MANAGERS[transport](url, headers)
        yield kind(inner, start_timeout=start_timeout)


def described(error, manager):
    """Returns the error as the table shows it, without the details that vary between runs."""
    facts = [
        note for note in getattr(error, "__notes__", ()) if not note.startswith("ownertask: raised by")
    ]
    text = " · ".join(
        part.replace("\n", " ") for part in (str(error).replace(f"{manager.name}: ", ""), *facts) if part
    )
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8000", text)
    text = re.sub(r" \(_ssl\.c:\d+\)|\[Errno -?\d+\] ", "", text)
    text = re.sub(r" For more information check: \S+", "", text)
    text = re.sub(r" \[type=json_invalid.*?(?= · |$)", "", text).replace("|", "\\|")
    return f"`{type(error).__name__}`" + (f": {text}" if text else "")


async def run_all():
    for transport, cases in CASES.items():
        for case in cases:
            async with failing(transport, case) as manager:
                try:
                    await manager.start()
                except Exception as error:
                    yield transport, case, described(error, manager)


def rows(page):
    """Returns the table cells for mcp 2.x and 1.x on the page, by transport and case."""
    found = {}
    transport = None
    for line in page.splitlines():
        if line.startswith("## "):
            transport = line[3:]
        elif line.startswith("| ") and transport in CASES:
            case, *cells = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            if case in CASES[transport]:
                found[transport, case] = cells
    return found


def table(transport, found):
    lines = [f"| {case} | " + " | ".join(found[transport, case]) + " |" for case in CASES[transport]]
    return "\n".join(["| failure | mcp 2.x | mcp 1.x |", "|---|---|---|", *lines])


async def write():
    page = PAGE.read_text()
    found = rows(page)
    column = 0 if _sdk.HAS_CLIENT else 1
    async for transport, case, text in run_all():
        found.setdefault((transport, case), ["", ""])[column] = text
    for transport in CASES:
        pattern = rf"(?s)(## {transport}\n\n).*?(?=\n\n## |\n*\Z)"
        new = table(transport, found)
        page = re.sub(pattern, lambda match, new=new: match[1] + new, page)
    line = "21"[column]
    page = re.sub(rf"mcp {line}\.\d+\.\d+", f"mcp {_sdk.SDK_VERSION}", page)
    PAGE.write_text(page)


if __name__ == "__main__":
    anyio.run(write)
