"""Checks the Markdown that `finish.py` makes for search engines and language models."""

import re

import pytest
from pages import ROOT
from pages import pages as markdown_files

SITE_URL = "https://ownertask.github.io/ownertask/"
CODE = re.compile(r"^( *)(```+).*?^\1\2$|`[^`\n]+`", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="session")
def entries(site):
    """Returns the title, address and description of each page in `llms.txt`."""
    text = (site / "llms.txt").read_text()
    return re.findall(r"^\* \[(.+?)\]\((\S+)\): (.+)$", text, re.MULTILINE)


def addresses():
    """Returns the address of each page, by the path of its Markdown."""
    docs = ROOT / "docs"
    paths = [path.relative_to(docs).as_posix() for path in markdown_files() if docs in path.parents]
    return {path: re.sub(r"(^|/)index/$", r"\1", path.removesuffix(".md") + "/") for path in paths}


def pages_of(site):
    return {address: site / address / "index.html.md" for address in addresses().values()}


def test_the_index_has_a_title_a_summary_and_sections_with_links(site):
    lines = [line for line in (site / "llms.txt").read_text().splitlines() if line]
    assert lines[0] == "# ownertask"
    assert lines[1].startswith("> ")
    sections = [line for line in lines if line.startswith("#")][1:]
    nav = re.findall(r"^  - ([\w -]+):$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    expected = ["Start here", *nav[: nav.index("Project")], "Optional"]
    assert sections == [f"## {name}" for name in expected]
    links = lines[lines.index("## Start here") :]
    assert all(re.match(r"## |\* \[.+\]\(https://\S+\): \S", line) for line in links)


def test_the_index_lists_each_page_of_the_navigation(entries):
    nav = re.findall(r"^ +- (.+): (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    expected = {(title, SITE_URL + addresses()[path] + "index.html.md") for title, path in nav}
    assert {(title, url) for title, url, _ in entries} == expected
    assert len(entries) == len(expected) == len(addresses())


def test_each_page_has_a_description(site, entries):
    descriptions = [description for _, _, description in entries]
    assert len(set(descriptions)) == len(descriptions)
    for title, _, description in entries:
        assert 20 < len(description) < 400, title
    for address, file in pages_of(site).items():
        html = file.with_name("index.html").read_text()
        (shown,) = re.findall(r'<meta name="description" content="([^"]*)"', html)
        usual = "Open an async connection in one task, use it from any task, close it from any task."
        assert (shown == usual) == (address == ""), address


def test_the_full_text_contains_each_page(site):
    """Programs that several pages show are in it once."""
    text = (site / "llms-full.txt").read_text()
    for address, file in pages_of(site).items():
        start, _, _ = file.read_text().partition("\nexamples/")
        assert f"\nSource: {SITE_URL}{address}\n\n{start}" in text, address
    programs = re.findall(r"^(examples/\S+)\n\n```", text, re.MULTILINE)
    assert len(programs) == len(set(programs))


def test_the_text_of_each_page_is_markdown(site):
    for address, file in pages_of(site).items():
        text = file.read_text()
        assert text.startswith("# "), address
        prose = CODE.sub("", text)
        assert re.findall(r"</?[a-zA-Z][^>]*>|^:::|&\w+;|\{ ?[.#]", prose, re.MULTILINE) == [], address
        assert "¶" not in prose, address
        assert re.findall(r"\]\((?!https?://)[^)]*\)", prose) == [], address


def test_code_keeps_its_language_and_its_indentation(site):
    for path, address in addresses().items():
        source = (ROOT / "docs" / path).read_text()
        text = (site / address / "index.html.md").read_text()
        for language, code in re.findall(
            r"^```(python|json|sh)[^\n]*\n(.*?)^```$", source, re.DOTALL | re.MULTILINE
        ):
            assert f"```{language}\n{code}```" in text, path


def test_the_reference_is_rendered_from_the_docstrings(site):
    text = (site / "llms-full.txt").read_text()
    assert re.search(r"^## (ownertask\.)?ConnectionManager$", text, re.MULTILINE)
    assert "```python\nstart_timeout: float | None" in text
