"""Tests for Ctrl-C in a real process with a real server (fault P9)."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from forked_python import forking

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Windows sends signals differently"),
    pytest.mark.parametrize("backend", ["asyncio", "trio", "trio-at-checkpoints"]),
]


@contextmanager
def program(backend, phase):
    with forking():
        process = subprocess.Popen(
            [sys.executable, HERE / "interrupted.py", backend, phase],
            env={**os.environ, "PYTHONPATH": str(HERE.parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    with process:
        try:
            server = int(process.stdout.readline())
            yield process
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode != 0, errors
    assert "KeyboardInterrupt" in errors
    assert "Attempted to exit" not in errors
    assert "could not be stopped" not in errors
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)


@pytest.mark.parametrize("phase", ["opening", "open", "group", "closing"])
def test_P9_ctrl_c_ends_the_program_and_the_server(backend, phase):
    with program(backend, phase) as process:
        process.send_signal(signal.SIGINT)


def test_P9_a_second_ctrl_c_while_stopping_ends_the_program_and_the_server(backend):
    with program(backend, "lingering") as process:
        for _ in range(2):
            assert process.stdout.readline() == "at rest\n"
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "interrupted\n"
            process.stdin.write("\n")
            process.stdin.flush()
