"""The direction of imports and the "only here" rules, read off the syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "megatron_qwen3vl"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))

# what a part may import, itself apart
BELOW_MODEL = {"parallel", "config", "errors", "batch"}
ALLOWED = {
    "errors": set(),
    "batch": set(),
    "config": {"errors"},
    "parallel": {"config", "errors"},
    "model": BELOW_MODEL,
    "data": BELOW_MODEL,
    "convert": BELOW_MODEL | {"model"},
    "recipes": {"data", "config", "errors", "batch"},
    "importers": {"recipes", "data", "config", "errors", "batch"},
    "report": {"data", "config", "errors", "batch"},
    "train": BELOW_MODEL | {"model", "data", "convert", "report"},
    "demo": BELOW_MODEL | {"model", "data", "convert", "recipes", "train", "report"},
    "sweep": {"config", "errors"},
    "cli": BELOW_MODEL | {"model", "data", "convert", "recipes", "importers", "train", "report", "sweep"},
    "__main__": {"cli"},
    "__init__": set(),
}
# library -> the files that may import it
ONLY_IMPORTERS = {
    "hydra": {"config/load.py", "cli.py"},
    "omegaconf": {"config/load.py"},
    "megatron.core.parallel_state": {"parallel/groups.py"},
    "webdataset": {"data/shards.py"},
    "wandb": {"train/metrics.py"},
    "obstore": {"data/storage.py"},
    "torchvision": set(),
}
ONLY_PATCHER = "parallel/device.py"
ONLY_READER_OF_THE_LAUNCHER = "parallel/place.py"
LAUNCHER_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / PACKAGE).as_posix()


def part_of(dotted: str) -> str:
    """``megatron_qwen3vl.data.lanes`` -> ``data``; the package itself -> ``__init__``."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every imported name in full (``from a import b`` is ``a.b``), with its statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports inside the package are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node


def wrong_directions(part: str, tree: ast.AST) -> list[str]:
    found = [(part_of(name), node.lineno) for name, node in imports(tree) if name.split(".")[0] == PACKAGE]
    return [f"line {line}: {part} imports {other}" for other, line in found if other not in ALLOWED[part] | {part}]


def misplaced(file: str, tree: ast.AST) -> list[str]:
    return [
        f"line {node.lineno}: imports {library}"
        for name, node in imports(tree)
        for library, allowed in ONLY_IMPORTERS.items()
        if f"{name}.".startswith(f"{library}.") and file not in allowed
    ]


def patches(tree: ast.AST) -> list[str]:
    """Assignments to attributes of what was imported from another project, plain or by setattr."""
    foreign = set()
    for name, node in imports(tree):
        if name.split(".")[0] != PACKAGE:
            assert isinstance(node, ast.Import | ast.ImportFrom)
            foreign |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}

    def root(node: ast.expr) -> str | None:
        while isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        return node.id if isinstance(node, ast.Name) else None

    found = []
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = [target for target in node.targets if isinstance(target, ast.Attribute)]
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Attribute):
            targets = [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
            targets = [node.args[0]]
        found += [f"line {node.lineno}: patches {root(target)}" for target in targets if root(target) in foreign]
    return found


def launcher_reads(tree: ast.AST) -> list[str]:
    return [
        f"line {node.lineno}: {node.value}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in LAUNCHER_VARIABLES
    ]


def top_level_imports(tree: ast.Module) -> set[str]:
    loaded = [statement for statement in tree.body if not isinstance(statement, ast.FunctionDef)]
    return {name.split(".")[0] for statement in loaded for name, _ in imports(statement)}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_keeps_the_rules(path: Path) -> None:
    tree = ast.parse(path.read_text())
    file = name_of(path)
    part = file.split("/")[0].removesuffix(".py")
    problems = wrong_directions(part, tree) + misplaced(file, tree)
    if file != ONLY_PATCHER:
        problems += patches(tree)
    if file != ONLY_READER_OF_THE_LAUNCHER:
        problems += launcher_reads(tree)
    if "transformers" in top_level_imports(tree):
        problems.append("imports transformers when loaded: it costs seconds; import it where convert/ needs it")
    if any(name.split(".")[0] == "transformers" for name, _ in imports(tree)) and part != "convert":
        problems.append("imports transformers: only convert/ may, and lazily")
    assert not problems, f"{file}: " + "; ".join(problems)


@pytest.mark.parametrize(
    ("part", "file", "code"),
    [
        ("data", "data/x.py", "from megatron_qwen3vl.model import vision"),
        ("model", "model/x.py", "import megatron_qwen3vl.data.lanes"),
        ("config", "config/x.py", "def f():\n    from megatron_qwen3vl.parallel.layout import Layout"),
        ("batch", "batch.py", "from megatron_qwen3vl.errors import UserError"),
        ("train", "train/x.py", "import hydra"),
        ("train", "train/x.py", "from megatron.core import parallel_state"),
        ("train", "train/x.py", "from megatron.core.parallel_state import get_data_parallel_rank"),
        ("data", "data/x.py", "import webdataset as wds"),
        ("train", "train/x.py", "import torch\ntorch.cuda.current_device = lambda: 0"),
        ("train", "train/x.py", "from megatron.core.transformer import moe\nsetattr(moe.moe_utils, 'x', None)"),
        ("train", "train/x.py", "import os\nrank = os.environ['RANK']"),
    ],
)
def test_rules_see_a_breach(part: str, file: str, code: str) -> None:
    tree = ast.parse(code)
    assert wrong_directions(part, tree) + misplaced(file, tree) + patches(tree) + launcher_reads(tree)


def test_every_part_has_a_rule() -> None:
    parts = {name_of(path).split("/")[0].removesuffix(".py") for path in FILES}
    assert parts <= set(ALLOWED), f"give {sorted(parts - set(ALLOWED))} a line in ALLOWED"
