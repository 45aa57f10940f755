"""Hydra's tree to frozen dataclasses. The only importer of Hydra.

    overrides -> parse each -> compose configs/*.yaml -> resolve interpolations -> plain dict -> dacite -> RunConfig

Hydra and dacite stop at the first problem; here each override is tried on its own first, so that all problems come
together. Nothing is written and the working directory stays.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import dacite
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megatron_qwen3vl.config.paths import resource
from megatron_qwen3vl.config.schema import EvaluateConfig, RunConfig
from megatron_qwen3vl.errors import UserError

Tree = dict[str, Any]
Schema = TypeVar("Schema")


def load_config(overrides: Sequence[str]) -> RunConfig:
    """The configuration of ``pretrain``. Raises UserError with every problem of the overrides."""
    return _whole(try_config(overrides))


def load_evaluate_config(overrides: Sequence[str]) -> EvaluateConfig:
    """The configuration of ``evaluate``. Raises UserError with every problem of the overrides."""
    return _whole(try_evaluate_config(overrides))


def try_config(overrides: Sequence[str]) -> tuple[RunConfig | None, list[str]]:
    """As ``load_config``, with the problems beside the configuration as it would be without the overrides at fault, so
    that ``check.py`` can add its own. None when there is nothing to go on with."""
    return _load("pretrain", RunConfig, overrides)


def try_evaluate_config(overrides: Sequence[str]) -> tuple[EvaluateConfig | None, list[str]]:
    """As ``try_config``, for ``load_evaluate_config``."""
    return _load("evaluate", EvaluateConfig, overrides)


def _whole(answer: tuple[Schema | None, list[str]]) -> Schema:
    config, problems = answer
    if problems or config is None:
        raise UserError(problems)
    return config


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """One list of overrides per job of a ``--multirun``: the product of all choices and ranges, in Hydra's order.
    Raises UserError for overrides that do not parse."""
    parsed, problems = _parse(overrides)
    if problems:
        raise UserError(problems)
    try:
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise UserError(f"--multirun: {_first_line(error)}") from None
    return jobs


def dump_yaml(config: RunConfig | EvaluateConfig) -> str:
    """The resolved configuration, as it is written to ``<run.dir>/config.yaml``."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False, width=120)


def load_dumped(path: Path) -> RunConfig:
    """What ``dump_yaml`` wrote. Raises UserError when the file is missing or not such a configuration."""
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({_first_line(error)}); give the folder of a run") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: is not the configuration of a run")
    try:
        return dacite.from_dict(RunConfig, tree, _DACITE)
    except dacite.DaciteError as error:
        raise UserError(f"{path}: {_first_line(error)}; was it written by another version?") from None


# ---- compose


def _load(name: str, schema: type[Schema], overrides: Sequence[str]) -> tuple[Schema | None, list[str]]:
    root = resource("configs")
    if not (root / f"{name}.yaml").is_file():
        raise UserError(f"{root}: no {name}.yaml here; install the project with `pip install -e .` from its checkout")
    parsed, problems = _parse(overrides)
    with initialize_config_dir(config_dir=str(root), version_base=None):
        groups = {path.name for path in root.iterdir() if path.is_dir()}
        is_group = [override.key_or_group in groups for override in parsed]
        chosen, group_problems, base = _usable(name, root, [], list(itertools.compress(parsed, is_group)))
        known = _keys(OmegaConf.to_container(base, resolve=False))
        values = []
        for override in itertools.compress(parsed, [not group for group in is_group]):
            problem = _value_problem(known, override)
            if problem is None:
                values.append(override)
            else:
                problems.append(problem)
        _, value_problems, composed = _usable(name, root, chosen, values)
        problems += group_problems + value_problems
        tree = _resolve(composed, problems)
        fallback = _resolve(base, [])
    return _build(schema, tree, fallback, problems), problems


def _parse(overrides: Sequence[str]) -> tuple[list[Override], list[str]]:
    parser = OverridesParser.create()
    parsed, problems = [], []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            problems.append(f"{text}: not of the form key=value ({_first_line(error)})")
    return parsed, problems


