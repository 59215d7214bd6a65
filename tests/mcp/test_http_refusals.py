"""Tests for calls that the server refuses: each one fails alone, and its error contains the status."""

import json
import logging
import traceback

import anyio
import pytest
from http_server import http_server
from session_server import (
    ERROR,
    REFUSALS,
    SessionServer,
    call,
    error_of,
    in_turn,
    json_error,
    lost,
    opened,
    refused,
    reset,
    result_of,
    status,
    works,
)

from ownertask import ConnectionState
from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager, _sdk

http = _sdk.http

# The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

INVALID_PARAMS = -32602
UNAUTHORIZED = status("401 Unauthorized", www_authenticate='Bearer realm="s3cret"')
MID_SESSION = {
    "HTTP status 401 Unauthorized, WWW-Authenticate: Bearer": UNAUTHORIZED,
    "HTTP status 403 Forbidden": status("403 Forbidden"),
    "HTTP status 429 Too Many Requests": status("429 Too Many Requests"),
    "HTTP status 500 Internal Server Error": status("500 Internal Server Error"),
}


@pytest.mark.parametrize("text", MID_SESSION)
async def test_W2_a_refused_call_fails_alone_and_its_error_contains_the_status(text, caplog):
    server = SessionServer(**{"tools/call": in_turn(MID_SESSION[text], SessionServer().answer)})
    with caplog.at_level(logging.DEBUG, logger="ownertask"):
        async with opened(server) as (manager, session):
            error = await refused(session)
            assert text in error.message
            await works(manager, session)
            await call(session)
    assert "s3cret" not in error.message + caplog.text


async def test_W2_the_other_calls_of_the_session_are_not_affected():
    is_refused = anyio.Event()

    async def hold(request):
        await is_refused.wait()
        await server.answer(request)

    server = SessionServer(**{"tools/call": in_turn(hold, UNAUTHORIZED, hold)})
    async with opened(server) as (manager, session):
        async with anyio.create_task_group() as tg:
            tg.start_soon(call, session)
            await server.received("tools/call")
            await refused(session)
            tg.start_soon(call, session)
            await server.received("tools/call", 3)
            is_refused.set()
        await works(manager, session)


# mcp 2.x deprecates each notification that a client can send in a session.
@pytest.mark.filterwarnings("ignore:The roots capability is deprecated")
@pytest.mark.parametrize(
    ("answer", "probes"),
    [
        pytest.param(UNAUTHORIZED, 0, id="401"),
        pytest.param(status("403 Forbidden"), 0, id="403"),
        pytest.param(status("429 Too Many Requests"), 0, id="429"),
        pytest.param(status("400 Bad Request"), 1, id="400"),
        pytest.param(status("500 Internal Server Error"), 1, id="500"),
        pytest.param(reset, 1, id="reset"),
    ],
)
async def test_W2_a_refused_notification_does_not_harm_the_session(answer, probes):
    server = SessionServer(**{"notifications/roots/list_changed": answer})
    async with opened(server) as (manager, session):
        for count in (1, 2):
            await session.send_roots_list_changed()
            await server.received("notifications/roots/list_changed", count)
            await server.received("probe", probes * count)
            await works(manager, session)
    assert server.count("probe") == 2 * probes


async def test_W2_the_error_of_a_refused_call_shows_no_secret():
    server = SessionServer(**{"tools/call": UNAUTHORIZED})
    async with opened(server, headers={"Authorization": "Bearer s3cret"}) as (_, session):
        with pytest.raises(Exception) as caught:
            await call(session)
    assert "HTTP status 401" in str(caught.value)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("refusal", [*REFUSALS, "404 Not Found", "reset"])
async def test_W1_without_a_session_id_a_failed_call_fails_alone(refusal):
    answer = {**REFUSALS, "404 Not Found": status("404 Not Found"), "reset": reset}[refusal]
    server = SessionServer(**{"tools/call": in_turn(answer, SessionServer().answer)})
    server.session_id = None
    async with opened(server) as (manager, session):
        error = await refused(session)
        assert error.message
        await works(manager, session)
        await call(session)
    assert server.count("probe") == 0
    assert not any("mcp-session-id" in request.headers for request in server.requests)


@pytest.mark.parametrize("is_alive", [True, False], ids=["alive", "gone"])
@pytest.mark.parametrize("line", ["404 Not Found", "400 Bad Request"], ids=lambda line: line[:3])
async def test_W14_a_json_rpc_error_in_a_refusal_is_the_answer_to_the_call(line, is_alive):
    server = SessionServer(**{"tools/call": json_error(line, INVALID_PARAMS, "no such tool")})
    if not is_alive:
        server.answers["probe"] = status("404 Not Found")
    async with opened(server) as (manager, session):
        error = await refused(session)
        assert (error.code, error.message) == (INVALID_PARAMS, "no such tool")
        await server.received("probe")
        if is_alive:
            await works(manager, session)
        else:
            loss = await lost(manager)
            assert "HTTP status 404 Not Found" in str(loss.__cause__)
    assert server.count("probe") == 1


