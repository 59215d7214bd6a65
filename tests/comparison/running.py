"""Tries all behaviors on one library, each in a new process, and writes `results.json`."""

import json
import os
import platform
import signal
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from behaviors import BEHAVIORS, SEEN, rows, try_behavior
from world import SERVER, World

RESULTS = Path(__file__).with_name("results.json")
LIMIT = 60.0  # of one behavior, in seconds


def outcomes_in_process(script, name):
    """Tries a behavior in a new process. A process that does not end in time is an outcome."""
    reader, writer = os.pipe()
    command = [sys.executable, script, name, str(writer)]
    with subprocess.Popen(
        command,
        pass_fds=[writer],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(writer)
        with open(reader) as results:  # noqa: PTH123
            try:
                _, errors = process.communicate(timeout=LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return dict.fromkeys(BEHAVIORS[name][0], "hangs"), []
            if process.returncode:
                raise RuntimeError(f"{name} failed:\n{errors.decode(errors='replace')}")
            document = json.load(results)
    return document["outcomes"], [without_paths(text) for text in document["seen"]]


def without_paths(text):
    """Returns the text without paths of this machine, and not longer than a line or two."""
    names = {str(SERVER): "server.py", sys.executable: "python"}
    for path, name in names.items():
        text = text.replace(path, name)
    return text if len(text) <= 300 else f"{text[:300]}…"


def report(outcomes):
    """Writes the outcomes into the pipe, and ends the process at once.

    Some outcomes leave threads or tasks that would keep the process from ending.
    """
    with open(int(sys.argv[2]), "w") as results:  # noqa: PTH123
        json.dump({"outcomes": outcomes, "seen": SEEN}, results)
    os._exit(0)


def run(name, library):
    """Tries the behaviors that the command line names, or all of them."""
    if len(sys.argv) == 3 and sys.argv[2].isdigit():
        try_behavior(sys.argv[1], library, World(), report)
    versions = {package: version(package) for package in library.packages}
    print(name, versions, flush=True)
    outcomes, errors = {}, {}
    for each in sys.argv[1:] or BEHAVIORS:
        found, errors[each] = outcomes_in_process(sys.argv[0], each)
        outcomes |= found
        for row, outcome in found.items():
            print(f"  {row}: {outcome}", flush=True)
    save(name, versions, outcomes, errors)


def save(name, versions, outcomes, errors):
    """Writes the results of one library. Other behaviors keep theirs if the versions are the same."""
    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"libraries": {}}
    old = document["libraries"].get(name)
    if old is not None and old["versions"] == versions:
        outcomes, errors = old["outcomes"] | outcomes, old["errors"] | errors
    result = {
        "versions": versions,
        "outcomes": {row: outcomes[row] for row in rows() if row in outcomes},
        "errors": {each: errors[each] for each in BEHAVIORS if errors.get(each)},
    }
    document = {
        "python": platform.python_version(),
        "system": platform.system(),
        "date": datetime.now(UTC).date().isoformat(),
        "libraries": dict(sorted((document["libraries"] | {name: result}).items())),
    }
    RESULTS.write_text(json.dumps(document, indent=2) + "\n")
