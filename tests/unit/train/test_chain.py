"""Where a run goes on: every decision of ``find_start`` against folders that look like checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from megatron_qwen3vl.config.load import load_config
from megatron_qwen3vl.config.schema import RunConfig
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.train.chain import Start, checkpoints, find_start, sections
from megatron_qwen3vl.train.checkpoint import FORMAT, is_checkpoint

TOKENIZER = "fingerprint"
STEPS = 8
EVERY_STAGE = ("s0", "s1", "s2", "s3")


@cache  # composing takes a third of a second
def composed(*overrides: str) -> RunConfig:
    return load_config([*(f"stages.{stage}.steps={STEPS}" for stage in EVERY_STAGE), *overrides])


def config_of(run: Path, *overrides: str, resume: str = "auto") -> RunConfig:
    config = composed(*overrides)
    return replace(config, run=replace(config.run, dir=str(run), resume=resume))


def save(
    run: Path, config: RunConfig, stage: str, step: int, behind: Sequence[str] = (), tokenizer: str = TOKENIZER
) -> Path:
    """A checkpoint of ``stage`` as the trainer's JSON describes it, ``behind`` being the stages before; no tensors."""
    agreed: dict | None = None
    for name in (*behind, stage):
        agreed = sections(config, name, tokenizer, agreed)
    state = {
        "stage": stage,
        "step": step,
        "total_steps": STEPS * len(behind) + step,
        "sections": agreed,
        "files": {"metrics.jsonl": 10},
    }
    folder = run / "checkpoints" / stage / f"step_{step:08d}"
    (folder / "tensors").mkdir(parents=True)
    for name in (".metadata", "metadata.json"):
        (folder / "tensors" / name).write_text("")
    (folder / "state.json").write_text(json.dumps({"format": FORMAT, "state": state}))
    assert is_checkpoint(folder)
    return folder


def state_of(folder: Path) -> dict:
    return json.loads((folder / "state.json").read_text())["state"]


def inside(stage: int, folder: Path) -> Start:
    return Start(stage, folder, state_of(folder))


def refusal(config: RunConfig, tokenizer: str = TOKENIZER) -> list[str]:
    with pytest.raises(UserError) as refused:
        find_start(config, tokenizer)
    return refused.value.problems


def test_an_empty_folder_begins_at_the_beginning(tmp_path: Path) -> None:
    for resume in ("auto", "never"):
        assert find_start(config_of(tmp_path / "run", resume=resume), TOKENIZER) == Start(0, None, None)


