"""Reading the keys of a ``config.json``, with every problem collected."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from megatron_qwen3vl.errors import UserError


def read_tree(content: bytes, path: str) -> dict[str, Any]:
    """The JSON object; empty where it is another value, so that every key is missing. Raises UserError: not JSON."""
    try:
        tree = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    return tree if isinstance(tree, dict) else {}


class Keys:
    """Reads keys of one section and collects what is wrong with them; all sections share the list."""

    def __init__(self, path: str, tree: Mapping[str, Any], prefix: str, problems: list[str]) -> None:
        self.path, self.tree, self.prefix, self.problems = path, tree, prefix, problems

    def refuse(self, key: str, advice: str) -> None:
        self.problems.append(f"{self.path}: {self.prefix}{key} {self.tree.get(key)!r} cannot be built; {advice}")

    def refuse_quantised(self) -> None:
        if "quantization_config" in self.tree:
            self.refuse("quantization_config", "use the unquantised checkpoint")

    def section(self, key: str) -> Keys:
        value = self.tree.get(key)
        if not isinstance(value, dict):
            self.problems.append(f"{self.path}: {self.prefix}{key} is missing or not a section")
            value = {}
        return Keys(self.path, value, f"{self.prefix}{key}.", self.problems)

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value, converted to ``kind`` where no information is lost; ``default`` None: the key is required."""
        value = self.tree.get(key)
        if value is None and default is not None:
            return default
        if value is None:
            self.problems.append(f"{self.path}: {self.prefix}{key} is missing")
            return kind()
        good = isinstance(value, int | float) if kind is float else isinstance(value, kind)
        if not good or (isinstance(value, bool) and kind is not bool):
            self.problems.append(f"{self.path}: {self.prefix}{key} is {value!r}, not {kind.__name__}")
            return kind()
        return kind(value)

    def integers(self, key: str) -> tuple[int, ...]:
        values = self.get(key, list)
        if not all(isinstance(v, int) for v in values):
            self.problems.append(f"{self.path}: {self.prefix}{key} is {values!r}, not a list of integers")
        return tuple(values)

    def same(self, key: str, allowed: Iterable[Any]) -> None:
        if key in self.tree and self.tree[key] not in allowed:
            self.refuse(key, f"it must be {next(iter(allowed))!r}")
