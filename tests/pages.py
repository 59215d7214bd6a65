"""The code on the documentation's pages. Run as a program, it copies the examples into the pages.

A block with `title="examples/NAME"` shows a whole file. A block with `title="from examples/NAME"` shows
adjacent lines of a file, without their indentation. The pages in `COPIES` are copies of files in the
root of the repository. Their links work in both places. The tables between `<!-- table: NAME -->` and
`<!-- end of table -->` come from `tables.py`.

Usage: python tests/pages.py
"""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from tables import TABLES

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<kind>\w*)(?P<options>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
# The pages that are copies, and their descriptions.
COPIES = {
    "changelog.md": "The changes in each version of ownertask.",
    "contributing.md": "The commands, the rules for tests and words, and how the site is made.",
}
# In searches, the other pages come first.
HEADER = """\
---
description: '{description}'
search:
  boost: 0.3
---

<!-- Copied from {name} by tests/pages.py. -->

"""
TABLE = re.compile(
    r"^<!-- table: (?P<name>[^\n]+) -->\n(?P<lines>.*?)^<!-- end of table -->$", re.DOTALL | re.MULTILINE
)
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s]+)\)")
REPOSITORY = "https://github.com/ownertask/ownertask/blob/main/"
TITLE = re.compile(r'title="(?P<part>from )?(?P<path>[\w/.]+)"')


@dataclass(frozen=True)
class Block:
    """One block of code, and the example that it shows: the whole file, or a part of it."""

    page: Path
    kind: str
    code: str
    path: str | None
    whole: bool

    @property
    def is_equal_to_the_example(self) -> bool:
        source = (ROOT / self.path).read_text().rstrip("\n") + "\n"
        if self.whole:
            return self.code == source
        lines, shown = source.splitlines(), self.code.rstrip("\n").splitlines()
        return any(
            textwrap.dedent("\n".join(lines[start : start + len(shown)])).splitlines() == shown
            for start in range(len(lines) - len(shown) + 1)
        )


def pages():
    """Returns the paths of the README and of all pages."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page):
    """Yields the blocks of code of a page."""
    for fence in FENCE.finditer(page.read_text()):
        title = TITLE.search(fence["options"])
        yield Block(
            page,
            fence["kind"],
            textwrap.dedent(fence["code"]),
            title["path"] if title else None,
            title is not None and not title["part"],
        )


def copied(text):
    """Returns a text from the root of the repository, with links that work on the site."""

    def replace(link):
        inside = link[1].removeprefix("docs/")
        return f"]({inside})" if inside != link[1] else f"]({REPOSITORY}{link[1]})"

    return LINK.sub(replace, text)


def updated(page):
    """Returns the text of a page with the present tables, and the present files that it shows whole."""
    if page.name in COPIES:
        name = f"{page.stem.upper()}.md"
        header = HEADER.format(description=COPIES[page.name], name=name)
        return header + copied((ROOT / name).read_text())

    def replace(fence):
        title = TITLE.search(fence["options"])
        if title is None or title["part"]:
            return fence[0]
        source = (ROOT / title["path"]).read_text().rstrip("\n") + "\n"
        start = fence["indent"] + "```" + fence["kind"] + fence["options"] + "\n"
        return start + textwrap.indent(source, fence["indent"]) + fence["indent"] + "```"

    return TABLE.sub(with_table, FENCE.sub(replace, page.read_text()))


def with_table(found):
    """Returns the place of a table on a page, with the present table."""
    name = found["name"]
    return f"<!-- table: {name} -->\n\n{TABLES[name]()}\n<!-- end of table -->"


if __name__ == "__main__":
    for page in pages():
        page.write_text(updated(page))
