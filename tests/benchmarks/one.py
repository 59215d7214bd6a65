"""Runs one benchmark and prints its results as JSON. `run.py` runs all of them.

Usage: python tests/benchmarks/one.py NAME BACKEND full|quick
"""

import json
import logging
import sys
from importlib import import_module

from report import Report

name, backend, mode = sys.argv[1:]
logging.basicConfig(handlers=[logging.NullHandler()])  # hides the logged losses of connections
report = Report(None if backend == "none" else backend, quick=mode == "quick")
import_module(name).measure(report)
print(json.dumps(report.rows))
