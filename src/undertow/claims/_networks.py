"""The networks that most claims train, side by side as one program: on images, and on text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from undertow.claims._trained import Loss, Networks, as_shown, cross_entropy

if TYPE_CHECKING:
    from torch import Generator, nn

    from undertow.data import Dataset, Draws, Images, Text
    from undertow.train import Member

    Model = nn.Module | Sequence[nn.Module] | Callable[[Generator], nn.Module]


def networks(
    images: Images | Dataset | Draws,
    model: Callable[[Any, int], Model],
    members: Sequence[Member],
    *,
    flat: bool = True,
    classes: int | None = None,
    modulo: int | None = None,
    data_seeds: Sequence[int] | None = None,
    label_noise: float = 0.0,
    test_size: int | None = None,
    loss: Loss = "cross-entropy",
    smoothing: float = 0.0,
    **options: Any,
) -> Networks:
    """Networks on images, each on a draw of its own.

    Args:
        images: where the images come from; the images themselves, the same for all members; or
            draws of them, one for each.
        model: from the number of features (the shape of an image if not `flat`) and that of classes
            to what `train.Ensemble` makes networks of: a module that all of them start from, one
            for each, or a function of a generator.
        members: a network's seed and hyperparameters each.
        flat: whether images become vectors; otherwise they stay channels, height and width.
        classes: leave out the images of all classes but the first so many.
        modulo: what labels are taken modulo, such as 2 for their parity; None for all classes.
        data_seeds: one for each member, by which its images are split and drawn as by `data.load`;
            by default the member's own seed. Members with one seed see the same images.
        label_noise: share of each member's training labels that its data seed draws at random.
        test_size: how many images each member is tested on; None for all that are there.
        loss: of the labels; `square` is the mean square of the outputs less the one-hot labels.
        smoothing: share of each label that cross-entropy spreads over all classes.
        options: of `train.Ensemble`: `batch_size`, `rule`, `path`, `dtype`, `device`.

    Raises:
        ValueError: not one data seed or one draw for each member; any data seeds, noise or a size
            of the test for images that were loaded or drawn already; or another loss.
    """
    from torch.nn import functional

    from undertow.data import Draws, Images
    from undertow.train import Ensemble

    losses: dict[str, Any] = {
        "cross-entropy": cross_entropy(smoothing),
        "square": functional.mse_loss,
    }
    if loss not in losses:
        raise ValueError(f"loss must be one of {', '.join(losses)}, got {loss!r}")
    if isinstance(images, Images):
        seeds = [member.seed for member in members] if data_seeds is None else list(data_seeds)
        if len(seeds) != len(members):
            raise ValueError(
                f"data_seeds must be one for each of the {len(members)} members, got {len(seeds)}"
            )
        drawn = images.draw(seeds, label_noise=label_noise, test_size=test_size)
    else:
        if data_seeds is not None or label_noise or test_size is not None:
            raise ValueError(
                "data_seeds, label_noise and test_size are for images that are yet to be drawn; "
                f"give Images rather than a {type(images).__name__}"
            )
        drawn = images if isinstance(images, Draws) else images.alike(len(members))
        if len(drawn.train) != len(members):
            raise ValueError(
                f"images must be a draw for each of the {len(members)} members, got "
                f"{len(drawn.train)} draws"
            )
    if classes is not None:
        drawn = drawn.of_classes(classes)
    targets, num_classes = drawn.targets, drawn.num_classes
    if modulo is not None:
        num_classes, targets = modulo, targets % modulo
    inputs = drawn.inputs.flatten(1) if flat else drawn.inputs
    pool = inputs.to(options.get("dtype", inputs.dtype)), targets
    shape = tuple(inputs.shape[1:])
    made = model(shape[0] if flat else shape, num_classes)
    data = pool[0], as_shown(loss, targets, num_classes, pool[0])
    ensemble = Ensemble(made, losses[loss], data, members, samples=drawn.train, **options)
    kind: dict[str, Any] = {"loss": loss, "smoothing": smoothing}
    return Networks(ensemble, pool, drawn.train, drawn.test, num_classes, **kind)


def perceptrons(
    images: Images | Dataset | Draws,
    hidden: Sequence[int],
    members: Sequence[Member],
    *,
    activation: str = "relu",
    bias: bool = True,
    init_seeds: Sequence[int] | None = None,
    **options: Any,
) -> Networks:
    """Networks of these hidden widths on images as vectors, each on a draw of its own.

    Args:
        images: as of `networks`.
        hidden: the widths of the hidden layers.
        members: a network's seed and hyperparameters each.
        activation: as `models.mlp` names it.
        bias: whether layers have biases.
        init_seeds: one for each member, of the generators of initial weights; by default those are
            decided by the members' own seeds.
        options: of `networks` (`classes`, `data_seeds`, ...) and of `train.Ensemble`.
    """
    from undertow import models

    def model(features: int, classes: int) -> Model:
        make = partial(models.mlp, (features, *hidden, classes), activation=activation, bias=bias)
        return _started(make, init_seeds)

    return networks(images, model, members, **options)


def convolutional(
    images: Images | Dataset,
    channels: Sequence[int],
    members: Sequence[Member],
    *,
    init_seeds: Sequence[int] | None = None,
    **options: Any,
) -> Networks:
    """Networks of so many channels a convolution and a linear layer (`models.conv_net`) on images.

    Args:
        images: where the images come from; or the images themselves, the same for all members.
        channels: of each convolution.
        members: a network's seed and hyperparameters each.
        init_seeds: one for each member, of the generators of initial weights; by default those are
            decided by the members' own seeds.
        options: of `networks` (`classes`, `data_seeds`, ...) and of `train.Ensemble`.
    """
    from undertow import models

    def model(shape: tuple[int, int, int], classes: int) -> Model:
        return _started(partial(models.conv_net, shape, channels, classes), init_seeds)

    return networks(images, model, members, flat=False, **{"path": "vmap"} | options)


def _started(make: Callable[..., nn.Module], init_seeds: Sequence[int] | None) -> Model:
    """What `train.Ensemble` takes: each network drawn by its own seed, or by the member's."""
    import torch

    if init_seeds is None:
        return lambda generator: make(generator=generator)
    return [make(generator=torch.Generator().manual_seed(seed)) for seed in init_seeds]


