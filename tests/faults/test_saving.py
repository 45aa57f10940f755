"""A save that goes on in the background: exactly the state it was begun with, complete or absent whatever dies.

Two ranks save while they train on. Everything they do to the disk is recorded, and every prefix of the record (the last
write torn, or what had not been flushed lost) is played into a fresh folder: it must hold the newest checkpoint that
had got its name, byte for byte, and those load to the bits that were saved.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.parallel.device import start_device
from megatron_qwen3vl.parallel.groups import all_agree, from_first_rank, start_groups
from megatron_qwen3vl.train.checkpoint import clean_leftovers, latest_checkpoint, load_checkpoint
from megatron_qwen3vl.train.disk import Disk
from megatron_qwen3vl.train.saving import Saver
from megatron_qwen3vl.train.staging import boxes
from tests.distributed.spawn import run_ranks
from tests.distributed.stock_gpt import Shape, whole_layout
from tests.unit.train.test_checkpoint import folder_in, make, run, values

Values = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Operation:
    """``when`` is the machine's clock, so that the records of two processes can be merged."""

    when: int
    kind: str
    path: Path
    data: bytes = b""
    to: Path | None = None


class Recorder(Disk):
    """Writes tensors only once ``gate`` is open, and ``delay`` seconds later."""

    def __init__(self, delay: float) -> None:
        self.record: list[Operation] = []
        self.gate = threading.Event()
        self._delay = delay

    def note(self, kind: str, path: Path, data: bytes = b"", to: Path | None = None) -> None:
        self.record.append(Operation(time.monotonic_ns(), kind, path, data, to))

    def make_folder(self, path: Path) -> None:
        self.note("folder", path)
        super().make_folder(path)

    def open(self, path: Path) -> IO[bytes]:
        if path.suffix == ".distcp":
            assert self.gate.wait(60)
            time.sleep(self._delay)
        self.note("create", path)
        return io.BufferedWriter(RecordedFile(path, self), 1 << 16)

    def sync(self, stream: IO[bytes]) -> None:
        self.note("sync", Path(stream.name))
        super().sync(stream)

    def rename(self, old: Path, new: Path) -> None:
        self.note("rename", old, to=new)
        super().rename(old, new)

    def remove(self, folder: Path) -> None:
        self.note("remove", folder)
        super().remove(folder)


class RecordedFile(io.FileIO):
    def __init__(self, path: Path, recorder: Recorder) -> None:
        super().__init__(path, "wb")
        self._path, self._recorder = path, recorder

    def write(self, data: Any) -> int:
        self._recorder.note("write", self._path, bytes(data))
        written = super().write(data)
        assert written == len(bytes(data))
        return written


def save_while_training(root: str, before: str, shape: Shape) -> tuple[list[tuple], list[Values]]:
    """In each process: a checkpoint, then one after it, then another in its place, with steps during every write."""
    groups = start_groups(whole_layout(2), start_device("cpu"))
    chunks, optimizer = make(groups, shape)
    run(chunks, optimizer, groups, range(1, 3))
    seen = [values(chunks, optimizer)]
    plain = Saver(groups, Disk(), keep=1)
    plain.save(folder_in(Path(root), 2), chunks, optimizer, {"save": 0}, {}, flush=lambda: None)
    plain.wait()
    plain.close()
    from_first_rank(lambda: shutil.copytree(root, before) and None)

    disk = Recorder(delay=0.3 * groups.rank)  # the second rank is the slower one
    saver = Saver(groups, disk, keep=1)
    for number in (3, 4):
        run(chunks, optimizer, groups, range(number, number + 1))
        seen.append(values(chunks, optimizer))
        saver.save(folder_in(Path(root), 3), chunks, optimizer, {"save": number}, {"a/b": b"c"}, flush=lambda: None)
        assert not saver.ready and not all_agree(saver.ready)
        run(chunks, optimizer, groups, range(number + 10, number + 12))  # changes everything in place
        disk.gate.set()
        saver.wait()
        disk.gate.clear()
    saver.close()
    groups.stop()
    return [tuple(vars(operation).values()) for operation in disk.record], seen  # this module has another name here


def load_all(folders: list[str], shape: Shape) -> list[Values]:
    groups = start_groups(whole_layout(2), start_device("cpu"))
    found = []
    for folder in folders:
        chunks, optimizer = make(groups, shape)
        load_checkpoint(Path(folder), chunks, optimizer, groups)
        found.append(values(chunks, optimizer))
    groups.stop()
    return found


@dataclass
class File:
    data: bytes = b""
    flushed: bytes = b""


@dataclass
class Machine:
    """The disk under one folder: what programs see, and of each file what a power failure leaves."""

    files: dict[Path, File] = field(default_factory=dict)

    def play(self, operation: Operation) -> None:
        path = operation.path
        if operation.kind == "create":
            self.files[path] = File()
        elif operation.kind == "write":
            self.files[path].data += operation.data
        elif operation.kind == "sync":
            self.files[path].flushed = self.files[path].data
        elif operation.kind == "unlink":
            del self.files[path]
        elif operation.kind == "rename":
            assert operation.to is not None
            moved = {name for name in self.files if name.is_relative_to(path)}
            assert not any(name.is_relative_to(operation.to) for name in self.files)
            for name in moved:
                self.files[operation.to / name.relative_to(path)] = self.files.pop(name)

    def take_apart(self, operation: Operation) -> list[Operation]:
        """A deletion can end after any file."""
        if operation.kind != "remove":
            return [operation]
        inside = sorted(name for name in self.files if name.is_relative_to(operation.path))
        return [Operation(operation.when, "unlink", name) for name in inside]


