"""The probability of a label where only the best pixels of a map are kept, over pixel budgets.

    f_k(x, a) = f(x on the k pixels of largest attribution, z elsewhere; a)

Ranks come from one sort; every budget is a comparison with them, and all run in large batches.
Where equal values straddle a budget, pixels among them are kept at random, and averaged over draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from undertow.measure.saliency._backgrounds import Backgrounds
from undertow.measure.saliency._classifier import Classifier
from undertow.measure.saliency._memory import blocks, need
from undertow.objective import whole_number


@dataclass(frozen=True, eq=False)
class Budgets:
    """How many pixels are kept.

    Attributes:
        counts: ascending.
        pixels: there are.
    """

    counts: tuple[int, ...]
    pixels: int

    @property
    def shares(self) -> tuple[float, ...]:
        """Of all pixels."""
        return tuple(count / self.pixels for count in self.counts)


@dataclass(frozen=True, eq=False)
class Scoring:
    """How maps are scored.

    Attributes:
        filling: what stands where pixels are not kept.
        picks: which of it, each is averaged over.
        budgets: pixels that are kept.
        orders: `[draws, pixels]` random orders in which equal values come.
        memory: bytes that a block of masked inputs may take.
    """

    filling: Backgrounds
    picks: Int64[Tensor, " backgrounds"]
    budgets: Budgets
    orders: Int64[Tensor, "draws pixels"]
    memory: int


def budgets_of(given: int | Sequence[float], spatial: tuple[int, ...]) -> Budgets:
    """So many equal steps up to the whole input, or shares of it.

    Raises:
        TypeError, ValueError: no whole number, or shares outside (0, 1].
    """
    pixels = math.prod(spatial)
    if isinstance(given, int):
        steps = min(whole_number("budgets", given), pixels)
        shares = [(step + 1) / steps for step in range(steps)]
    else:
        shares = sorted(float(share) for share in given)
        if not shares or not 0 < shares[0] <= shares[-1] <= 1:
            raise ValueError(f"budgets must be shares in (0, 1], got {shares}")
    counts = {max(1, round(share * pixels)) for share in shares}
    if min(counts) == pixels:
        raise ValueError(f"budgets must hold one below the whole input, got {sorted(counts)}")
    return Budgets(tuple(sorted(counts)), pixels)


def orders_of(pixels: int, draws: int, generator: torch.Generator) -> Int64[Tensor, "draws pixels"]:
    """Random orders, the same for all inputs and labels."""
    return torch.rand(draws, pixels, dtype=torch.float64, generator=generator).argsort(1)


def curves(
    network: Classifier,
    maps: Float[Tensor, "n maps *spatial"],
    labels: Int64[Tensor, "n labels"],
    scoring: Scoring,
) -> tuple[Float64[Tensor, "n labels budgets"], Bool[Tensor, "n labels"]]:
    """The probability of each label at each budget, and which of them are averaged over ties."""
    count, each = labels.shape
    flat = maps.flatten(2).flatten(0, 1)
    tied = _ties(flat, scoring.budgets)
    # One order for each map, and more for one with ties.
    repeats = torch.where(tied, len(scoring.orders), 1)
    which = torch.arange(len(flat), device=flat.device).repeat_interleave(repeats)
    draw = torch.arange(len(which), device=flat.device) - (repeats.cumsum(0) - repeats)[which]
    shared = maps.shape[1] == 1
    rows = which if shared else which // each
    wanted = labels[rows] if shared else labels.flatten()[which][:, None]

    def run(some: slice) -> Tensor:
        kept = _kept(flat[which[some]], scoring, draw[some])
        return _probabilities(network, kept, rows[some], wanted[some], scoring)

    with network.running(), torch.no_grad():
        fits = need(lambda most: run(slice(0, most)), len(which))
        size = fits.rows(scoring.memory, "curve")
        found = torch.cat([run(some) for some in blocks(len(which), size)])
    total = found.new_zeros(len(flat), *found.shape[1:]).index_add_(0, which, found)
    mean = total / repeats[:, None, None]
    values = mean if shared else mean.view(count, each, -1)
    if scoring.budgets.counts[-1] == scoring.budgets.pixels:
        whole = network.whole.exp().gather(1, labels)
        values = torch.cat([values, whole[..., None]], -1)
    return values, tied.view(count, -1).expand(count, each)


def _ties(flat: Float[Tensor, "maps pixels"], budgets: Budgets) -> Bool[Tensor, " maps"]:
    """Whether equal values lie on both sides of a budget."""
    ordered = flat.sort(1, descending=True).values
    at = torch.tensor([k for k in budgets.counts if k < budgets.pixels], dtype=torch.int64)
    at = at.to(flat.device)
    return (ordered[:, at - 1] == ordered[:, at]).any(1)


def _kept(
    values: Float[Tensor, "orders pixels"], scoring: Scoring, draw: Int64[Tensor, " orders"]
) -> Bool[Tensor, "orders budgets pixels"]:
    """Which pixels each budget keeps, equal values in the drawn order."""
    order = scoring.orders.to(values.device)[draw]
    sorted_places = values.gather(1, order).argsort(dim=1, descending=True, stable=True)
    places = order.gather(1, sorted_places)
    ranks = torch.empty_like(places).scatter_(
        1, places, torch.arange(values.shape[1], device=values.device).expand_as(places)
    )
    counts = [k for k in scoring.budgets.counts if k < scoring.budgets.pixels]
    return ranks[:, None] < torch.tensor(counts, device=ranks.device)[:, None]


def _probabilities(
    network: Classifier,
    kept: Bool[Tensor, "orders budgets pixels"],
    rows: Int64[Tensor, " orders"],
    labels: Int64[Tensor, "orders labels"],
    scoring: Scoring,
) -> Float64[Tensor, "orders labels budgets"]:
    """Of each order's labels, the mean over backgrounds."""
    orders, count, _ = kept.shape
    masks = network.over(kept.unflatten(2, network.spatial))
    inputs = network.inputs[rows][:, None]
    total = torch.zeros(orders, labels.shape[1], count, dtype=torch.float64, device=kept.device)
    for pick in scoring.picks.split(1):
        masked = torch.where(masks, inputs, scoring.filling.at(rows, pick))
        own = rows[:, None].expand(-1, count).flatten()
        logits = network.logits(masked.flatten(0, 1), own).view(orders, count, -1)
        found = logits.double().softmax(2).transpose(1, 2)
        total += found.gather(1, labels[..., None].expand(-1, -1, count))
    return total / len(scoring.picks)


def area(curves: Float64[Tensor, "*some budgets"]) -> Float64[Tensor, "*some"]:
    """The score g(x, a): the mean over budgets."""
    return curves.mean(-1)
