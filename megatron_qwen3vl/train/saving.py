"""Saving a checkpoint while training goes on.

    Saver.save     copies what will change (weights; megatron has gathered masters and moments into memory of their own
                   already), and returns
    a thread       of each rank writes that rank's tensors, flushed to the disk
    Saver.advance  once all ranks are ready: the first rank learns where everything lies, and a thread of it writes the
                   index and the small files, gives the folder its name and deletes old checkpoints
    Saver.advance  once that is done: every rank learns how it went

Threads never talk to other ranks; that is done here, where all ranks meet anyway. Whether all are ready travels with
the losses of each step.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.utils import unwrap_model
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.storage import WriteResult

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.parallel.groups import Groups, from_first_rank, gather_to_first_rank
from megatron_qwen3vl.train.checkpoint import (
    FORMAT,
    STATE,
    TENSORS,
    clean_leftovers,
    prune,
    put_in_place,
    sharded_tree,
)
from megatron_qwen3vl.train.disk import Disk

T = TypeVar("T")


def save_checkpoint(
    folder: Path,
    chunks: Sequence[torch.nn.Module],
    optimizer: ChainedOptimizer | None,
    state: Mapping[str, Any],
    groups: Groups,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write ``folder``, complete or not at all, and wait for it. Collective over all ranks; see ``Saver.save``."""
    saver = Saver(groups, Disk(), keep=None)
    try:
        saver.save(folder, chunks, optimizer, state, files or {}, flush=lambda: None)
        saver.wait()
    finally:
        saver.close()


@dataclass(frozen=True)
class _Staged:
    """What a rank writes: tensors that nobody changes any more, in the order of ``plan``; ``common`` is the rest."""

    planner: MCoreSavePlanner
    plan: SavePlan
    common: dict[str, Any]


@dataclass(frozen=True)
class _Written:
    """What a rank hands in: where each part of its plan lies, or why it could not be written."""

    plan: SavePlan
    places: list[WriteResult]
    problem: str | None


@dataclass(frozen=True)
class _Flight:
    """A save under way. ``named`` follows ``written`` once all ranks have handed in."""

    name: Callable[[Sequence[_Written]], None]
    written: Future[_Written]
    named: Future[None] | None = None


class Saver:
    """The saves of one stage, one at a time. ``keep`` is how many checkpoints a folder may hold; None keeps all."""

    def __init__(self, groups: Groups, disk: Disk, keep: int | None) -> None:
        self._groups, self._disk, self._keep = groups, disk, keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._flight: _Flight | None = None
        self._checked = False

    def save(
        self,
        folder: Path,
        chunks: Sequence[torch.nn.Module],
        optimizer: ChainedOptimizer | None,
        state: Mapping[str, Any],
        files: Mapping[str, bytes],
        flush: Callable[[], None],
    ) -> None:
        """Begin to write ``folder``, which will be complete or absent; one that is there already is replaced.

        ``state`` must be JSON. ``files`` are further files by their path inside the folder. ``flush`` is called before
        the folder gets its name: for other files that the state speaks of. Waits for the save before this one.
        Collective over all ranks. Raises UserError when the disk refuses.
        """
        self.wait()
        content = json.dumps({"format": FORMAT, "state": state}, indent=1).encode()
        new = folder.parent / f".{folder.name}.new"
        created = from_first_rank(lambda: _writing(folder, partial(_begin, folder.parent, new, self._disk)))
        staged = _stage(chunks, optimizer, self._groups, check=not self._checked)
        self._checked = True  # what is saved, and by whom, stays the same over a stage

        def name(handed_in: Sequence[_Written]) -> None:
            _refuse_problems(handed_in)
            _write_index(self._disk, new / TENSORS, handed_in, staged.common)
            _write_files(self._disk, new, {**files, STATE: content})
            flush()
            put_in_place(folder, new, self._disk)
            for path in created:
                self._disk.sync_folder(path)
            if self._keep is not None:
                prune(folder.parent, self._keep, self._disk)

        write = partial(_write_tensors, self._disk, new / TENSORS, f"__{self._groups.rank}_0.distcp", staged)
        self._flight = _Flight(lambda handed_in: _writing(folder, partial(name, handed_in)), self._pool.submit(write))

    @property
    def ready(self) -> bool:
        """Whether this rank has nothing left to do before ``advance``."""
        if self._flight is None:
            return True
        return (self._flight.named or self._flight.written).done()

    def advance(self) -> None:
        """Take the save under way one part further; waits where this rank is not ready. Collective over all ranks.

        Raises UserError, on all ranks, when a disk has refused on any.
        """
        flight = self._flight
        if flight is None:
            return
        if flight.named is not None:
            self._flight = None
            from_first_rank(flight.named.result)
            return
        handed_in = gather_to_first_rank(flight.written.result())
        named = self._pool.submit(flight.name, handed_in) if self._groups.is_writer else _nothing()
        self._flight = _Flight(flight.name, flight.written, named)

    def wait(self) -> None:
        """Until the save under way is complete. Collective over all ranks. Raises UserError as ``advance``."""
        while self._flight is not None:
            self.advance()

    def close(self) -> None:
        """Until this rank's thread is done: the save may stay absent. Not collective."""
        self._pool.shutdown()


