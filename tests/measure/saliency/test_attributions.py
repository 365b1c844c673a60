"""Attributions in every form that they come in: tensors, functions, certificates, baselines."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from masked import CLASSES, SIDE, draw, images, linear, net
from torch import Tensor, nn

from undertow.measure import saliency

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def scores(model: nn.Module, x: Tensor, given: Any, **options: Any) -> Tensor:
    return saliency.evaluate(model, x, {"m": given}, **options).curves["m"].values


def test_channels_are_joined_by_their_sum_or_their_size() -> None:
    model, x = net(2), images(channels=2)
    given = draw(3, 4, CLASSES, 2, SIDE, SIDE)
    assert torch.equal(scores(model, x, given), scores(model, x, given.sum(2)))
    assert torch.equal(
        scores(model, x, given, channels="absolute"), scores(model, x, given.abs().sum(2))
    )
    one = given[:, 0]
    assert torch.equal(scores(model, x, one), scores(model, x, one.sum(1)))


def test_a_function_sees_pairs_in_eval_mode_and_may_close_over_the_model() -> None:
    model, x = net().train(), images()

    def method(given: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        assert not given.training
        leaf = inputs.requires_grad_()
        logits = model(leaf).gather(1, labels[:, None])
        return leaf * torch.autograd.grad(logits.sum(), leaf)[0]

    found = scores(model, x, method)
    assert torch.allclose(found, scores(model, x, saliency.gradient_x_input))
    assert model.training


def test_what_is_drawn_by_a_method_follows_the_generator() -> None:
    model, x = net(), images()
    one, again, other = (
        scores(model, x, saliency.random_map, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_certificates_of_other_labels_are_found_by_label() -> None:
    model, x = net(), images()
    found = saliency.certify(model, x, steps=60)
    labels = torch.tensor([[2, 0]] * 4)
    some = scores(model, x, found, labels=labels)
    assert torch.equal(some, scores(model, x, found.masks[:, [2, 0], 0], labels=labels))


def test_learned_masks_are_those_that_certify_finds() -> None:
    model, x = net(), images()
    masks = saliency.LearnedMasks(steps=60, background="mean", upsample=2)
    found = saliency.certify(model, x, steps=60, background="mean", upsample=2)
    assert torch.allclose(scores(model, x, masks), scores(model, x, found))


def test_gradients_of_a_linear_classifier_are_its_weights() -> None:
    weight, x = draw(0, CLASSES, SIDE**2), images()
    model = linear(weight)
    pairs = x.repeat_interleave(CLASSES, 0)
    labels = torch.arange(CLASSES).repeat(4)
    own = weight[labels].view_as(pairs)
    assert torch.allclose(saliency.absolute_gradient(model, pairs, labels), own.abs())
    assert torch.allclose(saliency.gradient_x_input(model, pairs, labels), own * pairs)
    assert torch.allclose(saliency.smooth_grad(model, pairs, labels), own.abs())
    integrated = saliency.integrated_gradients(model, pairs, labels, baseline=0.5, steps=1)
    assert torch.allclose(integrated, own * (pairs - 0.5))


def test_integrated_gradients_add_up_to_the_difference() -> None:
    model, x = net(), images()
    labels = torch.tensor([0, 1, 2, 0])
    smooth = nn.Sequential(model[0], nn.Softplus(), *model[2:])
    found = saliency.integrated_gradients(smooth, x, labels).flatten(1).sum(1)
    with torch.no_grad():
        ends = smooth(x) - smooth(torch.zeros_like(x))
    assert torch.allclose(found, ends.gather(1, labels[:, None])[:, 0], rtol=1e-6)


def test_blocks_of_pairs_make_no_difference() -> None:
    model, x = net(), images()
    methods = {
        "smooth": partial(saliency.smooth_grad, samples=3),
        "integrated": saliency.integrated_gradients,
    }
    whole = saliency.evaluate(model, x, methods)
    small = saliency.evaluate(model, x, methods, memory=100_000)
    for name in methods:
        assert torch.allclose(whole.curves[name].values, small.curves[name].values, atol=1e-12)


@pytest.fixture
def captum() -> Any:
    return pytest.importorskip("captum.attr", reason="Captum is an optional peer")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_captums_methods_as_they_are(captum: Any) -> None:
    model, x = net(), images()
    exact = {
        saliency.gradient_x_input: captum.InputXGradient(model),
        saliency.absolute_gradient: captum.Saliency,
    }
    for ours, theirs in exact.items():
        assert torch.allclose(scores(model, x, ours), scores(model, x, theirs))
    others = {"lift": captum.DeepLift(model), "guided": captum.GuidedBackprop(model)}
    found = saliency.evaluate(model, x, others)
    assert all(torch.isfinite(curves.values).all() for curves in found.curves.values())
    integrated = partial(saliency.integrated_gradients, steps=50)
    near = scores(model, x, integrated) - scores(model, x, captum.IntegratedGradients(model))
    assert float(near.abs().mean()) < 1e-2


class Peer:
    """Called as Captum's methods are, which need not be installed here."""

    def __init__(self, forward_func: nn.Module) -> None:
        self.forward_func = forward_func

    def attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Gradient x input."""
        return saliency.gradient_x_input(self.forward_func, inputs, target).detach()


def test_what_has_an_attribute_is_called_by_it() -> None:
    model, x = net().train(), images()
    expected = scores(model, x, saliency.gradient_x_input)
    assert torch.equal(scores(model, x, Peer(model)), expected)
    assert torch.equal(scores([model, net(seed=5)], x, Peer)[:1], expected)
    with pytest.raises(ValueError, match="give a function of"):
        scores([model, net(seed=5)], x, Peer(model))


def test_given_maps_are_of_one_network() -> None:
    with pytest.raises(ValueError, match="must be found in each of 2 networks"):
        scores([net(), net(seed=5)], images(), draw(0, 4, SIDE, SIDE))
