"""Starts, kills and restarts real servers for the examples in this directory.

Each server is a program that is installed on this machine, or a few lines of Python. It listens on a
free port of 127.0.0.1, and keeps its files in a temporary directory.
"""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from ownertask import ConnectionManager, ConnectionState

PROGRAM_FOLDERS = ["/usr/sbin", *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))]


class LocalServer:
    """A server that can be started and killed any number of times, always on the same port."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._user: str | None = None
        if kind == "postgres" and os.geteuid() == 0:
            self._user = "postgres"  # PostgreSQL refuses to run as root
            shutil.chown(folder, self._user, self._user)
        self._command = COMMANDS[kind](self)

    def start(self) -> None:
        """Starts the server. Does not wait until the server accepts connections."""
        self._all_ended, inherited = os.pipe()
        self._process = self.popen(*self._command, pass_fds=[inherited])
        os.close(inherited)

    def kill(self) -> None:
        """Kills the server, and waits until it and its child processes are gone."""
        if self._process.returncode is not None:
            return
        self._process.kill()
        self._process.wait()
        with open(self._all_ended, "rb") as pipe:  # noqa: PTH123 - a file descriptor
            pipe.read()  # returns when no process holds the other end

    def popen(self, *command: str, pass_fds: list[int] | None = None) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                pass_fds=pass_fds or [],
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
            )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def program(name: str) -> str:
    """Returns the path of a server program. Debian installs some outside of PATH."""
    path = shutil.which(name, path=os.pathsep.join([*os.get_exec_path(), *PROGRAM_FOLDERS]))
    if path is None:
        raise FileNotFoundError(f"{name} is not installed")
    return path


def redis(server: LocalServer) -> list[str]:
    return [program("redis-server"), "--bind", "127.0.0.1", "--port", f"{server.port}", "--save", ""]


def postgres(server: LocalServer) -> list[str]:
    data = str(server.folder / "data")
    create = [program("initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"]
    if server.popen(*create).wait():
        raise RuntimeError((server.folder / "log").read_text())
    settings = [
        "listen_addresses=127.0.0.1",
        f"port={server.port}",
        "unix_socket_directories=",
        "fsync=off",
    ]
    return [program("postgres"), "-D", data, *(f"-c{setting}" for setting in settings)]


def mosquitto(server: LocalServer) -> list[str]:
    return [program("mosquitto"), "-p", f"{server.port}"]


def web(server: LocalServer) -> list[str]:
    return [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", f"{server.port}"]


def ssh(server: LocalServer) -> list[str]:
    return [sys.executable, beside("ssh_server.py"), str(server.folder), f"{server.port}"]


def grpc(server: LocalServer) -> list[str]:
    return [sys.executable, beside("grpc_server.py"), f"{server.port}"]


def beside(name: str) -> str:
    return str(Path(__file__).with_name(name))


COMMANDS: dict[str, Callable[[LocalServer], list[str]]] = {
    function.__name__: function for function in (redis, postgres, mosquitto, web, ssh, grpc)
}


@contextmanager
def local_server(kind: str) -> Generator[LocalServer]:
    """Runs a server during the block. Then kills it, and removes its files."""
    with tempfile.TemporaryDirectory(prefix="ownertask-") as folder:
        server = LocalServer(kind, Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()


@asynccontextmanager
async def loss_of(manager: ConnectionManager[object]) -> AsyncGenerator[None]:
    """Waits, at the end of the block, until the manager reports the loss of its connection."""
    lost = asyncio.Event()

    def on_change(_: object, old: ConnectionState, new: ConnectionState) -> None:
        if old is ConnectionState.OPEN:
            lost.set()

    manager.add_listener(on_change)
    try:
        yield
        await lost.wait()
    finally:
        manager.remove_listener(on_change)
