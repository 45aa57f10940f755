"""A checkpoint of one layout read in another: the same weights, moments and step, and the same two steps after it.

origin   train two steps, save; two more, save again: the run that was never interrupted
hop      load the first save in another layout, save; two more steps, save again
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from layout_parity import Weights, backward, start, update

from megatron_qwen3vl.config.schema import ModelConfig, ParallelConfig
from tests.parity import reference as ref

Steps = Sequence[Sequence[ref.Case]]  # the samples of four steps


@dataclass(frozen=True)
class Hop:
    """``without_moments`` loads the weights alone: the control that must fail."""

    source: str
    target: str
    parallel: ParallelConfig
    without_moments: bool = False

    def folder(self, root: Path) -> Path:
        return root / f"{self.source}-{self.target}{'-control' if self.without_moments else ''}"


def run_origins(
    world_size: int, root: str, model: ModelConfig, weights: Weights, steps: Steps, layouts: dict[str, ParallelConfig]
) -> None:
    """In each process: every layout trains from the same weights."""
    for name, parallel in layouts.items():
        running = start(world_size, model, parallel, weights)
        for number, cases in enumerate(steps, start=1):
            _ = backward(running, cases), update(running)
            if number in (2, 4):
                _save(Path(root) / name, number, running)
        running.groups.stop()


def run_hops(
    world_size: int, root: str, model: ModelConfig, weights: Weights, steps: Steps, hops: Sequence[Hop]
) -> None:
    """In each process: every hop in turn; the weights before loading are another's."""
    from megatron_qwen3vl.train.checkpoint import load_checkpoint

    others = {name: weight + 1 for name, weight in weights.items()}
    for hop in hops:
        running = start(world_size, model, hop.parallel, others)
        optimizer = None if hop.without_moments else running.optimizer
        load_checkpoint(_folder(Path(root) / hop.source, 2), running.chunks, optimizer, running.groups)
        if hop.without_moments:
            running.optimizer.reload_model_params()
        else:
            _save(hop.folder(Path(root)), 2, running)
        for cases in steps[2:]:
            _ = backward(running, cases), update(running)
        _save(hop.folder(Path(root)), 4, running)
        running.groups.stop()


def _save(root: Path, number: int, running: Any) -> None:
    from megatron_qwen3vl.train.saving import save_checkpoint

    save_checkpoint(_folder(root, number), running.chunks, running.optimizer, {"step": number}, running.groups)


def _folder(root: Path, number: int) -> Path:
    return root / f"step_{number:08d}"


@contextmanager
def reading() -> Iterator[None]:
    """megatron reads checkpoints only where processes have met; here it is one."""
    from megatron_qwen3vl.parallel.device import start_device
    from megatron_qwen3vl.parallel.groups import join, shutdown

    join(start_device("cpu"))
    try:
        yield
    finally:
        shutdown()


def whole_state(root: Path, number: int) -> tuple[int, dict[str, torch.Tensor]]:
    """(step count, every tensor of a checkpoint, whole): independent of the layout that wrote it."""
    from megatron.core import dist_checkpointing

    folder = str(_folder(root, number) / "tensors")
    tensors = dist_checkpointing.load_plain_tensors(folder)
    step = dist_checkpointing.load_common_state_dict(folder)["optimizer_step"]
    return step, {key: value for key, value in tensors.items() if isinstance(value, torch.Tensor)}


def unequal(one: Path, other: Path) -> list[str]:
    """Tensors that differ in any bit after the load, the step count included."""
    (step, tensors), (their_step, theirs) = whole_state(one, 2), whole_state(other, 2)
    assert step == their_step == 2 and tensors.keys() == theirs.keys()
    assert any(".exp_avg_sq." in key for key in tensors) and any(key.startswith("language") for key in tensors)
    return [key for key in tensors if not torch.equal(tensors[key], theirs[key])]


@dataclass(frozen=True)
class Drift:
    """Worst ||a - b|| / ||b|| of a weight two steps after the load, the ViT's key biases apart.

    Softmax does not see what is added to all keys alike; turned by rotary angles a key bias is nearly that. Its
    gradient is some 2,000 times smaller than its neighbours', about 1e-8: rounding that Adam divides by rounding.
    """

    weights: float
    key_biases: float

    def within(self, tolerance: float) -> bool:
        return self.weights <= tolerance and self.key_biases <= 10 * tolerance


def drift(one: Path, other: Path) -> Drift:
    (_, tensors), (_, theirs) = whole_state(one, 4), whole_state(other, 4)
    weights, key_biases = [], []
    for key, expected in theirs.items():
        if key.startswith("optimizer"):
            continue
        found = tensors[key]
        if re.fullmatch(r"vision\.layers\.\d+\.self_attention\.linear_qkv\.bias", key):
            expected, found = (x.unflatten(0, (ref.VISION_HEADS, 3, -1)) for x in (expected, found))
            key_biases.append(_distance(found[:, 1], expected[:, 1]))
            expected, found = expected[:, ::2], found[:, ::2]
        weights.append(_distance(found, expected))
    assert len(weights) > 20 and key_biases
    return Drift(max(weights), max(key_biases))


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).double().norm() / expected.double().norm())