def test_auto_goes_on_inside_the_stage_of_the_newest(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    save(tmp_path, config, "s0", STEPS)
    save(tmp_path, config, "s1", 3, ["s0"])
    newest = save(tmp_path, config, "s1", 5, ["s0"])
    assert find_start(config, TOKENIZER) == inside(1, newest)


def test_newest_is_by_updates_made_not_by_name_or_step(tmp_path: Path) -> None:
    config = config_of(tmp_path, "run.stages=[s1,s0]")
    early = save(tmp_path, config, "s1", STEPS)
    late = save(tmp_path, config, "s0", 2, ["s1"])
    assert [folder for folder, _ in checkpoints(tmp_path)] == [early, late]
    assert find_start(config, TOKENIZER) == inside(1, late)


def test_what_is_incomplete_does_not_count(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    whole = save(tmp_path, config, "s0", 3)
    for step, missing in ((4, "state.json"), (5, "tensors/.metadata"), (6, "tensors/metadata.json")):
        (save(tmp_path, config, "s0", step) / missing).unlink()
    save(tmp_path, config, "s0", 7).rename(whole.parent / ".step_00000007.new")
    assert find_start(config, TOKENIZER) == inside(0, whole)


@pytest.mark.parametrize("number", range(4))
def test_after_a_stage_its_successor_begins_with_its_weights(number: int, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    last = save(tmp_path, config, EVERY_STAGE[number], STEPS, EVERY_STAGE[:number])
    assert find_start(config, TOKENIZER) == Start(number + 1, last, None)  # after s3: nothing is left


def test_the_number_of_steps_may_change(tmp_path: Path) -> None:
    last = save(tmp_path, config_of(tmp_path), "s0", STEPS)
    longer = config_of(tmp_path, "stages.s0.steps=20", "stages.s1.steps=3", "checkpoint.every=2")
    assert find_start(longer, TOKENIZER) == inside(0, last)
    shorter = config_of(tmp_path, "stages.s0.steps=5")
    assert find_start(shorter, TOKENIZER) == Start(1, last, None)


def test_stages_as_separate_jobs(tmp_path: Path) -> None:
    first = save(tmp_path, config_of(tmp_path, "run.stages=[s0]"), "s0", STEPS)
    second = config_of(tmp_path, "run.stages=[s1]")
    assert find_start(second, TOKENIZER) == Start(0, first, None)
    newest = save(tmp_path, second, "s1", 5, ["s0"])
    assert find_start(second, TOKENIZER) == inside(0, newest)
    # The first job once more has nothing to do: these weights have been through s0.
    assert find_start(config_of(tmp_path, "run.stages=[s0]"), TOKENIZER) == Start(1, newest, None)
    assert find_start(config_of(tmp_path, "run.stages=[s0,s2]"), TOKENIZER) == Start(1, newest, None)


@pytest.mark.parametrize(
    "change",
    [
        "parallel.tp=2",
        "stages.s0.parallel.pp=2",
        "data.workers=3",
        "data.prefetch=5",
        "data.max_bad_rate=0.5",
        "log.wandb=disabled",
        "checkpoint.keep=9",
        "validation.every=2",
        "guard.max_skipped_steps=1",
        "stages.s0.micro_batch_size=2",
        "stages.s1.optimizer.lr=0.5",  # not begun when the checkpoint was written
    ],
)
def test_what_may_change(change: str, tmp_path: Path) -> None:
    folder = save(tmp_path, config_of(tmp_path), "s0", 3)
    assert find_start(config_of(tmp_path, change), TOKENIZER) == inside(0, folder)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("model.text_config.num_hidden_layers=5", "model.text_config.num_hidden_layers"),
        ("loss.exponent=1", "loss.exponent"),
        ("dtype=bfloat16", "dtype"),
        ("run.seed=99", "seed"),
        ("data.lookahead=2", "lookahead"),
        ("stages.s0.global_batch_size=3", "stages.s0.global_batch_size"),
        ("stages.s0.sequence_length=64", "stages.s0.sequence_length"),
        ("stages.s0.trainable=[merger,vision]", "stages.s0.trainable"),
        ("stages.s0.mixture=other.yaml", "stages.s0.mixture"),
        ("stages.s0.optimizer.lr=0.5", "stages.s0.optimizer.lr"),
        ("stages.s0.optimizer.betas=[0.5,0.9]", "stages.s0.optimizer.betas"),
        ("stages.s0.optimizer.lr_scale.vision=0.1", "stages.s0.optimizer.lr_scale.vision"),
    ],
)
def test_a_difference_is_named_alone_with_both_values(change: str, key: str, tmp_path: Path) -> None:
    """Also one of a stage that is already behind the run."""
    config = config_of(tmp_path)
    for step, behind in ((3, ()), (2, ("s0",))):
        folder = save(tmp_path, config, "s1" if behind else "s0", step, behind)
        head, line = refusal(config_of(tmp_path, change))
        assert str(folder) in head
        assert line.strip().startswith(f"{key}: the checkpoint has ") and ", this run " in line


def test_another_tokenizer_is_a_difference(tmp_path: Path) -> None:
    save(tmp_path, config_of(tmp_path), "s0", 3)
    assert refusal(config_of(tmp_path), tokenizer="other")[1:] == [
        "  tokenizer: the checkpoint has 'fingerprint', this run 'other'"
    ]


def test_differences_of_a_stage_the_job_does_not_name_are_another_jobs_business(tmp_path: Path) -> None:
    folder = save(tmp_path, config_of(tmp_path), "s0", STEPS)
    changed = config_of(tmp_path, "run.stages=[s1]", "stages.s0.optimizer.lr=0.5")
    assert find_start(changed, TOKENIZER) == Start(0, folder, None)
    assert refusal(config_of(tmp_path, "run.stages=[s1]", "run.seed=99"))[1:] == [
        "  seed: the checkpoint has 1234, this run 99"
    ]


def test_never_does_not_write_over_a_run(tmp_path: Path) -> None:
    config = config_of(tmp_path, resume="never")
    (tmp_path / "metrics.jsonl").write_text("")  # a start that failed before its first step
    assert find_start(config, TOKENIZER) == Start(0, None, None)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert "run.resume=never" in refusal(config)[0]
    (tmp_path / "metrics.jsonl").unlink()
    save(tmp_path, config, "s0", 3)
    assert "run.resume=never" in refusal(config)[0]


def test_a_named_checkpoint_branches_off_into_a_new_folder(tmp_path: Path) -> None:
    origin, branch = tmp_path / "origin", tmp_path / "branch"
    folder = save(origin, config_of(origin), "s0", 3)
    save(origin, config_of(origin), "s0", 5)
    assert find_start(config_of(branch, resume=str(folder)), TOKENIZER) == inside(0, folder)


def test_a_branch_never_goes_into_another_run(tmp_path: Path) -> None:
    origin, branch = tmp_path / "origin", tmp_path / "branch"
    folder = save(origin, config_of(origin), "s0", 3)
    save(branch, config_of(branch), "s0", 2)
    assert "holds another run already" in refusal(config_of(branch, resume=str(folder)))[0]


def test_going_back_inside_a_run_is_refused_while_newer_ones_are_there(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    early, late = save(tmp_path, config, "s0", 3), save(tmp_path, config, "s1", 1, ["s0"])
    named = config_of(tmp_path, resume=str(early))
    assert str(late) in refusal(named)[0]
    shutil.rmtree(late)
    assert find_start(named, TOKENIZER) == inside(0, early)


def test_a_named_folder_has_to_be_a_runs_checkpoint(tmp_path: Path) -> None:
    assert "no complete checkpoint" in refusal(config_of(tmp_path / "run", resume=str(tmp_path)))[0]
    imported = save(tmp_path / "imported", config_of(tmp_path), "s0", 3)
    (imported / "state.json").write_text(json.dumps({"format": FORMAT, "state": {"imported": True, "dtypes": {}}}))
    assert f"run.init_from={imported}" in refusal(config_of(tmp_path / "run", resume=str(imported)))[0]
    assert f"run.init_from={imported}" in refusal(config_of(tmp_path / "imported"))[0]
