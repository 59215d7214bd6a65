"""A stdio server for tests of the command line. A JSON file describes its behavior.

The command line hides the arguments of a server, but not the path of a file. The file can contain:

* `announce`: the path of a FIFO, which receives each method that the server receives, and `end of input`
* `silent`: the methods that it never answers
* `exits`: the methods on which it exits
* `lingers`: `true` if it ignores the end of its stdin
* `stubborn`: `true` if it ignores the end of its stdin and SIGTERM
* `name`: its name
* `tools`: the names of its tools
* `stderr`: the text that it writes to its stderr
"""

import json
import signal
import sys
from pathlib import Path

script = json.loads(Path(sys.argv[1]).read_text())
announcements = Path(script["announce"]).open("w") if "announce" in script else None  # noqa: SIM115


def announce(text):
    if announcements is not None:
        print(text, file=announcements, flush=True)


def result_of(method, params):
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": script.get("name", "scripted"), "version": "1"},
        }
    if method == "tools/list":
        return {
            "tools": [
                {"name": name, "inputSchema": {"type": "object"}} for name in script.get("tools", ())
            ]
        }
    return {}


if script.get("stubborn"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.stderr.buffer.write(script.get("stderr", "").encode("latin-1"))
sys.stderr.flush()
for line in sys.stdin:
    message = json.loads(line)
    method = message.get("method")
    announce(method)
    if method in script.get("exits", ()):
        sys.exit(3)
    if "id" in message and method not in script.get("silent", ()):
        result = result_of(method, message.get("params", {}))
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
announce("end of input")
while script.get("stubborn") or script.get("lingers"):
    signal.pause()
