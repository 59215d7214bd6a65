"""Tests that the code on the pages is the code of the examples, which have tests."""

import re

import pytest
from pages import COPIES, REPOSITORY, ROOT, TABLE, Block, blocks, copied, pages, updated
from tables import TABLES

PAGES = [page for page in pages() if list(blocks(page))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_code_on_a_page_is_equal_to_the_example_that_it_names(page):
    assert [
        block.path for block in blocks(page) if block.path and not block.is_equal_to_the_example
    ] == []
    assert updated(page) == page.read_text(), "run python tests/pages.py"


def test_the_tables_of_results_are_current():
    shown = []
    for page in pages():
        if names := [found["name"] for found in TABLE.finditer(page.read_text())]:
            assert updated(page) == page.read_text(), "run python tests/pages.py"
            shown += names
    assert sorted(shown) == sorted(TABLES)


@each_page
def test_each_program_that_a_page_quotes_is_there_as_a_whole(page):
    """The README links to the file instead."""
    whole = {block.path for block in blocks(page) if block.whole}
    for block in blocks(page):
        if block.kind in {"python", "json"}:
            assert block.path is not None, block
            assert block.path in whole or (
                page.name == "README.md" and f"/blob/main/{block.path}" in page.read_text()
            )


@pytest.mark.parametrize("name", COPIES)
def test_a_page_about_the_project_is_equal_to_the_file_on_a_code_host(name):
    page = ROOT / "docs" / name
    assert page.read_text() == updated(page), "run python tests/pages.py"


def test_the_links_of_a_copy_work_on_the_site():
    repository = "https://github.com/ownertask/ownertask/blob/main"
    unchanged = " [c](https://semver.org/) [d](#tests)"
    copy = copied("[a](docs/explanation/scope.md#x) [b](README.md)" + unchanged)
    assert copy == f"[a](explanation/scope.md#x) [b]({repository}/README.md)" + unchanged


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_the_repository_to_which_a_page_links_exist(page):
    paths = re.findall(rf"{re.escape(REPOSITORY)}([^\s)#]+)", page.read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_pages_include_no_files_by_a_marker():
    """A code host would show the marker instead of the code."""
    files = [*pages(), *(path for path in (ROOT / "examples").rglob("*.*py"))]
    assert [path for path in files if "--8<--" in path.read_text()] == []


@pytest.mark.parametrize(
    ("code", "path", "whole", "equal"),
    [
        ("import asyncio\n", "examples/three_tasks.py", False, True),
        ("import asyncioo\n", "examples/three_tasks.py", False, False),
        ("import asyncio\n", "examples/three_tasks.py", True, False),
        ((ROOT / "examples/three_tasks.py").read_text(), "examples/three_tasks.py", True, True),
        ("print(result.content)\n", "examples/three_tasks.py", False, True),  # indented in the file
    ],
)
def test_a_difference_from_the_example_is_found(code, path, whole, equal):
    assert Block(ROOT / "README.md", "python", code, path, whole).is_equal_to_the_example == equal


def test_a_page_is_updated_from_the_example(tmp_path):
    page = tmp_path / "page.md"
    source = (ROOT / "examples/sse.py").read_text()
    page.write_text('text\n\n```python title="examples/sse.py"\nold\n```\n\nmore text\n')
    assert updated(page) == f'text\n\n```python title="examples/sse.py"\n{source}```\n\nmore text\n'


def test_commands_on_the_pages_are_for_a_shell():
    for page in pages():
        for block in blocks(page):
            assert block.kind in {
                "python",
                "json",
                "sh",
                "text",
                "toml",
                "yaml",
                "ini",
                "",
            }, page
            assert not re.search("^[$>] ", block.code, re.MULTILINE), page  # a prompt can't be pasted
