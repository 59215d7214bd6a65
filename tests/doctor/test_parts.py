"""Tests of parts of the command line, where a whole command would need luck, or minutes."""

import errno
import io
import logging
import os
import threading
from contextlib import asynccontextmanager

import anyio
import pytest
from doctor.calls import OLD_SDK_GARBAGE, call, config_file, scripted, stdio
from mcp import StdioServerParameters
from memory_server import MemoryServer
from proof.clocks import in_virtual_time
from typing_extensions import override

from ownertask import ConnectionManager
from ownertask._doctor import check as checking
from ownertask._doctor import values
from ownertask._doctor.arguments import Arguments
from ownertask._doctor.check import check
from ownertask._doctor.interrupts import Interrupts
from ownertask._doctor.masking import (
    Mask,
    secrets_in_parameters,
    secrets_in_references,
    secrets_in_url,
)
from ownertask._doctor.output import FRAME_TIME, Screen
from ownertask._doctor.phases import Phases
from ownertask._doctor.program import run
from ownertask._doctor.report import failure_from
from ownertask._doctor.targets import Target, _Variables, mask_for, targets_from_config
from ownertask._doctor.values import UsageError, resolved
from ownertask.mcp import StdioConnectionManager, StreamableHttpConnectionManager

pytestmark = OLD_SDK_GARBAGE


class AnsweringServer(MemoryServer):
    def _handle(self, request):
        if request["method"] == "ping":
            self.answer(request)
        else:
            super()._handle(request)


class Manager(ConnectionManager):
    """Opens a connection with a function."""

    def __init__(self, opened):
        super().__init__()
        self._opened = opened

    @override
    def open_connection(self):
        return self._opened()


async def checked(transport, kind):
    """Checks a server behind a transport of this process, and returns the lines of the report."""
    stream = io.StringIO()
    targets = [Target("memory", transport, kind)]
    arguments = Arguments("check", targets, 60, "asyncio", 1, as_json=False, is_quiet=False)
    is_ok = await check(arguments, Screen(stream, Mask([])), Interrupts())
    return is_ok, stream.getvalue().splitlines()


@in_virtual_time
async def test_a_connection_that_cannot_be_closed_is_a_failure():
    server = AnsweringServer()
    released, closed = anyio.Event(), anyio.Event()

    @asynccontextmanager
    async def stubborn():
        async with server() as streams:
            yield streams
            with anyio.CancelScope(shield=True):
                await released.wait()
        closed.set()

    is_ok, lines = await checked(Manager(stubborn), "http")
    assert not is_ok
    (close,) = [line for line in lines if line.startswith("close ")]
    assert close.endswith("failed")
    assert any(line.startswith("StopTimeoutError: ") for line in lines)
    assert any(line.startswith("left behind ") and "owner task" in line for line in lines)
    released.set()
    with anyio.fail_after(5):
        await closed.wait()
    server.close()


@in_virtual_time
async def test_a_transport_of_another_kind_has_no_working_directory():
    @asynccontextmanager
    async def missing():
        raise FileNotFoundError(2, "No such file or directory")
        yield

    is_ok, lines = await checked(Manager(missing), "stdio")
    assert not is_ok
    assert not any("working directory" in line for line in lines if line.startswith("note"))


def test_a_notification_from_the_server_adds_no_remark(tmp_path, capfd):
    line = '{"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}\n'
    called = call(capfd, "check", "--json", *stdio(tmp_path, stdout=line))
    assert called.code == 0
    assert called.document["servers"][0]["remarks"] == []


def test_a_remark_on_each_connection_is_shown_once(tmp_path, capfd, monkeypatch):
    for name in ("exit_timeout", "terminate_timeout"):
        monkeypatch.setitem(StdioConnectionManager.__init__.__kwdefaults__, name, 0.1)
    target = stdio(tmp_path, stubborn=True)
    called = call(capfd, "check", "--json", "--repeat", "2", *target)
    (server,) = called.document["servers"]
    assert server["connections"] == 2
    assert len(server["remarks"]) == 1


def test_a_warning_is_reported_once_and_their_number_is_limited():
    logger = logging.getLogger("test")
    with checking._logged(Mask([("secret", "env KEY")])) as logged:
        for _ in range(3):
            logger.warning("The secret\nis %s.", "out")
        assert logged == ["The <env KEY> is out."]
        for number in range(100):
            logger.error(str(number))
    assert logged[-1] == str(checking.MAX_LOGGED - 2)
    assert len(logged) == checking.MAX_LOGGED


def test_a_warning_with_wrong_arguments_is_reported_without_them():
    record = logging.makeLogRecord({"msg": "%d errors", "args": ("many",), "levelno": logging.WARNING})
    with checking._logged(Mask([])) as logged:
        logging.getLogger().handlers[-1].handle(record)
    assert logged == ["%d errors"]


