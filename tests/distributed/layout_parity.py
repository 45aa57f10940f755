"""One step (or three) of the trainer's own path in any layout, compared tensor by tensor with transformers'.

The reference is computed once per model; every process then runs many layouts one after another and returns, for each,
what is left of the difference. Which samples a pack holds depends on the layout here, as the gradient must not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from megatron_qwen3vl.batch import Pack
from megatron_qwen3vl.config.schema import LearningRateScale, ModelConfig, OptimizerConfig, ParallelConfig
from tests.parity import reference as ref

EXPONENT = 0.5
NUM_STEPS = 3
EVERYTHING = ("vision", "merger", "language")
OPTIMIZER = OptimizerConfig(
    lr=1e-3,
    min_lr=0.0,
    betas=(0.9, 0.95),
    eps=1e-8,
    weight_decay=0.1,
    clip_grad=1.0,
    schedule="constant",
    warmup_steps=0,
    lr_scale=LearningRateScale(vision=1.0, merger=1.0, language=1.0),
    carry=False,
)
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Expected:
    """transformers' first step, and its weights after ``NUM_STEPS`` steps of torch's AdamW; all by our names."""

    model: ModelConfig
    steps: tuple[tuple[ref.Case, ...], ...]
    weights: Weights
    gradients: Weights
    losses: tuple[float, ...]
    trained: Weights


@dataclass(frozen=True)
class Job:
    """One layout of one model; ``num_steps`` 1 compares gradients, more also the weights after so many steps."""

    kind: str
    parallel: ParallelConfig
    num_steps: int
    trainable: tuple[str, ...] = EVERYTHING


# Of one rank, per tensor: (which shard of it, ||difference||^2, ||reference||^2).
Difference = dict[str, tuple[int, float, float]]


@dataclass(frozen=True)
class Outcome:
    """``messages``: of this rank, into how many the gradients are divided, and how many of them were on their way when
    the backward of a step ended, step after step.
    """

    gradients: Difference
    trained: Difference | None
    losses: tuple[float, ...]
    messages: tuple[tuple[int, int], ...]


def expect(kind: str) -> Expected:
    """Run transformers."""
    model = ref.model_config(kind)
    twin = ref.transformers_model(model)
    steps = make_steps(model, twin, NUM_STEPS)
    weights = _ours(twin.state_dict(), model)
    decayed = [p for p in twin.parameters() if p.dim() > 1]
    others = [p for p in twin.parameters() if p.dim() <= 1]
    adam = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": OPTIMIZER.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=OPTIMIZER.lr,
        betas=OPTIMIZER.betas,
        eps=OPTIMIZER.eps,
    )
    losses, gradients = [], {}
    for number, cases in enumerate(steps):
        answer = ref.run_reference(twin, cases, EXPONENT)
        losses.append(answer.loss)
        if number == 0:
            gradients = _ours(answer.gradients, model)  # copies: clipping works in place
        for name, parameter in twin.named_parameters():
            parameter.grad = answer.gradients[name]
        torch.nn.utils.clip_grad_norm_(twin.parameters(), OPTIMIZER.clip_grad)
        adam.step()
    return Expected(model, tuple(steps), weights, gradients, tuple(losses), _ours(twin.state_dict(), model))


def make_steps(model: ModelConfig, twin: torch.nn.Module, count: int) -> list[tuple[ref.Case, ...]]:
    """14 samples a step, others in each."""
    return [
        tuple(ref.with_positions([*ref.standard_cases(model, 2 * n), *ref.standard_cases(model, 2 * n + 1)], twin))
        for n in range(count)
    ]


def _ours(tensors: Weights, model: ModelConfig) -> Weights:
    named = {name: tensor.detach() for name, tensor in tensors.items()}
    return {name: tensor.clone() for name, tensor in ref.ours_from_transformers(named, model).items()}


def make_packs(model: ModelConfig, cases: Sequence[ref.Case], count: int, multiple: int) -> list[Pack]:
    """``count`` packs of one length, a multiple of ``multiple`` (tp x cp divides it); the last holds text alone."""
    text = [case for case in cases if not len(case.sample.grids)]
    others = [case for case in cases if len(case.sample.grids)]
    contents = [others[first :: count - 1] for first in range(count - 1)] + [text]
    sizes = [sum(len(case.sample.input_ids) for case in content) for content in contents]
    length = -(-max(sizes) // multiple) * multiple
    return [
        ref.make_pack(lane, content, length - size, model.vision_config.patch_values)
        for lane, (content, size) in enumerate(zip(contents, sizes, strict=True))
    ]


def run_jobs(world_size: int, jobs: Sequence[Job], references: dict[str, Expected]) -> list[Outcome]:
    """In each process: every job in turn."""
    import layout_parity  # spawn.py loads this file under another name, whose classes nobody else could unpickle

    return [layout_parity.run_job(world_size, job, references[job.kind]) for job in jobs]


def run_job(world_size: int, job: Job, expected: Expected) -> Outcome:
    from megatron_qwen3vl.train.forward import complete_weights

    running = start(world_size, expected.model, job.parallel, expected.weights, job.trainable)
    losses, gradients = [], {}
    if job.parallel.bucket_size is not None:
        backward(running, expected.steps[0])  # megatron reduces a model's first gradients after the backward
    for number in range(job.num_steps):
        losses.append(backward(running, expected.steps[number]))
        if number == 0:
            gather_gradients(running.chunks)
            gradients = {
                name: compare(name, parameter, parameter.main_grad, expected.gradients[name], running.marks)
                for name, parameter in running.named
                if parameter.requires_grad
            }
        if job.num_steps > 1:
            update(running)
    complete_weights(running.chunks)
    trained = {n: compare(n, p, p.data, expected.trained[n], running.marks) for n, p in running.named}
    running.groups.stop()
    three_steps = trained if job.num_steps == NUM_STEPS else None
    return Outcome(gradients, three_steps, tuple(losses), tuple(running.messages))


@dataclass(frozen=True)
class Running:
    """A model that trains in some layout. ``named`` are its parameters under their names in the whole model."""

    model: ModelConfig
    parallel: ParallelConfig
    groups: Any
    chunks: list[Any]
    named: list[tuple[str, Any]]
    marks: Any  # megatron's process groups
    optimizer: Any
    messages: list[tuple[int, int]]  # see Outcome


def start(
    world_size: int,
    model: ModelConfig,
    parallel: ParallelConfig,
    weights: Weights,
    trainable: Sequence[str] = EVERYTHING,
    optimizer_config: OptimizerConfig = OPTIMIZER,
    dtype: str = "float32",
    aux_coefficient: float = 0.0,
) -> Running:
    from megatron.core.utils import get_model_config, unwrap_model

    from megatron_qwen3vl.model.build import build_model, global_parameters
    from megatron_qwen3vl.parallel.device import start_device
    from megatron_qwen3vl.parallel.groups import start_groups
    from megatron_qwen3vl.parallel.layout import Layout
    from megatron_qwen3vl.train.forward import prepare_schedule
    from megatron_qwen3vl.train.optimizer import build_optimizer, set_learning_rate

    groups = start_groups(Layout.from_config(parallel, world_size), start_device("cpu"))
    loss = ref.loss_config(EXPONENT, aux_coefficient)
    chunks = build_model(model, parallel, groups, dtype, loss, trainable, seed=None)
    named = [pair for chunk in chunks for pair in global_parameters(unwrap_model(chunk))]
    marks = unwrap_model(chunks[0]).pg_collection
    for name, parameter in named:
        parameter.data.copy_(own_part(name, weights[name], parameter, marks)[1])
    prepare_schedule(chunks)
    config = get_model_config(chunks[0])
    messages: list[tuple[int, int]] = []
    config.finalize_model_grads_func = partial(_count_messages, config.finalize_model_grads_func, messages)
    optimizer = build_optimizer(chunks, optimizer_config, dtype)
    set_learning_rate(optimizer, optimizer_config.lr)
    return Running(model, parallel, groups, chunks, named, marks, optimizer, messages)


def backward(
    running: Running, cases: Sequence[ref.Case], num_packs: int | None = None, forward_only: bool = False
) -> float:
    """Gradients of one global batch of these samples; its loss. By default each rank has as few packs as it can."""
    from megatron_qwen3vl.batch import collate
    from megatron_qwen3vl.train import figures
    from megatron_qwen3vl.train.forward import run_schedule

    groups, parallel = running.groups, running.parallel
    device = groups.device.device
    count = num_packs or groups.dp_size * max(2, parallel.pp)
    packs = make_packs(running.model, cases, count, multiple=8)[groups.dp_rank :: groups.dp_size]
    total = figures.count(packs, EXPONENT, groups, device).normaliser
    for chunk in running.chunks:
        chunk.zero_grad_buffer()
    running.optimizer.zero_grad()
    batches = [collate([pack], EXPONENT, device) for pack in packs]
    report = run_schedule(running.chunks, batches, total, groups.dp_size, forward_only)
    return figures.gather_losses(report, ["test"], EXPONENT, total, False, True, groups, device).loss


def update(running: Running) -> None:
    from megatron_qwen3vl.train.optimizer import step_optimizer

    assert not step_optimizer(running.optimizer, running.groups).skipped


def _count_messages(finalize: Any, messages: list[tuple[int, int]], chunks: Any, *rest: Any, **named: Any) -> None:
    buckets = [bucket for chunk in chunks for bucket in chunk.bucket_groups + chunk.expert_parallel_bucket_groups]
    messages.append((len(buckets), sum(bucket.grad_reduce_handle is not None for bucket in buckets)))
    finalize(chunks, *rest, **named)


def gather_gradients(chunks: Any) -> None:
    """The distributed optimizer needs a rank's own shard only; the comparison wants all."""
    for chunk in chunks:
        for group in chunk.bucket_groups + chunk.expert_parallel_bucket_groups:
            ranks = group.intra_distributed_optimizer_instance_group
            for bucket in group.buckets:
                own = bucket.grad_data.chunk(ranks.size())[ranks.rank()].clone()
                torch.distributed.all_gather_into_tensor(bucket.grad_data, own, group=ranks)


