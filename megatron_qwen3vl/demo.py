"""The demonstration's question: can the model of a run see? ``python -m megatron_qwen3vl.demo RUN_DIR [COUNT]``

Held-out pictures of three handwritten digits are read by free-running greedy generation, each once with its own pixels
and once with another picture's. Prints both shares and writes them to ``<run.dir>/reading.json``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from megatron.core.utils import unwrap_model

from megatron_qwen3vl.batch import IGNORE, Sample
from megatron_qwen3vl.config.load import load_dumped
from megatron_qwen3vl.config.schema import ModelConfig, ParallelConfig, SourceConfig
from megatron_qwen3vl.data.shards import write_shard
from megatron_qwen3vl.data.source import open_source
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.model.build import build_model
from megatron_qwen3vl.model.qwen3vl import Qwen3VL
from megatron_qwen3vl.parallel.device import start_device
from megatron_qwen3vl.parallel.groups import join, shutdown, start_groups
from megatron_qwen3vl.parallel.layout import Layout
from megatron_qwen3vl.recipes.digits_eval import Question, questions, score
from megatron_qwen3vl.recipes.record import conversation, image, text
from megatron_qwen3vl.train.chain import checkpoints
from megatron_qwen3vl.train.checkpoint import load_checkpoint
from megatron_qwen3vl.train.generate import greedy
from megatron_qwen3vl.train.ingredients import Ingredients, find_ingredients

SINGLE = ParallelConfig(
    tp=1,
    pp=1,
    vpp=1,
    pipeline_layers=None,
    visual_share=0.5,
    cp=1,
    ep=1,
    etp=1,
    sp=False,
    cp_exchange="auto",
    vision_dp=1,
    recompute="none",
    vision_recompute="none",
    overlap=False,
    bucket_size=None,
)
SMALLEST_PICTURE = 1024  # pixels: as the mixtures' min_pixels


def read_digits(run_dir: Path, count: int) -> dict[str, dict[str, float]]:
    """{"own": score, "exchanged": score} of the run's newest checkpoint over ``count`` held-out pictures."""
    config = load_dumped(run_dir / "config.yaml")
    found = checkpoints(run_dir)
    if not found:
        raise UserError(f"{run_dir}: holds no checkpoint yet; let the run save one first")
    ingredients = find_ingredients(config.model, config.dtype, str(found[-1][0]), None)
    device = start_device()
    try:
        join(device)
        groups = start_groups(Layout.from_config(SINGLE, 1), device)
        (chunk,) = build_model(config.model, SINGLE, groups, config.dtype, config.loss, (), seed=None)
        load_checkpoint(found[-1][0], [chunk], None, groups)
        chunk.eval()
        asked = questions(count)
        return {
            name: asdict(score(asked, _answers(unwrap_model(chunk), asked, pictures, config.model, ingredients)))
            for name, pictures in (
                ("own", [question.picture for question in asked]),
                ("exchanged", [question.exchanged for question in asked]),
            )
        }
    finally:
        shutdown()


def _answers(
    model: Qwen3VL, asked: Sequence[Question], pictures: Sequence[bytes], shape: ModelConfig, ingredients: Ingredients
) -> list[str]:
    tokenizer = ingredients.tokenizer
    prompts = [_up_to_the_answer(sample) for sample in _rendered(asked, pictures, shape, ingredients)]
    return [tokenizer.decode(ids) for ids in greedy(model, prompts, 3, tokenizer.pad_id)]


def _rendered(
    asked: Sequence[Question], pictures: Sequence[bytes], shape: ModelConfig, ingredients: Ingredients
) -> list[Sample]:
    """The questions as the data path renders any sample, through a shard."""
    records = []
    for number, (question, picture) in enumerate(zip(asked, pictures, strict=True)):
        body = conversation([([image("0.png"), text(question.prompt)], question.answer)], "reading")
        records.append((f"{number:06d}", {"json": json.dumps(body).encode(), "0.png": picture}))
    with tempfile.TemporaryDirectory() as folder:
        write_shard(Path(folder) / "questions.tar", records)
        config = SourceConfig("questions", "questions.tar", 1.0, min_pixels=SMALLEST_PICTURE)
        source = open_source(config, Path(folder), ingredients.tokenizer, ingredients.limits, shape)
        samples = [source.read(index, pixels=True) for index in range(len(source))]
    failed = [sample.failure for sample in samples if sample.failure is not None]
    assert not failed, failed[0]
    return samples


def _up_to_the_answer(sample: Sample) -> Sample:
    """The tokens before the first one that bears loss: the question, and the assistant's opening."""
    end = int(np.flatnonzero(sample.labels != IGNORE)[0]) + 1
    return replace(
        sample,
        input_ids=sample.input_ids[:end],
        labels=np.full(end, IGNORE, np.int32),
        positions=sample.positions[:, :end],
    )


def main(arguments: Sequence[str]) -> None:
    run_dir = Path(arguments[0])
    count = int(arguments[1]) if len(arguments) > 1 else 500
    result = read_digits(run_dir, count)
    (run_dir / "reading.json").write_text(json.dumps({"questions": count, **result}, indent=1) + "\n")
    for name, what in (("own", "its own picture"), ("exchanged", "another's picture")):
        print(
            f"held-out reading with {what}: {result[name]['exact']:.1%} of {count} three-digit strings exact, "
            f"{result[name]['digits']:.1%} of digits (chance: 0.1%, 10%)"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
