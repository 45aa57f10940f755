"""The table's operations: exact both ways, and divisible by tensor parallelism."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from convert_cases import config_of
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import KINDS, transformers_config

from megatron_qwen3vl.convert.names import NameTable, Rule, rules
from megatron_qwen3vl.convert.operations import GATE_UP_ROWS, ROWS, GroupQKV, HeadQKV

SIZES = (1, 2, 4)


def all_rules() -> list[Rule]:
    """Every row of the three kinds, both orders of the experts; 4 key/value groups, so that 4 ranks divide them."""
    rows: dict[tuple, Rule] = {}
    for kind in KINDS:
        model = config_of(kind)
        model = replace(model, text_config=replace(model.text_config, num_attention_heads=8, num_key_value_heads=4))
        for transposed in (False, True):
            rows |= {(r.ours, str(r.operation)): r for r in rules(model, transposed)}
    return list(rows.values())


@pytest.mark.parametrize("rule", all_rules(), ids=lambda r: r.ours)
def test_split_and_merge_undo_each_other(rule: Rule) -> None:
    full = torch.randn(rule.shape)
    pieces = rule.operation.split(full)
    assert len(pieces) == len(rule.hf)
    assert torch.equal(rule.operation.merge(pieces), full)
    again = rule.operation.split(rule.operation.merge(pieces))
    assert all(torch.equal(a, b) for a, b in zip(again, pieces, strict=True))
    assert sum(p.numel() for p in pieces) == full.numel()


@pytest.mark.parametrize("rule", all_rules(), ids=lambda r: r.ours)
@pytest.mark.parametrize("size", SIZES)
def test_shards_make_the_whole(rule: Rule, size: int) -> None:
    full = torch.randn(rule.shape)
    shards = [rule.partition.shard(full, rank, size) for rank in range(size)]
    assert torch.equal(rule.partition.unshard(shards), full)
    if rule.partition.dim is not None:
        assert all(s.numel() * size == full.numel() for s in shards)


@settings(max_examples=30, deadline=None)
@given(groups=st.integers(1, 4), queries=st.integers(1, 4), head=st.integers(1, 5))
def test_group_qkv_places_every_row(groups: int, queries: int, head: int) -> None:
    """megatron's order, written out by index."""
    q = torch.arange(groups * queries * head)[:, None]
    k, v = (torch.arange(groups * head)[:, None] + offset for offset in (1000, 2000))
    rows = GroupQKV(groups, queries).merge([q, k, v])[:, 0].tolist()
    expected = []
    for g in range(groups):
        expected += list(range(g * queries * head, (g + 1) * queries * head))
        expected += [1000 + g * head + i for i in range(head)] + [2000 + g * head + i for i in range(head)]
    assert rows == expected


def test_a_rank_holds_whole_heads_and_matching_gate_and_up() -> None:
    qkv = HeadQKV(4).merge([torch.cat([torch.arange(8) + 100 * i for i in range(3)])])
    assert ROWS.shard(qkv, 1, 2).tolist() == [4, 5, 104, 105, 204, 205, 6, 7, 106, 107, 206, 207]
    gate_up = torch.cat([torch.arange(4), torch.arange(4) + 100])
    assert GATE_UP_ROWS.shard(gate_up, 1, 2).tolist() == [2, 3, 102, 103]


@pytest.mark.parametrize("kind", KINDS)
def test_table_names_what_transformers_has(kind: str) -> None:
    from transformers import AutoModelForImageTextToText

    model = config_of(kind)
    with torch.device("meta"):
        theirs = AutoModelForImageTextToText.from_config(transformers_config(model)).state_dict()
    if model.tie_word_embeddings:
        del theirs["lm_head.weight"]
    table = NameTable.of(model, transposed_experts=False).tensors
    assert {name: tuple(t.shape) for name, t in theirs.items()} == {name: t.shape for name, t in table.items()}