def _usable(
    name: str, root: Path, before: Sequence[str], overrides: Sequence[Override]
) -> tuple[list[str], list[str], DictConfig]:
    """``before`` and those of the overrides that Hydra takes, one problem for each of the others, and what those taken
    compose to. The common case, all of them, costs one composition."""
    lines = [_line(override) for override in overrides]
    try:
        return [*before, *lines], [], compose(name, [*before, *lines])
    except (HydraException, OmegaConfBaseException):
        pass
    usable, problems = list(before), []
    composed = compose(name, usable)
    for override, line in zip(overrides, lines, strict=True):
        try:
            composed = compose(name, [*usable, line])
            usable.append(line)
        except (HydraException, OmegaConfBaseException) as error:
            choices = sorted(path.stem for path in (root / override.key_or_group).glob("*.yaml"))
            if choices and not override.is_sweep_override() and override.value() not in choices:
                problems.append(f"{line}: choose {override.key_or_group} out of {', '.join(choices)}")
            else:
                problems.append(f"{line}: {_first_line(error)}")
    return usable, problems, composed


def _value_problem(known: Sequence[str], override: Override) -> str | None:
    key = override.key_or_group
    if override.is_delete():
        return f"{_line(override)}: no key can be taken away; where null means none, set {key}=null"
    if override.is_sweep_override():
        return f"{_line(override)}: several values at once need --multirun; a list is written {key}=[a,b]"
    if key in known:
        return None
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    close = close or [k for k in known if k.endswith(f".{key.rpartition('.')[2]}")][:1]
    close = close or difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{key}: unknown key{hint}"


def _line(override: Override) -> str:
    assert override.input_line is not None, "set by Hydra's parser"
    return override.input_line


def _keys(tree: Any, prefix: str = "") -> list[str]:
    if not isinstance(tree, Mapping):
        return []
    keys = []
    for name, value in tree.items():
        keys += [f"{prefix}{name}", *_keys(value, f"{prefix}{name}.")]
    return keys


def _resolve(config: DictConfig, problems: list[str]) -> Tree:
    """The plain tree. An interpolation that leads nowhere is reported, and its text is then taken as the value."""
    try:
        return typing.cast(Tree, OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        problems.append(f"{error.full_key}: {_first_line(error)}")
        return typing.cast(Tree, OmegaConf.to_container(config, resolve=False))


def _first_line(error: Exception) -> str:
    """Hydra's first line often only says that something failed; its second says what."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if isinstance(error, HydraException) else 1])


# ---- build


def _build(schema: type[Schema], tree: Tree, fallback: Tree, problems: list[str]) -> Schema | None:
    """The dataclass. Every wrong value goes to ``problems`` and is replaced by the default; the search goes on."""
    while True:
        try:
            return dacite.from_dict(schema, tree, _DACITE)
        except dacite.WrongTypeError as error:
            path = (error.field_path or "").split(".")
            wrong, default = _get(tree, path), _get(fallback, path)
            shown = json.dumps(wrong, default=str)
            problem = f"{'.'.join(path)}: expected {_describe(error.field_type)}, got {shown}"
        except dacite.MissingValueError as error:
            path = (error.field_path or "").split(".")
            wrong, default = None, _get(fallback, path)
            problem = f"{'.'.join(path)}: has no value"
        except dacite.UnexpectedDataError as error:
            problems.append(f"{', '.join(sorted(error.keys))}: unknown key")
            return None
        if not any(problem.startswith(f"{'.'.join(path)}:") for problem in problems):
            problems.append(problem)
        if wrong == default and type(wrong) is type(default):
            return None  # the files themselves are wrong
        _get(tree, path[:-1])[path[-1]] = default


def _get(tree: Any, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


class _NotANumber:
    """Stands for a truth value where a number belongs: Python counts True as the integer 1."""


def _to_int(value: Any) -> Any:
    if isinstance(value, bool):
        return _NotANumber()
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():  # tokens=67e9
        return int(value)
    return value


def _to_float(value: Any) -> Any:
    if isinstance(value, bool):
        return _NotANumber()
    return float(value) if isinstance(value, int) else value


def _to_list(value: Any) -> Any:
    """One value stands for a list of one; a list keeps its items."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


_DACITE = dacite.Config(
    strict=True,
    cast=[tuple],
    type_hooks={
        int: _to_int,
        float: _to_float,
        tuple[str, ...]: _to_list,
        tuple[int, ...]: _to_list,
        tuple[float, float]: _to_list,
    },
)


def _describe(kind: Any) -> str:
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if kind in names:
        return names[kind]
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        count = "" if Ellipsis in arguments else f"{len(arguments)} "
        return f"a list of {count}{names[arguments[0]].removeprefix('an ').removeprefix('a ')} values"
    if isinstance(kind, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    return "a section of keys"


def _plain(value: Any) -> Any:
    """Tuples as lists: YAML's safe form has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