async def test_W15_a_plain_404_ends_the_call_and_then_the_session():
    server = SessionServer(**{"tools/call": status("404 Not Found")})
    async with opened(server) as (manager, session):
        error = await refused(session)
        state = manager.state
        assert error.message.startswith("Session terminated")
        assert "HTTP status 404 Not Found" in error.message
        loss = await lost(manager)
        assert "HTTP status 404 Not Found" in str(loss.__cause__)
    assert state is not ConnectionState.CLOSED
    assert server.count("probe") == 0


async def test_W14_an_error_keeps_its_data():
    async def answer(request):
        body = error_of(request, INVALID_PARAMS)
        body["error"]["data"] = {"field": "a"}
        await request.answer("400 Bad Request", body)

    async with opened(SessionServer(**{"tools/call": answer})) as (_, session):
        assert (await refused(session)).data == {"field": "a"}


@pytest.mark.parametrize("line", ["200 OK", "400 Bad Request"])
@pytest.mark.parametrize(
    "message",
    [
        {"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": "no session"}},
        {"error": {"code": -32000, "message": "no session"}},
        {"id": "own", "error": {"code": -32000, "message": "no session"}},  # is not quite JSON-RPC
        {"jsonrpc": "2.0", "id": "own", "error": {"code": "x", "message": "bad"}},
        {"jsonrpc": "2.0", "id": "own", "error": "bad"},
        {"jsonrpc": "2.0", "id": "own"},
        {"jsonrpc": "2.0", "id": 4711, "result": {}},
        {"jsonrpc": "2.0", "method": "notifications/progress"},
        {"jsonrpc": "2.0", "id": "own", "method": "x", "result": {}},
        {"jsonrpc": "2.0", "id": "own", "result": None},
        {"jsonrpc": "2.0", "id": [1], "error": {"code": -32000, "message": "bad"}},
        {"jsonrpc": "1.0", "id": "own", "result": {}},
        ["jsonrpc"],
        None,
    ],
)
async def test_a_call_ends_with_any_json_that_the_server_sends(line, message):
    """A response that is not the answer to the call would leave it waiting."""

    async def answer(request):
        own = request.message["id"]
        is_own = isinstance(message, dict) and message.get("id") == "own"
        await request.answer(
            line,
            json.dumps({**message, "id": own} if is_own else message).encode(),
            content_type="application/json",
        )

    server = SessionServer(**{"tools/call": answer})
    async with opened(server) as (manager, session):
        error = await refused(session)
        text = "no session" if "no session" in str(message) else f"HTTP status {line}"
        assert text in error.message
        await works(manager, session)
    assert server.count("probe") == 1


ODD_BODIES = {
    "deeply nested": b"[" * 50_000,
    "with a byte order mark": b'\xef\xbb\xbf{"jsonrpc": "2.0", "id": 4, "result": {}}',
    "not in UTF-8": b'{"jsonrpc": "2.0", "id": 4, "result": {"x": "\xff"}}',
    "in UTF-16": '{"jsonrpc": "2.0", "id": 4, "result": {}}'.encode("utf-16"),
    "empty": b"",
}


@pytest.mark.parametrize("body", ODD_BODIES)
@pytest.mark.parametrize("line", ["200 OK", "400 Bad Request"])
@pytest.mark.parametrize("kind", ["tools/call", "probe"])
async def test_an_odd_body_fails_only_the_call_or_the_probe(body, line, kind):
    odd = status(line, ODD_BODIES[body], content_type="application/json")
    server = SessionServer(**{"tools/call": status("400 Bad Request"), kind: odd})
    async with opened(server) as (manager, session):
        assert "HTTP status" in (await refused(session)).message
        if kind == "probe":
            loss = await lost(manager)
            assert f"HTTP status {line}" in str(loss.__cause__)
        else:
            await works(manager, session)


async def test_an_error_may_contain_a_lone_surrogate():
    """A Python server that quotes the name of a file sends one."""
    refuse = json_error("400 Bad Request", INVALID_PARAMS, "no file \udcff")
    async with opened(SessionServer(**{"tools/call": refuse})) as (_, session):
        error = await refused(session)
        assert (error.code, error.message) == (INVALID_PARAMS, "no file ?")


