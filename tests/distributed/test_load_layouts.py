"""Four processes: each loads from a Hugging Face folder exactly the part that is its own, in every kind of layout.

Random weights are the same in every layout, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_cases import config_of, save_reference
from reference import PLAIN, loss_config, ours_from_transformers, transformers_model
from spawn import run_ranks

from megatron_qwen3vl.config.schema import ModelConfig, ParallelConfig

SEED = 3
TP_PP = replace(PLAIN, tp=2, pp=2)
LAYOUTS = {
    "dense_tied": [replace(TP_PP, pipeline_layers=(4, 2)), replace(PLAIN, tp=2)],
    "dense_untied": [replace(TP_PP, vpp=2, pipeline_layers=(3, 1, 1, 3))],
    "moe": [
        replace(PLAIN, tp=2, pp=2, sp=True),
        replace(PLAIN, ep=4),
        replace(PLAIN, tp=2, ep=2, sp=True),
        replace(PLAIN, tp=2, ep=2, etp=2, sp=True),
        replace(PLAIN, pp=2, ep=2),
    ],
}


def load_layouts(
    model: ModelConfig, folder: Path, layouts: Sequence[ParallelConfig], whole: dict, drawn: dict
) -> list[set[str]]:
    """In each process: per layout, load ``whole`` from the folder, then draw random weights, which are ``drawn``."""
    from megatron_qwen3vl.convert.hf import load_hf
    from megatron_qwen3vl.model.build import build_model, initialize
    from megatron_qwen3vl.parallel.device import start_device
    from megatron_qwen3vl.parallel.groups import start_groups
    from megatron_qwen3vl.parallel.layout import Layout

    held = []
    for parallel in layouts:
        groups = start_groups(Layout.from_config(parallel, 4), start_device("cpu"))
        chunks = build_model(model, parallel, groups, "float32", loss_config(), ("merger", "language"), seed=None)
        inner = [chunk.module for chunk in chunks]
        for chunk in inner:
            for parameter in chunk.parameters():
                parameter.data.fill_(float("nan"))
        load_hf(chunks, model, folder, groups)
        held.append({name for chunk in inner for name in check_own_parts(chunk, whole, parallel)})
        initialize(inner, model, SEED)
        for chunk in inner:
            check_own_parts(chunk, drawn, parallel)
        groups.stop()
    return held


def check_own_parts(chunk: Any, whole: dict[str, torch.Tensor], parallel: ParallelConfig) -> list[str]:
    """The names of a chunk's parameters; each equals its shard of the whole tensor, as megatron-core marks it."""
    from megatron_qwen3vl.model.build import global_parameters

    marks, names = chunk.pg_collection, []
    for name, parameter in global_parameters(chunk):
        group = marks.expt_tp if ".experts." in name else marks.tp
        part = whole[name]
        if parameter.tensor_model_parallel and group.size() > 1:
            pieces = part.chunk(group.size() * parameter.partition_stride, dim=parameter.partition_dim)
            part = torch.cat(pieces[group.rank() :: group.size()], dim=parameter.partition_dim)
        assert torch.equal(parameter.data, part), (parallel, name)
        names.append(name)
    return names


def draw_whole(model: ModelConfig) -> dict[str, torch.Tensor]:
    """Random weights of the whole model, on one process."""
    from megatron_qwen3vl.model.build import build_chunks, global_parameters, initialize
    from megatron_qwen3vl.parallel.device import start_device
    from megatron_qwen3vl.parallel.groups import shutdown, start_groups
    from megatron_qwen3vl.parallel.layout import Layout

    groups = start_groups(Layout.from_config(PLAIN, 1), start_device("cpu"))
    try:
        chunks = build_chunks(model, PLAIN, groups, "float32", loss_config())
        initialize(chunks, model, SEED)
        return {name: tensor.detach().clone() for name, tensor in global_parameters(chunks[0])}
    finally:
        shutdown()


@pytest.mark.parametrize("kind", LAYOUTS)
def test_each_rank_loads_its_part(kind: str, tmp_path: Path) -> None:
    reference, model = transformers_model(config_of(kind)), config_of(kind)
    folder = save_reference(reference, tmp_path / "hf", "float32", "60KB")
    whole = {n: t.detach().clone() for n, t in ours_from_transformers(reference.state_dict(), model).items()}
    ranks = run_ranks(load_layouts, 4, model, folder, LAYOUTS[kind], whole, draw_whole(model))
    for number, layout in enumerate(LAYOUTS[kind]):
        assert set().union(*(held[number] for held in ranks)) == whole.keys(), layout
