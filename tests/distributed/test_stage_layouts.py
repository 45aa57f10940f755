"""One job whose stages have different layouts gives the numbers of one process: groups and checkpoints are rebuilt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults_data import OVERRIDES, make_mixture

LAYOUTS = (
    "stages.s0.parallel.tp=2",
    "stages.s0.parallel.sp=true",
    "stages.s1.parallel.pp=2",
    "stages.s2.parallel.vision_dp=2",
    "stages.s3.parallel.cp=2",
)


def _pretrain(launcher: list[str], run: Path, overrides: list[str]) -> list[dict]:
    common = [o for o in OVERRIDES if "num_hidden_layers" not in o]
    subprocess.run(
        [sys.executable, *launcher, "-m", "megatron_qwen3vl", "pretrain", *common, *overrides, f"run.dir={run}"],
        cwd=run.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=600,
    )
    return _rows(run / "metrics.jsonl")


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_job_that_changes_its_layout_at_each_stage_equals_one_process(tmp_path: Path) -> None:
    mixture = make_mixture(tmp_path)
    overrides = [f"stages.s{i}.mixture={mixture}" for i in range(4)]
    overrides += ["data.workers=0", "model.text_config.num_hidden_layers=6", "stages.s2.steps=4"]
    # After each stage five pictures, then five texts: some ranks see none of either.
    overrides += [f"validation.mixture={mixture}", "validation.every=100", "validation.samples=5"]
    one = _pretrain([], tmp_path / "one", overrides)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = _pretrain(launcher, tmp_path / "two", [*overrides, *LAYOUTS])
    assert [(row["stage"], row["step"]) for row in two] == [(row["stage"], row["step"]) for row in one]
    for mine, reference in zip(two, one, strict=True):
        assert mine["loss"] == pytest.approx(reference["loss"], rel=1e-6)
        assert mine["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-5)
        if mine["stage"] == "s2":  # one micro-batch, pictures of one size
            assert mine["vision_balance"] == pytest.approx(-(-mine["images"] // 2) / (mine["images"] / 2))
    held_out = [[row["loss"] for row in _rows(tmp_path / name / "validation.jsonl")] for name in ("one", "two")]
    assert len(held_out[0]) == 4 and held_out[1] == pytest.approx(held_out[0], rel=1e-6)
    samples = [(tmp_path / name / "samples.jsonl").read_bytes() for name in ("one", "two")]
    assert samples[0] == samples[1]
