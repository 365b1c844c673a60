"""The networks that most claims train: perceptrons on images, side by side as one program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from undertow.data import Dataset, Images
    from undertow.objective import Objective
    from undertow.train import Ensemble, Evaluation, Member

    Model = nn.Module | Sequence[nn.Module] | Callable[[Generator], nn.Module]


@dataclass(frozen=True)
class Networks:
    """An ensemble, with the images that it is trained and tested on as vectors.

    Attributes:
        ensemble: the networks.
        inputs: `[n, features]`, of the type in which the ensemble trains.
        targets: `[n]`, class numbers.
        test: inputs and targets that were kept back.
        num_classes: labels run from 0 to one less.
    """

    ensemble: Ensemble
    inputs: Tensor
    targets: Tensor
    test: tuple[Tensor, Tensor]
    num_classes: int

    def fit(self) -> Evaluation:
        """Losses and accuracies on the training images."""
        return self.ensemble.evaluate(self.inputs, self.targets)

    def tested(self) -> Evaluation:
        """Losses and accuracies on the test images."""
        return self.ensemble.evaluate(*self.test)

    def objective(self, member: int) -> Objective:
        """One network's loss on the training images, as a function of its parameters."""
        from torch.nn import functional

        from undertow.objective import Objective

        module = self.ensemble.module(member)
        return Objective(module, functional.cross_entropy, (self.inputs, self.targets))


def networks(
    images: Images | Dataset,
    model: Callable[[int, int], Model],
    members: Sequence[Member],
    **options: Any,
) -> Networks:
    """Networks on images as vectors, with the cross-entropy.

    Args:
        images: where the images come from, or the images themselves.
        model: from the numbers of features and of classes to what `train.Ensemble` makes networks
            of: a module that all of them start from, one for each, or a function of a generator.
        members: a network's seed and hyperparameters each.
        options: of `train.Ensemble`: `batch_size`, `rule`, `path`, `dtype`, `device`.
    """
    from torch.nn import functional

    from undertow.data import Images
    from undertow.train import Ensemble

    loaded = images.load() if isinstance(images, Images) else images
    dtype = options.get("dtype", loaded.train_inputs.dtype)
    inputs, test_inputs = (
        own.flatten(1).to(dtype) for own in (loaded.train_inputs, loaded.test_inputs)
    )
    targets = loaded.train_targets
    made = model(inputs.shape[1], loaded.num_classes)
    ensemble = Ensemble(made, functional.cross_entropy, (inputs, targets), members, **options)
    test = (test_inputs, loaded.test_targets)
    return Networks(ensemble, inputs, targets, test, loaded.num_classes)


def perceptrons(
    images: Images | Dataset,
    hidden: Sequence[int],
    members: Sequence[Member],
    *,
    activation: str = "relu",
    bias: bool = True,
    init_seeds: Sequence[int] | None = None,
    **options: Any,
) -> Networks:
    """Networks of these hidden widths on images as vectors, with the cross-entropy.

    Args:
        images: where the images come from, or the images themselves.
        hidden: the widths of the hidden layers.
        members: a network's seed and hyperparameters each.
        activation: as `models.mlp` names it.
        bias: whether layers have biases.
        init_seeds: one for each member, of the generators of initial weights; by default those are
            decided by the members' own seeds.
        options: of `train.Ensemble`: `batch_size`, `rule`, `path`, `dtype`, `device`.
    """
    import torch

    from undertow import models

    def model(features: int, classes: int) -> Model:
        sizes = (features, *hidden, classes)
        shape: dict[str, Any] = {"activation": activation, "bias": bias}

        def drawn(generator: Generator) -> nn.Module:
            return models.mlp(sizes, **shape, generator=generator)

        if init_seeds is None:
            return drawn
        return [drawn(torch.Generator().manual_seed(seed)) for seed in init_seeds]

    return networks(images, model, members, **options)
