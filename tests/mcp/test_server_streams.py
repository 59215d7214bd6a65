"""Tests for the lines between a manager and its server: framing, bounds, cancellation and closing."""

import fcntl
import json
import os
import signal
import struct
import sys
import termios
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint
from mcp import StdioServerParameters
from servers import MUTE, TINY, python_server

from ownertask import ConnectionLostError, ConnectionState, StartTimeoutError
from ownertask.mcp import SessionConnectionManager, StdioConnectionManager, _sdk
from ownertask.mcp._server_streams import (
    CHUNK_BYTES,
    LARGE_PIPE,
    LAST_CHUNKS,
    ServerReadStream,
    ServerWriteStream,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="on Windows, the SDK runs the server")
slow = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])

CAT = StdioServerParameters(command="cat")  # sends each message back
PAUSED_CAT = StdioServerParameters(command="sh", args=["-c", "kill -STOP $$; exec cat"])
BIG = 2**20  # more than a pipe holds
IN_A_ROW = 10  # messages that are received without letting other tasks run


def text_of(number, data=""):
    message = {"jsonrpc": "2.0", "id": number, "method": "ping", "params": {"data": data}}
    return json.dumps(message, ensure_ascii=False)


def message(number, data=""):
    return _sdk.message_from_json(text_of(number, data))


def number_of(item):
    return json.loads(_sdk.message_to_utf8(item))["id"]


def data_of(item):
    return json.loads(_sdk.message_to_utf8(item))["params"]["data"]


def lines(*numbers):
    return "".join(f"{text_of(number)}\n" for number in numbers).encode()


def writes(data, then="sys.stdin.read()"):
    """Returns a server that writes data to its stdout, in parts if data is a list."""
    parts = data if isinstance(data, list) else [data]
    return python_server(f"import os, sys\nfor part in {parts!r}: os.write(1, part)\n{then}")


def unread(descriptor):
    """Returns the number of bytes in a pipe."""
    return struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))[0]


@asynccontextmanager
async def undisturbed(descriptor):
    """Closes a descriptor, gives its number to another pipe, and checks that its reader is not woken."""
    os.close(descriptor)
    reader, writer = os.pipe()
    assert reader == descriptor
    try:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(anyio.wait_readable, reader)  # raises if it is woken too early
            await anyio.wait_all_tasks_blocked()
            yield
            await anyio.wait_all_tasks_blocked()
            os.write(writer, b"x")
    finally:
        os.close(reader)
        os.close(writer)


async def test_closing_a_read_stream_again_does_not_disturb_the_next_owner_of_the_descriptor():
    descriptor, other_end = os.pipe()
    stream = ServerReadStream(descriptor, "utf-8", "strict", None, None)
    stream.close()
    async with undisturbed(descriptor):
        await stream.aclose()
        async with stream:
            pass
    os.close(other_end)


async def test_shutting_a_write_stream_again_does_not_disturb_the_next_owner_of_the_descriptor():
    """A forced stop and a normal one both did this after the server's stdin was closed."""
    other_end, descriptor = os.pipe()
    stream = ServerWriteStream(descriptor, "utf-8", "strict", None, None)
    stream.shut()
    async with undisturbed(descriptor):
        stream.shut()
        await stream.aclose()
    os.close(other_end)


class Reading:
    """A read stream on a pipe, and the other end of it."""

    def __init__(self, encoding="utf-8", errors="strict", max_bytes=None):
        self.descriptor, self.other_end = os.pipe()
        self.reasons = []
        self.stream = ServerReadStream(self.descriptor, encoding, errors, max_bytes, self._on_end)

    async def _on_end(self, reason):
        self.reasons.append(reason)

    async def write(self, *parts):
        """Writes each part after the previous one was read."""
        for part in parts:
            while unread(self.descriptor):
                await checkpoint()
            os.write(self.other_end, part)

    async def write_and_close(self, *parts):
        await self.write(*parts)
        os.close(self.other_end)
        self.other_end = None

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.stream.close()
        for descriptor in (self.descriptor, self.other_end):
            if descriptor is not None:
                os.close(descriptor)


class Writing:
    """A write stream on a pipe, and the other end of it."""

    def __init__(self, tg, encoding="utf-8", errors="strict"):
        self.other_end, self.descriptor = os.pipe()
        os.set_blocking(self.other_end, False)
        self.reasons = []
        self.tg = tg
        self.stream = ServerWriteStream(
            self.descriptor, encoding, errors, self._start_soon, self._on_end
        )
        self.received = b""

    def _start_soon(self, function):
        self.tg.start_soon(function)

    async def _on_end(self, reason):
        self.reasons.append(reason)

    async def numbers(self, count=None):
        """Reads until `count` messages are complete, or to the end. Returns their numbers."""
        while count is None or self.received.count(b"\n") < count:
            await anyio.wait_readable(self.other_end)
            data = os.read(self.other_end, CHUNK_BYTES)
            if not data:
                break
            self.received += data
        assert self.received.endswith(b"\n")
        return [json.loads(line)["id"] for line in self.received.splitlines()]

    def close(self):
        self.stream.shut()
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


