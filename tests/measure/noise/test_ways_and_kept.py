"""Whatever way gradients come by, and whether they are kept or computed anew, they are the same."""

from __future__ import annotations

import pytest
import torch
from noise_cases import NETS, draw, labels, network
from torch import Tensor, nn
from torch.nn import functional

from undertow.measure import gradient_noise, per_sample_gradient_norms
from undertow.measure.noise import _attention, _convolutions, _gathering, _trials
from undertow.measure.noise._convolutions import Convolved, Options
from undertow.objective import Objective

SHAPES = [
    # inputs, kernel, stride, padding, dilation, groups
    ((20, 4, 9), (6, 2, 3), (2,), (1,), (1,), 2),
    ((20, 3, 8, 8), (5, 3, 3, 3), (2, 2), (1, 1), (1, 1), 1),
    ((20, 4, 7, 6), (8, 2, 2, 3), (1, 2), (0, 2), (2, 1), 2),
    ((20, 2, 4, 4, 3), (3, 2, 2, 2, 2), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1),
]


@pytest.mark.parametrize("way", _convolutions._WAYS)
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding", "dilation", "groups"), SHAPES)
def test_every_way_gives_the_gradients_of_one_sample_after_the_other(
    way: str,
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> None:
    convolve = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}[len(shape)]
    options = Options(stride=stride, padding=padding, dilation=dilation, groups=groups)
    inputs, weight = draw(1, *shape), draw(2, *kernel).requires_grad_()
    delta = draw(3, *convolve(inputs, weight, None, **options).shape)
    each = [
        torch.autograd.grad(convolve(one[None], weight, None, **options), weight, slope[None])[0]
        for one, slope in zip(inputs, delta, strict=True)
    ]
    whole = Convolved(convolve, inputs, delta, weight.shape, options)
    squares, total = _convolutions._WAYS[way](whole)
    gradients = torch.stack(each)
    torch.testing.assert_close(squares, gradients.flatten(1).square().sum(1))
    if total is not None:
        torch.testing.assert_close(total, gradients.sum(0))
    direction = draw(4, *kernel)
    expected = (gradients * direction).flatten(1).sum(1)
    torch.testing.assert_close(whole.inners(direction), expected)
    rows = torch.tensor([3, 8])
    torch.testing.assert_close(whole.at(rows).inners(direction), expected[rows])


@pytest.mark.parametrize("way", _convolutions._WAYS)
def test_the_objective_s_gradient_does_not_depend_on_the_way(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    inputs, targets = draw(5, 40, 2, 6, 6), torch.arange(40) % 3
    objective = Objective(net, nn.CrossEntropyLoss(), (inputs, targets))
    monkeypatch.setattr(Convolved, "_way", lambda self: way)
    found = per_sample_gradient_norms(objective)
    torch.testing.assert_close(found.gradient, objective.gradient())
    assert not found.vmapped


@pytest.mark.parametrize("net", NETS)
def test_gradients_that_are_not_kept_are_computed_anew(
    net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = Objective(
        network(net), nn.CrossEntropyLoss(), (NETS[net][1](), labels()), microbatch=4
    )
    kept = gradient_noise(objective)
    monkeypatch.setattr(_gathering, "_KEPT_BYTES", 0)
    anew = gradient_noise(objective)
    vmapped = 1 + bool(kept.vmapped)
    assert (kept.passes, anew.passes) == (vmapped, 2 * vmapped)
    assert anew.trace == pytest.approx(kept.trace, rel=1e-9)
    assert anew.trace_stderr == pytest.approx(kept.trace_stderr, rel=1e-6, abs=1e-12)
    assert anew.gradient_sqnorm_stderr == pytest.approx(
        kept.gradient_sqnorm_stderr, rel=1e-6, abs=1e-12
    )


def test_batches_of_unknown_number_cost_a_second_pass_once() -> None:
    class Batches:
        def __iter__(self):  # type: ignore[no-untyped-def]
            for start in range(0, 80, 20):
                rows = slice(start, start + 20)
                yield inputs[rows], targets[rows]

    inputs, targets = draw(6, 80, 3), draw(7, 80, 2)
    net = nn.Linear(3, 2).double()
    whole = gradient_noise(Objective(net, nn.MSELoss(), (inputs, targets)))
    found = gradient_noise(Objective(net, nn.MSELoss(), Batches()))
    assert whole.passes == 1
    assert found.passes in (1, 1 + 64 / 80)
    assert found.interval == pytest.approx(whole.interval)


@pytest.mark.parametrize("net", ["encoder", "decoder"])
def test_attention_of_another_pytorch_multiplies_by_identities(
    net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = Objective(network(net), nn.CrossEntropyLoss(), (NETS[net][1](), labels()))
    expected = per_sample_gradient_norms(objective)
    monkeypatch.setattr(_attention, "_PROJECTION", "_named_otherwise")
    again = Objective(network(net), nn.CrossEntropyLoss(), (NETS[net][1](), labels()))
    identity = torch.eye(2)
    attention = functional.multi_head_attention_forward
    assert _attention.without_products(attention, identity) is attention
    found = per_sample_gradient_norms(again)
    torch.testing.assert_close(found.norms, expected.norms)
    assert not found.vmapped


def test_a_way_without_a_kernel_is_not_taken() -> None:
    def broken() -> Tensor:
        raise NotImplementedError("no kernel")

    ways = {"broken": broken, "works": lambda: torch.zeros(1)}
    assert _trials.fastest("a test of its own", ways, torch.device("cpu")) == "works"
