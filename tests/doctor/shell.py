"""Runs the command line as a person would, on a pseudo-terminal or with pipes.

Each command runs in a process that `fork_server.py` forks, or as a real program. By default, the harness
also fails a test if the command printed a traceback or left a process behind.
"""

import importlib.util
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import coverage

try:
    import fcntl
    import struct
    import termios
except ImportError:  # Windows
    AVAILABLE = False
else:
    AVAILABLE = True

MODULE = [sys.executable, "-m", "ownertask"]
"""A value of the `program` argument that runs a real program, as does `CONSOLE_SCRIPT`."""

CONSOLE_SCRIPT = [str(Path(sysconfig.get_path("scripts")) / "ownertask")]

HAS_RICH = importlib.util.find_spec("rich") is not None

# Variables that commands do not inherit from the tests. A test may set them.
UNSET = {
    *("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"),
    *("CLICOLOR", "COLORTERM", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"),
    *("COLUMNS", "LINES", "PYTHONIOENCODING", "PYTHONUNBUFFERED"),
}

_requests = []  # the socket of the fork server, while it runs


def coverage_variables():
    """Returns an environment in which coverage is measured, if it is measured in the tests."""
    measured = coverage.Coverage.current()
    return {} if measured is None else {"COVERAGE_PROCESS_CONFIG": measured.config.serialize()}


@contextmanager
def fork_server():
    """Runs the fork server, without waiting until it is ready."""
    if not AVAILABLE:
        yield
        return
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            server = subprocess.Popen(
                [sys.executable, "-P", Path(__file__).with_name("fork_server.py"), str(theirs.fileno())],
                env=os.environ | coverage_variables(),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # so Ctrl-C while the tests run does not interrupt it
            )
        _requests.append(ours)
        try:
            yield
        finally:
            _requests.clear()
            ours.close()
            server.wait()


@dataclass
class Finished:
    code: int
    """The exit status as a shell shows it: 128 and the number of the signal that killed the process."""

    out: str
    err: str
    left: list[str]
    """The command lines of the processes that were left behind, if the system is Linux."""


class Process:
    """A running command. `out` and `err` are what it printed until now."""

    def __init__(self, read, write, events):
        self._streams = read  # the name of an attribute, by file descriptor
        self._input = write
        self._buffers = dict.fromkeys(("out", "err", "events"), b"")
        self._streams[events] = "events"
        self.pid = self.code = self.left = None

    def _start(self, request, descriptors):
        socket.send_fds(_requests[0], [json.dumps(request).encode() + b"\n"], descriptors)
        self._read_until(lambda: "pid" in self._event(0), 60, "start")
        self.pid = self._event(0)["pid"]

    @property
    def out(self):
        return self._buffers["out"].decode(errors="replace")

    @property
    def err(self):
        return self._buffers["err"].decode(errors="replace")

    @property
    def text(self):
        return self.out + self.err

    def wait_for(self, text, timeout=60):
        """Reads until the output contains a text or matches a compiled pattern."""
        pattern = text if isinstance(text, re.Pattern) else re.compile(re.escape(text))
        self._read_until(lambda: pattern.search(self.text), timeout, f"print {text!r}")
        return self

    def wait(self, timeout=60, *, may_leave=False):
        """Waits for the command to end, reads the rest of its output, and returns its exit status."""
        if self.code is None:
            self._read_until(lambda: "code" in self._event(1), timeout, "end")
            end = self._event(1)
            self.code = end["code"] if end["code"] >= 0 else 128 - end["code"]
            self.left = end["left"]
            while self._read(0):
                pass
        assert "Traceback (most recent call last)" not in self.text, self.text
        assert may_leave or not self.left, f"the command left {self.left}; it printed:\n{self.text}"
        return self.code

    def send_signal(self, number):
        assert self.code is None
        os.kill(self.pid, number)

    def type(self, text):
        os.write(self._input, text.encode())

    def close_output(self):
        """Closes the reading end of the command's stdout, as `head` does."""
        for descriptor, name in list(self._streams.items()):
            if name == "out":
                self._forget(descriptor)

    def _event(self, number):
        lines = self._buffers["events"].splitlines(keepends=True)
        return json.loads(lines[number]) if len(lines) > number and lines[number].endswith(b"\n") else {}

    def _read_until(self, condition, timeout, what):
        deadline = time.monotonic() + timeout
        while not condition():
            remaining = deadline - time.monotonic()
            ended = "events" not in self._streams.values() and not self._read(0)
            if not ended and remaining > 0:
                self._read(remaining)
            elif not condition():
                problem = "ended and did not" if ended else f"did not within {timeout} seconds"
                raise AssertionError(f"the command {problem} {what}; it printed:\n{self.text}")

    def _read(self, timeout):
        """Reads what there is. Returns whether there was any, or the end of a stream."""
        readable, _, _ = select.select(list(self._streams), [], [], timeout)
        for descriptor in readable:
            try:
                data = os.read(descriptor, 65536)
            except OSError:  # the last process has closed the pseudo-terminal
                data = b""
            if data:
                self._buffers[self._streams[descriptor]] += data
            else:
                self._forget(descriptor)
        return bool(readable)

    def _forget(self, descriptor):
        del self._streams[descriptor]
        if descriptor != self._input:
            os.close(descriptor)

    def _close(self):
        try:
            if self.code is None and self.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                self._read_until(lambda: "code" in self._event(1), 60, "end")
        finally:
            for descriptor in list(self._streams):
                self._forget(descriptor)
            if self._input is not None:
                os.close(self._input)


class Terminal(Process):
    """A command on a pseudo-terminal. `out` is all that the terminal received, including sequences."""

    def interrupt(self):
        """Types Ctrl-C."""
        os.write(self._input, b"\x03")

    def hang_up(self):
        """Closes the terminal, so the command receives SIGHUP and can neither read nor write."""
        self._streams.pop(self._input, None)
        os.close(self._input)
        self._input = None

    def resize(self, columns, rows=24):
        fcntl.ioctl(self._input, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.columns = columns

    def screen(self):
        """Returns the lines that a person sees, including those that scrolled away."""
        return rendered(self.out, self.columns)


def rendered(text, columns):
    """Draws a text with escape sequences, and returns the lines without the spaces at their ends."""
    lines, row, column = [[]], 0, 0
    for sequence, count, action, char in re.findall(r"(\x1b\[\??([\d;]*)([A-Za-z]))|([^\x1b])", text):
        if action == "A":
            row = max(0, row - int(count or 1))
        elif action == "K":
            del lines[row][0 if count == "2" else column :]
        elif action == "J":
            del lines[row][column:], lines[row + 1 :]
        elif sequence or char == "\a":
            pass  # colors, and whether the cursor is visible
        elif char == "\r":
            column = 0
        elif char == "\b":
            column = max(0, column - 1)
        elif char == "\n":
            row += 1
        else:
            if column == columns:
                row, column = row + 1, 0
                lines += [[] for _ in range(row + 1 - len(lines))]
            line = lines[row]
            line += " " * (column + 1 - len(line))
            line[column] = char
            column += 1
        lines += [[] for _ in range(row + 1 - len(lines))]
    return ["".join(line).rstrip() for line in lines]


@contextmanager
def _started(kind, arguments, standard, read, write, options):
    """Starts a command; `standard` are its descriptors, which are closed here."""
    env = {name: value for name, value in os.environ.items() if name not in UNSET}
    env["TERM"] = "xterm-256color"
    if options.get("program"):  # the SDK does not pass this on to servers
        env |= coverage_variables()
    for name, value in (options.get("env") or {}).items():
        env.pop(name, None)
        if value is not None:
            env[name] = value
    request = {
        "arguments": [str(argument) for argument in arguments],
        "closed": list(options.get("closed", ())),
        "env": env,
        "folder": str(options.get("folder") or Path.cwd()),
        "program": options.get("program"),
        "rich": options.get("rich", True),
    }
    events, writer = os.pipe()
    process = kind(read, write, events)
    process.columns = options.get("columns")
    try:
        try:
            process._start(request, [*standard, writer])
        finally:
            for descriptor in (*standard, writer):
                os.close(descriptor)
        yield process
    finally:
        process._close()


@contextmanager
def terminal(*args, columns=80, rows=24, env=None, rich=True, program=None, folder=None, stdout=None):
    """Runs a command on a pseudo-terminal.

    Args:
        *args: The command's arguments.
        columns: The width of the terminal.
        rows: Its height.
        env: Environment variables to set, or with `None`, to unset.
        rich: `False` if rich shall not be importable.
        program: The real program to run, such as `MODULE`.
        folder: The working directory.
        stdout: A file descriptor to use for stdout, instead of the terminal.
    """
    options = {"env": env, "rich": rich, "program": program, "folder": folder, "columns": columns}
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    out = os.dup(theirs if stdout is None else stdout)
    standard = [theirs, out, os.dup(theirs)]
    with _started(Terminal, args, standard, {ours: "out"}, ours, options) as process:
        yield process


@contextmanager
def piped(*args, env=None, rich=True, program=None, folder=None, stdin=None, stdout=None, closed=()):
    """Runs a command with pipes.

    Args:
        *args: The command's arguments.
        env: Environment variables to set, or with `None`, to unset.
        rich: `False` if rich shall not be importable.
        program: The real program to run, such as `MODULE`.
        folder: The working directory.
        stdin: A text to read, or `None` for `/dev/null`.
        stdout: A file descriptor to use for stdout.
        closed: The standard descriptors to close, as the shell does for `>&-`.
    """
    options = {"env": env, "rich": rich, "program": program, "folder": folder, "closed": closed}
    if stdin is None:
        standard = [os.open(os.devnull, os.O_RDONLY)]
    else:
        reader, writer = os.pipe()
        os.write(writer, stdin.encode())  # it is shorter than the pipe's buffer
        os.close(writer)
        standard = [reader]
    read = {}
    for name in ("out", "err"):
        if name == "out" and stdout is not None:
            standard.append(os.dup(stdout))
            continue
        reader, writer = os.pipe()
        read[reader] = name
        standard.append(writer)
    with _started(Process, args, standard, read, None, options) as process:
        yield process


def run(*args, timeout=60, may_leave=False, **options):
    """Runs a command with pipes until it ends; takes the options of `piped()`."""
    with piped(*args, **options) as process:
        process.wait(timeout, may_leave=may_leave)
        return Finished(process.code, process.out, process.err, process.left)