def check(root: Path, files: dict[Path, bytes], recorded: Path, expected: dict[Path, bytes]) -> None:
    """The newest checkpoint of such a disk is the expected one, also after the next start has tidied up."""
    shutil.rmtree(root, ignore_errors=True)
    for path, data in files.items():
        target = root / path.relative_to(recorded)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    assert contents(latest_checkpoint(root)) == expected
    clean_leftovers(root, Disk())
    assert contents(latest_checkpoint(root)) == expected
    assert [path.name for path in root.glob(".*")] == []


def contents(folder: Path | None) -> dict[Path, bytes]:
    assert folder is not None
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("shape", [Shape(), Shape(tied=False, bfloat16=True)], ids=["float32", "bfloat16"])
def test_every_prefix_of_a_save_leaves_the_newest_complete_checkpoint(shape: Shape, tmp_path: Path) -> None:
    root, before = tmp_path / "root", tmp_path / "before"
    (first, seen), (second, their_seen) = run_ranks(save_while_training, 2, str(root), str(before), shape)
    record = sorted((Operation(*row) for row in [*first, *second]), key=lambda operation: operation.when)
    assert any(operation.path.name == "__1_0.distcp" for operation in record)

    machine = Machine({root / path.relative_to(before): File(path.read_bytes(), path.read_bytes())
                       for path in before.rglob("*") if path.is_file()})
    complete = [contents(latest_checkpoint(before))]
    prefixes, looked_at = 0, set()
    for whole in record:
        for operation in machine.take_apart(whole):
            torn = {path: file.data for path, file in machine.files.items()}
            if operation.kind == "write":
                torn[operation.path] += operation.data[: len(operation.data) // 2]
            machine.play(operation)
            if operation.kind == "rename" and operation.path.suffix == ".new":
                named = {path: file.data for path, file in machine.files.items() if path.is_relative_to(operation.to)}
                complete.append({path.relative_to(operation.to): data for path, data in named.items()})
            if operation.kind in ("folder", "create"):
                continue
            now = {path: file.data for path, file in machine.files.items()}
            flushed = {path: file.flushed for path, file in machine.files.items()}
            for files in (torn, now, flushed) if operation.kind == "write" else (now, flushed):
                prefixes += 1
                state = frozenset(files.items())
                if (len(complete), state) not in looked_at:  # what is flushed changes rarely
                    check(tmp_path / "replay", files, root, complete[-1])
                looked_at.add((len(complete), state))
    assert len(complete) == 3 and prefixes > 60, (len(complete), prefixes)
    print(f"{len(record)} operations, {prefixes} prefixes, {len(looked_at)} different disks")
    assert contents(folder_in(root, 3)) == complete[-1] and os.listdir(root) == ["step_00000003"]

    folders = []
    for number, files in enumerate(complete):
        for path, data in files.items():
            target = folder_in(tmp_path / "loaded", number) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        folders.append(str(folder_in(tmp_path / "loaded", number)))
    for loaded, saved in zip(run_ranks(load_all, 2, folders, shape), (seen, their_seen), strict=True):
        for one, other in zip(loaded, saved, strict=True):
            assert one.keys() == other.keys()
            assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert any(not torch.equal(seen[0][name], seen[2][name]) for name in seen[0])


class FullDisk(Disk):
    """Refuses files of one name."""

    def __init__(self, name: str) -> None:
        self.name: str | None = name

    def open(self, path: Path) -> IO[bytes]:
        if path.name == self.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().open(path)


def save_on_a_full_disk(root: str) -> list[tuple[str, str | None]]:
    groups = start_groups(whole_layout(2), start_device("cpu"))
    chunks, optimizer = make(groups, Shape())
    found = []
    for number, name in enumerate(("nothing", "__1_0.distcp", ".metadata", "nothing")):
        saver = Saver(groups, FullDisk(name), keep=1)
        try:
            saver.save(folder_in(Path(root), number), chunks, optimizer, {}, {}, flush=lambda: None)
            saver.wait()
            problem = "none"
        except UserError as error:
            problem = str(error)
        saver.close()
        latest = from_first_rank(lambda: latest_checkpoint(Path(root)))
        found.append((problem, latest and latest.name))
    groups.stop()
    return found


def test_a_disk_that_refuses_one_rank_is_everybodys_error_and_changes_nothing(tmp_path: Path) -> None:
    one, other = run_ranks(save_on_a_full_disk, 2, str(tmp_path))
    assert one == other
    full = f"cannot be written ([Errno {errno.ENOSPC}]"
    assert [full in problem or "No space left" in problem for problem, _ in one] == [False, True, True, False]
    assert all("free the disk" in problem for problem, _ in one[1:3])
    assert [name for _, name in one] == ["step_00000000"] * 3 + ["step_00000003"]
    assert os.listdir(tmp_path) == ["step_00000003"]


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 5), (4, 1, 3)])
@pytest.mark.parametrize("half", [False, True])
def test_a_range_of_a_tensor_is_a_few_boxes(shape: tuple[int, ...], half: bool) -> None:
    """Every range of the flattened tensor, against marking its elements one by one; ``half`` looks at a slice of it."""
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    view = whole.narrow(-1, shape[-1] // 2, shape[-1] - shape[-1] // 2) if half else whole
    for start in range(whole.numel()):
        for end in range(start + 1, whole.numel() + 1):
            marked = torch.zeros_like(whole)
            seen = marked[..., shape[-1] // 2 :] if half else marked
            base = view.storage_offset()
            found = boxes(tuple(view.shape), view.stride(), start - base, end - base)
            for offsets, sizes in found:
                assert min(sizes) > 0
                seen[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))] += 1
            assert torch.equal(seen, ((view >= start) & (view < end)).long())
            assert len(found) <= 2 * len(shape) - 1
