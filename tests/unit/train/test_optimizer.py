"""The optimizer against torch's AdamW and closed formulas; a step with a non-finite gradient changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from megatron_qwen3vl.config.schema import LearningRateScale
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.parallel.device import start_device
from megatron_qwen3vl.parallel.groups import Groups, shutdown, start_groups
from megatron_qwen3vl.train.optimizer import build_optimizer, learning_rate, set_learning_rate, step_optimizer
from tests.distributed.spawn import run_ranks
from tests.distributed.stock_gpt import Shape, build, optimizer_config, train, whole_layout


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    groups = start_groups(whole_layout(1), start_device("cpu"))
    yield groups
    groups.stop()
    shutdown()


def weights(chunks: list) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in chunks[0].module.named_parameters()}


def everything(chunks: list, optimizer: object) -> list:
    """Weights, masters, moments and step counts, by value."""
    state = list(weights(chunks).values())
    for part in optimizer.chained_optimizers:
        inner = part.optimizer
        state += [p.detach().clone() for p in part.get_parameters()]
        state += [moment.clone() for entry in inner.state.values() for moment in entry.values()]
        state += [group["step"] for group in inner.param_groups]
    return state


def same(one: list, other: list) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True)
    )


def test_three_steps_equal_torch_adamw(groups: Groups) -> None:
    config = optimizer_config(clip_grad=0.5)
    ours = build(groups.layout, Shape(tied=False))
    reference = build(groups.layout, Shape(tied=False))
    optimizer = build_optimizer(ours, config, "float32")
    named = list(reference[0].module.named_parameters())
    theirs = torch.optim.AdamW(
        [
            {"params": [p for _, p in named if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for _, p in named if p.dim() == 1], "weight_decay": 0.0},
        ],
        betas=config.betas,
        eps=config.eps,
    )
    for number in range(1, 4):
        rate = learning_rate(config, number, 10)
        train(ours, groups, number)
        set_learning_rate(optimizer, rate)
        result = step_optimizer(optimizer, groups)

        train(reference, groups, number)
        for _, parameter in named:
            parameter.grad = parameter.main_grad.clone()
        norm = float(torch.nn.utils.clip_grad_norm_([p for _, p in named], config.clip_grad))
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
        theirs.zero_grad()  # or megatron's hooks would add it to the next step's

        assert not result.skipped
        assert result.grad_norm == pytest.approx(norm, rel=1e-6) and norm > config.clip_grad
        for name, value in weights(ours).items():
            torch.testing.assert_close(value, dict(named)[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_refused_step_changes_nothing(groups: Groups, dtype: str, bad: float | None) -> None:
    chunks = build(groups.layout, Shape(bfloat16=dtype == "bfloat16"))
    optimizer = build_optimizer(chunks, optimizer_config(), dtype)
    train(chunks, groups, 1)
    assert not step_optimizer(optimizer, groups).skipped
    before = everything(chunks, optimizer)

    train(chunks, groups, 2)
    if bad is not None:
        list(chunks[0].module.parameters())[-1].main_grad.view(-1)[-1] = bad
    result = step_optimizer(optimizer, groups, apply=bad is not None)
    assert result.skipped
    assert math.isfinite(result.grad_norm) == (bad is None)
    assert same(before, everything(chunks, optimizer))

    train(chunks, groups, 2)
    assert not step_optimizer(optimizer, groups).skipped
    assert not same(before, everything(chunks, optimizer))


def test_large_finite_gradients_are_clipped_to_the_limit(groups: Groups) -> None:
    chunks = build(groups.layout, Shape())
    optimizer = build_optimizer(chunks, optimizer_config(clip_grad=0.25), "float32")
    train(chunks, groups, 1)
    norm = math.sqrt(sum(float(p.main_grad.double().square().sum()) for p in chunks[0].module.parameters()))
    result = step_optimizer(optimizer, groups)
    clipped = math.sqrt(sum(float(p.main_grad.double().square().sum()) for p in chunks[0].module.parameters()))
    assert result.grad_norm == pytest.approx(norm, rel=1e-6)
    assert clipped == pytest.approx(norm * 0.25 / (norm + 1e-6), rel=1e-6)


def test_groups_decay_and_scale(groups: Groups) -> None:
    chunks = build(groups.layout, Shape())
    scale = LearningRateScale(vision=0.1, merger=1.0, language=0.5)
    optimizer = build_optimizer(chunks, optimizer_config(lr_scale=scale), "float32")
    set_learning_rate(optimizer, 0.2)
    seen = 0
    for group in optimizer.param_groups:
        assert group["lr"] == 0.2 * 0.5
        for parameter in group["params"]:
            seen += parameter.numel()
    by_decay = {group["weight_decay"]: sum(p.numel() for p in group["params"]) for group in optimizer.param_groups}
    one_dimensional = sum(p.numel() for p in chunks[0].module.parameters() if p.dim() == 1)
    assert by_decay == {0.1: seen - one_dimensional, 0.0: one_dimensional}


def test_frozen_parameters_have_neither_gradients_nor_state(groups: Groups) -> None:
    chunks = build(groups.layout, Shape(trainable=r"mlp\.linear_fc1"))
    optimizer = build_optimizer(chunks, optimizer_config(), "float32")
    before = weights(chunks)
    train(chunks, groups, 1)
    assert not step_optimizer(optimizer, groups).skipped
    moved = {name for name, value in weights(chunks).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "mlp.linear_fc1" in name}
    trainable = sum(p.numel() for p in chunks[0].module.parameters() if p.requires_grad)
    assert sum(buffer.grad_data.numel() for buffer in chunks[0].buffers) < trainable + 256  # padding
    assert sum(m.numel() for e in optimizer.optimizer.state.values() for m in e.values()) == 2 * trainable
    assert all(not hasattr(p, "main_grad") for p in chunks[0].module.parameters() if not p.requires_grad)


def test_learning_rate() -> None:
    config = optimizer_config(lr=2.0, min_lr=0.5, warmup_steps=4, schedule="cosine")
    assert [learning_rate(config, k, 12) for k in (1, 2, 4)] == [0.5, 1.0, 2.0]
    assert learning_rate(config, 8, 12) == pytest.approx(0.5 + 1.5 * 0.5)  # half way: cos(pi / 2) = 0
    assert learning_rate(config, 12, 12) == 0.5
    linear = optimizer_config(lr=2.0, min_lr=0.5, warmup_steps=0, schedule="linear")
    assert [learning_rate(linear, k, 4) for k in (1, 2, 4)] == [1.625, 1.25, 0.5]
    constant = optimizer_config(lr=2.0, warmup_steps=1, schedule="constant")
    assert [learning_rate(constant, k, 3) for k in (1, 2, 3)] == [2.0, 2.0, 2.0]
    assert learning_rate(config, 4, 2) == 2.0  # a stage shorter than its warm-up
    with pytest.raises(UserError, match="schedule=step"):
        learning_rate(optimizer_config(schedule="step"), 9, 10)


# ---- on two processes


def norms(axes: dict, trainable: str, poison: int | None) -> list[tuple[float, bool]]:
    """(norm, skipped) of two steps; at the second, rank ``poison`` has a nan in its own gradients."""
    layout = whole_layout(2, **axes)
    groups = start_groups(layout, start_device("cpu"))
    chunks = build(layout, Shape(tied="output" not in trainable, trainable=trainable))
    optimizer = build_optimizer(chunks, optimizer_config(), "float32")
    results = []
    for number in (1, 2):
        train(chunks, groups, number)
        before = everything(chunks, optimizer)
        if number == 2 and poison == groups.rank:
            norm = next(p for n, p in chunks[0].module.named_parameters() if n.endswith("q_layernorm.weight"))
            norm.main_grad.fill_(math.nan)
        result = step_optimizer(optimizer, groups)
        assert not result.skipped or same(before, everything(chunks, optimizer))
        results.append((result.grad_norm, result.skipped))
    return results


def test_the_norm_is_the_same_in_every_layout() -> None:
    alone = run_ranks(norms_of_one, 1)[0]
    for axes in ({}, {"tp": 2}, {"tp": 2, "sp": True}, {"pp": 2}, {"pp": 2, "vpp": 2}):
        for rank in run_ranks(norms, 2, axes, "", None):
            assert [skipped for _, skipped in rank] == [False, False]
            assert [norm for norm, _ in rank] == pytest.approx(alone, rel=1e-5), axes


def norms_of_one() -> list[float]:
    layout = whole_layout(1)
    groups = start_groups(layout, start_device("cpu"))
    chunks = build(layout, Shape())
    optimizer = build_optimizer(chunks, optimizer_config(), "float32")
    results = []
    for number in (1, 2):
        train(chunks, groups, number)
        results.append(step_optimizer(optimizer, groups).grad_norm)
    return results


@pytest.mark.parametrize("axes", [{}, {"tp": 2}, {"pp": 2}])
def test_one_rank_with_nan_stops_the_step_on_all(axes: dict) -> None:
    # Under tp the poisoned tensor is a replica that the norm of rank 1 leaves out.
    for rank in run_ranks(norms, 2, axes, "", 1):
        assert [skipped for _, skipped in rank] == [False, True]


@pytest.mark.parametrize(
    "trainable",
    [
        r"word_embeddings|output",  # untied
        r"^language\.embedding(?!output)",  # untied; nothing on the last pipeline rank
        r"layers\.1\.mlp\.linear_fc1",  # tied and frozen, as in S0
    ],
)
def test_a_pipeline_with_frozen_parts_agrees(trainable: str) -> None:
    first, second = run_ranks(norms, 2, {"pp": 2}, trainable, None)
    assert first == second and not first[0][1] and first[0][0] > 0
