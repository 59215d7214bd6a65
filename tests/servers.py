"""Servers to run as subprocesses, well-behaved and other."""

import sys
from pathlib import Path

from mcp import StdioServerParameters

HERE = Path(__file__).parent


def stdio_server(file, *args):
    return StdioServerParameters(command=sys.executable, args=[str(file), *args])


def python_server(code):
    return StdioServerParameters(command=sys.executable, args=["-c", code])


SDK = stdio_server(HERE.parent / "examples" / "server.py")
TINY = stdio_server(HERE / "mcp" / "servers" / "tiny.py")
MUTE = stdio_server(HERE / "mcp" / "servers" / "mute.py")
STUBBORN = stdio_server(HERE / "mcp" / "servers" / "stubborn.py")
