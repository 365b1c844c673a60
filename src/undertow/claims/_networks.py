"""The networks that most claims train, side by side as one program: on images, and on text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped
    from torch import Generator, Tensor, nn

    from undertow.data import Dataset, Draws, Images, Text
    from undertow.objective import Objective
    from undertow.train import Ensemble, Evaluation, Member

    Model = nn.Module | Sequence[nn.Module] | Callable[[Generator], nn.Module]

Loss = Literal["cross-entropy", "square"]


@dataclass(frozen=True)
class Networks:
    """An ensemble, with the data that each member is trained and tested on.

    Attributes:
        ensemble: the networks.
        pool: inputs `[rows, ...]` in the type in which the ensemble trains, and their targets.
        train: each member's training data, as rows of the pool.
        held_out: those that were kept back from it.
        num_classes: labels run from 0 to one less.
        characters: those that language models know; none of networks on images.
        loss: what they are trained on.
        smoothing: share of each label that cross-entropy spreads over all classes.
    """

    ensemble: Ensemble
    pool: tuple[Tensor, Tensor]
    train: Int[Tensor, "E n"]
    held_out: Int[Tensor, "E m"]
    num_classes: int
    characters: str = ""
    loss: Loss = "cross-entropy"
    smoothing: float = 0.0

    @property
    def inputs(self) -> Float[Tensor, "E n ..."]:
        """What each member is trained on, copied; `data_of` gives it for one."""
        return self.pool[0][self.train]

    @property
    def targets(self) -> Shaped[Tensor, "E n ..."]:
        """The targets of `inputs`."""
        return self.pool[1][self.train]

    @property
    def test(self) -> tuple[Float[Tensor, "E m ..."], Shaped[Tensor, "E m ..."]]:
        """Inputs and targets that each member was not trained on, copied."""
        return self.pool[0][self.held_out], self.pool[1][self.held_out]

    def data_of(self, member: int) -> tuple[Tensor, Tensor]:
        """Inputs `[n, ...]` and targets `[n, ...]` that one member is trained on."""
        rows = self.train[member]
        return self.pool[0][rows], self.pool[1][rows]

    def fit(self) -> Evaluation:
        """Every member's loss and accuracy on what it is trained on."""
        return self._evaluation(self.train)

    def tested(self) -> Evaluation:
        """Every member's loss and accuracy on what was kept back from it."""
        return self._evaluation(self.held_out)

    def measured(
        self, measure: Callable[[Objective], float], only: Sequence[int] | None = None
    ) -> list[float | None]:
        """What is measured of each member's `objective`; None of those that have diverged.

        Args:
            measure: from a member's loss on its own training data to a number.
            only: the members to measure, None of the others; by default all.
        """
        found: list[float | None] = [None] * len(self.ensemble.diverged)
        for member in self.ensemble.alive:
            if only is None or member in only:
                found[member] = measure(self.objective(member))
        return found

    def results(self) -> dict[str, Any]:
        """What is compared of trained networks, with a value for each, as `lab.rows_of` takes it.

        `diverged`, `loss` and its logarithm `log_loss` on what each is trained on, `test_loss` and
        `accuracy` on what was kept back.
        """
        fit, tested = self.fit(), self.tested()
        return {
            "diverged": self.ensemble.diverged,
            "loss": fit.loss,
            "log_loss": fit.loss.double().log(),
            "test_loss": tested.loss,
            "accuracy": tested.accuracy,
        }

    def losses_at(
        self, steps: Sequence[int], shown: int | None = None
    ) -> Float[Tensor, "readings E"]:
        """Every member's training loss after these numbers of steps; trains to each of them.

        Args:
            steps: of the rule, all in all since the start; they rise.
            shown: on how many of its training samples each is read; by default all.
        """
        import torch

        losses, samples = [], self.train[:, :shown]
        for taken in steps:
            self.ensemble.train(taken - self.ensemble.steps_taken)
            losses.append(self.ensemble.evaluate(*self.pool, samples=samples).loss)
        return torch.stack(losses)

    def objective(self, member: int, smoothing: float | None = None) -> Objective:
        """One member's cross-entropy on its own training data, as a function of its parameters.

        Args:
            member: which one.
            smoothing: share of each label that is spread over all classes: the mean over labels of
                which as many are drawn anew. By default as in training.
        """
        from undertow.objective import Objective

        share = self.smoothing if smoothing is None else smoothing
        module = self.ensemble.module(member)
        return Objective(module, _cross_entropy(share), self.data_of(member))

    def _evaluation(self, rows: Int[Tensor, "E n"]) -> Evaluation:
        inputs, labels = self.pool
        shown = _as_shown(self.loss, labels, self.num_classes, inputs)
        found = self.ensemble.evaluate(inputs, shown, samples=rows)
        if self.loss == "cross-entropy":
            return found
        right = self.ensemble.predict(inputs, samples=rows).argmax(2) == labels[rows]
        accuracy = right.double().mean(1).masked_fill(found.loss.isnan(), float("nan"))
        return replace(found, accuracy=accuracy)


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
        "cross-entropy": _cross_entropy(smoothing),
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
    data = pool[0], _as_shown(loss, targets, num_classes, pool[0])
    ensemble = Ensemble(made, losses[loss], data, members, samples=drawn.train, **options)
    kind: dict[str, Any] = {"loss": loss, "smoothing": smoothing}
    return Networks(ensemble, pool, drawn.train, drawn.test, num_classes, **kind)


def _cross_entropy(smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    from torch import nn
    from torch.nn import functional

    return nn.CrossEntropyLoss(label_smoothing=smoothing) if smoothing else functional.cross_entropy


def _as_shown(loss: Loss, labels: Tensor, num_classes: int, inputs: Tensor) -> Tensor:
    """Labels as the loss takes them."""
    if loss == "cross-entropy":
        return labels
    from torch.nn import functional

    return functional.one_hot(labels, num_classes).to(inputs)


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
