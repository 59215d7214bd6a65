"""The reference servers of the protocol: how they are started, and calls with their answers."""

import json
import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

from mcp import StdioServerParameters

FOLDER = Path(os.environ.get("OWNERTASK_REFERENCE_SERVERS", ""))
"""The folder into which `nox -s servers` installed the servers."""

NPM = ["everything", "filesystem", "memory", "sequential-thinking"]
PYPI = ["fetch", "git", "time"]

DIRECT = {"node", "script", "python -m"}
"""The ways to start a server without a launcher."""

STARTED_BY = [
    *((name, way) for name in NPM for way in ("node", "npx")),
    *((name, way) for name in PYPI for way in ("script", "python -m", "uvx")),
]

# The session downloaded the packages of npx and uvx. The tests do not need the network.
CACHES = {
    "npm_config_cache": str(FOLDER / "npm-cache"),
    "npm_config_offline": "true",
    "UV_CACHE_DIR": str(FOLDER / "uv-cache"),
    "UV_OFFLINE": "1",
}


class Call(NamedTuple):
    """A call of a tool, and a part of the text of its answer."""

    tool: str
    arguments: dict
    answer: str


class Use(NamedTuple):
    """The arguments of a server, a call, and a later call to a new process of the server."""

    arguments: list
    call: Call
    later: Call


def package(name):
    return f"@modelcontextprotocol/server-{name}" if name in NPM else f"mcp-server-{name}"


def required(name):
    """Returns the requirement of the package, with its range of versions."""
    requirements = json.loads((FOLDER / "requirements.json").read_text())
    return next(each for each in requirements if each.startswith(package(name)))


def version(name):
    if name in NPM:
        return json.loads((FOLDER / "npm/node_modules" / package(name) / "package.json").read_text())[
            "version"
        ]
    folders = map(str, FOLDER.glob("venv/lib/python*/site-packages"))
    (found,) = distributions(name=package(name), path=list(folders))
    return found.version


def command(name, way):
    """Returns the command that starts the server, without the server's own arguments."""
    return {
        "node": ["node", f"{FOLDER}/npm/node_modules/{package(name)}/dist/index.js"],
        "npx": ["npx", "-y", required(name)],
        "script": [f"{FOLDER}/venv/bin/{package(name)}"],
        "python -m": [f"{FOLDER}/venv/bin/python", "-m", package(name).replace("-", "_")],
        "uvx": ["uvx", "--python", sys.executable, "--from", required(name), package(name)],
    }[way]


def parameters(name, way, folder, *arguments):
    first, *rest = command(name, way)
    memory = {"MEMORY_FILE_PATH": str(folder / "memory.json")}
    return StdioServerParameters(
        command=first, args=[*rest, *arguments], cwd=folder, env=CACHES | memory
    )


def use(name, folder, page):
    """Returns what a test does with a server.

    Args:
        name: The name of the server.
        folder: A folder in which the server may work.
        page: The URL of a page on this machine.
    """
    if name == "everything":
        call = Call("get-sum", {"a": 2, "b": 40}, "The sum of 2 and 40 is 42.")
        return Use([], call, call)
    if name == "fetch":
        call = Call("fetch", {"url": page}, "a page of this machine")
        return Use(["--allow-private-ips", "--ignore-robots-txt"], call, call)
    if name == "filesystem":
        file = str(folder / "kept.txt")
        write = Call("write_file", {"path": file, "content": "21 degrees"}, "Successfully wrote")
        return Use([str(folder)], write, Call("read_text_file", {"path": file}, "21 degrees"))
    if name == "git":
        subprocess.run(["git", "init", "-q", "-b", "trunk", folder], check=True)
        call = Call("git_status", {"repo_path": str(folder)}, "On branch trunk")
        return Use(["--repository", str(folder)], call, call)
    if name == "memory":
        ada = {"name": "Ada", "entityType": "person", "observations": ["wrote programs"]}
        create = Call("create_entities", {"entities": [ada]}, "Ada")
        return Use([], create, Call("search_nodes", {"query": "Ada"}, "wrote programs"))
    if name == "sequential-thinking":
        thought = {"thought": "?", "nextThoughtNeeded": True, "thoughtNumber": 1, "totalThoughts": 2}
        # The server forgets its thoughts when it is killed.
        call = Call("sequentialthinking", thought, '"thoughtHistoryLength": 1')
        return Use([], call, call)
    assert name == "time"
    noon = {"time": "12:00", "source_timezone": "UTC", "target_timezone": "Asia/Tokyo"}
    call = Call("convert_time", noon, "T21:00:00+09:00")
    return Use(["--local-timezone", "UTC"], call, call)