def own_part(name: str, whole: torch.Tensor, parameter: Any, marks: Any) -> tuple[int, torch.Tensor]:
    """(which shard, the shard) of a tensor on this rank, as megatron-core marks it."""
    group = marks.expt_tp if ".experts." in name else marks.tp
    if not parameter.tensor_model_parallel or group.size() == 1:
        return 0, whole
    pieces = whole.chunk(group.size() * parameter.partition_stride, dim=parameter.partition_dim)
    return group.rank(), torch.cat(pieces[group.rank() :: group.size()], dim=parameter.partition_dim)


def compare(name: str, parameter: Any, own: torch.Tensor, whole: torch.Tensor, marks: Any) -> tuple[int, float, float]:
    shard, reference = own_part(name, whole, parameter, marks)
    reference = reference.double()
    return shard, (own.double() - reference).norm().item() ** 2, reference.norm().item() ** 2


def errors(ranks: Sequence[Difference], whole: Weights) -> dict[str, float]:
    """||g - g'|| / ||g'|| per tensor over its shards, of the worst replica of each; every tensor must be there."""
    assert set().union(*ranks) == whole.keys()
    found = {}
    for name in whole:
        shards: dict[int, tuple[float, float]] = {}
        for shard, error, norm in (seen[name] for seen in ranks if name in seen):
            shards[shard] = max(shards.get(shard, (0.0, 0.0)), (error, norm))
        error, norm = (sum(values) for values in zip(*shards.values(), strict=True))
        found[name] = (error / norm) ** 0.5 if norm else error**0.5
    return found


def module_of_error(name: str) -> str:
    from megatron_qwen3vl.model.build import module_of

    return "experts" if ".experts." in name else module_of(name)


def worst_by_module(found: dict[str, float]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for name, error in found.items():
        module = module_of_error(name)
        worst[module] = max(worst.get(module, 0.0), error)
    return worst


def layout(**changes: int | bool | str | tuple[int, ...]) -> ParallelConfig:
    return replace(ref.PLAIN, **changes)
