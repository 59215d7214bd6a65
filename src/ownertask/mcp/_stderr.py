"""Reads a server's stderr, which the SDK only passes to a file descriptor.

The server writes to a pipe, so its stderr can go to any object that accepts text, and its last lines can
be kept. The pipe is read as long as the server runs, even if `errlog` fails: a server with a full
stderr would block.
"""

import codecs
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, Protocol, TextIO, cast

import anyio

from .._log import WARNING, log

__all__ = ["ErrorLog", "StderrTail", "piped_stderr"]


TAIL_BYTES: Final = 8192
"""How much of a server's stderr is kept: a traceback or two."""

CHUNK_BYTES: Final = 65536
"""How much is read at once: the default capacity of a pipe on Linux."""

LAST_CHUNKS: Final = 16
"""How many chunks are read after the server exits: enough for the largest pipe. The limit is
needed because a child process of the server can continue to write."""


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


@asynccontextmanager
async def piped_stderr(name: str, errlog: ErrorLog | None, tail: StderrTail) -> AsyncGenerator[TextIO]:
    """Yields a file to use as a server's stderr. Its content is passed on to `errlog` and `tail`.

    If the server exits before this context manager is exited, all of its output is passed on.

    Args:
        name: The name of the manager, for the log.
        errlog: Receives the text in the event loop, as soon as it arrives. If a write fails, that is
            logged, and nothing more is written.
        tail: Receives the same data.
    """
    if sys.platform == "win32":  # pragma: no cover - an event loop cannot wait for a pipe on Windows
        with _descriptor_of(errlog) as file:
            yield file
        return
    pass_on = _passing_on(name, errlog, tail)
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb", buffering=0) as pipe, os.fdopen(write_end, "w") as file:
        os.set_blocking(read_end, False)

        async def read() -> None:
            with reading:
                while True:
                    await anyio.wait_readable(read_end)
                    pass_on(pipe.read(CHUNK_BYTES) or b"")

        try:
            async with anyio.create_task_group() as task_group:
                # A server can write a lot while a forced stop ends it.
                reading = anyio.CancelScope(shield=True)
                task_group.start_soon(read)
                try:
                    yield file
                finally:
                    reading.cancel()
        finally:
            for _ in range(LAST_CHUNKS):
                pass_on(pipe.read(CHUNK_BYTES) or b"")
            pass_on(b"", final=True)


class _PassOn(Protocol):
    def __call__(self, data: bytes, *, final: bool = False) -> None: ...


def _passing_on(name: str, errlog: ErrorLog | None, tail: StderrTail) -> _PassOn:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def pass_on(data: bytes, *, final: bool = False) -> None:
        nonlocal errlog
        tail.feed(data)
        text = decoder.decode(data, final)
        if errlog is None or not text:
            return
        try:
            errlog.write(text)
            flush = getattr(errlog, "flush", None)
            if flush is not None:
                flush()
        except Exception as error:  # noqa: BLE001 - no error of errlog may affect the server
            errlog = None
            message = "%s: writing the server's stderr to errlog failed; the rest is not written"
            log(WARNING, message, name, exc_info=error)

    return pass_on


def _descriptor_of(errlog: ErrorLog | None) -> TextIO:  # pragma: no cover - for Windows
    try:
        return os.fdopen(os.dup(cast("TextIO", errlog).fileno()), "w")
    except (AttributeError, OSError):  # errlog has no descriptor
        return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
