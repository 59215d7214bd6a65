"""Runs each program of each page as a reader would: copied from the built page into an empty folder."""

import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from built_pages import code_of
from pages import ROOT, blocks, pages

import ownertask

pytestmark = pytest.mark.usefixtures("forked_python")

# The folder of the library that is tested, even if `PYTHONPATH` is a relative path.
LIBRARY = str(Path(ownertask.__file__).parents[1])
# Modules and servers that other programs use. They are also on each page that needs them.
HELPERS = {
    "certificates.py",
    "grpc_server.py",
    "http_server.py",
    "local_servers.py",
    "oauth_server.py",
    "own_transport_server.py",
    "patched_mcp_use_server.py",
    "scenario.py",
    "server.py",
    "ssh_server.py",
    "tenants_server.py",
}
# A program that must fail, and the end of its error message.
FAILS = {"before.py": "Attempted to exit cancel scope in a different task than it was entered in\n"}
# A program that runs until Ctrl-C, and the end of its stderr.
INTERRUPTED = {"ctrl_c_on_trio.py": "KeyboardInterrupt\n"}
# Pages whose programs all require a package that this session does not install.
ELSEWHERE = {
    "how-to/frameworks": "`nox -s frameworks` runs its programs",
    "how-to/libraries": "`nox -s libraries` runs its programs",
}


def address(page):
    path = page.relative_to(ROOT / "docs").with_suffix("")
    return path.parent if path.name == "index" else path


def whole_files(page):
    return {block.path for block in blocks(page) if block.whole and block.path.startswith("examples/")}


PROGRAMS = [
    pytest.param(page, path, id=f"{address(page)}-{Path(path).name}")
    for page in pages()
    if ROOT / "docs" in page.parents
    for path in sorted(whole_files(page))
    if path.endswith((".py", ".ipy")) and Path(path).name not in HELPERS
]


def missing(code):
    """Returns the modules that a program imports and that are not installed here."""
    names = set(re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE))
    return sorted(name for name in names if find_spec(name) is None)


def contains_tests(code):
    return re.search(r"^(async )?def test_|\bconnection_manager_tests\(", code, re.MULTILINE) is not None


def code_on_the_page(site, page):
    """Returns the whole files of a built page, by the path that the page names."""
    html = (site / address(page) / "index.html").read_text()
    return {name: code for name, code in code_of(html).items() if name.startswith("examples/")}


@pytest.mark.parametrize("page", sorted({program.values[0] for program in PROGRAMS}), ids=address)
def test_a_program_of_each_page_can_run_here(site, page):
    beside = {Path(path).stem for path in whole_files(page)}
    programs = [program.values[1] for program in PROGRAMS if program.values[0] == page]
    can_run = [path for path in programs if not set(missing((ROOT / path).read_text())) - beside]
    assert can_run or str(address(page)) in ELSEWHERE


@pytest.mark.parametrize(("page", "path"), PROGRAMS)
def test_a_program_that_is_pasted_from_its_page_runs(site, page, path, tmp_path):
    shown = code_on_the_page(site, page)
    assert set(shown) == whole_files(page)
    for name, code in shown.items():
        (tmp_path / Path(name).name).write_text(code)
    if absent := [name for name in missing(shown[path]) if not (tmp_path / f"{name}.py").exists()]:
        pytest.skip(f"{' and '.join(absent)} must be installed")
    name = Path(path).name
    if name in INTERRUPTED and sys.platform == "win32":
        pytest.skip("Windows sends signals differently")
    command, stdin = [name], None
    if contains_tests(shown[path]):
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir=.", name]
    elif name.endswith(".ipy"):
        command, stdin = ["-m", "asyncio"], shown[path]
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": LIBRARY},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        if name in INTERRUPTED:
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(stdin, timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    if name in FAILS or name in INTERRUPTED:
        assert process.returncode != 0
        assert errors.endswith(FAILS.get(name) or INTERRUPTED[name])
    else:
        assert process.returncode == 0, errors
