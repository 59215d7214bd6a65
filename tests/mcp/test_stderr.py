"""Tests for a server's stderr: where it is written, and how much of it is kept."""

import contextvars
import io
import os
import re
import select
import subprocess
import sys
import threading
import time
from copy import copy

import anyio
import pytest
from forked_python import forking
from servers import TINY, python_server

from ownertask import StartTimeoutError
from ownertask.mcp import SessionConnectionManager, StdioConnectionManager, _stderr
from ownertask.mcp._stderr import TAIL_BYTES, ErrorLogWriter, StderrTail

SAYS_HELLO = python_server(
    "import sys; sys.stderr.write('hello\\n'); sys.stderr.flush(); sys.stdin.read()"
)
SAYS_HELLO_TWICE = python_server(
    "import sys; sys.stderr.write('hello\\n'); sys.stderr.flush(); sys.stdin.read()\n"
    "sys.stderr.write('hello again\\n')"
)


class Log:
    """A minimal `errlog` with nothing but `write()`. `seen()` waits until a text was written."""

    def __init__(self):
        self.text = ""
        self.changed = threading.Condition()

    def write(self, text):
        with self.changed:
            self.text += text
            self.changed.notify_all()

    async def seen(self, text):
        def wait():
            with self.changed:
                assert self.changed.wait_for(lambda: text in self.text, 30)

        await anyio.to_thread.run_sync(wait)


class Stuck:
    """An `errlog` whose `write()` does not return before `go_on` is set."""

    def __init__(self):
        self.texts = []
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def write(self, text):
        self.texts.append(text)
        self.entered.set()
        assert self.go_on.wait(60)

    async def is_entered(self):
        assert await anyio.to_thread.run_sync(self.entered.wait, 30)


def errlog_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("errlog of ")]


def end_of_errlog_threads():
    for thread in errlog_threads():
        thread.join(30)
    assert not errlog_threads()


def warnings_in(caplog):
    return [record for record in caplog.records if record.name == "ownertask" and record.levelno >= 30]


async def test_stderr_arrives_as_it_is_written_in_any_object_with_a_write_method():
    log = Log()
    manager = StdioConnectionManager(SAYS_HELLO, log)
    async with manager:
        await log.seen("hello\n")
        assert manager.stderr_tail == "hello\n"
        assert copy(manager).stderr_tail == ""  # the output belongs to the server of the original
    assert manager.stderr_tail == "hello\n"


@pytest.mark.parametrize("kind", ["StringIO", "file"])
async def test_stderr_is_written_and_flushed_to_a_file_or_a_string_io(kind, tmp_path):
    path = tmp_path / "errors"
    with io.StringIO() if kind == "StringIO" else path.open("w") as errlog:
        async with StdioConnectionManager(SAYS_HELLO, errlog):
            pass
        assert (errlog.getvalue() if kind == "StringIO" else path.read_text()) == "hello\n"


async def test_without_an_errlog_sys_stderr_is_looked_up_at_each_start(monkeypatch):
    manager = StdioConnectionManager(SAYS_HELLO)
    for stream in (io.StringIO(), io.StringIO()):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            async with manager:
                pass
        assert stream.getvalue() == "hello\n"


async def test_sys_stderr_may_be_none(monkeypatch):
    """Under pythonw, for example, it is `None`."""
    manager = StdioConnectionManager(SAYS_HELLO)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        async with manager:
            pass
    assert manager.stderr_tail == "hello\n"


@pytest.mark.parametrize("errlog", [1, "path", io.BytesIO(), object()])
def test_an_errlog_that_does_not_accept_text_is_rejected(errlog):
    with pytest.raises(
        TypeError, match=r"errlog must be None or an object whose write\(\) method accepts text"
    ):
        StdioConnectionManager(TINY, errlog)


