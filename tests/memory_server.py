"""A server in this process, behind memory streams. The test decides what it does, and when."""

import json
from contextlib import asynccontextmanager, suppress

import anyio

from ownertask.mcp import _sdk


class MemoryServer:
    """Answers the handshake and `tools/list`. The test answers all other requests.

    Attributes:
        read_stream: The client's read stream of the last connection.
        write_stream: The client's write stream of the last connection.
        opened: How often the transport was opened.
        on_handshake: If it is not `None`, it is called with the first request instead of a response.
    """

    def __init__(self, values=2):
        self.values = values
        self.on_handshake = None
        self.opened = 0
        self._requests, self._next_request = anyio.create_memory_object_stream(100)

    @asynccontextmanager
    async def __call__(self):
        """The transport, as the SDK's: it ends nothing but its streams, and reports nothing."""
        self.opened += 1
        self._to_client, self.read_stream = anyio.create_memory_object_stream(10)
        self.write_stream, from_client = anyio.create_memory_object_stream(10)
        self._from_client = from_client
        with self._to_client, self.read_stream, self.write_stream, from_client:
            async with anyio.create_task_group() as task_group:
                self._task_group = task_group
                task_group.start_soon(self._serve, from_client)
                yield (self.read_stream, self.write_stream, lambda: None)[: self.values]
                task_group.cancel_scope.cancel()

    async def _serve(self, from_client):
        with suppress(anyio.ClosedResourceError):  # the test closed a stream
            async for message in from_client:
                self._handle(json.loads(_sdk.message_to_utf8(message)))

    def _handle(self, request):
        method = request["method"]
        if method in {"initialize", "server/discover"} and self.on_handshake is not None:
            self.on_handshake(request)
        elif method == "initialize":
            self.answer(
                request,
                protocolVersion=request["params"]["protocolVersion"],
                capabilities={"tools": {}},
                serverInfo={"name": "memory", "version": "1"},
            )
        elif method == "server/discover":
            self.put({"id": request["id"], "error": {"code": -32601, "message": "unknown"}})
        elif method == "tools/list":
            self.answer(request, tools=[])
        elif "id" in request:
            self._requests.send_nowait(request)

    async def next_request(self):
        """Waits for the next request that the test must answer."""
        return await self._next_request.receive()

    def answer(self, request, **result):
        self.put({"id": request["id"], "result": result})

    async def cancel_call_with_response(self, session):
        """Calls a tool, and cancels the call in the tick of its response."""
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(session.call_tool, "anything", {})
            request = await self.next_request()
            await anyio.wait_all_tasks_blocked()
            self.answer(request, content=[])
            task_group.cancel_scope.cancel()

    def put(self, message):
        """Sends a JSON-RPC message, or puts an exception or another object into the read stream."""
        if isinstance(message, dict):
            message = _sdk.message_from_json(json.dumps({"jsonrpc": "2.0", **message}))
        self._to_client.send_nowait(message)

    def end(self):
        """Ends the read stream, as the SDK's transports do when the server dies."""
        self._to_client.close()

    def refuse_messages(self, how):
        """Accepts no more messages, as the SDK's `sse_client` does after a message was refused."""
        if how == "broken":
            self._from_client.close()
        else:
            self.write_stream.close()

    def crash(self, error):
        """Ends the transport with an exception in one of its tasks."""

        async def work():
            with self._to_client:
                raise error

        self._task_group.start_soon(work)

    def close(self):
        self._requests.close()
        self._next_request.close()


@asynccontextmanager
async def memory_transport():
    """The transport of a server that needs no test to answer."""
    server = MemoryServer()
    try:
        async with server() as streams:
            yield streams
    finally:
        server.close()
