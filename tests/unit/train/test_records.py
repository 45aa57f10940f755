"""The files of a run after a resume: every step once, as if the run had never stopped."""

from __future__ import annotations

from pathlib import Path

from megatron_qwen3vl.train.metrics import FILES, RunFiles


def write(files: RunFiles, steps: range) -> None:
    for step in steps:
        for name in FILES:
            files.write(name, {"step": step, "key": f"größe/{step}"})


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_a_resumed_run_holds_each_step_once(tmp_path: Path) -> None:
    whole = RunFiles(tmp_path / "whole", {})
    write(whole, range(1, 9))
    whole.close()

    files = RunFiles(tmp_path / "killed", {})
    write(files, range(1, 6))
    lengths = files.lengths()  # what the checkpoint of step 5 remembers
    write(files, range(6, 8))
    files.close()
    with (tmp_path / "killed" / "metrics.jsonl").open("ab") as half:
        half.write(b'{"step": 8, "lo')  # killed in the middle of a line
    again = RunFiles(tmp_path / "killed", lengths)
    write(again, range(6, 9))
    again.close()
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_run_that_begins_anew_keeps_nothing(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, {})
    write(files, range(1, 3))
    files.close()
    RunFiles(tmp_path, {}).close()
    assert set(content(tmp_path).values()) == {b""}