@asynccontextmanager
async def writing(*args):
    async with anyio.create_task_group() as tg:
        pipe = Writing(tg, *args)
        try:
            yield pipe, tg
        finally:
            pipe.close()
            os.close(pipe.other_end)


async def resume(manager):
    """Resumes a server that suspended itself."""
    await anyio.to_thread.run_sync(os.waitid, os.P_PID, manager.pid, os.WSTOPPED | os.WNOWAIT)
    os.kill(manager.pid, signal.SIGCONT)


async def cancel_after(turns, scope):
    for _ in range(turns):
        await checkpoint()
    scope.cancel()


# Framing


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-be", "latin-1", "shift_jis"]
)
@pytest.mark.within(30)
async def test_S7_a_message_may_be_split_at_any_byte(encoding):
    data = "é" if encoding == "latin-1" else "あ"
    wire = f"{text_of(1, data)}\r\n\n{text_of(2, data)}\n".encode(encoding)
    for cut in range(1, len(wire)):
        with Reading(encoding) as pipe:
            async with anyio.create_task_group() as tg:
                tg.start_soon(pipe.write, wire[:cut], wire[cut:])
                items = [await pipe.stream.receive() for _ in range(2)]
            assert [(number_of(item), data_of(item)) for item in items] == [(1, data), (2, data)]


async def test_a_message_may_arrive_byte_by_byte():
    wire = lines(1) + text_of(2, "é").encode() + b"\n"
    with Reading() as pipe:
        async with anyio.create_task_group() as tg:
            tg.start_soon(pipe.write, *(bytes([byte]) for byte in wire))
            assert [number_of(await pipe.stream.receive()) for _ in range(2)] == [1, 2]


async def test_O13_other_output_between_messages_does_not_end_the_connection():
    output = b"a banner\n\n \t\r\n\x0c\n" + lines(1, 2).replace(b"\n", b"\r\n")
    output += b'{"jsonrpc": "2.0"}\n[]\n' + lines(3) + text_of(4).encode()  # no line break at the end
    manager = StdioConnectionManager(writes(output, then="os.close(1); sys.stdin.read()"))
    async with manager as (reader, _):
        items = [await reader.receive() for _ in range(6)]
        with pytest.raises(anyio.EndOfStream):
            await reader.receive()
        with pytest.raises(ConnectionLostError, match="the server closed its stdout"):
            await manager.wait_closed()
    seen = [type(item).__name__ if isinstance(item, Exception) else number_of(item) for item in items]
    assert seen == ["ValidationError", 1, 2, "ValidationError", "ValidationError", 3]


