"""The chain of stages: where a run begins, what it may carry on, and what must agree for that.

Pure but for reading the small JSON states of the checkpoints under ``<run.dir>/checkpoints/<stage>/step_<8 digits>/``.
Weights always carry over from stage to stage; data and optimizer begin afresh (``optimizer.carry`` keeps its moments).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_qwen3vl.config.schema import RunConfig
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.train.checkpoint import complete_checkpoints, is_checkpoint, read_state


@dataclass(frozen=True)
class Start:
    """Where the run goes on: ``stage`` is an index into ``run.stages``.

    ``state`` is set when that stage goes on inside itself; ``weights`` alone is a hand-over from an earlier stage.
    """

    stage: int
    weights: Path | None
    state: dict | None


def sections(config: RunConfig, stage: str, tokenizer: str, earlier: Mapping | None) -> dict:
    """What has to agree between a checkpoint and the run that goes on from it (contract: Resume).

    Layout, processes, workers, logging, number of steps and checkpoint interval are not part of it.
    """
    own = config.stages[stage]
    return {
        "model": asdict(config.model),
        "loss": {"exponent": config.loss.exponent, "aux_coefficient": config.loss.aux_coefficient},
        "dtype": config.dtype,
        "seed": config.run.seed,
        "tokenizer": tokenizer,
        "lookahead": config.data.lookahead,
        "stages": {
            **(earlier["stages"] if earlier else {}),
            stage: {
                "sequence_length": own.sequence_length,
                "global_batch_size": own.global_batch_size,
                "trainable": sorted(own.trainable),
                "mixture": own.mixture,
                "optimizer": asdict(own.optimizer),
            },
        },
    }


def _flatten(tree: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, list(tree) if isinstance(tree, tuple) else tree


def differences(config: RunConfig, saved: dict, tokenizer: str) -> list[str]:
    """One sentence per key in which the run differs from the checkpoint's sections.

    Stages that the run does not name are another job's business and are not compared.
    """
    now: dict = {}
    for name in saved["stages"]:
        if name in config.run.stages:
            now = sections(config, name, tokenizer, now or None)
    if not now:
        now = sections(config, config.run.stages[0], tokenizer, None)
        now["stages"] = {}
    before = dict(_flatten({**saved, "stages": {k: v for k, v in saved["stages"].items() if k in now["stages"]}}))
    after = dict(_flatten(now))
    return [
        f"{key}: the checkpoint has {before.get(key)!r}, this run {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def checkpoints(run_dir: Path) -> list[tuple[Path, dict]]:
    """All complete checkpoints of a run, oldest first by the number of updates behind them."""
    found = [
        (folder, _state_of_a_run(folder))
        for stage in sorted((run_dir / "checkpoints").glob("*"))
        for folder in complete_checkpoints(stage)
    ]
    return sorted(found, key=lambda item: (item[1]["total_steps"], item[1]["step"]))


def find_start(config: RunConfig, tokenizer: str) -> Start:
    """Read ``run.resume`` against what is on disk.

    Raises UserError when the checkpoint and the run disagree, or when ``never`` would write over a run.
    """
    run_dir = Path(config.run.dir)
    if config.run.resume == "never":
        metrics = run_dir / "metrics.jsonl"  # empty where a start failed: then there is nothing to lose
        if checkpoints(run_dir) or (metrics.exists() and metrics.stat().st_size > 0):
            raise UserError(f"run.resume=never: {run_dir} already holds a run; choose another run.dir or resume=auto")
        return Start(0, None, None)
    if config.run.resume == "auto":
        found = checkpoints(run_dir)
        if not found:
            return Start(0, None, None)
        folder, state = found[-1]
    else:
        folder = Path(config.run.resume)
        if not is_checkpoint(folder):
            raise UserError(f"run.resume={folder}: no complete checkpoint (…/checkpoints/<stage>/step_<8 digits>)")
        state = _state_of_a_run(folder)
        _refuse_to_overtake(run_dir, folder, state)
    wrong = differences(config, state["sections"], tokenizer)
    if wrong:
        raise UserError(
            [f"{folder} does not fit this run; use the same settings, or another run.dir:", *(f"  {w}" for w in wrong)]
        )
    return place(config, folder, state)


def _state_of_a_run(folder: Path) -> dict:
    state = read_state(folder)
    if "stage" not in state:
        raise UserError(f"{folder}: holds imported weights, no run; begin with run.init_from={folder}")
    return state


def _refuse_to_overtake(run_dir: Path, folder: Path, state: dict) -> None:
    """Going back inside a run, or into another run's folder, would leave checkpoints that no longer belong to it."""
    present = checkpoints(run_dir)
    if not folder.resolve().is_relative_to(run_dir.resolve()):
        if present:
            raise UserError(
                f"run.resume={folder}: {run_dir} holds another run already, up to {present[-1][0].name}; "
                "run.resume=auto goes on with that one, or choose another run.dir"
            )
        return
    later = [
        path
        for path, other in present
        if (other["total_steps"], other["step"]) > (state["total_steps"], state["step"])
    ]
    if later:
        raise UserError(
            f"run.resume={folder}: {later[-1]} is newer and would be left behind; "
            "name another run.dir (the run branches off there), or move the newer checkpoints away"
        )


def place(config: RunConfig, folder: Path, state: dict) -> Start:
    """Inside a stage the run goes on there; at its end the next one begins.

    After a stage that this job does not name, its first stage begins that the weights have not been through.
    """
    stages = config.run.stages
    if state["stage"] not in stages:
        ahead = [index for index, name in enumerate(stages) if name not in state["sections"]["stages"]]
        return Start(ahead[0] if ahead else len(stages), folder, None)
    index = stages.index(state["stage"])
    if state["step"] >= config.stages[state["stage"]].num_steps:
        return Start(index + 1, folder, None)
    return Start(index, folder, state)