def language_models(
    text: Text,
    members: Sequence[Member],
    *,
    after: Networks | None = None,
    init_seeds: Sequence[int] | None = None,
    data_seeds: Sequence[int] | None = None,
    test_size: int = 512,
    **options: Any,
) -> Networks:
    """Causal transformers of one block of width 32, each on windows of its own.

    Args:
        text: where the windows come from.
        members: a network's seed and hyperparameters each.
        after: language models that were trained on another text with windows as long, one for each
            member, which goes on from it: fine-tuning. What they do not know is left out of the
            text. By default, transformers drawn anew.
        init_seeds: one for each member, of the generators of initial weights; by default the
            member's own seed.
        data_seeds: one for each member, by which its windows are drawn; by default the member's
            own seed. Members with one seed see the same windows.
        test_size: windows of the text's last fifth on which each is tested.
        options: of `train.Ensemble`: `batch_size`, `rule`, `dtype`, `device`.
    """
    import torch
    from torch.nn import functional

    from undertow import models
    from undertow.train import Ensemble

    own = [member.seed for member in members]
    characters = after.characters if after else None
    data_seeds = own if data_seeds is None else data_seeds
    drawn = sorted(set(data_seeds))
    windows = [text.load(test_size=test_size, seed=seed, characters=characters) for seed in drawn]
    inputs, targets = (
        torch.cat(
            [getattr(each, f"{part}_{kind}") for each in windows for part in ("train", "test")]
        )
        for kind in ("inputs", "targets")
    )
    rows = torch.arange(len(inputs)).view(len(drawn), -1)[[drawn.index(s) for s in data_seeds]]
    train, held_out = rows.tensor_split([len(windows[0].train_inputs)], dim=1)
    known = windows[0].characters
    modules = (
        [after.ensemble.module(member) for member in range(len(members))]
        if after
        else _started(
            partial(models.transformer, len(known), text.context, depth=1),
            own if init_seeds is None else init_seeds,
        )
    )
    pool, options = (inputs, targets), {"path": "vmap", "samples": train} | options
    ensemble = Ensemble(modules, functional.cross_entropy, pool, members, **options)
    return Networks(ensemble, pool, train, held_out, len(known), characters=known)
