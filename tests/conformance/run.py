"""Runs the official conformance suite with the SDK alone, and with a connection manager.

For each scenario, both sides run at the same time. The run fails if a check passes with the SDK alone,
but not with the manager, even when both are repeated. The results of the installed SDK are saved.

Usage: python run.py FOLDER [TEXT]
FOLDER is where npm installed the suite and Node.js. With TEXT, only the scenarios whose names contain it
run, and the results are not saved.
"""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
FOLDER, TEXT = (*sys.argv[1:], "")[:2]
MODULES = Path(FOLDER, "node_modules").absolute()
SUITE = MODULES / "@modelcontextprotocol" / "conformance"
ENVIRONMENT = {**os.environ, "PATH": f"{MODULES / '.bin'}{os.pathsep}{os.environ['PATH']}"}

SDK = version("mcp")
SIDES = ("alone", "managed")
BACKENDS = ("asyncio", "trio")
# The versions of the protocol that the suite's server supports, and the SDK's client for each of them.
OLD, NEW = "2025-11-25", "2026-07-28"
CLIENTS = {OLD: "session"} if SDK.startswith("1.") else {OLD: "session", NEW: "client"}
ATTEMPTS = 3
TIMEOUT = 60  # for each client, in seconds


def conformance(*arguments):
    command = ["node", SUITE / "dist" / "index.js", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.run(command, check=False, env=ENVIRONMENT, timeout=2 * TIMEOUT, **pipes)


def scenarios_for(protocol):
    """Yields each scenario for a version of the protocol, and the option that selects the version.

    The scenarios for extensions and for an even older protocol have no such option. Their server uses
    the old version.
    """
    listed = conformance("list", "--client")
    listed.check_returncode()
    for name, versions in re.findall(r"^  - (\S+) \[(.+)\]$", listed.stdout, re.MULTILINE):
        if TEXT in name:
            if protocol in versions:
                yield name, ["--spec-version", protocol]
            elif protocol == OLD and NEW not in versions:
                yield name, []


def run(side, kind, backend, scenario, options):
    """Runs a scenario, and returns whether the suite accepts the client, and each check that it made.

    The suite repeats some checks for each request. Such a check passes if it passes each time.
    """
    client = shlex.join([sys.executable, str(HERE / "client.py"), side, kind, backend])
    with TemporaryDirectory() as folder:
        arguments = ["--command", client, "--scenario", scenario, *options]
        limits = ["--timeout", str(1000 * TIMEOUT), "--output-dir", folder]
        process = conformance("client", *arguments, *limits)
        (file,) = Path(folder).rglob("checks.json")
        checks = {}
        for check in json.loads(file.read_text()):
            if check["status"] in {"SUCCESS", "FAILURE", "WARNING"}:  # not INFO or SKIPPED
                name = (scenario, check["id"], check["description"])
                checks[name] = checks.get(name, True) and check["status"] == "SUCCESS"
    return {"accepted": process.returncode == 0, "checks": checks, "log": process.stderr}


def lost_checks(scenario, alone, managed):
    """Returns the names of the checks that pass only with the SDK alone."""
    passed = managed["checks"]
    lost = [name for name, passes in alone["checks"].items() if passes and not passed.get(name)]
    if alone["accepted"] and not managed["accepted"]:
        lost.append((scenario, "accepted", "the client exits without an error"))
    return lost


def compare(pool, kind, backend, protocol):
    """Runs the scenarios with both sides, repeats those that lost a check, and returns the sums."""
    row = {"client": kind, "backend": backend, "protocol": protocol, "scenarios": 0}
    row |= {"lost": [], "repeated": []}
    row |= {side: {"passed": 0, "failed": [], "rejected": []} for side in SIDES}
    for scenario, options in scenarios_for(protocol):
        for attempt in range(1, ATTEMPTS + 1):
            futures = [pool.submit(run, side, kind, backend, scenario, options) for side in SIDES]
            results = [future.result() for future in futures]
            lost = lost_checks(scenario, *results)
            if not lost:
                break
            row["repeated"].append(scenario)
            print(f"attempt {attempt}: lost {lost}\n{results[1]['log']}", file=sys.stderr)
        row["scenarios"] += 1
        row["lost"] += lost
        print(kind, backend, protocol, scenario, end="", flush=True)
        for side, result in zip(SIDES, results, strict=True):
            failed = [name[:2] for name, passes in result["checks"].items() if not passes]
            passed = len(result["checks"]) - len(failed)
            row[side]["passed"] += passed
            row[side]["failed"] += failed
            row[side]["rejected"] += [] if result["accepted"] else [scenario]
            print(f", {side}: {passed} passed, {len(failed)} failed", end="")
        print(flush=True)
    return row


def save(rows):
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[SDK.partition(".")[0]] = {
        "date": datetime.now(UTC).date().isoformat(),
        "mcp": SDK,
        "suite": json.loads((SUITE / "package.json").read_text())["version"],
        "python": platform.python_version(),
        "system": platform.system(),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def main():
    with ThreadPoolExecutor(len(SIDES)) as pool:
        rows = [
            compare(pool, kind, backend, protocol)
            for protocol, kind in CLIENTS.items()
            for backend in BACKENDS
        ]
    if not any(row["alone"]["passed"] for row in rows):
        sys.exit("no check passes with the SDK alone")
    if not TEXT:
        save(rows)
    if any(row["lost"] for row in rows):
        sys.exit("a check passes with the SDK alone, but not with a manager")


if __name__ == "__main__":
    main()
