"""Reads a server's stderr: keeps its last lines, and passes it on to `errlog` in a thread.

The pipe is read as long as the server runs, even if `errlog` is slow or fails. A server with a full
stderr would block.
"""

import codecs
import io
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from threading import RLock, Thread
from typing import Final, Protocol, TextIO, cast

from anyio import move_on_after, wait_readable

from .._log import WARNING, log
from ._in_thread import in_thread
from ._server_streams import CHUNK_BYTES, LAST_CHUNKS

__all__ = ["ErrorLog", "ErrorLogWriter", "StderrPipe", "StderrTail", "descriptor_of"]


TAIL_BYTES: Final = 8192
"""How much of a server's stderr is kept: a traceback or two."""

MAX_WAITING_BYTES: Final = 32 * 2**20
"""How much of a server's stderr may wait for a slow `errlog`."""

LAST_WRITES: Final = 1.0
"""Time, in seconds, to wait for `errlog` after the server exited."""


class ErrorLog(Protocol):
    """Accepts a server's stderr: a file, an `io.StringIO`, the stream of a notebook or a test."""

    def write(self, text: str, /) -> object:
        """Writes a text. If the object has a `flush()` method, it is called after each write."""
        ...


class StderrTail:
    """Keeps the last lines of its input, at most `TAIL_BYTES`."""

    def __init__(self) -> None:
        self._kept = b""
        self._is_cut = False

    def feed(self, data: bytes) -> None:
        """Adds data, and drops what is too old to keep."""
        kept = self._kept + data
        self._is_cut = self._is_cut or len(kept) > TAIL_BYTES
        self._kept = kept[-TAIL_BYTES:]

    def __str__(self) -> str:
        kept = self._kept
        if self._is_cut:
            beginning, _, lines = kept.partition(b"\n")
            kept = lines or beginning
        return kept.decode(errors="replace")


class StderrPipe:
    """Reads the pipe to which a server writes its stderr."""

    def __init__(self, descriptor: int, tail: StderrTail, errlog: "ErrorLogWriter") -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._tail = tail
        self._errlog = errlog

    async def read(self) -> None:
        """Reads until the pipe is closed."""
        while True:
            await wait_readable(self._descriptor)
            with suppress(BlockingIOError):
                if not self._read_chunk():
                    return

    def read_rest(self) -> None:
        """Reads what the server wrote before it exited."""
        with suppress(BlockingIOError):
            for _ in range(LAST_CHUNKS):
                if not self._read_chunk():
                    return

    def _read_chunk(self) -> bool:
        data = os.read(self._descriptor, CHUNK_BYTES)
        self._tail.feed(data)
        self._errlog.write(data)
        return bool(data)


class ErrorLogWriter:
    """Writes to `errlog`, in order, in a thread that is started with the first write."""

    def __init__(self, name: str, errlog: ErrorLog | None) -> None:
        """Creates a writer without a thread.

        Args:
            name: The name of the manager, for the log.
            errlog: Receives the text. `None` discards it.
        """
        self._name = name
        self._errlog = _with_own_buffer(errlog)
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._lock = RLock()  # the garbage collector may call end_soon() at any point
        self._waiting = 0
        self._dropped = 0
        self._has_failed = False
        self._is_abandoned = False
        self._thread: Thread | None = None

    def write(self, data: bytes) -> None:
        """Passes data to the thread. If too much data is already waiting, drops and counts it."""
        if self._errlog is None or not data:
            return
        with self._lock:
            is_too_much = self._waiting + len(data) > MAX_WAITING_BYTES
        if is_too_much:
            self._dropped += len(data)
            return
        self._put_marker()
        self._put(data)
        if self._thread is None:
            run = copy_context().run  # a notebook looks up the current cell in the context
            name = f"errlog of {self._name}"
            thread = Thread(target=run, args=[self._run], name=name, daemon=True)
            with suppress(RuntimeError):  # too many threads; the next write tries again
                thread.start()
                self._thread = thread

    def _put_marker(self) -> None:
        if self._dropped:
            marker = f"\n[ownertask: {self._dropped} bytes of the server's stderr were dropped here]\n"
            self._dropped = 0
            self._put(marker.encode())

    def _put(self, data: bytes) -> None:
        with self._lock:
            self._waiting += len(data)
        self._queue.put(data)

    def end_soon(self) -> None:
        """Ends the thread after it has written what is waiting."""
        self._put_marker()
        self._queue.put(None)

    async def aclose(self) -> None:
        """Ends the thread. If it is still running after `LAST_WRITES` seconds, logs a warning."""
        thread = self._thread
        if thread is None:
            return
        self.end_soon()
        await in_thread(lambda: thread.join(LAST_WRITES))
        if thread.is_alive():
            self._is_abandoned = True
            message = (
                "%s: errlog.write() did not return; the last %d bytes of the server's stderr are lost"
            )
            report = partial(log, WARNING, message, self._name, self._waiting)
            with move_on_after(LAST_WRITES):  # a log handler may block on the same file
                await in_thread(report, abandon_on_cancel=True)

    def _run(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while (data := self._queue.get()) is not None and not self._is_abandoned:
            self._write(decoder.decode(data))
            with self._lock:
                self._waiting -= len(data)
        self._write(decoder.decode(b"", final=True))

    def _write(self, text: str) -> None:
        errlog = self._errlog
        if not text or errlog is None or self._is_abandoned:
            return
        try:
            _write_replacing(errlog, text)
            flush = getattr(errlog, "flush", None)
            if flush is not None and not self._is_abandoned:
                flush()
        except BaseException as error:  # noqa: BLE001 - no error of errlog may end the thread
            if not self._has_failed:
                self._has_failed = True
                message = "%s: writing the server's stderr to errlog failed; later errors are not logged"
                log(WARNING, message, self._name, exc_info=error)


def _with_own_buffer(errlog: ErrorLog | None) -> ErrorLog | None:
    """Returns a stream with a separate buffer if `errlog` writes to the process's stdout or stderr.

    A blocked write holds the lock of its buffer. Python flushes the buffers of `sys.stdout` and
    `sys.stderr` when it exits, so it would wait for that lock forever, or end with a fatal error.
    """
    with suppress(ValueError):  # it is closed, or has no descriptor
        if type(errlog) is io.TextIOWrapper and errlog.fileno() in {1, 2}:
            encoding, errors = errlog.encoding, errlog.errors
            return open(errlog.fileno(), "w", encoding=encoding, errors=errors, closefd=False)
    return errlog


def _write_replacing(errlog: ErrorLog, text: str) -> None:
    """Writes a text. Replaces the characters that `errlog` cannot encode."""
    while True:
        try:
            errlog.write(text)
        except UnicodeEncodeError as error:
            bad = error.object[error.start : error.end]
            replaced = text.translate(dict.fromkeys(map(ord, bad), "?"))
            if replaced == text:
                raise
            text = replaced
        else:
            return


@contextmanager
def descriptor_of(errlog: ErrorLog | None) -> Generator[TextIO]:  # pragma: no cover - for Windows
    """Yields a file to which a server can write its stderr directly."""
    try:
        descriptor = os.dup(cast("TextIO", errlog).fileno())
    except (AttributeError, OSError):  # errlog has no descriptor
        descriptor = os.open(os.devnull, os.O_WRONLY)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        yield file
