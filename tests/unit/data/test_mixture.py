from pathlib import Path

import pytest

from megatron_qwen3vl.config.schema import SourceConfig
from megatron_qwen3vl.data.mixture import load_mixture
from megatron_qwen3vl.errors import UserError


def problems(path: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_mixture(path)
    return caught.value.problems


def test_reads_every_key(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        "sources:\n- {name: a, shards: 'x-{000..003}.tar', weight: 2}\n"
        "- {name: b, shards: [y.tar, z.tar], weight: 0.5, min_pixels: 1024, max_pixels: 4096, timestamps: clock}\n"
    )
    assert load_mixture(path).sources == (
        SourceConfig("a", "x-{000..003}.tar", 2.0),
        SourceConfig("b", ("y.tar", "z.tar"), 0.5, 1024, 4096, "clock"),
    )


def test_the_order_of_samples_does_not_depend_on_where_they_lie(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        "sources:\n- {name: a, shards: x.tar, weight: 1}\n- {name: b, shards: 's3://bucket/{00..09}.tar', weight: 1}\n"
        "- {name: c, shards: 'http://host/z.tar', weight: 1, slice: 64}\n"
    )
    assert [source.slice for source in load_mixture(path).sources] == [1, 1, 64]
    path.write_text("sources:\n- {name: a, shards: x.tar, weight: 1, slice: 0}\n")
    assert problems(path) == [f"mixture {path}: sources[0].slice: 0 must be an integer of 1 to 65536 samples"]


def test_missing_file_and_bad_yaml_name_the_file(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    assert problems(missing) == [f"mixture {missing}: no such file"]
    broken = tmp_path / "broken.yaml"
    broken.write_text("sources: [")
    assert str(broken) in problems(broken)[0] and "\n" not in problems(broken)[0]
    broken.write_text("sources:\n- {name: a, shards: https://host/a.tar?signature=secret, weight: 1\n")
    assert "line 2: " in problems(broken)[0] and "secret" not in problems(broken)[0]
    for text in ("", "sources: []", "- a", "sources: {name: a}"):
        broken.write_text(text)
        assert "sources: must list" in problems(broken)[0]


def test_all_problems_at_once_with_file_and_key(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        "extra: 1\nsources:\n"
        "- {name: a, shards: x.tar, weight: 0}\n"
        "- {name: a, shards: [], weight: yes, wight: 2}\n"
        "- {name: c/d, weight: .inf, min_pixels: 9, max_pixels: 4, timestamps: minutes}\n"
        "- {shards: y.tar, name: e, weight: 1, min_pixels: 1.5}\n"
        "- text\n"
    )
    found = problems(path)
    assert all(line.startswith(f"mixture {path}: ") and "\n" not in line for line in found)
    expected = ["extra", "sources[0].weight", "sources[1].wight", "sources[1].shards", "sources[1].weight"]
    expected += ["sources[1].name", "sources[2].shards", "sources[2].name", "sources[2].weight"]
    expected += ["sources[2].min_pixels", "sources[2].timestamps", "sources[3].min_pixels", "sources[4]"]
    assert [line.split(": ")[1] for line in found] == expected
