"""Gradient flow on factors learns rank after rank (Li, Luo and Lyu, arXiv 2012.09839).

From an infinitesimal start W = U U^T, or a deeper product, follows greedy low-rank learning, which
is not least nuclear norm. Tested by flows from starts down to 1e-32, each at its own adaptive
steps: their number grows with log(1 / scale), and no two starts share a time scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from undertow import lab
from undertow.claims import Claim
from undertow.lab import DISTINCT, Bound, Count, Knobs, Seeds, at_least, up_to

RATIO = 0.7  # second over first eigenvalue, at which depths are compared
REAL = ("digits", "tumours")
ORDINARY = 1e-4  # this start of the 4x4 counterexample looks like least nuclear norm

FALLING = Bound("falling", lambda v: all(a > b for a, b in pairwise(v)), whole=True)
COMPARED = Bound(
    f"values with {RATIO} and 1 among them", lambda v: RATIO in v and 1 in v, whole=True
)
LOOKED_AT = Bound(f"values with {ORDINARY:g} among them", lambda v: ORDINARY in v, whole=True)
Scales = Annotated[tuple[float, ...], at_least(1e-40), up_to(0.1), lab.some(3), FALLING]
Ratios = Annotated[tuple[float, ...], lab.above(0), up_to(1), DISTINCT, COMPARED]
Steps = Annotated[tuple[float, ...], lab.between(0, 1), lab.some(), DISTINCT]
Matrices = Annotated[
    tuple[str, ...], lab.one_of("low-rank", *REAL, "garments"), lab.some(), DISTINCT
]


@dataclass(frozen=True)
class GreedyLowRank(Knobs):
    """Knobs."""

    # Sizes of the start, in units of W, of the trajectories held against greedy learning.
    scales: Scales = (1e-4, 1e-8, 1e-12, 1e-16, 1e-20)
    deep_scales: Scales = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10)  # of products of 2, 3 and 4 factors
    # Second over first eigenvalue of these products' target; 1 is a control.
    ratios: Ratios = (RATIO, 1.0)
    # Step sizes of gradient descent, in units of the largest that is stable at the minimum.
    step_sizes: Steps = (0.3, 0.9)
    descent_scales: Scales = (1e-6, 1e-7, 1e-8)  # of its starts
    # R of the 3x3 counterexample: from 3.6 on rank one has 1.2 times the least trace.
    strength: Annotated[float, at_least(3.6)] = 4.0
    # Its control, where least nuclear norm has rank one, too.
    weak_strength: Annotated[float, lab.above(0), up_to(2)] = 1.5
    # R of the 4x4 counterexample: from 2.3 on rank one has 1.35 times the least trace.
    wide_strength: Annotated[float, at_least(2.3)] = 3.0
    # Sizes of its start.
    wide_scales: Annotated[Scales, LOOKED_AT] = (1e-2, ORDINARY, 1e-8, 1e-16, 1e-24, 1e-32)
    # Completed from a part of their entries; garments are of Fashion-MNIST.
    matrices: Matrices = ("low-rank", *REAL)
    rows: Count = 40  # of the completed matrices
    columns: Count = 30  # likewise
    seeds: Seeds = 24  # independent repetitions
    rank_two: Seeds = 72  # of completions of rank two, some of which go wrong
    # Of products, counterexamples and descents, which hardly scatter; trajectories twice as many.
    exact: Seeds = 20


CLAIM = Claim(
    name="greedy-low-rank",
    title="Gradient flow on factors learns rank after rank, and does not minimise nuclear norm",
    paper="Li, Luo and Lyu, Towards Resolving the Implicit Bias of Gradient Descent for Matrix "
    "Factorization: Greedy Low-Rank Learning (ICLR 2021, arXiv 2012.09839)",
    statement="From an infinitesimal start, gradient flow on W = U U^T follows greedy low-rank "
    "learning: it leaves each saddle along the top eigenvector of -grad f(W) and comes to rest at "
    "the next rank. It can end at more nuclear norm than necessary. With three factors or more it "
    "does so from far larger starts, whatever the gap of the eigenvalues.",
    corrections=(
        "The distance of the first phase falls as scale^((1 - lambda_2 / lambda_1) / 2), scale "
        "being that of W: the second direction enters W by its product with the first.",
        "The exponent of the second phase is at least that of the first, times the lesser of two: "
        "its own relative gap, and the slowest rate at which the first comes to rest over its "
        "top eigenvalue. The time between two escapes is short.",
        "An ordinary small start looks like least nuclear norm: at 1e-4 the 4x4 counterexample is "
        "still nearer to it than to rank one, and 1e-16 is needed to see rank one.",
        "Lower rank is not lower error: on real matrices that are not of low rank, depth 3 and 4 "
        "complete worse than least nuclear norm, and no better where they are stopped at their "
        "best.",
        "Gradient descent multiplies by 1 + lr lambda: with large steps the gap that counts is "
        "1 - log(1 + lr lambda_2) / log(1 + lr lambda_1), less than that of the flow.",
    ),
    presets={
        "smoke": GreedyLowRank(
            scales=(1e-1, 1e-2, 1e-3),
            deep_scales=(1e-1, 1e-2, 1e-3),
            step_sizes=(0.9,),
            descent_scales=(1e-1, 1e-2, 1e-3),
            wide_scales=(1e-2, 1e-3, 1e-4),
            matrices=("low-rank",),
            rows=24,
            columns=20,
            seeds=2,
            rank_two=2,
            exact=2,
        ),
        "small": GreedyLowRank(),
        "paper": GreedyLowRank(
            scales=(1e-4, 1e-8, 1e-12, 1e-16, 1e-20, 1e-24),
            deep_scales=(1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12),
            seeds=50,
            rank_two=100,
            exact=25,
        ),
    },
    costs={"smoke": "15 s", "small": "180 s on two cores", "paper": "30 min on two cores"},
    home=__name__,
)
