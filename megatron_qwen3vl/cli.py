"""The commands. Each imports what it needs when it runs, so that help and configuration errors take no second."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_qwen3vl.errors import RunFailed, Stopped, UserError
from megatron_qwen3vl.parallel.place import read_place

if TYPE_CHECKING:
    from megatron_qwen3vl.config.schema import RunConfig
    from megatron_qwen3vl.train.ingredients import Ingredients

DONE, FAILED, USER_ERROR, STOPPED = 0, 1, 2, 75
MAX_LINES = 15
# torchrun ends all workers when the first one exits: the silent ones wait until the one that prints has done so.
SILENT_WAIT_S = 2.0

HELP = """\
usage: megatron-qwen3vl COMMAND ...

  pretrain [key=value ...] [--multirun]   run the stages of run.stages; without keys, the demonstration
  evaluate run.init_from=DIR mixture=PATH [key=value ...]
                                          loss of a checkpoint or Hugging Face folder on a mixture
  convert import HF_DIR OUT               Hugging Face folder -> training checkpoint
  convert export CHECKPOINT HF_DIR        training checkpoint -> Hugging Face folder
  data build RECIPE OUT                   make shards from a domain recipe
  data import FORMAT SOURCE OUT           shards from a public data set as it is on disk; --help lists the formats
  data index PATH [--to FOLDER]           index existing tar files, on a disk or behind an address
  data inspect PATH [--html FILE]         what shards or a mixture hold; a page of packs as the model gets them
  data frames PATH OUT [--fps 2] [--max-frames 768] [--side PIXELS]
                                          shards or a folder with video files -> shards of sampled frames
  data sheet SHARDS OUT.png               a picture of some of the samples that shards hold
  data tokenizer SOURCE OUT               Qwen's: from a qwen.tiktoken, a wheel with it, or pypi:dashscope
  report RUN_DIR                          one HTML page about a run

