"""Every mutant applies, names tests that exist, and has its line in docs/invariants.md (`make mutants` runs them)."""

from __future__ import annotations

import re

import pytest

from tests.mutants import ROOT, Mutant, apply, read_mutants

MUTANTS = read_mutants()
DOCUMENT = ROOT / "docs" / "invariants.md"


def defined(test: str) -> bool:
    """``file``, or ``file::name[parameters]``; of the file only the text is read."""
    file, _, name = test.partition("::")
    name = name.partition("[")[0]
    path = ROOT / file
    return path.is_file() and (not name or f"def {name}(" in path.read_text())


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_applies_and_names_tests(mutant: Mutant) -> None:
    assert apply(mutant, ROOT, check_only=True) is None, "the code has moved on: write the patch anew"
    tests = [argument for argument in mutant.tests if argument.startswith("tests/")]
    assert tests and all(defined(test) for test in tests)


def test_the_document_names_what_exists() -> None:
    text = DOCUMENT.read_text()
    named = set(re.findall(r"`(tests/[\w/.]+\.py(?:::\w+)?)`", text))
    assert named and [test for test in sorted(named) if not defined(test)] == []
    listed = set(re.findall(r"`mutant ([\w]+)`", text))
    assert listed == {mutant.name for mutant in MUTANTS}
