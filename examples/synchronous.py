"""One session that the threads of a WSGI application share.

Usage: python synchronous.py
The example serves the application with one thread per request, and sends it a few requests.
"""

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socketserver import ThreadingMixIn
from threading import Thread
from urllib.request import urlopen
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import StdioServerParameters

from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])


class Calculator:
    """Adds numbers. Any thread can call it. The portal runs the event loop in a separate thread."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal
        self._manager = SessionConnectionManager(server)

    def add(self, a: int, b: int) -> str:
        return self._portal.call(self._add, a, b)

    async def _add(self, a: int, b: int) -> str:
        session = await self._manager.start(timeout=10)  # opens the connection if necessary
        result = await session.call_tool("add", {"a": a, "b": b})
        [content] = result.content
        assert content.type == "text"
        return content.text

    def close(self) -> None:
        self._portal.call(self._manager.stop)


def create_application(calculator: Calculator) -> Callable[..., Iterable[bytes]]:
    def application(environ: dict[str, str], start_response: Callable[..., object]) -> Iterable[bytes]:
        number = int(environ["PATH_INFO"].strip("/"))
        total = calculator.add(number, number)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [total.encode()]

    return application


class ThreadingWSGIServer(ThreadingMixIn, WSGIServer):
    pass


class SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by the base class
        pass


def fetch(url: str) -> str:
    with urlopen(url, timeout=30) as response:
        return str(response.read(), "utf-8")


def main() -> None:
    with start_blocking_portal() as portal:
        calculator = Calculator(portal)
        try:
            serve(create_application(calculator))
        finally:
            calculator.close()


def serve(application: Callable[..., Iterable[bytes]]) -> None:
    with make_server("127.0.0.1", 0, application, ThreadingWSGIServer, SilentHandler) as web_server:
        Thread(target=web_server.serve_forever).start()
        url = f"http://127.0.0.1:{web_server.server_port}"
        with ThreadPoolExecutor() as pool:
            print(*pool.map(fetch, [f"{url}/{number}" for number in range(5)]))
        web_server.shutdown()


if __name__ == "__main__":
    main()
