"""Counts against torch's own FLOP counter and against the six published models."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.model.config import pipeline_layers
from megatron_qwen3vl.model.flops import count_parameters, forward_flops, pipeline_costs, training_flops
from tests.parity import reference as ref

PUBLISHED = {"2b": 2.128, "4b": 4.438, "8b": 8.767, "32b": 33.357, "30b_a3b": 31.071, "235b_a22b": 235.670}


@pytest.mark.parametrize(("name", "billions"), PUBLISHED.items())
def test_published_sizes(name: str, billions: float) -> None:
    assert round(count_parameters(ref.read_model(name)) / 1e9, 3) == billions


@pytest.mark.parametrize("kind", ref.KINDS)
def test_parameters_equal_transformers(kind: str) -> None:
    model = ref.model_config(kind)
    assert count_parameters(model) == sum(p.numel() for p in ref.transformers_model(model).parameters())


def test_forward_equals_torch_counter() -> None:
    """One sample through transformers with eager attention, which computes every pair: the ``full`` convention."""
    from transformers import Qwen3VLForConditionalGeneration

    model = ref.model_config("dense_tied")
    config = ref.transformers_config(model)
    twin = Qwen3VLForConditionalGeneration._from_config(config, attn_implementation="eager")
    case = ref.standard_cases(model)[2]
    sample = case.sample
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(**ref.transformers_inputs(case))
    grids = [tuple(grid) for grid in sample.grids.tolist()]
    length = len(sample.input_ids)
    counted = forward_flops(model, [length], grids, num_labels=length, full=True)
    assert counter.get_total_flops() == counted.total


def test_training_flops() -> None:
    model = ref.model_config("moe")
    arguments = ([30, 5], [(1, 4, 6)], 12)
    everything = {"vision", "merger", "language"}
    forward = forward_flops(model, *arguments)
    assert training_flops(model, *arguments, everything) == 3 * forward.total
    assert training_flops(model, *arguments, set()) == forward.total
    # Frozen language: its inputs' gradients still pass through.
    merger_only = training_flops(model, *arguments, {"merger"})
    expected = forward.total + forward.merger_linear + forward.language_linear + 2 * forward.language_attention
    assert merger_only == expected
    # Attention is quadratic in each document, not in the pack.
    split = forward_flops(model, [15, 15, 5], [(1, 4, 6)], 12)
    assert split.language_linear == forward.language_linear and split.language_attention < forward.language_attention
    doubled = dataclasses.replace(model, text_config=dataclasses.replace(model.text_config, num_experts=8))
    more = forward_flops(doubled, *arguments).language_linear - forward.language_linear
    text = model.text_config
    assert more == 2 * 35 * text.num_hidden_layers * 4 * text.hidden_size  # only the router grows


def test_costs_of_the_pipeline_add_up() -> None:
    """A quarter of 4,096 positions are four pictures; the parts sum to the whole model's forward."""
    model = ref.read_model("8b")
    costs = pipeline_costs(model, 0.25)
    whole = forward_flops(model, [4096], [(1, 32, 32)] * 4, num_labels=3072)
    assert costs.first + model.text_config.num_hidden_layers * costs.layer + costs.last == whole.total
    assert costs.first == whole.vision_linear + whole.vision_attention + whole.merger_linear


@pytest.mark.parametrize(("pp", "vpp"), [(2, 1), (4, 1), (8, 1), (16, 1), (8, 2)])
def test_automatic_split_of_94_layers(pp: int, vpp: int) -> None:
    """The ViT makes the first rank's layers fewer, the head the last one's; no rank is a layer above the mean."""
    model = ref.read_model("235b_a22b")
    parallel = dataclasses.replace(ref.PLAIN, pp=pp, vpp=vpp)
    split, costs = pipeline_layers(model, parallel), pipeline_costs(model, parallel.visual_share)
    assert (len(split), sum(split)) == (pp * vpp, 94)
    ranks = [sum(split[rank::pp]) * costs.layer for rank in range(pp)]
    ranks[0], ranks[-1] = ranks[0] + costs.first, ranks[-1] + costs.last
    assert max(ranks) - sum(ranks) / pp < costs.layer
    assert pipeline_layers(model, dataclasses.replace(parallel, visual_share=0.0))[0] > split[0] >= 3
    by_hand = (*split[:-2], split[-2] + 1, split[-1] - 1)
    assert pipeline_layers(model, dataclasses.replace(parallel, pipeline_layers=by_hand)) == by_hand
    with pytest.raises(UserError, match="sums to 93"):
        pipeline_layers(model, dataclasses.replace(parallel, pipeline_layers=(*split[:-1], split[-1] - 1)))
