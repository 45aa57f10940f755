"""G6: what a step costs beside forward, backward and optimizer.

    OMP_NUM_THREADS=1 python benchmarks/framework_overhead.py [--steps 6]

The trainer's own StageRun.step, with all that a run has switched on except wandb: planning and packing, collating, the
counts and losses over all ranks, the refusal of non-finite steps, metrics.jsonl and samples.jsonl. Samples come from
memory, since decoding is the workers' time. CPU seconds of one process. Model and samples are those of
step_vs_transformers.py, in two packs of 2,048 positions a step. Two figures:

    parts   the step minus the time inside the model's forward, autograd's backward and step_optimizer: exact, but
            megatron's gradient hooks run inside the backward and are not counted
    bare    the step against a loop of eight lines on the same batches (the same Qwen3VL without megatron's wrapping,
            loss.backward(), clip_grad_norm_, torch's fused AdamW), taking turns: holds everything, and the noise
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step_vs_transformers import ADAM, EXPONENT, LOSS, MODEL, PLAIN, make_sample

from megatron_qwen3vl.batch import IGNORE, Pack, Sample, collate
from megatron_qwen3vl.config.load import load_config
from megatron_qwen3vl.data.loader import Loader, LoaderConfig, Step
from megatron_qwen3vl.data.survey import Survey, survey_of
from megatron_qwen3vl.data.workers import WorkerLimits
from megatron_qwen3vl.model.build import build_chunks, build_model, initialize
from megatron_qwen3vl.model.qwen3vl import Qwen3VL
from megatron_qwen3vl.parallel.device import start_device
from megatron_qwen3vl.parallel.groups import Groups, shutdown, start_groups
from megatron_qwen3vl.parallel.layout import Layout
from megatron_qwen3vl.train import trainer
from megatron_qwen3vl.train.assemble import DataFacts, StageParts, pack_cost
from megatron_qwen3vl.train.feed import Feed
from megatron_qwen3vl.train.forward import prepare_schedule
from megatron_qwen3vl.train.ingredients import find_ingredients
from megatron_qwen3vl.train.loss import normaliser
from megatron_qwen3vl.train.optimizer import build_optimizer
from megatron_qwen3vl.train.records import open_records
from megatron_qwen3vl.train.stop import StopSignal
from megatron_qwen3vl.train.validation import Validation

LENGTH, PACKS = 2048, 2
OVERRIDES = [
    "stages.s1.micro_batch_size=1",
    "stages.s1.trainable=[vision,merger,language]",
    "validation.every=0",
    "log.progress=false",
    "log.wandb=disabled",
]


class Memory:
    """A source whose samples are made beforehand."""

    slice_size = 1

    def __init__(self, count: int, longest: int = LENGTH) -> None:
        rng = np.random.default_rng(0)
        drawn = np.exp(rng.normal(np.log(120), 0.8, count)).astype(int).clip(24, longest)
        self.name = "memory"
        self.samples = [make_sample(f"memory/{n}", int(length), rng) for n, length in enumerate(drawn)]
        self.lengths = np.array([len(s.input_ids) for s in self.samples], np.int32)
        self.patches = np.array([len(s.patches) for s in self.samples if s.patches is not None], np.int32)

    def __len__(self) -> int:
        return len(self.samples)

    def survey(self, sequence_length: int) -> Survey:
        return survey_of(self.lengths, sequence_length)

    def key(self, row: int) -> str:
        return self.samples[row].key

    def domain(self, row: int) -> str:
        return self.name

    def reason(self, row: int) -> str:
        raise NotImplementedError

    def read(self, row: int, pixels: bool) -> Sample:
        return self.samples[row]


class RememberingLoader(Loader):
    """Keeps the packs that it handed out last."""

    packs: tuple[Pack, ...] = ()

    def next(self) -> Step:
        step = super().next()
        self.packs = step.packs
        return step


class Clock:
    """CPU seconds spent inside the functions it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **named: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **named)
            finally:
                self.seconds += time.process_time() - began

        return timed


