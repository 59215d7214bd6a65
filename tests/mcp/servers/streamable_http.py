"""Runs the server of the examples over streamable HTTP. Usage: streamable_http.py PORT."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))
from server import server

server.settings.log_level = "INFO"  # uvicorn logs the URL
if hasattr(server.settings, "port"):  # mcp 1.x
    server.settings.port = int(sys.argv[1])
    server.run("streamable-http")
else:
    server.run("streamable-http", port=int(sys.argv[1]))
