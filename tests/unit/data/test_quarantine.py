import json

import numpy as np
import pytest

from megatron_qwen3vl.batch import Document
from megatron_qwen3vl.data.lanes import LeftOut
from megatron_qwen3vl.data.quarantine import (
    Quarantine,
    Quarantined,
    failed_documents,
    left_out_samples,
    refuse_bad_sources,
)
from megatron_qwen3vl.data.survey import Survey, survey_of
from megatron_qwen3vl.errors import UserError


def bad(source: str, number: int) -> Quarantined:
    return Quarantined(source, f"{source}/s/{number}", f"reason\n{number}", "s0", 1)


def stopped_at(quarantine: Quarantine, steps: list[tuple[int, list[Quarantined]]]) -> int | None:
    for number, (read, failed) in enumerate(steps):
        try:
            quarantine.add(read, failed)
        except UserError:
            return number
    return None


def test_who_is_bad() -> None:
    documents = [Document("web/a/1", "caption", 3, None), Document("web/a/2", "caption", 0, "truncated")]
    assert failed_documents(documents, "s1", 7) == [Quarantined("web", "web/a/2", "truncated", "s1", 7)]
    left_out = [LeftOut("text", "text/b/3", "too long")]
    assert left_out_samples(left_out, "s1", 7) == [Quarantined("text", "text/b/3", "too long", "s1", 7)]


def test_stops_beyond_the_rate_and_names_the_worst_source_and_its_reasons() -> None:
    quarantine = Quarantine(0.05)
    quarantine.add(200, [bad("a", n) for n in range(4)] + [bad("b", n) for n in range(6)])
    with pytest.raises(UserError) as caught:
        quarantine.add(1, [bad("b", 6)])
    assert "11 of 201" in caught.value.problems[0] and "0.05" in caught.value.problems[0]
    assert "source b has 7" in caught.value.problems[1]
    assert caught.value.problems[2:] == [f"b/s/{n}: reason {n}" for n in (4, 5, 6)]


def test_a_few_bad_samples_at_the_beginning_do_not_stop_a_run() -> None:
    assert stopped_at(Quarantine(0.05), [(4, [bad("a", 0)])] + [(4, [])] * 10 + [(4, [bad("a", 1)])]) is None
    assert stopped_at(Quarantine(0.0), [(4, []), (4, [bad("a", 0)])]) == 1


def test_counts_go_on_after_a_resume() -> None:
    steps = [(20, [bad("a", n)] if n % 3 else []) for n in range(60)]
    for stop in (1, 3, 5):
        before = Quarantine(0.03)
        assert stopped_at(before, steps[:stop]) is None
        after = Quarantine(0.03, json.loads(json.dumps(before.state())))
        rest = stopped_at(after, steps[stop:])
        assert rest is not None and stop + rest == stopped_at(Quarantine(0.03), steps)


def test_samples_that_the_index_knows_to_be_bad_count_over_their_source() -> None:
    lengths = np.full(200, 10, np.int32)
    lengths[:11] = 0
    sources = [_Sized("web", lengths)]
    refuse_bad_sources(sources, 0.06, 999)
    with pytest.raises(UserError, match="source web: 11 of 200 samples .*data.max_bad_rate=0.05.*web/0/0: no picture"):
        refuse_bad_sources(sources, 0.05, 999)
    refuse_bad_sources([_Sized("small", lengths[8:28])], 0.05, 999)  # 3 of 20: too few to judge by


class _Sized:
    def __init__(self, name: str, lengths: np.ndarray) -> None:
        self.name, self.lengths, self.patches = name, lengths, lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def survey(self, sequence_length: int) -> Survey:
        return survey_of(self.lengths, sequence_length)

    def key(self, index: int) -> str:
        return f"{self.name}/0/{index}"

    def domain(self, index: int) -> str:
        return self.name

    def reason(self, index: int) -> str:
        return "no picture"
