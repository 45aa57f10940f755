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
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_job_that_changes_its_layout_at_each_stage_equals_one_process(tmp_path: Path) -> None:
    mixture = make_mixture(tmp_path)
    overrides = [f"stages.s{i}.mixture={mixture}" for i in range(4)]
    overrides += ["run.stages=[s0,s1,s3]", "data.workers=0", "model.text_config.num_hidden_layers=6"]
    one = _pretrain([], tmp_path / "one", overrides)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = _pretrain(launcher, tmp_path / "two", [*overrides, *LAYOUTS])
    assert [(row["stage"], row["step"]) for row in two] == [(row["stage"], row["step"]) for row in one]
    for mine, reference in zip(two, one, strict=True):
        assert mine["loss"] == pytest.approx(reference["loss"], rel=1e-6)
        assert mine["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-5)
    samples = [(tmp_path / name / "samples.jsonl").read_bytes() for name in ("one", "two")]
    assert samples[0] == samples[1]
