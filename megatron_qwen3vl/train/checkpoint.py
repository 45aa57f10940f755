"""Checkpoints on megatron-core's distributed checkpointing, loadable in any other layout.

    step_00000012/
      state.json       the trainer's and the loader's state, as JSON: small, readable, floats exact
      tensors/         weights, fp32 masters, moments and step count (torch_dist format, fully reshardable)
      config.json ...  the extra files that the caller gives

A folder of that name is complete: it is written (saving.py) as a hidden sibling, flushed to the disk, then renamed.
What a killed save or deletion leaves behind is hidden too, never loaded, and removed by the next one.

On safety: state.json is JSON, tensors and ``common.pt`` are read without unpickling objects (``weights_only``), and
nothing else is read. torch's own index, ``tensors/.metadata``, is a pickle; ``_check_index`` refuses it when it names
anything but torch's index types, an entry that is not a tensor, or a file elsewhere.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as torch_checkpoint
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedObject
from megatron.core.optimizer import ChainedOptimizer, distrib_optimizer
from megatron.core.transformer.module import MegatronModule
from megatron.core.utils import unwrap_model
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.parallel.groups import Groups, from_first_rank
from megatron_qwen3vl.train.disk import Disk

FORMAT = 1
STATE = "state.json"
TENSORS = "tensors"
SHARDING = "fully_reshardable"
_NAME = re.compile(r"step_\d{8}")
_REFUSALS = (CheckpointingException, torch_checkpoint.api.CheckpointException)
_DAMAGE = (OSError, EOFError, KeyError, pickle.UnpicklingError)
_INDEX_NAMES = {
    "collections.OrderedDict",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
    "torch.Size",
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.distributed.checkpoint.metadata.BytesStorageMetadata",
    "torch.distributed.checkpoint.metadata.ChunkStorageMetadata",
    "torch.distributed.checkpoint.metadata.Metadata",
    "torch.distributed.checkpoint.metadata.MetadataIndex",
    "torch.distributed.checkpoint.metadata.StorageMeta",
    "torch.distributed.checkpoint.metadata.TensorProperties",
    "torch.distributed.checkpoint.metadata.TensorStorageMetadata",
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
    "torch.serialization._get_layout",
}
# Where gradients go in several messages megatron-core 0.16.1 would save masters and moments shifted, and says so on
# loading too. Our saves take every parameter's state from its owner (staging.py); loads fill parameter by parameter.
_SHIFTED = "param range exceeds unpadded buffer"
logging.getLogger(distrib_optimizer.__name__).addFilter(lambda record: _SHIFTED not in record.getMessage())
_OBJECT = "._extra_state"  # of its name; see _tree_to_load
_LEFTOVER = re.compile(r"\.step_\d{8}\.(new|old|dead)")


def load_checkpoint(
    folder: Path, chunks: Sequence[torch.nn.Module], optimizer: ChainedOptimizer | None, groups: Groups
) -> dict[str, Any]:
    """Fill the chunks and, when given, the optimizer from a checkpoint of any layout; returns its state.

    Masters, moments and step count come from the checkpoint; rates, betas and weight decay stay as built. A parameter
    that was frozen when the checkpoint was written begins with zero moments. Without an optimizer the caller refreshes
    the fp32 masters (``optimizer.reload_model_params()``). Collective over all ranks. Raises UserError when the folder
    is missing, incomplete, foreign or of another model.
    """
    state = from_first_rank(lambda: _checked_state(folder))
    source = str(folder / TENSORS)
    tree = _tree_to_load(chunks, optimizer, groups)
    begun = False
    try:
        if optimizer is not None:
            begun = _begin_absent_moments(tree, dist_checkpointing.load_tensors_metadata(source))
        loaded = dist_checkpointing.load(tree, source)
    except (*_REFUSALS, *_DAMAGE) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:300]
        raise UserError(f"{folder}: damaged, or another model's ({reason}); use another checkpoint") from error
    weights = {key: loaded[key] for key, _ in _named_chunks(chunks)}
    if begun:  # in float32 the masters are the weights, and zeros stand for those that the checkpoint lacks
        weights = {key: {name: _copy(value) for name, value in tensors.items()} for key, tensors in weights.items()}
    if optimizer is not None:
        _load_optimizer(optimizer, loaded)
    for key, chunk in _named_chunks(chunks):
        chunk.load_state_dict(weights[key])
    if optimizer is not None and begun:
        optimizer.reload_model_params()
    return state


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON state of a checkpoint. Raises UserError when the folder holds none that we wrote."""
    try:
        content = json.loads((folder / STATE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: no checkpoint here ({STATE} is missing); give a folder step_<8 digits>") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / STATE}: cannot be read ({error}); use another checkpoint") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or "state" not in content:
        raise UserError(f"{folder / STATE}: not in the format this version writes; use another checkpoint")
    return content["state"]


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder looks like a checkpoint that we wrote; nothing is read."""
    return all((folder / name).is_file() for name in (STATE, f"{TENSORS}/.metadata", f"{TENSORS}/metadata.json"))


def complete_checkpoints(root: Path) -> list[Path]:
    """The complete checkpoints under ``root``, ascending by step; none where there is no such folder."""
    if not root.is_dir():
        return []
    named = [path for path in root.iterdir() if _NAME.fullmatch(path.name) or _is_sole(path)]
    return sorted((path for path in named if is_checkpoint(path)), key=lambda path: path.name.lstrip("."))


def latest_checkpoint(root: Path) -> Path | None:
    """The complete checkpoint of the highest step under ``root``, or None."""
    found = complete_checkpoints(root)
    return found[-1] if found else None


def prune(root: Path, keep: int, disk: Disk) -> None:
    """Delete all but the newest ``keep`` checkpoints under ``root``. For one rank."""
    clean_leftovers(root, disk)
    for folder in complete_checkpoints(root)[:-keep]:
        dead = root / f".{folder.name}.dead"
        disk.rename(folder, dead)  # hidden first: a deletion that is killed leaves nothing that looks complete
        disk.remove(dead)


def clean_leftovers(root: Path, disk: Disk) -> None:
    """Remove what killed saves and deletions left under ``root``. For one rank."""
    for path in list(root.glob(".step_*")):
        if _LEFTOVER.fullmatch(path.name) is None:
            continue
        if _is_sole(path):
            disk.rename(path, root / path.stem.removeprefix("."))
        else:
            disk.remove(path)


def put_in_place(folder: Path, new: Path, disk: Disk) -> None:
    """Give ``new``, flushed to the disk, its name; a folder that has it already goes."""
    old = folder.parent / f".{folder.name}.old"
    if folder.exists():
        disk.rename(folder, old)
    disk.rename(new, folder)
    disk.sync_folder(folder.parent)
    if old.exists():
        disk.remove(old)


def _named_chunks(chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[str, MegatronModule]]:
    for index, chunk in enumerate(chunks):
        yield (f"model{index}" if len(chunks) > 1 else "model"), unwrap_model(chunk)


def weights_tree(chunks: Sequence[torch.nn.Module], groups: Groups) -> dict[str, Any]:
    """The weights as megatron-core's sharded tensors, by chunk."""
    return {key: chunk.sharded_state_dict(metadata=_metadata(groups)) for key, chunk in _named_chunks(chunks)}


def optimizer_step(optimizer: ChainedOptimizer) -> int:
    """How many updates the optimizer has made."""
    return max(group["step"] for group in optimizer.param_groups)


def _tree_to_load(
    chunks: Sequence[torch.nn.Module], optimizer: ChainedOptimizer | None, groups: Groups
) -> dict[str, Any]:
    """Weights, masters and moments to fill, and the step count.

    Objects stay on the disk: torch's planner would unpickle them, whatever they are. Megatron's layers write empty ones
    (``_extra_state``, for Transformer Engine's fp8) and do nothing with what they are given.
    Only tensors and the step come from the optimizer. The rest of its state (how many parts it has, their groups)
    belongs to a layout: with ep=1 the experts are part of the first optimizer, else they have their own.
    """
    tree = weights_tree(chunks, groups)
    for entries in tree.values():
        for name, value in entries.items():
            if isinstance(value, ShardedObject):
                entries[name] = LocalNonpersistentObject(None)
    if optimizer is not None:
        metadata = _metadata(groups)
        parts = [part.sharded_state_dict(tree, True, metadata=metadata) for part in optimizer.chained_optimizers]
        tree["optimizer"] = {f"part{index}": part["param_state"] for index, part in enumerate(parts)}
        tree["optimizer_step"] = optimizer_step(optimizer)
    return tree


def _metadata(groups: Groups) -> dict[str, Any]:
    return {
        "distrib_optim_sharding_type": SHARDING,
        "distrib_optim_fully_reshardable_mem_efficient": False,
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": groups.dp_cp,
    }


def _begin_absent_moments(tree: dict[str, Any], saved: Mapping[str, object]) -> bool:
    """Replace what the checkpoint has no moments of by zeros; whether there was any."""
    begun = False
    for part in tree["optimizer"].values():
        for entry in part.values():
            if all(sharded.key not in saved for sharded in entry.values()):
                begun = True
                for name, sharded in entry.items():
                    entry[name] = LocalNonpersistentObject(torch.zeros_like(sharded.data))
    return begun


def _load_optimizer(optimizer: ChainedOptimizer, loaded: dict[str, Any]) -> None:
    """Hand over masters, moments and step count; everything else of the groups is the present configuration's."""
    parts = loaded.get("optimizer", {})  # megatron drops what is empty, as on a rank whose parameters are all frozen
    step = loaded.get("optimizer_step", 0)  # absent where weights alone were saved
    for index, own in enumerate(optimizer.chained_optimizers):
        present = own.state_dict()["optimizer"]["param_groups"]
        own.load_state_dict(
            {
                "optimizer": {"param_groups": [{**group, "step": step} for group in present]},
                "param_state": parts.get(f"part{index}", {}),
                "param_state_sharding_type": SHARDING,
            }
        )


def _copy(value: object) -> object:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _checked_state(folder: Path) -> dict[str, Any]:
    state = read_state(folder)
    if not is_checkpoint(folder):
        raise UserError(f"{folder}: incomplete ({TENSORS}/ lacks its index); use another checkpoint")
    _check_index(folder / TENSORS / ".metadata")
    return state


class _IndexReader(pickle.Unpickler):
    """Reads torch's index and refuses every other name that a pickle could call."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or f"{module}.{name}" in _INDEX_NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _check_index(path: Path) -> None:
    """Only tensors and objects that are never read, only from files beside it."""
    try:
        index = _IndexReader(io.BytesIO(path.read_bytes())).load()
        for name, entry in index.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata) and _OBJECT not in name:
                raise pickle.UnpicklingError(f"{name} is not a tensor")
        for info in index.storage_data.values():
            if Path(info.relative_path).name != info.relative_path:
                raise pickle.UnpicklingError(f"{info.relative_path} lies outside of it")
    except Exception as error:  # a pickle of allowed names can still be anything
        raise UserError(f"{path}: not the index of a checkpoint ({error}); use another checkpoint") from None


def _is_sole(path: Path) -> bool:
    """Whether it is the old folder of a replacement that was killed between its two renames: it is whole."""
    if _LEFTOVER.fullmatch(path.name) is None or path.suffix != ".old":
        return False
    return not path.with_name(path.stem.removeprefix(".")).exists()
