"""One rank of each model-parallel group reads; the others get the same packs, and learn of every failure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults_data import OVERRIDES, make_mixture
from spawn import run_ranks

from megatron_qwen3vl.config.schema import RunConfig
from megatron_qwen3vl.data.lanes import SampleSource
from megatron_qwen3vl.data.loader import Loader
from tests.parity import reference as ref
from tests.unit.data.fake_source import FakeSource, fake_source
from tests.unit.data.test_loader import CONFIG, SOURCES, WEIGHTS, content

LAYOUTS = {
    "tp": replace(ref.PLAIN, tp=2),
    "pp": replace(ref.PLAIN, pp=2),
    "cp": replace(ref.PLAIN, cp=2),
    "dp": ref.PLAIN,
}
STEPS = 3


def settings(mixture: Path, run: Path) -> list[str]:
    own = [f"stages.s0.mixture={mixture}", "run.stages=[s0]", f"stages.s0.steps={STEPS}", "data.workers=0"]
    held_out = [f"validation.mixture={mixture}", "validation.every=2", "validation.samples=3"]
    return [*OVERRIDES, *own, *held_out, f"run.dir={run}"]


def config_of(overrides: Sequence[str]) -> RunConfig:
    from megatron_qwen3vl.config.load import load_config

    return load_config(list(overrides))


def record_opened(folder: Path) -> list[str]:
    """Filled from now on with the files under ``folder`` that this process opens, however it does."""
    opened: list[str] = []

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).startswith(str(folder)):
            opened.append(str(arguments[0]))

    sys.addaudithook(hook)
    return opened


def feed_steps(overrides: list[str], folder: Path) -> dict[str, tuple[Any, ...]]:
    """In each process, for each layout: the packs of some steps, the states after them, the files opened."""
    from megatron_qwen3vl.parallel.device import start_device
    from megatron_qwen3vl.parallel.groups import start_groups
    from megatron_qwen3vl.parallel.layout import Layout
    from megatron_qwen3vl.train.assemble import open_feed
    from megatron_qwen3vl.train.chain import Start
    from megatron_qwen3vl.train.ingredients import find_ingredients

    config, opened, found = config_of(overrides), record_opened(folder), {}
    device = start_device("cpu")
    ingredients = find_ingredients(config.model, config.dtype, None, None)
    for name, parallel in LAYOUTS.items():
        groups = start_groups(Layout.from_config(parallel, 2), device)
        opened.clear()
        feed = open_feed(config, "s0", Start(0, None, None), ingredients, groups)
        steps, states = [], []
        for _ in range(STEPS):
            step = feed.next()
            figures = (step.source_tokens, step.epochs, [sample.key for sample in step.left_out], step.digest)
            steps.append(({pack.lane: content(pack) for pack in step.packs}, figures))
            if feed._ahead is not None:
                feed._ahead.result()  # the next step has been read
            states.append(feed.state())
        feed.close()
        found[name] = (steps, states, feed.about.domains, sorted({Path(path).name for path in opened}))
        groups.stop()
    return found


def train(overrides: list[str], folder: Path) -> list[str]:
    from megatron_qwen3vl.train.pretrain import pretrain

    opened = record_opened(folder)
    pretrain(config_of(overrides))
    return sorted({Path(path).name for path in opened})


def test_one_rank_of_each_model_parallel_group_reads_and_the_others_get_its_packs(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    first, second = run_ranks(feed_steps, 2, settings(make_mixture(data), tmp_path / "run"), data)
    for name in LAYOUTS:
        steps, states, domains, opened = first[name]
        others, other_states, other_domains, other_opened = second[name]
        assert {"pictures.tar", "texts.tar", "mixture.yaml"} <= set(opened)
        assert domains == other_domains == ["caption", "text"]
        whole = [{**mine, **theirs} for (mine, _), (theirs, _) in zip(steps, others, strict=True)]
        if name == "dp":
            assert {"pictures.tar", "texts.tar"} & set(other_opened) and states == other_states
            assert all(len(mine) == 1 for mine, _ in (*steps, *others))
        else:
            assert other_opened == [], "a second rank of a group reads"
            assert other_states == [{}] * STEPS
            bare = [{lane: pack[:-1] for lane, pack in mine.items()} for mine, _ in steps]
            assert bare == [{lane: pack[:-1] for lane, pack in mine.items()} for mine, _ in others]
            patches = [pack[-1] for mine, _ in others for pack in mine.values()]
            assert (patches == [None] * len(patches)) == (name == "pp")
            assert name == "pp" or [mine for mine, _ in steps] == [mine for mine, _ in others]
            whole = [mine for mine, _ in steps]
        assert [figures[:-1] for _, figures in steps] == [figures[:-1] for _, figures in others]
        reference = [mine for mine, _ in first["tp"][0]]
        assert whole == reference and states == first["tp"][1]
        assert all(state != other for state, other in zip(states, states[1:], strict=False))


def test_a_run_opens_its_data_on_the_reader_only(tmp_path: Path) -> None:
    """The check before the stages and the held-out samples included."""
    data = tmp_path / "data"
    data.mkdir()
    run = [*settings(make_mixture(data), tmp_path / "run"), "parallel.tp=2"]
    first, second = run_ranks(train, 2, run, data)
    assert {"pictures.tar", "texts.tar"} <= set(first) and second == []
    assert len((tmp_path / "run" / "validation.jsonl").read_text().splitlines()) == 2


def outcomes(cases: Sequence[tuple[Any, ...]]) -> list[tuple[str, str, int]]:
    """In each of four processes, two groups of two: what each case raised, with which text, after how many steps.

    A case is what the readers' sources are, each reader's own, or what opening them raises.
    """
    from megatron_qwen3vl.parallel.device import start_device
    from megatron_qwen3vl.parallel.groups import start_groups
    from megatron_qwen3vl.parallel.layout import Layout
    from megatron_qwen3vl.train.feed import Feed

    device, found = start_device("cpu"), []
    for of_reader in cases:
        groups = start_groups(Layout.from_config(LAYOUTS["tp"], 4), device)
        own = of_reader[groups.dp_rank]

        def open_loader(own: Any = own, groups: Any = groups) -> tuple[Loader, None]:
            if isinstance(own, Exception):
                raise own
            return Loader(replace(CONFIG, num_ranks=2, rank=groups.dp_rank), own, WEIGHTS[: len(own)]), None

        steps = 0
        try:
            feed = Feed(groups, open_loader, 6)
            for steps in range(6):  # noqa: B007
                feed.next()
            feed.close()
            found.append(("", "", steps))
        except Exception as error:
            found.append((type(error).__name__, str(error), steps))
        groups.stop()
    return found


def test_what_fails_on_one_reader_ends_all_ranks_alike() -> None:
    from megatron_qwen3vl.errors import UserError

    burns: list[SampleSource] = [SOURCES[0], replace(SOURCES[1], behaviour={14: "raise"})]
    shorter = [SOURCES[0], FakeSource("image", np.maximum(SOURCES[1].lengths - 1, 1))]
    dearer = [fake_source("text", *[40] * 30), fake_source("image", *[30] * 30)]
    cheaper = [fake_source("text", *[40] * 30), replace(dearer[1], slice_size=4)]
    cases = [
        (SOURCES, SOURCES),
        (burns, burns),
        (SOURCES, UserError(["stale index", "another"])),
        (SOURCES, ZeroDivisionError("no such thing")),
        (SOURCES, shorter),
        (dearer, cheaper),
    ]
    by_rank = run_ranks(outcomes, 4, cases)
    for first, *others in zip(*by_rank, strict=True):
        assert all(other == first for other in others)
    sound, burnt, stale, bug, *differing = by_rank[0]
    assert sound == ("", "", 5)
    assert burnt[:2] == ("RunFailed", "sample image/shard/14: OSError: disk on fire")
    assert stale == ("UserError", "stale index\nanother", 0)
    assert bug[0] == "RunFailed" and "ZeroDivisionError: no such thing" in bug[1] and "Traceback" in bug[1]
    for name, text, _ in differing:
        assert name == "UserError" and "do not plan the same packs" in text


@pytest.mark.parametrize("sizes", [(), (0,), (1, 63, 64, 65), (100_000, 7)])
def test_arrays_travel_beside_the_pickle(sizes: tuple[int, ...]) -> None:
    from megatron_qwen3vl.train.feed import _pack_up, _unpack

    value = {"text": "plain", "arrays": [np.arange(size, dtype=np.int32) for size in sizes]}
    found = _unpack(_pack_up(value))
    assert found["text"] == "plain"
    for before, after in zip(value["arrays"], found["arrays"], strict=True):
        assert np.array_equal(before, after) and after.dtype == before.dtype and after.flags.writeable
        assert after.ctypes.data % after.itemsize == 0
