"""What a context-parallel rank holds of a batch: together the ranks hold all of it, once."""

from __future__ import annotations

import pytest
import torch

from megatron_qwen3vl.batch import Batch
from megatron_qwen3vl.model.share import cut_batch
from tests.parity import reference as ref

PER_TOKEN = ("input_ids", "labels", "loss_weights", "padding_mask", "document_index")


@pytest.fixture(scope="module")
def whole() -> Batch:
    model = ref.model_config("dense_tied")
    cases = ref.standard_cases(model)
    return ref.make_batch(model, cases[:4], cases[4:], length=180)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_all_of_the_batch_once(whole: Batch, ranks: int) -> None:
    parts = [cut_batch(whole, rank, ranks) for rank in range(ranks)]
    order = parts[0][1].order
    length = len(order) // ranks
    for name in PER_TOKEN:
        together = torch.cat([vars(own)[name] for own, _, _ in parts])
        assert torch.equal(together, vars(whole)[name][order]), name
    assert torch.equal(torch.cat([own.positions for own, _, _ in parts], dim=1), whole.positions[:, order])
    for rank, (own, cut, holder) in enumerate(parts):
        assert torch.equal(cut.order, order) and own.documents == whole.documents
        assert own.patches is whole.patches and own.grids is whole.grids
        places = order[rank * length : (rank + 1) * length][own.visual_index]
        assert torch.equal(places, whole.visual_index[torch.from_numpy(holder) == rank])


def test_one_rank_keeps_the_batch(whole: Batch) -> None:
    own, cut, holder = cut_batch(whole, 0, 1)
    assert own is whole and cut is None and holder.tolist() == [0] * len(whole.visual_index)
