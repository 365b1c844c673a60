"""Jobs moved to another batch size: every form of configuration, and running optimizers."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

from undertow import apply, predict
from undertow.train import optim, rules

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=1e-3, alpha=0.97, weight_decay=1e-3),
    "adam": lambda params: torch.optim.Adam(params, lr=1e-3, betas=(0.95, 0.99)),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-3, betas=(0.95, 0.99)),
    "decoupled": lambda params: torch.optim.Adam(
        params, lr=1e-3, betas=(0.95, 0.99), weight_decay=0.1, decoupled_weight_decay=True
    ),
    "own adamw": lambda params: optim.AdamW(params, lr=1e-3, betas=(0.95, 0.99)),
    "own sgd": lambda params: optim.SGD(params, lr=0.1, momentum=0.9),
}


def running(name: str, steps: int = 5) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(4, 3)
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def facts(optimizer: torch.optim.Optimizer) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    groups = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    return copy.deepcopy(groups), copy.deepcopy(list(optimizer.state.values()))


def close(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, torch.Tensor):
        return torch.allclose(one, other, rtol=1e-5)
    if isinstance(one, float):
        return one == pytest.approx(other)
    return bool(one == other)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_there_and_back_leaves_an_optimizer_as_it_was(name: str) -> None:
    _, optimizer = running(name)
    before = facts(optimizer)
    apply.rescale(optimizer, from_batch=8, to_batch=32).apply()
    assert not close(facts(optimizer), before)
    apply.rescale(optimizer, from_batch=32, to_batch=8).apply()
    assert close(facts(optimizer), before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_changes_until_it_is_applied(name: str) -> None:
    _, optimizer = running(name)
    before = facts(optimizer)
    found = apply.rescale(optimizer, from_batch=8, to_batch=32)
    assert close(facts(optimizer), before)
    found.apply()
    for group, new in zip(optimizer.param_groups, found.hyper, strict=True):
        assert all(group[key] == value for key, value in new.items())
        assert group["lr"] == pytest.approx((4 if "sgd" in name else 2) * before[0][0]["lr"])


@pytest.mark.parametrize("name", ["rmsprop", "adam", "adamw", "own adamw"])
def test_mean_squares_follow_the_noise(name: str) -> None:
    _, optimizer = running(name)
    old = copy.deepcopy(list(optimizer.state.values()))
    said = apply.rescale(optimizer, from_batch=8, to_batch=32).apply()
    assert any("/ k" in line for line in said)
    for before, after in zip(old, optimizer.state.values(), strict=True):
        key = next(k for k in ("exp_avg_sq", "square_avg", "square") if k in before)
        assert torch.allclose(after[key], before[key] / 4)


def test_adams_averages_keep_their_age() -> None:
    _, optimizer = running("adam", steps=30)
    apply.rescale(optimizer, from_batch=8, to_batch=32).apply()
    step = float(next(iter(optimizer.state.values()))["step"])
    new = optimizer.param_groups[0]["betas"][1]
    assert 1 - new**step == pytest.approx(1 - 0.99**30, rel=1e-5)
    optimizer.step()  # a step count that is not whole is no obstacle


def test_groups_are_rescaled_each() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(
        [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.01}], lr=1.0
    )
    found = apply.rescale(optimizer, from_batch=8, to_batch=16)
    found.apply()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.02])
    assert "group 1" in found.text()


def test_a_rate_in_a_tensor_stays_that_tensor() -> None:
    model = nn.Linear(2, 2)
    rate = torch.tensor(0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.5, 0.9))
    apply.rescale(optimizer, from_batch=8, to_batch=4).apply()
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.5 / 2**0.5)


def test_a_dictionary_gives_what_the_closed_form_gives() -> None:
    hyper = {"lr": 3e-4, "betas": (0.9, 0.999), "weight_decay": 0.1, "steps": 1000}
    expected = predict.rescale(hyper, from_batch=64, to_batch=256, optimizer="adamw")
    for source in (
        hyper,
        {"optimizer": "adamw", **hyper},
        {"optimizer": "torch.optim.AdamW", **hyper},
    ):
        found = apply.rescale(source, from_batch=64, to_batch=256, optimizer="adamw")
        named = {name: value for name, value in found.hyper.items() if name in expected.hyper}
        assert named == expected.hyper
        assert found.hyper.get("optimizer") == source.get("optimizer")


def test_text_and_json_say_every_change() -> None:
    found = apply.rescale(
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "steps": 1000},
        from_batch=32,
        to_batch=128,
        optimizer="sgd",
        noise_scale=50.0,
        sharpness=20.0,
    )
    text = found.text()
    assert max(map(len, text.splitlines())) <= 80
    assert "lr' = k lr" in text
    assert "weight_decay  0.0005 stays" in text
    assert f"{len(found.warnings)} warnings" in text
    assert all(warning in " ".join(text.split()) for warning in found.warnings)
    content = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert [change["name"] for change in content["changes"]] == list(found.hyper)


def test_what_is_not_known_is_said() -> None:
    model = nn.Linear(2, 2)
    adagrad = apply.rescale(torch.optim.Adagrad(model.parameters()), from_batch=8, to_batch=16)
    assert adagrad.groups[0].hyper["lr"] is None
    with pytest.raises(ValueError, match="no rule is known for the rate of Adagrad"):
        adagrad.apply()
    with pytest.raises(ValueError, match=r"optimizer 'lino': .*did you mean lion"):
        apply.rescale({"lr": 0.1}, from_batch=8, to_batch=16, optimizer="lino")
    with pytest.raises(ValueError, match="optimizer must name the update rule"):
        apply.rescale({"lr": 0.1}, from_batch=8, to_batch=16)
    with pytest.raises(ValueError, match="from_batch is needed"):
        apply.rescale({"lr": 0.1}, to_batch=16, optimizer="sgd")
    with pytest.raises(TypeError, match=r"must be an optimizer of torch\.optim, a dictionary"):
        apply.rescale(3, from_batch=8, to_batch=16)
    with pytest.raises(TypeError, match="apply needs an optimizer"):
        apply.rescale({"lr": 0.1}, from_batch=8, to_batch=16, optimizer="sgd").apply()
    _, optimizer = running("adam")
    with pytest.raises(ValueError, match="largest k is just under 20"):
        apply.rescale(optimizer, from_batch=8, to_batch=512, betas="sde")


@pytest.mark.parametrize("name", ["adam", "own adamw", "rmsprop"])
def test_what_was_applied_is_not_applied_again(name: str) -> None:
    _, optimizer = running(name)
    found = apply.rescale(optimizer, from_batch=8, to_batch=32)
    found.apply()
    once = facts(optimizer)
    with pytest.raises(ValueError, match="call rescale again"):
        found.apply()
    assert close(facts(optimizer), once)


def test_centred_rmsprop_keeps_the_mean_gradient() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.RMSprop([weight], lr=1e-3, alpha=0.9, centered=True)
    for step in range(200):
        weight.grad = torch.tensor([1.0, 2.0, 3.0]) + 0.1 * (-1) ** step
        optimizer.step()
    state = optimizer.state[weight]
    noise = state["square_avg"] - state["grad_avg"].square()
    apply.rescale(optimizer, from_batch=8, to_batch=32).apply()
    assert torch.allclose(state["square_avg"] - state["grad_avg"].square(), noise / 4, rtol=1e-2)
    optimizer.step()
    assert bool(weight.isfinite().all())


def test_a_step_count_stays_the_tensor_that_it_is() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=True, amsgrad=True)
    model(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    before = [state["step"] for state in optimizer.state.values()]
    largest = [state["max_exp_avg_sq"].clone() for state in optimizer.state.values()]
    apply.rescale(optimizer, from_batch=8, to_batch=16).apply()
    after = [state["step"] for state in optimizer.state.values()]
    assert all(one is other for one, other in zip(before, after, strict=True))
    for state, old in zip(optimizer.state.values(), largest, strict=True):
        assert torch.allclose(state["max_exp_avg_sq"], old / 2)


def test_a_warm_up_from_zero_moves_its_base_rate() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.5))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    found = apply.rescale(optimizer, from_batch=8, to_batch=16, scheduler=False)
    assert found.hyper[0]["initial_lr"] == pytest.approx(1.0)
    json.dumps(found.as_json(), allow_nan=False)
    found.apply()
    group = optimizer.param_groups[0]
    assert (float(group["lr"]), float(group["initial_lr"])) == (0.0, pytest.approx(1.0))


def test_wrapped_rules_are_refused_by_name() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = optim.RuleOptimizer([weight], rules.svag(rules.adam, 2), lr=1e-3)
    with pytest.raises(TypeError, match=r"svag\(adam, 2\).*wrapped rule"):
        apply.rescale(optimizer, from_batch=8, to_batch=16)


def test_betas_in_tensors_stay_those_tensors() -> None:
    betas = (torch.tensor(0.8), torch.tensor(0.9))
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))], lr=1e-3)
    optimizer.param_groups[0]["betas"] = betas
    apply.rescale(optimizer, from_batch=8, to_batch=16).apply()
    assert all(
        one is other for one, other in zip(optimizer.param_groups[0]["betas"], betas, strict=True)
    )
    assert float(betas[0]) == pytest.approx(0.64)
