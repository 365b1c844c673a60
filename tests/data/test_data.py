"""Datasets: what a subset, the scaling and the down-sampling promise, on scikit-learn's digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow import data
from undertow.data import _load


def test_digits_is_whole_and_standardised(global_rng_untouched: None) -> None:
    digits = data.load("digits")
    assert repr(digits).startswith("digits: 1,437 training and 360 test images of 1x8x8 in 10")
    assert digits.train_inputs.shape == (1437, 1, 8, 8)
    assert digits.test_inputs.shape == (360, 1, 8, 8)
    assert digits.train_inputs.dtype == torch.float32
    assert digits.train_targets.dtype == torch.int64
    # By one mean and one deviation for every subset: training images are drawn from all of them.
    pixels = torch.cat([digits.train_inputs, digits.test_inputs]).double()
    assert abs(pixels.mean().item()) < 1e-6
    assert abs(pixels.std(correction=0).item() - 1) < 1e-6
    part = data.load("digits", train_size=20)
    assert part.train_inputs.min() == digits.train_inputs.min()


def test_digits_are_scikit_learns_up_to_one_scalar_pair() -> None:
    from sklearn.datasets import load_digits

    published = load_digits()
    digits = data.load("digits")
    images = grey_levels(digits, torch.cat([digits.train_inputs, digits.test_inputs]))
    labels = torch.cat([digits.train_targets, digits.test_targets]).tolist()
    ours = [[*image, label] for image, label in zip(images, labels, strict=True)]
    theirs = np.column_stack([published.data, published.target]).astype(int).tolist()
    assert sorted(ours) == sorted(theirs)


def test_unit_vectors_are_the_training_images_up_to_their_norms_and_their_mean() -> None:
    digits = data.load("digits", train_size=50)
    pixels = digits.train_inputs.flatten(1).double()
    for centered, expected in ((False, pixels), (True, pixels - pixels.mean(0))):
        vectors, targets = digits.unit_vectors(centered=centered)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(50).double())
        torch.testing.assert_close(vectors * expected.norm(dim=1, keepdim=True), expected)
        assert torch.equal(targets, digits.train_targets)


def grey_levels(digits: data.Dataset, inputs: torch.Tensor) -> list[list[int]]:
    """The published pixels, 0 to 16: a large training set holds both extremes."""
    low, high = digits.train_inputs.min(), digits.train_inputs.max()
    return ((inputs - low) * (16 / (high - low))).round().int().flatten(1).tolist()


@given(train_size=st.integers(10, 1437), test_size=st.integers(10, 360), seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_a_subset_keeps_every_classs_share(train_size: int, test_size: int, seed: int) -> None:
    whole = data.load("digits")
    part = data.load("digits", train_size=train_size, test_size=test_size, seed=seed)
    for ours, all_of_them, size in (
        (part.train_targets, whole.train_targets, train_size),
        (part.test_targets, whole.test_targets, test_size),
    ):
        share = size * all_of_them.bincount(minlength=10) / len(all_of_them)
        counts = ours.bincount(minlength=10)
        assert counts.sum() == size
        assert ((counts - share).abs() < 1).all()


def same(first: data.Dataset, second: data.Dataset) -> bool:
    return torch.equal(first.train_inputs, second.train_inputs) and torch.equal(
        first.test_inputs, second.test_inputs
    )


def test_a_seed_is_one_subset_and_another_seed_another(global_rng_untouched: None) -> None:
    first, again, other = (
        data.load("digits", train_size=100, test_size=50, seed=seed) for seed in (4, 4, 5)
    )
    assert same(first, again)
    assert not same(first, other)


def test_a_full_size_is_the_whole_split() -> None:
    for seed in (0, 9):
        sizes = {"train_size": 1437, "test_size": 360}
        assert same(data.load("digits", seed=seed), data.load("digits", seed=seed, **sizes))


def images_of(digits: data.Dataset) -> list[set[tuple[int, ...]]]:
    """Training and test images, each as whole numbers."""
    return [
        {tuple(image) for image in (part * 1000).round().int().flatten(1).tolist()}
        for part in (digits.train_inputs, digits.test_inputs)
    ]


def test_training_and_test_images_are_disjoint_and_seeds_overlap_as_chance_has_it() -> None:
    pool = set.union(*images_of(data.load("digits")))
    overlaps = []
    for seed in range(6):
        train, test = images_of(data.load("digits", train_size=300, test_size=200, seed=seed))
        assert (len(train), len(test)) == (300, 200)
        assert train.isdisjoint(test)
        assert train | test <= pool
        others, held_out = images_of(data.load("digits", train_size=300, seed=seed + 100))
        overlaps.append((len(train & others), len(train & held_out)))
    # By chance 300 x 300 and 300 x 360 in 1,797, give or take 7 each.
    expected = [300 * 300 / 1797, 300 * 360 / 1797]
    assert np.mean(overlaps, axis=0) == pytest.approx(expected, abs=10)


def test_what_several_seeds_draw_is_what_each_draws(global_rng_untouched: None) -> None:
    seeds = [3, 8, 3]
    sizes: dict[str, Any] = {"train_size": 100, "test_size": 40, "label_noise": 0.5}
    drawn = data.Images(image_size=4).draw(seeds, **sizes)
    assert repr(drawn).startswith("3 draws of 100 training and 40 test images from digits, ")
    for place, seed in enumerate(seeds):
        ours, alone = drawn.split(place), data.Images(image_size=4).load(seed=seed, **sizes)
        assert same(ours, alone)
        assert torch.equal(ours.train_targets, alone.train_targets)
        assert torch.equal(ours.test_targets, alone.test_targets)
        assert (ours.input_shape, ours.source) == (alone.input_shape, alone.source)


def test_images_that_draws_share_are_held_once() -> None:
    assert len(data.draw("digits", seeds=range(8)).inputs) == 1797
    noisy = data.draw("digits", seeds=range(8), label_noise=1.0)
    labelled = torch.cat([noisy.inputs.flatten(1), noisy.targets[:, None]], dim=1)
    assert len(labelled.unique(dim=0)) == len(noisy.inputs)  # once with each label


def test_draws_of_no_seed_are_refused() -> None:
    with pytest.raises(ValueError, match="seeds must name at least one draw"):
        data.draw("digits", seeds=[])


def test_down_sampling_averages_blocks() -> None:
    images = np.arange(4 * 16, dtype=np.uint8).reshape(4, 1, 4, 4)
    pooled = _load._downsample(torch.from_numpy(images).float(), 2)
    blocks = images.reshape(4, 1, 2, 2, 2, 2).mean(axis=(3, 5))
    assert np.array_equal(pooled.numpy(), blocks)
    assert data.load("digits", image_size=4).input_shape == (1, 4, 4)
    assert same(data.load("digits", image_size=8), data.load("digits"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mnist"}, r"'mnist' is no dataset here; choose one of digits, fashion-mnist"),
        ({"name": "digits", "train_size": 1438}, r"train_size=1438 .* 1,437"),
        ({"name": "digits", "test_size": 9}, r"test_size=9 .* 10 \(one image a class\)"),
        ({"name": "digits", "image_size": 3}, r"image_size=3 .* 1, 2, 4, 8"),
        ({"name": "digits", "image_size": 0}, r"image_size=0 .* 1, 2, 4, 8"),
        ({"name": "digits", "root": "here"}, r"root='here'.*leave root out"),
    ],
)
def test_bad_arguments_say_what_would_do(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load(**arguments)


# --- text -----------------------------------------------------------------------------------


def test_a_text_is_windows_and_what_follows_them(global_rng_untouched: None) -> None:
    text = data.load_text("python-docs", context=32)
    assert "windows of 32 characters" in repr(text)
    assert "from Python 3." in repr(text)
    assert len(text.train_inputs) > 10_000
    assert torch.equal(text.train_inputs[:, 1:], text.train_targets[:, :-1])
    assert torch.equal(text.train_targets[:-1, -1], text.train_inputs[1:, 0])
    assert "assert" in text.decode(text.train_inputs[:4].flatten())
    largest = max(int(part.max()) for part in (text.train_targets, text.test_targets))
    assert largest < len(text.characters)
    assert text.characters == "".join(sorted(set(text.characters)))


def test_train_and_test_windows_are_the_text_in_order() -> None:
    fine, coarse = (data.load_text("python-docs", context=context) for context in (1, 50))
    for part in ("train_inputs", "test_inputs"):
        whole, windows = getattr(fine, part).flatten(), getattr(coarse, part).flatten()
        assert torch.equal(whole[: len(windows)], windows)


def test_a_text_in_the_characters_of_another_leaves_out_what_has_others() -> None:
    known = data.load_text("python-docs", context=16).characters
    own, other = (
        data.load_text("python-code", context=16, characters=characters)
        for characters in (None, known)
    )
    read = {other.decode(window) for window in other.train_inputs[:500]}
    assert other.characters == known
    assert read <= {own.decode(window) for window in own.train_inputs}
    assert 0.9 * len(own.train_inputs) < len(other.train_inputs) < len(own.train_inputs)
    assert "def " in own.decode(own.train_inputs[:1000].flatten())


@given(size=st.integers(1, 500), seed=st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_a_smaller_subset_of_a_text_is_part_of_a_larger_one(size: int, seed: int) -> None:
    small, large = (
        data.load_text("python-docs", context=64, train_size=n, test_size=3, seed=seed)
        for n in (size, 500)
    )
    windows = {tuple(window) for window in large.train_inputs.tolist()}
    assert len(small.train_inputs) == size
    assert windows.issuperset(map(tuple, small.train_inputs.tolist()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "moby-dick"},
            r"'moby-dick' is no text here; choose one of python-docs, python-code, austen",
        ),
        ({"context": 0}, r"context=0 .* give 1 to"),
        ({"train_size": 0}, r"train_size=0 .* give 1 to"),
        ({"test_size": 10**9}, r"test_size=1000000000 .* give 1 to"),
        ({"root": "here"}, r"root='here'.*leave root out"),
    ],
)
def test_bad_arguments_for_a_text_say_what_would_do(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        data.load_text(**{"name": "python-docs", "context": 16, **arguments})
