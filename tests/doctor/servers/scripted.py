"""An MCP server over stdio that follows a script: `scripted.py FILE [ARG ...]`, where FILE is JSON.

The keys of the script, all optional:

* `name`, `version`, `capabilities`: sent in answer to `initialize`
* `tools`, `resources`, `prompts`: lists of names or URIs; `page` is the number of items in each answer
* `stderr`: written when the server starts; `stdout`: written before the first answer
* `endless`: the last page of a list refers to the first one
* `errors`: the message of the JSON-RPC error with which a method is answered
* `exits`: the status with which the server exits when a method is called
* `silent`: the methods that are never answered
* `signals`: `[PROCESS, NUMBER]`, sent when a method is called
* `runs`: a file that counts the runs; `errors`, `exits` and `silent` apply only from the run `from` on
* `stubborn`: `true` if the server ignores the end of stdin and SIGTERM
* `leaves`: a file for the ID of a process that outlives the server

It does not use `pathlib`, which takes longer to import than all the rest.

`{everything}` in a text is replaced with the server's arguments and its environment.
"""

import json
import os
import signal
import subprocess
import sys

with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123
    script = json.load(file)

plain = [*sys.argv[2:], *(f"{name}={value}" for name, value in os.environ.items())]
everything = "\n".join([*plain, repr(plain), json.dumps(plain)])


def filled(text):
    return text.replace("{everything}", everything)


def is_due():
    if "runs" not in script:
        return True
    with open(script["runs"], "a+", encoding="utf-8") as file:  # noqa: PTH123
        file.write("x")
        file.seek(0)
        return len(file.read()) >= script["from"]


def page_of(method, params):
    kind = method.partition("/")[0]
    names = script.get(kind, [])
    begin = int(params.get("cursor") or 0)
    end = begin + script.get("page", len(names) or 1)
    key = "uri" if kind == "resources" else "name"
    extra = {"tools": {"inputSchema": {"type": "object"}}, "resources": {"name": "a"}}.get(kind, {})
    result = {kind: [{key: name} | extra for name in names[begin:end]]}
    if end < len(names):
        return result | {"nextCursor": str(end)}
    return result | ({"nextCursor": "0"} if script.get("endless") else {})


def result_of(method, params):
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": script.get("capabilities", {"tools": {}}),
            "serverInfo": {
                "name": script.get("name", "scripted"),
                "version": script.get("version", "1"),
            },
        }
    if method == "ping":
        return {}
    if method in {"tools/list", "resources/list", "prompts/list"}:
        return page_of(method, params)
    if method == "resources/templates/list":
        return {"resourceTemplates": []}
    return None


def answer(message):
    method = message["method"]
    if method in script.get("signals", {}):
        os.kill(*script["signals"][method])
    if due and method in script.get("exits", {}):
        os._exit(script["exits"][method])
    if "id" not in message or (due and method in script.get("silent", [])):
        return
    reply = {"jsonrpc": "2.0", "id": message["id"]}
    result = result_of(method, message.get("params") or {})
    if due and method in script.get("errors", {}):
        reply["error"] = {"code": -32000, "message": filled(script["errors"][method])}
    elif result is None:
        reply["error"] = {"code": -32601, "message": "Method not found"}
    else:
        reply["result"] = result
    print(json.dumps(reply), flush=True)


due = is_due()
if script.get("stubborn"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "leaves" in script:
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(["sleep", "60"], start_new_session=True, **quiet)
    with open(script["leaves"], "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(str(child.pid))
    child.returncode = 0  # nobody waits for it
sys.stderr.write(filled(script.get("stderr", "")))
sys.stderr.flush()
sys.stdout.write(filled(script.get("stdout", "")))
sys.stdout.flush()
for line in sys.stdin:
    answer(json.loads(line))
while script.get("stubborn"):
    signal.pause()
