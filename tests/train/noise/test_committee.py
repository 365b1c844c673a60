"""Descent in pre-activations against descent on weights, and what its model says of itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from undertow.predict import rank_one_modes, rank_one_rate
from undertow.train import CommitteeMachine

DOUBLE = torch.float64
REFERENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "cubic": lambda z: z + z**3 / 6,
    "quadratic": lambda z: z + z**2 / 4,
    "sinh": torch.sinh,
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


def squared_error(
    theta: Tensor, inputs: Tensor, outputs: Tensor, activation: str, weights: Tensor
) -> Tensor:
    return ((weights @ REFERENCES[activation](theta @ inputs.mT) - outputs) ** 2).sum()


@pytest.mark.parametrize("activation", REFERENCES)
def test_values_and_slopes_are_those_of_autograd(activation: str) -> None:
    z = torch.linspace(-2, 2, 20, dtype=DOUBLE)[None].requires_grad_()
    (slopes,) = torch.autograd.grad(REFERENCES[activation](z).sum(), z, create_graph=True)
    (bends,) = torch.autograd.grad(slopes.sum(), z)
    gram = torch.eye(20, dtype=DOUBLE)[None]
    committee = CommitteeMachine.fitting(activation, gram, z.detach()[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(committee.targets, 3 * REFERENCES[activation](z).detach())
    torch.testing.assert_close(committee.slopes(z.detach()), slopes.detach())
    torch.testing.assert_close(committee.bends(z.detach()), bends)


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("activation", ["cubic", "sinh", "tanh", "gelu"])
def test_steps_in_preactivations_are_sgd_on_the_weights(activation: str, equal: bool) -> None:
    weights = torch.ones(4).double() if equal else numbers(0.5, -1.2, 1.0, -0.3)
    inputs, theta, outputs = drawn(0, (3, 5), (4, 5), (3,))
    (noise,) = drawn(9, (6, 1, 3))  # what a generator of this seed gives
    theta = 0.3 * theta
    z, gram = (theta @ inputs.mT)[None], (inputs @ inputs.mT)[None]
    committee = CommitteeMachine(activation, gram, outputs[None], None if equal else weights[None])
    found = committee.descend(z, 6, [seeded(9)], lr=numbers(0.01), noise_std=numbers(0.5))
    start = theta
    for own_noise in 0.5 * noise[:, 0]:
        own = theta.detach().requires_grad_()
        loss = squared_error(own, inputs, outputs + own_noise, activation, weights)
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
    weights = numbers(0.5, -1.2, 1.0, -0.3)
    outputs = weights @ REFERENCES["cubic"](theta @ inputs.mT)
    hessian = torch.autograd.functional.hessian(
        lambda flat: squared_error(flat.view(4, 5), inputs, outputs, "cubic", weights),
        theta.flatten(),
    )
    gram = (inputs @ inputs.mT)[None]
    committee = CommitteeMachine("cubic", gram, outputs[None], weights[None])
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


def near_equal(neurons: int, spread: float) -> tuple[CommitteeMachine, Tensor, Tensor, Tensor]:
    """Inputs that are not orthogonal, and neurons that differ by little at pre-activations."""
    inputs, z = drawn(4, (3, 5), (1, neurons, 3))
    inputs = functional.normalize(inputs)
    common, gram = numbers(0.4, 0.6, -0.5), inputs @ inputs.mT
    fitted = common.expand(1, neurons, 3)
    committee = CommitteeMachine.fitting("cubic", gram[None], fitted)
    return committee, committee.at_rest(fitted + spread * z), common, gram


def test_on_the_mean_path_neurons_meet_at_the_rates_of_the_modes() -> None:
    lr, std, steps = 1e-5, 1.0, 10**9
    committee, z, common, gram = near_equal(6, 1e-4)
    own = rank_one_rate(lr, std, activation="cubic", preactivation=common.numpy())
    rates, modes = map(torch.from_numpy, rank_one_modes(np.asarray(own), gram.numpy()))
    there = committee.flatten(z, steps, lr=numbers(lr), noise_std=numbers(std))
    before, after = ((one[0] @ modes.mT).std(0).log() for one in (z, there))
    torch.testing.assert_close((before - after) / steps, rates, rtol=1e-3, atol=0)


def test_at_a_finite_lr_the_mean_path_is_faster_by_the_residuals_fluctuation() -> None:
    lr, common = 0.04, 0.5
    fitted = torch.full((1, 6, 2), common).double()
    committee = CommitteeMachine.fitting("cubic", torch.eye(2).double()[None], fitted)
    z = committee.at_rest(fitted + 1e-4 * drawn(5, (1, 6, 2))[0])
    there = committee.flatten(z, 2_000, lr=numbers(lr), noise_std=numbers(0.5))
    known = rank_one_rate(lr, 0.5, activation="cubic", preactivation=common, neurons=6)
    assert float((z.std(1) / there.std(1)).log().mean()) / 2_000 == pytest.approx(known, rel=1e-3)


def test_the_mean_path_stays_at_zero_loss_and_ends_where_phi_second_has_rank_one() -> None:
    weights = numbers(0.5, -1.2, 1.0, -0.8)
    flattest = torch.asinh(numbers(0.4, 0.9) / weights[:, None])[None]
    gram = torch.eye(2).double()[None]
    committee = CommitteeMachine.fitting("sinh", gram, flattest, weights[None])
    z = committee.at_rest(0.5 * drawn(6, (1, 4, 2))[0])
    given = {"lr": numbers(1e-4), "noise_std": numbers(1.0)}
    middle = committee.flatten(z, 10**8, **given)
    outputs = (weights[:, None] * middle[0].sinh()).sum(0)
    torch.testing.assert_close(outputs, committee.targets[0])
    traces = [float(committee.hessian_trace(one)) for one in (z, middle, flattest)]
    assert traces == sorted(traces, reverse=True)
    torch.testing.assert_close(committee.flatten(z, 2 * 10**9, **given), flattest)


def test_a_start_from_which_descent_does_not_settle_has_no_mean_path() -> None:
    z = torch.full((2, 4, 2), 0.5).double()
    committee = CommitteeMachine.fitting("cubic", torch.eye(2).double().expand(2, 2, 2), z)
    there = committee.flatten(z, 10, lr=numbers(0.01, 0.5), noise_std=numbers(1.0, 1.0))
    assert there[0].isfinite().all()
    assert there[1].isnan().all()


def test_what_does_not_fit_is_named() -> None:
    gram, targets = torch.eye(3).double()[None], torch.zeros(1, 3).double()
    with pytest.raises(ValueError, match="activation must be one of cubic"):
        CommitteeMachine("relu", gram, targets)
    with pytest.raises(ValueError, match="gram and targets must be"):
        CommitteeMachine("tanh", gram, targets[:, :2])
    with pytest.raises(ValueError, match=r"output_weights must be .* for 1 runs"):
        CommitteeMachine("tanh", gram, targets, torch.ones(2, 2).double())
    committee, z, one = CommitteeMachine("tanh", gram, targets), torch.zeros(1, 2, 3), numbers(1)
    with pytest.raises(ValueError, match="on must be"):
        committee.descend(z.double(), 1, [seeded(0)], lr=one, noise_std=one, on="weights")
    with pytest.raises(ValueError, match="generators must be one for each of 1 runs, got 2"):
        committee.descend(z.double(), 1, [seeded(0), seeded(1)], lr=one, noise_std=one)
