"""Tests for exceptions and logging handlers that misbehave inside a transport."""

import logging
import threading

import anyio
import pytest
from servers import python_server

from ownertask import ConnectionState
from ownertask.mcp import (
    SessionConnectionManager,
    SseConnectionManager,
    StdioConnectionManager,
    StreamableHttpConnectionManager,
    _sdk,
)

# Early versions of mcp 1.x leave streams open if their task group fails.
pytestmark = (
    []
    if _sdk.HAS_CLIENT
    else pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
)

http_transports = pytest.mark.parametrize(
    "transport", [SseConnectionManager, StreamableHttpConnectionManager]
)


class WithoutText(_sdk.http.ConnectError):
    def __str__(self):
        return ""


class StrRaises(_sdk.http.ConnectError):
    def __str__(self):
        raise KeyError("str")


class StrIsNotText(_sdk.http.ConnectError):
    def __str__(self):
        return 1  # noqa: PLE0307


class ArgsRaise(_sdk.http.ConnectError):
    @property
    def args(self):
        raise KeyError("args")


class CauseRaises(WithoutText):
    @property
    def __cause__(self):
        raise KeyError("cause")


class AttributesRaise(WithoutText):
    def __getattr__(self, name):
        raise KeyError(name)


class ResponseRaises(_sdk.http.HTTPStatusError):
    def __init__(self, text):
        Exception.__init__(self, text)

    @property
    def response(self):
        raise KeyError("response")

    @response.setter
    def response(self, value):
        raise KeyError("response")


def raised_from_itself():
    error = WithoutText("")
    error.__cause__ = error
    return error


def raised_in_a_circle():
    errors = [WithoutText(""), ValueError(), OSError()]
    for error, cause in zip(errors, errors[1:] + errors[:1], strict=True):
        error.__cause__ = cause
    return errors[0]


def raised_from_an_odd_one():
    error = WithoutText("")
    error.__cause__ = StrRaises("")
    error.__cause__.__cause__ = OSError("the network is down")
    return error


ODD = {
    "without a text": lambda: WithoutText(""),
    "str raises": lambda: StrRaises("refused"),
    "str is not a text": lambda: StrIsNotText("refused"),
    "args raise": lambda: ArgsRaise("refused"),
    "cause raises": lambda: CauseRaises("refused"),
    "attributes raise": lambda: AttributesRaise("refused"),
    "response raises": lambda: ResponseRaises("refused"),
    "raised from itself": raised_from_itself,
    "raised in a circle": raised_in_a_circle,
    "raised from an odd one": raised_from_an_odd_one,
}


class Raising(_sdk.http.AsyncBaseTransport):
    """The network of an HTTP client, on which each request fails."""

    def __init__(self, error):
        self.error = error

    async def handle_async_request(self, request):
        raise self.error


def factory_of(error):
    def create_client(headers=None, timeout=None, auth=None):
        return _sdk.http.AsyncClient(transport=Raising(error))

    return create_client


@http_transports
@pytest.mark.parametrize("odd", ODD)
async def test_F14_an_odd_exception_of_the_http_client_arrives_and_the_run_ends(transport, odd):
    error = ODD[odd]()
    manager = SessionConnectionManager(
        transport("http://127.0.0.1/mcp", httpx_client_factory=factory_of(error))
    )
    try:
        await manager.start()
    except BaseException as exc:
        arrived = exc
    assert arrived is error
    assert manager.state is ConnectionState.FAILED
    assert manager.exception is error
    if odd == "raised from an odd one":
        assert "OSError: the network is down" in error.__notes__


async def test_F14_a_group_that_is_nested_three_thousand_deep_arrives():
    error = nested = OSError("at the bottom")
    for _ in range(3000):
        nested = ExceptionGroup("a group", [nested])

    def create_client(headers=None, timeout=None, auth=None):
        raise nested

    manager = StreamableHttpConnectionManager("http://127.0.0.1/mcp", httpx_client_factory=create_client)
    try:
        async with manager.open_connection():
            pass
    except BaseException as exc:
        arrived = exc
    assert arrived is nested
    while isinstance(arrived, ExceptionGroup):
        [arrived] = arrived.exceptions
    assert arrived is error


class Failing:
    """An `errlog` that fails."""

    def __init__(self):
        self.failed = threading.Event()

    def write(self, text):
        self.failed.set()
        raise LookupError("this errlog fails")


@pytest.fixture
def raising_filter():
    def refuse(record):
        if "errlog" in record.msg:
            raise KeyError("this filter fails")
        return True

    logger = logging.getLogger("ownertask")
    logger.addFilter(refuse)
    yield
    logger.removeFilter(refuse)


@pytest.mark.within(20)
async def test_F1_a_logging_filter_that_raises_does_not_end_the_connection(raising_filter):
    errlog = Failing()
    manager = StdioConnectionManager(
        python_server("import sys; print('hello', file=sys.stderr, flush=True); sys.stdin.read()"),
        errlog,
    )
    await manager.start()
    await anyio.to_thread.run_sync(errlog.failed.wait, 10)
    assert errlog.failed.is_set()
    await anyio.wait_all_tasks_blocked()
    assert manager.state is ConnectionState.OPEN
    assert manager.stderr_tail == "hello\n"
    await manager.stop()
    assert manager.state is ConnectionState.CLOSED
    assert manager.exception is None
