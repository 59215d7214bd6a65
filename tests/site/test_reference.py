"""The reference on the built site, which is generated from the docstrings."""

import ast
import inspect
import os
import re
from html import unescape
from pathlib import Path

import mcp
import pytest

import ownertask
import ownertask.mcp
import ownertask.testing

PACKAGES = (ownertask, ownertask.mcp, ownertask.testing)
NAMES = (Path(__file__).parents[1] / "names_of_0.1.0.txt").read_text().split()
SIGNATURE = re.compile(r'<div class="[^"]*\bdoc-signature\b[^"]*">(.*?)</div>', re.DOTALL)
BASES = re.compile(r'<p class="doc doc-class-bases">(.*?)</p>', re.DOTALL)
ENTRY = re.compile(r'<h\d [^>]*?id="(ownertask\.[\w.]+)"(.*?)(?=<h\d |</article>)', re.DOTALL)
# An entry of the base class describes these. Others are documented in the docstring of their class.
INHERITED = {"open_connection", "is_permanent", "get_streams", "connection_type"}


def text_of(html):
    return unescape(re.sub(r"<[^>]+>", "", html)).strip()


@pytest.fixture(scope="module")
def pages(site):
    return {page.parent.name: page.read_text() for page in sorted(site.glob("reference/*/index.html"))}


@pytest.fixture(scope="module")
def entries(pages):
    """The HTML of each entry, by its full name without the name of the module of the errors."""
    found = [entry for page in pages.values() for entry in ENTRY.findall(page)]
    return {name.replace("ownertask.errors.", "ownertask."): html for name, html in found}


def signatures(pages):
    return [text_of(html) for page in pages.values() for html in SIGNATURE.findall(page)]


def test_each_public_name_has_an_entry(entries):
    public = {f"{package.__name__}.{name}" for package in PACKAGES for name in package.__all__}
    assert public - entries.keys() == set()


def test_each_member_of_a_public_class_is_described(entries):
    options = set(inspect.get_annotations(ownertask.mcp.SessionOptions))
    for name in NAMES:
        owner, _, member = name.rpartition(".")
        is_inherited = member in INHERITED or (
            owner.endswith("SessionManagerOptions") and member in options
        )
        if "(" not in name and not is_inherited:
            # The docstring of a class may list its attributes.
            assert name in entries or f">{member}<" in entries[owner], name


def test_no_private_name_is_shown(pages):
    for shown in signatures(pages) + [
        text_of(b) for page in pages.values() for b in BASES.findall(page)
    ]:
        names = re.findall(r"\b_\w+", shown)
        assert set(names) <= {"__aenter__", "__aexit__"}, shown


def callable_of(signature):
    """Returns the public class or function whose signature is shown."""
    name = signature.partition("(")[0]
    for package in PACKAGES:
        if hasattr(package, name):
            return getattr(package, name)
        for public in package.__all__:
            if name in vars(getattr(package, public)):
                return getattr(getattr(package, public), name)
    raise AssertionError(signature)


def test_the_shown_defaults_are_the_real_values(pages):
    checked = 0
    for signature in signatures(pages):
        if "(" not in signature or re.match(r"\w+:", signature):
            continue  # an attribute
        shown = ast.parse(f"def {signature}: ...").body[0].args
        function = callable_of(signature)
        real = inspect.signature(function).parameters
        named = [*shown.posonlyargs, *shown.args]
        defaults = [
            *zip(named[len(named) - len(shown.defaults) :], shown.defaults, strict=True),
            *zip(shown.kwonlyargs, shown.kw_defaults, strict=True),
        ]
        for argument, default in defaults:
            if default is not None:
                names = {"ClientSession": mcp.ClientSession, "os": os}
                value = eval(ast.unparse(default), names)
                assert value == real[argument.arg].default, signature
                checked += 1
    assert checked > 80


@pytest.mark.parametrize("options", ["SessionOptions", "ClientOptions", "StreamableHttpOptions"])
def test_each_option_of_the_sdk_links_to_its_documentation(entries, options):
    prefix = f"ownertask.mcp.{options}."
    found = {name: html for name, html in entries.items() if name.startswith(prefix)}
    assert len(found) == len(inspect.get_annotations(getattr(ownertask.mcp, options)))
    for name, html in found.items():
        assert 'href="https://py.sdk.modelcontextprotocol.io/' in html, name
