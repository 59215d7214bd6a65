"""Tests for what an installed package and its page on a package index show."""

import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest

import ownertask

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/ownertask/ownertask"
LINK = re.compile(r"\]\(([^)#\s]+)")


def test_the_version_is_defined_in_one_place():
    assert ownertask.__version__ == metadata("ownertask")["Version"]
    assert ownertask.__version__ not in (ROOT / "pyproject.toml").read_text()


def test_dir_contains_each_public_name_even_if_it_is_not_yet_imported():
    code = """
import sys, ownertask
names = dir(ownertask)
assert "ownertask.pool" not in sys.modules and "ownertask.group" not in sys.modules
assert names == sorted(set(names))
assert {*ownertask.__all__, "__version__"} <= set(names), set(ownertask.__all__) - set(names)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {*ownertask.__all__, "__version__"} <= set(dir(ownertask))


def test_the_changelog_begins_with_the_version():
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first[1] == ownertask.__version__


def test_the_project_links_lead_to_the_repository():
    links = dict(row.split(", ") for row in metadata("ownertask").get_all("Project-URL"))
    assert links.keys() == {"Documentation", "Source", "Changelog", "Issues"}
    assert all(links[name].startswith(REPOSITORY) for name in ("Source", "Changelog", "Issues"))


def test_readme_links_work_on_a_package_index_page():
    """A relative link works only in the repository."""
    assert [link for link in LINK.findall((ROOT / "README.md").read_text()) if "://" not in link] == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")), ids=lambda path: path.name)
def test_links_to_files_in_the_repository_work(path):
    for link in LINK.findall(path.read_text()):
        target = re.sub(rf"^{REPOSITORY}/(blob|tree)/main/", "", link)
        assert "://" in target or (ROOT / target).exists(), link
