"""Sanity checks: what they score is what the maps they name would score."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from masked import CLASSES, SIDE, draw, images, net
from torch import Tensor, nn

from undertow import lab
from undertow.measure import saliency

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def test_maps_of_another_label_are_those_of_the_next() -> None:
    maps = draw(1, 4, CLASSES, SIDE, SIDE)
    found = saliency.sanity_checks(net(), images(), {"m": maps})
    rolled = saliency.evaluate(net(), images(), {"m": maps.roll(1, 1)}).curves["m"]
    assert torch.equal(found.curves["m", "other label"].values, rolled.values)
    assert found.likeness["m", "own"] == pytest.approx(1)
    assert abs(found.likeness["m", "other label"]) < 0.2
    assert "cannot be found in another network" in found.skipped["m", "shuffled weights"]


def test_shuffled_weights_are_the_same_numbers_in_another_order() -> None:
    model, seen = net(), {}

    def method(given: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        weight = given[0].weight
        assert torch.equal(weight.flatten().sort().values, seen["weight"])
        return inputs * weight.flatten()[0]

    seen["weight"] = model[0].weight.detach().flatten().sort().values
    found = saliency.sanity_checks(model, images(), {"m": method})
    assert set(found.curves) == {("m", "own"), ("m", "other label"), ("m", "shuffled weights")}


def test_a_map_that_knows_only_the_input_is_alike_for_shuffled_weights() -> None:
    methods: dict[str, Any] = {
        "input": lambda model, inputs, labels: inputs,
        "gradient": saliency.gradient_x_input,
    }
    found = saliency.sanity_checks(net(), images(), methods)
    assert found.likeness["input", "shuffled weights"] == pytest.approx(1)
    assert found.likeness["input", "other label"] == pytest.approx(1)
    assert found.likeness["gradient", "shuffled weights"] < 0.9


def test_who_is_beaten_by_a_random_map() -> None:
    """The reversed gradient keeps the worst pixels, of which the least complete map is made."""
    methods: dict[str, Any] = {
        "best": saliency.gradient_x_input,
        "worst": lambda *given: -saliency.gradient_x_input(*given),
    }
    found = saliency.sanity_checks(net(), images(24), methods, background=0.0)
    assert found.beaten("worst") == ["completeness"]
    assert "completeness" not in found.beaten("best")
    effect = found.against_random("best")["completeness"]
    own, random = found.curves["best", "own"], found.controls["random map"]
    expected = own.completeness.own.value - random.completeness.own.value
    assert effect.value == pytest.approx(expected)


def test_the_table_and_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    methods: dict[str, Any] = {"gradient": saliency.gradient_x_input, "map": images()[:, 0]}
    found = saliency.sanity_checks(net(), images(), methods, progress=True)
    assert "check: 2 methods" in capsys.readouterr().err
    assert found.methods == ["gradient", "map"]
    assert found.table["maps"].to_list() == [
        *("own", "other label", "shuffled weights", "own", "control", "control")
    ]
    said = repr(found)
    assert "constant map" in said
    assert "map, other label: its maps are the same for all labels" in said.replace("\n", " ")
    assert found.controls["constant map"].constant == 4
    assert found.as_dict()["controls"] is found.controls
    assert lab.as_page(found.document())


def test_over_networks() -> None:
    networks = [net(), net(seed=7), net(seed=30)]
    found = saliency.sanity_checks(
        networks, images(), {"g": saliency.gradient_x_input}, unit="network"
    )
    assert found.against_random("g")["soundness"].count == 3
