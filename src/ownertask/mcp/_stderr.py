"""A server's stderr, which the SDK hands through to a file descriptor and never sees.

Here it goes through a pipe, so that it can go on to anything that takes text, and so that its tail is
known. It is read for as long as the server lives, whatever becomes of what was read: a server that
finds its stderr full would stop.
"""

import codecs
import logging
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, Protocol, TextIO, cast

import anyio

__all__ = ["ErrorLog", "StderrTail", "piped_stderr"]

logger = logging.getLogger("ownertask")

TAIL_BYTES: Final = 8192
"""As much of a server's stderr is kept: a traceback or two."""

CHUNK_BYTES: Final = 65536
"""As much is read at once: what a pipe holds on Linux."""

LAST_CHUNKS: Final = 16
"""So many are read when the server has ended, which is all that a pipe can hold. It may have no end:
a process that the server has started can go on writing."""


class ErrorLog(Protocol):
    """What a server's stderr can go to: a file, `io.StringIO`, a notebook's or a test's stream."""

    def write(self, text: str, /) -> object:
        """Takes a text. If there is a `flush()`, too, it is called after each."""
        ...


class StderrTail:
    """The last lines of what was fed to it: `TAIL_BYTES` at most."""

    def __init__(self) -> None:
        self._kept = b""
        self._is_cut = False

    def feed(self, data: bytes) -> None:
        """Keeps the end of what there is."""
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
    """A file to be a server's stderr. What is written to it goes to `errlog` and into `tail`.

    At the end, all that a server which has ended has written was read.

    Args:
        name: Whose stderr it is, for the log.
        errlog: Is written to in the event loop, as soon as there is something. If that fails, it is
            logged, and nothing more is written.
        tail: Is fed with it.
    """
    if sys.platform == "win32":  # pragma: no cover - an event loop cannot wait for a pipe there
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
                # A server that is ended by force may have much to say until it is.
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
        except Exception:  # whatever it is: the server is not to suffer from it
            errlog = None
            logger.warning(
                "%s: writing the server's stderr to errlog failed; the rest is not written",
                name,
                exc_info=True,
            )

    return pass_on


def _descriptor_of(errlog: ErrorLog | None) -> TextIO:  # pragma: no cover - for Windows
    try:
        return os.fdopen(os.dup(cast("TextIO", errlog).fileno()), "w")
    except (AttributeError, OSError):  # it has none
        return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
