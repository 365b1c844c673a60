"""Near the flow and away from it, in epochs at two rules for the rate, and far past zero loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from undertow.claims.margin import Margin
from undertow.data import Images
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from torch import Tensor

    from undertow.objective import Objective
    from undertow.train import LogDomain

DEGREE = 3  # of all networks: three layers
READINGS = 20  # of a run near the flow, equally spaced
START = -2.0  # the log loss at which a descent begins, below every threshold
PATIENCE = 10_000  # steps to the next goal before a network counts as not separating its images
GOALS = (-1.0, -10.0, -25.0, -50.0, -200.0, -800.0)  # log losses of readings on the way
FINER = 4  # times as small are the steps of convolutional networks, and as short their runs
BIAS = 1.0  # standard deviation of biases
SQUARE_RATE = 0.02  # of the descent on the square loss

Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network without biases, on images that its seed draws."""

    images: Images
    width: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Descent(Trained):
    """Full-batch descent on log loss by steps of one first-order drop, from a separated start.

    `kind` is plain; or biases: the layers have them; square: the loss is the square of the distance
    to one-hot labels.
    """

    channels: int
    descent: float
    drop: float
    network: str = "perceptron"
    loss: str = "logistic"
    classes: int = 10
    kind: str = "plain"


@dataclass(frozen=True, kw_only=True)
class Epochs(Trained):
    """Mini-batches at a constant rate, or at alpha / loss as the paper has it."""

    batch_size: int
    epochs: int
    rule: str


@dataclass(frozen=True, kw_only=True)
class Far(Trained):
    """Normalised steps until log loss is this, with readings on the way."""

    log_loss: float
    shown: int


def experiments(knobs: Margin, seed: int) -> dict[str, Experiment]:
    """Descents by family, by step and with what must break them; epochs; and far runs."""
    own, twice = (seeds(seed, count) for count in (knobs.seeds, 2 * knobs.seeds))
    fine = min(knobs.drops)
    two: list[dict[str, Any]] = [
        {"loss": loss, "classes": 2} for loss in ("exponential", "logistic", "cubic")
    ]
    cells: list[dict[str, Any]] = [{"drop": drop} for drop in knobs.drops]
    cells += [{"drop": fine} | each for each in two]
    shorter = {"drop": fine / FINER, "descent": knobs.descent / FINER}
    cells += [{"network": "convolutional"} | shorter]
    cells += [{"drop": fine, "kind": kind} for kind in ("biases", "square")]
    rules = ("constant", "loss-based")
    return {
        "descents": Experiment(grid(Descent, knobs, cell=cells, seed=own), descend, ("seed",)),
        "epochs": Experiment(grid(Epochs, knobs, rule=rules, seed=twice), train, ("seed",)),
        "far": Experiment(grid(Far, knobs, seed=twice), go_far, ("seed",)),
    }


def networks_of(
    trials: Sequence[Trained],
    *,
    channels: int | None = None,
    classes: int = 10,
    biases: float = 0.0,
) -> tuple[LogDomain, Any]:
    """Networks side by side, each on its seed's images, and the draws."""
    import torch

    from undertow import models
    from undertow.train import LogDomain

    drawn = trials[0].images.draw([trial.seed for trial in trials]).of_classes(classes)
    inputs = drawn.inputs if channels else drawn.inputs.flatten(1)
    made = []
    for trial in trials:
        generator = torch.Generator().manual_seed(trial.seed)
        shared: dict[str, Any] = {"bias": biases > 0, "generator": generator}
        if channels:
            shape = cast(tuple[int, int, int], tuple(inputs.shape[1:]))
            net = models.conv_net(shape, (channels, 2 * channels), drawn.num_classes, **shared)
        else:
            sizes = (inputs.shape[1], trial.width, trial.width, drawn.num_classes)
            net = models.mlp(sizes, **shared)
        with torch.no_grad():
            for name, value in net.named_parameters():
                if name.endswith("bias"):
                    value.copy_(biases * torch.randn(value.shape, generator=generator))
        made.append(net)
    return LogDomain(made, inputs[drawn.train], drawn.targets[drawn.train]), drawn


def add(rows: list[Rows], facts: dict[str, Any], steps: Tensor) -> None:
    """A record more of each run; without numbers where a network did not arrive (NaN steps)."""
    there = steps.isfinite().tolist()
    for own, row, known in zip(rows, rows_of(facts), there, strict=True):
        own.append({name: each if known and each == each else None for name, each in row.items()})


# ---- near the flow


def descend(trials: Sequence[Descent]) -> list[Rows]:
    """Runs side by side, a record for every reading; `falls` counts steps up to it."""
    from undertow.train import descend_log_loss, past_zero_loss

    first = trials[0]
    networks, _ = networks_of(
        trials,
        channels=first.channels if first.network == "convolutional" else None,
        classes=first.classes,
        biases=BIAS if first.kind == "biases" else 0.0,
    )
    begun = past_zero_loss(networks, START, relative_step=5e-3, period=10, max_steps=PATIENCE)
    networks.loss = cast(Any, first.loss)
    steps = max(1, round(first.descent / first.drop / READINGS))
    rows: list[Rows] = [[] for _ in trials]
    facts: dict[str, Any] = {"falls": networks.norm() * 0, "deepest": networks.norm() * 0}
    for reading in range(READINGS + 1):
        now = {
            "step": reading * steps,
            "log_loss": networks.log_loss(),
            **networks.normalized_margins(DEGREE),
            **facts,
        }
        if first.kind == "plain" and reading in (0, READINGS):
            now["kkt"] = kkt_residuals(networks)
        add(rows, now, begun)
        if reading == READINGS:
            break
        if first.kind == "square":
            descend_square(networks, steps)
        else:
            dips = descend_log_loss(networks, steps, drop=first.drop, degree=DEGREE)
            facts = {
                "falls": facts["falls"] + dips.falls,
                "deepest": facts["deepest"].maximum(dips.deepest),
            }
    return rows


