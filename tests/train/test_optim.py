"""The optimizer front ends against `torch.optim`, on a network, and as `torch.optim` is used."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_runs import CLASSES, FEATURES, inputs, labels

from undertow.models import mlp
from undertow.train import optim, rules
from undertow.train.rules import Rule

Make = Callable[[Any], torch.optim.Optimizer]

PAIRS: dict[str, tuple[Make, Make]] = {
    "sgd": (
        lambda params: optim.SGD(params, 0.1, weight_decay=0.01),
        lambda params: torch.optim.SGD(params, 0.1, weight_decay=0.01),
    ),
    "momentum": (
        lambda params: optim.SGD(params, 0.05, momentum=0.9, weight_decay=0.01),
        lambda params: torch.optim.SGD(params, 0.05, momentum=0.9, weight_decay=0.01),
    ),
    "rmsprop": (
        lambda params: optim.RMSprop(params, 0.003, alpha=0.95, weight_decay=0.01),
        lambda params: torch.optim.RMSprop(params, 0.003, alpha=0.95, weight_decay=0.01),
    ),
    "adam": (
        lambda params: optim.Adam(params, 0.01, betas=(0.8, 0.98), eps=1e-4, weight_decay=0.1),
        lambda params: torch.optim.Adam(
            params, 0.01, betas=(0.8, 0.98), eps=1e-4, weight_decay=0.1
        ),
    ),
    "adamw": (
        lambda params: optim.AdamW(params, 0.01, betas=(0.8, 0.98), weight_decay=0.1),
        lambda params: torch.optim.AdamW(params, 0.01, betas=(0.8, 0.98), weight_decay=0.1),
    ),
    "defaults of rmsprop": (optim.RMSprop, torch.optim.RMSprop),
    "defaults of adam": (optim.Adam, torch.optim.Adam),
    "defaults of adamw": (optim.AdamW, torch.optim.AdamW),
}
pairs = pytest.mark.parametrize("pair", PAIRS.values(), ids=list(PAIRS))


def network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(5)
    return mlp((FEATURES, 8, CLASSES), activation="tanh", generator=generator)


def train(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> None:
    x, y = inputs().to(next(net.parameters()).dtype), labels()
    for step in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(net(x[step % 3 :: 3]), y[step % 3 :: 3]).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def assert_equal(ours: nn.Module, theirs: nn.Module) -> None:
    double = next(ours.parameters()).dtype == torch.float64
    tolerances = {"rtol": 1e-10, "atol": 1e-12} if double else {"rtol": 2e-4, "atol": 2e-5}
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, other, **tolerances)


@pytest.mark.slow
@pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_torch_over_two_hundred_steps(pair: tuple[Make, Make], dtype: torch.dtype) -> None:
    nets = [network().to(dtype) for _ in pair]
    for net, make in zip(nets, pair, strict=True):
        train(net, make(net.parameters()), 200)
    assert_equal(*nets)


@pairs
def test_as_torch_with_groups_and_a_scheduler(pair: tuple[Make, Make]) -> None:
    nets = [network().double() for _ in pair]
    for net, make in zip(nets, pair, strict=True):
        groups = [
            {"params": net[1].parameters(), "lr": 0.02, "weight_decay": 0.0},
            {"params": [net[3].weight]},
        ]
        optimizer = make(groups)
        optimizer.add_param_group({"params": [net[3].bias], "lr": 0.3})
        train(net, optimizer, 30, torch.optim.lr_scheduler.StepLR(optimizer, 7, gamma=0.5))
    assert_equal(*nets)


def test_groups_with_a_momentum_of_their_own() -> None:
    for outer, inner in ((0.0, 0.9), (0.9, 0.0)):
        nets = [network().double() for _ in range(2)]
        for net, make in zip(nets, (optim.SGD, torch.optim.SGD), strict=True):
            groups = [
                {"params": net[1].parameters(), "momentum": inner},
                {"params": net[3].parameters()},
            ]
            train(net, make(groups, 0.05, momentum=outer), 30)
        assert_equal(*nets)


@pytest.mark.parametrize(
    ("name", "own"), [("Adam", (0.5, 0.9)), ("AdamW", (0.5, 0.9)), ("RMSprop", 0.8)]
)
def test_groups_with_decays_of_their_own(name: str, own: Any) -> None:
    nets = [network().double() for _ in range(2)]
    for net, module in zip(nets, (optim, torch.optim), strict=True):
        groups = [
            {"params": net[1].parameters(), "alpha" if name == "RMSprop" else "betas": own},
            {"params": net[3].parameters()},
        ]
        train(net, getattr(module, name)(groups, 0.01), 30)
    assert_equal(*nets)


def test_a_scheduler_that_moves_the_momentum() -> None:
    nets = [network().double() for _ in range(2)]
    for net, make in zip(nets, (optim.SGD, torch.optim.SGD), strict=True):
        optimizer = make(net.parameters(), 0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=40)
        train(net, optimizer, 40, scheduler)
    assert_equal(*nets)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_a_scheduler_that_moves_the_first_beta(name: str) -> None:
    nets = [network().double() for _ in range(2)]
    for net, module in zip(nets, (optim, torch.optim), strict=True):
        optimizer = getattr(module, name)(net.parameters(), 0.01)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=40)
        train(net, optimizer, 40, scheduler)
        assert optimizer.param_groups[0]["betas"][0] > 0.94
    assert_equal(*nets)


@pytest.mark.parametrize("rule", [rules.sgd, rules.rmsprop, rules.adam], ids=repr)
def test_a_scheduler_cannot_move_a_momentum_that_is_not_read(rule: Rule) -> None:
    optimizer = optim.RuleOptimizer(network().parameters(), rule, lr=0.01)
    with pytest.raises(ValueError, match="must support momentum or beta1"):
        torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=40)


def test_one_beta_of_a_group_alone() -> None:
    params = list(network().parameters())
    groups = [
        {"params": params[:1], "beta1": 0.5},
        {"params": params[1:2], "beta2": 0.7, "betas": (0.6, 0.8)},
        {"params": params[2:]},
    ]
    optimizer = optim.Adam(groups, betas=(0.8, 0.98))
    found = [group["betas"] for group in optimizer.param_groups]
    assert found == [(0.5, 0.98), (0.6, 0.7), (0.8, 0.98)]


@pairs
@pytest.mark.parametrize("way", ["state_dict", "saved", "deepcopy", "pickle"])
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(
    pair: tuple[Make, Make], way: str
) -> None:
    whole = network()
    train(whole, pair[0](whole.parameters()), 20)
    net = network()
    optimizer = pair[0](net.parameters())
    train(net, optimizer, 9)
    if way in ("deepcopy", "pickle"):
        both = (net, optimizer)
        net, optimizer = (
            copy.deepcopy(both) if way == "deepcopy" else pickle.loads(pickle.dumps(both))
        )
    else:
        state = optimizer.state_dict()
        if way == "saved":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        optimizer = pair[0](net.parameters())
        optimizer.load_state_dict(state)
    train(net, optimizer, 11)
    for own, other in zip(net.parameters(), whole.parameters(), strict=True):
        assert torch.equal(own, other)


@pairs
def test_parameters_without_a_gradient_stay_as_they_are(pair: tuple[Make, Make]) -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    optimizer = pair[0](net.parameters())
    net[1].weight.grad = torch.ones_like(net[1].weight)
    optimizer.step()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == (name != "1.weight")


@pairs
def test_a_closure_is_called_once_with_gradients_on(pair: tuple[Make, Make]) -> None:
    nets, losses = [network().double() for _ in pair], []
    for net, make in zip(nets, pair, strict=True):
        optimizer = make(net.parameters())

        def closure(net: nn.Module = net, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(inputs()), labels())
            loss.backward()
            return loss

        losses.append([float(optimizer.step(closure).detach()) for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert_equal(*nets)


def test_sparse_gradients_are_refused_before_anything_is_updated() -> None:
    embedding = nn.Embedding(4, 3, sparse=True)
    other = nn.Parameter(torch.ones(3))
    (embedding(torch.tensor([1, 2])) * other).sum().backward()
    for optimizer in (optim.SGD, optim.AdamW):
        with pytest.raises(ValueError, match="sparse=False"):
            optimizer([other, embedding.weight], 0.1).step()
        assert torch.equal(other, torch.ones(3))


def test_any_rule_has_a_front_end() -> None:
    nets = [network() for _ in range(2)]
    own = optim.RuleOptimizer(nets[0].parameters(), rules.momentum, lr=0.1, momentum=0.9)
    train(nets[0], own, 10)
    train(nets[1], optim.SGD(nets[1].parameters(), 0.1, momentum=0.9), 10)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("words", "make"),
    [
        ("lr must be finite and not negative", lambda p: optim.SGD(p, -0.1)),
        ("momentum must be below 1", lambda p: optim.SGD(p, 0.1, momentum=1.0)),
        ("weight_decay must be finite", lambda p: optim.AdamW(p, weight_decay=float("nan"))),
        ("beta2 must be below 1", lambda p: optim.AdamW(p, betas=(0.9, 1.0))),
        ("lr must be finite", lambda p: optim.SGD([{"params": p, "lr": -1.0}], 0.1)),
        ("beta2 must be below 1", lambda p: optim.RMSprop(p, alpha=1.0)),
        ("lr x weight_decay must be below 1", lambda p: optim.SGD(p, 1.0, weight_decay=2.0)),
        ("beta1 must be", lambda p: optim.AdamW([{"params": p, "betas": (1.0, 0.9)}], 0.1)),
    ],
)
def test_hyperparameters_out_of_range(words: str, make: Make) -> None:
    with pytest.raises(ValueError, match=words):
        make(list(network().parameters()))


def test_hyperparameters_that_do_not_exist() -> None:
    with pytest.raises(TypeError, match="dampening"):
        optim.RuleOptimizer(network().parameters(), rules.sgd, lr=0.1, dampening=0.5)


def test_a_rule_that_is_none() -> None:
    with pytest.raises(TypeError, match=r"rule must be one of train\.rules"):
        optim.RuleOptimizer(network().parameters(), torch.optim.SGD, lr=0.1)


# ---- rules that need several batches a step


def batches(seed: int, size: int = 6) -> Iterator[Tensor]:
    """Indices of batches without end, alike for equal seeds."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(len(inputs()), (size,), generator=generator)


