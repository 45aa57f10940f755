"""Video files: true times (against ffprobe), the frames that were planned, bad files named, the rule of sampling."""

import io
import os
import re
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from megatron_qwen3vl.config.schema import SourceConfig
from megatron_qwen3vl.data.index import MAGIC, read_index
from megatron_qwen3vl.data.indexing import get_index
from megatron_qwen3vl.data.loader import Loader, LoaderConfig, PackCost
from megatron_qwen3vl.data.sampling import MOST_FRAMES, Sampling, spread, wanted_frames
from megatron_qwen3vl.data.shards import find_shards, scan, write_shard
from megatron_qwen3vl.data.shown import Rules, show_all
from megatron_qwen3vl.data.source import open_source
from megatron_qwen3vl.data.timestamps import from_runs, group_times, to_runs
from megatron_qwen3vl.data.video import decode_frames, probe
from megatron_qwen3vl.data.vision import VisionLimits
from megatron_qwen3vl.data.workers import WorkerLimits
from megatron_qwen3vl.errors import BadSample
from tests.unit.data.shard_helpers import (
    LIMITS,
    VISION,
    build_indexes,
    document,
    model,
    picture,
    source,
    tokenizer,
    video_part,
)
from tests.unit.data.video_files import RATES, encode, encode_sound, number_of, shown_times, uneven

T = tokenizer()
LOADER = LoaderConfig(
    seed=1, stage="s1", sequence_length=256, global_batch_size=2, lookahead=2, pad_id=T.pad_id, num_ranks=1, rank=0,
    vision_dp=1, workers=0, prefetch=1, limits=WorkerLimits(300.0, None), pixels=True,
    cost=PackCost(token=1.0, pair=0.1, patch=0.5),
)  # fmt: skip
FILE = {"type": "video", "video": "0.mp4"}
FILES = {name: {"num_frames": 120, "rate": rate} for name, rate in RATES.items()}
FILES["variable"] = {"num_frames": 90, "milliseconds": uneven(90)}


def fill(folder: Path, *samples: dict[str, bytes]) -> Path:
    (folder / "data").mkdir(exist_ok=True)
    write_shard(folder / "data/0.tar", [(str(number), sample) for number, sample in enumerate(samples)])
    return folder


def stamps_of(ids: np.ndarray) -> list[float]:
    """Seconds that the model reads, from the token ids."""
    words = re.findall(r"<(\d+\.\d) seconds>", T.decode([int(token) for token in ids]))
    return [float(word) for word in words]


@pytest.mark.parametrize("name", FILES)
def test_stamps_are_the_true_times_of_the_frames_shown(tmp_path: Path, name: str) -> None:
    """The frames are recognised by what they show, so neither their choice nor their times come from our code.

    The times before they are written are within half a frame of the truth; the text is these, with one decimal.
    """
    data = encode(**FILES[name])
    truth = shown_times(data, tmp_path)
    fill(tmp_path, {"json": document(FILE, "end"), "0.mp4": data})
    found = source(tmp_path, limits=VisionLimits(1024, 1024, 4096, 20 * 1024), timestamps="seconds", fps=3)
    sample = found.read(0, pixels=True)
    assert sample.failure is None and len(sample.input_ids) == found.lengths[0]
    assert (sample.grids == (1, 2, 2)).all()
    levels = sample.patches.reshape(-1, 4, 3, 2, 16, 16)[:, 2:, 0, :, 8, 8].astype(int)  # [groups, left and right, 2]
    shown = [[number_of(*pair) for pair in group.T] for group in levels]
    assert len(shown) == len(stamps_of(sample.input_ids)) >= 6
    means = [(truth[first] + truth[second]) / 2 for first, second in shown]
    np.testing.assert_allclose(stamps_of(sample.input_ids), means, atol=0.05 + 1e-6)
    (visual,) = build_indexes(tmp_path / "data", T)[0].visuals(0)
    (plan,) = show_all([visual], Rules(T, LIMITS, VISION, "seconds", Sampling(3, None, None)))
    half = min(np.diff(truth)) / 2
    np.testing.assert_allclose(group_times(plan.times, 2), means, atol=half)
    np.testing.assert_allclose(visual.times, truth, atol=1e-6)


