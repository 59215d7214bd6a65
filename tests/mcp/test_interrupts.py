"""P9: Ctrl-C in a real process, with a real server."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise on Windows")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("phase", ["opening", "open", "closing", "closing, twice"])
def test_P9_ctrl_c_ends_the_program_and_the_server(backend, phase):
    with subprocess.Popen(
        [sys.executable, HERE / "interrupted.py", backend, phase.partition(",")[0]],
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        server = int(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        if phase == "closing, twice":
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode != 0, errors
    assert "KeyboardInterrupt" in errors
    if phase != "closing, twice":  # asyncio raises the second one wherever it is, inside anyio, too
        assert "Attempted to exit" not in errors
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)
