"""Choices by a hash: the same sample is asked the same way in every run, on every machine and Python."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Chooser:
    """A row of choices that follows from ``key`` and from nothing else."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._made = 0

    def number(self, below: int) -> int:
        self._made += 1
        digest = hashlib.sha256(f"{self._made} {self._key}".encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % below

    def pick(self, options: Sequence[T]) -> T:
        return options[self.number(len(options))]

    def some(self, options: Sequence[T], most: int) -> list[T]:
        """At most ``most`` of them, in an order of their own."""
        left = list(options)
        return [left.pop(self.number(len(left))) for _ in range(min(most, len(left)))]
