"""What a context-parallel rank holds of a batch: together the ranks hold all of it, once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_qwen3vl.batch import Batch
from megatron_qwen3vl.model.share import split_batch
from tests.parity import reference as ref

PER_TOKEN = ("input_ids", "labels", "loss_weights", "padding_mask", "document_index")


@pytest.fixture(scope="module")
def whole() -> Batch:
    model = ref.model_config("dense_tied")
    cases = ref.standard_cases(model)
    return ref.make_batch(model, cases[:4], cases[4:], length=180)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_all_of_the_batch_once(whole: Batch, ranks: int) -> None:
    parts = [split_batch(whole, rank, ranks, 4, float) for rank in range(ranks)]
    order = parts[0][1].order
    for name in PER_TOKEN:
        together = torch.cat([vars(own)[name] for own, _ in parts])
        assert torch.equal(together, vars(whole)[name][order]), name
    assert torch.equal(torch.cat([own.positions for own, _ in parts], dim=1), whole.positions[:, order])
    visual = [own.input_ids[own.visual_index] for own, _ in parts]
    assert all((ids >= ref.IMAGE).all() for ids in visual)
    assert sum(map(len, visual)) == len(whole.visual_index)
    for rank, (own, share) in enumerate(parts):
        assert torch.equal(share.order, order) and own.documents == whole.documents
        assert len(own.patches) == int(own.grids.prod(dim=1).sum()) == share.vision_costs[rank]
    images = sorted(bytes(p.numpy()) for own, _ in parts for p in own.patches.split(own.grids.prod(dim=1).tolist()))
    assert images == sorted(bytes(p.numpy()) for p in whole.patches.split(whole.grids.prod(dim=1).tolist()))


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_features_arrive_where_their_tokens_are(whole: Batch, ranks: int) -> None:
    """The feature of a visual token is its first patch's bytes; after the exchange each stands at its position."""
    parts = [split_batch(whole, rank, ranks, 4, float) for rank in range(ranks)]
    features = [own.patches[::4] for own, _ in parts]
    first_patches = whole.patches[::4]
    length = len(whole.input_ids) // ranks
    for rank, (own, share) in enumerate(parts):
        boxes = []
        for source, (_, theirs) in enumerate(parts):
            leaving = features[source][torch.from_numpy(theirs.routes.leaving)]
            boxes.append(leaving.split(list(theirs.routes.sent))[rank])
            assert len(boxes[-1]) == share.routes.received[source]
        arrived = torch.cat(boxes)[torch.from_numpy(share.routes.arriving)]
        places = share.order[rank * length : (rank + 1) * length][own.visual_index]
        rows = np.searchsorted(whole.visual_index.numpy(), places.numpy())
        assert torch.equal(arrived, first_patches[rows])


def test_a_batch_without_pixels(whole: Batch) -> None:
    """On later pipeline ranks: the same tokens, and no patches to share out."""
    bare = ref.replace_batch(whole, patches=whole.patches[:0])
    own, share = split_batch(bare, 1, 2, 4, float)
    full, expected = split_batch(whole, 1, 2, 4, float)
    assert len(own.patches) == 0 and share.vision_costs == expected.vision_costs
    assert torch.equal(own.visual_index, full.visual_index)
