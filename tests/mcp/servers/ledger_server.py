"""Runs the server of `ledger.py` on uvicorn. Usage: ledger_server.py LEDGER PORT.

The port is closed until the server reads a line from its stdin. Then it opens the port and prints one.
The paths are `/mcp` (streamable HTTP with sessions), `/sse` and `/ws`. Each path forgets its sessions
when the process ends. A POST to `/forget` makes `/mcp` forget them earlier.
"""

import asyncio
import itertools
import json
import socket
import sys

import uvicorn
from ledger import Ledger

ledger = Ledger(sys.argv[1])
sessions = set()
events = {}
numbers = itertools.count(1)
paths = {}


def serves(path):
    return lambda function: paths.setdefault(path, function)


async def application(scope, receive, send):
    await paths[scope["path"]](scope, receive, send)


async def respond(send, status, body=b"", *headers, more=False):
    if not more:
        headers = (*headers, (b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def body_of(receive):
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            return json.loads(body)


async def disconnected(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


EVENT_STREAM = (b"content-type", b"text/event-stream")


@serves("/forget")
async def forget(scope, receive, send):
    sessions.clear()
    await respond(send, 200)


@serves("/mcp")
async def streamable_http(scope, receive, send):
    session = dict(scope["headers"]).get(b"mcp-session-id")
    message = await body_of(receive) if scope["method"] == "POST" else {}
    headers = [(b"content-type", b"application/json")]
    if message.get("method") == "initialize":
        session = f"{scope['server'][1]}-{next(numbers)}-{id(scope)}".encode()
        sessions.add(session)
        headers.append((b"mcp-session-id", session))
    elif message.get("method") == "server/discover":
        return await respond(send, 404)
    if session not in sessions:
        return await respond(send, 404)
    if scope["method"] == "GET":
        await respond(send, 200, b": hello\n\n", EVENT_STREAM, more=True)
        return await disconnected(receive)
    if scope["method"] == "DELETE":
        sessions.discard(session)
        return await respond(send, 200)
    reply = ledger.reply_to(message)
    if reply is not None:
        return await respond(send, 200, json.dumps(reply).encode(), *headers)
    if "id" in message:
        return await disconnected(receive)
    return await respond(send, 202)


@serves("/sse")
async def sse(scope, receive, send):
    session = str(next(numbers))
    queue = events[session] = asyncio.Queue()
    endpoint = f"event: endpoint\ndata: /messages?session_id={session}\n\n"
    await respond(send, 200, endpoint.encode(), EVENT_STREAM, more=True)

    async def forward():
        while True:
            text = f"event: message\ndata: {json.dumps(await queue.get())}\n\n"
            await send({"type": "http.response.body", "body": text.encode(), "more_body": True})

    forwarding = asyncio.create_task(forward())
    await disconnected(receive)
    forwarding.cancel()


@serves("/messages")
async def messages(scope, receive, send):
    queue = events[scope["query_string"].decode().partition("=")[2]]
    reply = ledger.reply_to(await body_of(receive))
    await respond(send, 202)
    if reply is not None:
        queue.put_nowait(reply)


@serves("/ws")
async def websocket(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept", "subprotocol": "mcp"})
    while (event := await receive())["type"] == "websocket.receive":
        reply = ledger.reply_to(json.loads(event["text"]))
        if reply is not None:
            await send({"type": "websocket.send", "text": json.dumps(reply)})


listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # the test has reserved the port
listener.bind(("127.0.0.1", int(sys.argv[2])))
config = uvicorn.Config(application, log_level="error", ws="websockets-sansio", lifespan="off")
config.load()
sys.stdin.readline()
listener.listen()
print("open", flush=True)
asyncio.run(uvicorn.Server(config).serve([listener]))
