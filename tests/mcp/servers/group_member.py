"""Runs code in a process that a test can watch and control.

Usage: group_member.py SOCKET CODE

The code can call the functions below.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time  # noqa: F401 - for the code

path, code = sys.argv[1:]


def join(name):
    """Connects to the test. The test can send code, and detects the end of this process."""
    global connection  # noqa: PLW0603
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    connection.sendall(f"{name} {os.getpid()}\n".encode())
    threading.Thread(target=obey, args=[connection.makefile()], daemon=True).start()


def obey(lines):
    for line in lines:
        exec(line, globals())


def start(code, **options):
    """Starts a child process. It inherits the pipes, unless the options say something else."""
    return subprocess.Popen([sys.executable, __file__, path, code], **options)


def fork(function):
    """Forks a child process, which inherits the pipes. Call it before `join()`."""
    if child := os.fork():
        return child
    try:
        function()
    finally:
        os._exit(0)


def ignore_sigterm():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def serve():
    import tiny  # noqa: F401


NOTHING = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.DEVNULL)

exec(code)
