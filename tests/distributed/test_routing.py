"""The routers' balance loss and the experts' load do not depend on the layout, where the micro-batches are the same."""

from __future__ import annotations

import pytest
from layout_parity import Difference, Weights, backward, compare, errors, gather_gradients, layout, make_steps, start
from spawn import run_ranks

from megatron_qwen3vl.config.schema import ModelConfig, ParallelConfig
from tests.parity import reference as ref

PACKS = 4
LAYOUTS = [
    layout(),
    layout(ep=2),
    layout(tp=2, sp=True),
    layout(tp=2, sp=True, ep=2),
    layout(tp=2, sp=True, etp=2),
    layout(pp=2),
    layout(cp=2, cp_exchange="gather"),
    layout(cp=2, ep=2, cp_exchange="all_to_all"),
]


def gradients_alone(
    world_size: int, model: ModelConfig, weights: Weights, cases: list[ref.Case], coefficient: float
) -> tuple[Weights, float | None, float | None]:
    """On one process: gradients, balance loss and load."""
    from megatron_qwen3vl.train.routing import aux_loss, expert_load

    running = start(world_size, model, layout(), weights, aux_coefficient=coefficient)
    backward(running, cases, PACKS)
    found = {name: parameter.main_grad.clone() for name, parameter in running.named}
    figures = aux_loss(model.text_config, PACKS), expert_load(running.chunks, model.text_config, running.groups)
    running.groups.stop()
    return found, *figures


def differences(
    world_size: int,
    model: ModelConfig,
    weights: Weights,
    cases: list[ref.Case],
    coefficient: float,
    layouts: list[ParallelConfig],
    expected: Weights,
) -> list[tuple[Difference, float | None, float | None]]:
    """In each process, for each layout: how far the gradients are from the expected ones, balance loss and load."""
    from megatron_qwen3vl.train.routing import aux_loss, expert_load

    results = []
    for parallel in layouts:
        running = start(world_size, model, parallel, weights, aux_coefficient=coefficient)
        backward(running, cases, PACKS)
        gather_gradients(running.chunks)
        found = {n: compare(n, p, p.main_grad, expected[n], running.marks) for n, p in running.named}
        aux = aux_loss(model.text_config, PACKS // running.groups.dp_size)
        results.append((found, aux, expert_load(running.chunks, model.text_config, running.groups)))
        running.groups.stop()
    return results


def test_balance_loss_and_load_are_the_same_in_every_layout() -> None:
    model = ref.model_config("moe")
    twin = ref.transformers_model(model)
    (cases,) = make_steps(model, twin, 1)
    weights = ref.ours_from_transformers({n: t.detach().clone() for n, t in twin.state_dict().items()}, model)
    arguments = (model, weights, list(cases))
    ((expected, aux, load),) = run_ranks(gradients_alone, 1, 1, *arguments, 5.0)
    ((without, _, _),) = run_ranks(gradients_alone, 1, 1, *arguments, 0.0)
    router = next(name for name in expected if "router" in name)
    assert (expected[router] - without[router]).norm() > 0.1 * without[router].norm()  # the coefficient is felt
    ranks = run_ranks(differences, 2, 2, *arguments, 5.0, LAYOUTS, expected)
    for number, parallel in enumerate(LAYOUTS):
        of_ranks = [rank[number] for rank in ranks]
        wrong = {name: error for name, error in errors([d for d, _, _ in of_ranks], expected).items() if error > 1e-5}
        assert not wrong, (parallel, wrong)
        assert [a for _, a, _ in of_ranks if a] == pytest.approx([aux] * 2, rel=1e-6), parallel
        assert {value for _, _, value in of_ranks} == {load}, parallel
    assert load > 1.0
