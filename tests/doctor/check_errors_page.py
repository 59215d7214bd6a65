"""Generates the page *Errors of `ownertask check`* from the table of the command line.

Run as a program, it updates the page.
"""

import re
from pathlib import Path
from textwrap import wrap

from ownertask._doctor.troubles import REMARKS, SECTIONS, TROUBLES

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "check-errors.md"
TITLES = {"stdio": "stdio", "http": "streamable HTTP", "sse": "SSE", "ws": "WebSocket"}
START = re.compile(r"(?s)^## .*", re.MULTILINE)

WIDTH = 118
SHOWN = [trouble.shown for trouble in (*TROUBLES, *REMARKS)]
NO_BREAK = "\N{NO-BREAK SPACE}"


def page():
    """Returns the table as Markdown, with a heading for each kind of failure."""
    lines = []
    for section, troubles in {**SECTIONS, "After closing": REMARKS}.items():
        lines += [f"## {section}", ""]
        for trouble in troubles:
            lines += _described(trouble, section)
    return "\n".join(lines)


def _described(trouble, section):
    where = ", ".join(TITLES[transport] for transport in trouble.transports)
    is_obvious = len(trouble.transports) == len(TITLES) or where in section
    start = "" if is_obvious else f"*{where}:* "
    if trouble.shown not in {"", trouble.name} and SHOWN.count(trouble.shown) == 1:
        start += f"{trouble.name}. "  # otherwise, it is in the heading
    lines = [f"### {heading(trouble)}", "", *_wrapped(start + trouble.cause), ""]
    for step in trouble.steps:
        lines += _wrapped(step, "* ")
    return [*lines, ""]


def heading(trouble):
    """Returns the heading: the text of the error, and the symptom if another kind has the same text."""
    if not trouble.shown:
        return trouble.name
    fence = "``" if "`" in trouble.shown else "`"
    shown = f"{fence}{trouble.shown}{fence}"
    if SHOWN.count(trouble.shown) == 1:
        return shown
    return f"{shown}: {trouble.name[0].lower()}{trouble.name[1:]}"


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
