"""The stdin and stdout of a server as a pair of streams: each line is one JSON-RPC message.

The caller reads and writes the pipes directly, without a task or a memory stream in between. On this
side, both pipes are nonblocking.

* A line is read in linear time, and it has a maximum length.
* A cancelled caller never leaves half a message in the pipe. Another task writes the rest.

Source:
    <https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#stdio>
"""

import codecs
import os
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final

from anyio import (
    BrokenResourceError,
    ClosedResourceError,
    EndOfStream,
    Event,
    Lock,
    Semaphore,
    get_cancelled_exc_class,
    notify_closing,
    wait_readable,
    wait_writable,
)
from anyio.lowlevel import checkpoint
from mcp.shared.message import SessionMessage
from typing_extensions import TypeAliasType, override

from . import _sdk
from ._base_streams import BaseReadStream, BaseStream
from ._readable import Readable

if sys.platform != "win32":  # pragma: no branch - only Linux uses it
    import fcntl

__all__ = [
    "CHUNK_BYTES",
    "LARGE_PIPE",
    "LAST_CHUNKS",
    "MESSAGES_IN_A_ROW",
    "ServerReadStream",
    "ServerWriteStream",
]

CHUNK_BYTES: Final = 65536
"""How much is read at once: the default capacity of a pipe on Linux."""

LARGE_PIPE: Final = 4 * CHUNK_BYTES
"""The capacity of a pipe to a server that was sent a message of more than `CHUNK_BYTES`."""

MESSAGES_IN_A_ROW: Final = 10
"""How many messages are received without letting other tasks run, if they arrived together."""

LAST_CHUNKS: Final = 16
"""How many chunks are read after the server exits: 1 MiB, by default the maximum size of a pipe on
Linux. The limit is needed because a child process of the server can continue to write."""

OnEnd = TypeAliasType("OnEnd", Callable[[Exception], Awaitable[object]])


class ServerReadStream(BaseReadStream):
    """The messages that the server writes to its stdout.

    Attributes:
        drained: Set when the reader has received all messages, or if nobody reads.
    """

    def __init__(
        self, descriptor: int, encoding: str, errors: str, max_bytes: int | None, on_end: OnEnd
    ) -> None:
        """Reads from a pipe.

        Args:
            descriptor: The pipe. The caller closes it.
            encoding: The encoding of the messages.
            errors: How to handle bytes that cannot be decoded.
            max_bytes: The maximum length of a line; `None` means no limit.
            on_end: Awaited with the reason for the end of the stream, before the reader gets
                `EndOfStream`.
        """
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self.drained = Event()
        self._errors = errors
        self._max_bytes = max_bytes
        self._on_end = on_end
        self._end_reason: Exception | None = None
        self._lines: deque[bytes] = deque()
        self._line_parts: list[bytes] = []  # the beginning of the next line
        self._line_length = 0
        self._was_read = False
        self._in_a_row = 0
        self._is_behind = False  # the pipe may contain more than the last read returned
        self._turn = Lock(fast_acquire=True)
        self._readable = Readable(descriptor, self._read) if Readable.is_supported() else None
        # In UTF-8, a line break is always one byte. Other encodings are converted to it.
        self._decoder = None if _is_utf8(encoding) else codecs.getincrementaldecoder(encoding)(errors)

    async def receive(self) -> SessionMessage | Exception:
        self._was_read = True
        if self._in_a_row == MESSAGES_IN_A_ROW:
            self._in_a_row = 0
            await checkpoint()
        self._in_a_row += 1
        while True:
            if self.is_closed:
                raise ClosedResourceError
            if self._lines:
                item = self._message_in(self._lines.popleft())
                if item is not None:
                    return item
            elif self._end_reason is None:
                await self._wait_and_read()
            else:
                self.drained.set()
                await self._on_end(self._end_reason)
                raise EndOfStream

    def _message_in(self, line: bytes) -> SessionMessage | Exception | None:
        """Returns the message in a line, or `None` if the line is blank."""
        if not line or line.isspace():
            return None  # at once, because a server may write many blank lines
        if (message := _sdk.valid_message(line)) is not None:
            return message
        try:
            text = line.decode(errors=self._errors)
        except UnicodeDecodeError as error:
            return error
        return _sdk.message_or_error(text) if text.strip() else None

    def _divide(self, data: bytes) -> None:
        """Divides data into lines. The last line is not complete yet."""
        *ends, beginning = data.split(b"\n")
        for end in ends:
            self._extend_line(end)
            if self._end_reason is not None:
                return
            self._lines.append(b"".join(self._line_parts))
            self._line_parts.clear()
            self._line_length = 0
        self._extend_line(beginning)

    def _extend_line(self, part: bytes) -> None:
        self._line_length += len(part)
        if self._max_bytes is None or self._line_length <= self._max_bytes:
            self._line_parts.append(part)
        else:
            self._line_parts.clear()
            self._end_reason = ValueError(
                f"the server sent a line of more than {self._max_bytes} bytes (max_message_bytes)"
            )

    async def _wait_and_read(self) -> None:
        async with self._turn:
            if self.is_closed or self._lines or self._end_reason is not None:
                return  # another reader was faster
            self._in_a_row = 0
            if self._readable is not None:
                await self._readable.wait()  # calls _read()
                return
            if self._is_behind:
                await checkpoint()
            else:
                with suppress(ClosedResourceError):  # raised after notify_closing()
                    await wait_readable(self._descriptor)
            if not self.is_closed:
                self._read()

    def _read(self) -> bool:
        """Reads at most one chunk from the pipe. Returns whether the pipe contained anything."""
        self._is_behind = False
        try:
            data = os.read(self._descriptor, CHUNK_BYTES)
            self._is_behind = len(data) == CHUNK_BYTES
            if not data:
                self._end_reason = EOFError("the server closed its stdout")
            if self._decoder is not None:
                data = self._decoder.decode(data).encode()
        except BlockingIOError:
            return False
        except Exception as error:  # noqa: BLE001 - a codec may raise anything, in a callback of the loop
            self._end_reason = error
            return False
        self._divide(data)
        return bool(data)

    def finish(self) -> None:
        """Reads what is left in the pipe, and ends the stream. Call it when the server has exited."""
        chunks = 0
        while self._end_reason is None and chunks < LAST_CHUNKS and not self.is_closed and self._read():
            chunks += 1
        if self._end_reason is None:  # a child process of the server holds the pipe open
            self._end_reason = EOFError("the server exited")
        if self.is_closed or not self._was_read:
            self.drained.set()
        self._wake_reader()

    @override
    def close(self) -> None:
        if not self.is_closed:  # later, the descriptor may belong to another connection
            super().close()
            self.drained.set()
            self._wake_reader()

    def _wake_reader(self) -> None:
        if self._readable is not None:
            self._readable.close()
        else:
            notify_closing(self._descriptor)

    async def discard(self) -> None:
        """Empties the pipe until it is closed, so that a server that writes to it can exit."""
        # A reader that close() woke must run first. As it leaves anyio's wait_readable(), it removes the
        # descriptor from the event loop, even if another task, which may be eager, waits for it by then.
        await checkpoint()
        while True:
            with suppress(BlockingIOError):
                await wait_readable(self._descriptor)
                if not os.read(self._descriptor, CHUNK_BYTES):
                    return


