"""G4: pairs a second and memory of this loader, webdataset's own pipeline and megatron-energon, on the same tars.

    OMP_NUM_THREADS=1 python benchmarks/loader.py [--energon-python PATH] [--workers 0 1 2] [--repeats 5]

Pairs of JPEG and caption, sides of 512 to 1,024 pixels, in 4 tars. What each side hands out: loader_sides.py. The other
loaders run in an environment of their own (PATH: torch, megatron-energon, transformers, torchvision, and av, dacite,
hydra-core for `-same`); without one they are left out, with that said.

For each number of workers all sides live at once and take turns. A turn is 60 pairs that empty what was read ahead,
then 120 that are timed. CPU seconds are of all processes of a side over the whole turn, refilling what is read ahead
included, per pair. Memory is the most that a side held at any time: private and shared memory of its processes
together, each page once (Pss_Anon + Pss_Shmem; the libraries' own pages are left out, for sides share them), and the
sum of the processes' largest resident sets, which counts shared pages several times.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

import numpy as np
import yaml
from PIL import Image

SIDES = ("ours", "energon-pixels", "energon-processor", "energon-same", "webdataset-pixels", "webdataset-processor")
WARM, SAMPLES = 60, 120
_TICKS = os.sysconf("SC_CLK_TCK")


def make_pairs(folder: Path, count: int, shards: int = 4) -> None:
    """Tars of KEY.jpg + KEY.txt: crops of photographs with the noise of a camera, quality 90 (about 150 KB each)."""
    from megatron_qwen3vl.data.shards import write_shard
    from megatron_qwen3vl.recipes.photos import PHOTOS, load_photo

    def pairs(shard: int) -> Iterator[tuple[str, dict[str, bytes]]]:
        for number in range(shard, count, shards):
            rng = np.random.default_rng(number)
            name = list(PHOTOS)[number % len(PHOTOS)]
            photo, (width, height) = load_photo(name, False), rng.integers(512, 1025, 2).tolist()
            scale = min(photo.shape[1] / width, photo.shape[0] / height) * rng.uniform(0.6, 1)
            left = int(rng.integers(0, photo.shape[1] - int(width * scale) + 1))
            top = int(rng.integers(0, photo.shape[0] - int(height * scale) + 1))
            crop = Image.fromarray(photo[top : top + int(height * scale), left : left + int(width * scale)])
            pixels = np.asarray(crop.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
            noisy = (pixels + rng.integers(-4, 5, (height, width, 1), np.int16)).clip(0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
            caption = f"A picture of {PHOTOS[name]}, {width} pixels wide and {height} pixels high, number {number}."
            yield f"{number:06d}", {"jpg": buffer.getvalue(), "txt": caption.encode()}

    folder.mkdir(parents=True)
    for shard in range(shards):
        write_shard(folder / f"pairs_{shard}.tar", pairs(shard))
    source = {"name": "pairs", "shards": f"pairs_{{0..{shards - 1}}}.tar", "weight": 1.0}
    (folder / "mixture.yaml").write_text(yaml.safe_dump({"sources": [source]}))


def prepare(folder: Path, energon_python: Path | None) -> str:
    """Both kinds of index, and the seconds that each took."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "megatron_qwen3vl", "data", "index", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    line = f"index: ours {time.perf_counter() - began:.1f} s"
    if energon_python:
        theirs = folder / "energon"  # both name their index <shard>.tar.idx
        theirs.mkdir()
        for shard in folder.glob("*.tar"):
            os.link(shard, theirs / shard.name)
        began = time.perf_counter()
        command = [str(energon_python.parent / "energon"), "prepare", str(theirs), "--non-interactive", "--no-progress"]
        command += ["--num-workers", "2", "--split-ratio", "1,0,0", "--sample-type", "CaptioningSample"]
        command += ["--field-map", '{"image": "jpg", "caption": "txt"}']
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        line += f", energon {time.perf_counter() - began:.1f} s"
    return line


