"""Receives messages from an MQTT broker, and subscribes again when the broker has restarted.

Usage: python examples/libraries/with_aiomqtt.py
The example requires `mosquitto`. It starts a broker, kills it, and starts it again.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from aiomqtt import Client, Message
from local_servers import LocalServer, local_server, loss_of

from ownertask import ConnectionManager, ReconnectPolicy


def mqtt_manager(
    port: int, topic: str, on_message: Callable[[Message], object]
) -> ConnectionManager[Client]:
    @asynccontextmanager
    async def open_client() -> AsyncGenerator[Client]:
        async with Client("127.0.0.1", port) as client:
            await client.subscribe(topic)
            yield client

    async def receive(client: Client) -> None:
        async for message in client.messages:  # raises when the connection ends
            on_message(message)

    return ConnectionManager.from_factory(
        open_client, name="mqtt", reconnect=ReconnectPolicy(initial_delay=0.1), watch=receive
    )


async def use(
    manager: ConnectionManager[Client], received: asyncio.Queue[Message], server: LocalServer
) -> None:
    client = manager.current
    await client.publish("rooms/green", "21 degrees", qos=1)
    print("received:", (await received.get()).payload)
    async with loss_of(manager):
        server.kill()
    sending = asyncio.create_task(client.publish("rooms/red", "22 degrees", qos=1))
    server.start()
    await sending
    print("received:", (await received.get()).payload)


async def main(server: LocalServer) -> None:
    received = asyncio.Queue[Message]()
    manager = mqtt_manager(server.port, "rooms/#", received.put_nowait)
    await asyncio.create_task(manager.start())
    await asyncio.create_task(use(manager, received, server))
    await asyncio.create_task(manager.stop())
    print(manager.state.value)


if __name__ == "__main__":
    with local_server("mosquitto") as server:
        asyncio.run(main(server))
