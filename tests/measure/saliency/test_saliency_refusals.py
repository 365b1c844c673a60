"""Bad input of saliency: one line, that says what would do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from masked import CLASSES, SIDE, draw, images, net
from torch import Tensor, nn
from torch.nn.utils import skip_init

from undertow.measure import saliency

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


class Head(nn.Module):
    """A network with something behind it."""

    def __init__(self, behind: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.behind = net(), behind

    def forward(self, x: Tensor) -> Any:
        return self.behind(self.net(x))


MODELS = {
    "probabilities": (lambda y: y.softmax(1), ValueError, "logits, but returns probabilities"),
    "regression": (lambda y: y[:, 0], ValueError, "a regression has no probability of a label"),
    "one column": (lambda y: y[:, :1], ValueError, "at least two classes"),
    "segmentation": (lambda y: y[:, :, None], ValueError, r"must return logits \[rows, classes\]"),
    "whole numbers": (lambda y: y.argmax(1), TypeError, "must return real logits"),
    "several": (lambda y: (y, y), TypeError, "must return a tensor of logits, got tuple"),
    "mixing": (lambda y: y - y.mean(0), ValueError, "must take each sample by itself"),
    "random": (lambda y: y + torch.rand(()), ValueError, "draws random numbers in eval mode"),
    "infinite": (lambda y: y / 0, ValueError, "finite logits"),
    "no gradient": (lambda y: y.detach(), ValueError, "no gradient in its inputs"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models(kind: str) -> None:
    behind, error, words = MODELS[kind]
    with pytest.raises(error, match=words) as raised:
        saliency.certify(Head(behind), images(), steps=1)
    assert "\n" not in str(raised.value)


def test_logarithms_of_probabilities_are_logits() -> None:
    one = saliency.certify(net(), images(), steps=60)
    other = saliency.certify(Head(lambda y: y.log_softmax(1)), images(), steps=60)
    assert torch.allclose(one.masks, other.masks, atol=1e-8)


def test_batch_norm_without_running_statistics() -> None:
    norm = nn.BatchNorm2d(1, affine=False, track_running_stats=False)
    with pytest.raises(ValueError, match="give batch norm running statistics"):
        saliency.certify(nn.Sequential(norm, net()), images(), steps=1)


def test_a_model_in_train_mode_is_measured_in_eval_mode() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1).double(), nn.Dropout(), net())
    one = saliency.certify(model.eval(), images(), steps=60)
    other = saliency.certify(model.train(), images(), steps=60)
    assert torch.equal(one.masks, other.masks)
    assert model.training
    assert float(model[0].num_batches_tracked) == 0
    assert "in eval mode" in repr(other)


MAPS: dict[str, tuple[Any, type[Exception], str]] = {
    "shape": (draw(0, 4, 5, 5), ValueError, r"must be of shape .* got \[4, 5, 5\]"),
    "not a number": (torch.full((4, SIDE, SIDE), math.nan), ValueError, "4 of 4 maps hold NaN"),
    "all equal": (torch.ones(4, SIDE, SIDE), ValueError, "every map is all equal"),
    "complex": (torch.ones(4, SIDE, SIDE) * 1j, TypeError, "must be real numbers"),
    "a list": ([[1.0]], TypeError, "must be a tensor, certificates, a function"),
    "of a function": (lambda *given: given[1][..., :2], ValueError, "upsample those of a layer"),
    "no tensor": (lambda *given: None, TypeError, "must give a tensor of attributions"),
}


@pytest.mark.parametrize("kind", MAPS)
def test_attributions(kind: str) -> None:
    given, error, words = MAPS[kind]
    with pytest.raises(error, match=words) as raised:
        saliency.evaluate(net(), images(), {"mine": given})
    assert "mine" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_some_maps_that_are_all_equal_are_counted() -> None:
    given = draw(0, 4, SIDE, SIDE)
    given[1] = 0.0
    found = saliency.evaluate(net(), images(), {"m": given})
    assert found.curves["m"].constant == 1
    assert "1 maps are all equal" in repr(found)
    assert "1 maps are all equal" in repr(found.curves["m"])


def test_channels_or_labels() -> None:
    x = images(channels=CLASSES)
    with pytest.raises(ValueError, match="may be maps for 3 labels or one map in 3 channels"):
        saliency.evaluate(net(CLASSES), x, {"m": draw(0, *x.shape)})


def test_certificates_of_something_else() -> None:
    found = saliency.certify(net(), images(), labels=[0, 1, 2, 0], steps=1)
    with pytest.raises(ValueError, match=r"give labels=certificates\.labels"):
        saliency.soundness(net(), images(), found)
    with pytest.raises(ValueError, match="must be of these inputs"):
        saliency.soundness(net(), images(3), found)


CALLS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "inputs": ({"inputs": [1.0]}, TypeError, "inputs must be a tensor, got list"),
    "bytes": (
        {"inputs": torch.zeros(4, 1, SIDE, SIDE, dtype=torch.uint8)},
        TypeError,
        "inputs must be real numbers .* got torch.uint8; scale images",
    ),
    "rows": ({"inputs": torch.zeros(4, 36)}, ValueError, r"images \[n, channels, height, width\]"),
    "no input": ({"inputs": torch.zeros(0, 1, SIDE, SIDE)}, ValueError, "must hold samples"),
    "nan": ({"inputs": images() * math.nan}, ValueError, "inputs must be finite"),
    "range": (
        {"inputs": images().sigmoid() * 255, "data": images().sigmoid()},
        ValueError,
        "inputs must be scaled as the data, which lie in",
    ),
    "other data": ({"data": draw(0, 4, 1, 5, 5)}, ValueError, "data must be of the inputs' shape"),
    "label": ({"labels": [0, 1, 2, 3]}, ValueError, "must lie in 0 to 2, .* got 3"),
    "labels": ({"labels": [0, 1]}, ValueError, "one for each of 4 inputs"),
    "half a label": ({"labels": [0.5] * 4}, TypeError, "must be whole numbers"),
    "twice": ({"labels": [[1, 1]]}, ValueError, "got one twice"),
    "background": ({"background": "black"}, ValueError, "data, mean, grey, blur"),
    "no background": ({"background": None}, TypeError, "a name, a number or a tensor"),
    "its shape": ({"background": torch.zeros(7)}, ValueError, "background must be of the inputs'"),
    "memory": ({"memory": 3}, ValueError, "memory must hold at least one"),
    "alone": ({"inputs": images(1)}, ValueError, "at least two samples to draw from"),
}
OWN: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "model": ({"model": 1}, TypeError, "model must be an nn.Module"),
    "upsample": ({"upsample": 7}, ValueError, "at most the input's side 6"),
    "sparsity": ({"sparsity": -1.0}, ValueError, "sparsity must be finite and at least 0"),
    "variation": ({"total_variation": "a"}, TypeError, "total_variation must be a number"),
    "fit": ({"fit": "softmax"}, ValueError, "log probability or double softmax"),
    "steps": ({"steps": 0}, ValueError, "steps must be at least 1"),
    "atol": ({"atol": 0.0}, ValueError, "atol must be positive and finite"),
    "embedding": (
        {"embedding": skip_init(nn.Linear, 1, 1)},
        ValueError,
        "embedding must be a part of the model",
    ),
}
SCORES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "model": ({"model": [1]}, TypeError, "an nn.Module, or several in a list"),
    "methods": ({"methods": images()}, TypeError, "methods must map names to attributions"),
    "unit": ({"unit": "pixel"}, ValueError, "unit must be image or network"),
    "networks": ({"unit": "network"}, ValueError, "needs at least two networks"),
    "floor": ({"floor": 0.0}, ValueError, "floor must lie above 0"),
    "budgets": ({"budgets": [0.5, 2.0]}, ValueError, r"shares in \(0, 1\]"),
    "whole": ({"budgets": [1.0]}, ValueError, "one below the whole input"),
    "channels": ({"channels": "max"}, ValueError, "sum or absolute"),
    "draws": ({"draws": 0}, ValueError, "draws must be at least 1"),
}


@pytest.mark.parametrize("kind", [*CALLS, *(f"own {name}" for name in OWN)])
def test_calls_of_certify(kind: str) -> None:
    given, error, words = OWN[kind[4:]] if kind.startswith("own ") else CALLS[kind]
    with pytest.raises(error, match=words) as raised:
        saliency.certify(**({"model": net(), "inputs": images(), "steps": 1} | given))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [*CALLS, *(f"own {name}" for name in SCORES)])
def test_calls_of_evaluate(kind: str) -> None:
    given, error, words = SCORES[kind[4:]] if kind.startswith("own ") else CALLS[kind]
    named = {"model": net(), "inputs": images(), "background": "data"}
    methods = {"g": saliency.gradient_x_input}
    with pytest.raises(error, match=words) as raised:
        saliency.evaluate(**(named | {"methods": methods} | given))
    assert "\n" not in str(raised.value)
