"""What a run left on disk, read for the report. Rows become columns of floats, so that a million steps fit in memory.

Every file may be missing, end in half a line (the run may be going on) or hold lines that are no JSON: what can be read
is shown and the rest is counted. Nothing here raises but ``read_run`` on a folder that is no run.
"""

from __future__ import annotations

import itertools
import json
import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_qwen3vl.errors import UserError

FIGURES = (
    "loss",
    "token_loss",
    "aux_loss",
    "expert_load",
    "grad_norm",
    "learning_rate",
    "tokens",
    "loss_tokens",
    "samples",
    "failed_samples",
    "left_out",
    "padding_fraction",
    "vision_balance",
    "seconds",
    "data_seconds",
    "model_seconds",
    "optimizer_seconds",
    "save_seconds",
    "memory_bytes",
)
LISTED = 20  # skipped steps and bad samples shown by name


@dataclass
class Series:
    """Values by update: ``x`` counts the updates of the whole run from 1, ``y`` may be nan."""

    x: array = field(default_factory=lambda: array("d"))
    y: array = field(default_factory=lambda: array("d"))

    def add(self, x: float, y: float) -> None:
        self.x.append(x)
        self.y.append(y)


@dataclass
class StageLog:
    """The rows of metrics.jsonl of one stage, in order; ``before`` updates of the run came earlier."""

    name: str
    before: int
    first_step: int
    figures: dict[str, Series] = field(default_factory=lambda: {name: Series() for name in FIGURES})
    domains: dict[str, Series] = field(default_factory=dict)
    domain_token_losses: dict[str, Series] = field(default_factory=dict)
    domain_tokens: dict[str, float] = field(default_factory=dict)
    source_tokens: dict[str, float] = field(default_factory=dict)
    held_out: Series = field(default_factory=Series)
    held_out_domains: dict[str, Series] = field(default_factory=dict)
    steps: int = 0
    last_step: int = 0
    skipped: int = 0

    def total(self, figure: str) -> float:
        return sum(y for y in self.figures[figure].y if math.isfinite(y))

    def finite(self, figure: str) -> list[float]:
        return [y for y in self.figures[figure].y if math.isfinite(y)]

    def add(self, row: dict) -> None:
        self.steps += 1
        self.last_step = whole(row.get("step"))
        self.skipped += row.get("skipped") is True
        for name, series in self.figures.items():
            series.add(self.before + self.steps, number(row.get(name)))
        sources = row.get("sources")
        for name, tokens in sources.items() if isinstance(sources, dict) else ():
            self.source_tokens[str(name)] = self.source_tokens.get(str(name), 0.0) + whole(tokens)
        for name, loss, token_loss, tokens in _domains(row):
            self.domains.setdefault(name, Series()).add(self.before + self.steps, loss)
            self.domain_token_losses.setdefault(name, Series()).add(self.before + self.steps, token_loss)
            self.domain_tokens[name] = self.domain_tokens.get(name, 0.0) + (tokens if math.isfinite(tokens) else 0.0)

    def add_held_out(self, row: dict) -> None:
        x = self.before + whole(row.get("step")) - self.first_step + 1
        self.held_out.add(x, number(row.get("loss")))
        for name, loss, _, _ in _domains(row):
            self.held_out_domains.setdefault(name, Series()).add(x, loss)


@dataclass(frozen=True)
class Checkpoint:
    path: str  # inside checkpoints/
    total_steps: float  # updates behind it, nan where its state does not say
    num_bytes: int
    written: float  # seconds since the epoch


