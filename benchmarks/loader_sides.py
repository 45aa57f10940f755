"""One side of loader.py as a process of its own, in whichever interpreter has what it needs.

    python benchmarks/loader_sides.py SIDE FOLDER WORKERS WARM SAMPLES

SIDE is `ours`, or `webdataset` or `energon` with what its map function makes of a pair: `-pixels` uint8 [3, H, W] at
the stored size and the caption as a string; `-processor` what transformers' own processor gives (resized, float32,
normalised, cut into patches) and the caption's ids; `-same` this framework's own functions (resized uint8 patches, ids,
labels, positions). All but `-pixels` hand out 13 pairs concatenated, which is what a pack of 8,192 tokens holds here.

Says `ready`, then for each line read from stdin reads WARM and SAMPLES pairs and writes the seconds of the latter.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

SEQUENCE_LENGTH, PACK = 8192, 13  # tokens; pairs of a pack
SHUFFLE = 100  # energon's documentation has this for both of its buffers
TOKENIZER = Path(__file__).parent.parent / "megatron_qwen3vl" / "assets" / "tokenizer" / "tokenizer.json"


def ours(folder: Path, workers: int) -> Iterator[int]:
    """Numbers of samples, step by step: one pack a step."""
    from megatron_qwen3vl.config.load import load_config
    from megatron_qwen3vl.data.loader import Loader, LoaderConfig, PackCost
    from megatron_qwen3vl.data.mixture import load_mixture
    from megatron_qwen3vl.data.source import open_source
    from megatron_qwen3vl.data.tokenizer import load_tokenizer
    from megatron_qwen3vl.data.vision import PUBLISHED_LIMITS
    from megatron_qwen3vl.data.workers import WorkerLimits

    config = load_config(["validation.every=0"])
    tokenizer = load_tokenizer(config.tokenizer, config.model)
    mixture = load_mixture(folder / "mixture.yaml")
    source = open_source(mixture.sources[0], folder, tokenizer, PUBLISHED_LIMITS, config.model)
    settings = LoaderConfig(
        seed=0,
        stage="s1",
        sequence_length=SEQUENCE_LENGTH,
        global_batch_size=1,
        lookahead=config.data.lookahead,
        pad_id=tokenizer.pad_id,
        num_ranks=1,
        rank=0,
        vision_dp=1,
        workers=workers,
        prefetch=config.data.prefetch,
        limits=WorkerLimits(config.data.sample_timeout, config.data.worker_memory),
        pixels=True,
        cost=PackCost(1.0, 1.0, 1.0),
    )
    loader = Loader(settings, [source], [1.0])
    while True:
        step = loader.next()
        assert not any(document.failure for pack in step.packs for document in pack.documents)
        yield step.num_samples


class Processor:
    """transformers' Qwen3-VL image processor and a tokenizer: what a user of the other loaders calls."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():  # torchvision's wheel wants operators of CUDA to exist; resizing uses none
            operators = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self._operators = operators
        from tokenizers import Tokenizer
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

        half = [0.5, 0.5, 0.5]
        self._images = Qwen2VLImageProcessor(
            patch_size=16, temporal_patch_size=2, merge_size=2, image_mean=half, image_std=half,
            size={"shortest_edge": 65536, "longest_edge": 16777216},
        )  # fmt: skip
        self._tokenizer = Tokenizer.from_file(str(TOKENIZER))

    def __call__(self, image: torch.Tensor, caption: str) -> dict[str, torch.Tensor]:
        made = self._images(images=[image], return_tensors="pt")
        ids = self._tokenizer.encode(caption).ids
        return {"patches": made["pixel_values"], "grid": made["image_grid_thw"], "ids": torch.tensor(ids)}


