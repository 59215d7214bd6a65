"""Prints how much was searched."""

from collections import Counter


def pytest_terminal_summary(terminalreporter):
    searched = Counter()
    for report in terminalreporter.stats.get("passed", ()):
        for name, value in report.user_properties:
            searched[name] += value
    if searched:
        counts = ", ".join(f"{number:,} {name}" for name, number in searched.items())
        terminalreporter.write_line(f"searched: {counts}")
