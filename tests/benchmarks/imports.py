"""Compares the CPU time of imports, each in a new interpreter and from bytecode."""

import asyncio
import os
import sys

from anyio import run_process

PROGRAM = """
from time import process_time
before = process_time()
import {}
print(process_time() - before)
"""
# So that the first import writes bytecode for the others.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def importer(module):
    async def import_once():
        command = [sys.executable, "-c", PROGRAM.format(module)]
        return float((await run_process(command, env=ENVIRONMENT)).stdout)

    return import_once


async def compare(report):
    for module, to, rounds, goal in (
        ("ownertask", "anyio", 60, 1.2),
        ("ownertask.mcp", "mcp", 20, 1.05),
    ):
        ours, bare = importer(module), importer(to)
        await report.compare(f"import {module}", f"import {to}", ours, bare, rounds, goal)


def measure(report):
    asyncio.run(compare(report))
