"""Losses as an objective sees them: denominators, subclasses, options and a model's own loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from undertow.measure import noise_covariance
from undertow.objective import Objective

SAMPLES, FEATURES, CLASSES = 11, 3, 4


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fill(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for seed, parameter in enumerate(net.parameters()):
            parameter.copy_(0.7 * draw(seed, *parameter.shape))
    return net


def network(outputs: int = CLASSES) -> nn.Module:
    return fill(
        nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, outputs)).double()
    ).eval()


def labels() -> Tensor:
    return torch.randint(CLASSES, (SAMPLES,), generator=torch.Generator().manual_seed(9))


def labels_with_gaps() -> Tensor:
    found = labels()
    found[[0, 1, 2, 3, 7]] = -100
    return found


def flat(
    net: nn.Module, function: Callable[[Callable[..., Any]], Tensor]
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """theta, and `function` of the network as a function of theta."""
    named = dict(net.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def whole(theta: Tensor) -> Tensor:
        parts = theta.split(sizes)
        shaped = {n: t.view_as(p) for (n, p), t in zip(named.items(), parts, strict=True)}
        return function(lambda *args, **kwargs: functional_call(net, shaped, args, kwargs))

    return torch.cat([p.detach().flatten() for p in named.values()]), whole


def dense(
    net: nn.Module, loss: Callable[..., Tensor], inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient, Hessian and Gauss-Newton matrix of the mean loss."""
    theta, whole = flat(net, lambda call: loss(call(inputs), targets).mean())
    theta, outputs = flat(net, lambda call: call(inputs))[0], net(inputs).detach()
    gradient = torch.autograd.functional.jacobian(whole, theta)
    hessian = torch.autograd.functional.hessian(whole, theta)
    slopes = torch.autograd.functional.jacobian(flat(net, lambda call: call(inputs))[1], theta)
    slopes = slopes.reshape(outputs.numel(), -1)
    curvature = torch.autograd.functional.hessian(lambda o: loss(o, targets).mean(), outputs)
    curvature = curvature.reshape(outputs.numel(), outputs.numel())
    return gradient, hessian, slopes.T @ curvature @ slopes