class Same:
    """This framework's own functions, inside another loader."""

    def __init__(self) -> None:
        from megatron_qwen3vl.config.load import load_config
        from megatron_qwen3vl.data.tokenizer import load_tokenizer

        config = load_config(["validation.every=0"])
        self._vision = config.model.vision_config
        self._tokenizer = load_tokenizer(config.tokenizer, config.model)

    def __call__(self, image: torch.Tensor, caption: str) -> dict[str, torch.Tensor]:
        from megatron_qwen3vl.data.compose import Record, compose
        from megatron_qwen3vl.data.render import render
        from megatron_qwen3vl.data.vision import PUBLISHED_LIMITS, image_grid, make_patches

        pixels = image.permute(1, 2, 0).numpy()
        grid = image_grid(pixels.shape[0], pixels.shape[1], PUBLISHED_LIMITS, self._vision)
        composition = compose(Record(("jpg", "txt"), {"txt": caption.encode()}), self._tokenizer)
        tokens = render(composition, [grid], "seconds", self._tokenizer, self._vision)
        made = {name: getattr(tokens, name) for name in ("input_ids", "labels", "positions", "grids")}
        made["patches"] = make_patches([pixels], grid, self._vision)
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in made.items()}


def join(pairs: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A pack, as cheaply as can be: one after another."""
    return {name: torch.cat([pair[name] for pair in pairs], dim=-1 if name == "positions" else 0) for name in pairs[0]}


def map_of(kind: str) -> Callable[[torch.Tensor, str], Any]:
    return {"pixels": lambda: lambda image, caption: {"image": image, "caption": caption},
            "processor": Processor, "same": Same}[kind]()  # fmt: skip


def webdataset(folder: Path, workers: int, kind: str) -> Iterator[int]:
    import webdataset

    make = map_of(kind)
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    splits = {"nodesplitter": webdataset.split_by_node, "workersplitter": webdataset.split_by_worker}
    pairs = webdataset.WebDataset(shards, shardshuffle=len(shards), **splits).repeat()
    pairs = pairs.shuffle(SHUFFLE).decode("torchrgb8").to_tuple("jpg", "txt").map(lambda pair: make(*pair))
    if kind != "pixels":
        pairs = pairs.batched(PACK, collation_fn=join)
    yield from count(webdataset.WebLoader(pairs, batch_size=None, num_workers=workers), kind)


def energon(folder: Path, workers: int, kind: str) -> Iterator[int]:
    from megatron.energon import DefaultTaskEncoder, SampleDecoder, WorkerConfig, get_savable_loader, get_train_dataset

    make = map_of(kind)

    class Encoder(DefaultTaskEncoder[Any, Any, Any, Any]):
        decoder = SampleDecoder(image_decode="torchrgb8")

        def encode_sample(self, sample: Any) -> dict[str, Any]:
            return make(sample.image, sample.caption)

        def batch(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
            return join(samples)

        def encode_batch(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return batch

    pairs = get_train_dataset(
        folder,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers),
        batch_size=None if kind == "pixels" else PACK,
        shuffle_buffer_size=SHUFFLE,
        max_samples_per_sequence=SHUFFLE,
        task_encoder=Encoder(),
    )
    yield from count(get_savable_loader(pairs), kind)


def count(loader: Any, kind: str) -> Iterator[int]:
    for batch in loader:
        yield 1 if kind == "pixels" else len(batch["grid" if kind == "processor" else "grids"])


def read(steps: Iterator[int], samples: int) -> int:
    done = 0
    while done < samples:
        done += next(steps)
    return done


def main() -> None:
    if len(sys.argv) == 1:  # `make bench` runs every file
        print("loader_sides.py is started by loader.py")
        return
    side, folder = sys.argv[1], Path(sys.argv[2])
    workers, warm, samples = map(int, sys.argv[3:])
    torch.set_num_threads(1)
    name, _, kind = side.partition("-")
    steps = ours(folder, workers) if name == "ours" else globals()[name](folder, workers, kind)
    read(steps, warm)
    print("ready", flush=True)
    for _ in sys.stdin:
        skipped = read(steps, warm)
        began = time.perf_counter()
        done = read(steps, samples)
        print(json.dumps([time.perf_counter() - began, skipped, done]), flush=True)


if __name__ == "__main__":
    main()
