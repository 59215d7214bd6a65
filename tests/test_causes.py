"""Tests that examples show the cause of an error, never only its type or a fixed text.

The other tests compare the code on the pages with these examples.
"""

import ast
import re
import textwrap

import pytest
from pages import ROOT

EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
MODULES = sorted((ROOT / "src").rglob("*.py"))
# An example in a docstring.
FENCE = re.compile(r"^ *```python\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
# A call that prints or logs something, or sends it as a response.
SHOWS = re.compile(r"print|\w*Response|\w*logg(er|ing)\.(debug|info|warning|error|critical)")
# A call that logs the traceback of the exception, or code that goes through the exceptions of a group.
LOGS_TRACEBACK = re.compile(r"\.exception\(|exc_info=|print_exc|\.exceptions\b")
ERROR = re.compile(r"[\w.]*(error|exc|exception|cause)[\w.]*", re.IGNORECASE)


def is_type(node):
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "type"


def shown_by(node):
    """Returns the names that an expression uses, except for those of which it uses only the type."""
    if is_type(node):
        return set()
    names = {ast.unparse(node)} if isinstance(node, ast.Name | ast.Attribute) else set()
    return names.union(*map(shown_by, ast.iter_child_nodes(node)))


def hides_the_cause(handler):
    """Returns the first call that shows something, if no call of the handler shows the exception."""
    nodes = [node for statement in handler.body for node in ast.walk(statement)]
    names = {handler.name}
    for node in nodes:
        if isinstance(node, ast.Assign) and names & shown_by(node.value):
            names |= set(map(ast.unparse, node.targets))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    calls = [call for call in calls if SHOWS.fullmatch(ast.unparse(call.func))]
    if any(names & shown_by(call) for call in calls) or LOGS_TRACEBACK.search(ast.unparse(handler)):
        return []
    return calls[:1]


def without_cause(source):
    """Yields each statement or call that shows an error without its cause."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            if node.type is None or ast.unparse(node.type) != "KeyboardInterrupt":
                yield from map(ast.unparse, hides_the_cause(node))
        elif isinstance(node, ast.Expr | ast.Assign | ast.Return):
            types = {ast.unparse(call.args[0]) for call in ast.walk(node) if is_type(call)}
            if any(ERROR.fullmatch(name) for name in types - shown_by(node)):
                yield ast.unparse(node)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT / "examples")))
def test_an_example_shows_the_cause_of_an_error(path):
    assert list(without_cause(path.read_text())) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_an_example_in_a_docstring_shows_the_cause_of_an_error(path):
    examples = map(textwrap.dedent, FENCE.findall(path.read_text()))
    assert [code for example in examples for code in without_cause(example)] == []


@pytest.mark.parametrize(
    ("statement", "is_shown"),
    [
        ("print(error)", True),
        ("print(f'failed: {error}')", True),
        ("print(f'{type(error).__name__}: {error}')", True),
        ("logger.exception('failed')\n    print('failed')", True),
        ("logger.warning('failed', exc_info=True)", True),
        ("raise ValueError from error", True),
        ("cause = error.__cause__; print(cause)", True),
        ("print('failed')", False),
        ("print(type(error).__name__)", False),
        ("logger.warning('failed: %s', type(error).__name__)", False),
        ("return JSONResponse({'error': type(error).__name__})", False),
    ],
)
def test_an_error_without_its_cause_is_found(statement, is_shown):
    source = f"def f():\n  try:\n    work()\n  except OSError as error:\n    {statement}"
    assert (list(without_cause(source)) == []) == is_shown


def test_the_type_of_an_exception_is_also_found_outside_of_a_handler():
    assert list(without_cause("print(type(manager.exception).__name__)"))
    assert not list(without_cause("print(type(manager).__name__)"))
