"""Checks that each seeded fault still fits the core, so that `nox -s mutants` can run."""

import pytest
from proof.mutants import MUTANTS, ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.description for mutant in MUTANTS])
def test_a_seeded_fault_changes_one_place(mutant):
    path = ROOT / "src" / "ownertask" / mutant.file
    text = path.read_text()
    assert text.count(mutant.old) == 1
    compile(text.replace(mutant.old, mutant.new), path, "exec")