@pytest.mark.parametrize(
    ("errors", "data"), [(None, "a\ufffdb"), ("replace", "a\ufffdb"), ("ignore", "ab"), ("strict", None)]
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
async def test_O13_bytes_that_cannot_be_decoded_are_handled_as_set(encoding, errors, data):
    server = writes(text_of(1, "a?b").encode().replace(b"?", b"\xff") + b"\n" + lines(2))
    server.encoding = encoding
    if errors is not None:
        server.encoding_error_handler = errors
    manager = StdioConnectionManager(server)
    async with manager as (reader, _):
        if data is not None:
            assert data_of(await reader.receive()) == data
        elif encoding == "utf-8":  # only this line is lost
            assert isinstance(await reader.receive(), UnicodeDecodeError)
        else:  # the next line break cannot be found
            with pytest.raises(anyio.EndOfStream):
                await reader.receive()
            with pytest.raises(ConnectionLostError, match="can't decode byte 0xff"):
                await manager.wait_closed()
            return
        assert number_of(await reader.receive()) == 2


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-16-le", "latin-1", "shift_jis"])
async def test_other_encodings_work_in_both_directions(encoding):
    """The server reads its stdin as one text, so a byte order mark may only be at the beginning."""
    server = python_server(
        "import codecs, io, json, sys\n"
        f"stdin = io.TextIOWrapper(sys.stdin.buffer, encoding={encoding!r})\n"
        f"encode = codecs.getincrementalencoder({encoding!r})().encode\n"
        "for line in stdin:\n"
        "    text = json.dumps(json.loads(line), ensure_ascii=False) + '\\n'\n"
        "    sys.stdout.buffer.write(encode(text)); sys.stdout.flush()"
    )
    server.encoding = encoding
    data = "é" if encoding == "latin-1" else "あ"
    async with StdioConnectionManager(server) as (reader, writer):
        for number in range(3):
            await writer.send(message(number, data))
            item = await reader.receive()
            assert (number_of(item), data_of(item)) == (number, data)


@pytest.mark.parametrize(
    ("encoding", "junk"), [("utf-16", text_of(1).encode("utf-16-be")[2:]), ("utf-7", b"+2AA-")]
)
async def test_a_decoding_error_without_a_position_loses_the_connection(encoding, junk):
    """Without a byte order mark, or with half a surrogate pair, codecs raise another `UnicodeError`."""
    server = writes(junk + b"\n\n")
    server.encoding = encoding
    manager = StdioConnectionManager(server)
    async with manager as (reader, _):
        with pytest.raises(anyio.EndOfStream):
            await reader.receive()
        with pytest.raises(ConnectionLostError) as caught:
            await manager.wait_closed()
    assert isinstance(caught.value.__cause__, UnicodeError)


async def test_a_codec_of_the_application_may_raise_anything():
    reads_from, descriptor = os.pipe()
    os.write(descriptor, b"junk")
    reasons = []

    async def on_end(reason):
        reasons.append(reason)

    stream = ServerReadStream(reads_from, "rot13", "strict", None, on_end)  # its decoder needs text
    with anyio.fail_after(5), pytest.raises(anyio.EndOfStream):
        await stream.receive()
    assert [type(reason) for reason in reasons] == [TypeError]
    stream.close()
    os.close(reads_from)
    os.close(descriptor)


async def test_blank_lines_are_not_parsed(monkeypatch):
    """Parsing them takes ten times as long, and a server may write many at once."""
    parsed = []
    monkeypatch.setattr(_sdk, "valid_message", parsed.append)
    reads_from, descriptor = os.pipe()
    os.write(descriptor, b"\n" * 1000 + b" \r\n\t\n" + b"x\n")
    stream = ServerReadStream(reads_from, "utf-8", "strict", None, checkpoint)
    with anyio.fail_after(5):
        assert isinstance(await stream.receive(), ValueError)
    assert parsed == [b"x"]
    stream.close()
    os.close(reads_from)
    os.close(descriptor)


async def test_each_message_is_sent_as_one_line():
    async with writing() as (pipe, _):
        await pipe.stream.send(message(1, "a\nb\r\n\u2028é"))
        await pipe.stream.send(message(2))
        assert await pipe.numbers(2) == [1, 2]
    assert data_of(_sdk.message_from_json(pipe.received.split(b"\n")[0].decode())) == "a\nb\r\n\u2028é"


async def test_a_message_that_cannot_be_encoded_fails_alone():
    async with writing("latin-1") as (pipe, _):
        with pytest.raises(UnicodeEncodeError):
            await pipe.stream.send(message(1, "あ"))
        await pipe.stream.send(message(2))
        assert await pipe.numbers(1) == [2]


async def test_a_stream_that_cannot_be_read_ends_with_the_reason():
    """The write end of a pipe stands for a device that fails."""
    other_end, descriptor = os.pipe()
    reasons = []

    async def on_end(reason):
        reasons.append(reason)

    stream = ServerReadStream(descriptor, "utf-8", "strict", None, on_end)
    os.close(other_end)  # the write end becomes readable
    with anyio.fail_after(5), pytest.raises(anyio.EndOfStream):
        await stream.receive()
    assert [type(reason) for reason in reasons] == [OSError]
    stream.close()
    os.close(descriptor)


async def test_a_pipe_that_nobody_reads_does_not_keep_the_event_loop_busy():
    with Reading() as pipe:
        os.write(pipe.other_end, lines(1))
        assert number_of(await pipe.stream.receive()) == 1
        os.write(pipe.other_end, lines(2))
        await anyio.wait_all_tasks_blocked()
        for _ in range(3):
            await checkpoint()
        readable = pipe.stream._readable
        assert readable is None or not readable._is_registered
        assert unread(pipe.descriptor) == len(lines(2))
        assert number_of(await pipe.stream.receive()) == 2


# The length of a message


@pytest.mark.skipif(not hasattr(fcntl, "F_GETPIPE_SZ"), reason="only Linux can enlarge a pipe")
async def test_a_long_message_enlarges_the_pipe_and_short_ones_do_not():
    async with writing() as (pipe, tg):
        before = fcntl.fcntl(pipe.descriptor, fcntl.F_GETPIPE_SZ)
        await pipe.stream.send(message(1))
        assert fcntl.fcntl(pipe.descriptor, fcntl.F_GETPIPE_SZ) == before
        tg.start_soon(pipe.stream.send, message(2, "x" * BIG))
        assert await pipe.numbers(2) == [1, 2]
        assert fcntl.fcntl(pipe.descriptor, fcntl.F_GETPIPE_SZ) == LARGE_PIPE > before


async def test_a_long_message_is_sent_through_a_pipe_that_cannot_be_enlarged(monkeypatch):
    monkeypatch.setattr("ownertask.mcp._server_streams.LARGE_PIPE", -1)  # refused as too much
    async with writing() as (pipe, tg):
        tg.start_soon(pipe.stream.send, message(1, "x" * BIG))
        assert await pipe.numbers(1) == [1]


class CountingChunk(bytes):
    """Counts the bytes that are searched."""

    searched = 0

    def split(self, separator):
        CountingChunk.searched += len(self)
        return super().split(separator)


@pytest.mark.within(20)
async def test_S7_no_byte_of_a_long_line_is_searched_twice(monkeypatch):
    divide = ServerReadStream._divide
    monkeypatch.setattr(CountingChunk, "searched", 0)
    monkeypatch.setattr(
        ServerReadStream, "_divide", lambda self, data: divide(self, CountingChunk(data))
    )
    with Reading() as pipe:
        data = "x" * 4 * BIG
        wire = f"{text_of(1, data)}\n".encode()
        async with anyio.create_task_group() as tg:
            parts = [wire[start : start + 4096] for start in range(0, len(wire), 4096)]
            tg.start_soon(pipe.write, *parts)
            assert data_of(await pipe.stream.receive()) == data
        assert CountingChunk.searched == len(wire)


@slow
@pytest.mark.within(60)
async def test_S7_a_message_of_64_megabytes_is_read():
    size = 64 * 2**20
    begin, end = text_of(1, "?").split("?")
    server = python_server(
        f"import sys\nprint({begin!r} + 'x' * {size} + {end!r}, flush=True)\nsys.stdin.read()"
    )
    async with StdioConnectionManager(server) as (reader, _):
        item = await reader.receive()
    assert len(data_of(item)) == size


@pytest.mark.parametrize("size", [30, 3 * CHUNK_BYTES], ids=["short", "long"])
@pytest.mark.parametrize("has_line_break", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
async def test_S7_only_a_line_longer_than_the_bound_is_refused(size, has_line_break, encoding):
    line = text_of(1, "x" * size)
    ending = "\n" if has_line_break else ""
    for max_bytes, is_accepted in (
        (None, True),
        (len(line) + 1, True),
        (len(line), True),
        (len(line) - 1, False),
    ):
        wire = f"\n{text_of(0)[:20]}\n{line}{ending}".encode(encoding)
        with Reading(encoding, max_bytes=max_bytes) as pipe:
            async with anyio.create_task_group() as tg:
                tg.start_soon(pipe.write_and_close, *_cut(wire, 5000))
                assert isinstance(await pipe.stream.receive(), Exception)
                if is_accepted and has_line_break:
                    assert number_of(await pipe.stream.receive()) == 1
                for _ in range(2):
                    with pytest.raises(anyio.EndOfStream):
                        await pipe.stream.receive()
                tg.cancel_scope.cancel()
            refused = f"the server sent a line of more than {max_bytes} bytes (max_message_bytes)"
            reason = "the server closed its stdout" if is_accepted else refused
            assert {str(error) for error in pipe.reasons} == {reason}


def _cut(data, size):
    return [data[start : start + size] for start in range(0, len(data), size)]


@slow
@pytest.mark.parametrize("bound", [1000, 4 * BIG])
@pytest.mark.within(20)
async def test_S7_a_line_without_an_end_is_refused_by_the_bound(bound):
    """The server would send more than any machine can hold."""
    endless = StdioServerParameters(command="sh", args=["-c", "yes | tr -d '\\n'"])
    reason = rf"a line of more than {bound} bytes \(max_message_bytes\)"
    manager = StdioConnectionManager(endless, max_message_bytes=bound, exit_timeout=0.1)
    async with manager as (reader, _):
        with pytest.raises(anyio.EndOfStream):
            await reader.receive()
        assert sum(map(len, reader._line_parts)) <= bound
        with pytest.raises(ConnectionLostError, match=reason):
            await manager.wait_closed()
    session_manager = SessionConnectionManager(manager)
    with pytest.raises(ConnectionLostError, match=reason):
        await session_manager.start()


# A server that sends or receives much


@slow
@pytest.mark.parametrize("line", ["", "junk", "{}", '{"jsonrpc": "2.0", "method": "notifications/a"}'])
@pytest.mark.within(20)
async def test_O12_a_server_that_floods_its_stdout_causes_a_start_timeout(line):
    yes = StdioServerParameters(command="yes", args=[line])
    transport = StdioConnectionManager(yes, exit_timeout=0.1)
    manager = SessionConnectionManager(transport, start_timeout=0.5)
    with pytest.raises(StartTimeoutError):
        await manager.start()
    assert transport.returncode == -signal.SIGTERM


async def test_a_reader_of_a_flood_lets_other_tasks_run():
    turns = received = 0

    async def count_turns():
        nonlocal turns
        while True:
            await checkpoint()
            turns += 1

    yes = StdioServerParameters(command="yes", args=[text_of(1)])
    async with StdioConnectionManager(yes, exit_timeout=0) as (reader, _):
        async with anyio.create_task_group() as tg:
            tg.start_soon(count_turns)
            while turns < 500:
                assert number_of(await reader.receive()) == 1
                received += 1
                assert received <= (turns + 2) * 2 * IN_A_ROW
            tg.cancel_scope.cancel()


async def test_a_cancelled_reader_of_a_flood_receives_only_a_few_more_messages():
    """The stream does not check for a cancellation with each message, because that would be slower."""
    yes = StdioServerParameters(command="yes", args=[text_of(1)])
    async with StdioConnectionManager(yes, exit_timeout=0) as (reader, _):
        await reader.receive()
        received = 0
        with anyio.CancelScope() as scope:
            scope.cancel()
            while True:
                await reader.receive()
                received += 1
        assert scope.cancelled_caught
        assert received <= IN_A_ROW
        assert number_of(await reader.receive()) == 1


async def test_a_sender_lets_other_tasks_run_even_if_it_never_has_to_wait():
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            await checkpoint()
            turns += 1

    async with writing() as (pipe, tg):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, pipe.descriptor)
        os.close(sink)
        tg.start_soon(count_turns)
        for _ in range(300):
            await pipe.stream.send(message(1, "x" * 10_000))
        assert turns >= 20  # 3 MB are at least 45 chunks
        tg.cancel_scope.cancel()


@pytest.mark.within(20)
async def test_big_messages_in_both_directions_do_not_block_each_other():
    data = "x" * 3 * BIG

    async def send():
        for number in range(4):
            await writer.send(message(number, data))

    async with StdioConnectionManager(CAT) as (reader, writer):
        async with anyio.create_task_group() as tg:
            tg.start_soon(send)
            tg.start_soon(send)
            items = [await reader.receive() for _ in range(8)]
    assert sorted(number_of(item) for item in items) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {data_of(item) for item in items} == {data}


def big_answer():
    """Returns a server like `TINY`, except that the answer of a tool has 5 MB."""
    code = Path(TINY.args[0]).read_text(encoding="utf-8")
    return python_server(code.replace("str(os.getpid())", f"'x' * {5 * BIG}"))


@pytest.mark.within(20)
async def test_a_session_receives_an_answer_of_five_megabytes():
    variable = ContextVar("variable", default="")
    variable.set("of the caller")
    async with SessionConnectionManager(big_answer()) as session:
        for _ in range(2):
            result = await session.call_tool("process_id", {})
            assert len(result.content[0].text) == 5 * BIG
        assert variable.get() == "of the caller"


async def test_the_read_stream_has_no_context_for_the_sdk():
    """mcp 2.x looks up `last_context` with each message, and accepts `None`."""
    async with StdioConnectionManager(CAT) as (reader, writer):
        await writer.send(message(1))
        await reader.receive()
        assert reader.last_context is None


# Several readers, cancellation


async def test_one_of_several_readers_receives_each_message_and_all_receive_the_end():
    received = []

    async def read():
        async for item in pipe.stream:
            received.append(number_of(item))
            if len(received) % 7 == 0:
                await checkpoint()
        with pytest.raises(anyio.EndOfStream):
            await pipe.stream.receive()

    with Reading() as pipe:
        async with anyio.create_task_group() as tg:
            for _ in range(3):
                tg.start_soon(read)
            cut = lines(4)
            await pipe.write_and_close(lines(1), lines(2, 3), cut[:9], cut[9:] + lines(*range(5, 60)))
    assert sorted(received) == list(range(1, 60))


async def test_a_reader_takes_over_from_one_that_is_cancelled():
    received = []

    async def read(scope):
        with scope:
            received.append(number_of(await pipe.stream.receive()))

    with Reading() as pipe:
        scopes = [anyio.CancelScope() for _ in range(4)]
        async with anyio.create_task_group() as tg:
            for scope in scopes:
                tg.start_soon(read, scope)
            await anyio.wait_all_tasks_blocked()
            scopes[0].cancel()  # it waits for the pipe
            scopes[2].cancel()  # it waits for its turn
            await anyio.wait_all_tasks_blocked()
            await pipe.write(lines(1, 2))
        assert received == [1, 2]
        assert [scope.cancelled_caught for scope in scopes] == [True, False, True, False]


@pytest.mark.parametrize("turns", range(1, 9))
async def test_a_reader_that_is_cancelled_at_any_moment_loses_no_message(turns):
    received = []

    async def read(turns):
        while len(received) < 20:
            async with anyio.create_task_group() as inner:
                inner.start_soon(cancel_after, turns, inner.cancel_scope)
                received.append(number_of(await pipe.stream.receive()))
                inner.cancel_scope.cancel()
            await checkpoint()

    with Reading() as pipe:
        async with anyio.create_task_group() as tg:
            tg.start_soon(read, turns)
            tg.start_soon(read, turns + 1)
            await pipe.write(*_cut(lines(*range(20)), 150))
    assert sorted(received) == list(range(20))


# Several senders, cancellation


async def test_messages_of_several_senders_are_whole_and_in_order():
    async with writing() as (pipe, tg):
        for number in range(6):
            tg.start_soon(pipe.stream.send, message(number, "x" * BIG if number % 2 else ""))
            await checkpoint()
        assert await pipe.numbers(6) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("how", ["in the middle", "before the first byte"])
async def test_a_cancelled_message_is_sent_as_a_whole_or_not_at_all(how):
    async def send(number, scope):
        with scope:
            await pipe.stream.send(message(number, "x" * BIG))
        ended.append(number)

    ended = []
    async with writing() as (pipe, tg):
        scopes = [anyio.CancelScope() for _ in range(3)]
        for number, scope in enumerate(scopes):
            tg.start_soon(send, number, scope)
            await anyio.wait_all_tasks_blocked()
        cancelled = 0 if how == "in the middle" else 1
        scopes[cancelled].cancel()
        await anyio.wait_all_tasks_blocked()
        assert ended == [cancelled]  # although nobody reads
        assert await pipe.numbers(3 - cancelled) == ([0, 1, 2] if cancelled == 0 else [0, 2])
    assert [scope.cancelled_caught for scope in scopes] == [number == cancelled for number in range(3)]
    assert sorted(ended) == [0, 1, 2]


async def test_a_message_that_is_cancelled_while_the_pipe_is_full_is_not_sent():
    async with writing() as (pipe, tg):
        for size in (1000, 1):
            with suppress(BlockingIOError):
                while True:
                    os.write(pipe.descriptor, b"0" * size)
        with anyio.CancelScope() as scope:
            tg.start_soon(cancel_after, 3, scope)
            await pipe.stream.send(message(1))
        assert scope.cancelled_caught
        tg.start_soon(pipe.stream.send, message(2))
        while b"\n" not in pipe.received:
            await anyio.wait_readable(pipe.other_end)
            pipe.received += os.read(pipe.other_end, CHUNK_BYTES)
    assert pipe.received.lstrip(b"0") == _sdk.message_to_utf8(message(2)) + b"\n"


@pytest.mark.parametrize("turns", range(12))
async def test_a_sender_that_is_cancelled_at_any_moment_never_cuts_a_message(turns):
    sent = []

    async def send(first, turns):
        for number in range(first, first + 4):
            async with anyio.create_task_group() as inner:
                inner.start_soon(cancel_after, turns, inner.cancel_scope)
                await pipe.stream.send(message(number, "x" * 150_000))
                sent.append(number)
                inner.cancel_scope.cancel()

    async with writing() as (pipe, tg):
        async with anyio.create_task_group() as senders:
            read = anyio.Event()

            async def numbers():
                found.extend(await pipe.numbers())
                read.set()

            found = []
            tg.start_soon(numbers)
            senders.start_soon(send, 0, turns)
            senders.start_soon(send, 100, turns + 1)
        await pipe.stream.send(message(200))
        await pipe.stream.flush()
        pipe.close()
        await read.wait()
    assert set(sent) <= set(found)
    assert len(set(found)) == len(found)
    assert found[-1] == 200


@pytest.mark.within(20)
async def test_a_message_to_a_server_that_reads_late_arrives_although_its_sender_was_cancelled():
    manager = StdioConnectionManager(PAUSED_CAT)
    async with manager as (reader, writer):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tg:
                tg.start_soon(cancel_after, 5, scope)
                await writer.send(message(1, "x" * BIG))
        assert scope.cancelled_caught
        async with anyio.create_task_group() as tg:
            tg.start_soon(writer.send, message(2))
            await resume(manager)
            assert [number_of(await reader.receive()) for _ in range(2)] == [1, 2]


# Closing


@pytest.mark.parametrize("readers", [1, 2, 3])
@pytest.mark.parametrize("how", ["aclose()", "exit", "stop()", "stop(timeout=0)"])
@pytest.mark.within(20)
async def test_closing_the_read_stream_ends_pending_and_later_calls(how, readers):
    """The server writes more than a pipe holds before it exits, so the manager has to read that."""

    async def read():
        with pytest.raises(anyio.ClosedResourceError):
            await reader.receive()
        closed.append(None)

    closed = []
    server = python_server(f"import os, sys; sys.stdin.read(); os.write(1, b'x' * {BIG}); os._exit(7)")
    manager = StdioConnectionManager(server, exit_timeout=None)
    reader, _ = await manager.start()
    async with anyio.create_task_group() as tg:
        for _ in range(readers):
            tg.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        if how == "aclose()":
            await reader.aclose()
        elif how == "exit":
            async with reader:
                pass
        else:
            await manager.stop(timeout=0 if "timeout" in how else None)
    assert len(closed) == readers
    await read()
    await manager.stop()
    assert manager.state is ConnectionState.CLOSED
    assert manager.returncode == 7


@pytest.mark.parametrize("junk", [b"x", b"\xff\n"], ids=["a line", "invalid utf-8"])
@pytest.mark.parametrize("timeout", [None, 0])
async def test_output_that_nobody_reads_does_not_keep_a_server_from_exiting(timeout, junk):
    manager = StdioConnectionManager(
        python_server(
            f"import os, sys\nprint('ready', file=sys.stderr, flush=True)\n"
            f"sys.stdout.buffer.write({junk!r} * {BIG}); sys.stdout.flush()\n"
            f"sys.stdin.read(); os.write(1, {junk!r} * {BIG}); os._exit(7)"
        ),
        exit_timeout=None,
    )
    await manager.start()
    await manager.stop(timeout=timeout)
    assert manager.returncode == 7


@pytest.mark.parametrize("turns", range(5))
async def test_a_reader_that_resumes_after_the_close_does_not_touch_the_descriptor(turns):
    received = []

    async def read():
        with suppress(anyio.ClosedResourceError):
            while True:
                received.append(number_of(await pipe.stream.receive()))

    with Reading() as pipe:
        async with anyio.create_task_group() as tg:
            tg.start_soon(read)
            tg.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            await pipe.write(lines(1))
            for _ in range(turns):
                await checkpoint()
            pipe.stream.close()
            other = os.pipe()
            os.dup2(other[0], pipe.descriptor)  # the number belongs to another pipe now
            os.write(other[1], lines(2))
        assert received in ([], [1])
        assert unread(other[0]) == len(lines(2))
        os.close(other[0])
        os.close(other[1])


@pytest.mark.parametrize("how", ["aclose()", "exit"])
async def test_closing_the_write_stream_refuses_further_messages(how):
    manager = StdioConnectionManager(CAT)
    async with manager as (reader, writer):
        await writer.send(message(1))
        if how == "aclose()":
            await writer.aclose()
        else:
            async with writer:
                await writer.send(message(2))
        with pytest.raises(anyio.ClosedResourceError):
            await writer.send(message(3))
        assert number_of(await reader.receive()) == 1  # reading goes on
        assert manager.state is ConnectionState.OPEN
    with pytest.raises(anyio.ClosedResourceError):
        await writer.send(message(4))
    with pytest.raises(anyio.ClosedResourceError):
        await reader.receive()


@pytest.mark.parametrize("timeout", [None, 0])
@pytest.mark.within(20)
async def test_a_stop_ends_the_sends_to_a_server_that_never_reads(timeout):
    async def send(number):
        with pytest.raises(anyio.ClosedResourceError):
            await writer.send(message(number, "x" * BIG))
        ended.append(number)

    ended = []
    manager = StdioConnectionManager(MUTE, flush_timeout=0.1, exit_timeout=0.1)
    _, writer = await manager.start()
    async with anyio.create_task_group() as tg:
        for number in range(3):
            tg.start_soon(send, number)
        await anyio.wait_all_tasks_blocked()
        with anyio.CancelScope() as scope:
            tg.start_soon(cancel_after, 5, scope)
            await writer.send(message(3))
        assert scope.cancelled_caught
        await manager.stop(timeout=timeout)
    assert sorted(ended) == [0, 1, 2]
    assert manager.returncode == -signal.SIGTERM


@pytest.mark.parametrize("is_cancelled", [False, True])
@pytest.mark.within(20)
async def test_a_stop_lets_the_current_message_arrive_and_refuses_waiting_ones(is_cancelled):
    async def send_first(scope):
        with scope:
            await writer.send(message(1, "x" * BIG))

    async def send_second():
        with pytest.raises(anyio.ClosedResourceError):
            await writer.send(message(2))

    server = python_server(
        "import os, json, signal, sys\nos.kill(os.getpid(), signal.SIGSTOP)\n"
        "for line in sys.stdin: print(json.loads(line)['id'], len(line), file=sys.stderr)"
    )
    manager = StdioConnectionManager(server, flush_timeout=None)
    _, writer = await manager.start()
    scope = anyio.CancelScope()
    async with anyio.create_task_group() as tg:
        tg.start_soon(send_first, scope)
        await anyio.wait_all_tasks_blocked()
        tg.start_soon(send_second)
        await anyio.wait_all_tasks_blocked()
        if is_cancelled:
            scope.cancel()
        tg.start_soon(manager.stop)
        while manager.state is not ConnectionState.CLOSING:
            await checkpoint()
        await resume(manager)
    number, length = manager.stderr_tail.split()
    assert number == "1"
    assert int(length) > BIG
    assert manager.returncode == 0
    assert scope.cancelled_caught == is_cancelled


async def test_messages_sent_just_before_a_stop_arrive():
    server = python_server("import sys\nfor line in sys.stdin: print(len(line), file=sys.stderr)")
    manager = StdioConnectionManager(server)
    async with manager as (_, writer):
        for number in range(3):
            await writer.send(message(number, "x" * 1000))
    assert len(manager.stderr_tail.split()) == 3


# The end


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_send_to_a_server_that_closed_its_stdin_loses_the_connection(is_cancelled):
    """If the sender was cancelled, the task that writes the rest reports the loss."""
    command = "kill -STOP $$; head -c 1; exec 0<&-; sleep 600"
    server = StdioServerParameters(command="sh", args=["-c", command])
    manager = StdioConnectionManager(server, exit_timeout=0)
    await manager.start()
    _, writer = manager.connection
    if is_cancelled:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tg:
                tg.start_soon(cancel_after, 3, scope)
                await writer.send(message(1, "x" * BIG))
        await resume(manager)
    else:
        async with anyio.create_task_group() as tg:
            tg.start_soon(resume, manager)
            with pytest.raises(anyio.BrokenResourceError):
                await writer.send(message(1, "x" * BIG))
    with pytest.raises(ConnectionLostError, match="the server closed its stdin") as caught:
        await manager.wait_closed()
    assert isinstance(caught.value.__cause__, BrokenPipeError)


async def test_all_senders_fail_if_the_pipe_breaks():
    async def send(number):
        with pytest.raises(anyio.BrokenResourceError):
            await pipe.stream.send(message(number, "x" * BIG))

    async with writing() as (pipe, _):
        async with anyio.create_task_group() as senders:
            for number in range(3):
                senders.start_soon(send, number)
            await anyio.wait_all_tasks_blocked()
            os.close(pipe.other_end)
            pipe.other_end = os.open(os.devnull, os.O_RDONLY)
    assert [str(reason) for reason in pipe.reasons] == ["the server closed its stdin"] * 3


async def test_the_last_messages_of_a_server_that_exits_are_received_before_the_loss():
    manager = StdioConnectionManager(writes(lines(*range(500)), then="sys.exit(3)"))
    async with manager as (reader, _):
        assert [number_of(item) async for item in reader] == list(range(500))
        with pytest.raises((anyio.EndOfStream, anyio.ClosedResourceError)):
            await reader.receive()
        with pytest.raises(ConnectionLostError, match="exited with status 3"):
            await manager.wait_closed()


@pytest.mark.parametrize("is_waiting", [False, True])
async def test_S2_the_stream_ends_with_the_server_even_if_another_process_keeps_writing(is_waiting):
    """After the server exits, `finish()` is called. The pipe remains open and full."""
    received = []

    async def read():
        received.extend([number_of(item) async for item in pipe.stream])

    with Reading() as pipe:
        os.set_blocking(pipe.other_end, False)
        read_rest = pipe.stream._read
        pipe.stream._read = lambda: write(pipe) and read_rest()
        async with anyio.create_task_group() as tg:
            if is_waiting:
                tg.start_soon(read)
                await anyio.wait_all_tasks_blocked()
            pipe.stream.finish()
            assert pipe.stream.drained.is_set() != is_waiting
            if not is_waiting:
                tg.start_soon(read)
        assert [str(reason) for reason in pipe.reasons] == ["the server exited"]
        assert pipe.stream.drained.is_set()
    assert len(received) * len(lines(1)) > LAST_CHUNKS * CHUNK_BYTES / 2
    assert len(received) < (LAST_CHUNKS + 2) * CHUNK_BYTES / len(lines(1))


def write(pipe):
    wire = lines(1)
    with suppress(BlockingIOError):
        while True:  # whole lines, so that the test can count them
            assert os.write(pipe.other_end, wire) == len(wire)
    return True


async def test_a_send_to_a_full_pipe_that_is_cancelled_writes_nothing():
    async with writing() as (pipe, _tg):
        with suppress(BlockingIOError):
            while True:
                os.write(pipe.descriptor, b"\n" * CHUNK_BYTES)
        with anyio.move_on_after(0) as scope:
            await pipe.stream.send(message(1))
        assert scope.cancelled_caught
        while unread(pipe.other_end):
            assert not os.read(pipe.other_end, CHUNK_BYTES).strip()
        await pipe.stream.send(message(2))
        pipe.received = b""
        assert await pipe.numbers(1) == [2]


async def test_a_sender_that_wakes_up_after_the_pipe_was_shut_does_not_write():
    async with writing() as (pipe, _tg):
        pipe.stream.shut()
        with pytest.raises(anyio.ClosedResourceError):
            pipe.stream._write(memoryview(b"x"))
        assert not unread(pipe.other_end)


async def test_a_message_reaches_a_server_that_is_blocked_in_a_write_when_it_is_stopped():
    """Its output must be discarded first. Otherwise it never reads its stdin."""
    code = (
        "import os, sys\n"
        "os.write(1, b'x' * 1_000_000)\n"
        "print(len(sys.stdin.readline()), file=sys.stderr)"
    )
    manager = StdioConnectionManager(python_server(code), flush_timeout=None, exit_timeout=None)
    _, writer = await manager.start()
    item = message(1, "x" * BIG)
    async with anyio.create_task_group() as tg:
        tg.start_soon(writer.send, item)
        await anyio.wait_all_tasks_blocked()
        await manager.stop()
    assert manager.returncode == 0
    assert manager.stderr_tail == f"{len(_sdk.message_to_utf8(item)) + 1}\n"
