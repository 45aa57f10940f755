"""Reducing gradients in the backward and gathering weights in the forward changes no bit of a run, whatever happens
between two steps: a held-out forward, a refused step, a save, a resume without overlap.

Two data-parallel ranks and no clipping: a sum of two has one order, however the gradients are divided into messages.
(With more ranks, or clipping by a norm over other parts, the last bits differ; test_layout_parity.py compares those.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from checkpoint_layouts import reading, whole_state
from layout_parity import EVERYTHING, OPTIMIZER, Weights, backward, layout, make_steps, start, update
from layouts import BUCKET
from spawn import run_ranks

from megatron_qwen3vl.config.schema import ModelConfig, ParallelConfig
from tests.parity import reference as ref

NO_CLIPPING = replace(OPTIMIZER, clip_grad=0.0)
Steps = Sequence[Sequence[ref.Case]]


@dataclass(frozen=True)
class Run:
    """``folder`` receives two checkpoints; with ``resume`` the run goes on from the first of another's."""

    folder: str
    parallel: ParallelConfig
    trainable: tuple[str, ...] = EVERYTHING
    dtype: str = "float32"
    resume: str | None = None


@dataclass(frozen=True)
class Outcome:
    losses: list[float]
    messages: list[tuple[int, int]]  # see layout_parity.Outcome
    reduced_in: set[torch.dtype]


def run_all(world_size: int, model: ModelConfig, weights: Weights, steps: Steps, runs: Sequence[Run]) -> list[Outcome]:
    """In each process: every run in turn."""
    import test_overlap  # spawn.py loads this file under another name, whose classes nobody else could unpickle

    return [test_overlap.run_one(world_size, model, weights, steps, run) for run in runs]


def run_one(world_size: int, model: ModelConfig, weights: Weights, steps: Steps, run: Run) -> Outcome:
    from megatron_qwen3vl.train.checkpoint import load_checkpoint
    from megatron_qwen3vl.train.optimizer import step_optimizer

    running = start(world_size, model, run.parallel, weights, run.trainable, NO_CLIPPING, run.dtype)
    losses = []
    if run.resume is None:
        losses.append(backward(running, steps[0]))
        update(running)
        losses.append(backward(running, steps[2], forward_only=True))
        losses.append(backward(running, steps[1]))
        assert step_optimizer(running.optimizer, running.groups, apply=False).skipped
        losses.append(backward(running, steps[0]))
        update(running)
        _save(running, Path(run.folder) / "step_00000002")
    else:
        load_checkpoint(Path(run.resume) / "step_00000002", running.chunks, running.optimizer, running.groups)
    losses.append(backward(running, steps[1]))
    update(running)
    losses.append(backward(running, steps[2]))
    update(running)
    _save(running, Path(run.folder) / "step_00000004")
    running.groups.stop()
    reduced_in = {buffer.grad_dtype for chunk in running.chunks for buffer in chunk.buffers}
    return Outcome(losses, list(running.messages), reduced_in)


def _save(running: Any, folder: Path) -> None:
    from megatron_qwen3vl.train.saving import save_checkpoint

    save_checkpoint(folder, running.chunks, running.optimizer, {"step": 0}, running.groups)


def samples(kind: str) -> tuple[ModelConfig, Weights, Steps]:
    model = ref.model_config(kind)
    twin = ref.transformers_model(model)
    weights = ref.ours_from_transformers({n: t.detach().clone() for n, t in twin.state_dict().items()}, model)
    return model, weights, [step[:7] for step in make_steps(model, twin, 3)]


def pair(root: Path, case: str, parallel: ParallelConfig, **chosen: Any) -> tuple[Run, Run]:
    """Without overlap; with it, in several messages."""
    return (
        Run(str(root / case / "plain"), replace(parallel, overlap=False), **chosen),
        Run(str(root / case / "overlap"), replace(parallel, overlap=True, bucket_size=BUCKET), **chosen),
    )


def unequal(one: Run, other: Run, step: int) -> list[str]:
    """Weights, masters and moments of two checkpoints that differ in any bit."""
    (count, tensors), (their_count, theirs) = (whole_state(Path(run.folder), step) for run in (one, other))
    assert count == their_count and tensors.keys() == theirs.keys() and len(tensors) > 100
    return [key for key in tensors if not torch.equal(tensors[key], theirs[key])]


def check(ranks: Sequence[Sequence[Outcome]], runs: Sequence[Run]) -> None:
    """Every pair of runs, one after another: the same numbers, and gradients were on their way before the end."""
    for index in range(0, len(runs), 2):
        plain, overlap = runs[index : index + 2]
        assert unequal(plain, overlap, 2) == unequal(plain, overlap, 4) == [], overlap
        for one, other in ((rank[index], rank[index + 1]) for rank in ranks):
            assert one.losses == other.losses, overlap
            assert {begun for _, begun in one.messages} == {0}, plain
            total = other.messages[0][0]
            assert other.messages == [(total, 0)] + [(total, total)] * 4, overlap  # megatron learns from the first
            assert other.reduced_in == {torch.float32}, overlap
        assert ranks[0][index + 1].messages[0][0] >= 3, overlap


def test_a_run_with_overlap_equals_one_without(tmp_path: Path) -> None:
    model, weights, steps = samples("dense_untied")
    runs = [
        *pair(tmp_path, "all", layout()),
        *pair(tmp_path, "s0", layout(), trainable=("merger",)),
        *pair(tmp_path, "16", layout(), dtype="bfloat16"),
    ]
    plain, overlap = runs[:2]
    resumed = [
        replace(plain, folder=str(tmp_path / "plain-after-overlap"), resume=overlap.folder),
        replace(overlap, folder=str(tmp_path / "overlap-after-plain"), resume=plain.folder),
    ]
    ranks = run_ranks(run_all, 2, 2, model, weights, steps, [*runs, *resumed])
    with reading():
        check(ranks, runs)
        assert unequal(resumed[0], plain, 4) == unequal(resumed[1], plain, 4) == []


def test_experts_with_overlap(tmp_path: Path) -> None:
    model, weights, steps = samples("moe")
    runs = [*pair(tmp_path, "dp2", layout()), *pair(tmp_path, "ep2", layout(ep=2))]
    ranks = run_ranks(run_all, 2, 2, model, weights, steps, runs)
    with reading():
        check(ranks, runs)


def test_an_interleaved_pipeline_with_overlap(tmp_path: Path) -> None:
    model, weights, steps = samples("dense_tied")
    runs = pair(tmp_path, "all", layout(pp=2, vpp=2))
    ranks = run_ranks(run_all, 4, 4, model, weights, steps, runs)
    with reading():
        check(ranks, runs)
