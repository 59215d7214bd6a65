"""Tests for the errors that are raised when a session over HTTP can't be opened.

A failure is raised as soon as it is known, keeps its type, and carries all known facts.
"""

import logging
import traceback

import anyio
import pytest
from http_failures import CASES, PAGE, SECRET, START_TIMEOUT, described, failing, rows, table
from mcp.shared import _httpx_utils

from ownertask import ConnectionState, StartTimeoutError
from ownertask.mcp import ClientConnectionManager, _sdk

# The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

backends = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
cases = pytest.mark.parametrize(
    ("transport", "case"), [(transport, case) for transport in CASES for case in CASES[transport]]
)
SHOWN = rows(PAGE.read_text())
SHOWN_VERSION = f"mcp {_sdk.SDK_VERSION}" in PAGE.read_text()


# Older SDKs follow a redirect to any origin.
SDK_IS_RECENT = hasattr(_httpx_utils, "stream_within_origin")


async def caught_from(manager):
    with anyio.fail_after(15), pytest.raises(Exception) as caught:
        await manager.start()
    assert manager.state is ConnectionState.FAILED
    return caught.value


def all_that_is_said(error, manager, log):
    return "".join(traceback.format_exception(error)) + repr(manager) + repr(manager.transport) + log


@pytest.fixture
def redirects_are_refused(case):
    if "redirect" in case and not SDK_IS_RECENT:
        pytest.skip("this SDK follows redirects to any origin")


@backends
@cases
@pytest.mark.within(20)
async def test_O4_O5_O6_O7_O8_O9_a_failure_matches_the_table_and_shows_no_secret(
    transport, case, anyio_backend_name, caplog, redirects_are_refused
):
    shown = SHOWN[transport, case][not _sdk.HAS_CLIENT]
    with caplog.at_level(logging.DEBUG, logger="ownertask"):
        # A short timeout only if a timeout is the expected failure.
        timeout = START_TIMEOUT if "StartTimeoutError" in shown else 15
        async with failing(transport, case, start_timeout=timeout) as manager:
            error = await caught_from(manager)
    assert shown.startswith(f"`{type(error).__name__}`")
    if SHOWN_VERSION and anyio_backend_name == "asyncio":
        assert described(error, manager) == shown
    if not isinstance(error, StartTimeoutError):
        assert ": " in described(error, manager)
    if case.isdigit():
        assert f"HTTP status {case}" in "".join(error.__notes__)
    assert SECRET not in all_that_is_said(error, manager, caplog.text)


@pytest.mark.skipif(not _sdk.HAS_CLIENT, reason="mcp 1.x has no Client")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    ("transport", "case"),
    [
        ("streamable HTTP", "401"),
        ("streamable HTTP", "404"),
        ("streamable HTTP", "nothing is listening on the port"),
        ("streamable HTTP", "an HTML page instead of an MCP response"),
        ("SSE", "403 in response to a message"),
    ],
)
@pytest.mark.within(20)
async def test_a_client_raises_the_same_error_and_shows_no_secret(transport, case, caplog):
    with caplog.at_level(logging.DEBUG, logger="ownertask"):
        async with failing(transport, case, ClientConnectionManager, 15) as manager:
            error = await caught_from(manager)
    assert type(error).__name__ == SHOWN[transport, case][0].split("`")[1]
    if case.isdigit():
        assert f"HTTP status {case}" in "".join(error.__notes__)
    assert SECRET not in all_that_is_said(error, manager, caplog.text)


@backends
async def test_an_untrusted_certificate_is_reported_on_every_backend():
    async with failing("SSE", "an untrusted certificate", start_timeout=15) as manager:
        error = await caught_from(manager)
    assert "self-signed certificate" in f"{error} {error.__notes__}"


@backends
async def test_a_timeout_passed_to_start_also_carries_the_known_facts():
    async with failing("SSE", "no `endpoint` event", start_timeout=None) as manager:
        with pytest.raises(StartTimeoutError) as caught:
            await manager.start(timeout=0.5)
    assert caught.value.__notes__ == ["the server did not send an `endpoint` event"]


@backends
async def test_open_connection_raises_the_same_error_and_shows_no_secret():
    async with failing("SSE", "403", start_timeout=15) as manager:
        with pytest.raises(Exception) as caught:
            async with manager.open_connection():
                pass
    said = all_that_is_said(caught.value, manager, "")
    assert "HTTPStatusError" in said  # in an exception group on mcp 1.x
    assert SECRET not in said


def test_the_failures_page_lists_every_failure():
    page = PAGE.read_text()
    for transport in CASES:
        assert table(transport, SHOWN) in page
