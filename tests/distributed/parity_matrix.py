"""All layouts of layouts.py against transformers, and the table of docs/parallelism.md (`make parity`).

    python tests/distributed/parity_matrix.py [--processes 1 2 3 4 8] [--kinds NAME ...] [--only NAME ...]

Per layout and model: recompute none (three optimizer steps) and full (gradients). Exit status 1 when a figure exceeds
1e-5. The table is written after every group of layouts, so that an interrupted run leaves what it has proved.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from layout_parity import NUM_STEPS, Expected, Job, Outcome, errors, expect, run_jobs, worst_by_module  # noqa: E402
from layouts import ALL, ENTRIES, Entry  # noqa: E402
from spawn import run_ranks  # noqa: E402

TOLERANCE = 1e-5
TOGETHER = 6  # layouts in one spawn: threads of gloo outlive their groups, and slow everything down
RECOMPUTE = ("none", "full")
MODULES = ("vision", "merger", "language", "experts")
DOCUMENT = ROOT / "docs" / "parallelism.md"
BEGIN, END = "<!-- parity table -->", "<!-- end of parity table -->"


@dataclass(frozen=True)
class Row:
    """Worst relative errors; per recompute where there are two."""

    entry: Entry
    kind: str
    gradients: tuple[dict[str, float], ...]
    losses: tuple[float, ...]
    trained: float

    @property
    def worst(self) -> float:
        return max(*(e for by_module in self.gradients for e in by_module.values()), *self.losses, self.trained)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 3, 4, 8])
    parser.add_argument("--only", nargs="*", default=list(ENTRIES))
    parser.add_argument("--kinds", nargs="*", default=list(ALL))
    options = parser.parse_args()
    references = {kind: expect(kind) for kind in options.kinds}
    rows: list[Row] = []
    for processes in options.processes:
        entries = [entry for name, entry in ENTRIES.items() if entry.processes == processes and name in options.only]
        for kind in options.kinds:
            chosen = [entry for entry in entries if kind in entry.kinds]
            for first in range(0, len(chosen), TOGETHER):
                began = time.perf_counter()
                rows += measure(processes, kind, chosen[first : first + TOGETHER], references[kind])
                print(f"{processes} processes, {kind}: {time.perf_counter() - began:.0f} s", flush=True)
                write_table(rows)
    return int(any(not row.worst <= TOLERANCE for row in rows))


def measure(processes: int, kind: str, entries: Sequence[Entry], expected: Expected) -> list[Row]:
    jobs = [
        Job(
            kind,
            replace(entry.parallel, recompute=recompute, vision_recompute=recompute),
            NUM_STEPS if recompute == "none" else 1,
        )
        for entry in entries
        for recompute in RECOMPUTE
    ]
    ranks = run_ranks(run_jobs, processes, processes, jobs, {kind: expected}, timeout=60.0 * len(jobs))
    rows = []
    for number, entry in enumerate(entries):
        plain, recomputed = ([rank[2 * number + which] for rank in ranks] for which in (0, 1))
        row = Row(
            entry,
            kind,
            gradients=tuple(
                worst_by_module(errors([outcome.gradients for outcome in outcomes], expected.gradients))
                for outcomes in (plain, recomputed)
            ),
            losses=tuple(loss_error(outcomes, expected) for outcomes in (plain, recomputed)),
            trained=max(errors([outcome.trained or {} for outcome in plain], expected.trained).values()),
        )
        print(f"{entry.name:30} {kind:13} {row.worst:.2e} {'' if row.worst <= TOLERANCE else 'WRONG'}", flush=True)
        rows.append(row)
    return rows


def loss_error(outcomes: Sequence[Outcome], expected: Expected) -> float:
    pairs = [pair for outcome in outcomes for pair in zip(outcome.losses, expected.losses, strict=False)]
    return max(abs(own / theirs - 1) if math.isfinite(own) else math.inf for own, theirs in pairs)


def write_table(rows: Sequence[Row]) -> None:
    lines = [
        BEGIN,
        f"Written by `make parity` on {time.strftime('%Y-%m-%d')}: {len({row.entry.name for row in rows})} layouts, "
        f"{2 * len(rows)} runs; torch {version('torch')}, megatron-core {version('megatron-core')}, "
        f"transformers {version('transformers')}; CPU, gloo, float32.",
        "",
        "All figures in units of 1e-6 (tolerance 10); `a / b` is recompute none / full.",
        "",
        "| layout | processes | model | vision | mergers | language | experts | loss | weights after 3 steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [_pair([by_module.get(module) for by_module in row.gradients]) for module in MODULES]
        figures = [*cells, _pair(row.losses), f"{row.trained * 1e6:.1f}"]
        lines.append("| " + " | ".join([row.entry.name, str(row.entry.processes), row.kind, *figures]) + " |")
    text = DOCUMENT.read_text()
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    DOCUMENT.write_text(before + "\n".join(lines) + "\n" + after)


def _pair(values: Sequence[float | None]) -> str:
    return " / ".join("" if value is None else f"{value * 1e6:.2g}" for value in values).strip(" /")


if __name__ == "__main__":
    sys.exit(main())
