"""Runs commands over a shared SSH connection, and opens another connection after a loss.

Usage: python examples/libraries/with_asyncssh.py
The example starts a server, kills it, and starts it again.
"""

import asyncio
from contextlib import AbstractAsyncContextManager

import asyncssh
from asyncssh import SSHClientConnection
from local_servers import LocalServer, local_server, loss_of

from ownertask import ConnectionManager, ReconnectPolicy


def ssh_manager(port: int, known_hosts: str) -> ConnectionManager[SSHClientConnection]:
    def connect() -> AbstractAsyncContextManager[SSHClientConnection]:
        return asyncssh.connect(
            "127.0.0.1", port, username="guest", known_hosts=known_hosts, keepalive_interval=15
        )

    return ConnectionManager.from_factory(
        connect,
        name="ssh",
        reconnect=ReconnectPolicy(initial_delay=0.1),
        watch=SSHClientConnection.wait_closed,
    )


async def use(manager: ConnectionManager[SSHClientConnection], server: LocalServer) -> None:
    connection = manager.current
    print("before:", (await connection.run("whoami")).stdout)
    async with loss_of(manager):
        server.kill()
    command = asyncio.create_task(connection.run("whoami"))  # waits for the next connection
    server.start()
    print("after:", (await command).stdout)


async def main(server: LocalServer) -> None:
    manager = ssh_manager(server.port, str(server.folder / "known_hosts"))
    await asyncio.create_task(manager.start())
    await asyncio.create_task(use(manager, server))
    await asyncio.create_task(manager.stop())
    print(manager.state.value)


if __name__ == "__main__":
    with local_server("ssh") as server:
        asyncio.run(main(server))
