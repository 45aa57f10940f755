"""``evaluate`` on a checkpoint: the printed loss is that of its lines, and every bad sample is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from faults_data import OVERRIDES, make_mixture, picture, write_shard

from megatron_qwen3vl.cli import DONE, USER_ERROR, main


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_loss_and_bad_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixture = make_mixture(tmp_path, samples=6)
    image = {"type": "image", "image": "0.png"}
    whole, cut = picture(1), picture(2)[:2000]
    write_shard(
        tmp_path / "texts.tar",
        [
            ("whole", {"content": [image, {"type": "text", "text": "one"}], "domain": "extra"}, {"0.png": whole}),
            ("lost", {"content": [image, {"type": "text", "text": "two"}]}, {}),
            ("cut", {"content": [image, {"type": "text", "text": "three"}]}, {"0.png": cut}),
        ],
    )
    run, out, bad = tmp_path / "run", tmp_path / "new" / "lines.jsonl", tmp_path / "bad"
    stage = [f"stages.s1.mixture={mixture}", "run.stages=[s1]", "stages.s1.steps=1", "data.workers=0"]
    assert main(["pretrain", *OVERRIDES, *stage, "data.max_bad_rate=1", f"run.dir={run}"]) == DONE
    capsys.readouterr()
    checkpoint = run / "checkpoints" / "s1" / "step_00000001"
    keys = [f"run.init_from={checkpoint}", f"mixture={mixture}", f"out={out}", f"run.dir={bad}"]
    assert main(["evaluate", *keys]) == DONE
    summary, rows = json.loads(capsys.readouterr().out), rows_of(out)

    used = [row for row in rows if row["loss_tokens"]]
    assert len(used) == summary["samples"] == 7
    assert sum(row["loss_tokens"] for row in used) == summary["loss_tokens"]
    assert all(row["weight"] == pytest.approx(row["loss_tokens"] ** -0.5, rel=1e-12) for row in used)
    mean = sum(row["weight"] * row["loss_sum"] for row in used) / sum(row["loss_tokens"] ** 0.5 for row in used)
    assert summary["loss"] == pytest.approx(mean, rel=1e-12)
    assert {row["key"]: row["reason"] for row in rows_of(bad / "quarantine.jsonl")} == {
        "texts/texts/lost": "content[0]: missing media '0.png'",
        "texts/texts/cut": "image cannot be decoded: image file is truncated",
    }
    assert summary["failed"] == 2
    assert summary["failed"] == 2

    for name in ("texts", "pictures"):
        (tmp_path / f"{name}.tar").write_bytes(b"no tar at all" * 100)
    assert main(["evaluate", *keys]) == USER_ERROR
    told = capsys.readouterr().err
    assert "not one of its 0 samples" in told and "pictures.tar: bytes 0 to 1300 cannot be read" in told
