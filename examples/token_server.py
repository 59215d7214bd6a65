"""The server of the examples, for requests with the header `Authorization: Bearer valid` only."""

from server import server
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send


def app() -> ASGIApp:
    """Returns the server as an application that refuses requests without the token."""
    inner = server.streamable_http_app()

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (b"authorization", b"Bearer valid") in scope["headers"]:
            await inner(scope, receive, send)
        else:
            await Response(status_code=401, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)

    return guard
