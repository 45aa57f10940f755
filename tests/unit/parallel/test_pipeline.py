"""The split of the layers against all splits there are; the reasons why a split is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_qwen3vl.parallel.pipeline import PipelineCosts, PipelineShape, choose_split, split_problems


def every_split(num_layers: int, least: Sequence[int]) -> Iterator[tuple[int, ...]]:
    if len(least) == 1:
        if num_layers >= least[0]:
            yield (num_layers,)
        return
    for own in range(least[0], num_layers + 1):
        for rest in every_split(num_layers - own, least[1:]):
            yield (own, *rest)


def dearest(split: Sequence[int], pp: int, costs: PipelineCosts) -> tuple[int, int]:
    """(rank, part), in cost."""
    parts = [count * costs.layer for count in split]
    parts[0] += costs.first
    parts[-1] += costs.last
    return max(sum(parts[rank::pp]) for rank in range(pp)), max(parts)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.sampled_from([(1, 1), (2, 1), (3, 1), (4, 1), (2, 2), (2, 3), (3, 2)]),
    more=st.integers(0, 9),
    levels=st.integers(0, 3),
    first=st.integers(0, 40),
    layer=st.integers(1, 9),
    last=st.integers(0, 20),
)
def test_no_split_is_cheaper(
    sizes: tuple[int, int], more: int, levels: int, first: int, layer: int, last: int
) -> None:
    pp, vpp = sizes
    least = [max(levels, 1), *[1] * (pp * vpp - 1)]
    costs = PipelineCosts(first, layer, last)
    chosen = choose_split(PipelineShape(sum(least) + more, levels, pp, vpp), costs)
    found = list(every_split(sum(least) + more, least))
    assert chosen in found
    assert dearest(chosen, pp, costs) == min(dearest(split, pp, costs) for split in found)


def test_what_divides_evenly_stays_even() -> None:
    even = PipelineCosts(first=0, layer=5, last=0)
    assert choose_split(PipelineShape(8, 2, 2, 2), even) == (2, 2, 2, 2)
    assert choose_split(PipelineShape(6, 3, 2, 1), even) == (3, 3)


@pytest.mark.parametrize("pp", [1, 2, 4, 8, 16, 92])
def test_94_layers_divide_by_anything(pp: int) -> None:
    split = choose_split(PipelineShape(94, 3, pp, 1), PipelineCosts(first=403, layer=100, last=121))
    assert (len(split), sum(split)) == (pp, 94)
    assert split[0] >= 3 and min(split) >= 1
    if pp < 16:  # as even as whole layers can be
        costs = [100 * count for count in split]
        costs[0], costs[-1] = costs[0] + 403, costs[-1] + 121
        assert max(costs) - (94 * 100 + 403 + 121) / pp < 100


def test_impossible_and_given() -> None:
    with pytest.raises(ValueError, match="93 parts"):
        choose_split(PipelineShape(94, 3, 93, 1), PipelineCosts(0, 1, 0))
    shape = PipelineShape(6, 3, 2, 1)

    def told(given: Sequence[int] | None, shape: PipelineShape = shape) -> list[str]:
        return list(split_problems(shape, given, "parallel.pp=2", "the.key", "own.key"))

    assert told(None) == told((3, 3)) == told((5, 1)) == told((3, 2, 1), PipelineShape(6, 3, 3, 1)) == []
    assert told((6,)) == [
        "the.key=[6]: 1 counts for pp x vpp = 2 x 1 = 2 parts; use for example own.key=[3,3]",
    ]
    assert told((3, 0)) == [
        "the.key=[3,0]: every part needs at least one layer; use for example own.key=[3,3]",
        "the.key=[3,0]: sums to 3, the model has num_hidden_layers 6; use for example own.key=[3,3]",
    ]
    assert told((2, 4)) == [
        "the.key=[2,4]: the first part has 2 layers, but the 3 DeepStack levels must lie in it; "
        "use for example own.key=[3,3]",
    ]
    assert told(None, PipelineShape(6, 3, 5, 1)) == [
        "parallel.pp=2: pp x vpp = 5 x 1 = 5 parts, but 6 layers with the 3 DeepStack levels in the first part fill at "
        "most 4; lower pp or vpp"
    ]
