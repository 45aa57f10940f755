"""How one of our tensors is made from Hugging Face's, how it is taken apart again, and how it is divided.

Every operation is exact: it moves values and never computes with them.

Shape legend
    D  width of the module's input       H  width of a head
    N  query heads (vision: all heads)   G  key/value groups; N = G x queries_per_group
    F  width of the feed-forward part    E  experts
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Operation(Protocol):
    """``merge`` makes our whole tensor, ``split`` undoes it: ``split(merge(x)) == x``, and the other way round."""

    def merge(self, pieces: Sequence[Tensor]) -> Tensor: ...

    def split(self, full: Tensor) -> list[Tensor]: ...


@dataclass(frozen=True)
class Copy:
    """The same tensor on both sides."""

    def merge(self, pieces: Sequence[Tensor]) -> Tensor:
        return pieces[0]

    def split(self, full: Tensor) -> list[Tensor]:
        return [full]


@dataclass(frozen=True)
class Transpose:
    """A matrix that Hugging Face stores as [in, out]."""

    def merge(self, pieces: Sequence[Tensor]) -> Tensor:
        return pieces[0].T

    def split(self, full: Tensor) -> list[Tensor]:
        return [full.T]


@dataclass(frozen=True)
class FlattenKernel:
    """The Conv3d kernel [D, channels, frames, height, width] <-> the matrix [D, C] of the linear patch embedding."""

    kernel: tuple[int, int, int, int]

    def merge(self, pieces: Sequence[Tensor]) -> Tensor:
        return pieces[0].flatten(1)

    def split(self, full: Tensor) -> list[Tensor]:
        return [full.unflatten(1, self.kernel)]


@dataclass(frozen=True)
class GroupQKV:
    """q [N x H, D], k [G x H, D], v [G x H, D] <-> per group: its queries, its key, its value.

    The order of megatron-core's ``SelfAttention.get_query_key_value_tensors``.
    """

    groups: int
    queries_per_group: int

    def merge(self, pieces: Sequence[Tensor]) -> Tensor:
        return torch.cat([piece.unflatten(0, (self.groups, -1)) for piece in pieces], dim=1).flatten(0, 1)

    def split(self, full: Tensor) -> list[Tensor]:
        grouped = full.unflatten(0, (self.groups, self.queries_per_group + 2, -1))
        parts = grouped.split([self.queries_per_group, 1, 1], dim=1)
        return [part.flatten(0, 2) for part in parts]


@dataclass(frozen=True)
class HeadQKV:
    """The ViT's [3 x N x H, ...] (all queries, all keys, all values) <-> per head its query, key, value."""

    heads: int

    def merge(self, pieces: Sequence[Tensor]) -> Tensor:
        return pieces[0].unflatten(0, (3, self.heads, -1)).transpose(0, 1).flatten(0, 2)

    def split(self, full: Tensor) -> list[Tensor]:
        return [full.unflatten(0, (self.heads, 3, -1)).transpose(0, 1).flatten(0, 2)]


@dataclass(frozen=True)
class StackRows:
    """gate [F, D], up [F, D] <-> [gate; up]."""

    def merge(self, pieces: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(pieces), dim=0)

    def split(self, full: Tensor) -> list[Tensor]:
        return list(full.chunk(2, dim=0))


@dataclass(frozen=True)
class Partition:
    """How tensor parallelism divides our whole tensor: along ``dim``, each of ``blocks`` equal blocks on its own.

    ``dim`` None is a tensor that every rank holds whole. ``blocks`` 2 is [gate; up]: a rank holds its part of both.
    """

    dim: int | None
    blocks: int = 1

    def shard(self, full: Tensor, rank: int, size: int) -> Tensor:
        if self.dim is None or size == 1:
            return full
        blocks = full.chunk(self.blocks, self.dim)
        return torch.cat([block.chunk(size, self.dim)[rank] for block in blocks], dim=self.dim)

    def unshard(self, shards: Sequence[Tensor]) -> Tensor:
        """All ranks' shards, in order of rank -> the whole tensor."""
        if self.dim is None or len(shards) == 1:
            return shards[0]
        blocks = [shard.chunk(self.blocks, self.dim) for shard in shards]
        return torch.cat([part[b] for b in range(self.blocks) for part in blocks], dim=self.dim)


SAME = Copy()
WHOLE = Partition(None)
ROWS = Partition(0)
COLUMNS = Partition(1)
GATE_UP_ROWS = Partition(0, blocks=2)
