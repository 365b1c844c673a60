"""Descent in pre-activations against descent on weights, and what its model says of itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from undertow.train import CommitteeMachine

DOUBLE = torch.float64
REFERENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "cubic": lambda z: z + z**3 / 6,
    "quadratic": lambda z: z + z**2 / 4,
    "tanh": torch.tanh,
    "softplus": functional.softplus,
    "gelu": functional.gelu,
}


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = seeded(seed)
    return [torch.randn(*shape, generator=generator, dtype=DOUBLE) for shape in shapes]


def squared_error(theta: Tensor, inputs: Tensor, outputs: Tensor, activation: str) -> Tensor:
    return ((REFERENCES[activation](theta @ inputs.mT).sum(0) - outputs) ** 2).sum()


@pytest.mark.parametrize("activation", REFERENCES)
def test_values_and_slopes_are_those_of_autograd(activation: str) -> None:
    z = torch.linspace(-2, 2, 20, dtype=DOUBLE)[None].requires_grad_()
    (slopes,) = torch.autograd.grad(REFERENCES[activation](z).sum(), z)
    gram = torch.eye(20, dtype=DOUBLE)[None]
    committee = CommitteeMachine.fitting(activation, gram, z.detach()[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(committee.targets, 3 * REFERENCES[activation](z).detach())
    torch.testing.assert_close(committee.slopes(z.detach()), slopes)


@pytest.mark.parametrize("activation", ["cubic", "tanh", "gelu"])
def test_steps_in_preactivations_are_sgd_on_the_weights(activation: str) -> None:
    inputs, theta, outputs = drawn(0, (3, 5), (4, 5), (3,))
    (noise,) = drawn(9, (6, 1, 3))  # what a generator of this seed gives
    theta = 0.3 * theta
    z, gram = (theta @ inputs.mT)[None], (inputs @ inputs.mT)[None]
    committee = CommitteeMachine(activation, gram, outputs[None])
    found = committee.descend(z, 6, [seeded(9)], lr=numbers(0.01), noise_std=numbers(0.5))
    start = theta
    for own_noise in 0.5 * noise[:, 0]:
        own = theta.detach().requires_grad_()
        loss = squared_error(own, inputs, outputs + own_noise, activation)
        (gradient,) = torch.autograd.grad(loss, own)
        theta = theta - 0.01 * gradient
    torch.testing.assert_close(found[0], theta @ inputs.mT, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(z[0], start @ inputs.mT)  # the start is left as it is
    beside_data = torch.eye(5).double() - torch.linalg.pinv(inputs) @ inputs
    torch.testing.assert_close(theta @ beside_data, start @ beside_data)


def test_noise_on_preactivations_is_added_after_each_step() -> None:
    (z,), (noise,) = drawn(1, (1, 4, 3)), drawn(9, (2, 4, 3))
    committee = CommitteeMachine("tanh", torch.eye(3).double()[None], torch.zeros(1, 3).double())
    expected, lr = z, numbers(0.1)
    for own in noise:
        expected = committee.descend(expected, 1, [seeded(0)], lr=lr, noise_std=numbers(0)) + own
    found = committee.descend(z, 2, [seeded(9)], lr=lr, noise_std=numbers(1), on="preactivations")
    torch.testing.assert_close(found, expected)


def test_a_run_does_not_depend_on_those_beside_it() -> None:
    z, common = drawn(2, (3, 4, 2), (3, 2))
    gram = torch.eye(2, dtype=DOUBLE).expand(3, 2, 2)
    lr, std = numbers(0.01, 0.02, 0.03), numbers(0, 1, 2)
    committee = CommitteeMachine.fitting("cubic", gram, common[:, None].expand(-1, 4, -1))
    generators = [seeded(run) for run in range(3)]
    together = committee.descend(z, 20, generators, lr=lr, noise_std=std)
    last = CommitteeMachine("cubic", gram[2:], committee.targets[2:])
    alone = last.descend(z[2:], 20, [seeded(2)], lr=lr[2:], noise_std=std[2:])
    torch.testing.assert_close(alone, together[2:])


def test_the_trace_is_that_of_the_hessian_at_zero_loss() -> None:
    inputs, theta = drawn(2, (3, 5), (4, 5))
    outputs = REFERENCES["cubic"](theta @ inputs.mT).sum(0)
    hessian = torch.autograd.functional.hessian(
        lambda flat: squared_error(flat.view(4, 5), inputs, outputs, "cubic"), theta.flatten()
    )
    committee = CommitteeMachine("cubic", (inputs @ inputs.mT)[None], outputs[None])
    found = committee.hessian_trace((theta @ inputs.mT)[None])
    assert float(found) == pytest.approx(float(hessian.trace()))


@pytest.mark.parametrize("orthonormal", [True, False])
def test_rest_is_at_zero_loss_and_leaves_who_is_apart(orthonormal: bool) -> None:
    """For orthonormal inputs the flow keeps differences of u = 2 log(1 + z / 2), z + z^2 / 4."""
    inputs, goal, z = drawn(3, (3, 5), (1, 3), (1, 4, 3))
    gram = torch.eye(3).double() if orthonormal else inputs @ inputs.mT / 5
    goal = 0.5 + 0.1 * goal
    agreeing = CommitteeMachine.fitting("quadratic", gram[None], goal[None].expand(-1, 4, -1))
    committee = CommitteeMachine("quadratic", gram[None], agreeing.targets + 0.5)
    z = goal[:, None] + 0.1 * z
    at_rest = committee.at_rest(z)
    torch.testing.assert_close(
        REFERENCES["quadratic"](at_rest).sum(1), committee.targets, rtol=1e-9, atol=1e-9
    )
    if orthonormal:
        before, after = (torch.log1p(one[0] / 2) for one in (z, at_rest))
        torch.testing.assert_close(
            before - before.mean(0), after - after.mean(0), rtol=0.01, atol=1e-3
        )


def test_what_does_not_fit_is_named() -> None:
    gram, targets = torch.eye(3).double()[None], torch.zeros(1, 3).double()
    with pytest.raises(ValueError, match="activation must be one of cubic"):
        CommitteeMachine("relu", gram, targets)
    with pytest.raises(ValueError, match="gram and targets must be"):
        CommitteeMachine("tanh", gram, targets[:, :2])
    committee, z, one = CommitteeMachine("tanh", gram, targets), torch.zeros(1, 2, 3), numbers(1)
    with pytest.raises(ValueError, match="on must be"):
        committee.descend(z.double(), 1, [seeded(0)], lr=one, noise_std=one, on="weights")
    with pytest.raises(ValueError, match="generators must be one for each of 1 runs, got 2"):
        committee.descend(z.double(), 1, [seeded(0), seeded(1)], lr=one, noise_std=one)
