"""Draws of as many samples of one class as of another, and of random labels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from undertow import data

LABELS = torch.tensor([0, 1, 2] * 20)


def test_a_draw_holds_each_class_once_over_and_depends_on_its_seed_alone() -> None:
    chosen = data.per_class(LABELS, (2, 0), 5, seed=1)
    assert LABELS[chosen].tolist() == [2] * 5 + [0] * 5
    assert len(set(chosen.tolist())) == 10
    assert torch.equal(chosen, data.per_class(LABELS, (2, 0), 5, seed=1))
    assert not torch.equal(chosen, data.per_class(LABELS, (2, 0), 5, seed=2))


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="at most the 20 samples of class 1, got 21"):
        data.per_class(LABELS, (1, 0), 21, seed=0)


@given(st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1))
def test_more_label_noise_keeps_fewer_labels_whatever_is_drawn(
    seed: int, less: float, more: float
) -> None:
    less, more = sorted((less, more))
    unlike = -torch.ones(60, dtype=torch.int64)  # that no draw gives
    few, many = (data.random_labels(unlike, noise, 3, seed=seed) for noise in (less, more))
    assert set(many.tolist()) <= {-1, 0, 1, 2}
    assert bool(((few >= 0) <= (many >= 0)).all())
    assert torch.equal(many, data.random_labels(unlike, more, 3, seed=seed))
    assert bool((unlike == -1).all())


def test_random_labels_are_uniform_and_a_share_of_all(global_rng_untouched: None) -> None:
    ones = torch.ones(40_000, dtype=torch.int64)
    assert torch.equal(data.random_labels(ones, 0.0, 4, seed=1), ones)
    drawn = data.random_labels(ones, 0.6, 4, seed=1)
    # Five standard deviations of a share of 40,000.
    assert float((drawn != 1).double().mean()) == pytest.approx(0.6 * 3 / 4, abs=0.0125)
    counts = torch.bincount(data.random_labels(ones, 1.0, 4, seed=1)) / len(ones)
    assert counts.tolist() == pytest.approx([0.25] * 4, abs=0.011)


def test_noise_is_in_the_training_labels_only() -> None:
    clean, noisy = (data.load("digits", seed=5, label_noise=noise) for noise in (0.0, 0.5))
    assert torch.equal(noisy.train_inputs, clean.train_inputs)
    wrong = noisy.train_targets != clean.train_targets
    assert float(wrong.double().mean()) == pytest.approx(0.5 * 9 / 10, abs=0.05)
    assert torch.equal(noisy.test_targets, clean.test_targets)
    assert torch.equal(noisy.train_inputs, clean.train_inputs)


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"label_noise must be from 0 to 1, got 1\.5"):
        data.load("digits", label_noise=1.5)


def test_a_seed_draws_so_many_of_each_class_and_is_tested_on_all_others_of_them() -> None:
    images = data.load("digits")
    drawn = images.draws([3, 4, 3], 5, (8, 2))
    labels = torch.cat([images.train_targets, images.test_targets])
    for place, seed in enumerate((3, 4, 3)):
        train, test = drawn.train[place], drawn.test[place]
        assert torch.equal(train, data.per_class(labels, (8, 2), 5, seed=seed))
        assert drawn.targets[train].tolist() == [8] * 5 + [2] * 5
        both = torch.cat([train, test]).sort().values
        assert torch.equal(both, torch.isin(labels, torch.tensor([2, 8])).nonzero()[:, 0])
    assert not torch.equal(drawn.train[0], drawn.train[1])
    assert torch.equal(drawn.split(0).test_inputs, drawn.inputs[drawn.test[0]])
    assert images.draws([0], 1).train.shape == (1, 10)
    with pytest.raises(ValueError, match="seeds must name at least one draw"):
        images.draws([], 1)


def test_other_labels_are_of_the_training_images_of_their_seed_alone() -> None:
    plain = data.load("digits").draws([3, 3], 2, (0, 1))
    given = torch.tensor([[5, 5, 5, 5], [6, 7, 8, 9]])
    other = plain.relabelled(given)
    assert torch.equal(other.targets[other.train], given)
    assert torch.equal(other.inputs[other.train], plain.inputs[plain.train])
    assert torch.equal(other.targets[other.test], plain.targets[plain.test])
    assert torch.equal(other.inputs[other.test], plain.inputs[plain.test])
    assert plain.targets[plain.train].tolist() == [[0, 0, 1, 1]] * 2
    with pytest.raises(ValueError, match=r"targets must be \(2, 4\), .*, got \(4,\)"):
        plain.relabelled(given[0])


def test_a_split_for_all_draws_is_that_of_the_dataset_held_once() -> None:
    loaded = data.load("digits", train_size=30, test_size=20)
    drawn = loaded.alike(3)
    assert len(drawn.inputs) == 50
    for place in range(3):
        own = drawn.split(place)
        assert torch.equal(own.train_inputs, loaded.train_inputs)
        assert torch.equal(own.test_targets, loaded.test_targets)


def test_draws_of_the_first_classes_are_theirs_in_order() -> None:
    drawn = data.draw("digits", seeds=[1, 2], train_size=50, test_size=40)
    few = drawn.of_classes(3)
    assert few.num_classes == 3
    for place in range(2):
        whole, own = drawn.split(place), few.split(place)
        kept = whole.train_targets < 3
        assert torch.equal(own.train_inputs, whole.train_inputs[kept])
        assert torch.equal(own.train_targets, whole.train_targets[kept])
        assert torch.equal(own.test_targets, whole.test_targets[whole.test_targets < 3])
