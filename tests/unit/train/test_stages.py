"""A whole run of two short stages: what a stage hands over, and what stops it at its first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from faults_data import OVERRIDES, make_mixture
from megatron.core import dist_checkpointing

from megatron_qwen3vl.config.load import load_config
from megatron_qwen3vl.model.vision import VisionEncoder
from megatron_qwen3vl.train.pretrain import pretrain
from megatron_qwen3vl.train.trainer import RunFailed

STEPS = 2


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mixture(tmp_path_factory.mktemp("mixture"))


def run(folder: Path, mixture: Path, *changes: str) -> None:
    stages = [f"stages.{name}.{key}" for name in ("s1", "s2") for key in (f"mixture={mixture}", f"steps={STEPS}")]
    pretrain(
        load_config(
            [*OVERRIDES, *stages, "run.stages=[s1,s2]", "data.workers=0", "checkpoint.keep=9", f"run.dir={folder}", *changes]
        )
    )


def optimizer_step(folder: Path, stage: str) -> int:
    """The step count that a stage's last checkpoint holds."""
    tensors = folder / "checkpoints" / stage / f"step_{STEPS:08d}" / "tensors"
    return dist_checkpointing.load_common_state_dict(str(tensors))["optimizer_step"]


def test_optimizer_begins_afresh_unless_it_is_carried(tmp_path: Path, mixture: Path) -> None:
    run(tmp_path / "afresh", mixture)
    assert [optimizer_step(tmp_path / "afresh", stage) for stage in ("s1", "s2")] == [STEPS, STEPS]
    run(tmp_path / "carried", mixture, "stages.s2.optimizer.carry=true")
    assert optimizer_step(tmp_path / "carried", "s2") == 2 * STEPS


def test_a_tensor_cut_off_from_the_loss_stops_the_run(
    tmp_path: Path, mixture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = VisionEncoder.forward

    def cut(encoder: VisionEncoder, patches: torch.Tensor, grids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, levels = plain(encoder, patches, grids)
        return features, levels.detach()

    monkeypatch.setattr(VisionEncoder, "forward", cut)
    with pytest.raises(RunFailed, match="deepstack_mergers.0.linear_fc2.weight is trainable but received no gradient"):
        run(tmp_path / "run", mixture)
    assert not (tmp_path / "run" / "checkpoints").exists()
