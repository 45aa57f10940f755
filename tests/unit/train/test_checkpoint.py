"""Checkpoints: exact in the same layout, equal in another, complete or absent, refused when they are not ours."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex, TensorStorageMetadata

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.parallel.device import start_device
from megatron_qwen3vl.parallel.groups import Groups, shutdown, start_groups
from megatron_qwen3vl.train.checkpoint import (
    clean_leftovers,
    is_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    prune,
    read_state,
)
from megatron_qwen3vl.train.disk import Disk
from megatron_qwen3vl.train.optimizer import build_optimizer, set_learning_rate, step_optimizer
from megatron_qwen3vl.train.saving import Saver, save_checkpoint
from tests.distributed.spawn import run_ranks
from tests.distributed.stock_gpt import Shape, build, optimizer_config, train, whole_layout

STATE = {"step": 3, "rate": 0.1 + 0.2, "keys": ["a/b/c"], "nothing": None}


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    groups = start_groups(whole_layout(1), start_device("cpu"))
    yield groups
    groups.stop()
    shutdown()


def run(chunks: list, optimizer: object, groups: Groups, numbers: range) -> None:
    for number in numbers:
        train(chunks, groups, number)
        set_learning_rate(optimizer, 1e-2)
        assert not step_optimizer(optimizer, groups).skipped


def make(groups: Groups, shape: Shape) -> tuple[list, object]:
    chunks = build(groups.layout, shape)
    return chunks, build_optimizer(chunks, optimizer_config(), "bfloat16" if shape.bfloat16 else "float32")


def values(chunks: list, optimizer: object) -> dict[str, torch.Tensor]:
    """Weights, masters, moments and step counts of this rank, by value."""
    found = {f"{i}.{n}": p.detach().clone() for i, c in enumerate(chunks) for n, p in c.module.named_parameters()}
    for index, part in enumerate(optimizer.chained_optimizers):
        for number, parameter in enumerate(part.get_parameters()):
            found[f"{index}.master.{number}"] = parameter.detach().clone()
            for name, moment in part.optimizer.state[parameter].items():
                found[f"{index}.{name}.{number}"] = moment.clone()
        for number, group in enumerate(part.optimizer.param_groups):
            found[f"{index}.step.{number}"] = torch.tensor(group["step"])
    return found


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def folder_in(root: Path, step: int = 3) -> Path:
    return root / f"step_{step:08d}"


@pytest.mark.parametrize("shape", [Shape(), Shape(tied=False, bfloat16=True), Shape(experts=True)], ids=str)
def test_going_on_equals_never_stopping(groups: Groups, shape: Shape, tmp_path: Path) -> None:
    chunks, optimizer = make(groups, shape)
    run(chunks, optimizer, groups, range(1, 4))
    before = values(chunks, optimizer)
    save_checkpoint(folder_in(tmp_path), chunks, optimizer, STATE, groups)
    assert_same(before, values(chunks, optimizer))  # saving changes nothing
    run(chunks, optimizer, groups, range(4, 6))

    again, its_optimizer = make(groups, shape)
    assert load_checkpoint(folder_in(tmp_path), again, its_optimizer, groups) == STATE
    assert_same(before, values(again, its_optimizer))
    run(again, its_optimizer, groups, range(4, 6))
    assert_same(values(chunks, optimizer), values(again, its_optimizer))


def test_weights_alone(groups: Groups, tmp_path: Path) -> None:
    chunks, optimizer = make(groups, Shape())
    run(chunks, optimizer, groups, range(1, 3))
    save_checkpoint(folder_in(tmp_path), chunks, None, STATE, groups)
    other = build(groups.layout, Shape())
    load_checkpoint(folder_in(tmp_path), other, None, groups)
    for name, value in chunks[0].module.named_parameters():
        assert torch.equal(value, dict(other[0].module.named_parameters())[name]), name


@pytest.mark.parametrize("bfloat16", [False, True])
def test_moments_begin_at_zero_for_what_was_frozen(groups: Groups, bfloat16: bool, tmp_path: Path) -> None:
    part = Shape(trainable=r"mlp\.linear_fc1", bfloat16=bfloat16)
    chunks, optimizer = make(groups, part)
    run(chunks, optimizer, groups, range(1, 3))
    save_checkpoint(folder_in(tmp_path), chunks, optimizer, STATE, groups)
    whole, its_optimizer = make(groups, Shape(bfloat16=bfloat16))
    load_checkpoint(folder_in(tmp_path), whole, its_optimizer, groups)
    saved = dict(chunks[0].module.named_parameters())
    for name, value in whole[0].module.named_parameters():
        assert torch.equal(value, saved[name]), name
    inner = its_optimizer.optimizer
    nonzero = sum(int(entry["exp_avg"].any()) for entry in inner.state.values())
    assert nonzero == sum(p.requires_grad for p in saved.values())
    for entry, master in ((inner.state[p], p) for p in its_optimizer.get_parameters()):
        assert entry["exp_avg"].shape == master.shape and master.any()


# ---- other layouts


def whole_state(folder: str) -> dict[str, bytes]:
    """Every tensor of a checkpoint, whole, with the step count: independent of the layout that wrote it."""
    from megatron.core import dist_checkpointing

    tensors = dist_checkpointing.load_plain_tensors(f"{folder}/tensors")
    step = dist_checkpointing.load_common_state_dict(f"{folder}/tensors")["optimizer_step"]
    found = {
        key: value.flatten().view(torch.uint8).numpy().tobytes()
        for key, value in tensors.items()
        if isinstance(value, torch.Tensor)
    }
    return {**found, "step": str(step).encode()}


def chain(root: str, layouts: list[dict], shape: Shape) -> None:
    """Train two steps in the first layout and save; then load and save again in each of the others, in one job."""
    device = start_device("cpu")
    for number, axes in enumerate(layouts):
        groups = start_groups(whole_layout(2, **axes), device, seed=number)
        chunks, optimizer = make(groups, shape)
        if number == 0:
            run(chunks, optimizer, groups, range(1, 3))
        else:
            load_checkpoint(folder_in(Path(root), number - 1), chunks, optimizer, groups)
        save_checkpoint(folder_in(Path(root), number), chunks, optimizer, STATE, groups)
        groups.stop()


DENSE = [{}, {"tp": 2}, {}, {"tp": 2, "sp": True}, {"pp": 2}, {"pp": 2, "vpp": 2}, {}]
EXPERTS = [{"ep": 2}, {}, {"tp": 2, "sp": True, "ep": 2}, {"tp": 2, "sp": True, "etp": 2}, {"ep": 2}]


@pytest.mark.parametrize(
    ("layouts", "shape"),
    [(DENSE, Shape()), (DENSE, Shape(tied=False, bfloat16=True)), (EXPERTS, Shape(experts=True))],
    ids=["dense", "bfloat16", "experts"],
)
def test_every_layout_writes_the_same_checkpoint(
    layouts: list[dict], shape: Shape, groups: Groups, tmp_path: Path
) -> None:
    run_ranks(chain, 2, str(tmp_path), layouts, shape)
    first = whole_state(str(folder_in(tmp_path, 0)))
    assert any(key.startswith("optimizer.state.exp_avg.") for key in first) and first["step"] == b"2"
    for number, axes in enumerate(layouts[1:], start=1):
        other = whole_state(str(folder_in(tmp_path, number)))
        assert other.keys() == first.keys(), axes
        assert [key for key in first if first[key] != other[key]] == [], axes


# ---- complete or absent


class Watching(Disk):
    """Notes what can be seen when a checkpoint gets its name."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.flushed: set[int] = set()

    def sync(self, stream: IO[bytes]) -> None:
        super().sync(stream)
        self.flushed.add(os.fstat(stream.fileno()).st_ino)

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        self.flushed.add(path.stat().st_ino)

    def rename(self, old: Path, new: Path) -> None:
        if old.suffix == ".new":
            late = [str(path) for path in (old, *old.rglob("*")) if path.stat().st_ino not in self.flushed]
            self.seen.append((latest_checkpoint(old.parent), sorted(p.name for p in old.iterdir()), late))
            self.flushed.clear()
        super().rename(old, new)


