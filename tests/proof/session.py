"""A session manager with a server in memory, for the sweep."""

from contextlib import asynccontextmanager

import anyio
from mcp import types
from mcp.shared.memory import create_client_server_memory_streams
from mcp.shared.message import SessionMessage
from proof.sweep import Boom

from ownertask import ConnectionManager
from ownertask.mcp import SessionConnectionManager

if hasattr(types, "jsonrpc_message_adapter"):
    parse = types.jsonrpc_message_adapter.validate_python
else:  # mcp 1.x
    parse = types.JSONRPCMessage.model_validate


class RecordingSessionManager(SessionConnectionManager):
    """Records how its connection is opened and closed; see `RecordingManager`."""

    def __init__(self):
        transport = ConnectionManager.from_factory(self.open_streams)
        super().__init__(transport, name="recording")
        self.entered = []
        self.exited = []
        self.closings_cancelled = 0
        self.errors = []
        self.group = None
        self.crash = None

    @property
    def is_acquired(self):
        return len(self.entered) != len(self.exited)

    @asynccontextmanager
    async def open_connection(self):
        assert not self.is_acquired, "9: two owner tasks are alive at once"
        self.entered.append(anyio.get_current_task().id)
        try:
            async with super().open_connection() as session:
                yield session
        finally:
            self.exited.append(anyio.get_current_task().id)

    @asynccontextmanager
    async def open_streams(self):
        try:
            async with (
                create_client_server_memory_streams() as (client_streams, server_streams),
                anyio.create_task_group() as self.group,
            ):
                self.crash = anyio.Event()
                self.group.start_soon(self.child, self.crash)
                self.group.start_soon(serve, *server_streams)
                yield client_streams
                self.group.cancel_scope.cancel()
        finally:
            self.group = self.crash = None

    async def child(self, crash):
        await crash.wait()
        self.errors.append(Boom("crash"))
        raise self.errors[-1]


async def serve(read_stream, write_stream):
    async for message in read_stream:
        request = message.message.model_dump(by_alias=True, mode="json")
        if request.get("method") == "initialize":
            result = {
                "protocolVersion": request["params"]["protocolVersion"],
                "capabilities": {},
                "serverInfo": {"name": "memory", "version": "1"},
            }
            reply = parse({"jsonrpc": "2.0", "id": request["id"], "result": result})
            await write_stream.send(SessionMessage(reply))
