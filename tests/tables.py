"""The tables of results on the pages. `pages.py` copies them there, from files that the runs wrote."""

import json
from pathlib import Path

TESTS = Path(__file__).parent

# Each name as it appears on a page, in `<!-- table: NAME -->`, and the function that writes the table.
TABLES = {}


def results_of(folder):
    """Returns the results that a run wrote beside its script."""
    return json.loads((TESTS / folder / "results.json").read_text())


def table(heads, rows):
    """Returns a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def reference_servers():
    """Returns how many tests passed with each reference server, SDK and backend, and the versions."""
    runs = results_of("reference_servers")
    columns = [(sdk, backend) for sdk in sorted(runs) for backend in ("asyncio", "trio")]
    cases = {case.rpartition(", ")[0] for run in runs.values() for case in run["passed"]}
    rows = []
    for case in sorted(cases, key=lambda case: (case.startswith("all"), case)):
        name, transport, way = case.split(", ")
        versions = {run["versions"][name] for run in runs.values() if name in run["versions"]}
        passed = [runs[sdk]["passed"].get(f"{case}, {backend}", 0) for sdk, backend in columns]
        rows.append([name, ", ".join(sorted(versions)), transport, way, *passed])
    heads = ["server", "version", "transport", "started by", *map(", ".join, columns)]
    programs = [
        f"* mcp {versions['mcp']}: Python {versions['python']}, Node.js {versions['node']}, "
        f"npm {versions['npm']}, uv {versions['uv']}, {run['system']}, {run['date']}\n"
        for _, run in sorted(runs.items())
        for versions in [run["versions"]]
    ]
    return f"{table(heads, rows)}\n{''.join(programs)}"


TABLES["reference servers"] = reference_servers


def cell(row):
    """Returns the median of a measure, and the range of its middle half."""
    numbers = [f"{row[name]:.3g}" for name in ("median", "low", "high")]
    unit = {"ms": " ms", "percent": "%"}.get(row["unit"], "")
    return "{} ({} to {}){}".format(*numbers, unit)


def is_met(rows):
    """Returns whether the measures reach their goal, and on which backend if only on one."""
    met = [row["backend"] for row in rows if row["median"] <= row["goal"]]
    return "no" if not met else "yes" if len(met) == len(rows) else f"on {met[0]}"


def by_backend(rows):
    """Returns the rows of each measure, by its label and by what it is compared with."""
    measures = {}
    for row in rows:
        measures.setdefault((row["label"], row["to"]), []).append(row)
    return measures


def overhead():
    """Returns the table of the ratios."""
    rows = [row for row in results_of("benchmarks")["rows"] if row["benchmark"] != "growth"]
    lines = []
    for (label, to), measured in by_backend(rows).items():
        cells = {row["backend"]: cell(row) for row in measured}
        goal = measured[0]["goal"]
        ends = ("", "") if goal is None else (f"≤ {goal}", is_met(measured))
        lines.append((label, to, cells.get("asyncio", cells.get(None)), cells.get("trio", ""), *ends))
    return table(("measure", "compared with", "asyncio", "trio", "goal", "met"), lines) + with_versions()


def with_versions():
    """Returns a line with the versions in the benchmarks, and the date."""
    results = results_of("benchmarks")
    versions = [f"{package} {number}" for package, number in results["versions"].items()]
    return f"\nMeasured with {', '.join(versions)} on {results['system']}, on {results['date']}.\n"


def growth():
    """Returns the table of the costs at each number, and of the exponents."""
    rows = [row for row in results_of("benchmarks")["rows"] if row["benchmark"] == "growth"]
    lines = []
    for (label, to), measured in by_backend(rows).items():
        costs = [
            " / ".join(f"{row['costs'][number]:.3g}" for row in measured if number in row["costs"])
            for number in ("1", "10", "100", "10000")
        ]
        exponents = " / ".join(f"{row['median']:.2f}" for row in measured)
        lines.append((label, *costs, to, exponents, is_met(measured)))
    return table(("operation", "1", "10", "100", "10,000", "range", "exponent", "≤ 1.1"), lines)


TABLES |= {"overhead": overhead, "growth": growth}


def conformance():
    """Returns how many checks of the conformance suite pass with the SDK alone and with a manager."""
    classes = {"client": "`Client`", "session": "`ClientSession`"}
    rows, lines = [], []
    for results in results_of("conformance").values():
        made_with = f"suite {results['suite']}, Python {results['python']}, {results['system']}"
        repeated = sorted({scenario for row in results["rows"] for scenario in row["repeated"]})
        lines.append(
            f"* mcp {results['mcp']}: {made_with}, {results['date']}. "
            f"Repeated scenarios: {', '.join(repeated) or 'none'}.\n"
        )
        for row in results["rows"]:
            alone, managed = row["alone"], row["managed"]
            total = alone["passed"] + len(alone["failed"])
            cells = [results["mcp"], classes[row["client"]], row["protocol"], row["backend"]]
            cells += [row["scenarios"], f"{alone['passed']} of {total}", managed["passed"]]
            rows.append([*cells, len(row["lost"])])
    heads = ["mcp", "client", "protocol", "backend", "scenarios", "SDK alone", "manager", "lost"]
    return table(heads, rows) + "\n" + "".join(lines)


def conformance_failures():
    """Returns the checks that the SDK alone fails, and the scenarios in which it only raises."""
    versions = {}
    for results in results_of("conformance").values():
        for row in results["rows"]:
            alone = row["alone"]
            failed = [(scenario, f"`{check}`") for scenario, check in alone["failed"]]
            errors = set(alone["rejected"]) - {scenario for scenario, _ in failed}
            for found in failed + [
                (scenario, "none (the client raises an exception)") for scenario in errors
            ]:
                versions.setdefault(found, set()).add(f"{results['mcp']}, {row['protocol']}")
    rows = [[*found, "; ".join(sorted(names))] for found, names in sorted(versions.items())]
    return table(["scenario", "failed check", "mcp, protocol"], rows)


TABLES |= {"conformance": conformance, "conformance failures": conformance_failures}


def comparison():
    """Returns what each library did in each row. ownertask and the SDK come first."""
    libraries = results_of("comparison")["libraries"]
    names = sorted(libraries, key=lambda name: (name != "ownertask", "Group" not in name, name))
    heads = [head_of(name, libraries[name]["versions"]) for name in names]
    rows = [
        [row, *(libraries[name]["outcomes"][row] for name in names)]
        for row in libraries["ownertask"]["outcomes"]
    ]
    return table(["behavior", *heads], rows)


def head_of(name, versions):
    """Returns the name of a library and the versions of its packages."""
    packages = ", ".join(f"{package} {version}" for package, version in versions.items())
    return packages if name in versions else f"`{name.partition(',')[0]}`, {packages}"


TABLES["comparison"] = comparison
