"""The demonstration's question: can the model of a run see? ``python -m megatron_qwen3vl.demo RUN_DIR``

The run's newest checkpoint is exported to Hugging Face, and transformers' own ``generate`` answers held-out questions
(recipes/exam.py): free running, greedy, each once with its own picture and once with another sample's. Prints a table
and writes it to ``<run.dir>/demo.json``, from which the run's page is made anew; the export stays in ``<run.dir>/hf``.

transformers makes pixels and prompt from the exported files alone; both must equal what this package makes of the same
sample, or nothing is reported.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_qwen3vl.batch import IGNORE, Sample
from megatron_qwen3vl.config.paths import resource
from megatron_qwen3vl.config.schema import SourceConfig
from megatron_qwen3vl.convert.config import read_config
from megatron_qwen3vl.convert.reader import Prompt, Reader, load_reader
from megatron_qwen3vl.data.shards import write_shard
from megatron_qwen3vl.data.source import open_source
from megatron_qwen3vl.data.tokenizer import load_tokenizer
from megatron_qwen3vl.data.vision import read_limits
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.recipes.exam import Question, Subject, questions, subjects
from megatron_qwen3vl.recipes.record import conversation, image, text
from megatron_qwen3vl.report.page import write_report
from megatron_qwen3vl.train.chain import checkpoints
from megatron_qwen3vl.train.convert import export_checkpoint

SHOWN = 8  # answers of each subject that the page shows
Answers = dict[str, list[dict[str, Any]]]


def examine(run_dir: Path) -> Answers:
    """The figures of the newest checkpoint, and some of its answers, in the form of report/answers.py.

    Raises UserError when the run has no checkpoint yet.
    """
    found = checkpoints(run_dir)
    if not found:
        raise UserError(f"{run_dir}: holds no checkpoint yet; let the run save one first")
    folder = run_dir / "hf"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier examination
    export_checkpoint(found[-1][0], folder)
    reader = load_reader(folder)
    parts = [_examine(reader, folder, subject) for subject in subjects()]
    return {member: [entry for part in parts for entry in part[member]] for member in ("scores", "samples")}


def _examine(reader: Reader, folder: Path, subject: Subject) -> Answers:
    asked = questions(subject, resource("data_recipes") / "domains")
    own = [reader.prompt(question.picture, question.prompt) for question in asked]
    require_same(own, training_samples(folder, asked))
    other = [reader.prompt(question.other, question.prompt) for question in asked]
    said = reader.answers(own, subject.max_tokens)
    figures = _figures(subject, asked, said)
    exchanged = _figures(subject, asked, reader.answers(other, subject.max_tokens))
    scores = [
        {"task": subject.name, "measure": name, "own": value, "exchanged": exchanged[name], "questions": len(asked)}
        for name, value in figures.items()
    ]
    samples = [
        {
            "task": subject.name,
            "picture": base64.b64encode(question.picture).decode(),
            "question": question.prompt,
            "right": question.answer,
            "model": answer,
            "correct": answer == question.answer,
        }
        for question, answer in list(zip(asked, said, strict=True))[:SHOWN]
    ]
    return {"scores": scores, "samples": samples}


def _figures(subject: Subject, asked: Sequence[Question], said: Sequence[str]) -> dict[str, float]:
    marks = [subject.mark(answer, question) for answer, question in zip(said, asked, strict=True)]
    return {name: float(np.mean([mark[name] for mark in marks])) for name in marks[0]}


def training_samples(folder: Path, asked: Sequence[Question]) -> list[Sample]:
    """The questions as the data path renders any sample, through a shard, with the limits of the exported files."""
    model = read_config(folder)
    records = []
    for number, question in enumerate(asked):
        body = conversation([([image("0.png"), text(question.prompt)], question.answer)], "exam")
        records.append((f"{number:06d}", {"json": json.dumps(body).encode(), "0.png": question.picture}))
    with tempfile.TemporaryDirectory() as shards:
        write_shard(Path(shards) / "questions.tar", records)
        config = SourceConfig("questions", "questions.tar", 1.0)
        source = open_source(config, Path(shards), load_tokenizer(str(folder), model), read_limits(folder), model)
        return [source.read(index, pixels=True) for index in range(len(source))]


def require_same(prompts: Sequence[Prompt], samples: Sequence[Sample]) -> None:
    """transformers' prompt and pixels equal those that training would see. Raises AssertionError where they do not."""
    for prompt, sample in zip(prompts, samples, strict=True):
        assert sample.failure is None and sample.patches is not None, sample.failure
        end = int(np.flatnonzero(sample.labels != IGNORE)[0]) + 1
        assert prompt.ids.tolist() == sample.input_ids[:end].tolist(), f"{sample.key}: the prompts differ"
        assert prompt.grid.tolist() == sample.grids.tolist(), f"{sample.key}: the pictures' sizes differ"
        pixels = (torch.from_numpy(sample.patches).float() / 255 - 0.5) / 0.5
        assert torch.allclose(prompt.pixels, pixels, atol=1e-6), f"{sample.key}: the pixels differ"


def table(answers: Answers) -> str:
    lines = ["held-out samples, generated by transformers        its own picture   another's picture"]
    for score in answers["scores"]:
        what = f"{score['task']}: {score['measure']} ({score['questions']} samples)"
        lines.append(f"{what:<51}{score['own']:>15.1%}{score['exchanged']:>20.1%}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    run_dir = Path(arguments[0])
    result = examine(run_dir)
    (run_dir / "demo.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(f"page: {write_report(run_dir)}")


if __name__ == "__main__":
    main(sys.argv[1:])
