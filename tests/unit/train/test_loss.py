"""The reweighted loss against the written-out formula, and its invariance to packing and to the micro-batch split."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from megatron_qwen3vl.batch import IGNORE, Document, Pack, collate
from megatron_qwen3vl.train.loss import normaliser, weigh

LABELS = (1, 3, 0, 7, 40, 2)


def _pack(samples: list[tuple[int, list[float]]], length: int) -> tuple[Pack, torch.Tensor]:
    """Samples as (number of tokens, losses of its labels) -> a pack, and the token losses in its label order."""
    labels, documents, spans, losses = [], [], [0], []
    for number, (tokens, token_losses) in enumerate(samples):
        labels += [5] * len(token_losses) + [IGNORE] * (tokens - len(token_losses))
        documents.append(Document(f"s{number}", "d", len(token_losses), None))
        spans.append(spans[-1] + tokens)
        losses += token_losses
    padding = length - len(labels)
    if padding:
        spans.append(length)
    pack = Pack(
        lane=0,
        documents=tuple(documents),
        input_ids=np.zeros(length, np.int32),
        labels=np.array(labels + [IGNORE] * padding, np.int32),
        positions=np.zeros((3, length), np.int32),
        cu_seqlens=np.array(spans, np.int32),
        num_padding=padding,
        visual_index=np.zeros(0, np.int32),
        grids=np.zeros((0, 3), np.int32),
        patches=None,
    )
    return pack, torch.tensor(losses)


def _samples() -> list[tuple[int, list[float]]]:
    draw = random.Random(3)
    return [(n + 2, [draw.uniform(0.5, 4.0) for _ in range(n)]) for n in LABELS]


def _formula(exponent: float) -> float:
    terms = [(len(losses), sum(losses)) for _, losses in _samples() if losses]
    return sum(n**-exponent * total for n, total in terms) / sum(n ** (1 - exponent) for n, _ in terms)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("split", [[6], [2, 4], [1, 1, 1, 3]])
@pytest.mark.parametrize("per_batch", [1, 2])
def test_equals_the_formula_however_it_is_packed(exponent: float, split: list[int], per_batch: int) -> None:
    samples, packs = _samples(), []
    for count in split:
        packs.append(_pack(samples[:count], 80))
        samples = samples[count:]
    norm = normaliser([d.num_labels for pack, _ in packs for d in pack.documents], exponent)
    total = 0.0
    for first in range(0, len(packs), per_batch):
        part = packs[first : first + per_batch]
        batch = collate([pack for pack, _ in part], exponent, torch.device("cpu"))
        loss, report = weigh(torch.cat([losses for _, losses in part]), batch, 1 / norm)
        assert [d.num_labels for d in report.batch.documents] == [d.num_labels for p, _ in part for d in p.documents]
        total += loss.item()
    assert math.isclose(total, _formula(exponent), rel_tol=1e-6)


def test_exponents_are_the_per_token_and_per_sample_means() -> None:
    every = [loss for _, losses in _samples() for loss in losses]
    means = [sum(losses) / len(losses) for _, losses in _samples() if losses]
    assert math.isclose(_formula(0.0), sum(every) / len(every))
    assert math.isclose(_formula(1.0), sum(means) / len(means))


def test_normaliser_is_not_a_count() -> None:
    assert normaliser(LABELS, 0.5) == pytest.approx(1 + 3**0.5 + 7**0.5 + 40**0.5 + 2**0.5, rel=1e-15)
    assert normaliser([0, 0], 0.5) == 0.0


def test_a_batch_without_labels_contributes_exactly_nothing() -> None:
    pack, _ = _pack([(5, []), (3, [])], 10)
    batch = collate([pack], 0.5, torch.device("cpu"))
    losses = torch.zeros(0, requires_grad=True)
    loss, report = weigh(losses, batch, 123.0)
    loss.backward()
    assert loss.item() == 0.0 and losses.grad is not None and report.document_losses.tolist() == [0.0, 0.0]


def test_document_sums_belong_to_their_documents() -> None:
    pack, losses = _pack(_samples(), 80)
    _, report = weigh(losses, collate([pack], 0.5, torch.device("cpu")), 1.0)
    expected = [sum(token_losses) for _, token_losses in _samples()]
    torch.testing.assert_close(report.document_losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
