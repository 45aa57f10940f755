"""A Hugging Face folder's weights, read and written one tensor at a time.

The format (https://huggingface.co/docs/safetensors): 8 bytes length, a JSON header of that length, then the values. The
``safetensors`` library maps whole files into memory and writes whole files from memory; a checkpoint beside a model
of its
size needs neither.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from megatron_qwen3vl.errors import UserError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the library's own limit


@dataclass(frozen=True)
class StoredTensor:
    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file


class WeightFiles:
    """The tensors of a folder: ``model.safetensors``, or the files that ``model.safetensors.index.json`` names.

    Opening reads the headers only. Raises UserError naming the file (and tensor) that is missing, damaged or truncated.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        self._open: dict[str, BufferedReader] = {}
        files = _file_names(folder)
        for file in files:
            self.tensors.update(_read_header(folder / file))
        missing = [
            f"{folder / f}: no tensor {n!r}, but {INDEX_FILE} says so"
            for f in files
            for n in files[f]
            if n not in self.tensors
        ]
        if missing:
            raise UserError(missing)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()

    def read(self, name: str, index: int | None = None) -> Tensor:
        """The tensor on the CPU in the file's type; with ``index``, that slice of its first dimension only."""
        stored = self.tensors[name]
        shape = stored.shape if index is None else stored.shape[1:]
        result = torch.empty(shape, dtype=stored.dtype)
        path = self.folder / stored.file
        if stored.file not in self._open:
            self._open[stored.file] = path.open("rb")
        file = self._open[stored.file]
        file.seek(stored.offset + (index or 0) * result.nbytes)
        if file.readinto(_bytes_of(result)) != result.nbytes:
            raise UserError(f"{path}: tensor {name!r} is cut short; copy the file again")
        return result


def _file_names(folder: Path) -> dict[str, list[str]]:
    """File -> the tensors that the index says it holds (none said without an index)."""
    if (folder / INDEX_FILE).is_file():
        try:
            weight_map = json.loads((folder / INDEX_FILE).read_bytes())["weight_map"]
            files: dict[str, list[str]] = {}
            for name, file in weight_map.items():
                files.setdefault(file, []).append(name)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{folder / INDEX_FILE}: not a safetensors index; copy the file again") from None
        gone = [
            f"{folder / f}: missing, but {INDEX_FILE} names it" for f in sorted(files) if not (folder / f).is_file()
        ]
        if gone:
            raise UserError(gone)
        return dict(sorted(files.items()))
    if (folder / SINGLE_FILE).is_file():
        return {SINGLE_FILE: []}
    raise UserError(f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE} in it; give a folder with safetensors weights")


def _read_header(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise UserError(f"{path}: not a safetensors file, or cut short inside its header; copy the file again")
        try:
            header = json.loads(file.read(length))
            rows = {
                n: (r["dtype"], tuple(r["shape"]), *r["data_offsets"]) for n, r in header.items() if n != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{path}: its header is damaged; copy the file again") from None
    result = {}
    for name, (code, shape, begin, end) in rows.items():
        if code not in DTYPES:
            raise UserError(
                f"{path}: tensor {name!r} has type {code}; use a checkpoint in float32, bfloat16 or float16"
            )
        if end - begin != math.prod(shape) * DTYPES[code].itemsize or begin < 0:
            raise UserError(f"{path}: tensor {name!r}: its header is damaged; copy the file again")
        if 8 + length + end > size:
            raise UserError(f"{path}: cut short, tensor {name!r} is not complete; copy the file again")
        result[name] = StoredTensor(path.name, DTYPES[code], shape, 8 + length + begin)
    return result


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written: ``parts`` makes it, one after another along its first dimension."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: Callable[[], Iterable[Tensor]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_file(path: Path, tensors: Sequence[PlannedTensor]) -> None:
    """One safetensors file, holding one part in memory at a time."""
    # the library's order: wide types first, so that every tensor is aligned
    tensors = sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": DTYPE_CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            written = sum(file.write(_bytes_of(part.to(tensor.dtype))) for part in tensor.parts())
            if written != tensor.nbytes:
                raise ValueError(f"{tensor.name}: {written} bytes made of {tensor.nbytes} planned")


def write_index(path: Path, weight_map: Mapping[str, str], total_parameters: int, total_bytes: int) -> None:
    metadata = {"total_parameters": total_parameters, "total_size": total_bytes}
    text = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
