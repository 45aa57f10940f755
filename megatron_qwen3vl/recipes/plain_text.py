"""English text that every Python carries: the docstrings of its standard library."""

from __future__ import annotations

import ast
import sysconfig
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("asyncio", "collections", "concurrent/futures", "email", "http", "importlib", "json", "logging",
            "multiprocessing", "unittest", "urllib", "xml/etree")  # fmt: skip


@dataclass(frozen=True)
class Docstring:
    module: str  # path inside the standard library
    name: str  # the class or function, "" for the module's own
    text: str


def stdlib_docstrings(minimum: int) -> list[Docstring]:
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
    return found