class Focal(nn.CrossEntropyLoss):
    """A subclass that is no cross-entropy any more."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        values = functional.cross_entropy(input, target, reduction="none")
        return ((1 - torch.exp(-values)) ** 2 * values).mean()


class Tripled(nn.MSELoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return 3 * super().forward(input, target)


WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.7], dtype=torch.float64)
CASES: dict[str, tuple[Callable[..., Any], Callable[[], Tensor]]] = {
    "weights, none": (nn.CrossEntropyLoss(weight=WEIGHT, reduction="none"), labels),
    "ignored, none": (nn.CrossEntropyLoss(reduction="none"), labels_with_gaps),
    "focal": (Focal(), labels),
    "tripled": (Tripled(), lambda: draw(3, SAMPLES, CLASSES)),
    "partial weights": (partial(functional.cross_entropy, weight=WEIGHT), labels),
    "partial ignored": (partial(functional.cross_entropy, ignore_index=1), labels),
    "partial none": (partial(functional.cross_entropy, reduction="none"), labels),
    "l1": (functional.l1_loss, lambda: draw(3, SAMPLES, CLASSES)),
    "huber": (partial(functional.huber_loss, delta=0.3), lambda: draw(3, SAMPLES, CLASSES)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("microbatch", [None, 4, 1])
def test_slopes_and_curvature_have_one_denominator(case: str, microbatch: int | None) -> None:
    loss, make_targets = CASES[case]
    net, inputs, targets = network(), draw(1, SAMPLES, FEATURES), make_targets()
    gradient, hessian, gauss_newton = dense(net, loss, inputs, targets)
    objective = Objective(net, loss, (inputs, targets), microbatch=microbatch)
    block = draw(2, 6, objective.num_params)
    torch.testing.assert_close(objective.gradient(), gradient)
    torch.testing.assert_close(objective.hvp(block), block @ hessian)
    torch.testing.assert_close(objective.ggnvp(block), block @ gauss_newton)
    exact = objective.ggn_trace()
    assert exact is not None
    torch.testing.assert_close(exact[0], float(gauss_newton.trace()))


@pytest.mark.parametrize("case", ["weights, none", "ignored, none", "focal", "tripled"])
def test_noise_is_centred_by_the_same_denominator(case: str) -> None:
    loss, make_targets = CASES[case]
    net, inputs, targets = network(), draw(1, SAMPLES, FEATURES), make_targets()
    rows = torch.stack([dense(net, loss, inputs[[i]], targets[[i]])[0] for i in range(SAMPLES)])
    normal = torch.randn(
        20, SAMPLES, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    objective = Objective(net, loss, (inputs, targets), microbatch=4)
    found = objective.sample_noise(20, batch_size=4, generator=torch.Generator().manual_seed(5))
    expected = normal @ (rows - rows.mean(0)) / (SAMPLES * 4) ** 0.5
    torch.testing.assert_close(found, expected)


def test_subclasses_keep_weights_and_ignored_labels_per_sample() -> None:
    class LogNLL(nn.NLLLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return super().forward(input.log_softmax(1), target)

    data = draw(1, SAMPLES, FEATURES), labels_with_gaps()
    found, expected = (
        Objective(network(), loss, data).sample_noise(
            5, batch_size=2, generator=torch.Generator().manual_seed(0)
        )
        for loss in (LogNLL(weight=WEIGHT), nn.CrossEntropyLoss(weight=WEIGHT))
    )
    torch.testing.assert_close(found, expected)


def test_what_would_be_misread_is_refused() -> None:
    inputs = draw(1, SAMPLES, FEATURES)
    for loss in (functional.l1_loss, functional.huber_loss, functional.smooth_l1_loss):
        with pytest.raises(ValueError, match=r"\(11, 1\) and targets \(11,\)"):
            Objective(network(1), loss, (inputs, draw(1, SAMPLES))).value()
    total = partial(functional.cross_entropy, reduction="sum")
    with pytest.raises(ValueError, match="reduction='sum'"):
        Objective(network(), total, (inputs, labels()))
    flattened = nn.Sequential(network(1), nn.Flatten(0))
    with pytest.raises(ValueError, match="take the 11 samples for classes"):
        Objective(flattened, nn.CrossEntropyLoss(), (inputs, torch.rand(SAMPLES))).value()
    with pytest.raises(ValueError, match=r"floating-point numbers, got torch\.bool"):
        Objective(network(), lambda o, t: o.argmax(1) == t, (inputs, labels())).value()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_adds_up_over_microbatches(dtype: torch.dtype) -> None:
    net = network().to(dtype)
    inputs = draw(1, 1500, FEATURES).to(dtype)
    targets = torch.randint(CLASSES, (1500,), generator=torch.Generator().manual_seed(0))
    exact = Objective(
        copy.deepcopy(net).double(), functional.cross_entropy, (inputs.double(), targets)
    )
    rounding = 4 * torch.finfo(dtype).eps
    for microbatch in (None, 1, 7):
        found = Objective(net, functional.cross_entropy, (inputs, targets), microbatch=microbatch)
        torch.testing.assert_close(found.value().double(), exact.value(), rtol=rounding, atol=0)
        gradient = found.gradient()
        assert gradient.dtype == dtype
        error = (gradient.double() - exact.gradient()).norm()
        assert error <= rounding * exact.gradient().norm()


def test_half_precision_holds_as_many_samples_as_there_are() -> None:
    net = network().half()
    inputs = draw(1, 10, FEATURES).half().repeat(7_000, 1)  # more than the largest float16
    targets = labels()[:10].repeat(7_000)
    found = Objective(net, functional.cross_entropy, (inputs, targets))
    few = Objective(net, functional.cross_entropy, (inputs[:10], targets[:10]))
    torch.testing.assert_close(found.value(), few.value(), rtol=1e-2, atol=0)
    assert (found.gradient() - few.gradient()).norm() <= 1e-2 * few.gradient().norm()


def test_half_precision_distributions_are_targets() -> None:
    net, inputs = network().bfloat16(), draw(1, SAMPLES, FEATURES).bfloat16()
    targets = draw(2, SAMPLES, CLASSES).softmax(1).bfloat16()
    found = Objective(net, nn.CrossEntropyLoss(), (inputs, targets))
    exact = Objective(
        copy.deepcopy(net).double(), nn.CrossEntropyLoss(), (inputs.double(), targets.double())
    )
    block = draw(3, 3, found.num_params)
    error = (found.ggnvp(block) - exact.ggnvp(block)).norm()
    assert error <= 1e-5 * exact.ggnvp(block).norm()


# A model's own loss.

TOKENS, LENGTH = 7, 5


class Own(nn.Module):
    """Predicts each token, or the next one, and returns its loss as Hugging Face's models do."""

    def __init__(self, shift: int, *, zero: bool = False, copies: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 4)
        self.head = nn.Linear(4, TOKENS)
        fill(self.double())
        if zero:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        self.shift, self.copies = shift, copies

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        logits = self.head(torch.tanh(self.embedding(input_ids).cumsum(1)))
        loss = None if labels is None else token_loss(logits, labels, self.shift)
        return SimpleNamespace(loss=loss, logits=logits * 1 if self.copies else logits)


