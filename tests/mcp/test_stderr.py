"""Tests for a server's stderr: where it is written, and how much of it is kept."""

import io
import sys
from copy import copy

import anyio
import pytest
from servers import TINY, python_server

from ownertask import StartTimeoutError
from ownertask.mcp import SessionConnectionManager, StdioConnectionManager, _sdk
from ownertask.mcp._stderr import TAIL_BYTES, StderrTail, piped_stderr

SAYS_HELLO = python_server(
    "import sys; sys.stderr.write('hello\\n'); sys.stderr.flush(); sys.stdin.read()"
)
SAYS_HELLO_TWICE = python_server(
    "import sys; sys.stderr.write('hello\\n'); sys.stderr.flush(); sys.stdin.read()\n"
    "sys.stderr.write('hello again\\n')"
)


class Log:
    """A minimal `errlog`: it only has `write()`. `seen()` waits until a given text was written."""

    def __init__(self):
        self.text = ""
        self.written = anyio.Event()

    def write(self, text):
        self.text += text
        self.written.set()
        self.written = anyio.Event()

    async def seen(self, text):
        while text not in self.text:
            await self.written.wait()


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
        == f"{manager.name}: writing the server's stderr to errlog failed; the rest is not written"
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


@pytest.mark.skipif(not _sdk.HAS_CLIENT, reason="mcp 1.x kills the server at once in a forced stop")
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


async def test_text_written_at_the_very_end_is_read():
    tail, errlog = StderrTail(), io.StringIO()
    async with piped_stderr("a server", errlog, tail) as file:
        file.write("hello")
        file.flush()
    assert str(tail) == errlog.getvalue() == "hello"


async def test_text_written_before_an_error_is_read():
    tail = StderrTail()
    with pytest.RaisesGroup(LookupError):
        async with piped_stderr("a server", None, tail) as file:
            file.write("hello")
            file.flush()
            raise LookupError
    assert str(tail) == "hello"


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
