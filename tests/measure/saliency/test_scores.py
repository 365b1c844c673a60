"""Completeness and soundness: the slow loop, closed forms, ties, invariances and intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from masked import CLASSES, SIDE, draw, images, linear, net, slow_scores
from torch import Tensor, nn

from undertow import lab
from undertow.measure import saliency
from undertow.measure.saliency import _bench

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def maps(count: int = 4, seed: int = 5) -> Tensor:
    return draw(seed, count, CLASSES, SIDE, SIDE)


def curves(model: nn.Module, x: Tensor, given: Tensor, **options: object) -> saliency.Curves:
    return saliency.evaluate(model, x, {"m": given}, **options).curves["m"]  # type: ignore[arg-type]


@pytest.mark.parametrize(("channels", "budgets"), [(1, 28), (2, 5)])
def test_scores_are_those_of_a_slow_loop(channels: int, budgets: int) -> None:
    model, x, given = net(channels), images(channels=channels), maps()
    complete, sound = slow_scores(model, x, given, budgets, background=0.25)
    found = curves(model, x, given, budgets=budgets, background=0.25)
    assert torch.allclose(found.completeness.ratios[0], complete, rtol=0, atol=1e-12)
    assert torch.allclose(found.soundness.ratios[0], sound, rtol=0, atol=1e-12)


def test_in_single_precision_they_agree_to_a_millionth() -> None:
    model, x, given = net(), images(), maps()
    complete, sound = slow_scores(model, x, given, 28, background=0.0)
    found = curves(model.float(), x.float(), given.float(), background=0.0)
    assert torch.allclose(found.completeness.ratios[0], complete, rtol=0, atol=1e-6)
    assert torch.allclose(found.soundness.ratios[0], sound, rtol=0, atol=1e-6)


def test_a_linear_classifier_in_closed_form() -> None:
    """Of two classes with logits 0 and sum x w, k kept pixels give the sigmoid of their sum."""
    weight = torch.stack([torch.zeros(16).double(), draw(2, 16)])
    x = draw(3, 5, 1, 4, 4)
    parts = x.flatten(1) * weight[1]
    best = parts.sort(1, descending=True).values.cumsum(1).sigmoid()
    given = torch.stack([-parts, parts], 1).view(5, 2, 4, 4)
    found = curves(linear(weight), x, given, budgets=16, background=0.0)
    assert torch.allclose(found.values[0, :, 1], best)
    # What is best for one class is worst for the other, read from the other end.
    worst = 1 - parts.sort(1).values.cumsum(1).sigmoid()
    assert torch.allclose(found.values[0, :, 0], worst)
    g, f = best.mean(1), parts.sum(1).sigmoid()
    assert torch.allclose(found.soundness.ratios[0, :, 1], (f.clamp_min(0.1) / g).clamp_max(1))


def test_ties_are_averaged_over_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all orders it is the exact expectation over all choices of pixels among equal ones."""
    weight, x = draw(1, 2, 4), draw(2, 1, 1, 2, 2)
    model = linear(weight)
    given = torch.tensor([[[2.0, 1.0], [1.0, 1.0]]]).double()
    every = torch.tensor(list(itertools.permutations(range(4))))
    monkeypatch.setattr(_bench, "orders_of", lambda *_: every)
    found = curves(model, x, given, background=0.0)
    assert found.tied.all()
    for kept in (1, 2, 3, 4):
        chosen = [(0, *rest) for rest in itertools.combinations((1, 2, 3), kept - 1)]
        masks = torch.tensor([[float(p in some) for p in range(4)] for some in chosen]).double()
        expected = (x.flatten() * masks @ weight.T).softmax(1).mean(0)
        assert torch.allclose(found.values[0, 0, :, kept - 1], expected)


def test_orders_of_ties_are_drawn_without_favour() -> None:
    weight, x = draw(1, 2, 4), draw(2, 1, 1, 2, 2)
    given = torch.tensor([[[2.0, 2.0], [1.0, 1.0]]]).double()
    generator = torch.Generator().manual_seed(3)
    found = curves(linear(weight), x, given, background=0.0, draws=4000, generator=generator)
    one = torch.eye(4)[:2].double()
    shown = (x.flatten() * one @ weight.T).softmax(1)
    deviation = float((shown[0] - shown[1]).abs().max()) / 2 / math.sqrt(4000)
    assert float((found.values[0, 0, :, 0] - shown.mean(0)).abs().max()) < 4 * deviation


def test_without_ties_nothing_is_drawn() -> None:
    one, other = (
        curves(net(), images(), maps(), generator=torch.Generator().manual_seed(seed))
        for seed in (0, 1)
    )
    assert not one.tied.any()
    assert torch.equal(one.values, other.values)


def test_a_map_for_all_labels_is_the_same_map_for_each() -> None:
    given = maps()[:, 0]
    one = curves(net(), images(), given)
    each = curves(net(), images(), given[:, None].expand(-1, CLASSES, -1, -1))
    assert torch.allclose(one.values, each.values, atol=1e-14)


