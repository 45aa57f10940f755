"""Videos with timed captions: the times of the annotations come back as the stamps that the renderer writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from shard_helpers import source, tokenizer
from text_and_media_sets import named, run, webdataset_samples, write_activitynet

from megatron_qwen3vl.errors import UserError

SECONDS, CLOCK = re.compile(r"<(\d+\.\d) seconds>"), re.compile(r"<(\d\d):(\d\d):(\d\d)>")


def times_in(text: str) -> list[float]:
    """Of either form."""
    clock = [int(h) * 3600 + int(m) * 60 + int(s) for h, m, s in CLOCK.findall(text)]
    return clock or [float(seconds) for seconds in SECONDS.findall(text)]


def turns(sample: dict) -> list[tuple[str, str]]:
    messages = sample["json"]["messages"]
    questions = ["".join(p.get("text", "") for p in message["content"]) for message in messages[::2]]
    return list(zip(questions, [message["content"] for message in messages[1::2]], strict=True))


def test_dense_captions_and_questions(tmp_path: Path) -> None:
    captions = write_activitynet(tmp_path / "in", 12)
    words = (f"videos={tmp_path / 'in' / 'videos'}", "held_out=0")
    run("activitynet", tmp_path / "in" / "captions.json", tmp_path / "out", *words)
    found = webdataset_samples(tmp_path / "out" / "train")
    read = json.loads((tmp_path / "in" / "captions.json").read_text())
    assert list(found) == list(read) == list(captions)
    forms = set()
    for name, sample in found.items():
        assert sample["0.mp4"] == (tmp_path / "in" / "videos" / f"{name}.mp4").read_bytes()
        *asked, (question, told) = turns(sample)
        assert question == "Describe every event of the video with its time."
        lines = told.splitlines()
        last = 1.96 if name == list(read)[-1] else 4.0  # of the shorter video's frames
        events = [
            (start, min(end, last), " ".join(words.split()))
            for (start, end), words in zip(read[name]["timestamps"], read[name]["sentences"], strict=True)
            if start < last
        ]
        assert len(lines) == len(events) and 1 <= len(asked) <= 3
        for line, (start, end, words) in zip(lines, events, strict=True):
            assert line.endswith(f": {words}")
            forms.add(bool(CLOCK.search(line)))
            step = 1 if CLOCK.search(line) else 0.1
            assert all(abs(a - b) <= step for a, b in zip(times_in(line), (start, end), strict=True))
        for question, answer in asked:
            (event,) = [event for event in events if event[2] in question]
            line = lines[events.index(event)]
            assert answer == line.removesuffix(f": {event[2]}") + "."
    assert forms == {True, False}  # both ways of writing a time


def test_stamps_are_written_as_the_renderer_does(tmp_path: Path) -> None:
    """``timestamps`` is mixed by the sample's key: text and frames of one sample must agree."""
    write_activitynet(tmp_path / "in", 12)
    words = (f"videos={tmp_path / 'in' / 'videos'}", "held_out=0")
    run("activitynet", tmp_path / "in" / "captions.json", tmp_path / "out", *words)
    ours = source(tmp_path, "out/train", fps=2.0)
    forms = set()
    for number, sample in enumerate(webdataset_samples(tmp_path / "out" / "train").values()):
        read = ours.read(number, True)
        assert read.failure is None and len(read.grids)
        rendered = tokenizer().decode(read.input_ids.tolist())
        told = "".join(answer for _, answer in turns(sample))
        clock = bool(CLOCK.search(told))
        forms.add(clock)
        assert bool(CLOCK.search(rendered)) == clock and bool(SECONDS.search(rendered)) == (not clock)
        stamped = times_in(rendered)[: len(read.grids)]
        assert stamped == sorted(stamped) and stamped[0] >= 0 and stamped[-1] <= 4
    assert forms == {True, False}


def test_only_one_task_and_another_name_of_the_file(tmp_path: Path) -> None:
    captions = write_activitynet(tmp_path / "in", 8)
    videos = tmp_path / "in" / "videos"
    for path in list(videos.iterdir()):
        path.rename(videos / path.name.removeprefix("v_"))
    words = (f"videos={videos}", "held_out=0", "timestamps=seconds")
    run("activitynet", tmp_path / "in" / "captions.json", tmp_path / "dense", "tasks=dense", *words)
    found = [sample["json"] for sample in webdataset_samples(tmp_path / "dense" / "train").values()]
    assert {frozenset(body) for body in found} == {frozenset(("content", "domain")), frozenset(("messages", "domain"))}
    run("activitynet", tmp_path / "in" / "captions.json", tmp_path / "ask", "tasks=grounding", "questions=1", *words)
    found = webdataset_samples(tmp_path / "ask" / "train")
    assert len(found) == len(captions) and all(len(turns(sample)) == 1 for sample in found.values())


def test_bad_videos_are_named(tmp_path: Path) -> None:
    captions = write_activitynet(tmp_path / "in", 2)
    good = dict(next(iter(captions.values())))
    videos = tmp_path / "in" / "videos"
    captions |= {"v_missing": good, "../captions": good, "v_broken": good, "v_lengths": good | {"sentences": ["x"]},
                 "v_times": good | {"timestamps": [[0, 1], [1], [2, 3]]}, "v_late": good, "v_twice": good}  # fmt: skip
    data = next(videos.iterdir()).read_bytes()
    (videos / "v_broken.mp4").write_bytes(data[:2000])
    for name in ("lengths", "times", "late", "twice"):
        (videos / f"v_{name}.mp4").write_bytes(data)
    captions["v_late"] = good | {"timestamps": [[9, 10], [8, 20], [11, 12]]}
    captions["v_twice"] = good | {"sentences": ["The same."] * 3}
    (tmp_path / "in" / "captions.json").write_text(json.dumps(captions))
    words = (f"videos={videos}", "held_out=0", "tasks=grounding")
    (summary,) = run("activitynet", tmp_path / "in" / "captions.json", tmp_path / "out", *words)
    reasons = named(summary)
    assert summary.mark.samples == 2 and summary.mark.left_out == 7
    for name, words in (("v_missing", "no such video"), ("v_broken", "video"), ("v_lengths", "one length"),
                        ("v_times", "timestamps[1]"), ("v_late", "no event"), ("v_twice", "twice")):  # fmt: skip
        assert words in reasons[name]
    assert sum("no such video" in reason for reason in reasons.values()) == 2  # the one that leads outside


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"v_a": {"duration": 3, "segments": []}}', "v_a has no list 'timestamps'"),
        ('{"version": "1.3", "database": {}}', "version has no list 'timestamps'"),  # ActivityNet's own classes
        ("[1, 2]", "is not an object"),
        ("{}", "empty"),
        ('{"v_a": ', "is not JSON"),
    ],
)
def test_another_format_is_a_clear_error(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json") as error:
        run("activitynet", tmp_path / "a.json", tmp_path / "out", f"videos={tmp_path}")
    assert said in str(error.value)