class ServerWriteStream(BaseStream):
    """The messages to the server's stdin."""

    def __init__(
        self,
        descriptor: int,
        encoding: str,
        errors: str,
        start_soon: Callable[[Callable[[], Awaitable[None]]], object],
        on_end: OnEnd,
    ) -> None:
        """Writes to a pipe.

        Args:
            descriptor: The pipe. The caller closes it.
            encoding: The encoding of the messages.
            errors: How to handle characters that cannot be encoded.
            start_soon: Runs a function in a task that the sender's cancellation does not reach.
            on_end: Awaited if the server has closed the pipe, before the sender gets the error.
        """
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._start_soon = start_soon
        self._on_end = on_end
        self._is_shut = False
        self._unpaused = 0  # bytes since the last checkpoint
        self._is_enlarged = False
        # Not encode(), which would add a byte order mark to each message.
        self._encoder = None if _is_utf8(encoding) else codecs.getincrementalencoder(encoding)(errors)
        self._cancelled_type = get_cancelled_exc_class()
        self._turn = Semaphore(1, fast_acquire=True)  # another task may release it

    async def send(self, item: SessionMessage, /) -> None:
        data = _sdk.message_to_utf8(item) + b"\n"
        if self._encoder is not None:
            data = self._encoder.encode(data.decode())
        await self._turn.acquire()
        if self.is_closed:
            self._turn.release()
            raise ClosedResourceError
        if len(data) > CHUNK_BYTES and not self._is_enlarged:
            self._is_enlarged = True
            _enlarge(self._descriptor)
        if not await self._write_all(memoryview(data), is_begun=False):
            await self._on_end(_stdin_closed())
            raise BrokenResourceError
        self._unpaused += len(data)
        if self._unpaused > CHUNK_BYTES:  # in a loop that only sends, other tasks must run, too
            self._unpaused = 0
            await checkpoint()

    async def _write_all(self, data: memoryview, *, is_begun: bool) -> bool:
        """Writes a message, or the rest of a message, and then lets the next sender write.

        Returns `False` if the server has closed the pipe. If the caller is cancelled in the middle of a
        message, another task continues.
        """
        rest = data
        try:
            while rest := self._write(rest):
                await wait_writable(self._descriptor)
        except self._cancelled_type:
            if (is_begun or len(rest) < len(data)) and not self._is_shut:
                self._start_soon(partial(self._finish, rest))  # keeps the turn
            else:
                self._turn.release()
            raise
        except BrokenPipeError:
            self._turn.release()
            return False
        except BaseException:
            self._turn.release()
            raise
        self._turn.release()
        return True

    async def _finish(self, rest: memoryview) -> None:
        with suppress(ClosedResourceError):
            if not await self._write_all(rest, is_begun=True):
                await self._on_end(_stdin_closed())

    def _write(self, data: memoryview) -> memoryview:
        """Writes what the pipe accepts now, and returns the rest."""
        if self._is_shut:
            raise ClosedResourceError
        try:
            return data[os.write(self._descriptor, data) :]
        except BlockingIOError:
            return data

    async def flush(self) -> None:
        """Accepts no more messages, and waits until the current one is written."""
        self.is_closed = True
        async with self._turn:
            pass

    def shut(self) -> None:
        """Ends the current write, so that the descriptor can be closed."""
        if not self._is_shut:  # later, the descriptor may belong to another connection
            self._is_shut = self.is_closed = True
            notify_closing(self._descriptor)


def _enlarge(pipe: int) -> None:
    """Lets a pipe hold more, so that a long message is written in fewer steps. Works only on Linux."""
    # OSError: the pipes of this user have reached their common limit.
    with suppress(AttributeError, OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, LARGE_PIPE)


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


def _stdin_closed() -> Exception:
    return BrokenPipeError("the server closed its stdin")
