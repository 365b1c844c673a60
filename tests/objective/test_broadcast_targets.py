"""Outputs [N, 1] against targets [N], in any loss: each output would meet all targets."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from objective_cases import draw
from torch import Tensor, nn
from torch.nn import functional

from undertow.objective import Objective

SAMPLES, FEATURES = 12, 3


class LogCosh(nn.Module):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.log(torch.cosh(outputs - targets)).mean()


class Hidden(torch.autograd.Function):
    """Operations that are not seen one by one."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(outputs, targets)
        with torch._C.DisableTorchFunction():
            return (outputs - targets).square().mean()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        outputs, targets = ctx.saved_tensors
        slopes = 2 * (outputs - targets)
        return (cotangent * slopes / slopes.numel()).sum_to_size(outputs.shape), None


def power(outputs: Tensor, targets: Tensor, exponent: int) -> Tensor:
    return ((outputs - targets).abs() ** exponent).mean()


def variance_one(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.gaussian_nll_loss(outputs, targets, torch.ones_like(outputs))


LOSSES: dict[str, Any] = {
    "mse": nn.MSELoss(),
    "l1": functional.l1_loss,
    "huber": partial(functional.huber_loss, delta=0.3),
    "poisson": nn.PoissonNLLLoss(),
    "poisson function": functional.poisson_nll_loss,
    "hinge embedding": nn.HingeEmbeddingLoss(),
    "divergence": nn.KLDivLoss(reduction="batchmean"),
    "soft margin": nn.SoftMarginLoss(),
    "cross-entropy": nn.BCEWithLogitsLoss(),
    "probabilities": lambda o, t: functional.binary_cross_entropy(o.sigmoid(), t),
    "normal": variance_one,
    "multilabel": nn.MultiLabelSoftMarginLoss(),
    "squares": lambda o, t: (o - t).square().mean(),
    "root": lambda o, t: (o - t).square().mean().sqrt(),
    "values": lambda o, t: (o - t).square().mean(-1),
    "function none": lambda o, t: functional.mse_loss(o, t, reduction="none").mean(),
    "where": lambda o, t: torch.where(t > 0.5, (1 - o) ** 2, o**2).mean(),
    "margin": lambda o, t: functional.softplus(-o * t).mean(),
    "addcmul": lambda o, t: torch.addcmul(o**2, o, t, value=-2.0).mean(),
    "module": LogCosh(),
    "partial": partial(power, exponent=3),
    "hidden": Hidden.apply,
}
TARGETS = {
    "many": lambda: draw(5, SAMPLES).sigmoid(),
    "signs": lambda: torch.tensor([-1.0, 1.0] * (SAMPLES // 2)).double(),
    "zeros and ones": lambda: torch.tensor([0.0, 1.0] * (SAMPLES // 2)).double(),
    "all alike": lambda: torch.ones(SAMPLES).double(),  # for which values agree by luck
}


def network(flat: bool) -> nn.Module:
    net = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        for seed, parameter in enumerate(net.parameters()):
            parameter.copy_(draw(seed, *parameter.shape))
    return nn.Sequential(net, nn.Flatten(0)) if flat else net


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", LOSSES)
def test_only_equal_shapes_have_a_value(name: str, kind: str) -> None:
    positive = ("cross-entropy", "probabilities", "multilabel", "divergence")
    if name in positive and kind == "signs":
        pytest.skip("targets outside of the loss's domain")
    loss, targets, x = LOSSES[name], TARGETS[kind](), draw(1, SAMPLES, FEATURES)
    for flat in (False, True):
        fitting, other = (targets, targets[:, None]) if flat else (targets[:, None], targets)
        net = network(flat)
        if not (flat and name in ("multilabel", "values")):  # these need an axis of classes
            found = Objective(net, loss, (x, fitting)).value()
            torch.testing.assert_close(found, loss(net(x), fitting).mean().detach())
        shape = (SAMPLES,) if flat else (SAMPLES, 1)
        with pytest.raises(ValueError) as caught:
            Objective(net, loss, (x, other)).value()
        message = str(caught.value)
        assert "\n" not in message
        for each in (shape, tuple(other.shape)):
            assert str(each) in message or str(list(each)) in message


def test_square_outputs_are_no_exception() -> None:
    """As many outputs as samples fit the targets' shape, along the wrong axis."""
    x, targets = draw(1, SAMPLES, FEATURES), draw(2, SAMPLES)
    for loss in (nn.PoissonNLLLoss(), lambda o, t: (o - t).square().mean()):
        with pytest.raises(ValueError, match=r"\(12, 12\) and targets \(12,\)"):
            Objective(nn.Linear(FEATURES, SAMPLES).double(), loss, (x, targets)).value()


def test_labels_and_axes_within_a_sample_may_broadcast() -> None:
    x, images = draw(1, SAMPLES, FEATURES), draw(2, SAMPLES, 2, 4, 4)
    labels = torch.arange(SAMPLES) % 4
    weights = torch.linspace(0, 1, 4).double()
    cases: list[tuple[nn.Module, Any, Tensor, Tensor]] = [
        (nn.Linear(FEATURES, 4), lambda o, t: functional.cross_entropy(o, t), x, labels),
        (nn.Linear(FEATURES, 4), lambda o, t: (weights * o.square()).mean() + 0 * t[0], x, labels),
        (nn.Linear(FEATURES, 3), lambda o, t: (o - t[:, None]).abs().mean(), x, draw(3, SAMPLES)),
        (nn.Conv2d(2, 2, 1), lambda o, t: (o - t).square().mean(), images, images[:, :1]),
        (nn.Conv2d(2, 2, 1), lambda o, t: (o - t).square().mean(), images, images[..., :1, :1]),
        (nn.Conv2d(2, 2, 1), lambda o, t: (weights * (o - t) ** 2).mean(), images, images),
    ]
    for net, loss, inputs, targets in cases:
        found = Objective(net.double(), loss, (inputs, targets), microbatch=5)
        torch.testing.assert_close(found.value(), loss(net(inputs), targets).detach())


def test_what_is_refused_once_is_refused_again() -> None:
    """Whatever is asked for next, and in whatever order."""
    inputs, targets = torch.randn(SAMPLES, FEATURES).double(), torch.rand(SAMPLES).double()
    objective = Objective(nn.Linear(FEATURES, 1).double(), nn.PoissonNLLLoss(), (inputs, targets))
    block = torch.ones(1, FEATURES + 1, dtype=torch.float64)
    asked = [objective.value, objective.gradient, lambda: objective.ggnvp(block)]
    for ask in [*asked, *reversed(asked)]:
        with pytest.raises(ValueError, match="broadcasts them"):
            ask()
