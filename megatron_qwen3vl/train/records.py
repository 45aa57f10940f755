"""What a run leaves behind, written by one rank; on the others every call does nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_qwen3vl.data.quarantine import Quarantined
from megatron_qwen3vl.train.metrics import STARTS, RunFiles, WandbLog


class Records:
    def __init__(self, files: RunFiles | None, wandb: WandbLog | None, trace_samples: bool) -> None:
        self._files, self._wandb, self._trace = files, wandb, trace_samples

    def step(
        self, row: Mapping[str, Any], keys: Callable[[], Sequence[str]], bad: Sequence[Quarantined], total_step: int
    ) -> None:
        """metrics.jsonl, samples.jsonl (when traced: ``keys`` is asked then), quarantine.jsonl and wandb for a step."""
        if self._files is None:
            return
        self._files.write("metrics.jsonl", row)
        if self._trace:
            self._files.write("samples.jsonl", {"stage": row["stage"], "step": row["step"], "keys": list(keys())})
        self.bad(bad)
        if self._wandb is not None:
            self._wandb.log(row, total_step)

    def bad(self, samples: Sequence[Quarantined]) -> None:
        if self._files is not None:
            for sample in samples:
                self._files.write("quarantine.jsonl", asdict(sample))

    def skipped(self, stage: str, step: int, reason: str, keys: Callable[[], Sequence[str]]) -> None:
        if self._files is not None:
            self._files.write("skipped.jsonl", {"stage": stage, "step": step, "reason": reason, "keys": list(keys())})

    def validation(self, row: Mapping[str, Any], total_step: int) -> None:
        if self._files is not None:
            self._files.write("validation.jsonl", row)
        if self._wandb is not None:
            self._wandb.log_held_out(row, total_step)

    def start(self, row: Mapping[str, Any]) -> None:
        """A stage begins or goes on; ``row`` is what starts.jsonl keeps of it, with the time."""
        if self._files is not None:
            self._files.write(STARTS, {"time": datetime.now(UTC).isoformat(timespec="seconds"), **row})

    def lengths(self) -> dict[str, int]:
        return self._files.lengths() if self._files is not None else {}

    def sync(self) -> None:
        """Flush the files to the disk; see ``RunFiles.sync``."""
        if self._files is not None:
            self._files.sync()

    def close(self) -> None:
        if self._files is not None:
            self._files.close()
        if self._wandb is not None:
            self._wandb.close()


def open_records(
    folder: Path,
    lengths: Mapping[str, int],
    trace_samples: bool,
    wandb_mode: str,
    project: str,
    config: Mapping[str, Any],
    writer: bool,
) -> Records:
    """``lengths`` cuts the files back to the checkpoint the run goes on from."""
    if not writer:
        return Records(None, None, False)
    files = RunFiles(folder, lengths)
    return Records(files, WandbLog(wandb_mode, project, folder, config), trace_samples)
