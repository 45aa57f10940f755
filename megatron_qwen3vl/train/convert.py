"""``convert import`` and ``convert export``: between a Hugging Face folder and a training checkpoint, on one process.

Needs memory for the weights once, on the CPU; no GPU and no optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from megatron_qwen3vl.config.schema import ONE_PROCESS, LossConfig, ModelConfig
from megatron_qwen3vl.convert.config import read_config
from megatron_qwen3vl.convert.hf import export_hf, load_hf, refuse_used
from megatron_qwen3vl.convert.names import NameTable
from megatron_qwen3vl.convert.safetensors_files import WeightFiles
from megatron_qwen3vl.convert.source_layout import layout_of, read_side_files
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.model.build import build_chunks
from megatron_qwen3vl.model.experts import single_expert
from megatron_qwen3vl.model.qwen3vl import Qwen3VL
from megatron_qwen3vl.parallel.device import start_device
from megatron_qwen3vl.parallel.groups import Groups, shutdown, start_groups, world_size
from megatron_qwen3vl.parallel.layout import Layout
from megatron_qwen3vl.train.checkpoint import is_checkpoint, load_checkpoint, read_state
from megatron_qwen3vl.train.saving import save_checkpoint

_NO_LOSS = LossConfig(exponent=0.0, aux_coefficient=0.0, chunk_size=1)


def import_checkpoint(hf_dir: Path, out: Path) -> None:
    """A training checkpoint ``out`` with the weights of ``hf_dir``, each in its own type, and its side files.

    Raises UserError for a damaged or foreign folder, and when ``out`` holds something already.
    """
    with _alone() as groups:
        import_folder(hf_dir, out, groups)


def export_checkpoint(checkpoint: Path, hf_dir: Path) -> None:
    """A Hugging Face folder ``hf_dir`` with the weights of a checkpoint saved by any layout.

    The type is the run's ``dtype``; an imported checkpoint keeps every tensor's own. Raises UserError when
    ``checkpoint`` is none of ours and when ``hf_dir`` holds something already.
    """
    with _alone() as groups:
        export_folder(checkpoint, hf_dir, groups)


def import_folder(hf_dir: Path, out: Path, groups: Groups) -> None:
    """``import_checkpoint`` inside groups that are up already (one process)."""
    refuse_used(out)
    model = read_config(hf_dir)
    dtypes = _stored_dtypes(hf_dir, model)
    chunks = _build(model, dtypes, groups)
    load_hf(chunks, model, hf_dir, groups)
    state = {"imported": True, "dtypes": {row: str(dtype).removeprefix("torch.") for row, dtype in dtypes.items()}}
    save_checkpoint(out, chunks, None, state, groups, files=read_side_files(hf_dir))


def export_folder(checkpoint: Path, hf_dir: Path, groups: Groups) -> None:
    """``export_checkpoint`` inside groups that are up already (one process)."""
    refuse_used(hf_dir)
    if not is_checkpoint(checkpoint):
        raise UserError(f"{checkpoint}: not a complete checkpoint; give a folder checkpoints/<stage>/step_<8 digits>")
    state, model, files = read_state(checkpoint), read_config(checkpoint), read_side_files(checkpoint)
    rows = {entry.rule.ours for entry in NameTable.of(model, transposed_experts=False).entries.values()}
    named = state["dtypes"] if state.get("imported") else dict.fromkeys(rows, state["dtype"])
    chunks = _build(model, {row: getattr(torch, dtype) for row, dtype in named.items()}, groups)
    load_checkpoint(checkpoint, chunks, None, groups)
    export_hf(chunks, model, None, files, hf_dir)


@contextmanager
def _alone() -> Iterator[Groups]:
    if world_size() != 1:
        raise UserError("convert: runs on one process; start it with plain python, not torchrun or srun")
    groups = start_groups(Layout.from_config(ONE_PROCESS, 1), start_device("cpu"))
    try:
        yield groups
        groups.stop()
    finally:
        shutdown()


def _stored_dtypes(hf_dir: Path, model: ModelConfig) -> dict[str, torch.dtype]:
    """Row of the name table -> its type in the folder; where layers differ, the type that holds all of them exactly.

    megatron-core stores a parameter's layers as one tensor, so a row has one type.
    """
    dtypes: dict[str, torch.dtype] = {}
    with WeightFiles(hf_dir) as weights:
        for entry in NameTable.of(model, layout_of(weights).transposed_experts).entries.values():
            for piece in entry.pieces:
                if piece.name in weights.tensors:  # a missing one is load_hf's to report
                    own = weights.tensors[piece.name].dtype
                    dtypes[entry.rule.ours] = torch.promote_types(dtypes.get(entry.rule.ours, own), own)
                else:
                    dtypes.setdefault(entry.rule.ours, torch.float32)
    return dtypes


def _build(model: ModelConfig, dtypes: Mapping[str, torch.dtype], groups: Groups) -> list[Qwen3VL]:
    """The whole model, each parameter in the type of its row."""
    chunks = build_chunks(model, ONE_PROCESS, groups, "float32", _NO_LOSS)
    entries = NameTable.of(model, transposed_experts=False).entries
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():  # one process: the names are those of the whole model
            row = single_expert(name, parameter, 0)[0] if ".experts." in name else name
            parameter.data = torch.empty(parameter.shape, dtype=dtypes[entries[row].rule.ours])
    return chunks