async def test_an_error_in_errlog_is_logged_once_and_does_not_affect_the_connection(caplog):
    class Broken:
        def write(self, text):
            raise OSError("disk full")

    manager = StdioConnectionManager(SAYS_HELLO_TWICE, Broken())
    async with manager:
        pass
    assert manager.stderr_tail == "hello\nhello again\n"
    [record] = [record for record in caplog.records if record.name == "ownertask"]
    assert (
        record.getMessage()
        == f"{manager.name}: writing the server's stderr to errlog failed; later errors are not logged"
    )
    assert "disk full" in caplog.text


@pytest.mark.within(30)
async def test_P12_a_burst_of_ten_megabytes_blocks_nothing_and_the_tail_is_correct():
    code = (
        "import sys\n"
        "for n in range(100_000): sys.stderr.write(f'{n:099}\\n')\n"
        "sys.stderr.flush(); print('done', flush=True); sys.stdin.read()"
    )
    errlog = io.StringIO()
    manager = StdioConnectionManager(python_server(code), errlog)
    async with manager as (reader, _):
        assert isinstance(await reader.receive(), Exception)  # printed after all of the stderr
    assert len(errlog.getvalue()) == 10_000_000
    lines = manager.stderr_tail.splitlines()
    assert lines == [f"{number:099}" for number in range(100_000 - len(lines), 100_000)]
    assert TAIL_BYTES - 100 < len(manager.stderr_tail) <= TAIL_BYTES


async def test_P12_invalid_utf8_is_replaced():
    code = (
        "import os, sys; os.write(2, b'\\xff\\xc3'); os.write(2, b'\\xa4 \\xe2\\x82'); sys.stdin.read()"
    )
    errlog = io.StringIO()
    manager = StdioConnectionManager(python_server(code), errlog)
    async with manager:
        pass
    assert manager.stderr_tail == "\ufffd\xe4 \ufffd"
    assert errlog.getvalue() == "\ufffd\xe4 \ufffd"


@pytest.mark.within(20)
async def test_all_of_stderr_is_read_after_a_forced_stop():
    code = (
        "import sys\n"
        "print('ready', file=sys.stderr, flush=True)\n"
        "sys.stdin.read()\n"
        "for n in range(2_000): print(f'{n:099}', file=sys.stderr)\n"
        "print('bye', file=sys.stderr)"
    )
    log = Log()
    manager = StdioConnectionManager(python_server(code), log)
    await manager.start()
    await log.seen("ready")
    await manager.stop(timeout=0)
    assert manager.stderr_tail.endswith(f"{1999:099}\nbye\n")


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("whose", ["the manager's", "the caller's"])
@pytest.mark.within(20)
async def test_O12_a_start_timeout_error_has_the_stderr_tail_in_a_note(whose):
    bound = 2.0
    manager = SessionConnectionManager(
        SAYS_HELLO, start_timeout=bound if whose == "the manager's" else 60
    )
    with pytest.raises(StartTimeoutError) as caught:
        await manager.start(timeout=bound if whose == "the caller's" else None)
    assert caught.value.__notes__ == ["the server's stderr ended with:\nhello\n"]


def test_the_tail_starts_at_the_beginning_of_a_line_and_is_bounded():
    tail = StderrTail()
    assert not str(tail)
    tail.feed(b"a" * TAIL_BYTES)
    assert str(tail) == "a" * TAIL_BYTES
    tail.feed(b"b")
    assert str(tail) == "a" * (TAIL_BYTES - 1) + "b"  # a single line longer than the bound
    tail.feed(b"\nsecond\nthird")
    assert str(tail) == "second\nthird"


def test_the_docstring_states_the_size_of_the_tail():
    assert str(TAIL_BYTES) in StdioConnectionManager.stderr_tail.__doc__


