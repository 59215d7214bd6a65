"""The reference servers of the protocol. `nox -s servers` installs them and runs these tests.

If the variable OWNERTASK_RESULTS names a file, the results are written there, for the site.
"""

import json
import os
import platform
from collections import Counter
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from subprocess import check_output
from threading import Thread

import pytest
from reference_servers.catalog import NPM, PYPI, version


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(b"a page of this machine")

    def log_message(self, *args):
        """Logs nothing."""


@pytest.fixture(scope="session")
def page():
    """The URL of a page for the fetch server."""
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = Thread(target=server.serve_forever, name="page")
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def pytest_terminal_summary(terminalreporter, exitstatus):
    if "OWNERTASK_RESULTS" not in os.environ or exitstatus:
        return
    passed = Counter()
    for report in terminalreporter.stats["passed"]:
        passed.update(case for name, case in report.user_properties if name == "case")
    path = Path(os.environ["OWNERTASK_RESULTS"])
    runs = json.loads(path.read_text()) if path.exists() else {}
    sdk = metadata.version("mcp")
    runs[f"mcp {sdk.partition('.')[0]}.x"] = {
        "date": datetime.now(UTC).date().isoformat(),
        "system": platform.system(),
        "versions": {
            "mcp": sdk,
            "python": platform.python_version(),
            "node": check_output(["node", "--version"], text=True).strip().removeprefix("v"),
            "npm": check_output(["npm", "--version"], text=True).strip(),
            "uv": metadata.version("uv"),
            **{name: version(name) for name in NPM + PYPI},
        },
        "passed": dict(sorted(passed.items())),
    }
    path.write_text(json.dumps(runs, indent=2, sort_keys=True) + "\n")
