"""Checks the built site as a whole: its addresses, its head, and what it loads."""

import re
import struct
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

from pages import ROOT
from pages import pages as markdown_files

import ownertask

SITE_URL = "https://ownertask.github.io/ownertask/"
EDIT_URL = "https://github.com/ownertask/ownertask/edit/main/docs/"
# Links that name an address and load nothing from it.
NAMES = {"alternate", "canonical", "next", "prev"}


class Elements(HTMLParser):
    """Collects the start tags of a page."""

    def __init__(self, file):
        super().__init__()
        self.elements = []
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))


@cache
def elements(file):
    """Returns the start tags of a page, with their attributes."""
    return Elements(file).elements


def built(site):
    """Returns the built pages, without the page for addresses that do not exist."""
    files = sorted(site.rglob("index.html"))
    assert len(files) > 40
    return files


def address(file, site):
    path = file.parent.relative_to(site).as_posix()
    return "" if path == "." else f"{path}/"


def loaded(file):
    """Yields the addresses of everything that a browser loads for a page."""
    for tag, attributes in elements(file):
        if tag == "a" or (tag == "link" and NAMES & set(attributes["rel"].split())):
            continue
        for name in ("src", "srcset", "href", "data", "poster", "action"):
            if attributes.get(name):
                yield attributes[name]
        yield from re.findall(r"url\(\s*[\"']?([^)\"']+)", attributes.get("style") or "")


def is_elsewhere(url):
    return re.match(r"(\w+:)?//", url) is not None and not url.startswith(SITE_URL)


def test_no_page_loads_anything_from_another_host(each_site):
    for file in [*built(each_site), each_site / "404.html"]:
        assert [url for url in loaded(file) if is_elsewhere(url)] == [], file


def test_no_stylesheet_loads_anything_from_another_host(each_site):
    for file in each_site.rglob("*.css"):
        urls = re.findall(r"(?:url\(|@import)\s*[\"']?([^)\"';]+)", file.read_text())
        assert [url for url in urls if is_elsewhere(url)] == [], file


def test_no_page_has_an_element_for_which_the_theme_loads_a_script(each_site):
    """The theme draws Mermaid diagrams, and shows data of a repository, with data from other hosts."""
    for file in built(each_site):
        for _, attributes in elements(file):
            classes = (attributes.get("class") or "").split()
            assert "mermaid" not in classes, file
            assert attributes.get("data-md-component") != "source", file


def test_an_address_on_another_host_is_found(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<link rel="canonical" href="https://example.com"><a href="https://example.com">text</a>'
        f'<img src="//a.example/x.png"><script src="https://b.example"></script><img src="{SITE_URL}x">'
        '<link rel="stylesheet" href="http://c.example"><p style="background: url(http://d.example)">'
    )
    elsewhere = [url for url in loaded(page) if is_elsewhere(url)]
    assert elsewhere == [
        "//a.example/x.png",
        "https://b.example",
        "http://c.example",
        "http://d.example",
    ]


def test_each_page_is_built(each_site):
    expected = {
        path.relative_to(ROOT / "docs").with_suffix("").as_posix() + "/"
        for path in markdown_files()
        if ROOT / "docs" in path.parents
    }
    assert {address(file, each_site) or "index/" for file in built(each_site)} == expected


def test_each_page_names_its_address_and_its_card(each_site):
    for file in built(each_site):
        url = SITE_URL + address(file, each_site)
        metas = {
            attributes.get("property") or attributes.get("name"): attributes["content"]
            for tag, attributes in elements(file)
            if tag == "meta" and "content" in attributes
        }
        assert [a["href"] for tag, a in elements(file) if tag == "link" and a["rel"] == "canonical"] == [
            url
        ]
        assert metas["og:url"] == url
        assert metas["og:title"].endswith("ownertask")
        assert metas["og:image"] == SITE_URL + "images/card.png"
        assert metas["og:description"] == metas["description"]
        assert metas["twitter:card"] == "summary_large_image"


def test_the_card_has_the_size_and_the_text_that_the_pages_announce(each_site):
    card = (each_site / "images/card.png").read_bytes()
    assert card.startswith(b"\x89PNG")
    assert struct.unpack(">II", card[16:24]) == (1200, 630)
    drawing = (ROOT / "docs/images/card.svg").read_text()
    lines = re.findall(r"<text[^>]*>([^<]*)</text>", drawing)
    description = re.search(r"^site_description: (.*)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert " ".join(lines[1:3]) == description[1]


def test_each_page_links_to_its_source(site):
    """Zensical shows no such link without `repo_url`."""
    for file in built(site):
        path = address(file, site).removesuffix("/") or "index"
        links = [a["href"] for tag, a in elements(file) if tag == "a" and a.get("rel") == "edit"]
        assert links == [f"{EDIT_URL}{path}.md"]
        assert (ROOT / "docs" / f"{path}.md").exists()


def test_the_header_shows_the_version_and_links_to_the_changelog(each_site):
    for file in [*built(each_site), each_site / "404.html"]:
        text = file.read_text()
        (shown,) = re.findall(
            r'<a class="md-header__version" href="([^"]*)" title="[^"]*">([^<]*)<', text
        )
        assert shown[1] == ownertask.__version__
        target = shown[0].removeprefix("/ownertask/")
        assert (
            file.parent / target / "index.html"
        ).resolve() == each_site.resolve() / "changelog/index.html"


def test_the_logo_and_the_icon_are_our_drawing(each_site):
    file = each_site / "images/logo.svg"
    assert file.read_text().startswith("<svg ")
    for page in built(each_site):
        for tag, attributes in elements(page):
            if "logo" in (attributes.get("alt") or "") or attributes.get("rel") == "icon":
                source = attributes["src" if tag == "img" else "href"]
                assert Path(page.parent, source).resolve() == file.resolve()
        assert re.search(r'<link rel="icon" ', page.read_text())
        assert re.search(r'<img src="[./]*images/logo.svg" ', page.read_text())
