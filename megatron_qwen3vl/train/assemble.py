"""Everything one stage needs, built in the order data -> model -> optimizer -> weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from megatron_qwen3vl.config.paths import find_path
from megatron_qwen3vl.config.schema import ModelConfig, RunConfig, StageConfig, StorageConfig
from megatron_qwen3vl.convert.beginning import load_beginning
from megatron_qwen3vl.convert.hf import load_hf
from megatron_qwen3vl.data.lanes import Mixture
from megatron_qwen3vl.data.loader import Loader, LoaderConfig, PackCost
from megatron_qwen3vl.data.mixture import load_mixture
from megatron_qwen3vl.data.quarantine import refuse_bad_sources
from megatron_qwen3vl.data.source import Source, open_source
from megatron_qwen3vl.data.tokenizer import Tokenizer
from megatron_qwen3vl.data.vision import VisionLimits, processor_files, widest
from megatron_qwen3vl.data.workers import WorkerLimits
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.model.build import build_model
from megatron_qwen3vl.model.flops import forward_flops
from megatron_qwen3vl.parallel.groups import Groups
from megatron_qwen3vl.parallel.layout import resolve
from megatron_qwen3vl.train.chain import Start
from megatron_qwen3vl.train.checkpoint import is_checkpoint, load_checkpoint
from megatron_qwen3vl.train.feed import Feed
from megatron_qwen3vl.train.forward import prepare_schedule
from megatron_qwen3vl.train.ingredients import Ingredients
from megatron_qwen3vl.train.optimizer import build_optimizer

INDEX_FOLDER = "index"  # under run.dir


def index_folder(config: RunConfig) -> Path:
    """Where indexes of shards that came without and catalogues are kept."""
    return Path(config.run.dir) / INDEX_FOLDER if config.storage.indexes is None else Path(config.storage.indexes)


@dataclass(frozen=True)
class DataFacts:
    """What every rank knows of a stage's data, by source where it is a mapping."""

    domains: Sequence[str]
    damage: Mapping[str, Sequence[str]]  # what cannot be read of its shards
    changes: Sequence[str]  # since the checkpoint, in sentences
    shares: Mapping[str, float]  # of tokens, as the mixture asks
    left_out: Mapping[str, int]  # samples that no pack can hold
    divided: Mapping[str, tuple[int, int]]  # documents longer than the sequence, and their parts
    limits: VisionLimits  # the widest that all sources keep to


@dataclass(frozen=True)
class StageParts:
    chunks: Sequence[DistributedDataParallel]
    optimizer: MegatronOptimizer
    feed: Feed[DataFacts]
    tokenizer: Tokenizer
    limits: VisionLimits
    side_files: Mapping[str, bytes]

    def zero_gradients(self) -> None:
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()


def open_sources(
    mixture_path: str,
    model: ModelConfig,
    ingredients: Ingredients,
    storage: StorageConfig,
    index_cache: Path | None,
    sequence_length: int | None = None,
) -> tuple[list[Source], list[float]]:
    """The sources of a mixture file and their weights; indexes of shards that have none go to ``index_cache``.

    ``sequence_length`` is the stage's, which the frames taken from a video file follow; None outside of stages.

    Raises UserError with the problems of all sources.
    """
    mixture = load_mixture(find_path(mixture_path))
    base = Path(mixture.path).parent
    sources: list[Source] = []
    problems: list[str] = []
    for source in mixture.sources:
        try:
            tokenizer, limits = ingredients.tokenizer, ingredients.limits
            sources.append(open_source(source, base, tokenizer, limits, model, index_cache, sequence_length, storage))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return sources, [source.weight for source in mixture.sources]


def check_data(config: RunConfig, stages: Sequence[str], ingredients: Ingredients) -> None:
    """Open what all these stages will read: a later stage's missing shard is known before the first one trains.

    Raises UserError with the problems of all of them.
    """
    cache = index_folder(config)
    keys_of: dict[str, list[str]] = {}  # stages that share a source share its problems
    for name in stages:
        stage = config.stages[name]
        try:
            sources, weights = open_sources(
                stage.mixture, config.model, ingredients, config.storage, cache, stage.sequence_length
            )
            Mixture(sources, weights, config.run.seed, name, stage.global_batch_size, stage.sequence_length)
            refuse_bad_sources(sources, config.data.max_bad_rate, stage.sequence_length)
        except UserError as error:
            for problem in error.problems:
                keys_of.setdefault(problem, []).append(f"stages.{name}.mixture")
    if stages and config.validation.mixture is not None and config.validation.every > 0:
        for length in sorted({config.stages[name].sequence_length for name in stages}):
            try:
                open_sources(config.validation.mixture, config.model, ingredients, config.storage, cache, length)
            except UserError as error:
                for problem in error.problems:
                    keys_of.setdefault(problem, []).append("validation.mixture")
    if keys_of:
        raise UserError([f"{', '.join(dict.fromkeys(keys))}: {problem}" for problem, keys in keys_of.items()])