`pretrain --help` and `evaluate --help` list every key with its default. The same command runs under
torchrun and Slurm: torchrun --nproc-per-node 2 -m megatron_qwen3vl pretrain ...
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, 1 the run failed, 2 the user's mistake, 75 stopped by a signal after saving.

    What nobody foresaw propagates.
    """
    try:
        return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        lines = [line for problem in error.problems for line in problem.splitlines()]
        if len(lines) > MAX_LINES:
            lines = [*lines[: MAX_LINES - 1], f"... and {len(lines) - MAX_LINES + 1} more"]
        _print_problems(lines)
        return USER_ERROR
    except RunFailed as error:
        _print_problems(str(error).splitlines())
        return FAILED
    except Stopped:
        return STOPPED


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return DONE if arguments else USER_ERROR
    name, *rest = arguments
    commands: dict[str, Callable[[list[str]], int]] = {
        "pretrain": _pretrain,
        "evaluate": _evaluate,
        "convert": _convert,
        "data": _data,
        "report": _report,
    }
    if name not in commands:
        raise UserError(f"{name}: no such command; choose out of {', '.join(commands)} (see --help)")
    return commands[name](rest)


def _pretrain(arguments: list[str]) -> int:
    overrides, options = _split(arguments, ("-h", "--help", "-m", "--multirun"))
    from megatron_qwen3vl.config.load import dump_yaml, load_config, try_config

    if options & {"-h", "--help"}:
        print("usage: megatron-qwen3vl pretrain [key=value ...] [--multirun]\n\nEvery key with its value here:\n")
        print(dump_yaml(load_config(overrides)), end="")
        return DONE
    if options:
        from megatron_qwen3vl.sweep import run_sweep

        return run_sweep(overrides)
    from megatron_qwen3vl.train.prepare import prepare_run

    config, problems = try_config(overrides)
    if config is None:
        raise UserError(problems)
    # before the import below, which takes seconds
    config = prepare_run(config, read_place(os.environ).world_size, problems)

    from megatron_qwen3vl.train.pretrain import pretrain

    pretrain(config)
    return DONE


def _evaluate(arguments: list[str]) -> int:
    overrides, options = _split(arguments, ("-h", "--help"))
    from megatron_qwen3vl.config.load import dump_yaml, load_evaluate_config, try_evaluate_config
    from megatron_qwen3vl.train.prepare import prepare_evaluate

    if options:
        print("usage: megatron-qwen3vl evaluate [key=value ...]\n\nEvery key with its value here:\n")
        print(dump_yaml(load_evaluate_config(overrides)), end="")
        return DONE
    config, problems = try_evaluate_config(overrides)
    if config is None:
        raise UserError(problems)
    prepare_evaluate(config, read_place(os.environ).world_size, problems)

    from megatron_qwen3vl.train.evaluate import evaluate

    evaluate(config)
    return DONE


def _convert(arguments: list[str]) -> int:
    direction, source, target = _positional("convert", arguments, ("import|export", "FROM", "TO"))
    if direction not in ("import", "export"):
        raise UserError(f"convert {direction}: choose import (from Hugging Face) or export (to Hugging Face)")
    _folder_exists(source)

    from megatron_qwen3vl.train.convert import export_checkpoint, import_checkpoint

    (import_checkpoint if direction == "import" else export_checkpoint)(Path(source), Path(target))
    return DONE


def _data(arguments: list[str]) -> int:
    actions = {
        "build": _data_build,
        "frames": _data_frames,
        "import": _data_import,
        "index": _data_index,
        "inspect": _data_inspect,
        "sheet": _data_sheet,
        "tokenizer": _data_tokenizer,
    }
    if not arguments or arguments[0] not in actions:
        raise UserError(f"data: say what to do: {', '.join(actions)} (see --help)")
    return actions[arguments[0]](arguments[1:])


def _data_build(arguments: list[str]) -> int:
    recipe, out = _positional("data build", arguments, ("RECIPE", "OUT"))

    from megatron_qwen3vl.config.paths import find_path
    from megatron_qwen3vl.recipes.build import build

    for split in build(find_path(recipe), Path(out), _show_progress):
        size = f"{split.num_bytes / 1e6:.1f} MB"
        print(f"{out}/{split.name}: {split.samples:,} samples, {len(split.shards)} shards, {size}")
        _index([f"{out}/{split.name}"], None, 1)  # a built domain has few shards: starting processes would take longer
    return DONE


def _data_import(arguments: list[str]) -> int:
    from megatron_qwen3vl.importers.command import import_command

    return import_command(arguments, _data_index)


def _data_index(arguments: list[str]) -> int:
    usage = "usage: megatron-qwen3vl data index PATH|ADDRESS [--to FOLDER|beside] [--workers N] [key=value ...]"
    words = [word for a in arguments for word in (a.split("=", 1) if a.startswith("--") else [a])]
    values: dict[str, str] = {}
    for option in ("--workers", "--to"):
        if option in words:
            place = words.index(option)
            values[option] = "".join(words[place + 1 : place + 2])
            del words[place : place + 2]
    workers = values.get("--workers")
    if workers is not None and (not workers.isdecimal() or int(workers) < 1):
        raise UserError([f"data index --workers: {workers!r} must be a number of processes, at least 1", usage])
    if values.get("--to") == "":
        raise UserError(["data index --to: needs a folder, or beside", usage])
    _index(words, values.get("--to"), int(workers) if workers is not None else None)
    return DONE


def _index(arguments: list[str], to: str | None, workers: int | None) -> None:
    path, ingredients, config = _shards_and_tokenizer("data index", arguments)

    from megatron_qwen3vl.data.indexing import index_shards
    from megatron_qwen3vl.data.processes import available_cores
    from megatron_qwen3vl.data.progress import ShardProgress
    from megatron_qwen3vl.data.remote import BESIDE, check_index_target, is_address
    from megatron_qwen3vl.data.shards import find_shards
    from megatron_qwen3vl.data.storage import without_credentials

    check_index_target(path, to)
    folder = None if to is None or to == BESIDE else Path(to).absolute()
    shards = find_shards(path, Path.cwd(), config.storage)
    path = without_credentials(path) if is_address(path) else path
    with ShardProgress(f"data index {path}", len(shards)) as progress:
        results = index_shards(shards, ingredients.tokenizer, folder, workers or available_cores(), progress.advance)
    done = [result for result in results if result.problem is None]
    made = [result for result in done if result.made]
    kept = f" ({len(done) - len(made)} were current)" if len(made) < len(done) else ""
    samples, unusable = sum(result.samples for result in done), sum(result.unusable for result in done)
    cost = f"{sum(result.num_bytes for result in done):,} bytes, {sum(r.cpu_seconds for r in made):.1f} CPU s"
    print(f"{path}: {len(done)} shards indexed{kept}, {samples:,} samples, {unusable:,} cannot be used; {cost}")
    for line in [line for result in done for line in result.damage][:MAX_LINES]:
        print(f"damaged: {line}", file=sys.stderr)
    problems = [result.problem for result in results if result.problem is not None]
    if problems:
        raise UserError(problems)


def _data_inspect(arguments: list[str]) -> int:
    page = None
    if "--html" in arguments:
        place = arguments.index("--html")
        (page,) = _positional("data inspect PATH --html", arguments[place + 1 : place + 2], ("FILE",))
        arguments = arguments[:place] + arguments[place + 2 :]
    path, ingredients, config = _shards_and_tokenizer("data inspect", arguments)
    if "://" in path:
        raise UserError("data inspect: takes no address; name a mixture file with a source of these shards")

    from megatron_qwen3vl.config.paths import find_path
    from megatron_qwen3vl.report.inspect import inspect_path

    target = Path(page) if page is not None else None
    print(inspect_path(find_path(path), config, ingredients.tokenizer, ingredients.limits, target))
    return DONE


def _data_frames(arguments: list[str]) -> int:
    path, out, fps, max_frames, side = _frames_arguments(arguments)

    from megatron_qwen3vl.data.frames import write_frames
    from megatron_qwen3vl.data.sampling import Sampling

    summary = write_frames(path, out, Sampling(fps, max_frames, None), side, lambda name: print(name, flush=True))
    print(f"{out}: {summary.samples:,} samples, {summary.videos:,} videos, {summary.frames:,} frames")
    for line in summary.bad[:MAX_LINES]:
        print(f"left out: {line}", file=sys.stderr)
    if len(summary.bad) > MAX_LINES:
        print(f"left out: {len(summary.bad) - MAX_LINES} more", file=sys.stderr)
    if not summary.samples:
        raise UserError(f"data frames: {path} holds no sample that can be used")
    return DONE


def _frames_arguments(arguments: list[str]) -> tuple[Path, Path, float, int | None, int | None]:
    """PATH, OUT, --fps, --max-frames, --side."""
    usage = "usage: megatron-qwen3vl data frames PATH OUT [--fps 2] [--max-frames 768] [--side PIXELS]"
    values = {"--fps": "2", "--max-frames": "", "--side": ""}
    words = iter([word for a in arguments for word in (a.split("=", 1) if a.startswith("--") else [a])])
    places: list[str] = []
    for word in words:
        if not word.startswith("--"):
            places.append(word)
        elif word not in values:
            raise UserError([f"data frames {word}: unknown option", usage])
        else:
            values[word] = next(words, "")
    try:
        fps = float(values["--fps"])
        max_frames, side = (int(values[name]) if values[name] else None for name in ("--max-frames", "--side"))
        good = len(places) == 2 and 0 < fps <= 1000 and (max_frames is None or max_frames >= 4)
    except ValueError:
        good = False
    if not good or (side is not None and side < 1):
        raise UserError([usage, "data frames: --fps is more than 0, --max-frames at least 4, --side at least 1"])
    return Path(places[0]), Path(places[1]), fps, max_frames, side


def _data_tokenizer(arguments: list[str]) -> int:
    source, out = _positional("data tokenizer", arguments, ("SOURCE", "OUT"))

    from megatron_qwen3vl.data.qwen_tokenizer import PUBLISHED_SHA256, rebuild

    names = rebuild(source, Path(out))
    print(f"{out}: {', '.join(names)}; {', '.join(PUBLISHED_SHA256)} equal the published files")
    return DONE


def _data_sheet(arguments: list[str]) -> int:
    shards, out = _positional("data sheet", arguments, ("SHARDS", "OUT.png"))

    from megatron_qwen3vl.recipes.contact_sheet import write_sheet

    print(f"{out}: {write_sheet(Path(shards), Path(out))} samples")
    return DONE


def _shards_and_tokenizer(command: str, arguments: list[str]) -> tuple[str, Ingredients, RunConfig]:
    """``PATH [key=value ...]``: what counts tokens and pixels is found as for ``pretrain``, by its keys."""
    # a signed address holds = as well
    keys = [a for a in arguments if "=" in a and ":" not in a.partition("=")[0]]
    overrides, _ = _split(keys, ())
    (path,) = _positional(command, [argument for argument in arguments if argument not in keys], ("PATH",))

    from megatron_qwen3vl.config.load import load_config
    from megatron_qwen3vl.train.ingredients import find_ingredients
    from megatron_qwen3vl.train.prepare import with_model_of_origin

    config = with_model_of_origin(load_config(overrides))
    ingredients = find_ingredients(
        config.model, config.dtype, config.run.init_from, config.tokenizer, config.run.init_language
    )
    return path, ingredients, config


def _show_progress(done: int, planned: int) -> None:
    if sys.stderr.isatty() and (done % 100 == 0 or done == planned):
        print(f"\r{done:,} of {planned:,} samples", end="\n" if done == planned else "", file=sys.stderr, flush=True)


def _report(arguments: list[str]) -> int:
    (run_dir,) = _positional("report", arguments, ("RUN_DIR",))
    _folder_exists(run_dir)

    from megatron_qwen3vl.report.page import write_report

    write_report(Path(run_dir))
    return DONE


def _split(arguments: Sequence[str], options: Sequence[str]) -> tuple[list[str], set[str]]:
    """Overrides, and those of the options that are there."""
    given = {argument for argument in arguments if argument.startswith("-")}
    unknown = sorted(given - set(options))
    if unknown:
        raise UserError(f"{unknown[0]}: unknown option; there are {', '.join(options)}, and key=value")
    return [argument for argument in arguments if not argument.startswith("-")], given


def _positional(command: str, arguments: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    if len(arguments) != len(names) or any(argument.startswith("-") for argument in arguments):
        raise UserError(f"usage: megatron-qwen3vl {command} {' '.join(names)}")
    return arguments


def _folder_exists(name: str) -> None:
    if not Path(name).is_dir():
        raise UserError(f"{name}: no such folder")


def _print_problems(lines: Sequence[str]) -> None:
    try:
        silent = read_place(os.environ).rank != 0
    except UserError:
        silent = False
    if silent:
        time.sleep(SILENT_WAIT_S)
        return
    print("\n".join(lines), file=sys.stderr, flush=True)
