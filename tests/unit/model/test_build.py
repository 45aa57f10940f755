"""Shapes of the six published models on the meta device, random weights, names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from megatron_qwen3vl.model.build import build_chunks, build_model, global_parameters, initialize, module_of
from megatron_qwen3vl.model.flops import parameters_by_module
from megatron_qwen3vl.parallel.device import start_device
from megatron_qwen3vl.parallel.groups import Groups, shutdown, start_groups
from megatron_qwen3vl.parallel.layout import Layout
from tests.parity import reference as ref


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    yield start_groups(Layout.from_config(ref.PLAIN, 1), start_device("cpu"))
    shutdown()


@pytest.mark.parametrize("name", ["2b", "4b", "8b", "32b", "30b_a3b", "235b_a22b"])
def test_shapes_equal_transformers(name: str, groups: Groups) -> None:
    """Tensor by tensor, as integers, to transformers' model of the same configuration; nothing is allocated."""
    from transformers import Qwen3VLForConditionalGeneration, Qwen3VLMoeForConditionalGeneration

    model = ref.read_model(name)
    make = Qwen3VLMoeForConditionalGeneration if model.text_config.num_experts else Qwen3VLForConditionalGeneration
    with torch.device("meta"):
        twin = make(ref.transformers_config(model))
        (chunk,) = build_chunks(model, ref.PLAIN, groups, "bfloat16", ref.loss_config())
        expected = ref.ours_from_transformers(dict(twin.named_parameters()) | dict(twin.state_dict()), model)
    own = dict(global_parameters(chunk))
    assert {n: tuple(p.shape) for n, p in own.items()} == {n: tuple(p.shape) for n, p in expected.items()}
    assert all(parameter.is_meta for parameter in own.values())
    counts = dict.fromkeys(("vision", "merger", "language"), 0)
    for parameter_name, parameter in own.items():
        counts[module_of(parameter_name)] += parameter.numel()
    assert counts == parameters_by_module(model)
    assert sum(counts.values()) == sum(parameter.numel() for parameter in twin.parameters())


@pytest.mark.parametrize("kind", ref.KINDS)
def test_random_weights(kind: str, groups: Groups) -> None:
    model = ref.model_config(kind)
    (chunk,) = build_chunks(model, ref.PLAIN, groups, "float32", ref.loss_config())
    initialize([chunk], model, seed=1)
    first = {name: parameter.detach().clone() for name, parameter in global_parameters(chunk)}
    for name, tensor in first.items():
        if name.endswith("bias"):
            assert not tensor.any(), name
        elif tensor.dim() == 1:
            assert (tensor == 1).all(), name
        else:
            # what a patch of the ViT begins as: its place as large as its content, whose weights have a fan-in of 96
            spread = {"vision.position_table.weight": 0.5, "vision.patch_embed.weight": 96**-0.5}.get(name, 0.08)
            assert tensor.std().item() == pytest.approx(spread, rel=0.15), name
            assert abs(tensor.mean().item()) < spread / 8, name
    initialize([chunk], model, seed=1)
    assert all(torch.equal(parameter, first[name]) for name, parameter in global_parameters(chunk))
    initialize([chunk], model, seed=2)
    matrices = [name for name, tensor in first.items() if tensor.dim() > 1]
    assert not any(torch.equal(dict(global_parameters(chunk))[name], first[name]) for name in matrices)


@pytest.mark.parametrize("kind", ref.KINDS)
def test_everything_frozen_can_be_wrapped(kind: str, groups: Groups) -> None:
    (wrapped,) = build_model(ref.model_config(kind), ref.PLAIN, groups, "bfloat16", ref.loss_config(), (), seed=None)
    assert not any(parameter.requires_grad for parameter in wrapped.parameters())
    assert {parameter.dtype for parameter in wrapped.parameters()} == {torch.bfloat16}


def test_modules_by_name() -> None:
    assert module_of("module.module.vision.layers.0.input_layernorm.weight") == "vision"
    assert module_of("vision.merger.norm.weight") == module_of("vision.deepstack_mergers.0.norm.bias") == "merger"
    assert module_of("module.language.output_layer.weight") == "language"
