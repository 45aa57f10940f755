"""``pretrain``: the stages of ``run.stages``, one after another, in one job.

Each stage has its own layout. It ends with a checkpoint; its process groups are taken down, and the next stage, or the
next job, loads that checkpoint into its own layout.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_qwen3vl.config.load import dump_yaml
from megatron_qwen3vl.config.schema import RunConfig
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.model.flops import count_parameters
from megatron_qwen3vl.parallel.device import Device, start_device
from megatron_qwen3vl.parallel.groups import (
    Groups,
    from_first_rank,
    is_first_rank,
    join,
    shutdown,
    start_groups,
    world_size,
)
from megatron_qwen3vl.parallel.layout import Layout, resolve
from megatron_qwen3vl.report.page import write_report
from megatron_qwen3vl.train.assemble import StageParts, build_stage, check_data
from megatron_qwen3vl.train.chain import Start, find_start
from megatron_qwen3vl.train.checkpoint import latest_checkpoint, read_state
from megatron_qwen3vl.train.ingredients import Ingredients, find_ingredients
from megatron_qwen3vl.train.prepare import prepare_run
from megatron_qwen3vl.train.progress import StageSummary, print_summary
from megatron_qwen3vl.train.records import Records, open_records
from megatron_qwen3vl.train.stop import StopSignal
from megatron_qwen3vl.train.trainer import Origin, Progress, StageRun
from megatron_qwen3vl.train.validation import Validation

TRACED_BELOW = 1_000_000_000  # parameters: samples.jsonl by default


def pretrain(config: RunConfig) -> None:
    """Run to the end of the last stage.

    Raises UserError for what the user can mend, Stopped after a signal was answered by saving, RunFailed otherwise.
    """
    config = prepare_run(config, world_size())
    ingredients = find_ingredients(
        config.model, config.dtype, config.run.init_from, config.tokenizer, config.run.init_language
    )
    device = start_device()
    stop = StopSignal()
    try:
        join(device)
        start = from_first_rank(lambda: find_start(config, ingredients.tokenizer.fingerprint))
        # on one rank only: the others of a model-parallel group never open any data
        from_first_rank(lambda: check_data(config, config.run.stages[start.stage :], ingredients))
        records = _open_records(config, start)
        summaries = _run_stages(config, start, ingredients, device, records, stop)
        records.close()
    finally:
        stop.restore()
        shutdown()
    if is_first_rank():
        write_report(Path(config.run.dir))
        if not config.log.progress:
            return
        if summaries:
            print_summary(summaries)
        else:
            print(f"{config.run.dir}: every stage of run.stages is done already; nothing to do")


def _run_stages(
    config: RunConfig, start: Start, ingredients: Ingredients, device: Device, records: Records, stop: StopSignal
) -> list[StageSummary]:
    summaries: list[StageSummary] = []
    for name in config.run.stages[start.stage :]:
        parallel = resolve(config.parallel, config.stages[name].parallel)
        groups = start_groups(Layout.from_config(parallel, world_size()), device, config.run.seed)
        parts = build_stage(config, name, start, ingredients, groups)
        records.start(_start_row(name, start, job_begins=not summaries, parts=parts, groups=groups, device=device))
        validation = Validation(config, name, ingredients, parts, groups, device)
        run = StageRun(config, name, parts, _origin(start), groups, device, records, stop, validation)
        summaries.append(run.fit())
        groups.stop()
        start = Start(start.stage + 1, latest_checkpoint(Path(config.run.dir) / "checkpoints" / name), None)
    return summaries


def _start_row(
    name: str, start: Start, job_begins: bool, parts: StageParts, groups: Groups, device: Device
) -> dict[str, Any]:
    """What starts.jsonl says of a stage that begins or goes on."""
    layout = {**asdict(groups.layout), "dp": groups.dp_size}
    return {
        "job_begins": job_begins,
        "stage": name,
        "step": start.state["step"] if start.state is not None else 0,
        "checkpoint": None if start.weights is None else str(start.weights),
        "device": device.type,
        "layout": {axis: size for axis, size in layout.items() if size is not None},
        "shares": parts.feed.about.shares,
        "left_out": parts.feed.about.left_out,
        "divided": parts.feed.about.divided,
        "changes": parts.feed.about.changes,
    }


def _origin(start: Start) -> Origin:
    """What the stage goes on from, out of the checkpoint's state."""
    if start.weights is None:
        return Origin(Progress(), None)
    state = read_state(start.weights)
    if start.state is None:
        return Origin(Progress(total_steps=state["total_steps"]), state["sections"])
    return Origin(Progress(**state["progress"]), state["sections"])


def _open_records(config: RunConfig, start: Start) -> Records:
    """The run's files, cut back to the checkpoint the run goes on from; and its resolved configuration."""
    writer, folder = is_first_rank(), Path(config.run.dir)
    from_first_rank(lambda: _write_config(config, folder))
    inside = start.weights is not None and start.weights.resolve().is_relative_to(folder.resolve())
    trace = config.run.trace_samples
    return open_records(
        folder,
        lengths=read_state(start.weights)["files"] if inside and start.weights is not None else {},
        trace_samples=trace if trace is not None else count_parameters(config.model) < TRACED_BELOW,
        wandb_mode=config.log.wandb,
        project=config.log.project,
        config=asdict(config),
        writer=writer,
    )


def _write_config(config: RunConfig, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(dump_yaml(config))
    except OSError as error:
        raise UserError(f"run.dir={folder}: cannot be written ({error.strerror}); choose another folder") from None