@pytest.mark.parametrize("kind,codec", [("mp4", "libx264"), ("matroska", "libx264"), ("webm", "libvpx-vp9"),
                                        ("webm", "libvpx"), ("avi", "mpeg4")])  # fmt: skip
def test_every_container_says_what_ffprobe_says(tmp_path: Path, kind: str, codec: str) -> None:
    options = {"libx264": None, "mpeg4": {"g": "12"}}.get(codec, {"lag-in-frames": "8", "deadline": "realtime"})
    data = encode(50, RATES["29.97"], kind=kind, codec=codec, options=options)
    facts = probe(data)
    np.testing.assert_allclose(facts.ticks * float(facts.time_base), shown_times(data, tmp_path), atol=1e-6)


def test_only_chosen_frames_and_exactly_those(tmp_path: Path) -> None:
    for options in (None, {"preset": "medium", "g": "10", "x264-params": "open-gop=1:bframes=3"}):
        data = encode(80, milliseconds=uneven(80), options=options)
        ticks = probe(data).ticks
        with av.open(io.BytesIO(data)) as container:
            whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        for places in ([0], [79], [3, 33, 34, 78], list(range(0, 80, 7)), list(range(80))):
            got = decode_frames(data, ticks[places])
            assert all(np.array_equal(g, whole[place]) for g, place in zip(got, places, strict=True))


def test_transport_stream_begins_at_zero_and_late_mp4_does_not(tmp_path: Path) -> None:
    stream = encode(30, kind="mpegts")
    assert probe(stream).ticks[0] == 0 and len(probe(stream).ticks) == 30
    late = encode(30, milliseconds=[1500 + 40 * n for n in range(30)])
    assert probe(late).ticks[0] * probe(late).time_base == Fraction(3, 2) and shown_times(late, tmp_path)[0] == 1.5


def test_turned_as_the_container_asks() -> None:
    data = encode(5, size=(64, 48), rotation=90)
    facts = probe(data)
    (picture,) = decode_frames(data, facts.ticks[:1])
    assert picture.shape == (64, 48, 3) and (facts.height, facts.width) == (64, 48)
    red = picture[..., 0].astype(int) - picture[..., 1]
    assert red[-4, 4] > 100 > abs(red[4, 4])  # the corner went from top left to bottom left: counter-clockwise


