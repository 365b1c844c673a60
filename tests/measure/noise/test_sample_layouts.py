"""Gradients per sample wherever a model puts its samples: sizes collide, and orders change."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_cases import LAYOUTS, PLAIN, tokens
from noise_cases import CLASSES, covariance, dense, draw, whole
from torch import Tensor, nn

from undertow.measure import gradient_noise, noise_covariance, per_sample_gradient_norms
from undertow.objective import Objective


def network(name: str, width: int, length: int) -> nn.Module:
    with torch.random.fork_rng():
        net = LAYOUTS[name](width, length).double()
    with torch.no_grad():
        for seed, parameter in enumerate(net.parameters()):
            parameter.copy_(draw(100 + seed, *parameter.shape))
    return net


def check(name: str, samples: int, length: int, width: int, seed: int, microbatch=None) -> None:
    net = network(name, width, length)
    inputs, targets = tokens(seed, samples, length), whole(seed + 1, CLASSES, samples)
    objective = Objective(net, nn.CrossEntropyLoss(), (inputs, targets), microbatch=microbatch)
    right, weights = dense(objective, inputs, targets)
    found = per_sample_gradient_norms(objective)
    sizes = [p.numel() for p in net.parameters()]
    close = {"rtol": 1e-8, "atol": 1e-12}
    for key, part in zip(objective.param_names, right.split(sizes, 1), strict=True):
        torch.testing.assert_close(found.squares[key], part.square().sum(1), **close, msg=key)
    torch.testing.assert_close(found.norms, right.norm(dim=1), **close)
    torch.testing.assert_close(found.gradient, right.mean(0), **close)
    if name in PLAIN and width > 1:  # a norm of one number is rounding
        assert not found.vmapped
    if samples < 2:
        return
    sigma = covariance(right, weights)
    noise = gradient_noise(objective)
    assert noise.trace == pytest.approx(float(sigma.trace()), rel=1e-8, abs=1e-12)
    traces = dict.fromkeys(noise.per_layer, 0.0)
    for key, part in zip(objective.param_names, sigma.diagonal().split(sizes), strict=True):
        traces[key.rpartition(".")[0] or "(own)"] += float(part.sum())
    for key, trace in traces.items():
        assert noise.per_layer[key].trace == pytest.approx(trace, rel=1e-7, abs=1e-11)
    block = draw(seed, 2, len(sigma))
    torch.testing.assert_close(
        noise_covariance(objective).product(block), block @ sigma, rtol=1e-7, atol=1e-10
    )


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("samples", "length", "width"), [(7, 7, 7), (9, 4, 3), (8, 2, 8)])
def test_every_layout(name: str, samples: int, length: int, width: int) -> None:
    check(name, samples, length, width, seed=1)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("microbatch", [None, 20])
def test_many_samples_of_which_few_foretell_the_others(name: str, microbatch: int | None) -> None:
    check(name, 60, 3, 4, seed=2, microbatch=microbatch)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(LAYOUTS)),
    samples=st.integers(1, 9),
    length=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**16),
    microbatch=st.sampled_from([None, 2, 3, 5]),
)
def test_any_sizes(
    name: str, samples: int, length: int, width: int, seed: int, microbatch: int | None
) -> None:
    check(name, samples, length, width, seed, microbatch)


class Remembered(nn.Module):
    """Hands its input on, and knows whether that is still alive."""

    seen: ClassVar[list[weakref.ref]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        output = inputs * 1.0
        self.seen.append(weakref.ref(output))
        return output


@pytest.mark.parametrize("measure", [per_sample_gradient_norms, gradient_noise])
def test_graphs_are_freed(measure: Callable[[Objective], object]) -> None:
    net = nn.Sequential(
        nn.Embedding(9, 6), Remembered(), nn.Linear(6, 6), Remembered(), nn.LayerNorm(6),
        Remembered(), nn.Conv1d(3, 4, 2), Remembered(), nn.BatchNorm1d(4), nn.Flatten(),
        Remembered(), nn.Linear(20, CLASSES),
    )  # fmt: skip
    Remembered.seen.clear()
    objective = Objective(net, nn.CrossEntropyLoss(), (whole(1, 9, 40, 3), whole(2, CLASSES, 40)))
    measure(objective)
    gc.collect()
    assert Remembered.seen
    assert not any(reference() is not None for reference in Remembered.seen)


def test_batches_of_several_lengths() -> None:
    net = network("Places", 6, 9)
    batches = [(tokens(n, 20, n), whole(n, CLASSES, 20)) for n in (5, 9, 5, 3, 9)]
    found = per_sample_gradient_norms(Objective(net, nn.CrossEntropyLoss(), batches))
    right = torch.cat(
        [dense(Objective(net, nn.CrossEntropyLoss(), batch), *batch)[0] for batch in batches]
    )
    # Each batch alone is an average over its own twenty.
    torch.testing.assert_close(found.norms, right.norm(dim=1), rtol=1e-9, atol=1e-12)
    assert not found.vmapped


def test_an_objective_that_was_measured_can_be_copied() -> None:
    net = network("Flat", 4, 3)
    objective = Objective(net, nn.CrossEntropyLoss(), (tokens(1, 20, 3), whole(2, CLASSES, 20)))
    found = per_sample_gradient_norms(objective)
    for other in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        torch.testing.assert_close(per_sample_gradient_norms(other).norms, found.norms)
