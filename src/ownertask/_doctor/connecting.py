"""Reports when an HTTP connection is established: after the name lookup, TCP and TLS."""

from collections.abc import Callable, Mapping
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
    """Makes a transport call a function each time it begins to send a request."""
    create = transport.httpx_client_factory
    create()  # the first client imports the HTTP library, which would count as the time of connecting

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
