"""Models in odd forms have the value, gradient, curvature and noise of their plain twins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import checkpoint

from odd_twins import COMPILED, TWINS, Twins, draw
from undertow.objective import Objective, gradient

ALL = TWINS | COMPILED


def objectives(twins: Twins, microbatch: int | None) -> tuple[Objective, Objective]:
    odd_data = twins.data if twins.odd_data is None else twins.odd_data
    return (
        Objective(twins.odd, twins.loss, odd_data, microbatch=microbatch),
        Objective(twins.plain, twins.loss, twins.data),
    )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize("microbatch", [None, 5])
@pytest.mark.parametrize("name", ALL)
def test_values_and_derivatives_are_the_plain_twins(name: str, microbatch: int | None) -> None:
    odd, plain = objectives(ALL[name](), microbatch)
    block = draw(9, 3, plain.num_params)

    def noise(objective: Objective) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return objective.sample_noise(2, batch_size=3, generator=generator)

    def everything(objective: Objective) -> dict[str, Any]:
        return {
            "value": objective.value(),
            "gradient": objective.gradient(),
            "hessian": objective.hvp(block),
            "again, by the graphs that were kept": objective.hvp(block[:1]),
            "gauss-newton": objective.ggnvp(block),
            "noise": noise(objective),
            "predictions": objective.predictions(),
            "in single precision": objective.risk.at(torch.float32).value(),
        }

    found, expected = everything(odd), everything(plain)
    for what, value in found.items():
        single = what == "in single precision"
        torch.testing.assert_close(
            value, expected[what], rtol=1e-5 if single else 1e-8, atol=1e-6 if single else 1e-10
        )
    trace, known = odd.ggn_trace(), plain.ggn_trace()
    assert known is not None
    assert trace is None or trace[0] == pytest.approx(known[0], rel=1e-8)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)),
        nn.CrossEntropyLoss(ignore_index=1),
        functional.cross_entropy,
    ],
)
def test_a_compiled_loss_has_its_own_denominator(loss: Any) -> None:
    twins = TWINS["checkpointed"]()
    compiled = Objective(twins.odd, torch.compile(loss), twins.data, microbatch=5)
    plain = Objective(twins.plain, loss, twins.data)
    torch.testing.assert_close(compiled.value(), plain.value())
    torch.testing.assert_close(compiled.gradient(), plain.gradient())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_of_others_go_on_as_before(reentrant: bool) -> None:
    """What stops checkpoints inside stops none outside, and is gone at the end."""
    before = dict(vars(checkpoint))
    twins = TWINS["checkpointed, reentrant" if reentrant else "checkpointed"]()
    Objective(twins.odd, twins.loss, twins.data).gradient()
    assert dict(vars(checkpoint)) == before
    calls: list[int] = []

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    checkpoint.checkpoint(counted, x, use_reentrant=reentrant).sum().backward()
    assert len(calls) == 2


def test_checkpointed_code_is_run_at_the_parameters_in_question() -> None:
    """Not at those that the module holds when the backward pass runs it again."""
    twins = TWINS["checkpointed"]()
    held = [Objective(net, twins.loss, twins.data).risk.held() for net in (twins.odd, twins.plain)]
    for risk in held:
        risk.move(2 * risk.theta())
    torch.testing.assert_close(gradient(held[0]), gradient(held[1]))
