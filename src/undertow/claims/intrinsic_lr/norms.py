"""Norms of intrinsic-lr: at rest against the law, and on their way there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from undertow.claims import Networks, stream
from undertow.claims.intrinsic_lr.trials import (
    BATCHES,
    CLOCK,
    FAR,
    REPEATS,
    Clock,
    Rest,
    Rows,
    fresh,
    member,
    of_kind,
    trained_weights,
)
from undertow.lab import rows_of

if TYPE_CHECKING:
    from torch import Generator, Tensor


def of_rest(
    trials: Sequence[Rest] | Sequence[Clock], decay: float, factor: float = 1.0
) -> Networks:
    """A few networks of each trial, with momentum where it has any."""
    from undertow.train import rules

    first, modules, members = trials[0], list[Any](), []
    for trial in trials:
        modules += [fresh(trial, factor=factor)] * REPEATS
        for own in range(REPEATS):
            members.append(member(trial, own, first.lr, decay, momentum=first.momentum))
    return of_kind(trials, modules, members, rule=rules.momentum if first.momentum else rules.sgd)


def late(trial: Rest | Clock) -> list[int]:
    """Steps at which norms at rest are read, over the second half."""
    first, last = trial.horizon / 2 / trial.product, trial.horizon / trial.product
    parts = range(1, trial.readings + 1)
    return [round(first + (last - first) * part / trial.readings) for part in parts]


def rest(trials: Sequence[Rest]) -> list[Rows]:
    """Each layer's norm, the square of its gradients at unit norm, and the turn of a step."""
    import torch

    first, rows = trials[0], [Rows() for _ in trials]
    decay = first.product * (1 - first.momentum) / first.lr * first.decayed
    found = of_rest(trials, decay)
    generators = [stream(trial.seed, 3) for trial in trials]
    read: dict[str, list[Tensor]] = {}
    for _ in found.ensemble.read_at(late(first)):
        before, squares = trained_weights(found), square_gradients(found, generators)
        found.ensemble.train(1)
        for name, after in trained_weights(found).items():
            norm, cosine = before[name].norm(dim=1), torch.cosine_similarity(before[name], after)
            numbers = torch.stack([norm**4, norm**2 * squares[name], 1 - cosine])
            read.setdefault(name, []).append(numbers.unflatten(1, (len(trials), -1)).mean(2))
    for layer, readings in enumerate(read.values(), 1):
        fourth, square, lost = torch.stack(readings, 1)
        facts = {
            "layer": layer,
            "fourth": fourth.mean(0),
            "square": square.mean(0),
            # In root mean square: 1 - cos is what the moments tell.
            "turned": 2 * (lost.mean(0) / 2).sqrt().asin(),
        }
        for own, row in zip(rows, rows_of(facts), strict=True):
            own.append(row | (law(first, decay, row["square"]) if decay else {}))
    return rows


def law(trial: Rest, decay: float, square: float) -> dict[str, Any]:
    """What the closed forms make of the gradients' size."""
    from undertow import predict

    found = predict.equilibrium(trial.lr, decay, momentum=trial.momentum, gradient_sqnorm=square)
    assert found.norm is not None  # there is a size
    return {"predicted": found.norm**4, "predicted_turn": found.angular_update}


def square_gradients(found: Networks, generators: Sequence[Generator]) -> dict[str, Tensor]:
    """Mean square norm of the gradients of a few batches, by layer, for each member.

    The batches are drawn anew: what is measured of them has no part in how the weights came about.
    """
    import torch
    from torch.func import functional_call, grad, vmap
    from torch.nn import functional

    ensemble, (members, count) = found.ensemble, found.train.shape
    template = ensemble.module(0).train()

    def loss(weights: Any, buffers: Any, inputs: Tensor, labels: Tensor) -> Tensor:
        outputs = functional_call(template, (weights, buffers), (inputs,))
        return functional.cross_entropy(outputs, labels)

    shape = members // len(generators), ensemble.batch_size
    squares: dict[str, Tensor] = {}
    for _ in range(BATCHES):
        drawn = [torch.randint(count, shape, generator=own) for own in generators]
        rows = found.train.gather(1, torch.cat(drawn))
        data = found.pool[0][rows], found.pool[1][rows]
        state = ensemble.parameters(), ensemble.buffers()
        for name, own in vmap(grad(loss))(*state, *data).items():
            square = own.flatten(1).double().square().sum(1) / BATCHES
            squares[name] = squares[name] + square if name in squares else square
    return squares


def turn_back(trials: Sequence[Clock]) -> list[Rows]:
    """||w||^4 on its way, in parts of what it is at the end, mean over layers."""
    import torch

    first = trials[0]
    decay = first.product * (1 - first.momentum) / first.lr
    found = of_rest(trials, decay, FAR)

    def fourth() -> Tensor:
        own = [weights.norm(dim=1) ** 4 for weights in trained_weights(found).values()]
        return torch.stack(own).unflatten(1, (len(trials), -1)).mean(2)

    read = []
    steps = sorted({max(1, round(part / first.product)) for part in CLOCK})
    for _ in found.ensemble.read_at(steps):
        read.append(fourth())
    rest_at = torch.stack([fourth() for _ in found.ensemble.read_at(late(first))]).mean(0)
    ratios = (torch.stack(read) / rest_at).mean(1)
    return [
        [
            {"time": step * first.product, "ratio": float(ratio)}
            for step, ratio in zip(steps, own, strict=True)
        ]
        for own in ratios.unbind(1)
    ]
