"""Hugging Face -> training checkpoint -> Hugging Face, through megatron-core's distributed checkpointing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from convert_cases import Saved, save_reference
from safetensors.torch import load_file, save_file

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.parallel.groups import Groups
from megatron_qwen3vl.train.convert import export_folder, import_folder


def assert_same_folder(out: Path, source: Path) -> None:
    assert {p.name for p in out.iterdir()} == {p.name for p in source.iterdir()}
    for path in source.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_round_trip_through_a_checkpoint(saved: Saved, groups: Groups, tmp_path: Path) -> None:
    import_folder(saved.folder, tmp_path / "checkpoint", groups)
    export_folder(tmp_path / "checkpoint", tmp_path / "out", groups)
    assert_same_folder(tmp_path / "out", saved.folder)


def test_mixed_types_stay(references: dict, groups: Groups, tmp_path: Path) -> None:
    source = save_reference(references["moe"], tmp_path / "source", "bfloat16")
    tensors = load_file(source / "model.safetensors")
    tensors = {
        n: t.float() + 1e-4 if "mlp.gate.weight" in n or n.endswith("norm.weight") else t for n, t in tensors.items()
    }
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    import_folder(source, tmp_path / "checkpoint", groups)
    export_folder(tmp_path / "checkpoint", tmp_path / "out", groups)
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert all(again[n].dtype == t.dtype and torch.equal(again[n], t) for n, t in tensors.items())
    assert again.keys() == tensors.keys()


def test_used_folders_are_refused(saved: Saved, groups: Groups, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    with pytest.raises(UserError, match="full: already there and not an empty folder"):
        import_folder(saved.folder, tmp_path / "full", groups)
    with pytest.raises(UserError, match="not a complete checkpoint"):
        export_folder(saved.folder, tmp_path / "out", groups)


def test_commands(references: dict, tmp_path: Path) -> None:
    source = save_reference(references["dense_tied"], tmp_path / "source", "bfloat16")
    for action, a, b in (("import", "source", "checkpoint"), ("export", "checkpoint", "out")):
        command = [sys.executable, "-m", "megatron_qwen3vl", "convert", action, tmp_path / a, tmp_path / b]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
    assert_same_folder(tmp_path / "out", source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "out", "source"]
