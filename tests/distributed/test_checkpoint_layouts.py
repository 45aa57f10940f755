"""A few of the ordered pairs of checkpoint_matrix.py, with the whole model on two processes.

The pipelines hold 3 + 3, 5 + 1 and, interleaved, 3 + 1 and 1 + 1 layers.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_layouts import Hop, drift, reading, run_hops, run_origins, unequal
from layout_parity import layout, make_steps
from spawn import run_ranks

from tests.parity import reference as ref

LAYOUTS = {
    "cp2": layout(cp=2),
    "tp2": layout(tp=2, sp=True),
    "pp2": layout(pp=2),
    "uneven": layout(pp=2, pipeline_layers=(5, 1)),
    "interleaved": layout(pp=2, vpp=2),
    "ep2": layout(ep=2),
    "etp2": layout(tp=2, sp=True, etp=2),
}
# By model: (saved in, loaded in); the first pair's source also loads weights alone, which must show.
PAIRS = {
    "dense_tied": [("cp2", "tp2"), ("cp2", "uneven"), ("cp2", "cp2"), ("uneven", "pp2"), ("uneven", "interleaved")],
    "moe": [("ep2", "etp2"), ("ep2", "ep2"), ("etp2", "ep2")],
}


@pytest.mark.parametrize("kind", PAIRS)
def test_a_checkpoint_moves_between_layouts(kind: str, tmp_path: Path) -> None:
    model = ref.model_config(kind)
    twin = ref.transformers_model(model)
    weights = ref.ours_from_transformers({n: t.detach().clone() for n, t in twin.state_dict().items()}, model)
    steps = make_steps(model, twin, 4)
    hops = [Hop(source, target, LAYOUTS[target]) for source, target in PAIRS[kind]]
    first = hops[0].source
    control = Hop(first, first, LAYOUTS[first], without_moments=True)
    origins = {hop.source: LAYOUTS[hop.source] for hop in hops}
    run_ranks(run_origins, 2, 2, str(tmp_path), model, weights, steps, origins, timeout=300.0)
    run_ranks(run_hops, 2, 2, str(tmp_path), model, weights, steps, [*hops, control], timeout=300.0)
    with reading():
        for hop in hops:
            assert unequal(hop.folder(tmp_path), tmp_path / hop.source) == [], hop
            limit = 0.0 if hop.source == hop.target else 1e-6
            assert drift(hop.folder(tmp_path), tmp_path / hop.source).within(limit), hop
        assert drift(control.folder(tmp_path), tmp_path / first).weights > 1e-4
