"""The sharpness that an optimizer feels, against dense eigenpairs and the optimizers themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from undertow.measure import SharpnessTracker, sharpness
from undertow.objective import Objective
from undertow.train import optim as own
from undertow.train import rules

LR = 0.01
STEPS = 12  # taken by then: few, so that corrections of bias count
Make = Callable[[Any], Any]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quadratic(scale: float = 1.0) -> Objective:
    """A convex quadratic in a weight and a bias, with its minimum at zero."""
    net = nn.Linear(5, 1).double()
    with torch.no_grad():
        net.weight.copy_(draw(5, 1, 5))
        net.bias.copy_(draw(6, 1))
    inputs = draw(0, 30, 5)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return scale * outputs.square().mean()

    return Objective(net, loss, (inputs, torch.zeros(30, 1).double()))


def begun(objective: Objective, make: Make) -> tuple[Any, list[dict[str, Any]]]:
    """The optimizer after steps, the last without a gradient, and its state before that one."""
    optimizer = make(objective.model.named_parameters())
    params = list(objective.model.parameters())
    before: list[dict[str, Any]] = []
    start(params)
    for step in range(STEPS):
        before = [copy.deepcopy(dict(optimizer.state[param])) for param in params]
        last = step == STEPS - 1
        for number, param in enumerate(params):
            drawn = 0.1 + draw(10 + 2 * step + number, *param.shape).abs()
            param.grad = torch.zeros_like(param) if last else drawn
        optimizer.step()
        start(params)  # so that a decay adds nothing to the squares
    return optimizer, before


def start(params: list[nn.Parameter]) -> None:
    """Weights so small that squares of gradients add nothing to what is remembered of them."""
    with torch.no_grad():
        for number, param in enumerate(params):
            param.copy_(1e-12 * draw(number, *param.shape))


def at_share(make: Make, share: float) -> tuple[Objective, Any, list[dict[str, Any]]]:
    """A quadratic whose sharpness is that share of the optimizer's edge."""
    scale = 1.0
    for _ in range(100):
        objective = quadratic(scale)
        optimizer, before = begun(objective, make)
        found = sharpness(objective, rtol=1e-8, preconditioner=optimizer)
        assert found.edge is not None
        measured = float(found.eigenvalues[0]) / found.edge
        if abs(measured / share - 1) < 1e-5:
            return objective, optimizer, before
        scale *= share / measured
    raise AssertionError("the share was not reached")


# What moves is the weights and these; all else of the state is held still.
MOVING = ("exp_avg", "momentum_buffer", "velocity", "mean")


def growth(make: Make, share: float) -> float:
    """The growth of the weights in a step of the optimizer, what it divides by held still."""
    objective, optimizer, before = at_share(make, share)
    params = list(objective.model.parameters())
    hessian = objective.hvp(torch.eye(6, dtype=torch.float64))
    start(params)
    for state in optimizer.state.values():
        for key in MOVING:
            if isinstance(state.get(key), Tensor):
                state[key].zero_()
    norms = []
    for _ in range(400):
        weights = torch.cat([param.detach().flatten() for param in params])
        norms.append(float(weights.norm()))
        if not 1e-100 < norms[-1] < 1e-8:
            break
        for param, part, held in zip(
            params, (hessian @ weights).split([5, 1]), before, strict=True
        ):
            param.grad = part.view_as(param)
            for key, value in held.items():
                if key not in MOVING and value is not None:
                    optimizer.state[param][key] = copy.deepcopy(value)
        optimizer.step()
    half = len(norms) // 2
    return (norms[-1] / norms[half]) ** (1 / (len(norms) - 1 - half))


def of(kind: Any, **hyper: Any) -> Make:
    return lambda named: kind([p for _, p in named], **({"lr": LR} | hyper))


def in_groups(kind: Any, first: dict[str, Any], second: dict[str, Any]) -> Make:
    def make(named: Any) -> Any:
        (_, weight), (_, bias) = named
        return kind([{"params": [weight], **first}, {"params": [bias], **second}], lr=LR)

    return make


