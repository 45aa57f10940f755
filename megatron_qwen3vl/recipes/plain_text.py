"""English text that every Python carries: the docstrings of its standard library."""

from __future__ import annotations

import ast
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from megatron_qwen3vl.recipes.record import Record, conversation, document, text

PACKAGES = ("asyncio", "collections", "concurrent/futures", "email", "http", "importlib", "json", "logging",
            "multiprocessing", "unittest", "urllib", "xml/etree")  # fmt: skip
MINIMUM = 40  # characters; anything shorter says nothing
DOMAIN = "text"


@dataclass(frozen=True)
class Docstring:
    module: str  # path inside the standard library
    name: str  # the class or function, "" for the module's own
    text: str


@cache
def stdlib_docstrings(minimum: int) -> tuple[Docstring, ...]:
    """Docstrings of at least ``minimum`` characters, by module and then in source order.

    Which ones there are depends on the Python version, not on the machine.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted([*root.glob("*.py"), *(f for package in PACKAGES for f in (root / package).glob("*.py"))])
    found = []
    for file in files:
        module = file.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text is not None and len(text) >= minimum:
                    found.append(Docstring(module, "" if isinstance(node, ast.Module) else node.name, text))
    return tuple(found)


@dataclass(frozen=True)
class TextSettings:
    minimum: int  # characters; shorter docstrings are left out
    maximum: int  # characters; a longer text is cut at the end of a line
    join: bool  # one document of a whole module's docstrings instead of one each
    conversation_share: float


def in_held_out(module: str) -> bool:
    """One module in eight, by its name, so that both splits stay what they are when modules come and go."""
    return zlib.crc32(module.encode()) % 8 == 0


def build(settings: TextSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    """At most ``count`` documents, in an order fixed by ``seed``."""
    found = [d for d in stdlib_docstrings(MINIMUM) if in_held_out(d.module) == held_out]
    texts = _modules(found) if settings.join else found
    texts = [t for t in texts if len(t.text) >= settings.minimum]
    order = np.random.default_rng([seed, held_out]).permutation(len(texts))[:count]
    for number, index in enumerate(order):
        rng = np.random.default_rng([seed, held_out, number])
        found_text = texts[index]
        words = _shorten(found_text.text, settings.maximum)
        if found_text.name and rng.random() < settings.conversation_share:
            question = f"What is {found_text.name} in {found_text.module}?"
            body = conversation([([text(question)], words)], DOMAIN)
        else:
            body = document([text(words)], DOMAIN)
        yield Record(f"{number:06d}", body, {})


def _modules(found: list[Docstring]) -> list[Docstring]:
    modules: dict[str, list[str]] = {}
    for docstring in found:
        heading = docstring.name or docstring.module
        modules.setdefault(docstring.module, []).append(f"{heading}\n\n{docstring.text}")
    return [Docstring(module, "", "\n\n\n".join(parts)) for module, parts in modules.items()]


def _shorten(words: str, maximum: int) -> str:
    if len(words) <= maximum:
        return words
    kept = words[:maximum]
    return kept[: kept.rindex("\n")] if "\n" in kept else kept