def test_only_the_order_of_values_counts() -> None:
    one, other = curves(net(), images(), maps()), curves(net(), images(), (3 * maps()).exp())
    assert torch.equal(one.values, other.values)


def test_order_of_inputs_and_labels_and_blocks_make_no_difference() -> None:
    model, x, given = net(), images(), maps()
    labels = torch.tensor([[0, 1, 2]] * 4)
    options = {"background": "data", "data": images(7, seed=8)}
    whole = curves(model, x, given, labels=labels, **options).values[0]
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    moved = curves(
        model, x[rows], given[rows][:, columns], labels=labels[:, columns], **options
    ).values[0]
    assert torch.allclose(moved, whole[rows][:, columns], atol=1e-12)
    small = curves(model, x, given, labels=labels, memory=200_000, **options).values[0]
    assert torch.allclose(small, whole, atol=1e-12)
    some = curves(model, x, given[:, [2]], labels=torch.full((4,), 2), **options).values[0]
    assert torch.allclose(some, whole[:, [2]], atol=1e-12)


def test_drawn_backgrounds_are_averaged_over() -> None:
    model, x, given = net(), images(1), maps(1)
    data = images(2, seed=8)
    found = curves(model, x, given, background="data", data=data, draws=400).values[0]
    each = [curves(model, x, given, background=z).values[0] for z in data]
    mixed = (found - each[0]) / (each[1] - each[0])  # the share of the second
    inside = (each[1] - each[0]).abs() > 1e-3
    assert mixed[inside].std() < 1e-6
    assert float(mixed[inside].mean()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(400))


def test_ratios_lie_between_their_floor_and_one() -> None:
    found = curves(net(), images(), maps(), floor=0.2)
    for score in (found.completeness, found.soundness):
        assert bool((score.ratios <= 1).all())
        assert bool((score.ratios >= 0.2).all())
    # At the whole input alone a map says what the network does: complete and sound.
    near = curves(net(), images(), maps(), budgets=[35 / 36, 1.0], background=images().mean())
    assert float(near.completeness.ratios.min()) > float(found.completeness.ratios.min())


def test_averages_and_the_worst_label() -> None:
    found = curves(net(), images(), maps())
    ratios, predicted = found.soundness.ratios[0], found.predicted[0]
    own = ratios[torch.arange(4), predicted]
    assert found.soundness.own.value == pytest.approx(float(own.mean()))
    others = (ratios.sum(1) - own) / (CLASSES - 1)
    assert found.soundness.others.value == pytest.approx(float(others.mean()))
    assert found.soundness.worst.value == pytest.approx(float(ratios.amin(1).mean()))
    low, high = lab.bootstrap_interval(others.numpy()).interval
    assert found.soundness.others.interval == (low, min(high, 1.0))


def test_intervals_are_over_the_unit_that_is_named() -> None:
    networks = [net(seed=10 * seed) for seed in range(1, 6)]
    found = saliency.evaluate(
        networks, images(), {"g": saliency.gradient_x_input}, unit="network"
    ).completeness["g"]
    alone = [
        saliency.completeness(one, images(), saliency.gradient_x_input).own.value
        for one in networks
    ]
    assert found.per_network("own") == pytest.approx(alone)
    assert found.own.value == pytest.approx(np.mean(alone))
    low, high = lab.bootstrap_interval(alone).interval
    assert found.own.interval == pytest.approx((low, min(high, 1.0)), abs=1e-9)
    assert found.own.count == 5
    by_image = saliency.completeness(networks, images(), saliency.gradient_x_input)
    assert by_image.own.count == 4
    assert by_image.own.value == pytest.approx(found.own.value)


def test_a_label_that_is_not_predicted_has_no_own_score() -> None:
    x, model = images(), net()
    predicted = model(x).argmax(1)
    wrong = (predicted + 1) % CLASSES
    found = saliency.soundness(model, x, maps()[:, 0], labels=wrong)
    assert math.isnan(found.own.value)
    assert found.others.value == pytest.approx(float(found.ratios.mean()))
    assert "predicted label" not in repr(found)


def test_results_say_what_they_are() -> None:
    found = saliency.evaluate(
        net(), images(), {"gradient": saliency.absolute_gradient, "map": maps()}
    )
    assert "gradient" in repr(found)
    assert "95%, over images" in repr(found)
    assert repr(found.completeness["map"]).startswith("Completeness: ")
    assert (
        repr(found.curves["map"]) == "Curves of 4 inputs x 3 labels in 1 network over 28 budgets."
    )
    assert found.table.columns == ["method", "quantity", "labels", "value", "low", "high"]
    assert len(found.table) == 2 * 2 * 3
    assert found.as_dict()["curves"]["map"].areas.shape == (1, 4, CLASSES)
    page = lab.as_page(found.document())
    assert "image/png" in page
    for chart in (found.plot(), found.plot_maps(names=["a", "b", "c"])):
        assert lab.draw_chart(chart, ".svg").startswith(b"<svg")
