"""A server that writes the id of each call to a file, before it answers. Usage: ledger.py LEDGER.

The ledger shows which calls reached a server, and whether one of them was sent twice.
"""

import json
import os
import sys

TOOLS = [{"name": name, "inputSchema": {"type": "object"}} for name in ("answer", "hold", "exit")]


class Ledger:
    def __init__(self, path):
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, call_id):
        os.write(self._file, f"{os.getpid()} {call_id}\n".encode())

    def reply_to(self, message):
        """Returns the response, or `None` if there is none."""
        if "id" not in message:
            return None
        result = self._result_of(message["method"], message.get("params", {}))
        reply = {"jsonrpc": "2.0", "id": message["id"]}
        if result is None:
            return {**reply, "error": {"code": -32601, "message": "no such method"}}
        return {**reply, "result": result} if result else None

    def _result_of(self, method, params):
        if method == "initialize":
            return {
                "protocolVersion": params["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "ledger", "version": "1"},
            }
        if method == "tools/list":
            return {"tools": TOOLS}
        if method != "tools/call":
            return None
        call_id = params["arguments"]["id"]
        self.write(call_id)
        if params["name"] == "exit":
            os._exit(3)
        if params["name"] == "hold":
            return {}
        return {"content": [{"type": "text", "text": f"answer to {call_id}"}]}


def serve(ledger):
    for line in sys.stdin:
        reply = ledger.reply_to(json.loads(line))
        if reply is not None:
            print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    serve(Ledger(sys.argv[1]))
