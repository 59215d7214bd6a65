"""Generates the table on the page *Troubleshooting* from the table of the command line.

Run as a program, it updates the page.
"""

import re
from pathlib import Path
from textwrap import wrap

from ownertask._doctor.troubles import REMARKS, SECTIONS

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "troubleshooting.md"
TITLES = {"stdio": "stdio", "http": "streamable HTTP", "sse": "SSE", "ws": "WebSocket"}
START = re.compile(r"(?s)^## .*", re.MULTILINE)

WIDTH = 118
NO_BREAK = "\N{NO-BREAK SPACE}"


def page():
    """Returns the table as Markdown, with a heading for each kind of failure."""
    lines = []
    for section, troubles in {**SECTIONS, "After closing": REMARKS}.items():
        lines += [f"## {section}", ""]
        for trouble in troubles:
            lines += _described(trouble)
    return "\n".join(lines)


def _described(trouble):
    where = ", ".join(TITLES[transport] for transport in trouble.transports)
    lines = [f"### {trouble.name}", ""]
    if trouble.shown:
        fence = "``" if "`" in trouble.shown else "`"
        lines += [f"{fence}{trouble.shown}{fence} ({where})", ""]
    lines += [*_wrapped(trouble.cause), ""]
    for step in trouble.steps:
        lines += _wrapped(step, "* ")
    return [*lines, ""]


def _wrapped(text, mark=""):
    """Returns the lines of a paragraph or a list item. Does not break lines inside of code."""
    code = re.sub(r"`[^`]*`", lambda match: match[0].replace(" ", NO_BREAK), text)
    lines = wrap(
        code,
        WIDTH,
        initial_indent=mark,
        subsequent_indent=" " * len(mark),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(NO_BREAK, " ") for line in lines]


def updated(text):
    """Returns the text of the page with the current table."""
    return START.sub(lambda match: page(), text)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
