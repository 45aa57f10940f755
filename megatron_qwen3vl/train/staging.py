"""What a rank contributes to a checkpoint, copied into CPU memory that training does not touch.

Weights as megatron-core describes them. Masters and moments under the names and shapes that its "fully reshardable"
format has, but each data-parallel rank writes the part that it owns (ZeRO-1): megatron would first gather all of it on
every rank. An owned part is a range of the flattened parameter, and such a range is a few boxes of it.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory, is_main_replica
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.optimizer import ChainedOptimizer
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from megatron_qwen3vl.parallel.groups import Groups
from megatron_qwen3vl.train.checkpoint import optimizer_step, weights_tree
from megatron_qwen3vl.train.forward import complete_weights

Data = torch.Tensor | io.BytesIO
Box = tuple[tuple[int, ...], tuple[int, ...]]  # (offsets, sizes)


@dataclass(frozen=True)
class Staged:
    """What one rank writes: ``data`` in the order of ``plan.items``; ``common`` is what is no tensor."""

    plan: SavePlan
    data: list[Data]
    common: dict[str, Any]


@torch.no_grad()
def stage(
    chunks: Sequence[torch.nn.Module], optimizer: ChainedOptimizer | None, groups: Groups, used: Staged | None
) -> Staged:
    """Copy this rank's part, into the memory of ``used`` where it fits: fresh memory costs more than the copy.

    Collective only under overlap, where weights have to be gathered first.
    """
    complete_weights(chunks)
    tree = weights_tree(chunks, groups)
    parts = list(_optimizer_parts(optimizer, tree)) if optimizer is not None else []
    sharded, common = save_preprocess(tree, validate_access_integrity=False)  # torch checks the plans of all ranks
    if optimizer is not None:
        common["optimizer_step"] = optimizer_step(optimizer)
    grouped, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, keep_only_main_replica=True)
    planner = new_planner()
    planner.set_up_planner(mcore_to_pyt_state_dict(grouped, False), is_coordinator=groups.is_writer)
    items = [*planner.create_local_plan().items, *(item for item, _ in parts)]
    weights = [planner.resolve_data(item) for item in planner.plan.items]
    spare = chain(used.data if used is not None else [], repeat(None))
    values = [*weights, *(tensor for _, tensor in parts)]
    data = [_private(value, old) for value, old in zip(values, spare, strict=False)]
    if groups.device.type == "cuda":
        torch.cuda.synchronize()
    return Staged(SavePlan(items), data, common)


def new_planner() -> MCoreSavePlanner:
    return MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)


def _private(value: Data, old: Data | None) -> Data:
    """In contiguous CPU memory of its own, ``old`` where it fits. megatron has made bytes of what is no tensor."""
    if isinstance(value, io.BytesIO):
        return value
    if not isinstance(old, torch.Tensor) or (old.shape, old.dtype) != (value.shape, value.dtype):
        old = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=value.is_cuda)
    return old.copy_(value, non_blocking=True)


def _optimizer_parts(optimizer: ChainedOptimizer, tree: dict[str, Any]) -> Iterator[tuple[WriteItem, torch.Tensor]]:
    """The boxes of masters and moments that this rank owns, as views."""
    described = _by_address(tree)
    for part in optimizer.chained_optimizers:
        for buckets in (by_type for buffer in part.gbuf_ranges for by_type in buffer.values()):
            for parameter, ranges in ((p, r) for bucket in buckets for p, r in bucket["param_map"].items()):
                owned = ranges["param"]
                for leaf in described[parameter.data_ptr()]:
                    # The last number of a replica is its rank among those that share the optimizer's state.
                    if is_main_replica((*leaf.replica_id[:-1], 0)):
                        for name, flat in part._get_main_param_and_optimizer_states(parameter).items():
                            yield from _owned_parts(f"optimizer.state.{name}.{leaf.key}", leaf, parameter, flat, owned)


def _by_address(tree: dict[str, Any]) -> dict[int, list[ShardedTensor]]:
    """Of each parameter, by its address: the parts under which it is saved, as views of it."""
    found = defaultdict(list)
    for entry in nested_values(tree):
        if isinstance(entry, ShardedTensorFactory):
            found[entry.data.data_ptr()].extend(nested_values(entry.build()))
        elif isinstance(entry, ShardedTensor):
            found[entry.data.data_ptr()].append(entry)
    return found


def _owned_parts(
    name: str, leaf: ShardedTensor, parameter: torch.Tensor, flat: torch.Tensor, owned: Any
) -> Iterator[tuple[WriteItem, torch.Tensor]]:
    """``flat`` [owned.end - owned.start] is the state of that range of the flattened parameter."""
    view = leaf.data
    begin = view.storage_offset() - parameter.storage_offset()
    extra = leaf.prepend_axis_num
    for offsets, sizes in boxes(tuple(view.shape), view.stride(), owned.start - begin, owned.end - begin):
        position = begin + sum(o * s for o, s in zip(offsets, view.stride(), strict=True)) - owned.start
        box = flat.as_strided(sizes, view.stride(), flat.storage_offset() + position)
        base = leaf.global_offset
        place = torch.Size((*base[:extra], *(b + o for b, o in zip(base[extra:], offsets, strict=True))))
        chunk = ChunkStorageMetadata(offsets=place, sizes=torch.Size((1,) * extra + sizes))
        about = TensorWriteData(chunk, TensorProperties.create_from_tensor(box), torch.Size(leaf.global_shape))
        yield WriteItem(MetadataIndex(name, place), WriteItemType.SHARD, tensor_data=about), box.view(chunk.sizes)


def boxes(shape: tuple[int, ...], strides: tuple[int, ...], start: int, end: int) -> list[Box]:
    """The elements of a strided view whose position (0 is its first) lies in [start, end), as boxes.

    Strides must fall, as in any slice of a row-major tensor. At most 2 x dimensions - 1 boxes.
    """
    if not shape:
        return [((), ())] if start <= 0 < end else []
    row = 1 + sum((size - 1) * stride for size, stride in zip(shape[1:], strides[1:], strict=True))
    first = max(0, -(-start // strides[0]))  # rows first..last lie wholly inside
    last = min(shape[0] - 1, (end - row) // strides[0])
    found = [((first, *(0 for _ in shape[1:])), (last - first + 1, *shape[1:]))] if first <= last else []
    for cut in {first - 1, last + 1}:
        if 0 <= cut < shape[0] and not (first <= cut <= last):
            inner = boxes(shape[1:], strides[1:], start - cut * strides[0], end - cut * strides[0])
            found += [((cut, *offsets), (1, *sizes)) for offsets, sizes in inner]
    return sorted(found)
