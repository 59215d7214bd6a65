"""Runs the command line in forked processes, which have imported everything already.

Importing `ownertask`, the SDK and rich takes about a second. This program imports them once, and then
forks a process for each request. It is a child subreaper, so it also reports the processes that a
command left behind.

A request is a line of JSON. Four file descriptors accompany it: the command's stdin, stdout and stderr,
and a pipe for events. The events are lines of JSON: `{"pid": ...}`, then `{"code": ..., "left": [...]}`.
"""

import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import selectors
import signal
import socket
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

LEFT_AFTER = 3
"""Seconds after the end of a command in which killed processes of its servers may still disappear."""

NAMES = [
    "anyio._backends._asyncio",
    "anyio._backends._trio",
    "mcp.client.sse",
    "mcp.client.stdio",
    "mcp.client.streamable_http",
    "mcp.client.websocket",
    "rich.console",
    "rich.live",
    "rich.status",
    "rich.table",
    "rich.text",
    "trio",
    "websockets.asyncio.client",
]


def import_all():
    """Imports as much as possible. If an import fails, each command that needs it shows the error."""
    with suppress(Exception):
        importlib.import_module("ownertask.__main__")
        for package in ("ownertask", "ownertask.mcp", "ownertask.testing", "ownertask._doctor"):
            folder = importlib.import_module(package).__path__
            for module in pkgutil.iter_modules(folder, f"{package}."):
                with suppress(ImportError):
                    importlib.import_module(module.name)
    for name in NAMES:
        with suppress(ImportError):
            importlib.import_module(name)


def become_subreaper():
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def children():
    with suppress(FileNotFoundError):  # there is no /proc
        return {
            int(child)
            for child in Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
        }
    return set()


def command_line(pid):
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    return ""


class Server:
    def __init__(self, requests):
        self.requests = requests
        self.commands = {}  # the pipe for the events of each running command, by process id
        self.ended = []  # the pipe, the exit status and the time of each command that ended
        self.wakeups, self.wakeup_writer = socket.socketpair()
        for end in (self.wakeups, self.wakeup_writer):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wakeup_writer.fileno(), warn_on_full_buffer=False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(requests, selectors.EVENT_READ)
        self.selector.register(self.wakeups, selectors.EVENT_READ)

    def serve(self):
        """Returns the request in the child process that runs the command, or `None` at the end."""
        while True:
            timeout = 0.05 if self.ended else None
            for key, _ in self.selector.select(timeout):
                if key.fileobj is self.wakeups:
                    with suppress(BlockingIOError):
                        self.wakeups.recv(4096)
                    continue
                received, descriptors = self.receive()
                if not received:
                    for pid in children():
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    return None
                if self.fork(descriptors):
                    return json.loads(received)
            self.reap()
            self.report()

    def receive(self):
        received, descriptors, _, _ = socket.recv_fds(self.requests, 65536, 4)
        while received and not received.endswith(b"\n"):
            received += self.requests.recv(65536)
        return received, descriptors

    def fork(self, descriptors):
        """Forks, and returns true in the child, which then has the descriptors as 0, 1 and 2."""
        *standard, events = descriptors
        pid = os.fork()
        if pid:
            self.commands[pid] = events
            for descriptor in standard:
                os.close(descriptor)
            os.write(events, json.dumps({"pid": pid}).encode() + b"\n")
            return False
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in (*self.commands.values(), *(events for events, _, _ in self.ended), events):
            os.close(other)
        self.selector.close()
        for end in (self.wakeups, self.wakeup_writer, self.requests):
            end.close()
        os.setsid()
        for number, descriptor in enumerate(standard):  # all of them are above 2
            os.dup2(descriptor, number)
            os.close(descriptor)
        return True

    def reap(self):
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                if pid in self.commands:
                    code = os.waitstatus_to_exitcode(status)
                    self.ended.append((self.commands.pop(pid), code, time.monotonic()))

    def report(self):
        """Reports the commands that ended, once all processes that they left behind have also ended."""
        if not self.ended:
            return
        left = {pid: command_line(pid) for pid in children() - self.commands.keys()}
        if left and time.monotonic() < self.ended[-1][2] + LEFT_AFTER:
            return
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for events, code, _ in self.ended:
            with suppress(BrokenPipeError):
                os.write(
                    events, json.dumps({"code": code, "left": list(left.values())}).encode() + b"\n"
                )
            os.close(events)
        self.ended.clear()


def text_stream(descriptor, encoding, errors):
    raw = io.FileIO(descriptor, "r" if descriptor == 0 else "w", closefd=False)
    if descriptor == 0:
        return io.TextIOWrapper(io.BufferedReader(raw), encoding, errors)
    if descriptor == 2:
        errors = "backslashreplace"
    is_lines = descriptor == 2 or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=is_lines)


def run(request):
    """Runs a command as a new Python process would run it."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` ignores it
    for descriptor in request["closed"]:
        os.close(descriptor)
    if 0 not in request["closed"] and os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if request["program"]:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execve(request["program"][0], request["program"] + request["arguments"], request["env"])
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")
    streams = [
        None
        if descriptor in request["closed"]
        else text_stream(descriptor, encoding, errors or "strict")
        for descriptor in range(3)
    ]
    sys.stdin, sys.stdout, sys.stderr = streams
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    if not request["rich"]:
        for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
            del sys.modules[name]
        sys.modules["rich"] = None
    from ownertask.__main__ import main  # the fork server has imported it

    sys.argv = ["ownertask", *request["arguments"]]
    return main(request["arguments"])


if __name__ == "__main__":
    import_all()
    become_subreaper()
    gc.collect()
    gc.freeze()
    request = Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    if request:
        sys.exit(run(request))
