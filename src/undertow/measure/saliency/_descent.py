"""Descent on the masks of many inputs and labels at once: Adam, in rounds that double.

Each mask goes down on its own; which others share a block makes no difference to it. Backgrounds
are drawn in advance and are the same for all, so that masks of two labels differ by the label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from undertow.measure.saliency._backgrounds import Backgrounds
from undertow.measure.saliency._classifier import NO_GRADIENT, Classifier
from undertow.measure.saliency._masks import Fit, Price, Shape, fits
from undertow.measure.saliency._memory import Need, blocks, need
from undertow.objective import out_of_memory

_FIRST = 60  # steps of the first round
_BETAS, _EPS = (0.9, 0.999), 1e-8
_JUDGING = 64  # backgrounds on which a round is judged


@dataclass(frozen=True)
class Lanes:
    """Masks that are looked for: the input, the label and the start of each."""

    rows: Int64[Tensor, " lanes"]
    labels: Int64[Tensor, " lanes"]
    start: Float[Tensor, "lanes certificates *cells"]

    def __len__(self) -> int:
        return len(self.rows)

    def some(self, which: slice) -> Lanes:
        """A part of them."""
        return Lanes(self.rows[which], self.labels[which], self.start[which])


@dataclass(frozen=True, eq=False)
class Found:
    """Where descent has ended, for each lane.

    `gained` is by how much the last round, of twice the steps of the one before, has lowered the
    objective; infinite after a single round.
    """

    weights: Float[Tensor, "lanes certificates *cells"]
    probabilities: Float64[Tensor, "lanes certificates"]
    objective: Float64[Tensor, " lanes"]
    gained: Float64[Tensor, " lanes"]
    steps: Int64[Tensor, " lanes"]


@dataclass(frozen=True, eq=False)
class Problem:
    """What masks are looked for to minimise, and for how long.

    Attributes:
        lr: Adam's, at the start of each round; it falls to zero in a line.
        rounds: steps of each.
        atol: a lane is done once a round lowers its objective by less, in nats.
        picks: `[steps, draws]`, the backgrounds of each step.
        judged: those on which rounds are compared.
    """

    classifier: Classifier
    shape: Shape
    price: Price
    fit: Fit
    filling: Backgrounds
    lr: float
    rounds: Sequence[int]
    atol: float
    picks: Int64[Tensor, "steps draws"]
    judged: Int64[Tensor, " draws"]

    def values(
        self, lanes: Lanes, weights: Tensor, picks: Int64[Tensor, " draws"]
    ) -> tuple[Float[Tensor, " lanes"], Float[Tensor, "lanes certificates"]]:
        """Each lane's objective, over its certificates, and the probabilities of its label."""
        network = self.classifier
        masks = self.shape.masks(weights)
        inputs = network.inputs[lanes.rows][:, None, None]
        filling = self.filling.at(lanes.rows, picks)[:, None]
        masked = torch.lerp(filling, inputs, network.over(masks[:, :, None]))
        shape = masked.shape[:3]
        rows = lanes.rows.view(-1, 1, 1).expand(shape).flatten()
        found = network.log_probabilities(masked.flatten(0, 2), rows).view(*shape, -1)
        if weights.requires_grad and not found.requires_grad:
            raise ValueError(NO_GRADIENT)
        kept = found.detach().double()
        chosen = lanes.labels.view(-1, 1, 1, 1).expand(*shape, 1)
        probabilities = kept.gather(3, chosen)[..., 0].exp().mean(2)
        objective = fits(found, lanes.labels, self.fit) + self.price.of(masks)
        return objective.mean(1), probabilities

    def judge(self, lanes: Lanes, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The same on the backgrounds that rounds are compared on, in float64."""
        total = [torch.zeros(()), torch.zeros(())]
        for some in blocks(len(self.judged), self.picks.shape[1]):
            picks = self.judged[some]
            found = self.values(lanes, weights, picks)
            total = [t + len(picks) * part.double() for t, part in zip(total, found, strict=True)]
        return total[0] / len(self.judged), total[1] / len(self.judged)

    def gradient(self, lanes: Lanes, weights: Tensor, step: int) -> Tensor:
        """Of each lane's objective on the backgrounds of a step."""
        leaf = weights.detach().requires_grad_()
        objective, _ = self.values(lanes, leaf, self.picks[step])
        return torch.autograd.grad(objective.sum(), leaf)[0]

    def need(self, lanes: Lanes) -> Need:
        """What a block of lanes takes."""

        def run(count: int) -> None:
            some = lanes.some(slice(0, count))
            gradient = self.gradient(some, some.start, 0)
            _stepped(some.start, gradient, (gradient, gradient), 1, self.lr)

        return need(run, len(lanes))

    def solve(self, lanes: Lanes, size: int, advance: Callable[[int], None]) -> Found:
        """All lanes, in blocks of a size that is halved where memory runs out."""
        done: list[Found] = []
        at = 0
        while at < len(lanes):
            some = lanes.some(slice(at, at + size))
            try:
                found = self._block(some)
            except RuntimeError as error:
                if not out_of_memory(error) or size == 1:
                    raise
                size = max(1, size // 2)
                continue
            done.append(found)
            at += len(some)
            advance(len(some))
        return Found(*(torch.cat([getattr(f, name) for f in done]) for name in vars(done[0])))

    def _block(self, lanes: Lanes) -> Found:
        weights = lanes.start.clone()
        shape = lanes.start.shape[:2]
        objective = torch.full(shape[:1], torch.inf, dtype=torch.float64, device=weights.device)
        probabilities = torch.zeros(shape, dtype=torch.float64, device=weights.device)
        gained = objective.clone()
        steps = torch.zeros(len(lanes), dtype=torch.int64)
        active = torch.arange(len(lanes), device=weights.device)
        taken = 0
        for index, length in enumerate(self.rounds):
            some = Lanes(lanes.rows[active], lanes.labels[active], lanes.start[active])
            moved = self._round(some, weights[active], taken, length)
            taken += length
            with torch.no_grad():
                now, chosen = self.judge(some, moved)
            steps[active.cpu()] = taken
            fall = objective[active] - now
            better = fall > 0
            gained[active] = fall.clamp_min(0) if index else torch.inf
            weights[active[better]] = moved[better]
            objective[active[better]] = now[better]
            probabilities[active[better]] = chosen[better]
            active = active[gained[active] > self.atol]
            if not len(active):
                break
        return Found(weights, probabilities, objective, gained, steps)

    def _round(self, lanes: Lanes, weights: Tensor, taken: int, length: int) -> Tensor:
        moments = torch.zeros_like(weights), torch.zeros_like(weights)
        for step in range(length):
            gradient = self.gradient(lanes, weights, taken + step)
            lr = self.lr * (1 - step / length)
            weights, moments = _stepped(weights, gradient, moments, step + 1, lr)
        return weights


def rounds_of(steps: int) -> list[int]:
    """Rounds that double, of at most so many steps in all; one of all steps if these are few."""
    lengths = [min(_FIRST, steps)]
    while sum(lengths) + 2 * lengths[-1] <= steps:
        lengths.append(2 * lengths[-1])
    return lengths


def judging(filling: Backgrounds, generator: torch.Generator) -> Int64[Tensor, " draws"]:
    """The backgrounds that rounds are compared on."""
    return filling.picks(1, _JUDGING, generator)[0]


def _stepped(
    weights: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], step: int, lr: float
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Adam."""
    first = torch.lerp(gradient, moments[0], _BETAS[0])
    second = torch.lerp(gradient.square(), moments[1], _BETAS[1])
    size = (second / (1 - _BETAS[1] ** step)).sqrt() + _EPS
    return weights - lr * (first / (1 - _BETAS[0] ** step)) / size, (first, second)
