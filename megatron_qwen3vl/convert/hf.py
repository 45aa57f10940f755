"""Weights from a Hugging Face folder into our model chunks, and back; one parameter at a time.

Reading divides by tensor, expert and pipeline parallelism as the chunks are divided; writing wants the whole model
in one
process (tensor, pipeline and expert size 1; a checkpoint can be loaded so, whatever layout saved it).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from megatron.core.utils import unwrap_model
from torch import Tensor, nn

from megatron_qwen3vl.config.schema import ModelConfig
from megatron_qwen3vl.convert.config import set_dtype, to_hf_config
from megatron_qwen3vl.convert.names import EMBEDDING, Entry, HfTensor, NameTable
from megatron_qwen3vl.convert.safetensors_files import (
    INDEX_FILE,
    SINGLE_FILE,
    PlannedTensor,
    WeightFiles,
    write_file,
    write_index,
)
from megatron_qwen3vl.convert.source_layout import CONFIG_FILE, LAYOUT_FILE, SourceLayout, chosen_layout, layout_of
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.model.build import global_parameters
from megatron_qwen3vl.parallel.groups import Groups

HEAD = "lm_head.weight"
DEFAULT_SHARD_BYTES = 5 * 10**9
PROBLEMS_SHOWN = 8


def load_hf(modules: Sequence[nn.Module], model: ModelConfig, folder: Path, groups: Groups) -> None:
    """Fill every parameter of this rank's chunks from the safetensors in ``folder``.

    A value is cast to its parameter's type: exactly from 16 to 32 bits, rounded to nearest even from 32 to 16. An
    optimizer that keeps its own copy of the weights must be made, or told to reload, afterwards. Raises UserError
    naming
    the file and tensor that is missing, unexpected, misshapen, damaged or cut short; nothing is filled then, except
    when a
    file changes while it is read.
    """
    with WeightFiles(folder) as weights:
        table = NameTable.of(model, layout_of(weights).transposed_experts)
        problems = misfits(weights, table, tied=model.tie_word_embeddings)
        if problems:
            raise UserError(problems)
        unfilled = fill(modules, [(weights, table)], groups)
    if unfilled:
        raise ValueError(f"the table has no row for {unfilled[:3]}")


def fill(
    modules: Sequence[nn.Module], sources: Sequence[tuple[WeightFiles, NameTable]], groups: Groups
) -> list[str]:
    """Fill this rank's parameters from the folders whose tables name them; the names that none of them has."""
    entries = {name: (weights, entry) for weights, table in sources for name, entry in table.entries.items()}
    unfilled = []
    for chunk in modules:
        for name, parameter in global_parameters(unwrap_model(chunk)):
            if name not in entries:
                unfilled.append(name)
                continue
            weights, entry = entries[name]
            full = entry.rule.operation.merge([weights.read(piece.name, piece.index) for piece in entry.pieces])
            parameter.data.copy_(_own_shard(entry, full, parameter, groups))
    return unfilled


def export_hf(
    modules: Sequence[nn.Module],
    model: ModelConfig,
    dtype: torch.dtype | None,
    files: Mapping[str, bytes],
    out: Path,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write a Hugging Face folder: weights, ``config.json``, and the side files as they are.

    ``dtype`` None keeps each parameter's type. ``files`` comes from ``read_side_files``: its source layout decides the
    order of the experts and which tensor goes into which file; without one, files of at most ``max_shard_bytes``.
    ``out`` is complete or absent. Raises UserError when ``out`` holds something already.
    """
    refuse_used(out)
    layout = chosen_layout(files, model)
    table = NameTable.of(model, layout.transposed_experts)
    parameters = dict(entry for chunk in modules for entry in global_parameters(unwrap_model(chunk)))
    absent, foreign = sorted(table.entries.keys() - parameters.keys()), sorted(parameters.keys() - table.entries.keys())
    if absent or foreign:
        raise ValueError(f"the model is not whole or not of this shape: without {absent[:3]}, with {foreign[:3]}")
    planned = [_plan(tensor, parameters, dtype) for tensor in table.tensors.values()]
    partial_folder = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    try:
        _write_weights(partial_folder, planned, layout, max_shard_bytes)
        _write_side_files(partial_folder, model, _main_dtype(planned), files)
        partial_folder.rename(out)  # replaces an empty folder
    except BaseException:
        shutil.rmtree(partial_folder, ignore_errors=True)
        raise


def refuse_used(out: Path) -> None:
    """Raise UserError unless ``out`` can be made: it is absent or an empty folder, in a place that can be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already there and not an empty folder; choose another, or move it away")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: its folder cannot be made ({error.strerror}); choose another") from None
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"{out}: no permission to write there; choose another")