def save_on(disk: Disk, folder: Path, chunks: list, optimizer: object, groups: Groups, files: dict[str, bytes]) -> None:
    saver = Saver(groups, disk, keep=None)
    saver.save(folder, chunks, optimizer, STATE, files, flush=lambda: None)
    saver.wait()
    saver.close()


def test_a_folder_appears_whole_and_flushed(groups: Groups, tmp_path: Path) -> None:
    """When a checkpoint gets its name, every file and folder of it has been flushed since it was written."""
    chunks, optimizer = make(groups, Shape())
    disk, root = Watching(), tmp_path / "new" / "run"
    files = {"config.json": b"{}", "tokenizer/vocab.json": b"[]"}
    save_on(disk, folder_in(root), chunks, optimizer, groups, files)
    assert disk.seen == [(None, ["config.json", "state.json", "tensors", "tokenizer"], [])]
    assert {path.stat().st_ino for path in (root, root.parent, tmp_path)} <= disk.flushed, "the new names themselves"
    assert latest_checkpoint(root) == folder_in(root)
    assert [p.name for p in root.iterdir()] == ["step_00000003"]
    assert (folder_in(root) / "tokenizer/vocab.json").read_bytes() == b"[]"
    save_checkpoint(folder_in(root), chunks, optimizer, {"step": 4}, groups)  # replaces
    assert read_state(folder_in(root)) == {"step": 4}
    assert [p.name for p in root.iterdir()] == ["step_00000003"]


def pretend(folder: Path) -> Path:
    (folder / "tensors").mkdir(parents=True)
    for name in ("state.json", "tensors/.metadata", "tensors/metadata.json"):
        (folder / name).write_text("{}")
    return folder


