"""A server that implements just enough of the protocol, in one of several kinds. It needs no packages.

It stays connected to the script that tries the libraries. So the script knows each server that was
started, and detects its end at once. If the script ends, the server ends, too.

Usage: python server.py PORT_OF_SCRIPT KIND [HTTP_PORT | ARGUMENT]
"""

import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

KIND = sys.argv[2]
TOOLS = ("process_id", "hang")
NO_RESPONSE = object()
SCRIPT = []


def introduce(http_port=0):
    """Connects to the script. Returns the number of servers that were started, with this one."""
    connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    hello = {"pid": os.getpid(), "parent": os.getppid(), "http_port": http_port}
    connection.sendall(json.dumps(hello).encode() + b"\n")
    stream = connection.makefile("rb")
    number = int(stream.readline())
    SCRIPT.append(connection)

    def end_with_the_script():
        stream.read()
        os._exit(1)

    threading.Thread(target=end_with_the_script, daemon=True).start()
    return number


def result_of(method, params, number):
    """Returns the result of a request, `None` if the method is unknown, or `NO_RESPONSE`."""
    if method == "initialize":
        server = {"name": f"server-{number}", "version": "1"}
        version = params["protocolVersion"]
        return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": server}
    if method == "tools/list":
        return {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]}
    if method == "tools/call":
        if params["name"] == "hang" and number == 1:
            SCRIPT[0].sendall(b"received\n")
            return NO_RESPONSE
        return {"content": [{"type": "text", "text": str(os.getpid())}]}
    return {} if method == "ping" else None


def response_to(message, number):
    """Returns the response to a message, or `None`."""
    if "id" not in message or "method" not in message:
        return None
    result = result_of(message["method"], message.get("params", {}), number)
    if result is NO_RESPONSE:
        return None
    response = {"jsonrpc": "2.0", "id": message["id"]}
    if result is None:
        return response | {"error": {"code": -32601, "message": "Method not found"}}
    return response | {"result": result}


def serve_stdio():
    if KIND == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    number = introduce()
    if KIND == "exits":
        sys.exit("no license for this machine")
    for line in sys.stdin:
        if KIND == "slow":
            time.sleep(1)
        response = response_to(json.loads(line), number)
        if response is not None and KIND != "mute":
            print(json.dumps(response), flush=True)
    while KIND in ("stays", "stubborn"):
        signal.pause()


class Handler(BaseHTTPRequestHandler):
    """Keeps each session in memory, so a restarted server does not know it."""

    protocol_version = "HTTP/1.1"
    sessions: ClassVar = set()
    number = 0

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        session = self.headers.get("Mcp-Session-Id")
        if KIND == "refuses":
            self.send(401)
        elif message.get("method") == "initialize":
            session = uuid.uuid4().hex
            self.sessions.add(session)
            self.send(200, response_to(message, self.number), session)
        elif (
            session is None and "id" in message
        ):  # a request of a later protocol, which needs no session
            self.send(200, response_to(message, self.number))
        elif session not in self.sessions:
            self.send(
                404,
                {
                    "jsonrpc": "2.0",
                    "id": None,
                    "error": {"code": -32600, "message": "Session not found"},
                },
            )
        elif "id" in message:
            self.send(200, response_to(message, self.number))
        else:
            self.send(202)

    def do_GET(self):
        self.send(401 if KIND == "refuses" else 405)

    def do_DELETE(self):
        self.send(200)

    def send(self, status, message=None, session=None):
        body = b"" if message is None else json.dumps(message).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if session is not None:
            self.send_header("Mcp-Session-Id", session)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Prints nothing."""


if __name__ == "__main__":
    if KIND in ("http", "refuses"):
        http = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3])), Handler)
        Handler.number = introduce(http.server_port)
        http.serve_forever()
    else:
        serve_stdio()