def loss_of(net: nn.Module, index: Tensor) -> Tensor:
    return functional.cross_entropy(net(inputs()[index]), labels()[index])


@pytest.mark.parametrize("clears", [True, False])
@pytest.mark.parametrize(
    ("base", "steps"), [(rules.momentum, 3), (rules.adam, 9), (rules.adamw, 9)], ids=repr
)
def test_svag_by_closure_is_torch_with_combined_gradients(
    base: Rule, steps: int, clears: bool
) -> None:
    """At l = 3, against `torch.optim` with the hyperparameters scaled by hand."""
    ours, theirs = network().double(), network().double()
    finer, decay, forget = 3, 0.05, 1 - 1 / 9
    rule = rules.svag(base, finer)
    given = {"momentum": 0.6} if base is rules.momentum else {"beta1": 0.0, "beta2": 0.9}
    own = optim.RuleOptimizer(ours.parameters(), rule, lr=0.03, weight_decay=decay, **given)
    adaptive: Any = {"betas": (forget, 1 - 0.1 / 9), "eps": 3e-8}
    params = list(theirs.parameters())
    other = {
        "momentum": lambda: torch.optim.SGD(params, 0.01, momentum=0.6, weight_decay=decay),
        "adam": lambda: torch.optim.Adam(params, 0.01, weight_decay=decay, **adaptive),
        "adamw": lambda: torch.optim.AdamW(params, 0.01, weight_decay=decay / finer, **adaptive),
    }[base.name]()
    spread = (2 * steps - 1) ** 0.5
    first, second = batches(0), batches(0)
    for _ in range(40):

        def closure() -> Tensor:
            if clears:
                own.zero_grad()
            loss = loss_of(ours, next(first))
            loss.backward()
            return loss

        found = own.step(closure)
        other.zero_grad()
        loss = (1 + spread) / 2 * loss_of(theirs, next(second))
        loss = loss + (1 - spread) / 2 * loss_of(theirs, next(second))
        loss.backward()
        other.step()
        assert float(found.detach()) == pytest.approx(float(loss.detach()), rel=1e-9, abs=1e-9)
    assert_equal(ours, theirs)


