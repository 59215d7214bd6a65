"""Tests that a forked Python runs a program as a new Python does."""

import os
import re
import subprocess
import sys

import forked_python
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a child subreaper")

PROGRAM = """
import atexit, os, signal, sys, threading, warnings

def report():
    print(sys.argv, sys.path, sys.warnoptions, __name__, globals().get("__file__"))
    print(os.getcwd(), sorted(os.environ.items()))
    print(sys.argv[0] == "-c" and os.listdir("/proc/self/fd"))  # other programs have a fork server
    print(os.getppid(), os.getsid(0) == os.getpid(), threading.enumerate() == [threading.main_thread()])
    print(*[signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)])
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        print(stream.encoding, stream.errors, stream.line_buffering, stream.seekable())

report()
print(sys.stdin.read())
warnings.warn("a warning", ResourceWarning)
atexit.register(print, "at exit")
threading.Timer(0.01, print, ["in a thread"]).start()
END
"""
ENDS = {"return": "", "exit": "sys.exit(3)", "raise": "1 / 0", "kill": "os.kill(os.getpid(), 15)"}


def result(command, cwd):
    env = {**os.environ, "PYTHONPATH": "folder", "PYTHONWARNINGS": "default", "LC_CTYPE": "C.UTF-8"}
    env.pop("PYTHONUNBUFFERED", None)
    options = {"cwd": cwd, "env": env, "input": "text", "start_new_session": True}
    command = [sys.executable, *command, "a", "-b"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    return done.returncode, done.stdout, re.findall(r"\w+: .+", done.stderr)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", ["file", "-c", "-m"])
def test_a_program_runs_as_with_a_new_python(kind, end, tmp_path, fork_client, monkeypatch):
    program = PROGRAM.replace("END", ENDS[end])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/program.py").write_text(program)
    command = {"file": ["folder/program.py"], "-c": ["-c", program], "-m": ["-m", "program"]}[kind]
    expected = result(command, tmp_path)
    with monkeypatch.context() as patch:
        fork_client.install(patch.setattr)
        assert result(command, tmp_path) == expected
    assert expected[0] == {"return": 0, "exit": 3, "raise": 1, "kill": -15}[end]


def test_a_program_of_a_program_is_its_child(fork_client, tmp_path, monkeypatch):
    (tmp_path / "inner.py").write_text("import os, sys; print(os.getppid(), 'mcp' in sys.modules)")
    outer = (
        "import os, subprocess, sys; subprocess.run([sys.executable, 'inner.py']); print(os.getpid())"
    )
    (tmp_path / "outer.py").write_text(outer)
    fork_client.install(monkeypatch.setattr)
    command = [sys.executable, "outer.py"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    inner, imported, outer = printed.split()
    assert (inner, imported) == (outer, "True")


def test_other_processes_are_not_forked(fork_client, monkeypatch):
    fork_client.install(monkeypatch.setattr)
    monkeypatch.setattr(forked_python.socket, "send_fds", None)
    code = "import sys; print('mcp' in sys.modules)"
    for command in ([sys.executable, "-I", "-c", code], ["sh", "-c", "echo False"]):
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
