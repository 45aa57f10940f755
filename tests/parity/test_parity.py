"""Logits, token losses and the gradient of every parameter equal transformers', whatever the packing and recompute."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from megatron_qwen3vl.batch import IGNORE
from megatron_qwen3vl.model.build import build_model, module_of
from megatron_qwen3vl.parallel.groups import Groups
from megatron_qwen3vl.train.routing import expert_load
from tests.parity import reference as ref
from tests.parity.conftest import Pair, backward, gradients, normaliser

TOLERANCE = 1e-5
Pairs = Callable[[str], Pair]


def assert_same_gradients(own: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    wrong = {name: error for name, error in ref.relative_errors(own, theirs).items() if not error <= TOLERANCE}
    assert not wrong, wrong


@pytest.mark.parametrize("kind", ref.KINDS)
def test_logits_losses_and_gradients(kind: str, pairs: Pairs) -> None:
    """Two packs in one micro-batch, padded, so that documents, boundaries and padding all take part."""
    pair = pairs(kind)
    packs = [pair.cases[:3], pair.cases[3:]]
    chunk = pair.build()
    batch = ref.make_batch(pair.model, *packs)
    length = len(batch.labels) // 2
    with torch.no_grad():
        logits = chunk.logits(batch)
        losses = torch.full(batch.labels.shape, torch.nan)
        losses[batch.labels != IGNORE] = chunk(batch)
    for row, pack in enumerate(packs):
        start = row * length
        for case in pack:
            index = [c.sample.key for c in pair.cases].index(case.sample.key)
            span = slice(start, start + len(case.sample.input_ids))
            expected = pair.expected.logits[index]
            assert (logits[span] - expected).norm() <= TOLERANCE * expected.norm(), case.sample.key
            own = losses[span][batch.labels[span] != IGNORE]
            torch.testing.assert_close(own, pair.expected.token_losses[index], rtol=1e-5, atol=1e-6)
            start = span.stop
    loss = backward(chunk, [batch], normaliser(pair.cases))
    assert loss == pytest.approx(pair.expected.loss, rel=1e-6)
    assert_same_gradients(gradients(chunk), pair.expected_gradients())


@pytest.mark.parametrize("kind", ref.KINDS)
@pytest.mark.parametrize(
    "recompute", [("full", "none"), ("none", "full"), ("full", "full"), ("selective", "selective")]
)
def test_recompute_changes_nothing(kind: str, recompute: tuple[str, str], pairs: Pairs) -> None:
    pair = pairs(kind)
    total = normaliser(pair.cases)
    batches = [ref.make_batch(pair.model, pair.cases[:4]), ref.make_batch(pair.model, pair.cases[4:], length=150)]
    chunk = pair.build(recompute=recompute[0], vision_recompute=recompute[1])
    assert backward(chunk, batches, total) == pytest.approx(pair.expected.loss, rel=1e-6)
    assert_same_gradients(gradients(chunk), pair.expected_gradients())


@pytest.mark.parametrize("kind", ref.KINDS)
@pytest.mark.parametrize(
    "split",
    [
        pytest.param([[[0]], [[1]], [[2]], [[3]], [[4]], [[5]], [[6]]], id="one sample each"),
        pytest.param([[[6, 5, 4, 3, 2, 1, 0]]], id="one pack, reversed"),
        pytest.param([[[4], [0, 6]], [[2, 1], [3]], [[5]]], id="three micro-batches"),
    ],
)
def test_packing_and_micro_batches_change_nothing(kind: str, split: list[list[list[int]]], pairs: Pairs) -> None:
    pair = pairs(kind)
    batches = [ref.make_batch(pair.model, *[[pair.cases[i] for i in pack] for pack in micro]) for micro in split]
    chunk = pair.build()
    assert backward(chunk, batches, normaliser(pair.cases)) == pytest.approx(pair.expected.loss, rel=1e-6)
    assert_same_gradients(gradients(chunk), pair.expected_gradients())


@pytest.mark.parametrize("kind", ref.KINDS)
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_text_only_batch_gives_zero_gradients_to_vision(kind: str, recompute: str, pairs: Pairs) -> None:
    pair = pairs(kind)
    text = pair.cases[:1]
    chunk = pair.build(recompute=recompute, vision_recompute=recompute)
    backward(chunk, [ref.make_batch(pair.model, text, length=40)], normaliser(text))
    own = gradients(chunk)
    assert all(not own[name].any() for name in own if module_of(name) != "language")
    expected = ref.run_reference(pair.twin, text)
    assert_same_gradients(own, ref.ours_from_transformers(expected.gradients, pair.model))


@pytest.mark.parametrize("kind", ref.KINDS)
def test_batch_without_labels_gives_zero_gradients(kind: str, pairs: Pairs) -> None:
    pair = pairs(kind)
    unlabelled = [case for case in pair.cases if case.sample.num_labels == 0]
    chunk = pair.build(recompute="full", vision_recompute="full")
    losses = chunk(ref.make_batch(pair.model, unlabelled))
    assert losses.shape == (0,) and losses.dtype == torch.float32
    losses.sum().backward()
    assert all(not gradient.any() for gradient in gradients(chunk).values())


@pytest.mark.parametrize("trainable", [("merger",), ("language",), ("vision", "merger"), ("vision",)])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_frozen_modules(trainable: tuple[str, ...], recompute: str, pairs: Pairs, groups: Groups) -> None:
    """What learns has the same gradients as if everything learned; what is frozen has none, and no buffer."""
    pair = pairs("dense_untied")
    source = pair.build()
    parallel = ref.replace_parallel(recompute=recompute, vision_recompute=recompute)
    (wrapped,) = build_model(pair.model, parallel, groups, "float32", ref.loss_config(), trainable, seed=None)
    wrapped.module.load_state_dict(source.state_dict())
    wrapped.zero_grad_buffer()
    backward(wrapped, [ref.make_batch(pair.model, pair.cases)], normaliser(pair.cases))
    expected = pair.expected_gradients()
    learned = {}
    for name, parameter in wrapped.module.named_parameters():
        assert parameter.requires_grad == (module_of(name) in trainable), name
        assert parameter.grad is None
        if parameter.requires_grad:
            learned[name] = parameter.main_grad
        else:
            assert not hasattr(parameter, "main_grad")
    assert_same_gradients(learned, {name: expected[name] for name in learned})


def test_frozen_encoder_keeps_no_graph(pairs: Pairs) -> None:
    pair = pairs("dense_tied")
    chunk = pair.build()
    for name, parameter in chunk.named_parameters():
        parameter.requires_grad = module_of(name) == "merger"
    batch = ref.make_batch(pair.model, pair.cases[1:2])
    hidden, tapped = chunk.vision.encode(batch.patches, batch.grids)
    assert not hidden.requires_grad and not any(t.requires_grad for t in tapped)
    features, levels = chunk.vision(batch.patches, batch.grids)
    assert features.requires_grad and levels.requires_grad


def test_exponents(pairs: Pairs) -> None:
    """0 is per token, 1 is per sample."""
    pair = pairs("dense_tied")
    for exponent in (0.0, 1.0):
        expected = ref.run_reference(pair.twin, pair.cases, exponent)
        batch = ref.make_batch(pair.model, pair.cases, exponent=exponent)
        chunk = pair.build()
        assert backward(chunk, [batch], normaliser(pair.cases, exponent)) == pytest.approx(expected.loss, rel=1e-6)
        assert_same_gradients(gradients(chunk), ref.ours_from_transformers(expected.gradients, pair.model))


def test_positions_are_kept_exact_in_bfloat16(pairs: Pairs, groups: Groups) -> None:
    """Positions beyond 16 bits of mantissa: a shift of all of them changes nothing, as rotary angles are relative."""
    pair = pairs("dense_tied")
    (wrapped,) = build_model(pair.model, ref.PLAIN, groups, "bfloat16", ref.loss_config(), ("language",), seed=3)
    batch = ref.make_batch(pair.model, pair.cases[1:3])
    with torch.no_grad():
        near = wrapped(batch)
        far = wrapped(ref.replace_batch(batch, positions=batch.positions + 1001))
    assert near.dtype == torch.float32
    # Cosines in bfloat16 differ by rounding (1e-2); positions in bfloat16 would collide in fours.
    assert (near - far).abs().max() < 0.1 and np.isfinite(near.numpy()).all()


def test_auxiliary_loss_ignores_padding(pairs: Pairs) -> None:
    pair = pairs("moe")
    results = []
    for length in (0, 300):
        chunk = pair.build(ref.loss_config(aux_coefficient=5.0))
        backward(chunk, [ref.make_batch(pair.model, pair.cases, length=length)], normaliser(pair.cases))
        results.append(gradients(chunk))
    assert_same_gradients(*results)
    router = "language.decoder.layers.1.mlp.router.weight"
    assert (results[0][router] - pair.expected_gradients()[router]).norm() > 0.1 * results[0][router].norm()


def test_expert_load_is_that_of_transformers_routers(pairs: Pairs, groups: Groups) -> None:
    pair = pairs("moe")
    chunk = pair.build()
    chunk(ref.make_batch(pair.model, pair.cases))  # one pack without padding
    text = pair.model.text_config
    expected = torch.zeros(text.num_hidden_layers, text.num_experts)
    for case in pair.cases:
        output = pair.twin(**ref.transformers_inputs(case), output_router_logits=True)
        for layer, logits in enumerate(output.router_logits):
            chosen = logits.topk(text.num_experts_per_tok).indices.flatten()
            expected[layer] += torch.bincount(chosen, minlength=text.num_experts)
    counts = [layer.mlp.experts.tokens_per_expert for layer in chunk.language.decoder.layers]
    assert torch.equal(torch.stack(counts), expected.long())
    assert expert_load([chunk], text, groups) == pytest.approx(float((expected.amax(1) / expected.mean(1)).max()))
    assert expert_load([chunk], text, groups) is None  # the counts begin again
