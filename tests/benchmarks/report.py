"""The options of the benchmarks, and the file into which they write their ratios.

The file has only ratios and versions, because absolute times depend on the machine.
"""

import argparse
import json
import platform
import statistics
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).with_name("results.json")
PACKAGES = ("anyio", "mcp", "trio", "websockets")


def parser(description):
    """Returns a parser of the options that all benchmarks accept."""
    options = argparse.ArgumentParser(description=description.partition("\n")[0])
    options.add_argument("--json", type=Path, metavar="FILE", help="also write the ratios to this file")
    return options


def spread(ratios):
    """Returns the median and the range of the middle half."""
    ratios = sorted(ratios)
    quarter = len(ratios) // 4
    return statistics.median(ratios), ratios[quarter], ratios[-1 - quarter]


class Report:
    """Collects the ratios of one benchmark."""

    def __init__(self, benchmark):
        self.benchmark = benchmark
        self.rows = []

    def add(self, label, to, ratios, backend="asyncio"):
        """Records the ratios of one measurement, and returns their spread."""
        ratios = list(ratios)
        median, low, high = spread(ratios)
        row = {"benchmark": self.benchmark, "backend": backend, "label": label, "to": to}
        numbers = {"median": round(median, 3), "low": round(low, 3), "high": round(high, 3)}
        self.rows.append({**row, **numbers, "measurements": len(ratios)})
        return median, low, high

    def save(self, file):
        """Replaces the rows of this benchmark in the file, and those of other versions."""
        if file is None:
            return
        versions = {"python": platform.python_version()}
        versions |= {package: version(package) for package in PACKAGES}
        rows = []
        if file.exists():
            old = json.loads(file.read_text())
            if old["versions"] == versions:
                rows = [row for row in old["rows"] if row["benchmark"] != self.benchmark]
        rows = sorted([*rows, *self.rows], key=lambda row: row["benchmark"])
        document = {"versions": versions, "system": platform.system(), "rows": rows}
        file.write_text(json.dumps(document, indent=2) + "\n")
