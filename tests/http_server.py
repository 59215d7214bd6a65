"""A scripted HTTP server that runs in the test's event loop. Most scripts misbehave."""

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSListener


@dataclass
class Request:
    method: str
    target: str
    headers: dict
    body: bytes
    stream: anyio.abc.ByteStream

    @property
    def message(self):
        return json.loads(self.body)

    async def answer(self, status="200 OK", body=b"", **headers):
        if isinstance(body, dict):
            headers.setdefault("content_type", "application/json")
            body = json.dumps(body).encode()
        headers.setdefault("content_length", len(body))
        lines = [f"HTTP/1.1 {status}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.stream.send("\r\n".join([*lines, "", ""]).encode() + body)

    async def begin_events(self, **headers):
        """Starts a response with an event stream, which ends when the connection is closed."""
        lines = ["HTTP/1.1 200 OK", "content-type: text/event-stream", "connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.stream.send("\r\n".join([*lines, "", ""]).encode())

    async def send_event(self, event, data):
        if isinstance(data, dict):
            data = json.dumps(data)
        await self.stream.send(f"event: {event}\ndata: {data}\n\n".encode())


async def read_request(stream):
    buffered = BufferedByteReceiveStream(stream)
    head = (await buffered.receive_until(b"\r\n\r\n", 65536)).decode()
    first, *lines = head.split("\r\n")
    method, target, _ = first.split()
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = await buffered.receive_exactly(int(headers.get("content-length", 0)))
    return Request(method, target, headers, body, stream)


@asynccontextmanager
async def tcp_server(serve, ssl_context=None):
    """Yields the port. Errors that `serve(stream)` raises because the peer disconnected are ignored."""

    async def serve_one(stream):
        try:
            async with stream:
                await serve(stream)
        except* (
            anyio.BrokenResourceError,
            anyio.ClosedResourceError,
            anyio.EndOfStream,
            anyio.IncompleteRead,
        ):
            pass

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    if ssl_context is not None:
        listener = _TLSListener(listener, ssl_context, standard_compatible=False)
    async with listener, anyio.create_task_group() as tg:
        tg.start_soon(listener.serve, serve_one)
        yield port
        tg.cancel_scope.cancel()


class _TLSListener(TLSListener):
    @staticmethod
    async def handle_handshake_error(exc, stream):
        await anyio.aclose_forcefully(stream)


@asynccontextmanager
async def http_server(answer, ssl_context=None):
    """Yields the server's URL. `answer(request)` may also close the connection or never respond."""

    async def serve(stream):
        while True:
            await answer(await read_request(stream))

    async with tcp_server(serve, ssl_context) as port:
        yield f"http{'s' if ssl_context else ''}://127.0.0.1:{port}"


def result_of_initialize(request):
    return {
        "jsonrpc": "2.0",
        "id": request.message["id"],
        "result": {
            "protocolVersion": request.message["params"]["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "scripted", "version": "1"},
        },
    }
