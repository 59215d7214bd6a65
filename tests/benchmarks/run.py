"""Runs the benchmarks and prints their results. `nox -s benchmark` runs it."""

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

BOTH = ("asyncio", "trio")
# The benchmarks, each in the file of its name, and the backends on which each runs.
BENCHMARKS = {
    "cycles": BOTH,
    "mcp_use_cycles": ("asyncio",),
    "memory": BOTH,
    "imports": ("none",),
    "stdio": BOTH,
    "streamable_http": BOTH,
    "websocket": ("asyncio",),
    "servers": BOTH,
    "idle": BOTH,
    "growth": BOTH,
    "pools": BOTH,
}
PACKAGES = ("anyio", "mcp", "trio", "websockets")


def run(name, backend, python, mode):
    """Runs one benchmark in a new process, because the memory of other benchmarks would slow it down."""
    command = [python, str(Path(__file__).with_name("one.py")), name, backend, mode]
    environment = {**os.environ, "MCP_USE_ANONYMIZED_TELEMETRY": "false"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout
    return [{"benchmark": name, **row} for row in json.loads(output)]


def line(row):
    """Returns the line of a row in the printed table."""
    if row["goal"] is None:
        goal = ""
    else:
        goal = f"≤ {row['goal']:<5} {'met' if row['median'] <= row['goal'] else 'not met'}"
    spread = f"{row['low']:.3g} to {row['high']:.3g}"
    what = f"{row['label']}, {row['backend']}" if row["backend"] else row["label"]
    return (
        f"{what:<50} {row['median']:>8.3g} {row['unit']:<8} {row['to']:<20} {spread:<16} {goal}".rstrip()
    )


def save(rows, file):
    """Replaces the rows of a benchmark on one backend in a file, or all if the versions changed."""
    versions = {"Python": platform.python_version()}
    versions |= {package: version(package) for package in PACKAGES}
    if file.exists():
        old = json.loads(file.read_text())
        if old["versions"] == versions:
            new = rows[0]["benchmark"], rows[0]["backend"]
            rows += [row for row in old["rows"] if (row["benchmark"], row["backend"]) != new]
    rows.sort(key=lambda row: (list(BENCHMARKS).index(row["benchmark"]), row["backend"] or ""))
    document = {
        "versions": versions,
        "system": platform.system(),
        "date": datetime.now(UTC).date().isoformat(),
        "rows": rows,
    }
    file.write_text(json.dumps(document, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="NAME", default=BENCHMARKS)
    parser.add_argument("--backend", choices=BOTH, help="measure only this backend")
    parser.add_argument("--quick", action="store_true", help="a trial with few measurements")
    parser.add_argument("--mcp-use", type=Path, metavar="FOLDER", help="an environment with mcp-use")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    options = parser.parse_args()
    for name in options.only:
        is_elsewhere = name == "mcp_use_cycles"
        if is_elsewhere and not options.mcp_use:
            print(f"{name}: not measured, because there is no --mcp-use")
            continue
        python = str(options.mcp_use / "bin" / "python") if is_elsewhere else sys.executable
        for backend in BENCHMARKS[name]:
            if options.backend in (None, backend) or backend == "none":
                rows = run(name, backend, python, "quick" if options.quick else "full")
                print(*map(line, rows), sep="\n", flush=True)
                if options.json:
                    save(rows, options.json)


if __name__ == "__main__":
    main()