def stage_run(folder: Path, groups: Groups, length: int = LENGTH) -> tuple[trainer.StageRun, RememberingLoader]:
    """``PACKS`` packs of ``length`` positions a step on each data-parallel rank."""
    packs = PACKS * groups.dp_size
    sizes = [f"stages.s1.sequence_length={length}", f"stages.s1.global_batch_size={packs}"]
    config = load_config([f"run.dir={folder}", *OVERRIDES, *sizes])
    ingredients = find_ingredients(config.model, "float32", None, None)
    config = dataclasses.replace(config, model=MODEL, loss=LOSS)
    loader = RememberingLoader(
        LoaderConfig(
            seed=0,
            stage="s1",
            sequence_length=length,
            global_batch_size=packs,
            lookahead=config.data.lookahead,
            pad_id=0,
            num_ranks=groups.dp_size,
            rank=groups.dp_rank,
            vision_dp=1,
            workers=0,
            prefetch=0,
            limits=WorkerLimits(300.0, None),
            pixels=True,
            cost=pack_cost(MODEL),
        ),
        [Memory(400, length)],
        [1.0],
    )
    stage = config.stages["s1"]
    facts = DataFacts(["benchmark"], {}, [], loader.shares, loader.num_left_out, {}, ingredients.limits)
    chunks = build_model(MODEL, PLAIN, groups, "float32", LOSS, stage.trainable, seed=1)
    prepare_schedule(chunks)
    parts = StageParts(
        chunks=chunks,
        optimizer=build_optimizer(chunks, ADAM, "float32"),
        feed=Feed(groups, lambda: (loader, facts), stage.num_steps),
        tokenizer=ingredients.tokenizer,
        limits=ingredients.limits,
        side_files={},
    )
    records = open_records(folder, {}, True, "disabled", "benchmark", {}, writer=groups.is_writer)
    validation = Validation(config, "s1", ingredients, parts, groups, groups.device)
    origin = trainer.Origin(trainer.Progress(), None)
    run = trainer.StageRun(config, "s1", parts, origin, groups, groups.device, records, StopSignal(), validation)
    return run, loader


class Bare:
    """The loop that anyone would write for one process."""

    def __init__(self, groups: Groups) -> None:
        (self.model,) = build_chunks(MODEL, PLAIN, groups, "float32", LOSS)
        initialize([self.model], MODEL, seed=1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=ADAM.lr, betas=ADAM.betas, fused=True)

    def seconds(self, packs: tuple[Pack, ...]) -> float:
        batches = [collate([pack], EXPONENT, torch.device("cpu")) for pack in packs]
        total = normaliser((d.num_labels for pack in packs for d in pack.documents), EXPONENT)
        began = time.process_time()
        self.optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            weights = batch.loss_weights[batch.labels != IGNORE]
            loss = (self.model(batch) * weights).sum() / total
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), ADAM.clip_grad, foreach=True)
        self.optimizer.step()
        return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    groups = start_groups(Layout.from_config(PLAIN, 1), start_device("cpu"))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        run, loader = stage_run(Path(folder), groups)
        bare = Bare(groups)
        plain = Qwen3VL.forward, torch.autograd.backward, trainer.step_optimizer
        rows = []
        for number in range(steps + 1):
            Qwen3VL.forward, torch.autograd.backward, trainer.step_optimizer = map(clock.wrap, plain)
            clock.seconds, began = 0.0, time.process_time()
            run.step()
            whole = time.process_time() - began
            Qwen3VL.forward, torch.autograd.backward, trainer.step_optimizer = plain
            if number:  # the first step warms up, and checks its gradients
                rows.append((whole, clock.seconds, bare.seconds(loader.packs)))
            else:
                bare.seconds(loader.packs)
    table = np.array(rows)
    parts = table[:, 0] / table[:, 1] - 1
    against = table[:, 0] / table[:, 2] - 1
    print(f"{steps} steps of {PACKS} x {LENGTH} positions, CPU seconds a step: median {np.median(table[:, 0]):.2f}")
    print(f"  parts: overhead minimum {parts.min():.2%}, median {np.median(parts):.2%}, maximum {parts.max():.2%}")
    print(
        f"  bare:  overhead {table[:, 0].min() / table[:, 2].min() - 1:.1%} of the minima, "
        f"{np.median(table[:, 0]) / np.median(table[:, 2]) - 1:.1%} of the medians "
        f"(turn by turn {against.min():.1%} to {against.max():.1%})"
    )
    shutdown()


if __name__ == "__main__":
    main()