def test_an_event_loop_that_cannot_start_is_reported_in_one_line(capfd, monkeypatch):
    def run(*args, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(anyio, "run", run)
    called = call(capfd, "check", "http", "http://127.0.0.1:9/")
    assert (called.code, called.out) == (1, "")
    assert called.err == "ownertask check: error: cannot start: Too many open files\n"


# ---- secrets ----


def test_an_invalid_url_has_no_parts_to_hide():
    assert list(secrets_in_url("http://[::1/?key=value")) == []


def test_a_variable_with_an_existing_path_is_not_a_secret(tmp_path):
    references = {"variable FOLDER": str(tmp_path), "variable KEY": "value", "file:key": "http://[::1"}
    found = [("value", "variable KEY"), ("http://[::1", "file:key")]
    assert list(secrets_in_references(references)) == found


@pytest.mark.parametrize(
    ("argument", "secrets"),
    [
        ("--verbose", {""}),
        ("--key=value", {"value"}),
        ("KEY=value", {"KEY=value", "value"}),
        ("Authorization: Bearer value", {"Authorization: Bearer value", "Bearer value", "value"}),
        ("two\nlines: value", {"two\nlines: value"}),
        (
            "http://user:password@host/?key=value",
            {
                *("http://user:password@host/?key=value", "//user:password@host/?key=value"),
                *("user:password", "dXNlcjpwYXNzd29yZA==", "user", "password", "key=value", "value"),
            },
        ),
    ],
)
def test_the_parts_of_an_argument_are_secrets(argument, secrets, tmp_path):
    parameters = StdioServerParameters(command="server", args=[argument], cwd=tmp_path)
    found = list(secrets_in_parameters(parameters))
    assert {secret for secret, _ in found} | {""} == secrets | {""}
    assert {place for _, place in found} <= {"argument 1"}


def test_a_server_may_have_no_headers():
    transports = [StreamableHttpConnectionManager("http://host/?key=value"), Manager(checked)]
    mask = mask_for([Target("server", transport, "http") for transport in transports])
    assert mask("the value") == "the <query>"


def test_a_file_reads_variables_from_the_environment(monkeypatch):
    monkeypatch.setenv("OWNERTASK_KEY", "value")
    variables = _Variables()
    assert list(variables) == list(os.environ)
    assert len(variables) == len(os.environ)
    assert variables.read == {}
    assert variables["OWNERTASK_KEY"] == "value"
    assert variables.read == {"OWNERTASK_KEY": "value"}


def test_a_file_with_a_value_must_not_be_long(tmp_path):
    path = tmp_path / "token"
    path.write_text("x" * values.MAX_CHARACTERS)
    assert len(resolved("URL", f"file:{path}")) == values.MAX_CHARACTERS
    path.write_text("x" * (values.MAX_CHARACTERS + 1))
    with pytest.raises(UsageError, match="longer than 65536 characters"):
        resolved("URL", f"file:{path}")


def test_a_file_may_contain_each_kind_of_server(tmp_path):
    pytest.importorskip("websockets")
    entries = {
        "a": scripted(tmp_path),
        "b": {"url": "http://localhost"},
        "c": {"url": "http://localhost", "type": "sse"},
        "d": {"url": "ws://localhost", "type": "ws"},
    }
    targets = targets_from_config(str(config_file(tmp_path, **entries)))
    assert [target.kind for target in targets] == ["stdio", "http", "sse", "ws"]


# ---- the output ----


class Terminal(io.StringIO):
    def isatty(self):
        return True


@in_virtual_time
async def test_the_status_line_moves_only_while_it_is_shown(monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Screen(stream, Mask([])) as screen:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(screen.animate)
            await anyio.sleep(2.5 * FRAME_TIME)
            assert stream.getvalue() == ""
            for text in ("one", "two"):
                screen.status(text)
                length = len(stream.getvalue())
                await anyio.sleep(2 * FRAME_TIME)
                assert text in stream.getvalue()[length:]
            screen.status("")
            length = len(stream.getvalue())
            await anyio.sleep(2 * FRAME_TIME)
            assert len(stream.getvalue()) == length
            tasks.cancel_scope.cancel()


def test_a_phase_that_is_under_way_does_not_begin_again():
    events = []
    phases = Phases(events.append, lambda *event: events.append(event))
    for phase in ("list", "list", "ping"):
        phases.begin(phase)
    phases.end()
    phases.end("failed")
    assert [event if isinstance(event, str) else event[0::2] for event in events] == [
        "list",
        ("list", ""),
        "ping",
        ("ping", ""),
    ]


def test_the_first_exception_of_a_group_is_described():
    error = ExceptionGroup("two", [ExceptionGroup("one", [OSError("refused")]), ValueError("odd")])
    failure = failure_from(error, "list", "http", Mask([]))
    assert (failure.type, failure.message) == ("OSError", "refused")


class Ended(BaseException):
    """The process would have ended."""


def test_a_thread_that_is_left_does_not_delay_the_end(capfd, monkeypatch):
    def end(code):
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    released = threading.Event()
    thread = threading.Thread(target=released.wait)
    thread.start()
    try:
        with pytest.raises(Ended) as ended:
            run(["check", "stdio", "--", "/nowhere/server"], may_exit=True)
    finally:
        released.set()
        thread.join()
    assert ended.value.args == (1,)
    assert "FileNotFoundError" in capfd.readouterr().out


def test_a_program_without_other_threads_returns(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    target = stdio(tmp_path, exits={"initialize": 3})
    assert run(["check", *target], may_exit=True) == 1
    assert "exited with status 3" in capfd.readouterr().out