def test_svag_without_a_closure() -> None:
    net = network().double()
    optimizer = optim.RuleOptimizer(net.parameters(), rules.svag(rules.sgd, 2), lr=0.1)
    loss_of(net, torch.arange(4)).backward()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="2 independent batches a step: call step"):
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_parameters_that_one_of_the_batches_does_not_reach() -> None:
    reached, seldom, never = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = optim.RuleOptimizer(
        [reached, seldom, never], rules.svag(rules.sgd, 2), lr=0.2, weight_decay=0.5
    )
    turns = iter((True, False))

    def closure() -> Tensor:
        loss = (reached * seldom).sum() if next(turns) else reached.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    shrunk, weight = 1 - 0.1 * 0.5, (1 + 3**0.5) / 2
    torch.testing.assert_close(reached.detach(), torch.full((2,), shrunk - 0.1))
    torch.testing.assert_close(seldom.detach(), torch.full((2,), shrunk - 0.1 * weight))
    assert torch.equal(never.detach(), torch.ones(2))


# ---- what is refused before anything is updated


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("named", [False, True])
def test_gradients_that_are_not_finite(value: float, named: bool) -> None:
    net = network().double()
    given = net.named_parameters() if named else net.parameters()
    optimizer = optim.Adam(given)
    loss_of(net, torch.arange(4)).backward()
    net[3].weight.grad[1, 2] = value
    before = copy.deepcopy(net.state_dict())
    name = "3.weight" if named else "parameter 2 of group 0"
    with pytest.raises(ValueError, match=f"the gradient of {name} holds NaN or infinite"):
        optimizer.step()
    assert all(torch.equal(own, before[key]) for key, own in net.state_dict().items())