def test_latest_prune_and_leftovers(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "absent") is None
    for step in (5, 100, 20):
        pretend(folder_in(tmp_path, step))
    pretend(tmp_path / ".step_00000200.new")
    pretend(tmp_path / ".step_00000150.dead")
    pretend(tmp_path / ".step_00000120.old")  # its replacement never got its name
    (folder_in(tmp_path, 300)).mkdir()  # not ours
    (tmp_path / ".step_notes").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / ".step_00000120.old"
    clean_leftovers(tmp_path, Disk())
    assert latest_checkpoint(tmp_path) == folder_in(tmp_path, 120)
    prune(tmp_path, 2, Disk())
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [".step_notes", "step_00000100", "step_00000120", "step_00000300"]


# ---- refusals


class Evil:
    def __reduce__(self) -> tuple:
        return print, ("unpickled",)


def spoil_missing(folder: Path) -> None:
    (folder / "state.json").unlink()


def spoil_json(folder: Path) -> None:
    (folder / "state.json").write_text("{")


def spoil_format(folder: Path) -> None:
    (folder / "state.json").write_text('{"format": 99, "state": {}}')


def spoil_index(folder: Path) -> None:
    (folder / "tensors/.metadata").unlink()


def spoil_pickle(folder: Path) -> None:
    (folder / "tensors/.metadata").write_bytes(pickle.dumps(Evil()))


def spoil_garbage(folder: Path) -> None:
    (folder / "tensors/.metadata").write_bytes(b"garbage")


def spoil_common(folder: Path) -> None:
    data = io.BytesIO()
    torch.save({"x": Evil()}, data)
    assert zipfile.is_zipfile(data)
    (folder / "tensors/common.pt").write_bytes(data.getvalue())


def spoil_objects(folder: Path) -> None:
    """Evil in the place of each object that a checkpoint does hold; torch's planner unpickles whatever is there."""
    spoil_entries(folder, lambda entry: isinstance(entry, BytesStorageMetadata))


def spoil_tensor(folder: Path) -> None:
    """Turn tensors into objects."""
    spoil_entries(folder, lambda entry: isinstance(entry, TensorStorageMetadata))


def spoil_entries(folder: Path, chosen: Callable[[object], bool]) -> None:
    index = pickle.loads((folder / "tensors/.metadata").read_bytes())
    data = io.BytesIO()
    torch.save(Evil(), data)
    (folder / "tensors/evil.distcp").write_bytes(data.getvalue())
    names = [name for name, entry in index.state_dict_metadata.items() if chosen(entry)]
    assert names
    for name in names:
        index.state_dict_metadata[name] = BytesStorageMetadata()
        index.storage_data[MetadataIndex(name)] = _StorageInfo("evil.distcp", 0, len(data.getvalue()))
    (folder / "tensors/.metadata").write_bytes(pickle.dumps(index))


def spoil_path(folder: Path) -> None:
    """Tensors read from outside of the checkpoint."""
    index = pickle.loads((folder / "tensors/.metadata").read_bytes())
    for place, info in index.storage_data.items():
        index.storage_data[place] = replace(info, relative_path=f"../../{info.relative_path}")
    (folder / "tensors/.metadata").write_bytes(pickle.dumps(index))


def spoil_tensors(folder: Path) -> None:
    path = next((folder / "tensors").glob("*.distcp"))
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_missing, "no checkpoint here"),
        (spoil_json, "cannot be read"),
        (spoil_format, "not in the format"),
        (spoil_index, "incomplete"),
        (spoil_pickle, "names builtins.print"),
        (spoil_garbage, "not the index"),
        (spoil_tensor, "is not a tensor"),
        (spoil_path, "lies outside"),
        (spoil_common, "damaged"),
        (spoil_tensors, "damaged"),
    ],
)
def test_a_foreign_or_damaged_folder_is_refused(
    groups: Groups, tmp_path: Path, spoil: object, says: str, capsys: pytest.CaptureFixture
) -> None:
    chunks, optimizer = make(groups, Shape())
    save_checkpoint(folder_in(tmp_path), chunks, optimizer, STATE, groups)
    spoil(folder_in(tmp_path))
    with pytest.raises(UserError, match=re.escape(str(folder_in(tmp_path)))) as error:
        load_checkpoint(folder_in(tmp_path), chunks, optimizer, groups)
    assert says in str(error.value) and len(error.value.problems) == 1
    assert "unpickled" not in capsys.readouterr().out


def test_objects_of_a_checkpoint_are_never_unpickled(
    groups: Groups, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    chunks, optimizer = make(groups, Shape())
    save_checkpoint(folder_in(tmp_path), chunks, optimizer, STATE, groups)
    spoil_objects(folder_in(tmp_path))
    assert load_checkpoint(folder_in(tmp_path), chunks, optimizer, groups) == STATE
    assert "unpickled" not in capsys.readouterr().out


def test_another_model_is_refused(groups: Groups, tmp_path: Path) -> None:
    chunks, _ = make(groups, Shape())
    save_checkpoint(folder_in(tmp_path), chunks, None, STATE, groups)
    other = build(groups.layout, Shape(experts=True))
    with pytest.raises(UserError, match="another model's"):
        load_checkpoint(folder_in(tmp_path), other, None, groups)
    with pytest.raises(UserError, match="no checkpoint here"):
        load_checkpoint(tmp_path / "nowhere", chunks, None, groups)
    assert not is_checkpoint(tmp_path / "nowhere")