def token_loss(logits: Tensor, labels: Tensor, shift: int) -> Tensor:
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def tokens() -> tuple[Tensor, Tensor]:
    ids = torch.randint(TOKENS, (9, LENGTH), generator=torch.Generator().manual_seed(3))
    targets = ids.clone()
    targets[torch.rand(9, LENGTH, generator=torch.Generator().manual_seed(4)) < 0.4] = -100
    targets[0] = torch.tensor([2, -100, -100, -100, -100])  # counts only if it is not shifted
    return ids, targets


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("kind", ["usual", "zero", "copies"])
def test_own_losses_are_averaged_by_the_labels_that_count(shift: int, kind: str) -> None:
    """Also where the value alone does not tell which ones do: all logits are alike at zero."""
    net = Own(shift, zero=kind == "zero", copies=kind == "copies")
    ids, targets = tokens()
    theta, whole = flat(net, lambda call: call(ids, targets).loss)
    gradient = torch.autograd.functional.jacobian(whole, theta)
    hessian = torch.autograd.functional.hessian(whole, theta)
    outputs = net(ids).logits.detach()
    slopes = torch.autograd.functional.jacobian(flat(net, lambda call: call(ids).logits)[1], theta)
    slopes = slopes.reshape(outputs.numel(), -1)
    curvature = torch.autograd.functional.hessian(lambda o: token_loss(o, targets, shift), outputs)
    gauss_newton = slopes.T @ curvature.reshape(len(slopes), -1) @ slopes
    batches = [
        {"input_ids": x, "labels": y} for x, y in zip(ids.split(2), targets.split(2), strict=True)
    ]
    for microbatch in (None, 1):
        objective = Objective(net, None, batches, microbatch=microbatch)
        block = draw(0, 6, objective.num_params)
        torch.testing.assert_close(objective.gradient(), gradient)
        torch.testing.assert_close(objective.hvp(block), block @ hessian)
        torch.testing.assert_close(objective.ggnvp(block), block @ gauss_newton)
    every = torch.eye(objective.num_params, dtype=torch.float64)
    covariance = noise_covariance(objective)
    torch.testing.assert_close(float(covariance.product(every).trace()), covariance.trace)


def test_own_losses_of_half_precision_are_recognised() -> None:
    ids, targets = tokens()
    for seed in range(6):
        net = Own(1).bfloat16()
        with torch.no_grad():
            net.head.weight.copy_(draw(seed, TOKENS, 4))
        batch = {"input_ids": ids, "labels": targets}
        found = Objective(net, None, [batch], microbatch=2).value()
        expected = Objective(copy.deepcopy(net).double(), None, [batch]).value()
        torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=0)


def test_own_losses_that_fit_both_ways_are_refused() -> None:
    ids, targets = tokens()
    net = Own(1, zero=True, copies=True)
    with pytest.raises(ValueError, match="the same with labels for each position and for the next"):
        Objective(net, None, [{"input_ids": ids, "labels": targets.clamp_min(0)}]).value()


def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 5.0, 2.0]))


@pytest.mark.parametrize("method", ["value", "gradient", "hvp", "ggnvp"])
def test_means_that_do_not_add_up_over_batches_are_refused(method: str) -> None:
    net, inputs, targets = nn.Linear(4, 3), torch.randn(9, 4), torch.arange(9) % 3

    def measured(loss: Any, microbatch: int | None) -> Tensor:
        objective = Objective(net, loss, (inputs, targets), microbatch=microbatch)
        block = torch.ones(1, objective.num_params)
        return getattr(objective, method)(*([block] if "vp" in method else []))

    exact = nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 2.0]))
    expected = measured(exact, 4)
    torch.testing.assert_close(measured(weighted, None), expected)
    with pytest.raises(ValueError, match="loss is no average over samples"):
        measured(weighted, 4)
    plain = measured(lambda o, t: nn.functional.cross_entropy(o, t), 4)
    torch.testing.assert_close(plain, measured(nn.CrossEntropyLoss(), None))


def test_gauss_newton_products_need_the_outputs_that_the_loss_sees() -> None:
    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            outputs = self.linear(x)
            found = {"logits": outputs * 1}
            return found if labels is None else found | {"loss": outputs.square().mean()}

    batch = {"x": torch.randn(5, 4), "labels": torch.zeros(5)}
    objective = Objective(Copies(), None, [batch])
    block = torch.ones(1, objective.num_params)
    assert objective.hvp(block).any()
    with pytest.raises(ValueError, match="copies of what it is computed from"):
        objective.ggnvp(block)


def test_a_loss_that_is_not_finite_is_refused_though_its_derivatives_are() -> None:
    data = torch.randn(5, 4), torch.randn(5, 3)
    objective = Objective(nn.Linear(4, 3), lambda o, t: o.square().sum(1) + math.inf, data)
    for product in (objective.hvp, objective.ggnvp):
        with pytest.raises(ValueError, match="not finite although the data are"):
            product(torch.ones(1, objective.num_params))
