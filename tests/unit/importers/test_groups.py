"""Rows by what they belong to, in a temporary file."""

from __future__ import annotations

import resource

import pytest

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers.groups import group


def test_names_of_any_kind_in_the_order_of_their_first_rows() -> None:
    names = ["b", "\ud800", 7, "7", 10**30, "", "a\0b"]
    rows = [*((name, [place]) for place, name in enumerate(names)), ("b", "again")]
    with group(rows) as found:
        assert list(found.names()) == names
        assert found.of("b") == [[0], "again"] and found.of("\udfff") == []
        assert [found.of(name)[0] for name in names] == [[place] for place in range(len(names))]
        assert len(found) == 8 and list(found.rows())[-1] == "again"


def test_a_full_disk_is_said_with_what_helps() -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(UserError, match="SQLITE_TMPDIR"), group((n, "x" * 2**20) for n in range(40)):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
