"""Checks that the sessions with mcp 1.x in `noxfile.py` run each test that uses the SDK."""

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
SDK = re.compile(r"\b(?:from|import) (?:ownertask\.)?mcp\b")  # also in the code of a subprocess
MODULES = re.compile(r"^(?:from|import) ([\w.]+)(?: import ([\w, ]+)$)?", re.MULTILINE)
OTHER_SESSIONS = {TESTS / name for name in ("libraries", "reference_servers", "site")}


@cache
def uses_the_sdk(file):
    code = file.read_text()
    if SDK.search(code):
        return True
    names = set()
    for module, imported in MODULES.findall(code):
        names |= {module, *(f"{module}.{name}" for name in imported.split(", ") if name)}
    files = [TESTS / f"{name.replace('.', '/')}.py" for name in names]
    return any(uses_the_sdk(module) for module in files if module.exists())


def test_each_test_that_uses_the_sdk_runs_with_both_lines_of_it():
    noxfile = (TESTS.parent / "noxfile.py").read_text()
    listed = ast.literal_eval(noxfile.partition("\nSDK_TESTS = ")[2].partition("\n)")[0] + ")")
    folders = {TESTS.parent / path for path in listed}
    assert [path for path in folders if not path.exists()] == []
    files = {file for file in TESTS.rglob("test_*.py") if uses_the_sdk(file)}
    folders |= OTHER_SESSIONS
    assert {file for file in files if not folders & {file, *file.parents}} == set()
