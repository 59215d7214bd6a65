"""Reports when an HTTP connection is established: after the name lookup, TCP and TLS."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..mcp import SseConnectionManager, StreamableHttpConnectionManager

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Request

__all__ = ["reporting_connect"]

CONNECTING = "connection."
"""The prefix of the events that httpcore reports while it connects."""


def reporting_connect(
    transport: SseConnectionManager | StreamableHttpConnectionManager, on_connected: Callable[[], object]
) -> None:
    """Calls a function when a transport is connected, and again at each later event of a request."""
    create = transport.httpx_client_factory
    # The first client imports the HTTP library, which would count as the time of connecting. If this
    # fails, so does the start.
    with suppress(Exception):
        create()

    async def trace(event: str, _info: Mapping[str, object]) -> None:
        if not event.startswith(CONNECTING):
            on_connected()

    async def add_trace(request: "Request") -> None:
        request.extensions = {**request.extensions, "trace": trace}

    # Any: passed on unchanged.
    def create_client(*args: Any, **options: Any) -> "AsyncClient":  # noqa: ANN401
        client = create(*args, **options)
        client.event_hooks["request"].append(add_trace)
        return client

    transport.httpx_client_factory = create_client