def misfits(
    weights: WeightFiles, table: NameTable, tied: bool = False, left_out: Collection[str] = ()
) -> list[str]:
    """Every tensor that is missing, misshapen or, ``left_out`` apart, unexpected; a tied head may come along."""
    folder, stored = weights.folder, weights.tensors
    problems = []
    for name, tensor in table.tensors.items():
        if name not in stored:
            problems.append(f"{folder}: tensor {name!r} is missing from the weights; is config.json of another model?")
        elif stored[name].shape != tensor.shape:
            found = f"{folder / stored[name].file}: tensor {name!r} has shape {list(stored[name].shape)}"
            problems.append(f"{found}, config.json asks for {list(tensor.shape)}")
    for name in sorted(stored.keys() - table.tensors.keys() - set(left_out)):
        if tied and name == HEAD:
            problems += _refuse_other_head(weights, table)
        else:
            problems.append(
                f"{folder / stored[name].file}: tensor {name!r} is unexpected; config.json has no place for it"
            )
    if len(problems) > PROBLEMS_SHOWN:
        problems = [*problems[:PROBLEMS_SHOWN], f"{folder}: and {len(problems) - PROBLEMS_SHOWN} more such tensors"]
    return problems


def _refuse_other_head(weights: WeightFiles, table: NameTable) -> list[str]:
    """A tied model may bring its head along, but only the embedding again."""
    embedding = table.entries[EMBEDDING].pieces[0].name
    if embedding in weights.tensors and torch.equal(weights.read(HEAD), weights.read(embedding)):
        return []
    file = weights.folder / weights.tensors[HEAD].file
    return [f"{file}: tensor {HEAD!r} differs from {embedding!r}; set tie_word_embeddings false in config.json"]


def _own_shard(entry: Entry, full: Tensor, parameter: nn.Parameter, groups: Groups) -> Tensor:
    """This rank's part. Whether a tensor is divided is seen from its parameter's shape, how from the table."""
    partition = entry.rule.partition
    if full.shape == parameter.shape or partition.dim is None:
        size, rank = 1, 0
    else:
        size = full.shape[partition.dim] // parameter.shape[partition.dim]
        rank = groups.etp_rank if entry.rule.of_expert else groups.tp_rank
    shard = partition.shard(full, rank, size)
    if shard.shape != parameter.shape:
        raise ValueError(f"{entry.ours}: {list(parameter.shape)} is no shard of {list(full.shape)}")
    return shard


def _plan(tensor: HfTensor, parameters: Mapping[str, nn.Parameter], dtype: torch.dtype | None) -> PlannedTensor:
    own = parameters[tensor.parts[0][0].ours].dtype
    return PlannedTensor(tensor.name, dtype or own, tensor.shape, partial(_parts, tensor, parameters))


def _parts(tensor: HfTensor, parameters: Mapping[str, nn.Parameter]) -> Iterator[Tensor]:
    for entry, number in tensor.parts:
        yield entry.rule.operation.split(parameters[entry.ours].data)[number]


def _write_weights(folder: Path, planned: Sequence[PlannedTensor], layout: SourceLayout, max_shard_bytes: int) -> None:
    files = _files(planned, layout.weight_map, max_shard_bytes)
    for file, tensors in files.items():
        write_file(folder / file, tensors)
    if list(files) != [SINGLE_FILE]:
        weight_map = {tensor.name: file for file, tensors in files.items() for tensor in tensors}
        parameters = sum(tensor.nbytes // tensor.dtype.itemsize for tensor in planned)
        write_index(folder / INDEX_FILE, weight_map, parameters, sum(tensor.nbytes for tensor in planned))


def _files(
    planned: Sequence[PlannedTensor], weight_map: Mapping[str, str], max_shard_bytes: int
) -> dict[str, list[PlannedTensor]]:
    """File -> its tensors: the source's own division, else layer by layer up to ``max_shard_bytes``."""
    if all(tensor.name in weight_map for tensor in planned):
        files: dict[str, list[PlannedTensor]] = {}
        for tensor in planned:
            files.setdefault(weight_map[tensor.name], []).append(tensor)
        return dict(sorted(files.items()))
    shards: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in sorted(planned, key=lambda t: _natural(t.name)):
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    return {f"model-{n:05d}-of-{len(shards):05d}.safetensors": shard for n, shard in enumerate(shards, 1)}


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _main_dtype(planned: Iterable[PlannedTensor]) -> torch.dtype:
    counts: dict[torch.dtype, int] = {}
    for tensor in planned:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.nbytes // tensor.dtype.itemsize
    return max(counts, key=lambda dtype: counts[dtype])


def _write_side_files(folder: Path, model: ModelConfig, dtype: torch.dtype, files: Mapping[str, bytes]) -> None:
    name = str(dtype).removeprefix("torch.")
    for file, content in files.items():
        if file not in (CONFIG_FILE, LAYOUT_FILE):
            (folder / file).write_bytes(content)
    if CONFIG_FILE in files:
        config = set_dtype(files[CONFIG_FILE], name)
    else:
        config = (json.dumps(to_hf_config(model, name), indent=2) + "\n").encode()
    (folder / CONFIG_FILE).write_bytes(config)
