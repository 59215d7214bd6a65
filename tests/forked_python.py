"""Starts Python programs in forked processes, which have imported everything already.

Importing the SDK takes a second, and most programs in the tests take less. After `Client.install()`,
`subprocess.Popen([sys.executable, ...])` and everything that uses it, such as `anyio.open_process()`,
requests a process from a *fork server*. The process runs the program as a new Python would, with its own
arguments, environment, folder, standard streams, warnings and `sys.path`, until the interpreter exits.

The process is a child of the client, as a new Python would be: the fork server forks twice, and the
client, which is a child subreaper meanwhile, adopts the grandchild.

A program that a test starts also has a fork server, for its servers, except with `-c`. With other
options, on a terminal, and on systems other than Linux, a new Python runs the program.
"""

import copy
import ctypes
import gc
import importlib.util
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

NAMES = [
    "anyio._backends._asyncio",
    "anyio._backends._trio",
    "anyio.from_thread",
    "fastapi",
    "mcp.client.sse",
    "mcp.client.stdio",
    "mcp.client.streamable_http",
    "mcp.client.websocket",
    "mcp.server.fastmcp",
    "mcp.server.mcpserver",
    "mcp.server.sse",
    "mcp.server.stdio",
    "mcp.server.streamable_http_manager",
    "ownertask.mcp",
    "ownertask.testing",
    "trio",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.main",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvloop",
    "websockets.asyncio.client",
    "websockets.asyncio.server",
]
DEFAULTS = (None, None, None, -1, None)
"""The arguments gid, gids, uid, umask and preexec_fn of `Popen`."""

real_fork_exec = getattr(subprocess, "_fork_exec", None)  # Windows has none
_clients = []  # the client of the fork server, while it runs


def sockets():
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def adopt_orphans(value):
    ctypes.CDLL(None).prctl(36, value, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


class Client:
    """Starts processes for this process."""

    def __init__(self, server, *, is_test):
        self.server = server.detach()  # at exit, an open socket would cause a warning
        self.is_test = is_test
        self.pid = os.getpid()
        self.lock = threading.Lock()

    def install(self, assign=setattr):
        assign(subprocess, "_USE_POSIX_SPAWN", False)
        assign(subprocess, "_fork_exec", self.fork_exec)

    def fork_exec(self, *arguments):
        """Takes the place of the function that `Popen` calls."""
        args, _, _, pass_fds, cwd, env, stdin, _, _, stdout, _, stderr, _, writer, *rest = arguments
        _, new_session, group, *others = rest
        args = [os.fsdecode(arg) for arg in args]
        folder = Path(os.fsdecode(cwd or ".")).absolute()
        standard = [own if own >= 0 else number for number, own in enumerate((stdin, stdout, stderr))]
        if (
            args[0] != sys.executable
            or (args[1].startswith("-") and args[1] not in {"-c", "-m", "-W"})
            or pass_fds != (writer,)
            or tuple(others[:5]) != DEFAULTS
            or self.pid != os.getpid()  # the server would not fork a child of this forked process
            or not folder.is_dir()
            or any(map(os.isatty, standard))
        ):
            return real_fork_exec(*arguments)
        items = map(os.fsdecode, env) if env is not None else map("=".join, os.environ.items())
        has_server = self.is_test and "-c" not in args
        request = (args[1:], str(folder), list(items), new_session, group, has_server)
        with self.lock, socket.socket(fileno=os.dup(self.server)) as server:
            adopt_orphans(1)
            socket.send_fds(server, [pickle.dumps(request)], standard)
            pid = int(server.recv(64))
            adopt_orphans(0)
        return pid


def serve(requests):
    """Forks for each request until the client ends. Returns only in the processes of programs."""
    while True:
        received, descriptors, _, _ = socket.recv_fds(requests, 2**18, 3)
        if not received:
            os._exit(0)
        program, adopted = sockets()
        if not (between := os.fork()):
            if os.fork():
                os._exit(0)
            program.close()
            requests.close()
            *request, has_server = pickle.loads(received)
            if has_server:
                ours, theirs = sockets()
                if not os.fork():
                    for descriptor in (ours.detach(), adopted.detach(), *descriptors):
                        os.close(descriptor)
                    return serve(theirs)
                theirs.close()
                Client(ours, is_test=False).install()
            return *request, descriptors, adopted
        for descriptor in (adopted.detach(), *descriptors):
            os.close(descriptor)
        os.waitpid(between, 0)
        program.send(b"adopted")
        requests.send(program.recv(64))
        program.close()


def run(path, args, folder, items, new_session, group, descriptors, adopted):
    """Runs a program as a new Python would run it."""
    if new_session:
        os.setsid()
    if group >= 0:
        os.setpgid(0, group)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(descriptors[number], number)
        os.close(descriptors[number])
        old = getattr(sys, name)
        options = {"encoding": old.encoding, "errors": old.errors, "closefd": False}
        stream = os.fdopen(number, "w" if number else "r", 1 if number == 2 else -1, **options)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(item.split("=", 1) for item in items)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with adopted:
        adopted.recv(64)
        adopted.send(str(os.getpid()).encode())

    sys.warnoptions[:] = filter(None, os.environ.get("PYTHONWARNINGS", "").split(","))
    while args[0] == "-W":
        sys.warnoptions.append(args[1])
        del args[:2]
    warnings._processoptions(sys.warnoptions)
    folders = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [*(str(Path(folder).absolute()) for folder in folders), *path]
    module = sys.modules["__main__"] = ModuleType("__main__")
    if args[0] == "-m":
        sys.path.insert(0, folder)
        sys.argv = ["-m", *args[2:]]
        runpy._run_module_as_main(args[1])
    elif args[0] == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *args[2:]]
        exec(compile(args[1], "<string>", "exec"), vars(module))
    else:
        file = Path(args[0])
        sys.path.insert(0, str(file.resolve().parent))
        sys.argv = args
        module.__file__ = str(file.absolute())
        exec(compile(file.read_bytes(), module.__file__, "exec"), vars(module))


@contextmanager
def fork_server():
    """Runs a fork server, and yields its client."""
    ours, theirs = sockets()
    library = Path(importlib.util.find_spec("ownertask").origin).parents[1]
    command = [sys.executable, "-P", __file__, str(theirs.fileno()), str(library)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    client = Client(ours, is_test=True)
    with theirs:
        pipes = {"stdin": subprocess.DEVNULL, "pass_fds": [theirs.fileno()]}
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env, **pipes)
    _clients.append(client)
    try:
        yield client
    finally:
        _clients.clear()
        os.close(client.server)
        server.wait()


@contextmanager
def forking():
    """Forks the Python programs that are started meanwhile, but not the programs that those start.

    If no fork server runs in this process, a new Python runs them.
    """
    if not _clients:
        yield
        return
    client = copy.copy(_clients[0])
    client.is_test = False
    saved = subprocess._USE_POSIX_SPAWN, subprocess._fork_exec
    client.install()
    try:
        yield
    finally:
        subprocess._USE_POSIX_SPAWN, subprocess._fork_exec = saved


def main(descriptor, library):
    path = sys.path.copy()
    sys.path.insert(0, library)
    for name in NAMES:
        with suppress(ImportError):
            importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.collect()
    gc.freeze()
    run(path, *serve(socket.socket(fileno=int(descriptor))))


if __name__ == "__main__":
    main(*sys.argv[1:])