@pytest.mark.within(30)
async def test_S4_a_full_pipe_that_nobody_reads_blocks_neither_calls_nor_stop(caplog):
    code = (
        "import os, sys\n"
        "for n in range(2_000): os.write(2, f'{n:099}\\n'.encode())\n"
        "print('written', flush=True); sys.stdin.read()"
    )
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as errlog:
        manager = StdioConnectionManager(python_server(code), errlog)
        async with manager as (reader, _):
            await reader.receive()  # the server was not blocked
            assert errlog_threads()
        assert manager.stderr_tail.endswith(f"{1999:099}\n")
        [record] = warnings_in(caplog)
        assert f"{manager.name}: errlog.write() did not return; the last " in record.getMessage()
        written = b""
        while b"\n" not in written[-1:] or errlog_threads():
            written += os.read(reading, 65536) if can_read(reading) else b""
        # The call that was stuck has written its text. There was no other call.
        assert len(written) < 200_000
    os.close(reading)


def can_read(descriptor):
    return bool(select.select([descriptor], [], [], 0.1)[0])


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.within(30)
async def test_S4_a_stuck_errlog_delays_only_stop_and_gets_no_text_afterward(anyio_backend, caplog):
    errlog = Stuck()
    manager = StdioConnectionManager(SAYS_HELLO_TWICE, errlog)
    session = SessionConnectionManager(StdioConnectionManager(TINY))
    async with session as other:
        await manager.start()
        await errlog.is_entered()
        await other.list_tools()
        await manager.stop()
    assert manager.stderr_tail == "hello\nhello again\n"
    assert errlog.texts == ["hello\n"]
    [record] = warnings_in(caplog)
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"{manager.name}: errlog.write() did not return; "
        "the last 18 bytes of the server's stderr are lost"
    )
    async with manager:  # a new run writes in a new thread
        assert len(errlog_threads()) >= 1
        errlog.go_on.set()
    end_of_errlog_threads()
    assert "".join(errlog.texts) == "hello\nhello\nhello again\n"


@pytest.mark.within(30)
async def test_S4_a_slow_file_gets_everything_in_order():
    class Slow:
        def __init__(self):
            self.texts = []

        def write(self, text):
            time.sleep(0.002)
            self.texts.append(text)

    code = "import os, sys\nfor n in range(100): os.write(2, b'%d\\n' % n)\nsys.stdin.read()"
    errlog = Slow()
    async with StdioConnectionManager(python_server(code), errlog):
        pass
    assert "".join(errlog.texts) == "".join(f"{n}\n" for n in range(100))


@pytest.mark.parametrize("error", [OSError, ValueError, SystemExit, KeyboardInterrupt, BaseException])
@pytest.mark.parametrize("where", ["write", "flush"])
async def test_S4_text_that_follows_an_error_is_written(error, where, caplog):
    class Broken(Log):
        def write(self, text):
            super().write(text)
            self.fail("write")

        def flush(self):
            self.fail("flush")

        def fail(self, place):
            if place == where:
                raise error("the reason")

    errlog = Broken()
    manager = StdioConnectionManager(SAYS_HELLO_TWICE, errlog)
    async with manager:
        await errlog.seen("hello\n")
    assert errlog.text == "hello\nhello again\n"
    assert manager.exception is None
    assert len(warnings_in(caplog)) == 1
    assert "the reason" in caplog.text


TEXT = "\u20ac \u2603 \xe9 \U0001f600 a\n"
SAYS_TEXT = python_server(f"import os, sys; os.write(2, {TEXT.encode()!r}); sys.stdin.read()")


class WithoutEncoding:
    """An `errlog` with nothing but `write()`."""

    def __init__(self, file):
        self.write = file.write


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "koi8-r", "utf-8"])
@pytest.mark.parametrize("wrap", [lambda file: file, WithoutEncoding])
async def test_S4_only_a_character_that_errlog_cannot_encode_is_replaced(encoding, wrap, caplog):
    data = io.BytesIO()
    file = io.TextIOWrapper(data, encoding=encoding, write_through=True, newline="")
    async with StdioConnectionManager(SAYS_TEXT, wrap(file)):
        pass
    file.flush()
    assert data.getvalue() == TEXT.encode(encoding, "replace")
    assert not warnings_in(caplog)