def descend_square(networks: LogDomain, steps: int) -> None:
    """Gradient descent on the mean square distance of the scores to one-hot labels."""
    import torch
    from torch.nn.functional import one_hot

    for _ in range(steps):
        at = {name: value.requires_grad_() for name, value in networks.params.items()}
        scores = networks.scores(at, networks.inputs)
        goal = one_hot(networks.labels, scores.shape[-1]).to(scores)
        loss = (scores - goal).square().mean((1, 2)).sum()
        slopes = torch.autograd.grad(loss, list(at.values()))
        with torch.no_grad():
            networks.params = {
                name: (value - SQUARE_RATE * slope).detach()
                for (name, value), slope in zip(at.items(), slopes, strict=True)
            }


def kkt_residuals(networks: LogDomain) -> list[float | None]:
    """Every member's, with the best multipliers; None of one that does not separate its data."""
    from undertow import measure

    return [
        measure.kkt_residual(objective_of(networks, member), degree=DEGREE).value
        if least > 0
        else None
        for member, least in enumerate(networks.margins().amin(1).tolist())
    ]


def objective_of(networks: LogDomain, member: int) -> Objective:
    """One network with the cross-entropy of its images."""
    from torch.nn.functional import cross_entropy

    from undertow.objective import Objective

    data = networks.inputs[member], networks.labels[member]
    return Objective(networks.module(member), cross_entropy, data)


# ---- epochs


def train(trials: Sequence[Epochs]) -> list[Rows]:
    """What as many epochs lead to."""
    import torch

    from undertow.train import loss_based_epochs

    first = trials[0]
    networks, drawn = networks_of(trials)
    generators = [torch.Generator().manual_seed(trial.seed) for trial in trials]
    loss_based_epochs(
        networks,
        first.epochs,
        batch_size=first.batch_size,
        generators=generators,
        constant=first.rule == "constant",
    )
    facts = {"log_loss": networks.log_loss(), **networks.normalized_margins(DEGREE)}
    return [[row] for row in rows_of(facts | {"accuracy": accuracies(networks, drawn)})]


def accuracies(networks: LogDomain, drawn: Any) -> Tensor:
    """The share of test images that each member decides right."""
    import torch

    shape = networks.inputs.shape[2:]
    inputs = drawn.inputs[drawn.test].double().view(*drawn.test.shape, *shape)
    with torch.no_grad():
        found = networks.scores(networks.params, inputs).argmax(2)
    return (found == drawn.targets[drawn.test]).double().mean(1)


# ---- far


def go_far(trials: Sequence[Far]) -> list[Rows]:
    """Runs side by side, a record for every goal; distances and KKT residuals at both ends."""
    from undertow import measure
    from undertow.train import past_zero_loss

    last = trials[0].log_loss
    networks, drawn = networks_of(trials)
    rows: list[Rows] = [[] for _ in trials]
    seen: list[list[measure.Margins]] = [[] for _ in trials]
    goals = [goal for goal in GOALS if goal > last] + [last]
    for goal in goals:
        steps = past_zero_loss(networks, goal, relative_step=2e-3, max_steps=PATIENCE)
        facts: dict[str, Any] = {
            "reached": networks.log_loss(),
            **networks.normalized_margins(DEGREE),
            "accuracy": accuracies(networks, drawn),
        }
        if goal in (goals[0], goals[-1]):
            facts["kkt"] = kkt_residuals(networks)
            facts |= distances(networks, drawn, trials[0].shown)
        facts["growth"] = growth = []
        for member, (own, arrived) in enumerate(zip(seen, steps.isfinite().tolist(), strict=True)):
            if arrived:
                own.append(measure.margins(objective_of(networks, member), degree=DEGREE))
            growth.append(measure.margin_from_growth(own).value if len(own) > 2 else math.nan)
        add(rows, facts, steps)
        for run in rows:
            run[-1]["goal"] = goal
    return rows


def distances(networks: LogDomain, drawn: Any, shown: int) -> dict[str, list[float]]:
    """To the decision boundary: of the nearest training image, and the median of test images."""
    import torch

    from undertow import measure

    found: dict[str, list[float]] = {"nearest": [], "held_out": []}
    for member, (inputs, labels) in enumerate(zip(networks.inputs, networks.labels, strict=True)):
        rows = drawn.test[member][:shown]
        test = drawn.inputs[rows].double().view(len(rows), *inputs.shape[1:])
        images, classes = torch.cat([inputs, test]), torch.cat([labels, drawn.targets[rows]])
        upper = measure.decision_distance(networks.module(member), images, classes).upper
        found["nearest"].append(float(upper[: len(inputs)].min()))
        found["held_out"].append(float(upper[len(inputs) :].median()))
    return found
