"""The servers that a behavior uses, and what a script can see of them from outside."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

SERVER = Path(__file__).with_name("server.py")


@dataclass
class Process:
    """A server that was started.

    `received` is set when the server receives a call that it does not answer. `ended` is set when the
    server is gone, and `ended_at` is the time of that.
    """

    pid: int
    parent: int
    http_port: int
    received: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    ended_at: float = math.inf

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def is_gone(self, within=2.0):
        """Waits until the process is gone, at most for some seconds."""
        return self.ended.wait(within)


@dataclass(frozen=True)
class Target:
    """Describes to a library how to reach a server: a command or a URL."""

    command: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    url: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class World:
    """Knows each server from its start to its end, through a connection that the server opens."""

    def __init__(self):
        self.started = []
        self.change = threading.Condition()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = str(self.listener.getsockname()[1])
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.follow, args=[connection], daemon=True).start()

    def follow(self, connection):
        stream = connection.makefile("rb")
        process = Process(**json.loads(stream.readline()))
        with self.change:
            self.started.append(process)
            connection.sendall(b"%d\n" % len(self.started))
            self.change.notify_all()
        try:
            while stream.readline():
                process.received.set()
        except ConnectionResetError:
            pass
        process.ended_at = time.monotonic()
        process.ended.set()

    def wait_started(self, number=1, within=20.0):
        """Waits until a number of servers were started, and returns the last of them."""
        with self.change:
            if not self.change.wait_for(lambda: len(self.started) >= number, within):
                raise TimeoutError(f"{len(self.started)} servers were started, and not {number}")
            return self.started[number - 1]

    def left(self, within=2.0):
        """Returns how many servers are still running after some seconds."""
        return sum(not process.is_gone(within) for process in list(self.started))

    def stdio(self, kind, *args, env=None):
        """Returns a server of a kind, which the library starts."""
        return Target(sys.executable, (str(SERVER), self.port, kind, *args), env=env or {})

    def launcher(self):
        """Returns a shell that starts a server that does not exit at the end of its input."""
        command = f"'{sys.executable}' '{SERVER}' {self.port} stays; :"
        return Target("/bin/sh", ("-c", command))

    def start_http(self, kind="http", port=0):
        """Starts a server over HTTP."""
        number = len(self.started) + 1
        subprocess.Popen([sys.executable, str(SERVER), self.port, kind, str(port)])
        return self.wait_started(number)

    def http(self, process, query="", headers=None):
        """Returns how to reach a server over HTTP."""
        return Target(url=f"http://127.0.0.1:{process.http_port}/mcp{query}", headers=headers or {})