@pytest.mark.within(30)
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("more", ["", "more"])
async def test_S4_text_is_dropped_and_counted_if_too_much_waits(more, monkeypatch):
    monkeypatch.setattr(_stderr, "MAX_WAITING_BYTES", 10)
    errlog = Stuck()
    writer = ErrorLogWriter("a server", errlog)
    writer.write(b"12345")
    await errlog.is_entered()
    writer.write(b"67890")  # ten bytes may wait
    writer.write(b"too much")
    writer.write(b"a")
    assert errlog.texts == ["12345"]
    errlog.go_on.set()
    if more:
        await anyio.to_thread.run_sync(wait_for, lambda: not writer._waiting)
        writer.write(more.encode())
    await writer.aclose()
    marker = "\n[ownertask: 9 bytes of the server's stderr were dropped here]\n"
    assert "".join(errlog.texts) == "1234567890" + marker + more
    assert not errlog_threads()


def wait_for(condition):
    while not condition():
        time.sleep(0.001)


@pytest.mark.within(30)
async def test_S4_a_marker_shows_where_the_servers_text_is_missing(monkeypatch):
    monkeypatch.setattr(_stderr, "MAX_WAITING_BYTES", 100_000)
    code = (
        "import sys\n"
        "for n in range(10_000): sys.stderr.write(f'{n:099}\\n')\n"
        "sys.stderr.flush(); print('done', flush=True); sys.stdin.read()"
    )
    errlog = Stuck()
    manager = StdioConnectionManager(python_server(code), errlog)
    async with manager as (reader, _):
        await reader.receive()
        errlog.go_on.set()
    written = "".join(errlog.texts)
    dropped = re.findall(
        r"\n\[ownertask: (\d+) bytes of the server's stderr were dropped here\]\n", written
    )
    assert dropped
    rest = re.sub(r"\n\[ownertask: \d+ .*\]\n", "", written)
    assert len(rest) + sum(map(int, dropped)) == 1_000_000
    assert manager.stderr_tail.endswith(f"{9999:099}\n")


@pytest.mark.parametrize("size", [1, 2, 3, 5])
async def test_characters_that_are_split_between_writes_are_reassembled(size):
    log = Log()
    writer = ErrorLogWriter("a server", log)
    data = TEXT.encode() + b"\xff" + TEXT.encode()[:2]
    for start in range(0, len(data), size):
        writer.write(data[start : start + size])
    await writer.aclose()
    assert log.text == TEXT + "\ufffd\ufffd"


async def test_errlog_sees_the_context_variables_of_the_start():
    variable = contextvars.ContextVar("variable", default="none")
    seen = []

    class Errlog:
        def write(self, text):
            seen.append((variable.get(), threading.current_thread()))

    manager = StdioConnectionManager(SAYS_HELLO_TWICE, Errlog(), name="the server")
    for value in ("first", "second"):
        seen.clear()
        variable.set(value)
        await manager.start()
        variable.set("other")
        await manager.stop()
        assert {found for found, _ in seen} == {value}
        [thread] = {thread for _, thread in seen}
        assert thread.name == "errlog of the server"
        assert thread.daemon
        assert not thread.is_alive()


async def test_a_silent_server_needs_no_thread():
    log = Log()
    session = SessionConnectionManager(StdioConnectionManager(TINY, log))
    async with session as connection:
        await connection.list_tools()
        assert not errlog_threads()
    assert not log.text


