"""Rules side by side: what each holds fixed, which speak of whom, and how they are asked for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow import predict

ADAMW = {"lr": 3e-4, "weight_decay": 0.1, "steps": 4_000}


def beside(
    optimizer: str, hyper: dict[str, float], **more: object
) -> dict[str, predict.Alternative]:
    found = predict.rescale(hyper, from_batch=16, to_batch=64, optimizer=optimizer, **more)
    return {one.rule.name: one for one in found.alternatives}


@given(st.integers(1, 4096), st.integers(1, 4096), st.sampled_from(list(predict.FAMILIES)))
def test_every_rule_keeps_the_decay_over_a_run_where_it_is_decoupled(
    old: int, new: int, optimizer: str
) -> None:
    """B / (lr weight_decay D), the timescale of 2405.13698, whatever the rule says of the rate."""
    family = predict.FAMILIES[optimizer]
    if family.decay != "decoupled" or optimizer == "lamb":
        return
    hyper = {"lr": 1e-5, "weight_decay": 1e-3}
    found = predict.rescale(
        hyper,
        from_batch=old,
        to_batch=new,
        optimizer=optimizer,
        noise_scale=300,
    )
    for one in found.alternatives:
        if one.lr is not None:
            assert one.weight_decay is not None
            assert one.lr * one.weight_decay * old / new == pytest.approx(1e-8)


def test_what_each_says_of_adamw() -> None:
    found = beside("adamw", ADAMW, noise_scale=1_000)
    said = {name: (one.lr, one.weight_decay) for name, one in found.items()}
    assert said["square root"] == pytest.approx((6e-4, 0.2))
    assert said["linear"] == pytest.approx((1.2e-3, 0.1))
    assert said["fixed rate"] == pytest.approx((3e-4, 0.4))
    assert said["timescale"] == said["square root"]
    assert said["surge"][0] == pytest.approx(6e-4 * 1_016 / 1_064)
    assert said["batch warm-up"] == (None, None)
    assert [name for name, one in found.items() if one.chosen] == ["square root"]
    assert all(one.rule.source and one.rule.range for one in found.values())


def test_which_speak_of_whom() -> None:
    assert list(beside("sgd", {"lr": 0.1})) == [
        *("linear", "square root", "noise scale", "batch warm-up"),
    ]
    assert "fixed rate" not in beside("adam", {"lr": 0.1})
    assert "surge" in beside("lion", {"lr": 0.1})
    assert list(beside("unknown", {"lr": 0.1})) == ["timescale", "batch warm-up"]
    assert beside("sgd", {"lr": 0.1})["noise scale"].needs == "noise_scale"
    assert beside("sgd", {"lr": 0.1})["noise scale"].lr is None


@pytest.mark.parametrize("name", predict.RULES)
def test_a_rule_that_is_asked_for_is_the_one_that_stands_beside(name: str) -> None:
    for optimizer, hyper in (("adamw", ADAMW), ("sgd", {"lr": 0.1, "weight_decay": 1e-4})):
        there = beside(optimizer, hyper, noise_scale=100)
        if name not in there or name == "batch warm-up":
            with pytest.raises(ValueError, match=f"rule '{name}'"):
                beside(optimizer, hyper, noise_scale=100, rule=name)
            continue
        for spelled in (name, name.replace(" ", "-"), name.upper().replace(" ", "_")):
            found = predict.rescale(
                hyper,
                from_batch=16,
                to_batch=64,
                optimizer=optimizer,
                noise_scale=100,
                rule=spelled,
            )
            assert found.rule == name
            assert found.hyper["lr"] == there[name].lr
            assert found.hyper["weight_decay"] == there[name].weight_decay


def test_a_rule_that_cannot_be_followed_says_so() -> None:
    for rule, said in (
        ("cubic", "rule must be one of linear, square root"),
        ("surge", "rule 'surge' needs noise_scale"),
        ("noise scale", "says nothing of adamw; there are square root, linear"),
        ("batch warm-up", "moves the batch in the course of a run"),
    ):
        with pytest.raises(ValueError, match=said):
            predict.rescale(ADAMW, from_batch=16, to_batch=64, optimizer="adamw", rule=rule)
    with pytest.raises(TypeError, match="rule must be a name, got 3"):
        predict.rescale(ADAMW, from_batch=16, to_batch=64, optimizer="adamw", rule=3)


def test_how_far_they_are_apart_is_said() -> None:
    found = predict.rescale(ADAMW, from_batch=16, to_batch=64, optimizer="adamw")
    assert "between 0.0003 (fixed rate) and 0.0012 (linear), a factor 4" in found.disagreement
    assert "--verify" in found.disagreement
    same = predict.rescale(ADAMW, from_batch=16, to_batch=16, optimizer="adamw")
    assert same.disagreement == ""


def test_above_the_noise_scale_the_surge_falls_below_the_present_rate() -> None:
    found = beside("adam", {"lr": 1e-3}, noise_scale=16)
    assert found["surge"].lr == pytest.approx(1e-3 * 2 * 32 / 80)
    assert found["square root"].lr == pytest.approx(2e-3)
    assert math.isclose(predict.best_lr(16, 16, update="sign"), 1)
