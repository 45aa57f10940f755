"""What a stage may change, and what never reaches the weights: seen from the checkpoints of real runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faults_data import OVERRIDES, make_mixture, write_shard
from megatron.core import dist_checkpointing

from megatron_qwen3vl.config.load import load_config
from megatron_qwen3vl.model.build import module_of
from megatron_qwen3vl.parallel.device import start_device
from megatron_qwen3vl.parallel.groups import join, shutdown
from megatron_qwen3vl.train import trainer
from megatron_qwen3vl.train.loss import weigh
from megatron_qwen3vl.train.pretrain import pretrain


def _run(folder: Path, *overrides: str) -> Path:
    mixture = folder / "mixture.yaml"
    if not mixture.exists():
        make_mixture(folder)
    mixtures = [f"stages.s{i}.mixture={mixture}" for i in range(4)]
    pretrain(load_config([*OVERRIDES, *mixtures, "data.workers=0", f"run.dir={folder / 'run'}", *overrides]))
    return folder / "run"


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    join(start_device())
    try:
        tree = dist_checkpointing.load_plain_tensors(str(checkpoint / "tensors"))
    finally:
        shutdown()
    return {name: value for name, value in tree.items() if name.startswith(("vision.", "language."))}


def _changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_s0_changes_all_four_mergers_and_nothing_else(tmp_path: Path) -> None:
    run = _run(tmp_path, "run.stages=[s0]", "checkpoint.every=1", "checkpoint.keep=99", "stages.s0.steps=3")
    before = _weights(run / "checkpoints/s0/step_00000001")
    changed = _changed(before, _weights(run / "checkpoints/s0/step_00000003"))
    mergers = {name for name in before if module_of(name) == "merger"}
    assert len({name.rsplit(".", 2)[0] for name in mergers}) == 4
    assert changed == mergers


def test_a_stage_begins_with_the_weights_of_the_one_before(tmp_path: Path) -> None:
    run = _run(tmp_path, "run.stages=[s0,s1]", "checkpoint.every=99", "stages.s0.steps=2", "stages.s1.steps=1",
               "stages.s1.optimizer.lr=0", "stages.s1.optimizer.min_lr=0")
    before = _weights(run / "checkpoints/s0/step_00000002")
    assert _changed(before, _weights(run / "checkpoints/s1/step_00000001")) == set()


def test_a_step_that_is_not_finite_is_skipped_named_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the second and third step is poisoned where the reports of a micro-batch are made."""
    calls = []

    def poisoned(token_losses, batch, scale):  # type: ignore[no-untyped-def]
        calls.append(None)
        loss, report = weigh(token_losses, batch, scale)
        return loss * (math.nan if 3 <= len(calls) <= 6 else 1.0), report

    monkeypatch.setattr("megatron_qwen3vl.train.forward.weigh", poisoned)
    run = _run(tmp_path, "run.stages=[s1]", "checkpoint.every=1", "checkpoint.keep=99", "stages.s1.steps=4")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows] == [False, True, True, False]
    first, third, fourth = (_weights(run / f"checkpoints/s1/step_0000000{n}") for n in (1, 3, 4))
    assert _changed(first, third) == set() and _changed(third, fourth)
    skipped = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    traced = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [row["keys"] for row in skipped] == [row["keys"] for row in traced[1:3]]

    calls.clear()
    with pytest.raises(trainer.RunFailed, match="guard.max_skipped_steps=1"):
        _run(tmp_path, "run.stages=[s1]", "stages.s1.steps=4", "guard.max_skipped_steps=1", f"run.dir={tmp_path}/two")


def test_a_tensor_that_is_cut_off_from_the_loss_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_qwen3vl.model.merger import Merger

    forward = Merger.forward
    monkeypatch.setattr(Merger, "forward", lambda self, x: forward(self, x).detach())
    with pytest.raises(trainer.RunFailed, match="merger.*received no gradient"):
        _run(tmp_path, "run.stages=[s1]", "stages.s1.steps=1")


def test_bf16_trains_with_fp32_masters(tmp_path: Path) -> None:
    run = _run(tmp_path, "run.stages=[s1]", "dtype=bfloat16", "stages.s1.steps=3")
    weights = _weights(run / "checkpoints/s1/step_00000003")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)


def test_optimizer_begins_afresh_unless_it_is_carried(tmp_path: Path) -> None:
    two_stages = ["run.stages=[s1,s2]", "stages.s1.steps=2", "stages.s2.steps=1"]
    afresh = _run(tmp_path, *two_stages)
    assert _optimizer_step(afresh / "checkpoints/s1/step_00000002") == 2
    assert _optimizer_step(afresh / "checkpoints/s2/step_00000001") == 1
    carried = tmp_path / "carried"
    _run(tmp_path, *two_stages, "stages.s2.optimizer.carry=true", f"run.dir={carried}")
    assert _optimizer_step(carried / "checkpoints/s2/step_00000001") == 3


def _optimizer_step(checkpoint: Path) -> int:
    return dist_checkpointing.load_common_state_dict(str(checkpoint / "tensors"))["optimizer_step"]


def test_a_global_batch_without_labels_updates_nothing(tmp_path: Path) -> None:
    """Questions without an answer: weight decay alone would move the weights."""
    questions = [(f"{i:02d}", {"messages": [{"role": "user", "content": f"question {i}"}]}, {}) for i in range(20)]
    write_shard(tmp_path / "questions.tar", questions)
    source = {"name": "questions", "shards": "questions.tar", "weight": 1.0}
    (tmp_path / "mixture.yaml").write_text(json.dumps({"sources": [source]}))
    run = _run(tmp_path, "run.stages=[s1]", "checkpoint.every=1", "checkpoint.keep=99", "stages.s1.steps=3")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["skipped"], row["loss"], row["loss_tokens"]) for row in rows] == [(True, None, 0)] * 3
    first, last = (run / f"checkpoints/s1/step_0000000{n}" for n in (1, 3))
    assert _changed(_weights(first), _weights(last)) == set() and _optimizer_step(last) == 0
    skipped = [json.loads(line)["keys"] for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert skipped == [json.loads(line)["keys"] for line in (run / "samples.jsonl").read_text().splitlines()]


def test_a_loss_that_is_not_finite_skips_the_step_whatever_its_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(token_losses, batch, scale):  # type: ignore[no-untyped-def]
        loss, report = weigh(token_losses, batch, scale)
        return loss, replace(report, document_losses=report.document_losses + math.inf)

    monkeypatch.setattr("megatron_qwen3vl.train.forward.weigh", poisoned)
    run = _run(tmp_path, "run.stages=[s1]", "stages.s1.steps=1")
    (row,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (row["skipped"], row["loss"]) == (True, None) and row["grad_norm"] > 0
    assert _optimizer_step(run / "checkpoints/s1/step_00000001") == 0