@dataclass
class Listing:
    """How many lines a file has, the first of them, and the count by one of their keys."""

    total: int = 0
    first: list[dict] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    folder: Path
    config: dict
    config_text: str
    stages: list[StageLog]
    skipped: Listing  # counted by reason
    quarantine: Listing  # counted by source
    checkpoints: list[Checkpoint]
    starts: list[dict]  # of stages, each when it began or went on
    answers: Mapping[str, Any]  # demo.json
    unreadable: dict[str, int]  # lines by file

    def setting(self, *keys: str) -> Any:
        """A value of config.yaml, or None where it has none."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def whole(value: object) -> int:
    found = number(value)
    return int(found) if math.isfinite(found) else 0


def read_run(folder: Path) -> Run:
    """Raises UserError when the folder is none that ``pretrain`` wrote into."""
    unreadable: dict[str, int] = {}
    config, config_text = _read_config(folder / "config.yaml", unreadable)
    known = (folder / "metrics.jsonl").is_file() or (folder / "checkpoints").is_dir()
    if not known and not {"run", "stages"} <= config.keys():
        raise UserError(
            f"{folder}: holds no run (neither metrics.jsonl nor checkpoints/ nor a run's config.yaml); "
            "give the run.dir of a pretrain, of a sweep the folder of one job"
        )
    stages = _read_metrics(folder, unreadable)
    for row in _rows(folder / "validation.jsonl", unreadable):
        for log in stages:
            if log.name == str(row.get("stage")) and log.first_step <= whole(row.get("step")) <= log.last_step:
                log.add_held_out(row)
    return Run(
        folder=folder,
        config=config,
        config_text=config_text,
        stages=stages,
        skipped=_listing(folder / "skipped.jsonl", "reason", unreadable),
        quarantine=_listing(folder / "quarantine.jsonl", "source", unreadable),
        checkpoints=_checkpoints(folder / "checkpoints"),
        starts=list(_rows(folder / "starts.jsonl", unreadable)),
        answers=read_json(folder / "demo.json"),
        unreadable=unreadable,
    )


def _read_metrics(folder: Path, unreadable: dict[str, int]) -> list[StageLog]:
    stages: list[StageLog] = []
    for done, row in enumerate(_rows(folder / "metrics.jsonl", unreadable)):
        name = str(row.get("stage"))
        if not stages or stages[-1].name != name:
            stages.append(StageLog(name=name, before=done, first_step=whole(row.get("step"))))
        stages[-1].add(row)
    return stages


def _domains(row: dict) -> Iterator[tuple[str, float, float, float]]:
    """Name, reweighted loss, loss per token, tokens with loss."""
    domains = row.get("domains")
    for name, values in domains.items() if isinstance(domains, dict) else ():
        if isinstance(values, dict):
            loss, token_loss, tokens = (number(values.get(key)) for key in ("loss", "token_loss", "loss_tokens"))
            yield str(name), loss, token_loss, tokens


def _rows(path: Path, unreadable: dict[str, int]) -> Iterator[dict]:
    try:
        handle = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError:
        return
    with handle:
        for line in handle:
            if not line.endswith(b"\n"):
                return  # the row that is being written
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield row
            else:
                unreadable[path.name] = unreadable.get(path.name, 0) + 1


def _listing(path: Path, key: str, unreadable: dict[str, int]) -> Listing:
    listing = Listing()
    for row in _rows(path, unreadable):
        listing.total += 1
        name = str(row.get(key))
        listing.counts[name] = listing.counts.get(name, 0) + 1
        if len(listing.first) < LISTED:
            listing.first.append(row)
    return listing


def _read_config(path: Path, unreadable: dict[str, int]) -> tuple[dict, str]:
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return {}, ""
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        tree = None
    if isinstance(tree, dict):
        return tree, text
    unreadable[path.name] = len(text.splitlines())
    return {}, text


def read_json(path: Path) -> Mapping[str, Any]:
    """The object that a file holds; empty where there is none."""
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _checkpoints(root: Path) -> list[Checkpoint]:
    """Complete ones, by the updates behind them. One may be deleted while we look."""
    found = []
    for folder in sorted(root.glob("*/step_*")):
        try:
            state = json.loads((folder / "state.json").read_bytes())
            sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
            written = (folder / "state.json").stat().st_mtime
        except (OSError, ValueError):
            continue
        inner = state.get("state") if isinstance(state, dict) else None
        total = number(inner.get("total_steps")) if isinstance(inner, dict) else math.nan
        found.append(Checkpoint(f"{folder.parent.name}/{folder.name}", total, sum(sizes), written))
    return sorted(found, key=lambda c: (c.total_steps if math.isfinite(c.total_steps) else 0.0, c.path))


def planned_steps(run: Run, stage: str) -> int | None:
    """Steps that config.yaml gives a stage (contract: steps, or tokens rounded up to steps); None where it does not."""
    steps, tokens = run.setting("stages", stage, "steps"), run.setting("stages", stage, "tokens")
    per_step = whole(run.setting("stages", stage, "global_batch_size")) * whole(
        run.setting("stages", stage, "sequence_length")
    )
    if steps is not None:
        return whole(steps)
    return -(-whole(tokens) // per_step) if tokens is not None and per_step > 0 else None


def all_domains(run: Run) -> list[str]:
    names = (itertools.chain(log.domains, log.held_out_domains) for log in run.stages)
    return sorted(set(itertools.chain.from_iterable(names)))