OPTIMIZERS: dict[str, Make] = {
    "SGD": of(torch.optim.SGD),
    "heavy ball": of(torch.optim.SGD, momentum=0.9),
    "dampened": of(torch.optim.SGD, momentum=0.8, dampening=0.5),
    "Nesterov": of(torch.optim.SGD, momentum=0.9, nesterov=True),
    "coupled decay": of(torch.optim.SGD, momentum=0.9, weight_decay=40.0),
    "Adam": of(torch.optim.Adam),
    "Adam, other betas": of(torch.optim.Adam, betas=(0.5, 0.9), eps=0.1),
    "Adam, amsgrad": of(torch.optim.Adam, amsgrad=True, betas=(0.9, 0.9)),
    "Adam, coupled decay": of(torch.optim.Adam, weight_decay=400.0),
    "AdamW": of(torch.optim.AdamW, weight_decay=20.0),
    "NAdam": of(torch.optim.NAdam),
    "RAdam": of(torch.optim.RAdam, betas=(0.9, 0.99)),
    "RAdam, begun": of(torch.optim.RAdam, betas=(0.9, 0.9999)),
    "Adamax": of(torch.optim.Adamax),
    "RMSprop": of(torch.optim.RMSprop),
    "RMSprop, centred": of(torch.optim.RMSprop, centered=True),
    "RMSprop, momentum": of(torch.optim.RMSprop, momentum=0.9, weight_decay=3.0),
    "Adagrad": of(torch.optim.Adagrad, lr_decay=0.1),
    "two rates": in_groups(torch.optim.Adam, {"lr": 0.01}, {"lr": 0.1}),
    "two momenta and decays": in_groups(
        torch.optim.AdamW,
        {"betas": (0.9, 0.99), "weight_decay": 30.0},
        {"betas": (0.5, 0.999), "weight_decay": 0.0, "lr": 0.03},
    ),
    "two kinds of momentum": in_groups(
        torch.optim.SGD, {"momentum": 0.9}, {"momentum": 0.0, "lr": 0.3, "weight_decay": 1.0}
    ),
    "our SGD": of(own.SGD, momentum=0.9, weight_decay=40.0),
    "our SGD, plain": of(own.SGD),
    "our RMSprop": of(own.RMSprop),
    "our Adam": of(own.Adam, weight_decay=95.0),
    "our AdamW": of(own.AdamW, weight_decay=20.0),
    "papers' momentum": lambda named: own.RuleOptimizer(
        [p for _, p in named], rules.ema_momentum, lr=LR, momentum=0.9
    ),
    "eps inside": lambda named: own.RuleOptimizer(
        [p for _, p in named], rules.adaptive(eps="inside"), lr=LR, eps=0.01
    ),
    "no bias correction": lambda named: own.RuleOptimizer(
        [p for _, p in named], rules.adaptive(bias_correction=False), lr=LR
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_below_its_edge_an_optimizer_converges_and_above_it_diverges(name: str) -> None:
    assert growth(OPTIMIZERS[name], 0.98) < 1
    assert growth(OPTIMIZERS[name], 1.02) > 1.001


# Eigenpairs.


def network(seed: int = 0, **kwargs: Any) -> Objective:
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for number, param in enumerate(net.parameters()):
            param.copy_(0.7 * draw(seed + number, *param.shape))
    labels = torch.randint(3, (40,), generator=torch.Generator().manual_seed(seed))
    return Objective(net, nn.CrossEntropyLoss(), (draw(seed + 10, 40, 6), labels), **kwargs)


def step(objective: Objective, optimizer: Any, times: int = 1) -> None:
    inputs, labels = next(iter(objective.batches()))
    for _ in range(times):
        optimizer.zero_grad()
        nn.functional.cross_entropy(objective.model(inputs), labels).backward()
        optimizer.step()


def adam_diagonal(objective: Objective, optimizer: torch.optim.Optimizer) -> Tensor:
    """The preconditioner of 2207.14484, by its formula."""
    named = dict(objective.model.named_parameters())
    parts = []
    for name in objective.param_names:
        state = optimizer.state[named[name]]
        t, group = float(state["step"]), optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        corrected = state["exp_avg_sq"] / (1 - beta2**t)
        parts.append(((1 - beta1**t) * (corrected.sqrt() + group["eps"])).flatten())
    return torch.cat(parts)


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_eigenpairs_are_those_of_the_dense_matrix(curvature: str, which: str) -> None:
    objective = network(microbatch=16)
    optimizer = torch.optim.AdamW(objective.model.parameters(), 1e-2)
    step(objective, optimizer, 3)
    found = sharpness(
        objective,
        4,
        1e-8,
        curvature=curvature,  # type: ignore[arg-type]
        which=which,  # type: ignore[arg-type]
        preconditioner=optimizer,
    )
    units = torch.eye(objective.num_params, dtype=torch.float64)
    dense = objective.hvp(units) if curvature == "hessian" else objective.ggnvp(units)
    diagonal = adam_diagonal(objective, optimizer)
    values = torch.linalg.eigvals(dense / diagonal[:, None]).real.sort().values
    expected = values.flip(0)[:4] if which == "largest" else values[:4]
    scale = float(values.abs().max())
    torch.testing.assert_close(found.eigenvalues, expected, rtol=1e-6, atol=1e-10 * scale)
    images = (found.directions @ dense) / diagonal
    moved = found.eigenvalues[:, None] * found.directions
    torch.testing.assert_close(images, moved, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(found.directions.norm(dim=1), torch.ones(4).double())
    gram = found.vectors @ found.vectors.T
    torch.testing.assert_close(gram, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-10)


def test_adam_that_divides_by_one_feels_the_plain_sharpness() -> None:
    objective = network()
    plain = sharpness(objective, 3, 1e-8)
    ones = {name: torch.ones_like(p) for name, p in objective.model.named_parameters()}
    for given in (torch.optim.SGD(objective.model.parameters(), 0.1), ones):
        found = sharpness(objective, 3, 1e-8, preconditioner=given)
        torch.testing.assert_close(found.eigenvalues, plain.eigenvalues)
        assert found.products == plain.products


def test_a_rescaled_loss_feels_the_same_to_adam_and_not_to_its_plain_sharpness() -> None:
    values = []
    for factor in (1.0, 1e4):
        objective = network()
        data = next(iter(objective.batches()))

        def loss(outputs: Tensor, targets: Tensor, factor: float = factor) -> Tensor:
            return factor * nn.functional.cross_entropy(outputs, targets)

        scaled = Objective(objective.model, loss, [data])
        optimizer = torch.optim.Adam(objective.model.parameters(), 1e-2, eps=1e-30)
        for _ in range(3):
            optimizer.zero_grad()
            loss(objective.model(data[0]), data[1]).backward()
            optimizer.step()
        values.append(sharpness(scaled, 2, 1e-7, preconditioner=optimizer).eigenvalues)
    torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=0)


def test_a_block_of_the_optimizers_parameters_has_the_block_of_the_matrix() -> None:
    whole = network()
    optimizer = torch.optim.Adam(whole.model.parameters(), 1e-2)
    step(whole, optimizer, 3)
    data = next(iter(whole.batches()))
    block = Objective(whole.model, nn.CrossEntropyLoss(), data, params=["2.weight", "2.bias"])
    found = sharpness(block, 2, 1e-8, preconditioner=optimizer)
    dense = whole.hvp(torch.eye(whole.num_params, dtype=torch.float64))
    scaled = dense / adam_diagonal(whole, optimizer)[:, None]
    size = block.num_params
    values = torch.linalg.eigvals(scaled[-size:, -size:]).real.sort().values.flip(0)
    torch.testing.assert_close(found.eigenvalues, values[:2], rtol=1e-6, atol=0)
    assert found.edge == pytest.approx(3800)


def test_adadelta_divides_by_what_makes_its_next_step() -> None:
    objective = network()
    params = list(objective.model.parameters())
    optimizer = torch.optim.Adadelta(params, lr=0.5, eps=1e-3)
    step(objective, optimizer, 3)
    before = [param.detach().clone() for param in params]
    for param in params:  # a gradient that leaves the mean of squares as it is
        param.grad = optimizer.state[param]["square_avg"].sqrt()
    found = sharpness(objective, preconditioner=optimizer)
    assert found.scale is not None
    assert found.edge == pytest.approx(4)
    gradient = torch.cat([param.grad.flatten() for param in params if param.grad is not None])
    optimizer.step()
    moved = torch.cat([(b - p.detach()).flatten() for b, p in zip(before, params, strict=True)])
    torch.testing.assert_close(moved, 0.5 * gradient * found.scale**2)


def test_a_warm_start_and_a_tracker_follow_the_optimizer() -> None:
    objective = network(3)
    optimizer = torch.optim.Adam(objective.model.parameters(), 3e-3)
    step(objective, optimizer, 5)
    tracker = SharpnessTracker(objective, preconditioner=optimizer)
    last = cold = sharpness(objective, preconditioner=optimizer)
    products = 0
    for _ in range(30):
        step(objective, optimizer)
        dense = objective.hvp(torch.eye(objective.num_params, dtype=torch.float64))
        root = adam_diagonal(objective, optimizer).rsqrt()
        truth = float(torch.linalg.eigvalsh(root[:, None] * dense * root)[-1])
        followed = tracker.update()
        assert float(followed.eigenvalues[0]) == pytest.approx(truth, rel=0.02)
        assert followed.edge == pytest.approx(38 / 3e-3)
        last = sharpness(objective, preconditioner=optimizer, start=last)
        assert float(last.eigenvalues[0]) == pytest.approx(truth, rel=1e-5)
        products += last.products
    assert products < 0.9 * 30 * cold.products
    assert tracker.products < 3 * 30


def test_the_state_is_left_as_found_and_the_result_says_where_the_edge_is() -> None:
    objective = network()
    optimizer = torch.optim.Adam(objective.model.parameters(), 1e-2)
    step(objective, optimizer, 2)
    before = copy.deepcopy(optimizer.state_dict())
    found = sharpness(objective, preconditioner=optimizer)
    after = optimizer.state_dict()
    for own_state, then in zip(after["state"].values(), before["state"].values(), strict=True):
        assert all(torch.equal(own_state[key], then[key]) for key in then)
    assert after["param_groups"] == before["param_groups"]
    share = float(found.eigenvalues[0]) / 3800
    assert f"{share:.3g} of the edge 3800 (residual" in repr(found)
    assert "edge" not in repr(sharpness(objective))


def test_manners_of_running_make_no_difference() -> None:
    found = []
    for manner in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        objective = network()
        rate = torch.tensor(1e-2, dtype=torch.float64) if "fused" in manner else 1e-2
        optimizer = torch.optim.Adam(objective.model.parameters(), rate, **manner)
        step(objective, optimizer, 2)
        found.append(sharpness(objective, preconditioner=optimizer, rtol=1e-8))
    for other in found[1:]:
        torch.testing.assert_close(other.eigenvalues, found[0].eigenvalues)
        assert other.edge == pytest.approx(3800)


# Refusing.


class Cautious(torch.optim.Adam):
    """An optimizer that makes something else of Adam's state."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def begun_on(kind: Any, **hyper: Any) -> tuple[Objective, Any]:
    objective = network()
    optimizer = kind(objective.model.parameters(), **hyper)
    step(objective, optimizer)
    return objective, optimizer


def test_an_optimizer_without_steps_is_refused() -> None:
    objective = network()
    params = list(objective.model.parameters())
    line = "no state for 0.weight yet.*measure after a step"
    for optimizer in (torch.optim.Adam(params), torch.optim.Adagrad(params), own.Adam(params)):
        with pytest.raises(ValueError, match=line):
            sharpness(objective, preconditioner=optimizer)
    sharpness(objective, preconditioner=torch.optim.SGD(params, 0.1))  # which needs none
    with pytest.raises(ValueError, match=line):
        SharpnessTracker(objective, preconditioner=torch.optim.Adam(params)).update()


def test_parameters_that_the_optimizer_lacks_or_never_moved_are_named() -> None:
    objective = network()
    first = torch.optim.Adam(objective.model[0].parameters())  # type: ignore[index]
    step(objective, first)
    with pytest.raises(ValueError, match=r"2\.weight, 2\.bias of the objective must be in the opt"):
        sharpness(objective, preconditioner=first)
    frozen = network()
    optimizer = torch.optim.Adam(frozen.model.parameters())
    frozen.model[2].requires_grad_(False)  # type: ignore[index]
    step(frozen, optimizer)
    frozen.model[2].requires_grad_(True)  # type: ignore[index]
    with pytest.raises(ValueError, match=r"no state for 2\.weight yet"):
        sharpness(frozen, preconditioner=optimizer)


@pytest.mark.parametrize(
    ("kind", "hyper", "message"),
    [
        (torch.optim.Rprop, {}, "not known what Rprop divides by; known are SGD, AdamW.*diagonal"),
        (torch.optim.Adafactor, {}, "not known what Adafactor divides by"),
        (torch.optim.ASGD, {}, "not known what ASGD divides by"),
        (Cautious, {}, "not known what Cautious divides by"),
    ],
)
def test_optimizers_of_which_nothing_is_known_are_refused(
    kind: Any, hyper: dict[str, Any], message: str
) -> None:
    objective, optimizer = begun_on(kind, **hyper)
    with pytest.raises(TypeError, match=message):
        sharpness(objective, preconditioner=optimizer)


def test_what_wraps_an_optimizer_and_wrapped_rules_are_refused() -> None:
    objective, inside = begun_on(torch.optim.Adam)

    class Holder:
        param_groups = inside.param_groups
        optimizer = inside

    with pytest.raises(TypeError, match="Give the optimizer inside it"):
        sharpness(objective, preconditioner=Holder())  # type: ignore[arg-type]
    noisy = own.RuleOptimizer(objective.model.parameters(), rules.unit_norm(rules.sgd), lr=0.1)
    with pytest.raises(TypeError, match=r"no edge is known for rules\.unit_norm\(sgd"):
        sharpness(objective, preconditioner=noisy)
    with pytest.raises(TypeError, match="must be an optimizer or the diagonal by name, got float"):
        sharpness(objective, preconditioner=0.1)  # type: ignore[arg-type]


def test_preconditioners_that_are_no_metric_are_refused() -> None:
    objective, optimizer = begun_on(torch.optim.Adam, eps=0.0)
    optimizer.state[objective.model[0].weight]["exp_avg_sq"][0, 0] = 0  # type: ignore[index,union-attr]
    with pytest.raises(ValueError, match=r"0\.weight must be positive and finite; .* eps"):
        sharpness(objective, preconditioner=optimizer)
    ones = {name: torch.ones_like(p) for name, p in objective.model.named_parameters()}
    with pytest.raises(ValueError, match=r"2\.bias of the objective must be in the precondition"):
        sharpness(objective, preconditioner={n: p for n, p in ones.items() if n != "2.bias"})
    with pytest.raises(
        ValueError, match=r"0\.bias must be a tensor of its shape \(8,\), got shape"
    ):
        sharpness(objective, preconditioner=ones | {"0.bias": torch.ones(3)})


def test_ascent_and_rates_of_zero_are_refused() -> None:
    objective, optimizer = begun_on(torch.optim.Adam, maximize=True)
    with pytest.raises(ValueError, match="maximize must be False"):
        sharpness(objective, preconditioner=optimizer)
    objective, optimizer = begun_on(torch.optim.Adam)
    optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(ValueError, match="lr must be a finite number above 0"):
        sharpness(objective, preconditioner=optimizer)
