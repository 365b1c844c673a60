"""Images that are ready to train on: one split of a dataset, and the splits of several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from undertow.data._draw import per_class


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images and labels, split, standardised and ready to train on.

    Inputs are float32 `[samples, channels, height, width]`, targets int64 class numbers.
    Both splits are shifted and scaled by one pair of scalars, the same for every subset: the mean
    and the standard deviation over every pixel of all images that training images are drawn from
    (after any down-sampling).

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

    def draws(
        self, seeds: Sequence[int], count: int, classes: Sequence[int] | None = None
    ) -> Draws:
        """So many training images of each class for every seed; to test on, all others of them.

        They are drawn from the training and the test images together, as by `per_class`.

        Args:
            seeds: one for each draw.
            count: training images of each class.
            classes: which ones, in the order in which they come; by default all.

        Raises:
            ValueError: no seed, or a class has fewer images.
        """
        if not len(seeds):
            raise ValueError("seeds must name at least one draw, got none")
        labels = torch.cat([self.train_targets, self.test_targets])
        classes = range(self.num_classes) if classes is None else classes
        there = torch.isin(labels, torch.tensor(classes))
        train, test = [], []
        for seed in seeds:
            train.append(per_class(labels, classes, count, seed=seed))
            left = there.clone()
            left[train[-1]] = False
            test.append(left.nonzero()[:, 0])
        return self._drawn(torch.stack(train), torch.stack(test))

    def alike(self, count: int) -> Draws:
        """The same split for all of `count` draws, with the images held once."""
        rows = torch.arange(len(self.train_targets) + len(self.test_targets)).expand(count, -1)
        return self._drawn(*rows.tensor_split([len(self.train_targets)], dim=1))

    def _drawn(self, train: Int[Tensor, "draws train"], test: Int[Tensor, "draws test"]) -> Draws:
        """Draws by rows of the training images, followed by the test images."""
        return Draws(
            name=self.name,
            inputs=torch.cat([self.train_inputs, self.test_inputs]),
            targets=torch.cat([self.train_targets, self.test_targets]),
            train=train,
            test=test,
            num_classes=self.num_classes,
            source=self.source,
        )

    def __repr__(self) -> str:
        shape = "x".join(str(side) for side in self.input_shape)
        return (
            f"{self.name}: {len(self.train_targets):,} training and {len(self.test_targets):,} test"
            f" images of {shape} in {self.num_classes} classes, from {self.source}"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Draws:
    """Several seeds' splits of one dataset, as rows of the images that any of them holds.

    No image is held once for each seed that drew it, only once for each label that it was given:
    where noise has changed its label for some seeds, it is there with either. Images are
    standardised as those of a `Dataset`.

    Attributes:
        inputs: all images that were drawn.
        targets: their labels.
        train: each seed's training images, as rows of `inputs`, in the order of the files.
        test: its test images.
        num_classes: labels run from 0 to `num_classes - 1`.
        source: where the files came from, in words.
    """

    name: str
    inputs: Float[Tensor, "images channels height width"]
    targets: Int[Tensor, " images"]
    train: Int[Tensor, "seeds train"]
    test: Int[Tensor, "seeds test"]
    num_classes: int
    source: str

    def split(self, place: int) -> Dataset:
        """One seed's images, copied: what `load` gives for it."""
        train, test = self.train[place], self.test[place]
        channels, height, width = self.inputs.shape[1:]
        return Dataset(
            name=self.name,
            train_inputs=self.inputs[train],
            train_targets=self.targets[train],
            test_inputs=self.inputs[test],
            test_targets=self.targets[test],
            num_classes=self.num_classes,
            input_shape=(channels, height, width),
            source=self.source,
        )

    def of_classes(self, count: int) -> Draws:
        """Without the images of all classes but the first `count`.

        Every draw must have as many images of a class as the others have, as stratified ones do.
        """
        chosen = self.targets < count
        place = chosen.cumsum(0) - 1  # of an image among those that are left
        train, test = (
            torch.stack([place[own[chosen[own]]] for own in rows])
            for rows in (self.train, self.test)
        )
        return replace(
            self,
            inputs=self.inputs[chosen],
            targets=self.targets[chosen],
            train=train,
            test=test,
            num_classes=min(count, self.num_classes),
        )

    def relabelled(self, targets: Int[Tensor, "seeds train"]) -> Draws:
        """The same images with other labels of the training images, each seed's own.

        Raises:
            ValueError: not one label for each training image of each seed.
        """
        if targets.shape != self.train.shape:
            raise ValueError(
                f"targets must be {tuple(self.train.shape)}, one a training image of each draw, "
                f"got {tuple(targets.shape)}"
            )
        own = self.train.flatten()
        return replace(
            self,
            inputs=torch.cat([self.inputs[own], self.inputs]),
            targets=torch.cat([targets.flatten().to(self.targets), self.targets]),
            train=torch.arange(len(own)).view_as(self.train),
            test=self.test + len(own),
        )

    def __repr__(self) -> str:
        seeds, count = self.train.shape
        return (
            f"{seeds} draws of {count:,} training and {self.test.shape[1]:,} test images from"
            f" {self.name}, {len(self.targets):,} images in all"
        )