async def test_a_refusal_of_a_large_request_fails_the_call():
    async def refuse(request):
        error = {"code": -32000, "message": "too large"}
        await request.answer(body={"jsonrpc": "2.0", "id": None, "error": error})

    async with opened(SessionServer(**{"tools/call": refuse})) as (manager, session):
        with anyio.fail_after(3), pytest.raises(ERROR, match="too large"):
            await session.call_tool("add", {"a": "x" * 100_000})
        await works(manager, session)


@pytest.mark.parametrize("line", ["200 OK", "202 Accepted"])
@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "application/json-rpc", None]
)
async def test_answers_with_other_statuses_and_content_types_are_accepted(line, content_type):
    async def answer(request):
        if content_type is not None:
            await request.answer(line, result_of(request), content_type=content_type)
        else:
            data = json.dumps(result_of(request))
            body = f"event: message\ndata: {data}\n\n".encode()
            await request.answer(line, body, content_type="text/event-stream")

    async with opened(SessionServer(**{"tools/call": answer})) as (_, session):
        await call(session)


async def test_an_answer_may_have_the_id_of_the_call_as_a_string():
    async def answer(request):
        body = {**result_of(request), "id": str(request.message["id"])}
        await request.answer(body=body)

    async with opened(SessionServer(**{"tools/call": answer})) as (_, session):
        await call(session)


@pytest.mark.parametrize("size", [70_000, 1_000_000])
async def test_a_large_answer_is_passed_on_and_a_large_truncated_one_fails_the_call(size):
    def large(end):
        async def answer(request):
            body = result_of(request)
            body["result"]["_meta"] = {"large": "x" * size}
            content = json.dumps(body).encode()
            await request.answer(body=content[: len(content) - end], content_type="application/json")

        return answer

    server = SessionServer(**{"tools/call": in_turn(large(0), large(1000))})
    async with opened(server) as (manager, session):
        await call(session)
        assert "is not an answer" in (await refused(session)).message
        await works(manager, session)


async def test_the_error_arrives_before_the_loss_even_if_the_probe_is_refused_at_once():
    """A transport in the same process answers without delay."""

    async def handle(request):
        if request.method != "POST":
            return http.Response(405)
        message = json.loads(request.content)
        if message["method"] == "initialize":
            result = {
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": {},
                "serverInfo": {"name": "mock", "version": "1"},
            }
            body = {"jsonrpc": "2.0", "id": message["id"], "result": result}
            return http.Response(200, json=body, headers={"mcp-session-id": "1"})
        return http.Response(202 if "id" not in message else 400)

    async with http.AsyncClient(transport=http.MockTransport(handle)) as client:
        manager = SessionConnectionManager(
            StreamableHttpConnectionManager("http://example.org/mcp", http_client=client)
        )
        session = await manager.start()
        assert (await refused(session)).message == "HTTP status 400 Bad Request"
        await lost(manager)


@pytest.mark.skipif(_sdk.FOLLOWS_ALL_REDIRECTS, reason="the HTTP client follows redirects, and raises")
async def test_a_loop_of_redirects_fails_only_the_call():
    redirect = status("307 Temporary Redirect", location="/mcp")
    async with opened(SessionServer(**{"tools/call": redirect})) as (manager, session):
        assert "HTTP status 307 Temporary Redirect" in (await refused(session)).message
        await works(manager, session)


@pytest.mark.parametrize("refusal", [None, "500 Internal Server Error"])
async def test_calls_work_through_redirects_and_fail_with_the_status(refusal):
    """Many servers redirect to the same URL with a slash at the end."""

    async def redirect(request):
        if request.target == "/mcp":
            await request.answer("307 Temporary Redirect", location="/mcp/")
        else:
            await server(request)

    server = SessionServer()
    async with http_server(redirect) as url:
        manager = SessionConnectionManager(f"{url}/mcp")
        async with manager as session:
            await call(session)
            if refusal is not None:
                server.answers["tools/call"] = status(refusal)
                assert (await refused(session)).message == f"HTTP status {refusal}"
            await works(manager, session)
    assert server.count("probe") == (0 if refusal is None else 1)
    assert server.count("DELETE") == 1


async def test_the_probe_and_the_delete_follow_redirects():
    """The server begins to redirect after the session was opened."""

    async def redirect(request):
        if is_redirecting and request.target == "/mcp":
            await request.answer("307 Temporary Redirect", location="/mcp/")
        else:
            await server(request)

    async def refuse_once(request):
        is_redirecting.append(True)
        await request.answer("500 Internal Server Error")

    is_redirecting = []
    server = SessionServer(**{"tools/call": refuse_once})
    async with http_server(redirect) as url:
        manager = SessionConnectionManager(f"{url}/mcp")
        async with manager as session:
            await refused(session)
            await server.received("probe")
            await works(manager, session)
    assert server.count("DELETE") == 1
