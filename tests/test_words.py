"""Checks the wording of docs, docstrings, comments, messages and examples.

The phrases below are correct English, but sound translated, dated or vague. Rewrite the whole
sentence instead of replacing the phrase.
"""

import re
from bisect import bisect
from itertools import accumulate
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/*", "examples/*/*.py", "src/**/*.py")
    for path in ROOT.glob(pattern)
    if path.is_file()
)

# A regular expression for each phrase, the remedy, and an example that must be found.
PHRASES = [
    (r"\b(who|what|which)(so)?ever\b", "name the actor or the thing", "Whoever ends it"),
    (
        r"\b(the one|those|(some|any|no|every)body) (of|who)\b",
        "name the task or the caller",
        "those who wait",
    ),
    (
        r"(?<!there )(?<!would )\b(is|are|was|were|be) no (?!longer|more|less)",
        "is not a",
        "is no string",
    ),
    (
        r"\bha(s|ve|d) (begun|ended|entered|left|noted|opened|raised|started)\b",
        "simple past",
        "has left",
    ),
    (r"\bha(s|ve) it\b", "use an active verb", "Has it noted."),
    (r"\b(is|are|was|were|be|being) told\b|\btold (as|of)\b", "report, log or raise", "is told of it"),
    (r"\bsays? so\b", "report, log or raise", "and says so"),
    (r"\b(is|are) noticed\b", "detect", "is noticed by the reader"),
    (r"\bfor ever\b", "forever", "hangs for ever"),
    (r"\banew\b", "again", "opens anew"),
    (r"\bany more\b", "no longer", "not any more"),
    (r"\bper cent\b", "percent", "a few per cent"),
    (r"\bby itself\b", "on its own", "ends by itself"),
    (r"\bof (its|their|one's) own\b", "leave it out", "a page of its own"),
    (r"\bproven?\b", "tested", "as proven by"),
    (r"\b(cures?|farewell|patience|road|struck)\b", "use the literal term", "The cure"),
    (r'"""(What|Whether|Does that)\b', "open with a verb in the third person", '"""What it is.'),
    (r"(?:^ ?|[.!?] )(who|of) ", "put the subject first", "Who waits gets it."),
]


def found(text):
    """Yields the line number, the words, the phrase and the remedy for each match in a text."""
    # A phrase may continue on the next line, behind the mark of a comment or a quotation.
    lines = [line.strip(" #>*-|") or "\n" for line in text.splitlines()]
    starts = list(accumulate((len(line) + 1 for line in lines), initial=0))
    joined = " ".join(lines)
    for phrase, remedy, _ in PHRASES:
        for match in re.finditer(phrase, joined, re.IGNORECASE | re.MULTILINE):
            yield bisect(starts, match.start()), match[0], phrase, remedy


@pytest.mark.parametrize(("phrase", "remedy", "example"), PHRASES)
def test_each_phrase_is_found_in_its_example(phrase, remedy, example):
    assert phrase in [phrase for _, _, phrase, _ in found(example)]
    assert phrase in [phrase for _, _, phrase, _ in found(example.replace(" ", "\n    # "))]


def test_texts_contain_none_of_the_phrases():
    assert len(FILES) > 50
    rows = [
        f"{path.relative_to(ROOT)}:{line}: {words!r}: {remedy}"
        for path in FILES
        for line, words, _, remedy in found(path.read_text())
    ]
    assert not rows, "\n" + "\n".join(rows)
