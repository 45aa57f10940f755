"""``evaluate``: the loss of a checkpoint or a Hugging Face folder on a mixture, every sample once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_qwen3vl.config.schema import EvaluateConfig
from megatron_qwen3vl.convert.config import read_config
from megatron_qwen3vl.data.quarantine import Quarantined, lost_parts
from megatron_qwen3vl.data.source import Source
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.model.build import build_model
from megatron_qwen3vl.parallel.device import start_device
from megatron_qwen3vl.parallel.groups import from_first_rank, join, shutdown, start_groups, world_size
from megatron_qwen3vl.parallel.layout import Layout
from megatron_qwen3vl.train.assemble import load_initial_weights, open_sources
from megatron_qwen3vl.train.feed import Channel, Parcel
from megatron_qwen3vl.train.forward import prepare_schedule
from megatron_qwen3vl.train.ingredients import find_ingredients
from megatron_qwen3vl.train.measure import SampleLoss, measure, summarise

PACK_LENGTH = 8192  # positions computed together; a longer sample is computed alone


def evaluate(config: EvaluateConfig) -> dict:
    """Weights are ignored, no sample is repeated or left out for its length.

    Prints one JSON object (``loss``, ``token_loss``, ``samples``, ``failed``, ``loss_tokens``, ``domains``) and writes,
    where ``out`` is given, a line per sample: ``key, loss_tokens, loss_sum, weight``. Raises UserError when no sample
    at all can be read.
    """
    if config.run.init_from is None or config.mixture is None:
        raise UserError("evaluate needs run.init_from=DIR (a checkpoint or a Hugging Face folder) and mixture=PATH")
    model = read_config(Path(config.run.init_from))
    ingredients = find_ingredients(model, config.dtype, config.run.init_from, config.tokenizer)
    device = start_device()
    try:
        join(device)
        groups = start_groups(Layout.from_config(config.parallel, world_size()), device)
        channel, sources = Channel(groups), list[Source]()

        def open_all() -> Parcel[int]:
            assert config.mixture is not None
            indexes = Path(config.storage.indexes) if config.storage.indexes is not None else None
            sources.extend(open_sources(config.mixture, model, ingredients, config.storage, indexes)[0])
            return Parcel((), sum(map(len, sources)))

        num_samples = channel.take(channel.share(open_all)).facts
        chunks = build_model(model, config.parallel, groups, config.dtype, config.loss, trainable=(), seed=None)
        prepare_schedule(chunks)
        load_initial_weights(config.run.init_from, model, chunks, groups)
        chosen = [(source, index) for source in sources for index in range(len(source))]
        results = measure(chunks, chosen, PACK_LENGTH, ingredients.tokenizer.pad_id, channel, groups, device)
        channel.close()
        if not any(result.failure is None for result in results):
            why = results[0].failure if results else from_first_rank(lambda: _first_reason(sources))
            raise UserError(f"mixture={config.mixture}: not one of its {num_samples} samples can be read ({why})")
        summary = summarise(results, config.loss.exponent)
        summary["failed"] = num_samples - summary["samples"]
        if groups.is_writer:
            if config.out is not None:
                _write(Path(config.out), results, config.loss.exponent)
            if config.run.dir is not None:
                _quarantine(Path(config.run.dir), sources, results)
            print(json.dumps(summary), flush=True)
        groups.stop()
        return summary
    finally:
        shutdown()


def _first_reason(sources: Sequence[Source]) -> str:
    """Why the shards, or samples of no length, cannot be used."""
    return next(_reasons(sources), "it names no sample")


def _reasons(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        yield from source.damage
        yield from (f"{source.key(i)}: {source.reason(i)}" for i in range(len(source)) if source.lengths[i] <= 0)


def _quarantine(folder: Path, sources: Sequence[Source], results: Sequence[SampleLoss]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lost = [row for source in sources for row in lost_parts(source.name, source.damage, "evaluate", 0)]
    unusable = [
        Quarantined(source.name, source.key(index), source.reason(index), "evaluate", 0)
        for source in sources
        for index in range(len(source))
        if source.lengths[index] <= 0
    ]
    failed = [
        Quarantined(result.key.split("/", 1)[0], result.key, result.failure, "evaluate", 0)
        for result in results
        if result.failure is not None
    ]
    with (folder / "quarantine.jsonl").open("w") as handle:
        for row in [*lost, *unusable, *failed]:
            handle.write(json.dumps(asdict(row)) + "\n")


def _write(out: Path, results: list[SampleLoss], exponent: float) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w") as handle:
        for result in results:
            row = {
                "key": result.key,
                "loss_tokens": result.loss_tokens,
                "loss_sum": result.loss_sum,
                "weight": result.loss_tokens ** (-exponent) if result.loss_tokens else 0.0,
            }
            if result.failure is not None:
                row["failure"] = result.failure
            handle.write(json.dumps(row) + "\n")