def _nothing() -> Future[None]:
    done: Future[None] = Future()
    done.set_result(None)
    return done


def _begin(root: Path, new: Path, disk: Disk) -> list[Path]:
    """Make the temporary folder; the folders that hold the name of one made on the way."""
    clean_leftovers(root, disk)
    missing = [path for path in (root, *root.parents) if not path.exists()]
    disk.make_folder(new / TENSORS)
    return [path.parent for path in missing]


def _stage(
    chunks: Sequence[torch.nn.Module], optimizer: ChainedOptimizer | None, groups: Groups, check: bool
) -> _Staged:
    """``check`` has all ranks find out whether each part of each tensor is written exactly once."""
    tree = sharded_tree(chunks, optimizer, groups, is_loading=False)
    sharded, common = save_preprocess(tree, validate_access_integrity=check)
    grouped, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, keep_only_main_replica=True)
    live = set(_live_storages(chunks, optimizer))
    with torch.no_grad():
        for shard in (shard for shards in grouped.values() for shard in shards if isinstance(shard, ShardedTensor)):
            shard.data = _private(shard.data, live)
    planner = _planner()
    planner.set_up_planner(mcore_to_pyt_state_dict(grouped, False), is_coordinator=groups.is_writer)
    return _Staged(planner, planner.create_local_plan(), common)


def _planner() -> MCoreSavePlanner:
    return MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)


def _live_storages(chunks: Sequence[torch.nn.Module], optimizer: ChainedOptimizer | None) -> Iterator[int]:
    """Addresses of the memory that training changes in place."""
    for module in map(unwrap_model, chunks):
        yield from (tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers()))
    for part in optimizer.chained_optimizers if optimizer is not None else ():
        for parameter in part.get_parameters():
            yield parameter.untyped_storage().data_ptr()
            yield from (moment.untyped_storage().data_ptr() for moment in part.optimizer.state[parameter].values())


def _private(tensor: torch.Tensor, live: set[int]) -> torch.Tensor:
    """The tensor in CPU memory that nobody else changes."""
    tensor = tensor.detach()
    if tensor.device.type != "cpu":
        return tensor.cpu()
    return tensor.clone() if tensor.untyped_storage().data_ptr() in live else tensor


def _write_tensors(disk: Disk, folder: Path, name: str, staged: _Staged) -> _Written:
    """One file, in the form that torch's FileSystemReader reads: a torch.save of each tensor after the other."""
    places: list[WriteResult] = []
    if not staged.plan.items:
        return _Written(staged.plan, places, None)
    try:
        with disk.create(folder / name) as stream:
            for item in staged.plan.items:
                offset = stream.tell()
                _write_item(stream, staged.planner.resolve_data(item))
                length = stream.tell() - offset
                places.append(WriteResult(item.index, length, _StorageInfo(name, offset, length)))
        disk.sync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of what the disk says
        return _Written(staged.plan, [], str(error).strip() or type(error).__name__)
    return _Written(staged.plan, places, None)


def _write_item(stream: Any, data: torch.Tensor | io.BytesIO) -> None:
    if isinstance(data, io.BytesIO):
        stream.write(data.getbuffer())
        return
    if data.untyped_storage().nbytes() != data.nbytes:
        data = data.clone()  # torch.save writes all of the memory that a view is a part of
    torch.save(data, stream)


def _refuse_problems(handed_in: Sequence[_Written]) -> None:
    for rank, written in enumerate(handed_in):
        if written.problem is not None:
            raise OSError(f"rank {rank}: {written.problem.splitlines()[0][:300]}")


def _write_index(disk: Disk, folder: Path, handed_in: Sequence[_Written], common: dict[str, Any]) -> None:
    """What megatron and torch want beside the tensors; also finds gaps and overlaps between the ranks' plans."""
    _, index = _planner().create_global_plan([written.plan for written in handed_in])
    index.storage_data = {place.index: place.storage_data for written in handed_in for place in written.places}
    index.storage_meta, index.version = StorageMeta(), CURRENT_DCP_VERSION
    form = json.dumps(asdict(CheckpointingConfig("torch_dist", 1))).encode()
    rest = io.BytesIO()
    torch.save(common, rest)
    _write_files(
        disk, folder, {"common.pt": rest.getvalue(), "metadata.json": form, ".metadata": pickle.dumps(index)}
    )


def _write_files(disk: Disk, folder: Path, files: Mapping[str, bytes]) -> None:
    """The files and the folders they need, flushed to the disk."""
    parents = {folder}
    for name, data in files.items():
        path = folder / name
        disk.make_folder(path.parent)
        parents.update(parent for parent in path.parents if parent.is_relative_to(folder))
        with disk.create(path) as stream:
            stream.write(data)
    for parent in sorted(parents, key=lambda path: len(path.parts), reverse=True):
        disk.sync_folder(parent)


def _writing(folder: Path, act: Callable[[], T]) -> T:
    try:
        return act()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); free the disk or choose another run.dir") from error
