"""One process, one layout, for every test of a file; tiny models with transformers' weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from megatron_qwen3vl.batch import IGNORE, Batch
from megatron_qwen3vl.config.schema import LossConfig, ModelConfig, ParallelConfig
from megatron_qwen3vl.model.build import build_chunks, global_parameters
from megatron_qwen3vl.model.qwen3vl import Qwen3VL
from megatron_qwen3vl.parallel.device import start_device
from megatron_qwen3vl.parallel.groups import Groups, shutdown, start_groups
from megatron_qwen3vl.parallel.layout import Layout
from tests.parity import reference as ref


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    yield start_groups(Layout.from_config(ref.PLAIN, 1), start_device("cpu"))
    shutdown()


@dataclass(frozen=True)
class Pair:
    """A model, its transformers twin, the standard cases, and what transformers says about them."""

    model: ModelConfig
    twin: torch.nn.Module
    cases: list[ref.Case]
    expected: ref.Reference
    groups: Groups

    def build(self, loss: LossConfig | None = None, parallel: ParallelConfig = ref.PLAIN, **changes: str) -> Qwen3VL:
        """Our model with the twin's weights; ``changes`` to the plain ParallelConfig."""
        (chunk,) = build_chunks(
            self.model, replace(parallel, **changes), self.groups, "float32", loss or ref.loss_config()
        )
        weights = ref.ours_from_transformers(dict(self.twin.state_dict()), self.model)
        parameters = dict(global_parameters(chunk))
        assert parameters.keys() == weights.keys(), parameters.keys() ^ weights.keys()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])
        return chunk.train()

    def expected_gradients(self) -> dict[str, torch.Tensor]:
        return ref.ours_from_transformers(self.expected.gradients, self.model)


@pytest.fixture(scope="module")
def pairs(groups: Groups) -> Callable[[str], Pair]:
    made: dict[str, Pair] = {}

    def make(kind: str) -> Pair:
        if kind not in made:
            model = ref.model_config(kind)
            twin = ref.transformers_model(model)
            cases = ref.with_positions(ref.standard_cases(model), twin)
            made[kind] = Pair(model, twin, cases, ref.run_reference(twin, cases), groups)
        return made[kind]

    return make


def normaliser(cases: list[ref.Case], exponent: float = 0.5) -> float:
    counts = [case.sample.num_labels for case in cases]
    return sum(count ** (1 - exponent) for count in counts if count)


def backward(chunk: torch.nn.Module, batches: list[Batch], total: float) -> float:
    """Gradients of all micro-batches; returns the loss."""
    loss = 0.0
    for batch in batches:
        weights = batch.loss_weights[batch.labels != IGNORE]
        part = (chunk(batch) * weights).sum() / total
        part.backward()
        loss += part.item()
    return loss


def gradients(chunk: Qwen3VL) -> dict[str, torch.Tensor]:
    """Every parameter's gradient; a missing one is an error, not a zero."""
    missing = [name for name, parameter in global_parameters(chunk) if parameter.grad is None]
    assert not missing, missing
    return {name: parameter.grad for name, parameter in global_parameters(chunk)}