def test_a_state_of_another_model_or_rule() -> None:
    net = network()
    optimizer = optim.Adam(net.parameters())
    train(net, optimizer, 3)
    kept = copy.deepcopy(optimizer.state_dict())
    generator = torch.Generator().manual_seed(5)
    wider = mlp((FEATURES, 9, CLASSES), activation="tanh", generator=generator)
    other = optim.Adam(wider.parameters())
    train(wider, other, 3)
    with pytest.raises(
        ValueError, match=r"parameter 0 of group 0 has shape \(8, 5\), but its state"
    ):
        optimizer.load_state_dict(other.state_dict())
    heavy = optim.SGD(net.parameters(), 0.1, momentum=0.9)
    train(net, heavy, 3)
    with pytest.raises(ValueError, match=r"holds velocity, but rules.adam keeps"):
        optimizer.load_state_dict(heavy.state_dict())
    for own, before in zip(
        optimizer.state_dict()["state"].values(), kept["state"].values(), strict=True
    ):
        assert all(torch.equal(value, before[key]) for key, value in own.items())
    train(net, optimizer, 1)


@pytest.mark.parametrize(
    ("words", "saved"),
    [
        ("group 0 of the state does not say eps, betas", lambda p: optim.SGD(p, 0.1)),
        ("group 0 of the state does not say eps, betas", lambda p: torch.optim.SGD(p, 0.1)),
        ("holds exp_avg, exp_avg_sq, step, but rules.adam keeps", torch.optim.Adam),
        ("amsgrad=True is not what rules.adam does", lambda p: torch.optim.Adam(p, amsgrad=True)),
        ("the state is of decoupled weight decay", torch.optim.AdamW),
        ("lr must be finite", optim.Adam),
    ],
)
def test_a_state_of_other_hyperparameters(words: str, saved: Make) -> None:
    net = network()
    other = saved(net.parameters())
    if words.startswith("holds"):
        train(net, other, 1)
    state = other.state_dict()
    if words.startswith("lr"):
        state["param_groups"][0]["lr"] = -1.0
    optimizer = optim.Adam(net.parameters(), 0.01)
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.01
    train(net, optimizer, 1)


def test_a_state_with_a_momentum_that_is_not_read() -> None:
    params = list(network().parameters())
    state = torch.optim.RMSprop(params, momentum=0.9).state_dict()
    with pytest.raises(ValueError, match=r"momentum=0.9 is not what rules.rmsprop does"):
        optim.RMSprop(params).load_state_dict(state)


def test_hyperparameters_of_a_torch_optimizer_before_its_first_step() -> None:
    nets = [network().double() for _ in range(2)]
    kept = torch.optim.AdamW(nets[0].parameters(), 0.02, (0.7, 0.9), weight_decay=0.3)
    own = optim.AdamW(nets[1].parameters())
    own.load_state_dict(kept.state_dict())
    train(nets[0], kept, 20)
    train(nets[1], own, 20)
    assert_equal(*nets)


@pytest.mark.parametrize(
    ("words", "make"),
    [
        (
            "rules.sgd does not read momentum; it reads lr, weight_decay",
            lambda p: optim.RuleOptimizer(p, rules.sgd, lr=0.1, momentum=0.9),
        ),
        (
            "does not read beta1",
            lambda p: optim.RuleOptimizer(p, rules.unit_norm(rules.rmsprop), lr=0.1, beta1=0.9),
        ),
        ("does not read momentum", lambda p: optim.Adam([{"params": p, "momentum": 0.9}])),
        ("nesterov=True is not", lambda p: optim.SGD([{"params": p, "nesterov": True}], 0.1)),
    ],
)
def test_hyperparameters_that_would_be_ignored(words: str, make: Make) -> None:
    with pytest.raises(ValueError, match=words):
        make(network().parameters())


def test_a_scheduler_that_leaves_the_range() -> None:
    net = network().double()
    groups = [{"params": net[1].parameters()}, {"params": net[3].parameters()}]
    optimizer = optim.SGD(groups, 0.1, weight_decay=0.5)
    optimizer.param_groups[1]["lr"] = 3.0
    loss_of(net, torch.arange(4)).backward()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"lr x weight_decay must be below 1, got 3.0 x 0.5"):
        optimizer.step()
    assert all(torch.equal(own, before[key]) for key, own in net.state_dict().items())


def test_unit_norm_as_an_optimizer() -> None:
    net = network().double()
    rule = rules.unit_norm(rules.momentum)
    train(net, optim.RuleOptimizer(net.parameters(), rule, lr=0.1, momentum=0.9), 10)
    for param in net.parameters():
        assert (abs(float(param.detach().norm()) - 1) < 1e-12) == (param.ndim == 2)
