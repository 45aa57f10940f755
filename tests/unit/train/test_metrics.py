"""The files of a run: cut back to what a checkpoint remembers, each step once, always JSON."""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_qwen3vl.train.metrics import FILES, RunFiles, WandbLog


def strict(text: bytes) -> dict:
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def rows(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [strict(line) for line in (folder / name).read_bytes().splitlines()]


def test_a_resumed_run_holds_each_step_once(tmp_path: Path) -> None:
    """Steps 1 to 7, a checkpoint after 4; the run dies inside the line of step 8 and goes on from 4."""
    files = RunFiles(tmp_path, {})
    lengths: dict[str, int] = {}
    for step in range(1, 8):
        files.write("metrics.jsonl", {"step": step, "run": "first"})
        files.write("samples.jsonl", {"step": step, "keys": ["a/b/ü"]})
        if step % 3 == 0:
            files.write("quarantine.jsonl", {"step": step})
        if step == 4:
            lengths = files.lengths()
            sizes = {name: (tmp_path / name).stat().st_size for name in FILES}
    with (tmp_path / "metrics.jsonl").open("ab") as handle:
        handle.write(b'{"step": 8, "ru')
    assert lengths == sizes and sum(sizes.values()) > 0

    again = RunFiles(tmp_path, lengths)
    assert again.lengths() == lengths
    for step in range(5, 11):
        again.write("metrics.jsonl", {"step": step, "run": "second"})
        again.write("samples.jsonl", {"step": step, "keys": []})
    again.close()
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 11))
    assert [row["run"] for row in rows(tmp_path)] == ["first"] * 4 + ["second"] * 6
    assert [row["step"] for row in rows(tmp_path, "samples.jsonl")] == list(range(1, 11))
    assert [row["step"] for row in rows(tmp_path, "quarantine.jsonl")] == [3]


def test_a_run_that_begins_anew_begins_with_empty_files(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_text("left over\n")
    (tmp_path / "config.yaml").write_text("kept")
    RunFiles(tmp_path, {}).close()
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == dict.fromkeys(FILES, b"")
    assert (tmp_path / "config.yaml").read_text() == "kept"


def test_a_file_shorter_than_remembered_is_not_filled_up(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n')
    files = RunFiles(tmp_path, {"metrics.jsonl": 1000})
    files.write("metrics.jsonl", {"step": 2})
    files.close()
    assert rows(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, {})
    files.write("metrics.jsonl", {"step": 1})
    assert rows(tmp_path) == [{"step": 1}]
    files.close()


def test_floats_keep_every_digit(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, {})
    row = {"loss": 0.1 + 0.2, "small": 5e-324, "third": 1 / 3}
    files.write("metrics.jsonl", row)
    files.close()
    assert rows(tmp_path) == [row]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, {})
    files.write("metrics.jsonl", {"loss": math.nan, "domains": {"text": {"loss": -math.inf, "loss_tokens": 3}}})
    files.close()
    assert rows(tmp_path) == [{"loss": None, "domains": {"text": {"loss": None, "loss_tokens": 3}}}]


def test_a_name_that_is_not_utf8_does_not_stop_a_run(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, {})
    key = b"caf\xe9".decode(errors="surrogateescape")
    files.write("samples.jsonl", {"keys": [key, "café"]})
    files.close()
    assert rows(tmp_path, "samples.jsonl") == [{"keys": [key, "café"]}]


def test_wandb_disabled_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = WandbLog("disabled", "project", tmp_path / "run", {})
    log.log({"stage": "s0", "step": 1, "domains": {}}, 1)
    log.close()
    assert list(tmp_path.iterdir()) == []


def records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: 7 bytes of header, then LevelDB's log (blocks of 32 KiB; crc, length, type)."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def logged(path: Path) -> list[dict]:
    """The steps that an offline file holds, each with its figures."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for data in records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if items:
            found.append({key: value for key, value in items.items() if key == "_step" or not key.startswith("_")})
    return found


def test_wandb_offline_continues_the_same_run_in_another_place(tmp_path: Path) -> None:
    """Two sessions of one run, its folder moved between them: one id, the second from where the first ended."""
    domains = {"text": {"loss": 2.0, "loss_tokens": 7}, "empty": {"loss": None}}
    row = {"stage": "s1", "loss": 1.5, "grad_norm": None, "skipped": False, "domains": domains, "sources": {"web": 9}}
    held_out = {"stage": "s1", "step": 1, "loss": 1.25, "domains": {"text": {"loss": 1.0}}}
    for step, place in ((1, "run"), (2, "moved")):
        log = WandbLog("offline", "test", tmp_path / place, {"seed": 1})
        log.log({**row, "step": step}, step)
        log.log_held_out(held_out, step)
        log.close()
        if place == "run":
            (tmp_path / "run").rename(tmp_path / "moved")
    files = sorted((tmp_path / "moved" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1
    assert (tmp_path / "moved" / "wandb.id").read_text().strip() in files[0].name
    found, deadline = [], time.monotonic() + 30
    while len(found) < 2 and time.monotonic() < deadline:  # another process of wandb's closes the file a little later
        found = [entry for file in files for entry in logged(file)]
        time.sleep(0.05)
    assert sorted(entry["_step"] for entry in found) == [1, 2]
    for entry in found:
        assert {key: value for key, value in entry.items() if key != "_step"} == {
            "s1/step": entry["_step"],
            "s1/loss": 1.5,
            "s1/skipped": False,
            "s1/domain/text/loss": 2.0,
            "s1/domain/text/loss_tokens": 7,
            "s1/source/web/tokens": 9,
            "s1/held_out/step": 1,
            "s1/held_out/loss": 1.25,
            "s1/held_out/domain/text/loss": 1.0,
        }
