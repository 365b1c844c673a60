"""Who of K workers holds which samples: equal shards at random, by class, or by Dirichlet mixtures.

Every shard has n // K samples, as a round takes the same number of steps of all workers; what is
left of n is left out at random. The rows of a shard ascend, so that one shard alone is the data.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from undertow.objective import whole_number

Split = Literal["split", "by_class"]
How = Split | tuple[Literal["dirichlet"], float]


def partition(
    targets: Shaped[Tensor, "n ..."],
    num_workers: int,
    how: How = "split",
    *,
    generator: torch.Generator,
) -> Int[Tensor, "workers share"]:
    """The samples of each of K workers: rows of the data, `[K, n // K]`, disjoint and ascending.

    Args:
        targets: the targets of all samples.
        num_workers: K.
        how: `split` (equal shards at random); `by_class` (sorted by class and cut, so that a worker
            sees as few classes as can be); or `("dirichlet", c)`: each worker draws its mixture of
            classes from a Dirichlet distribution with parameters c x (number of classes) x
            frequency of the class, and takes samples by it as long as there are any. Small c:
            hardly a class shared; large c: every mixture that of the data.
        generator: what is drawn from, on the CPU.

    Raises:
        TypeError: K is no whole number.
        ValueError: a worker would have no sample, `how` is none of these, or the targets are no
            class labels where classes are needed: one whole number a sample.

    Source: mixtures as in Hsu, Qi and Brown 2019 (their alpha is c x number of classes), with all
    workers drawing at once, so that none gets only what the others left.
    """
    check_how("how", how)
    count = len(targets)
    workers = whole_number("num_workers", num_workers, least=1)
    share = count // workers
    if not share:
        raise ValueError(
            f"{workers} workers cannot share {count} samples, as one would have none; take at most "
            f"{count}"
        )
    kept = torch.randperm(count, generator=generator)[: workers * share]
    if how == "split":
        return kept.view(workers, share).sort(1).values
    labels = class_labels(targets)
    if how == "by_class":
        ordered = kept[torch.argsort(labels[kept], stable=True)]
        return ordered.view(workers, share).sort(1).values
    return _by_mixture(labels, kept, workers, float(how[1]), generator)


def check_how(name: str, how: object, others: tuple[str, ...] = ()) -> None:
    """Refuse what is no way to divide data.

    Raises:
        ValueError: it is none of the words, and no `("dirichlet", c)` with c > 0.
    """
    words = (*others, *get_args(Split))
    if isinstance(how, str) and how in words:
        return
    if isinstance(how, tuple) and len(how) == 2 and how[0] == "dirichlet":
        value = how[1]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and math.isfinite(value) and value > 0:
            return
        raise ValueError(
            f"{name}=('dirichlet', c) needs a finite number c above 0, got {value!r}; small values "
            "give every worker its own classes"
        )
    raise ValueError(f"{name} must be {', '.join(words)} or ('dirichlet', c), got {how!r}")


def class_labels(targets: Shaped[Tensor, "n ..."]) -> Int[Tensor, " n"]:
    """The class of every sample, counted from 0.

    Raises:
        ValueError: the targets are not one whole number a sample.
    """
    one = targets.ndim == 1 or targets[0].numel() == 1
    flat = targets.detach().reshape(-1).cpu() if one else targets
    if not one or (flat.is_floating_point() and not bool((flat == flat.round()).all())):
        raise ValueError(
            "shards by class need class labels, one whole number a sample, got targets of "
            f"{targets.dtype} and shape {tuple(targets.shape)}; use 'split'"
        )
    return torch.unique(flat, return_inverse=True)[1]


def _by_mixture(
    labels: Tensor, kept: Tensor, workers: int, concentration: float, generator: torch.Generator
) -> Tensor:
    """Shards whose classes follow mixtures drawn from a Dirichlet distribution."""
    own = torch.randint(2**62, (1,), generator=generator)
    draw = np.random.default_rng(int(own))
    stocks = [kept[labels[kept] == own] for own in range(int(labels.max()) + 1)]
    stocks = [stock for stock in stocks if len(stock)]
    supply = np.array([len(stock) for stock in stocks])
    share, parameters = len(kept) // workers, concentration * len(supply) * supply / supply.sum()
    mixtures = draw.dirichlet(parameters, size=workers)
    taken = np.zeros((workers, len(supply)), dtype=np.int64)
    # Each pass fills every shard or uses up a class.
    while (missing := share - taken.sum(1)).any():
        left = supply - taken.sum(0)
        wanted = mixtures * (left > 0)
        lost = wanted.sum(1) <= 0  # all of its classes are used up
        wanted[lost] = left
        asked = draw.multinomial(missing, wanted / wanted.sum(1, keepdims=True))
        for place in np.flatnonzero(asked.sum(0)):
            own_asked = asked[:, place]
            if own_asked.sum() > left[place]:
                own_asked = draw.multivariate_hypergeometric(own_asked, left[place])
            taken[:, place] += own_asked
    cuts = np.cumsum(taken, 0)[:-1]
    pieces = [
        stock.tensor_split(torch.from_numpy(cut)) for stock, cut in zip(stocks, cuts.T, strict=True)
    ]
    return torch.stack([torch.cat(own).sort().values for own in zip(*pieces, strict=True)])
