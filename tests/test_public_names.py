"""Compares the public names and parameters with those of the first release.

`names_of_0.1.0.txt` contains the names of the first release. If a later version adds a name, its
docstring has the line *Added in VERSION.* A new parameter has these words at the end of its
description. If you add a name before the first release, run `python tests/test_public_names.py`.
"""

import enum
import inspect
import re
from pathlib import Path

import pytest

import ownertask
import ownertask.mcp
import ownertask.testing

ROOT = Path(__file__).parents[1]
FILE = Path(__file__).with_name("names_of_0.1.0.txt")
PACKAGES = (ownertask, ownertask.mcp, ownertask.testing)
VERSIONS = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def parameters_of(name, function, text):
    parameters = inspect.signature(function).parameters
    return {f"{name}({parameter})": text for parameter in parameters if parameter != "self"}


def members_of(name, kind):
    """Returns the text that documents a member or a parameter of a class, by its name."""
    source = inspect.getsource(kind)  # Python does not keep the docstrings of attributes
    names = {f"{name}.{key}": source for key in getattr(kind, "__annotations__", {}) if key[0] != "_"}
    if issubclass(kind, enum.Enum):
        names |= dict.fromkeys((f"{name}.{key}" for key in kind.__members__), source)
    for key, value in vars(kind).items():
        function = getattr(value, "__func__", value)  # of a static method
        if key == "__init__" and inspect.isfunction(function):
            names |= parameters_of(name, function, function.__doc__ or kind.__doc__)
        elif key[0] == "_" and key not in {"__aenter__", "__aexit__"}:
            pass
        elif isinstance(value, property):
            names[f"{name}.{key}"] = value.__doc__
        elif inspect.isfunction(function):
            names[f"{name}.{key}"] = function.__doc__
            names |= parameters_of(f"{name}.{key}", function, function.__doc__)
    return names


def public_names():
    """Returns the text that documents a name, by the name of each class, member and parameter."""
    names = {}
    for package in PACKAGES:
        for name in package.__all__:
            found, full_name = getattr(package, name), f"{package.__name__}.{name}"
            names[full_name] = found.__doc__
            if isinstance(found, type):
                names |= members_of(full_name, found)
            elif inspect.isfunction(found):
                names |= parameters_of(full_name, found, found.__doc__)
    return names


def added_in(name, text):
    """Returns the version in the text that documents a name, or `None`."""
    last = re.search(r"\w+(?=\)?$)", name)[0]
    is_one_of_many = name.endswith(")") or f"{last}:" in (text or "")
    pattern = r"\*Added in ([\w.]+)\.\*"
    if is_one_of_many:  # the words belong to the description before the next name
        pattern = rf"^ *{last}: (?:(?!^ *\w+: ).)*?{pattern}"
    found = re.search(pattern, text or "", re.DOTALL | re.MULTILINE)
    return found and found[1]


def test_no_public_name_of_the_first_release_is_missing():
    assert set(FILE.read_text().split()) - public_names().keys() == set()


def test_a_name_that_was_added_later_says_in_which_version():
    for name in public_names().keys() - set(FILE.read_text().split()):
        assert added_in(name, public_names()[name]) in set(VERSIONS) - {"0.1.0"}, name


@pytest.mark.parametrize(
    ("name", "text", "version"),
    [
        ("f", "Does this.\n\n*Added in 0.2.0.*", "0.2.0"),
        ("f", "Does this.", None),
        ("f(a)", "Does this.\n\nArgs:\n    a: A. *Added in 0.2.0.*\n    b: B.", "0.2.0"),
        ("f(b)", "Does this.\n\nArgs:\n    a: A. *Added in 0.2.0.*\n    b: B.", None),
        ("f(a)", "Does this.\n\nArgs:\n    a: A.\n    b: B. *Added in 0.2.0.*", None),
        ("C.a", 'class C:\n    a: int\n    """A.\n\n    *Added in 0.3.0.*\n    """\n', "0.3.0"),
    ],
)
def test_the_version_is_found_in_a_docstring(name, text, version):
    assert added_in(name, text) == version


if __name__ == "__main__":
    FILE.write_text("\n".join(sorted(public_names())) + "\n")