@pytest.mark.parametrize(
    ("log_handler", "exits"),
    [
        ("logging.NullHandler()", "by sys.exit()"),
        ("logging.NullHandler()", "with a closed loop"),
        # The handler blocks, too. At exit, logging waits for it.
        ("logging.StreamHandler()", "by os._exit()"),
    ],
)
@pytest.mark.parametrize(
    "errlog",
    [
        "os.fdopen(os.pipe()[1], 'w', encoding='utf-8')",
        "sys.stdout",
        "sys.stderr",
        "None",
        "wrapped_again",
    ],
    ids=["a pipe", "stdout", "stderr", "stderr by default", "stderr with another encoding"],
)
def test_S4_the_interpreter_exits_although_errlog_is_stuck(log_handler, exits, errlog):
    code = f"""
import asyncio, io, logging, os, sys
from mcp import StdioServerParameters
from ownertask.mcp import StdioConnectionManager
logging.getLogger("ownertask").addHandler({log_handler})
code = "import os, sys; os.write(2, b'a' * 300_000); print('written', flush=True); sys.stdin.read()"
server = StdioServerParameters(command=sys.executable, args=["-c", code])
if {errlog == "wrapped_again"}:
    wrapped_again = sys.stderr = io.TextIOWrapper(sys.stderr.detach(), encoding="latin-1")
manager = StdioConnectionManager(server, {errlog})
async def main():
    reader, _ = await manager.start()
    await reader.receive()
if {exits != "with a closed loop"}:
    async def stop():
        await main()
        await manager.stop()
        {"sys.exit" if exits == "by sys.exit()" else "os._exit"}(3)
    asyncio.run(stop())
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
sys.exit(3)
"""
    # Nobody reads its output while it runs. Usually, Python buffers that.
    with forking():
        program = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
        )
    with program:
        try:
            assert program.wait(30) == 3
        finally:
            program.kill()


@pytest.mark.parametrize("descriptor", [1, 2])
async def test_S4_stdout_and_stderr_are_written_to_past_their_buffers(descriptor, capfdbinary):
    options = {"encoding": "shift_jis", "errors": "backslashreplace", "closefd": False}
    with os.fdopen(descriptor, "w", **options) as stream:
        stream.write("buffered")
        writer = ErrorLogWriter("a server", stream)
        writer.write("あ€".encode())
        await writer.aclose()
        assert capfdbinary.readouterr()[descriptor - 1] == "あ".encode("shift_jis") + rb"\u20ac"
    assert capfdbinary.readouterr()[descriptor - 1] == b"buffered"


@pytest.mark.parametrize("state", ["open", "closed", "detached"])
def test_S4_a_stream_without_a_descriptor_is_used_as_it_is(state):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    if state == "closed":
        stream.close()
    elif state == "detached":
        stream.detach()
    assert ErrorLogWriter("a server", stream)._errlog is stream


def test_files_are_opened_with_an_encoding():
    """The same program runs all cases, because only a new Python can take these options."""
    code = """
import anyio, sys
import ownertask.mcp
from mcp import StdioServerParameters
code = "import sys; print('hello', file=sys.stderr); sys.stdin.read()"
server = StdioServerParameters(command=sys.executable, args=["-c", code])
async def main(end):
    manager = ownertask.mcp.StdioConnectionManager(server)
    await manager.start()
    if end == "stop":
        await manager.stop()
    elif end == "exit":
        raise SystemExit
for end in ("stop", "cancellation", "exit"):
    print(end, file=sys.stderr)
    anyio.run(main, end)
"""
    command = [sys.executable, "-X", "dev", "-X", "warn_default_encoding", "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "stop\nhello\ncancellation\nhello\nexit\nhello\n"


async def test_the_rest_of_stderr_is_read_in_a_limited_number_of_chunks(monkeypatch):
    """A child process of the server can continue to write."""
    monkeypatch.setattr(_stderr, "LAST_CHUNKS", 2)
    monkeypatch.setattr(_stderr, "CHUNK_BYTES", 3)
    read_end, write_end = os.pipe()
    with os.fdopen(read_end), os.fdopen(write_end, "wb", 0) as file:
        tail = StderrTail()
        pipe = _stderr.StderrPipe(read_end, tail, ErrorLogWriter("a server", None))
        file.write(b"0123456789")
        pipe.read_rest()
        assert str(tail) == "012345"


def test_an_errlog_that_cannot_encode_the_replacement_either_raises():
    class Refusing:
        def write(self, text):
            raise UnicodeEncodeError("refusing", text, 0, 1, "refused")

    with pytest.raises(UnicodeEncodeError):
        _stderr._write_replacing(Refusing(), "a")
