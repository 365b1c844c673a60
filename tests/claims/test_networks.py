"""Networks on images: what they start from, and the images that they are given."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from undertow.claims import Networks, perceptrons
from undertow.data import Images
from undertow.train import Member

pytestmark = pytest.mark.fast
IMAGES = Images(train_size=40)


def made(seeds: tuple[int, ...], init_seeds: list[int] | None = None) -> Networks:
    members = [Member(seed, 0.1) for seed in seeds]
    options = {"batch_size": 8, "path": "fused", "init_seeds": init_seeds}
    return perceptrons(IMAGES, (5,), members, **options)


def first_weights(networks: Networks) -> torch.Tensor:
    return networks.ensemble.parameters()["1.weight"]


def test_initial_weights_are_those_of_the_seeds_that_are_given_for_them() -> None:
    own, shared = made((1, 2)), made((1, 2), [7, 7])
    assert not torch.equal(*first_weights(own))
    assert torch.equal(*first_weights(shared))
    assert torch.equal(first_weights(shared)[0], first_weights(made((3,), [7]))[0])
    shared.ensemble.train(5)  # in their own order of the data
    assert not torch.equal(*first_weights(shared))


def test_images_may_be_loaded_already() -> None:
    loaded = replace(IMAGES.load(), test_inputs=IMAGES.load().test_inputs[:3])
    given = perceptrons(loaded, (5,), [Member(1, 0.1)], batch_size=8, path="fused")
    assert torch.equal(given.inputs, made((1,)).inputs)
    assert len(given.test[0]) == 3


def test_they_are_tested_on_the_images_that_were_kept_back() -> None:
    found = made((1,))
    found.ensemble.train(50)
    inputs, targets = found.test
    with torch.no_grad():
        kept_back = torch.nn.functional.cross_entropy(found.ensemble.module(0)(inputs), targets)
    assert float(found.tested().loss[0]) == pytest.approx(float(kept_back), rel=1e-5)
    assert float(found.fit().loss[0]) == pytest.approx(float(found.objective(0).value()), rel=1e-5)
    assert float(found.fit().loss[0]) < float(found.tested().loss[0])