BAD = {
    "no bytes": (b"", "is not an MP4"),
    "other bytes": (b"not a video" * 99, "is not an MP4"),
    "a playlist of files": (b"#EXTM3U\n#EXTINF:1\nfile:///etc/passwd\n", "is not an MP4"),
    "cut off before its table": (encode(30)[:-600], "cannot be decoded"),
    "cut off": (encode(100, kind="matroska")[:-3000], "video is cut off"),
    "sound alone": (encode_sound(), "no video stream"),
    "one frame": (encode(1), "lasts no time: it has one frame"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_bad_samples_with_a_reason(tmp_path: Path, name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(BadSample, match=reason):
        probe(data)
    fill(tmp_path, {"json": document(FILE, "x"), "0.mp4": data}, {"txt": b"good"})
    found = source(tmp_path)
    assert found.lengths[0] == 0 and found.lengths[1] > 0
    assert found.reason(0).startswith("0.mp4: ") and reason in found.reason(0)
    assert found.read(0, pixels=True).failure == found.reason(0)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg puts the table in front")
def test_cut_off_behind_its_table(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(encode(60))
    command = ["ffmpeg", "-v", "error", "-i", "a.mp4", "-c", "copy", "-movflags", "faststart", "b.mp4"]
    subprocess.run(command, cwd=tmp_path, check=True)
    data = (tmp_path / "b.mp4").read_bytes()
    assert len(probe(data).ticks) == 60
    with pytest.raises(BadSample, match="cut off"):
        probe(data[:-100])


def test_a_file_that_breaks_on_decoding_keeps_its_place(tmp_path: Path) -> None:
    """What the index cannot know: the middle of the pictures is overwritten, all sizes and times are as before."""
    data = bytearray(encode(60, options={"preset": "veryfast", "g": "6", "threads": "1", "crf": "1"}))
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    good = encode(60)
    for place, content in enumerate((good, bytes(data))):
        fill(tmp_path, {"json": document(FILE, "x"), "0.mp4": content}, {"txt": b"words"})
        found = source(tmp_path, fps=10)
        sample = found.read(0, pixels=True)
        assert len(sample.input_ids) == found.lengths[0] > 40 and (sample.failure is not None) == bool(place)
        assert found.read(0, pixels=False).failure is None and sample.num_labels == (0 if place else 2)
    assert "cannot be decoded" in sample.failure


def test_the_index_knows_all_times(tmp_path: Path) -> None:
    data = encode(**FILES["variable"])
    listed = {**video_part("0.png", "1.png"), "times": [0.1, 7 / 3]}
    fill(tmp_path, {"json": document(FILE, listed), "0.mp4": data, "0.png": picture(8, 8), "1.png": picture(8, 8)})
    (index,) = build_indexes(tmp_path / "data", T)
    file, frames = index.visuals(0)
    assert (file.height, file.width, file.frames, file.is_file) == (48, 64, 90, True)
    np.testing.assert_allclose(file.times, np.array(uneven(90)) / 1000, atol=1e-4)
    assert frames.times.tolist() == [0.1, 7 / 3] and not frames.is_file


def test_an_index_without_video_files_is_made_again(tmp_path: Path) -> None:
    fill(tmp_path, {"json": document(FILE, "x"), "0.mp4": encode(20)})
    build_indexes(tmp_path / "data", T)
    path = tmp_path / "data/0.tar.idx"
    path.write_bytes(b"MQ3VIDX1" + path.read_bytes()[len(MAGIC) :])
    (shard,) = find_shards("data", tmp_path)
    assert get_index(shard, T, None).path is None and source(tmp_path).lengths[0] > 0
    build_indexes(tmp_path / "data", T)
    assert read_index(path).path == path


def test_runs_are_lossless_and_short() -> None:
    constant = np.arange(100_000) * 1001 + 7
    steps, counts = to_runs(constant)
    assert len(steps) == 2 and np.array_equal(from_runs(steps, counts), constant)
    for ticks in (np.zeros(0, np.int64), np.array([0]), np.array([3]), np.array(uneven(300)),
                  np.sort(np.random.default_rng(0).random(50)).view(np.int64)):  # fmt: skip
        assert np.array_equal(from_runs(*to_runs(ticks)), ticks)


@pytest.mark.parametrize("rate", [*RATES.values(), Fraction(10), Fraction(1, 3)])
@pytest.mark.parametrize("num_frames", [4, 5, 37, 250, 1001, 20_000])
def test_constant_rates_are_sampled_as_transformers_does(rate: Fraction, num_frames: int) -> None:
    """Its formula written out (Qwen3VLVideoProcessor.sample_frames; the class itself needs torchvision). Where an
    instant lies between two frames, either is right."""
    times = np.array([float(n / rate) for n in range(num_frames)])
    expected = min(max(int(num_frames / rate * 2), 4), 768, num_frames)
    exact = np.linspace(0, num_frames - 1, expected)
    got = Sampling(2.0, None, None).choose(times, 2, 1, lambda frames: 10**9)
    assert len(got) == expected == min(max(wanted_frames(times, 2.0), 4), MOST_FRAMES, num_frames)
    assert np.abs(got - exact).max() <= 0.5 + 1e-6
    assert (got == exact.round()).mean() > 0.5


def test_a_long_pause_is_not_shown_twice() -> None:
    times = np.array([0, 0.1, 0.2, 30.0, 30.1])
    assert spread(times, 60).tolist() == [0, 1, 2, 3, 4] or spread(times, 60).tolist() == [0, 2, 3, 4]
    assert len(set(spread(times, 61).tolist())) == len(spread(times, 61))


def test_sampling_follows_the_sequence_length(tmp_path: Path) -> None:
    """A longer stage sees more frames of the same files; the sample always fits; two files share the room."""
    second = {"type": "video", "video": "1.mp4"}
    data = encode(400, Fraction(10), size=(96, 64))
    fill(tmp_path, {"json": document(FILE, "x"), "0.mp4": data},
         {"json": document(FILE, second), "0.mp4": data, "1.mp4": data})  # fmt: skip

    def groups(length: int | None, **settings: float) -> list[int]:
        config = SourceConfig("s", "data", 1.0, timestamps="seconds", too_long="skip", **settings)
        found = open_source(config, tmp_path, T, LIMITS, model(), None, length)
        samples = [found.read(i, pixels=False) for i in range(2)]
        assert all(s.failure is None for s in samples) and [len(s.input_ids) for s in samples] == found.lengths.tolist()
        assert length is None or length < 200 or max(found.lengths) <= length
        return [len(s.grids) for s in samples]

    assert groups(None) == [40, 80]  # 40 s at 2 fps
    few, more, most = groups(300), groups(400), groups(65536)
    assert 2 < few[0] < more[0] < most[0] == 40 and most[1] == 80
    assert groups(600)[1] == 2 * few[0]
    assert groups(40) == [2, 4]  # never fewer than four frames, though the sample may be too long then
    assert groups(None, max_frames=11) == [6, 12] and groups(400, max_frames=11) == [6, 12]
    assert groups(None, fps=0.5) == [10, 20]


def run_and_resume(folder: Path) -> tuple[list[object], list[object], set[str]]:
    """Six steps, a new loader after the third: keys and lengths of every pack, the states, and the failed keys."""
    packs: list[object] = []
    states: list[object] = []
    failed: set[str] = set()
    for _ in range(2):
        found = Loader(LOADER, [source(folder, timestamps="seconds")], [1.0], states[-1] if states else None)
        for _ in range(3):
            step = found.next()
            packs.append((step.keys_by_lane, [pack.cu_seqlens.tolist() for pack in step.packs]))
            states.append(found.state())
            failed |= {d.key for pack in step.packs for d in pack.documents if d.failure is not None}
        found.close()
    return packs, states, failed


def test_a_decode_failure_changes_neither_packs_nor_resuming(tmp_path: Path) -> None:
    """Two runs over the same index, of which one meets pictures that have been overwritten since."""
    films = [{"json": document(FILE, f"film {number}"), "0.mp4": encode(30 + 10 * number)} for number in range(5)]
    fill(tmp_path, *films, *({"txt": b"some words %d" % number} for number in range(5)))
    build_indexes(tmp_path / "data", T)
    tar = tmp_path / "data/0.tar"
    (shard,) = find_shards("data", tmp_path)
    (member,) = [m for g in scan(shard).groups for m in g.members if (g.key, m.name) == ("2", "0.mp4")]
    times = tar.stat().st_atime_ns, tar.stat().st_mtime_ns
    runs = []
    for broken in (False, True):
        if broken:
            with open(tar, "r+b") as file:
                file.seek(member.offset + member.size // 4)
                file.write(bytes(member.size // 4))
            os.utime(tar, ns=times)
        runs.append(run_and_resume(tmp_path))
    (good, good_states, good_failed), (bad, bad_states, bad_failed) = runs
    assert good == bad and good_states == bad_states
    assert not good_failed and {key.rsplit("/", 1)[1] for key in bad_failed} == {"2"}
