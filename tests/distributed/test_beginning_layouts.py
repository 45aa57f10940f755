"""Four processes begin from a Qwen3 and a SigLIP-2 folder: each holds its part, the mergers are the drawn ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from beginning_cases import expected_weights, qwen3, save, siglip
from convert_cases import config_of
from reference import PLAIN, loss_config
from spawn import run_ranks
from test_load_layouts import SEED, check_own_parts, draw_whole

from megatron_qwen3vl.config.schema import ModelConfig, ParallelConfig

SIDE = 6  # of our own position table: nothing is computed, every value is exact
LAYOUTS = {
    "dense_tied": [replace(PLAIN, tp=2, pp=2, pipeline_layers=(4, 2))],
    "moe": [replace(PLAIN, tp=2, pp=2, sp=True), replace(PLAIN, tp=2, ep=2, etp=2, sp=True)],
}


def begin_layouts(
    model: ModelConfig, language: Path, vision: Path, layouts: Sequence[ParallelConfig], whole: dict
) -> list[set[str]]:
    """In each process, per layout: draw random weights, load over them, compare with ``whole``."""
    from megatron_qwen3vl.convert.beginning import load_beginning
    from megatron_qwen3vl.model.build import build_model
    from megatron_qwen3vl.parallel.device import start_device
    from megatron_qwen3vl.parallel.groups import start_groups
    from megatron_qwen3vl.parallel.layout import Layout

    held = []
    for parallel in layouts:
        groups = start_groups(Layout.from_config(parallel, 4), start_device("cpu"))
        chunks = build_model(model, parallel, groups, "float32", loss_config(), ("merger",), seed=SEED)
        load_beginning(chunks, model, language, vision, groups)
        held.append({name for chunk in chunks for name in check_own_parts(chunk.module, whole, parallel)})
        groups.stop()
    return held


@pytest.mark.parametrize("kind", LAYOUTS)
def test_each_rank_begins_with_its_part(kind: str, tmp_path: Path) -> None:
    model = config_of(kind)
    models = qwen3(model), siglip(model, "siglip2", SIDE)
    language, vision = save(models[0], tmp_path / "language"), save(models[1], tmp_path / "vision")
    whole = draw_whole(model) | expected_weights(model, *models)
    ranks = run_ranks(begin_layouts, 4, model, language, vision, LAYOUTS[kind], whole)
    for number, layout in enumerate(LAYOUTS[kind]):
        assert set().union(*(held[number] for held in ranks)) == whole.keys(), layout
