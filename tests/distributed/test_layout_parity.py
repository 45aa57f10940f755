"""A selection of the parity matrix (layouts.py): gradients within 1e-5 of transformers', three steps' weights too."""

from __future__ import annotations

import pytest
from layout_parity import NUM_STEPS, Expected, Job, errors, expect, run_jobs
from layouts import ENTRIES
from spawn import run_ranks

TOLERANCE = 1e-5
# By number of processes: (layout, model, steps).
SELECTION = {
    2: [
        ("CP2 (gather)", "dense_tied", NUM_STEPS),
        ("CP2 (all-to-all)", "dense_untied", 1),
        ("EP2 x CP2 (2 processes)", "moe", 1),
        ("DP2, images shared", "dense_tied", 1),
    ],
    3: [("PP3", "dense_untied", 1)],
    4: [
        ("TP2+SP x CP2", "dense_untied", 1),
        ("CP4", "dense_tied", 1),
        ("CP2 x PP2", "moe", 1),
        ("DP2 x CP2, images shared", "dense_untied", 1),
        ("DP2 x PP2 x VPP2, buckets", "dense_tied", NUM_STEPS),
    ],
}


@pytest.fixture(scope="module")
def references() -> dict[str, Expected]:
    return {kind: expect(kind) for kind in ("dense_tied", "dense_untied", "moe")}


@pytest.mark.parametrize("processes", SELECTION)
def test_gradients_equal_transformers(processes: int, references: dict[str, Expected]) -> None:
    chosen = SELECTION[processes]
    jobs = [Job(kind, ENTRIES[name].parallel, steps) for name, kind, steps in chosen]
    ranks = run_ranks(run_jobs, processes, processes, jobs, references, timeout=300.0)
    for index, (name, kind, steps) in enumerate(chosen):
        expected = references[kind]
        outcomes = [rank[index] for rank in ranks]
        found = errors([outcome.gradients for outcome in outcomes], expected.gradients)
        wrong = {tensor: error for tensor, error in found.items() if not error <= TOLERANCE}
        assert not wrong, (name, wrong)
        for outcome in outcomes:
            assert outcome.losses == pytest.approx(expected.losses[:steps], rel=1e-6), name
        if steps == NUM_STEPS:
            trained = errors([outcome.trained for outcome in outcomes], expected.trained)
            wrong = {tensor: error for tensor, error in trained.items() if not error <= TOLERANCE}
            assert not wrong, (name, wrong)
