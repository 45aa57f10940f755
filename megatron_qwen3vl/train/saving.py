"""Saving a checkpoint while training goes on.

    Saver.save     copies what this rank writes, and returns
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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig
from megatron.core.optimizer import ChainedOptimizer
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
)
from megatron_qwen3vl.train.disk import Disk
from megatron_qwen3vl.train.staging import Staged, new_planner, stage

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
        self._staged: Staged | None = None

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
        self._staged = staged = stage(chunks, optimizer, self._groups, self._staged)

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


def _write_tensors(disk: Disk, folder: Path, name: str, staged: Staged) -> _Written:
    """One file, in the form that torch's FileSystemReader reads: a torch.save of each tensor after the other."""
    places: list[WriteResult] = []
    if not staged.plan.items:
        return _Written(staged.plan, places, None)
    try:
        with disk.create(folder / name) as stream:
            for item, data in zip(staged.plan.items, staged.data, strict=True):
                offset = stream.tell()
                if isinstance(data, io.BytesIO):
                    stream.write(data.getbuffer())
                else:
                    torch.save(data, stream)
                length = stream.tell() - offset
                places.append(WriteResult(item.index, length, _StorageInfo(name, offset, length)))
        disk.sync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of what the disk says
        return _Written(staged.plan, [], str(error).strip() or type(error).__name__)
    return _Written(staged.plan, places, None)


def _refuse_problems(handed_in: Sequence[_Written]) -> None:
    for rank, written in enumerate(handed_in):
        if written.problem is not None:
            raise OSError(f"rank {rank}: {written.problem.splitlines()[0][:300]}")


def _write_index(disk: Disk, folder: Path, handed_in: Sequence[_Written], common: dict[str, Any]) -> None:
    """What megatron and torch want beside the tensors; also finds gaps and overlaps between the ranks' plans."""
    _, index = new_planner().create_global_plan([written.plan for written in handed_in])
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
