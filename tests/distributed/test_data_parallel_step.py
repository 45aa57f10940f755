"""The trainer's way through one global batch on two data-parallel ranks, each with samples of its own: figures,
loss and the gradient of every parameter equal transformers' over all samples together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from spawn import run_ranks

from megatron_qwen3vl.batch import Pack
from megatron_qwen3vl.config.schema import ModelConfig
from tests.parity import reference as ref

EXPONENT = 0.5


def one_step(model: ModelConfig, weights: dict[str, torch.Tensor], packs: list[Pack]) -> tuple[Any, Any, dict]:
    """In each process: counts, losses and the averaged gradients of a step over its own packs."""
    from megatron.core.utils import get_model_config

    from megatron_qwen3vl.batch import collate
    from megatron_qwen3vl.model.build import build_model
    from megatron_qwen3vl.parallel.device import start_device
    from megatron_qwen3vl.parallel.groups import start_groups
    from megatron_qwen3vl.parallel.layout import Layout
    from megatron_qwen3vl.train import figures
    from megatron_qwen3vl.train.forward import finalize_gradients, prepare_schedule, run_schedule

    device = start_device("cpu")
    groups = start_groups(Layout.from_config(ref.PLAIN, 2), device)
    everything = ("vision", "merger", "language")
    chunks = build_model(model, ref.PLAIN, groups, "float32", ref.loss_config(), everything, seed=None)
    parameters = dict(chunks[0].module.named_parameters())
    for name, parameter in parameters.items():
        parameter.data.copy_(weights[name])
    prepare_schedule(chunks)

    def finalize(chunks: Any, num_tokens: Any = None, force_all_reduce: Any = None, **rest: Any) -> None:
        finalize_gradients(chunks, num_tokens, force_all_reduce=True, **rest)  # whole gradients on both ranks

    get_model_config(chunks[0]).finalize_model_grads_func = finalize
    mine = packs[groups.dp_rank :: groups.dp_size]
    counts = figures.count(mine, EXPONENT, groups, device.device)
    chunks[0].zero_grad_buffer()
    batches = [collate([pack], EXPONENT, device.device) for pack in mine]
    report = run_schedule(chunks, batches, counts.normaliser, groups.dp_size)
    losses = figures.gather_losses(report, ["test"], EXPONENT, counts.normaliser, False, True, groups, device.device)
    return counts, losses, {name: parameter.main_grad.clone() for name, parameter in parameters.items()}


def test_a_step_equals_transformers() -> None:
    model = ref.model_config("dense_tied")
    twin = ref.transformers_model(model)
    cases = ref.with_positions(ref.standard_cases(model), twin)
    expected = ref.run_reference(twin, cases, EXPONENT)
    text, image, images, video, mixed, conversation, unlabelled = cases
    # The first and third are rank 0's: few labels; the second and fourth rank 1's: many.
    contents = [[unlabelled, text], [mixed, images], [image], [video, conversation]]
    sizes = [sum(len(case.sample.input_ids) for case in content) for content in contents]
    longest, values = max(sizes), model.vision_config.patch_values
    packs = [
        ref.make_pack(lane, content, longest - size, values)
        for lane, (content, size) in enumerate(zip(contents, sizes, strict=True))
    ]
    weights = ref.ours_from_transformers({n: p.detach() for n, p in twin.state_dict().items()}, model)
    results = run_ranks(one_step, 2, model, weights, packs, timeout=180.0)

    labels = [case.sample.num_labels for case in cases]
    theirs = ref.ours_from_transformers(expected.gradients, model)
    for counts, losses, gradients in results:
        assert counts.normaliser == pytest.approx(sum(n**0.5 for n in labels), rel=1e-12)
        assert (counts.samples, counts.failed, counts.loss_tokens) == (len(cases), 0, sum(labels))
        assert (counts.tokens, counts.padding) == (sum(sizes), 4 * longest - sum(sizes))
        assert counts.patches == sum(len(case.sample.patches) for case in cases)
        assert losses.loss == pytest.approx(expected.loss, rel=1e-6)
        plain = np.concatenate([token_losses.numpy() for token_losses in expected.token_losses]).mean()
        assert losses.token_loss == pytest.approx(plain, rel=1e-6)
        assert losses.domains["test"]["loss"] == pytest.approx(expected.loss, rel=1e-6)
        wrong = {name: e for name, e in ref.relative_errors(gradients, theirs).items() if not e <= 1e-5}
        assert not wrong, wrong
