"""Makes images.npz: what transformers' own torchvision processors give for a few odd-sized images and videos.

Run where torchvision is installed (it stays out of the project's environment):

    python tests/golden/make_goldens.py tests/golden/images.npz

The inputs are stored beside the outputs as encoded files, so the tests never have to make them again. Outputs are
(x/255 - 0.5)/0.5 floats in the processor; they are stored as the grey levels (uint8) that give exactly those floats.
"""

import io
import sys
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image

if not torch.cuda.is_available():
    # torchvision's wheel has CUDA operators that a CPU torch cannot load. Importing it only wants these two to exist;
    # resizing is written in Python on torch and uses none of them.
    torchvision_operators = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        torchvision_operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

HALF = [0.5, 0.5, 0.5]
SHAPES = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "image_mean": HALF, "image_std": HALF}
# name: file type, height, width, min_pixels, max_pixels
IMAGES = {
    "keeps_size": ("png", 64, 96, 1024, 65536),
    "odd": ("jpeg", 53, 91, 1024, 65536),
    "too_small": ("png", 9, 21, 4096, 65536),
    "too_large": ("jpeg", 301, 203, 1024, 8192),
    "wide": ("webp", 11, 190, 1024, 65536),
    "half": ("png", 48, 80, 1024, 65536),  # 1.5 and 2.5 factors: Python rounds halves to even
}
# name: frames, height, width, min_pixels, max_pixels (over all frames)
VIDEOS = {
    "three_frames": (3, 45, 70, 1024, 65536),
    "four_frames": (4, 90, 61, 1024, 16384),
    "tiny_frames": (2, 20, 26, 8192, 65536),
}


def picture(generator: np.random.Generator, height: int, width: int) -> Image.Image:
    """Coarse colours with a sharp edge: smooth areas, ringing and clamping are all met."""
    coarse = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).copy()
    pixels[height // 3 : height // 2, width // 4 :] = (255, 0, 255)
    return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str) -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind != "png" else {}))
    return np.frombuffer(buffer.getvalue(), np.uint8)


def decode(data: np.ndarray) -> Image.Image:
    return Image.open(io.BytesIO(data.tobytes())).convert("RGB")


def grey_levels(values: torch.Tensor) -> np.ndarray:
    levels = ((values.double() * 0.5 + 0.5) * 255).round()
    assert ((levels / 255 - 0.5) / 0.5 - values.double()).abs().max() < 1e-6, "not made of whole grey levels"
    return levels.to(torch.uint8).numpy()


def main(path: str) -> None:
    generator = np.random.default_rng(20260101)
    arrays = {
        "versions": np.array([f"{name} {version(name)}" for name in ("torch", "torchvision", "transformers", "pillow")])
    }
    for name, (kind, height, width, low, high) in IMAGES.items():
        data = encode(picture(generator, height, width), kind)
        out = Qwen2VLImageProcessor(size={"shortest_edge": low, "longest_edge": high}, **SHAPES)(
            images=[decode(data)], return_tensors="pt"
        )
        arrays |= {f"image/{name}/file": data, f"image/{name}/limits": np.array([low, high])}
        arrays |= {
            f"image/{name}/grid": out["image_grid_thw"].numpy(),
            f"image/{name}/patches": grey_levels(out["pixel_values"]),
        }
    for name, (frames, height, width, low, high) in VIDEOS.items():
        files = [encode(picture(generator, height, width), "png") for _ in range(frames)]
        video = np.stack([np.asarray(decode(data)) for data in files])
        out = Qwen3VLVideoProcessor(size={"shortest_edge": low, "longest_edge": high}, **SHAPES)(
            videos=[torch.from_numpy(video).permute(0, 3, 1, 2)], do_sample_frames=False, return_tensors="pt"
        )
        arrays |= {f"video/{name}/file{index}": data for index, data in enumerate(files)}
        arrays |= {f"video/{name}/limits": np.array([low, high]), f"video/{name}/grid": out["video_grid_thw"].numpy()}
        arrays |= {f"video/{name}/patches": grey_levels(out["pixel_values_videos"])}
    np.savez_compressed(path, **arrays)
    for name, value in arrays.items():
        if name.endswith("grid"):
            print(name, value.tolist())


if __name__ == "__main__":
    main(sys.argv[1])
