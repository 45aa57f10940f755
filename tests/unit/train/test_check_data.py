"""What is wrong with any stage's data is told before the first stage trains, all of it, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megatron_qwen3vl.cli import USER_ERROR, main

TEXT = {"name": "text", "shards": "text", "weight": 1.0}


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """S0 has sound data; S1's two sources are missing, S2's only sample is longer than its packs, S3's tar is none."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("eleven words of text that no pack of eight positions holds")
    (tmp_path / "noise.tar").write_bytes(b"no tar at all" * 100)
    missing = [{"name": name, "shards": f"{name}.tar", "weight": 1.0} for name in ("gone", "lost")]
    whole, noise = {**TEXT, "too_long": "skip"}, {**TEXT, "shards": "noise.tar"}
    mixtures = {"s0": [TEXT], "s1": missing, "s2": [whole], "s3": [noise]}
    for stage, sources in mixtures.items():
        (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump({"sources": sources}))
    stages = [f"stages.{stage}.mixture={tmp_path}/{stage}.yaml" for stage in mixtures]
    quiet = ["log.wandb=disabled", "log.progress=false", "data.workers=0"]
    own = ["stages.s2.sequence_length=8", f"validation.mixture={tmp_path}/s1.yaml", f"run.dir={tmp_path}/run"]
    return [*stages, *quiet, *own]


def test_all_stages_are_checked_before_the_first_one_trains(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", *overrides]) == USER_ERROR
    lines = capsys.readouterr().err.splitlines()
    wanted = [
        ("stages.s1.mixture, validation.mixture: source gone:", "gone.tar does not exist"),
        ("stages.s1.mixture, validation.mixture: source lost:", "lost.tar does not exist"),
        ("stages.s2.mixture: source text:", "sequence_length of 8"),
        ("stages.s3.mixture: source text:", "noise.tar: bytes 0 to"),
    ]
    assert len(lines) == len(wanted), lines
    for line, (start, reason) in zip(lines, wanted, strict=True):
        assert line.startswith(start) and reason in line


def test_a_refused_run_leaves_no_run_behind(overrides: list[str], tmp_path: Path) -> None:
    assert main(["pretrain", *overrides, "run.resume=never"]) == USER_ERROR
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "config.yaml").exists()
