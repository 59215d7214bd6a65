"""Completes the built site with its pages as Markdown, for language models.

* Each page is also there as Markdown, at its address with `index.html.md`.
* `llms.txt` lists the pages, and `llms-full.txt` contains them (see https://llmstxt.org).

The Markdown is made from the built pages, because only those contain the reference.

Usage: python tests/site/finish.py SITE
"""

import html
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urljoin

import yaml
from bs4 import BeautifulSoup
from markdownify import MarkdownConverter

ROOT = Path(__file__).parents[2]
# Agents may skip this section if they need a shorter context.
OPTIONAL = {"Project": "Optional"}
ALONE = "Start here"  # the section of the pages that are in no section of the navigation


@dataclass
class Page:
    """A page of the built site."""

    title: str
    address: str  # relative to the site, with a slash at the end; empty for the home page
    description: str = ""
    text: str = ""


def configuration():
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def navigation(nav):
    """Returns the pages of each section, as `mkdocs.yml` orders them."""
    sections = {ALONE: []}
    for entry in nav:
        ((title, content),) = entry.items()
        if isinstance(content, str):
            sections[ALONE].append(Page(title, address(content)))
        else:
            sections[OPTIONAL.get(title, title)] = [
                Page(name, address(path)) for item in content for name, path in item.items()
            ]
    return sections


def address(path):
    return re.sub(r"(^|/)index/$", r"\1", path.removesuffix(".md") + "/")


def content(page_html, url):
    """Returns the content of a built page, without what only a browser needs."""
    article = BeautifulSoup(page_html, "html.parser").find("article")
    only_for_browsers = ".headerlink, .md-content__button, .doc-symbol, style, script, svg, form, nav"
    for element in article.select(only_for_browsers):
        element.decompose()
    for element in article.select("span.filename, summary"):
        element.name = "p"
    for element in article.select(".doc-section-item .doc-md-description > p:only-child"):
        element.unwrap()
    for string in article.find_all(string=re.compile(r"\n")):
        if string.find_parent(class_="doc-section-item") and not string.find_parent("pre"):
            string.replace_with(re.sub(r"\s+", " ", string))
    for element in article.select("[href], [src]"):
        name = "href" if element.has_attr("href") else "src"
        element[name] = urljoin(url, element[name])
    return article


class _Converter(MarkdownConverter):
    """Converts a page, with the language of each block of code."""

    class Options:
        heading_style = "ATX"
        autolinks = False
        bullets = "*"
        escape_asterisks = False
        escape_underscores = False
        escape_misc = False

        @staticmethod
        def code_language_callback(element):
            classes = " ".join(
                name for parent in element.parents for name in parent.get("class", []) or []
            )
            if "doc-signature" in classes:
                return "python"
            found = re.search(r"language-(\w+)", classes)
            return found[1] if found and found[1] != "text" else ""

    def convert_span(self, element, text, parent_tags):
        """Separates the words of a label, such as `async`, from its neighbors."""
        return f" {text} " if "doc-labels" in element.get("class", []) else text


def as_markdown(article):
    text = _Converter().convert_soup(article)
    parts = re.split(r"^(```.*?^```)$", text, flags=re.DOTALL | re.MULTILINE)  # every second one is code
    parts[::2] = [re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", part)) for part in parts[::2]]
    return "".join(parts).strip() + "\n"


def without_repetition(text):
    """Leaves out each whole program that the text already contains, such as the examples' server."""
    seen = set()

    def shorten(block):
        if block["name"] in seen:
            return f"{block['name']} is shown above."
        seen.add(block["name"])
        return block[0]

    block = r"^(?P<name>examples/[\w/.]+)\n\n```\w*\n.*?^```$"
    return re.sub(block, shorten, text, flags=re.DOTALL | re.MULTILINE)


def finish_page(file, page, url):
    """Writes a built page as Markdown. Returns the page with this text and with its description."""
    built = file.read_text()
    text = as_markdown(content(built, url))
    file.with_name("index.html.md").write_text(text)
    description = re.search(r'<meta name="description" content="([^"]*)"', built)[1]
    return replace(page, description=html.unescape(description), text=text)


INTRODUCTION = """\
# {name}

> {description}

{name} is a Python library for asyncio and trio, mainly for connections to servers of the Model Context
Protocol (MCP). It prevents the error `RuntimeError: Attempted to exit cancel scope in a different task
than it was entered in`. These pages describe version {version}. It is not yet published on the package
index. The page Installation describes how to install it from a clone of its repository.

The core, with a server that is started by a command:

```python
from mcp import StdioServerParameters
from ownertask import ReconnectPolicy
from ownertask.mcp import SessionConnectionManager

manager = SessionConnectionManager(
    StdioServerParameters(command="npx", args=["-y", "PACKAGE"]),  # or a URL
    reconnect=ReconnectPolicy(),  # optional: opens a lost connection again
)
session = await manager.start()  # in any task; returns the SDK's ClientSession
await manager.connection.call_tool("add", {{"a": 1, "b": 2}})  # in any task
await manager.current.call_tool("add", {{"a": 1, "b": 2}})  # also waits while the manager reconnects
await manager.stop()  # in any task; afterwards, nothing is left
```
"""
FULL_TEXT = "\nAll pages in one file of {size} kB: [llms-full.txt]({address}llms-full.txt)\n"


def finish(site):
    config = configuration()
    address = config["site_url"]
    introduction = INTRODUCTION.format(
        name=config["site_name"],
        description=config["site_description"],
        version=config["extra"]["package_version"],
    )
    lists, texts = [introduction], [introduction]
    for title, pages in navigation(config["nav"]).items():
        lists.append(f"\n## {title}\n\n")
        for page in pages:
            url = address + page.address
            finished = finish_page(site / page.address / "index.html", page, url)
            lists.append(f"* [{page.title}]({url}index.html.md): {finished.description}\n")
            texts.append(f"Source: {url}\n\n{finished.text}")
    full = without_repetition("\n---\n\n".join(texts))
    (site / "llms-full.txt").write_text(full)
    lists.insert(1, FULL_TEXT.format(size=round(len(full.encode()) / 1000), address=address))
    (site / "llms.txt").write_text("".join(lists))


if __name__ == "__main__":
    finish(Path(sys.argv[1]))
