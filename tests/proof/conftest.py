"""Prints how much was searched, and with which seeds."""

from collections import Counter


def pytest_terminal_summary(terminalreporter):
    searched = Counter()
    seeds = set()
    for report in terminalreporter.stats.get("passed", ()):
        for name, value in report.user_properties:
            if name == "seed":
                seeds.add(str(value))
            else:
                searched[name] += value
    if searched:
        counts = ", ".join(f"{number:,} {name}" for name, number in searched.items())
        terminalreporter.write_line(f"searched: {counts}")
    if seeds:
        terminalreporter.write_line(f"seeds: {', '.join(sorted(seeds))}")
