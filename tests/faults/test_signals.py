"""A signal: the step is finished, the state saved, the status 75; and the next start goes on to the same figures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults_data import OVERRIDES, WALL_CLOCK, make_mixture

from megatron_qwen3vl.train.stop import StopSignal

STEPS = 30  # enough for a slow machine to be asked to stop on the way
ROOT = Path(__file__).resolve().parents[2]


def _start(run: Path, mixture: Path) -> subprocess.Popen[bytes]:
    overrides = [o for o in OVERRIDES if "mixture" not in o]
    overrides += [f"stages.s0.mixture={mixture}", f"stages.s0.steps={STEPS}", "run.stages=[s0]"]
    overrides += ["data.workers=0", "checkpoint.every=99", f"run.dir={run}"]
    return subprocess.Popen(
        [sys.executable, "-m", "megatron_qwen3vl", "pretrain", *overrides],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def _steps(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key not in WALL_CLOCK} for line in lines]


def test_a_signal_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    mixture, run, whole = make_mixture(tmp_path), tmp_path / "run", tmp_path / "whole"
    process = _start(run, mixture)
    while not _steps(run) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    done = len(_steps(run))
    assert 0 < done < STEPS
    assert [path.name for path in (run / "checkpoints/s0").iterdir()] == [f"step_{done:08d}"]
    assert _start(run, mixture).wait() == 0
    assert _start(whole, mixture).wait() == 0
    assert _steps(run) == _steps(whole)
    assert (run / "report.html").is_file()
    starts = [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]
    assert [(start["job_begins"], start["stage"], start["step"]) for start in starts] == [
        (True, "s0", 0),
        (True, "s0", done),
    ]
    assert starts[1]["checkpoint"].endswith(f"step_{done:08d}")
    assert starts[1]["shares"] == {"pictures": 0.7, "texts": 0.3}


@pytest.mark.parametrize("number", StopSignal.SIGNALS)
def test_a_request_is_remembered_until_the_handlers_are_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = StopSignal()
    try:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        signal.raise_signal(signal.SIGTERM)  # patient: only a second Ctrl-C interrupts
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        stop.restore()
    assert signal.getsignal(number) == before
