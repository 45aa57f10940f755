"""What travels from the data to the model: ``Sample`` -> ``Pack`` -> ``Batch``.

Shape legend
    n  tokens of one sample            T  tokens of a pack or a batch (padding included)
    S  documents (samples) of a pack   I  images and temporal groups of videos
    P  patches                         V  merged visual tokens
    C  values of a patch: channels x temporal_patch x patch x patch

A label stands at the position that predicts it (already shifted); ``IGNORE`` where nothing is predicted.
Samples and packs are numpy (they cross process boundaries), a batch is torch tensors on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

IGNORE = -100


@dataclass(frozen=True)
class Sample:
    """One rendered sample.

    ``grids`` has one row (t, h, w) in patches per image and per temporal group of a video (t is 1), in reading order;
    ``patches`` is None where pixels were not asked for. A sample that failed keeps its planned number of tokens with no
    labels and no visual part, and ``failure`` says why.
    """

    key: str
    domain: str
    input_ids: np.ndarray  # int32 [n]
    labels: np.ndarray  # int32 [n]
    positions: np.ndarray  # int32 [3, n]
    visual_index: np.ndarray  # int32 [V]: where the visual tokens stand in input_ids
    grids: np.ndarray  # int32 [I, 3]
    patches: np.ndarray | None  # uint8 [P, C]
    failure: str | None = None

    @property
    def num_labels(self) -> int:
        return int((self.labels != IGNORE).sum())


@dataclass(frozen=True)
class Document:
    """What is remembered of a sample inside a pack."""

    key: str
    domain: str
    num_labels: int
    failure: str | None


@dataclass(frozen=True)
class Pack:
    """``T = sequence_length`` tokens of one lane: whole samples one after another, then padding.

    ``cu_seqlens`` closes at T; when there is padding, its span is the last one and belongs to no document.
    """

    lane: int
    documents: tuple[Document, ...]
    input_ids: np.ndarray  # int32 [T]
    labels: np.ndarray  # int32 [T]
    positions: np.ndarray  # int32 [3, T]
    cu_seqlens: np.ndarray  # int32 [S + 1], or [S + 2] with padding
    num_padding: int
    visual_index: np.ndarray  # int32 [V]
    grids: np.ndarray  # int32 [I, 3]
    patches: np.ndarray | None  # uint8 [P, C]


@dataclass(frozen=True)
class Batch:
    """One micro-batch: its packs one after another on a single packed axis T."""

    input_ids: torch.Tensor  # int64 [T]
    labels: torch.Tensor  # int64 [T]
    loss_weights: torch.Tensor  # float32 [T]: n_i^(-exponent) at labels, else 0
    positions: torch.Tensor  # int64 [3, T]; never in a 16-bit type
    cu_seqlens: torch.Tensor  # int32 [spans + 1], on the CPU: kernels launch by it
    padding_mask: torch.Tensor  # bool [T]: True on padding
    visual_index: torch.Tensor  # int64 [V]
    grids: torch.Tensor  # int64 [I, 3], on the CPU: shapes follow from it
    patches: torch.Tensor  # uint8 [P, C]
    documents: tuple[Document, ...]
    document_index: torch.Tensor  # int64 [T]: the document of each token, len(documents) on padding


def collate(packs: Sequence[Pack], exponent: float, device: torch.device) -> Batch:
    """Packs of equal length -> one micro-batch.

    A sample with n_i labels weighs n_i^(-exponent) per label (docs/loss.md); one without labels weighs nothing.
    """
    cu_seqlens, visual, owner, padding, weights = [np.zeros(1, np.int32)], [], [], [], []
    documents: list[Document] = []
    offset = 0
    for pack in packs:
        length = len(pack.input_ids)
        cu_seqlens.append(pack.cu_seqlens[1:] + offset)
        visual.append(pack.visual_index + offset)
        spans = np.diff(pack.cu_seqlens)[: len(pack.documents)]
        index = np.repeat(np.arange(len(pack.documents)) + len(documents), spans)
        owner.append(np.concatenate([index, np.full(pack.num_padding, -1)]))
        padding.append(np.arange(length) >= length - pack.num_padding)
        per_document = [d.num_labels ** (-exponent) if d.num_labels else 0.0 for d in pack.documents]
        per_token = np.concatenate([np.repeat(per_document, spans), np.zeros(pack.num_padding)])
        weights.append(np.where(pack.labels != IGNORE, per_token, 0.0))
        documents.extend(pack.documents)
        offset += length
    document_index = np.concatenate(owner)
    document_index[document_index < 0] = len(documents)
    patches = [pack.patches for pack in packs if pack.patches is not None]
    patch_size = patches[0].shape[1] if patches else 0

    def tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(array, dtype=dtype).to(device, non_blocking=True)

    return Batch(
        input_ids=tensor(np.concatenate([p.input_ids for p in packs]), torch.int64),
        labels=tensor(np.concatenate([p.labels for p in packs]), torch.int64),
        loss_weights=tensor(np.concatenate(weights), torch.float32),
        positions=tensor(np.concatenate([p.positions for p in packs], axis=1), torch.int64),
        cu_seqlens=torch.as_tensor(np.concatenate(cu_seqlens), dtype=torch.int32),
        padding_mask=tensor(np.concatenate(padding), torch.bool),
        visual_index=tensor(np.concatenate(visual), torch.int64),
        grids=torch.as_tensor(np.concatenate([p.grids for p in packs]), dtype=torch.int64).reshape(-1, 3),
        patches=tensor(np.concatenate(patches) if patches else np.zeros((0, patch_size), np.uint8), torch.uint8),
        documents=tuple(documents),
        document_index=tensor(document_index, torch.int64),
    )
