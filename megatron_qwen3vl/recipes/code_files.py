"""Code: Python's own sources and those of installed packages that a recipe names, by whole definitions."""

from __future__ import annotations

import ast
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.recipes.materials import package_folder
from megatron_qwen3vl.recipes.plain_text import PACKAGES, in_held_out
from megatron_qwen3vl.recipes.record import Record, conversation, document, text

WRITE = "Write the Python function `{}` of {}.\n\n{}"
DOMAIN = "code"


@dataclass(frozen=True)
class CodeSettings:
    packages: tuple[str, ...]  # Python packages beside the standard library; their licences must allow it
    characters: tuple[int, int]  # fewest and most of a sample
    conversation_share: float  # a function to write from its heading and docstring; the rest are pieces of files


@dataclass(frozen=True)
class Piece:
    """``source`` compiles by itself. ``asked`` is a question that it answers, "" for a piece of a file."""

    module: str
    source: str
    asked: str


def modules(packages: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """(path as imported, file), the standard library first.

    Raises:
        UserError: a package is not installed.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    folders = [(root, ""), *((root / package, f"{package}/") for package in PACKAGES)]
    for name in packages:
        folder = package_folder(name)
        if folder is None:
            raise UserError(f"settings.packages: {name} is not installed: pip install {name}")
        folders.append((folder, f"{name}/"))
    for folder, prefix in folders:
        for file in sorted(folder.glob("*.py")):
            yield f"{prefix}{file.name}", file


def pieces(module: str, file: Path, settings: CodeSettings) -> list[Piece]:
    """The file's top-level statements, as many together as are allowed; and its functions that say what they do."""
    source = file.read_bytes().decode("utf-8", "replace")
    lines, tree = source.splitlines(keepends=True), ast.parse(source)
    fewest, most = settings.characters
    found, waiting = list[Piece](), ""
    for node in tree.body:
        words = _lines_of(lines, node)
        if len(waiting) + len(words) > most:
            found.append(Piece(module, waiting, ""))
            waiting = ""
        waiting += words
    found.append(Piece(module, waiting, ""))
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        if says := ast.get_docstring(function):
            asked = WRITE.format(function.name, module, says)
            found.append(Piece(module, textwrap.dedent(_lines_of(lines, function)), asked))
    return [piece for piece in found if fewest <= len(piece.source) <= most and _compiles(piece.source)]


def _lines_of(lines: list[str], node: ast.stmt) -> str:
    """Decorators included."""
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) else []
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    return "".join(lines[first - 1 : node.end_lineno]).rstrip("\n") + "\n\n"


def _compiles(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:  # two statements on a line, or a text that dedent moved
        return False
    return True


@cache
def _pieces_of_split(settings: CodeSettings, held_out: bool) -> tuple[Piece, ...]:
    files = [(module, file) for module, file in modules(settings.packages) if in_held_out(module) == held_out]
    return tuple(piece for module, file in files for piece in pieces(module, file, settings))


def build(settings: CodeSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    """At most ``count`` samples, in an order fixed by ``seed``; a module's code is all in one split."""
    found = _pieces_of_split(settings, held_out)
    rng = np.random.default_rng([seed, held_out])
    asked, files = ([p for p in found if bool(p.asked) == kind] for kind in (True, False))
    picked = min(len(asked), round(count * settings.conversation_share))
    chosen = [asked[int(i)] for i in rng.permutation(len(asked))[:picked]]
    chosen += [files[int(i)] for i in rng.permutation(len(files))[: count - picked]]
    for number, index in enumerate(rng.permutation(len(chosen))):
        piece = chosen[int(index)]
        source = piece.source.rstrip("\n") + "\n"
        if piece.asked:
            body = conversation([([text(piece.asked)], f"```python\n{source}```")], DOMAIN)
        else:
            body = document([text(f"# {piece.module}\n{source}")], DOMAIN)
        yield Record(f"{number:06d}", body, {})
