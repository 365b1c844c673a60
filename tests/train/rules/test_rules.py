"""Update rules as functions: pure, elementwise along the ensemble axis, with their closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_runs import draw

from undertow.train import rules
from undertow.train.rules import Hyper, Rule, State

RULES = (
    rules.sgd,
    rules.momentum,
    rules.ema_momentum,
    rules.rmsprop,
    rules.adam,
    rules.adamw,
    rules.adaptive(eps="inside", bias_correction=False),
    rules.adaptive(mean=False, decay="decoupled"),
)
SHAPES = ((3, 4), (5,), ())


def tensors(seed: int, *leading: int) -> list[Tensor]:
    return [draw(seed + i, *leading, *shape) for i, shape in enumerate(SHAPES)]


def walk(
    rule: Rule, hyper: Hyper, params: list[Tensor], grads: list[list[Tensor]], *, inplace: bool
) -> tuple[list[Tensor], State]:
    state = rule.init(params)
    for own in grads:
        params, state = rule.update(params, own, state, hyper, inplace=inplace)
    return params, state


HYPER = Hyper(0.1, 0.02, 0.9, beta1=0.8, beta2=0.95, eps=1e-6)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_an_update_leaves_its_arguments_alone(rule: Rule) -> None:
    params, grads = tensors(0), tensors(10)
    _, state = rule.update(params, grads, rule.init(params), HYPER)
    given_tensors = [*params, *grads, *(own for values in state.values() for own in values)]
    before = [value.clone() for value in given_tensors]
    rule.update(params, grads, state, HYPER)
    assert all(torch.equal(a, b) for a, b in zip(before, given_tensors, strict=True))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_in_place_gives_the_same_in_the_memory_of_the_parameters(rule: Rule) -> None:
    grads = [tensors(10 * step) for step in range(1, 6)]
    expected, state = walk(rule, HYPER, tensors(0), grads, inplace=False)
    start = tensors(0)
    found, found_state = walk(rule, HYPER, start, grads, inplace=True)
    for a, b, own in zip(expected, found, start, strict=True):
        assert torch.equal(a, b)
        assert b.data_ptr() == own.data_ptr()
    for key, values in state.items():
        assert all(torch.equal(a, b) for a, b in zip(values, found_state[key], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), members=st.integers(1, 4))
def test_an_ensemble_is_its_members_one_by_one(
    rule: Rule, dtype: torch.dtype, seed: int, members: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def values(low: float, high: float) -> Tensor:
        drawn = torch.rand(members, generator=generator, dtype=torch.float64)
        return low + (high - low) * drawn

    hyper = Hyper(
        values(1e-4, 0.3),
        values(0, 0.5),
        values(0, 0.99),
        beta1=values(0, 0.99),
        beta2=values(0.9, 0.9999),
        eps=values(1e-8, 1e-3),
    )
    grads = [[own.to(dtype) for own in tensors(seed + 10 * step, members)] for step in range(1, 6)]
    start = [own.to(dtype) for own in tensors(seed, members)]
    together, _ = walk(rule, hyper, start, grads, inplace=False)
    for e in range(members):
        own_hyper = Hyper(**{name: float(value[e]) for name, value in vars(hyper).items()})
        own_grads = [[grad[e] for grad in own] for own in grads]
        alone, _ = walk(rule, own_hyper, [p[e] for p in start], own_grads, inplace=False)
        rtol = 1e-12 if dtype == torch.float64 else 1e-5
        for whole, part in zip(together, alone, strict=True):
            assert part.dtype == whole.dtype == dtype
            torch.testing.assert_close(whole[e], part, rtol=rtol, atol=rtol)


@given(lr=st.floats(1e-6, 0.9), weight_decay=st.floats(0, 1), steps=st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_without_gradients_decoupled_decay_shrinks_by_a_power(
    lr: float, weight_decay: float, steps: int
) -> None:
    start = tensors(0)
    nothing = [[torch.zeros_like(own) for own in start]] * steps
    for rule in (rules.sgd, rules.adamw, rules.adaptive(mean=False, decay="decoupled")):
        end, _ = walk(rule, Hyper(lr, weight_decay), start, nothing, inplace=False)
        for before, after in zip(start, end, strict=True):
            kept = before * (1 - lr * weight_decay) ** steps
            torch.testing.assert_close(after, kept, rtol=1e-11, atol=0)


@pytest.mark.parametrize("per_member", [False, True])
def test_a_small_decay_keeps_its_rate_in_float32(per_member: bool) -> None:
    """A factor 1 - 1e-6 rounded to float32 would decay 5% too fast."""
    start = draw(0, 1, 2000).abs().add(0.1).float()
    lr, weight_decay = 1e-3, 1e-3
    hyper = Hyper(lr, weight_decay)
    if per_member:
        double = {"dtype": torch.float64}
        hyper = Hyper(torch.tensor([lr], **double), torch.tensor([weight_decay], **double))
    steps = 3000
    end, _ = walk(
        rules.sgd, hyper, [start.clone()], [[torch.zeros_like(start)]] * steps, inplace=True
    )
    rates = -(end[0].double() / start.double()).log() / steps
    assert float(rates.mean()) == pytest.approx(lr * weight_decay, rel=0.01)


def test_momentum_without_gradients_is_a_linear_recursion() -> None:
    """(w, v) is multiplied by a 2 x 2 matrix at each step."""
    lr, decay, keep, steps = 0.1, 0.3, 0.8, 25
    start = [draw(0, 7)]
    hyper = Hyper(lr, decay, keep)
    end, state = walk(
        rules.momentum, hyper, start, [[torch.zeros(7).double()]] * steps, inplace=False
    )
    matrix = torch.tensor([[1 - lr * decay, -lr * keep], [decay, keep]], dtype=torch.float64)
    power = torch.linalg.matrix_power(matrix, steps)
    torch.testing.assert_close(end[0], power[0, 0] * start[0], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(state["velocity"][0], power[1, 0] * start[0], rtol=1e-11, atol=1e-13)


def test_momentum_zero_is_sgd() -> None:
    grads = [tensors(10 * step) for step in range(1, 6)]
    plain, _ = walk(rules.sgd, Hyper(0.1, 0.2), tensors(0), grads, inplace=False)
    heavy, _ = walk(rules.momentum, Hyper(0.1, 0.2), tensors(0), grads, inplace=False)
    for a, b in zip(plain, heavy, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_mean_of_gradients_is_heavy_ball_at_a_smaller_rate() -> None:
    """The papers' form at lr is PyTorch's at lr (1 - momentum), weight decay included."""
    grads = [tensors(10 * step) for step in range(1, 30)]
    lr, keep = 0.3, 0.8
    mean, _ = walk(rules.ema_momentum, Hyper(lr, 0.2, keep), tensors(0), grads, inplace=False)
    hyper = Hyper(lr * (1 - keep), 0.2, keep)
    heavy, _ = walk(rules.momentum, hyper, tensors(0), grads, inplace=False)
    for a, b in zip(mean, heavy, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
@pytest.mark.parametrize("eps", ["outside", "inside"])
@pytest.mark.parametrize("mean", [True, False])
def test_a_constant_gradient_moves_adaptive_rules_by_the_learning_rate(
    mean: bool, eps: Any, decay: Any
) -> None:
    """Bias-corrected, both means are the gradient itself: steps are lr g over its own root."""
    grad, lr, small = draw(1, 6), 0.01, 1e-3
    rule = rules.adaptive(mean=mean, eps=eps, decay=decay)
    end, state = walk(rule, Hyper(lr, eps=small), [draw(0, 6)], [[grad]] * 30, inplace=False)
    root = grad.abs() + small if eps == "outside" else (grad.square() + small).sqrt()
    torch.testing.assert_close(end[0], draw(0, 6) - 30 * lr * grad / root, rtol=1e-11, atol=1e-13)
    assert float(state["step"][0]) == 30


@pytest.mark.parametrize("eps", ["outside", "inside"])
@pytest.mark.parametrize("mean", [True, False])
def test_without_bias_correction_means_start_from_zero(mean: bool, eps: Any) -> None:
    """A constant gradient g: after t steps the means are (1 - beta^t) g and (1 - beta^t) g^2."""
    grad, start = draw(1, 6), draw(0, 6)
    hyper = Hyper(0.01, beta1=0.7, beta2=0.9, eps=1e-3)
    rule = rules.adaptive(mean=mean, eps=eps, bias_correction=False)
    end, _ = walk(rule, hyper, [start], [[grad]] * 12, inplace=False)
    expected = start.clone()
    for step in range(1, 13):
        numerator = (1 - 0.7**step) * grad if mean else grad
        square = (1 - 0.9**step) * grad.square()
        root = square.sqrt() + 1e-3 if eps == "outside" else (square + 1e-3).sqrt()
        expected -= 0.01 * numerator / root
    torch.testing.assert_close(end[0], expected, rtol=1e-11, atol=1e-13)


def test_named_rules_are_choices_of_one_recursion() -> None:
    grads = [tensors(10 * step) for step in range(1, 6)]
    for named, made in (
        (rules.rmsprop, rules.adaptive(mean=False, bias_correction=False)),
        (rules.adam, rules.adaptive()),
        (rules.adamw, rules.adaptive(decay="decoupled")),
    ):
        assert named.scaling == made.scaling
        ends = [walk(rule, HYPER, tensors(0), grads, inplace=False)[0] for rule in (named, made)]
        assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_place_that_eps_cannot_have() -> None:
    with pytest.raises(ValueError, match="eps must be outside or inside, got 1e-08"):
        rules.adaptive(eps=1e-8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="decay must be coupled or decoupled, got 'l2'"):
        rules.adaptive(decay="l2")  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_gradients_and_states_of_other_parameters(rule: Rule) -> None:
    params, grads = tensors(0), tensors(10)
    state = rule.init(params)
    with pytest.raises(
        ValueError, match=r"parameter 1 has shape \(5,\), but its gradient has \(1,"
    ):
        rule.update(params, [grads[0], grads[1][:1], grads[2]], state, HYPER)
    with pytest.raises(ValueError, match="3 parameters were given, but gradient for 2"):
        rule.update(params, grads[:2], state, HYPER)
    for name, values in state.items():
        if name != "step":
            other = state | {name: [values[0][:1], *values[1:]]}
            with pytest.raises(ValueError, match=f"parameter 0 has shape .*state '{name}' has"):
                rule.update(params, grads, other, HYPER)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_only_what_a_rule_reads_matters(rule: Rule) -> None:
    usual = {"weight_decay": 0.1, "momentum": 0.5, "beta1": 0.5, "beta2": 0.5, "eps": 0.1}
    params = [torch.tensor([[1.0, -2.0]], dtype=torch.float64)]

    def after(**other: float) -> Tensor:
        own, state = params, rule.init(params)
        for scale in (1, 3):
            grads = [scale * params[0] + 1]
            own, state = rule.update(own, grads, state, Hyper(**{"lr": 0.1, **usual, **other}))
        return own[0]

    for name in ("lr", *usual):
        assert torch.equal(after(), after(**{name: 0.3})) == (name not in rule.reads)


@pytest.mark.parametrize("rule", [rules.rmsprop, rules.adam], ids=repr)
def test_complex_parameters_have_no_square(rule: Rule) -> None:
    with pytest.raises(ValueError, match="view_as_real"):
        rule.init([torch.ones(2, dtype=torch.complex64)])


def test_a_diverged_neighbour_stays_a_neighbour() -> None:
    for rule in RULES:
        params, grads = [draw(0, 3, 4)], [draw(1, 3, 4)]
        grads[0][1] = math.inf
        new, _ = rule.update(params, grads, rule.init(params), HYPER)
        assert torch.isfinite(new[0]).all(1).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("lr must be finite and not negative, got -1", {"lr": -1.0}),
        ("lr must be finite", {"lr": math.nan}),
        ("lr must be finite", {"lr": math.inf}),
        ("lr must be finite", {"lr": torch.tensor([0.1, -0.1])}),
        ("lr must be finite", {"lr": torch.tensor([0.1, math.nan])}),
        ("weight_decay must be finite", {"weight_decay": -1e-9}),
        ("momentum must be below 1", {"momentum": 1.0}),
        ("beta2 must be below 1", {"beta2": torch.tensor([0.9, 1.5])}),
        ("eps must be finite", {"eps": -1e-8}),
        ("lr x weight_decay must be below 1, got 0.1 x 10", {"weight_decay": 10.0}),
        ("lr x weight_decay must be below 1", {"weight_decay": torch.tensor([0.1, 20.0])}),
    ],
)
def test_hyperparameters_out_of_range(words: str, values: dict[str, float | Tensor]) -> None:
    with pytest.raises(ValueError, match=words):
        Hyper(**{"lr": 0.1} | values)


def test_a_rule_says_its_name() -> None:
    assert [repr(rule) for rule in RULES] == [
        "rules.sgd",
        "rules.momentum",
        "rules.ema_momentum",
        "rules.rmsprop",
        "rules.adam",
        "rules.adamw",
        "rules.adaptive(bias_correction=False, eps='inside')",
        "rules.adaptive(mean=False, decay='decoupled')",
    ]
