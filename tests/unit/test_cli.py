"""The command as a script sees it: status, standard error, and what it leaves behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_qwen3vl import cli
from megatron_qwen3vl.errors import Stopped, UserError

ROOT = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def command(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "megatron_qwen3vl", *arguments],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_mistake_exits_with_2_and_leaves_nothing(tmp_path: Path) -> None:
    done = command("pretrain", "modle=8b", "parallel.tp=abc", "stages.s1.steps=0", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) <= 15
    for key in ("modle", "parallel.tp", "stages.s1.steps"):
        assert any(line.startswith(key) for line in lines), key
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_of_several_processes_speaks(tmp_path: Path) -> None:
    first = command("pretrain", "modle=8b", cwd=tmp_path, RANK="0", WORLD_SIZE="2")
    second = command("pretrain", "modle=8b", cwd=tmp_path, RANK="1", WORLD_SIZE="2")
    assert (first.returncode, second.returncode) == (2, 2)
    assert first.stderr.startswith("modle: unknown key")
    assert second.stderr == ""


def test_help_and_mistakes_do_not_load_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from megatron_qwen3vl.cli import main; main(sys.argv[1:]);"
        "assert not {'torch', 'megatron', 'transformers', 'wandb'} & set(sys.modules), 'heavy imports'"
    )
    for arguments in (["--help"], ["pretrain", "--help"], ["pretrain", "dtype=float16"], ["evaluate", "a=b"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_a_sweep_goes_on_after_a_failed_job(tmp_path: Path) -> None:
    done = command("pretrain", "--multirun", "run.seed=-1,bad,-2", "log.wandb=disabled", cwd=tmp_path)
    assert done.returncode == 1
    table = done.stdout[done.stdout.index("job  status") :].splitlines()
    assert len(table) == 4
    assert [row.split()[:2] for row in table[1:]] == [["0", "2"], ["1", "2"], ["2", "2"]]
    assert "run.seed=-1: must be at least 0" in done.stderr
    assert 'run.seed: expected an integer, got "bad"' in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["train"],
        ["convert"],
        ["convert", "sideways", "a", "b"],
        ["convert", "import", "nowhere", "out"],
        ["data"],
        ["data", "build", "only-one"],
        ["data", "build", "nowhere.yaml", "out"],
        ["data", "index", "nowhere"],
        ["data", "index", "nowhere", "--workers", "none"],
        ["data", "inspect", "nowhere.yaml"],
        ["data", "sheet", "nowhere", "out.png"],
        ["report"],
        ["report", "nowhere"],
        ["pretrain", "--unknown"],
        ["pretrain", "-c"],
        ["evaluate"],
    ],
)
def test_usage(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert 1 <= len((said.err or said.out).splitlines()) <= 20
    assert list(tmp_path.iterdir()) == []


def test_at_most_15_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def fail(arguments: list[str]) -> int:
        raise UserError([f"problem {number}" for number in range(40)])

    monkeypatch.setattr(cli, "_pretrain", fail)
    assert cli.main(["pretrain"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 15
    assert lines[-1] == "... and 26 more"


def test_stopped_is_75_and_the_rest_propagates(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(arguments: list[str]) -> int:
        raise Stopped

    def break_down(arguments: list[str]) -> int:
        raise RuntimeError("disk full")

    monkeypatch.setattr(cli, "_pretrain", stop)
    assert cli.main(["pretrain"]) == 75
    monkeypatch.setattr(cli, "_pretrain", break_down)
    with pytest.raises(RuntimeError, match="disk full"):
        cli.main(["pretrain"])


def test_torchrun_keeps_the_message(tmp_path: Path) -> None:
    """torchrun ends the other workers at the first exit: the one that speaks must not be among them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)),
            *("-m", "megatron_qwen3vl", "pretrain", "modle=8b"),
        ],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 1
    assert done.stderr.count("modle: unknown key; did you mean model?") == 1
