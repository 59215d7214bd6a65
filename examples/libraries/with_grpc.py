"""Shares a gRPC channel, and opens another channel after a loss.

Usage: python examples/libraries/with_grpc.py
The example starts a server, kills it, and starts it again.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import grpc
from grpc.aio import Channel, UnaryUnaryMultiCallable, insecure_channel
from local_servers import LocalServer, local_server, loss_of

from ownertask import ConnectionManager, ReconnectPolicy


def channel_manager(target: str) -> ConnectionManager[Channel]:
    @asynccontextmanager
    async def open_channel() -> AsyncGenerator[Channel]:
        never_idle = [("grpc.client_idle_timeout_ms", 2**31 - 1)]  # an idle channel is not ready
        async with insecure_channel(target, never_idle) as channel:
            await channel.channel_ready()
            yield channel

    async def no_longer_ready(channel: Channel) -> None:
        await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)

    return ConnectionManager.from_factory(
        open_channel,
        name="channel",
        start_timeout=10,
        reconnect=ReconnectPolicy(initial_delay=0.1),
        watch=no_longer_ready,
    )


async def shout(manager: ConnectionManager[Channel], text: str) -> str:
    channel = await manager.wait_open()
    method: UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/examples.Echo/Shout")
    return (await method(text.encode())).decode()


async def use(manager: ConnectionManager[Channel], server: LocalServer) -> None:
    print("before:", await shout(manager, "one"))
    async with loss_of(manager):
        server.kill()
    server.start()
    print("after:", await shout(manager, "two"))


async def main(server: LocalServer) -> None:
    manager = channel_manager(f"127.0.0.1:{server.port}")
    await asyncio.create_task(manager.start())
    await asyncio.create_task(use(manager, server))
    await asyncio.create_task(manager.stop())
    print(manager.state.value)


if __name__ == "__main__":
    with local_server("grpc") as server:
        asyncio.run(main(server))
