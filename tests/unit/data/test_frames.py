"""``data frames``: the frames written are those that a run would take, at the same times; the rest is left alone."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_qwen3vl.cli import main
from megatron_qwen3vl.data.shards import write_shard
from tests.unit.data.shard_helpers import document, picture, source
from tests.unit.data.video_files import RATES, encode, number_of, shown_times, uneven

FILE = {"type": "video", "video": "0.mp4"}


def numbers(files: list[Path]) -> list[int]:
    pictures = [np.asarray(Image.open(file).convert("L")) for file in files]
    return [number_of(p[-8, p.shape[1] // 4], p[-8, -p.shape[1] // 4]) for p in pictures]


def test_the_same_samples_as_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uneven_file, even_file = encode(80, milliseconds=uneven(80)), encode(60, RATES["25"])
    two = document(FILE, "words", {"type": "image", "image": "p.png"}, FILE, domain="d")
    samples = [
        ("a/0", {"json": two, "0.mp4": uneven_file, "p.png": picture(40, 40)}),
        ("a/1", {"json": document(FILE, "y"), "0.mp4": even_file}),
        ("a/2", {"json": document(FILE, "z"), "0.mp4": even_file[:900]}),
        ("a/3", {"txt": b"text alone"}),
    ]
    (tmp_path / "data").mkdir()
    write_shard(tmp_path / "data/s.tar", samples)
    assert main(["data", "frames", str(tmp_path / "data"), str(tmp_path / "out"), "--fps", "4"]) == 0
    printed = capsys.readouterr()
    assert "3 samples, 2 videos" in printed.out and "s/a/2: 0.mp4: video cannot be decoded" in printed.err
    files, frames = source(tmp_path, fps=4), source(tmp_path, "out")
    assert [frames.key(i) for i in range(3)] == ["src/s/a/0", "src/s/a/1", "src/s/a/3"]
    for i, j in ((0, 0), (1, 1), (3, 2)):
        ours, theirs = files.read(i, True), frames.read(j, True)
        assert ours.failure is theirs.failure is None
        for name in ("input_ids", "labels", "positions", "grids"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        difference = np.abs(ours.patches.astype(int) - theirs.patches)
        assert difference.size == 0 or difference.mean() < 3  # of JPEG


def test_loose_files_and_their_times(tmp_path: Path) -> None:
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    data = {"x": encode(70, milliseconds=uneven(70)), "y": encode(10, RATES["25"])}
    for name, content in data.items():
        (films / f"{name}.mp4").write_bytes(content)
    (films / "x.txt").write_text("what happens")
    command = ["data", "frames", str(films), str(out), "--fps=5", "--max-frames", "9", "--side", "32"]
    assert main(command) == 0
    with tarfile.open(out / "00000.tar") as tar:
        tar.extractall(tmp_path / "open", filter="data")
    for name, content in data.items():
        body = json.loads((tmp_path / f"open/{name}.json").read_text())
        video = body["content"][0]
        assert [part["text"] for part in body["content"][1:]] == (["what happens"] if name == "x" else [])
        files = [tmp_path / f"open/{name}.{frame}" for frame in video["frames"]]
        assert Image.open(io.BytesIO(files[0].read_bytes())).size == (32, 24)
        truth = shown_times(content, tmp_path)
        assert len(files) == (9 if name == "x" else 4)
        given = video.get("times", [place / video["fps"] for place in range(len(files))])
        np.testing.assert_allclose(given, [truth[number] for number in numbers(files)], atol=1e-6)
    assert "times" not in video  # 0, 3, 6, 9 of ten frames: a constant rate


@pytest.mark.parametrize("arguments", [["--fps", "0"], ["--fps", "x"], ["--max-frames", "3"], ["--side", "-1"],
                                       ["--frames"], ["extra"]])  # fmt: skip
def test_wrong_use_is_the_users_mistake(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert main(["data", "frames", str(tmp_path), str(tmp_path.parent / "o"), *arguments]) == 2
    assert "data frames" in capsys.readouterr().err


def test_out_inside_path_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert main(["data", "frames", str(tmp_path), str(tmp_path / "o")]) == 2
    assert "is inside" in capsys.readouterr().err