def pack_cost(model: ModelConfig) -> PackCost:
    """What a pack costs, in floating-point operations of the forward; a patch as in a picture of 1024 patches."""
    token = forward_flops(model, [1], [], 0)
    picture = forward_flops(model, [], [(1, 32, 32)], 0)
    return PackCost(token=token.language_linear, pair=token.language_attention / 2, patch=picture.total / 1024)


def build_stage(
    config: RunConfig, name: str, start: Start, ingredients: Ingredients, groups: Groups
) -> StageParts:
    """Build one stage; ``start`` says which weights (and, inside a stage, which state) it goes on from."""
    stage = config.stages[name]
    parallel = resolve(config.parallel, stage.parallel)
    feed = open_feed(config, name, start, ingredients, groups)
    chunks = build_model(
        config.model, parallel, groups, config.dtype, config.loss, stage.trainable, seed=config.run.seed
    )
    prepare_schedule(chunks)
    optimizer = build_optimizer(chunks, stage.optimizer, config.dtype)
    _load_weights(config, stage, start, chunks, optimizer, groups)
    return StageParts(
        chunks=chunks,
        optimizer=optimizer,
        feed=feed,
        tokenizer=ingredients.tokenizer,
        limits=ingredients.limits,
        side_files=_side_files(config, ingredients, feed.about.limits),
    )


def open_feed(config: RunConfig, name: str, start: Start, ingredients: Ingredients, groups: Groups) -> Feed[DataFacts]:
    """The stage's data from where ``start`` stands. Collective over all ranks, of which few read (train/feed.py)."""
    stage = config.stages[name]

    def open_loader() -> tuple[Loader, DataFacts]:
        cache = index_folder(config)
        sources, weights = open_sources(
            stage.mixture, config.model, ingredients, config.storage, cache, stage.sequence_length
        )
        settings = LoaderConfig(
            seed=config.run.seed,
            stage=name,
            sequence_length=stage.sequence_length,
            global_batch_size=stage.global_batch_size,
            num_ranks=groups.dp_size,
            rank=groups.dp_rank,
            vision_dp=resolve(config.parallel, stage.parallel).vision_dp,
            pixels=True,
            pad_id=ingredients.tokenizer.pad_id,
            workers=config.data.workers,
            prefetch=config.data.prefetch,
            limits=WorkerLimits(config.data.sample_timeout, config.data.worker_memory),
            lookahead=config.data.lookahead,
            cost=pack_cost(config.model),
        )
        loader = Loader(settings, sources, weights, state=start.state["loader"] if start.state is not None else None)
        facts = DataFacts(
            domains=sorted({domain for source in sources for domain in source.domains}),
            damage={source.name: source.damage for source in sources if source.damage},
            changes=loader.changes,
            shares=loader.shares,
            left_out=loader.num_left_out,
            divided={source.name: source.num_split for source in sources if source.num_split[0]},
            limits=widest([source.limits for source in sources]),
        )
        return loader, facts

    return Feed(groups, open_loader, stage.num_steps - (start.state["step"] if start.state is not None else 0))


def _side_files(config: RunConfig, ingredients: Ingredients, limits: VisionLimits) -> Mapping[str, bytes]:
    """A run from random weights has no processor files to copy through: what it exports says what it was trained with,
    its sources' own ``min_pixels`` and ``max_pixels`` included."""
    if config.run.init_from is not None or config.run.init_language is not None:
        return ingredients.side_files
    return {**ingredients.side_files, **processor_files(limits, config.model.vision_config)}


def _load_weights(
    config: RunConfig,
    stage: StageConfig,
    start: Start,
    chunks: Sequence[torch.nn.Module],
    optimizer: MegatronOptimizer,
    groups: Groups,
) -> None:
    if start.weights is None:
        load_initial_weights(config.run.init_from, config.model, chunks, groups)
        if config.run.init_language is not None and config.run.init_vision is not None:
            language, vision = Path(config.run.init_language), Path(config.run.init_vision)
            load_beginning(chunks, config.model, language, vision, groups)
    else:
        with_optimizer = start.state is not None or stage.optimizer.carry
        load_checkpoint(start.weights, chunks, optimizer if with_optimizer else None, groups)
    if start.state is None:
        optimizer.reload_model_params()  # the fp32 masters of bf16 weights


def load_initial_weights(
    init_from: str | None, model: ModelConfig, chunks: Sequence[torch.nn.Module], groups: Groups
) -> None:
    """``run.init_from``: a checkpoint or a Hugging Face folder; without it the model keeps its random weights."""
    if init_from is None:
        return
    folder = Path(init_from)
    if is_checkpoint(folder):
        load_checkpoint(folder, chunks, None, groups)
    else:
        load_hf(chunks, model, folder, groups)