class Side:
    """A running side. ``turns``: seconds, pairs timed, CPU seconds and pairs in all of each turn."""

    def __init__(self, name: str, python: Path, folder: Path, workers: int) -> None:
        self.name = name
        self.turns: list[tuple[float, int, float, int]] = []
        self.memory = self.resident = 0  # bytes
        here = Path(__file__).parent
        folder = folder / "energon" if name.startswith("energon") else folder
        self._process = subprocess.Popen(
            [str(python), "-W", "ignore", str(here / "loader_sides.py"), name, str(folder)]
            + [str(number) for number in (workers, WARM, SAMPLES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(here.parent)},
        )
        self._cpu = 0.0

    def __enter__(self) -> Side:
        self._answer("ready")
        self._settle()
        return self

    def _answer(self, begin: str) -> str:
        """The next line that begins so; libraries print what they like in between."""
        for line in self._pipe(self._process.stdout):
            if line.startswith(begin):
                return line
        raise RuntimeError(f"{self.name} ended by itself")

    def __exit__(self, *trouble: object) -> None:
        self._pipe(self._process.stdin).close()
        self._process.terminate()
        self._process.wait()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def turn(self) -> None:
        finished = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(finished,))
        watcher.start()
        before = self._cpu
        print("turn", file=self._pipe(self._process.stdin), flush=True)
        seconds, skipped, done = json.loads(self._answer("["))
        self._settle()
        finished.set()
        watcher.join()
        self.turns.append((seconds, done, self._cpu - before, skipped + done))

    def _settle(self) -> None:
        """Wait until everything that is read ahead has been."""
        last = -1.0
        while self._cpu != last:
            time.sleep(0.3)
            last, self._cpu = self._cpu, sum(cpu_seconds(pid) for pid in tree(self._process.pid))

    def _watch(self, finished: threading.Event) -> None:
        while not finished.wait(0.4):
            held = [memory(pid) for pid in tree(self._process.pid)]
            self.memory = max(self.memory, sum(proportional for proportional, _ in held))
            self.resident = max(self.resident, sum(resident for _, resident in held))


def tree(root: int) -> list[int]:
    found = [root]
    for pid in found:
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu_seconds(pid: int) -> float:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    return 0.0


def memory(pid: int) -> tuple[int, int]:
    """Bytes: Pss_Anon + Pss_Shmem now, and the largest resident set so far."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    rows = dict(line.split(":", 1) for line in (rollup.split("\n", 1)[1] + status).splitlines() if ":" in line)
    kilobytes = {name: int(rows[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem", "VmHWM")}
    return 1024 * (kilobytes["Pss_Anon"] + kilobytes["Pss_Shmem"]), 1024 * kilobytes["VmHWM"]


def show(workers: int, sides: list[Side]) -> None:
    print(f"{workers} workers")
    for side in sides:
        rate = np.array([done / seconds for seconds, done, _, _ in side.turns])
        cpu = np.array([cpu / pairs * 1e3 for _, _, cpu, pairs in side.turns])
        print(
            f"  {side.name:21} {rate.max():6.1f} / {np.median(rate):6.1f} pairs/s   "
            f"CPU {cpu.min():6.2f} / {np.median(cpu):6.2f} ms a pair   "
            f"memory {side.memory / 1e6:5.0f} MB, resident {side.resident / 1e6:5.0f} MB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--energon-python", type=Path)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="where the tars are, or are to be made; default: a temporary one")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    given = parser.parse_args()
    if given.energon_python is None or not given.energon_python.exists():
        given.energon_python = None
        print("no --energon-python: webdataset and megatron-energon are left out")
    with tempfile.TemporaryDirectory() as own:
        folder = given.folder or Path(own) / "pairs"
        if not folder.exists():
            make_pairs(folder, given.pairs)
            print(prepare(folder, given.energon_python))
        for workers in given.workers:
            with ExitStack() as stack:
                names = [name for name in given.sides if given.energon_python or name == "ours"]
                pythons = [Path(sys.executable) if name == "ours" else given.energon_python for name in names]
                sides = [
                    stack.enter_context(Side(name, python, folder, workers))
                    for name, python in zip(names, pythons, strict=True)
                ]
                for _ in range(given.repeats):
                    for side in sides:
                        side.turn()
            show(workers, sides)


if __name__ == "__main__":
    main()
