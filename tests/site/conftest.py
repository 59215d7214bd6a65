"""The built site. `nox -s docs` builds it and runs these tests."""

import os
from pathlib import Path

import pytest


def folder(variable):
    if variable not in os.environ:
        pytest.skip(f"`nox -s docs` builds the site and sets {variable}")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def site():
    """The site as mkdocs-material builds it, completed by `finish.py`."""
    return folder("OWNERTASK_SITE")


@pytest.fixture(scope="session", params=["mkdocs-material", "Zensical"])
def each_site(request):
    """The site as mkdocs-material and its successor build it."""
    return folder(
        {"mkdocs-material": "OWNERTASK_SITE", "Zensical": "OWNERTASK_NEXT_SITE"}[request.param]
    )
