"""WebSocket and TCP servers that run in threads, both well-behaved and faulty."""

import gc
import os
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

CERTIFICATE = Path(__file__).parent / "mcp" / "servers" / "localhost.pem"


def server_tls():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def client_tls():
    return ssl.create_default_context(cafile=CERTIFICATE)


@contextmanager
def joined():
    """Waits on exit for the threads that were started in the `with` block."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if not thread.name.startswith("Trio thread"):
            thread.join(5)


@contextmanager
def websocket_server(handler, **options):
    """Yields the URL of a server that calls `handler` with each connection."""
    options = {"subprotocols": ["mcp"], "compression": None, "max_size": None} | options
    with joined(), serve(handler, "127.0.0.1", 0, **options) as server:
        threading.Thread(target=server.serve_forever).start()
        scheme = "wss" if "ssl" in options else "ws"
        yield f"{scheme}://127.0.0.1:{server.socket.getsockname()[1]}/mcp"
    if isinstance(server.shutdown_watcher, int):  # websockets 13 leaves its pipe open
        os.close(server.shutdown_watcher)
        os.close(server.shutdown_notifier)
    gc.collect(1)  # frees a selector that the library does not close; collecting young objects is fast


@contextmanager
def tcp_server(handler):
    """Yields the URL of a server that calls `handler` with the socket of its only connection."""

    def accept():
        with listener:
            connection, _ = listener.accept()
        with connection:
            handler(connection)

    listener = socket.create_server(("127.0.0.1", 0))
    with joined():
        threading.Thread(target=accept).start()
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/mcp"


def echo(websocket):
    for message in websocket:
        websocket.send(message)


def until_closed(websocket):
    with suppress(ConnectionClosed):
        while True:
            websocket.recv()
