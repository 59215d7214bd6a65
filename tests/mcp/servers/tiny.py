"""A server that implements just enough of the protocol, and starts much faster than the SDK's.

Usage: python tiny.py [NAME...]; it lists these tools.
"""

import json
import os
import sys
import time


def answer(method, params):
    """Returns the result: `None` if the method is unknown, `{}` if no response is to be sent."""
    tool = params.get("name") if method == "tools/call" else None
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "tiny", "version": "1"},
        }
    if tool == "hang":
        return {}
    if tool == "exit":
        os._exit(params["arguments"]["code"])
    if tool == "block":
        time.sleep(params["arguments"]["seconds"])
        return {"content": []}
    if tool == "process_id":
        return {"content": [{"type": "text", "text": str(os.getpid())}]}
    if method == "tools/list":
        return {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in sys.argv[1:]]}
    return None


for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        reply = {"jsonrpc": "2.0", "id": message["id"]}
        result = answer(message["method"], message.get("params", {}))
        if result is None:
            reply["error"] = {"code": -32601, "message": "no such method"}
        else:
            reply["result"] = result
        if result != {}:
            print(json.dumps(reply), flush=True)
