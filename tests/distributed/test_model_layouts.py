"""Two processes: the gradient of every parameter equals transformers' under tensor, sequence, pipeline, expert and data
parallelism. The full matrix of layouts is in test_parity_matrix once it exists; this is the model's own guard.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from spawn import run_ranks

from megatron_qwen3vl.batch import IGNORE, Batch
from megatron_qwen3vl.config.schema import ModelConfig, ParallelConfig
from tests.parity import reference as ref

TOLERANCE = 1e-5
TP = replace(ref.PLAIN, tp=2)
SP = replace(ref.PLAIN, tp=2, sp=True)
PP = replace(ref.PLAIN, pp=2)
UNEVEN = replace(PP, pipeline_layers=(4, 2))
INTERLEAVED = replace(PP, vpp=2, pipeline_layers=(3, 1, 1, 3))
DP = ref.PLAIN
LAYOUTS = {
    "dense_tied": [TP, SP, UNEVEN, DP],
    "dense_untied": [TP, SP, INTERLEAVED, replace(SP, recompute="full", vision_recompute="full")],
    "moe": [SP, PP, replace(DP, ep=2), replace(SP, ep=2), replace(SP, etp=2, recompute="selective")],
}
# The layers of each pipeline rank: part k lies on rank k % 2.
LISTED = {(4, 2): [[0, 1, 2, 3], [4, 5]], (3, 1, 1, 3): [[0, 1, 2, 4], [3, 5, 6, 7]]}
Sizes = dict[str, tuple[float, float]]  # per tensor: ||g - g'||^2 and ||g'||^2 of this rank's part


def own_part(whole: torch.Tensor, parameter: Any, group: Any) -> torch.Tensor:
    """The shard of a tensor as megatron-core marks it."""
    if not parameter.tensor_model_parallel:
        return whole
    pieces = whole.chunk(group.size() * parameter.partition_stride, dim=parameter.partition_dim)
    return torch.cat(pieces[group.rank() :: group.size()], dim=parameter.partition_dim)


def run_layouts(
    model: ModelConfig,
    layouts: Sequence[ParallelConfig],
    weights: dict[str, torch.Tensor],
    expected: dict[str, torch.Tensor],
    micro_batches: Sequence[Batch],
    total: float,
) -> list[Sizes]:
    """In each process: every layout in turn; data-parallel ranks take alternate micro-batches."""
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.utils import unwrap_model

    from megatron_qwen3vl.model.build import build_model, global_parameters
    from megatron_qwen3vl.parallel.device import start_device
    from megatron_qwen3vl.parallel.groups import start_groups
    from megatron_qwen3vl.parallel.layout import Layout

    device, results = start_device("cpu"), []
    for parallel in layouts:
        groups = start_groups(Layout.from_config(parallel, 2), device)
        everything = ("vision", "merger", "language")
        chunks = build_model(model, parallel, groups, "float32", ref.loss_config(), everything, seed=None)
        inner = [unwrap_model(chunk) for chunk in chunks]
        marks = inner[0].pg_collection
        group_of = {True: marks.expt_tp, False: marks.tp}
        for chunk in inner:
            for name, parameter in global_parameters(chunk):
                parameter.data.copy_(own_part(weights[name], parameter, group_of[".experts." in name]))
        chunks[0].config.finalize_model_grads_func = partial(_finalize, finalize_model_grads)
        mine = list(micro_batches[groups.dp_rank :: groups.dp_size])
        scale = len(mine) * groups.dp_size / total

        def step(source: Iterator[Batch], chunk: torch.nn.Module, scale: float = scale) -> Any:
            batch = next(source)
            kept = batch.loss_weights[batch.labels != IGNORE]
            return chunk(batch), lambda losses: ((losses * kept).sum() * scale, {})

        for chunk in chunks:
            chunk.zero_grad_buffer()
        get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=[iter(mine) for _ in chunks],
            model=chunks,
            num_microbatches=len(mine),
            seq_length=len(mine[0].input_ids),
            micro_batch_size=1,
            forward_only=False,
            force_all_reduce=True,
        )
        sizes: Sizes = {}
        for chunk in inner:
            _check_stored_shapes(chunk, weights)
            for name, parameter in global_parameters(chunk):
                reference = own_part(expected[name], parameter, group_of[".experts." in name]).double()
                error = (parameter.main_grad.double() - reference).norm().item()
                sizes[name] = (error**2, reference.norm().item() ** 2)
        results.append(sizes)
        groups.stop()
    return results


def _check_stored_shapes(chunk: Any, whole: dict[str, torch.Tensor]) -> None:
    """What a checkpoint would hold of the ViT: whole tensors, cut along the tensor axis and not copied."""
    stored = chunk.sharded_state_dict()
    for name, parameter in chunk.named_parameters():
        if name.startswith("vision."):
            assert tuple(stored[name].global_shape) == tuple(whole[name].shape), name
            assert tuple(stored[name].local_shape) == tuple(parameter.shape), name


def _finalize(reduce: Any, chunks: Any, num_tokens: Any = None, **rest: Any) -> None:
    reduce(chunks, None, **rest)


def layers_of(sizes: Sizes) -> list[int]:
    """The language layers that a rank holds."""
    found = (re.match(r"language\.decoder\.layers\.(\d+)\.", name) for name in sizes)
    return sorted({int(match[1]) for match in found if match})


@pytest.mark.parametrize("kind", ref.KINDS)
def test_gradients_equal_transformers(kind: str) -> None:
    model = ref.model_config(kind)
    twin = ref.transformers_model(model)
    cases = ref.with_positions(ref.standard_cases(model), twin)
    expected = ref.run_reference(twin, cases)
    # Four micro-batches of one length, the third without a picture, the last without a label.
    text, image, images, video, mixed, conversation, unlabelled = cases
    packs = [[image, images], [video, mixed], [text], [unlabelled, conversation]]
    length = -(-max(sum(len(c.sample.input_ids) for c in pack) for pack in packs) // 2) * 2
    micro_batches = [ref.make_batch(model, pack, length=length) for pack in packs]
    counts = [case.sample.num_labels for case in cases]
    results = run_ranks(
        run_layouts,
        2,
        model,
        LAYOUTS[kind],
        ref.ours_from_transformers({n: p.detach() for n, p in twin.state_dict().items()}, model),
        ref.ours_from_transformers(expected.gradients, model),
        micro_batches,
        sum(count**0.5 for count in counts),
    )
    for index, parallel in enumerate(LAYOUTS[kind]):
        seen = [rank[index] for rank in results]
        names = set().union(*seen)
        if parallel.pipeline_layers is not None:
            assert [layers_of(sizes) for sizes in seen] == LISTED[parallel.pipeline_layers]
        assert names == ref.ours_from_transformers(expected.gradients, model).keys()
        errors = {}
        for name in names:
            parts = [sizes[name] for sizes in seen if name in sizes]
            errors[name] = (sum(e for e, _ in parts) / sum(n for _, n in parts)) ** 0.5
        wrong = {name: error for name, error in sorted(errors.items()) if not error <= TOLERANCE}
        assert not wrong, (parallel, wrong)
