"""Gradient flow on factors learns rank after rank (Li, Luo and Lyu, arXiv 2012.09839).

From an infinitesimal start W = U U^T, or a deeper product, follows greedy low-rank learning, which
is not least nuclear norm. Tested by flows from starts down to 1e-32, each at its own adaptive
steps: their number grows with log(1 / scale), and no two starts share a time scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from undertow.claims import Claim
from undertow.lab import DISTINCT, Bound, Count, Knobs, Seeds, above, at_least, one_of, some, up_to

RATIO = 0.7  # second over first eigenvalue, at which depths are compared
ORDINARY = 1e-4  # this start of the 4x4 counterexample looks like least nuclear norm
# Traces over the least: what rank one must exceed, and what an ordinary small start must not.
APART, ALIKE = 1.2, 1.35

FALLING = Bound("falling", lambda v: all(a > b for a, b in pairwise(v)), whole=True)
Scales = Annotated[tuple[float, ...], at_least(1e-40), up_to(0.1), some(3), FALLING]
Matrices = Annotated[tuple[str, ...], one_of("low-rank", "digits", "tumours"), some(), DISTINCT]


def traces(problem: str, strength: float) -> tuple[float, float]:
    """Of a counterexample's completion of rank one, and the least of its positive completions."""
    square = strength**2
    if problem == "4x4":
        return 2 * square + 2, 4 * strength
    return square + 2, 4 * strength - 2 if strength > 2 else square + 2


@dataclass(frozen=True)
class GreedyLowRank(Knobs):
    """Knobs."""

    # Sizes of the start, in units of W, of the trajectories held against greedy learning.
    scales: Scales = (1e-4, 1e-8, 1e-12, 1e-16, 1e-20)
    deep_scales: Scales = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10)  # of products of 2, 3 and 4 factors
    # Second over first eigenvalue of these products' target; 1 is a control.
    ratios: Annotated[tuple[float, ...], above(0), up_to(1), DISTINCT] = (0.5, RATIO, 0.9, 1.0)
    strength: float = 4.0  # R of the 3x3 counterexample, 3.6 or more
    # Its control, where least nuclear norm has rank one, too.
    weak_strength: Annotated[float, above(0), up_to(2)] = 1.5
    wide_strength: float = 3.0  # R of the 4x4 counterexample, 2.3 or more
    wide_scales: Scales = (1e-2, ORDINARY, 1e-8, 1e-16, 1e-24, 1e-32)  # sizes of its start
    matrices: Matrices = ("low-rank", "digits", "tumours")  # completed from a part of their entries
    rows: Count = 40  # of these matrices
    columns: Count = 30  # likewise
    seeds: Seeds = 10  # independent repetitions

    def rules(self) -> Mapping[str, bool]:
        """What the predictions look at runs, and the counterexamples are some."""
        cases = ("strength", "3x3", 2, APART), ("wide_strength", "4x4", 1, ALIKE)
        found = {
            f"ratios must hold {RATIO}, got {self.ratios}": RATIO in self.ratios,
            f"wide_scales must hold {ORDINARY:g}, where a control looks, got {self.wide_scales}": (
                ORDINARY in self.wide_scales
            ),
        }
        for name, problem, bound, apart in cases:
            strength = getattr(self, name)
            rank_one, least = traces(problem, strength)
            wanted = f"so that rank one has more than {apart:g} times the least trace"
            holds = strength > bound and rank_one > apart * least
            found[f"{name} must be larger, {wanted}, got {strength}"] = holds
        return found


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
        "complete worse than least nuclear norm.",
    ),
    presets={
        "smoke": GreedyLowRank(
            scales=(1e-2, 1e-3, 1e-4),
            deep_scales=(1e-2, 1e-3, 1e-4),
            ratios=(0.7,),
            wide_scales=(1e-2, 1e-4, 1e-8),
            matrices=("low-rank",),
            rows=16,
            columns=20,
            seeds=2,
        ),
        "small": GreedyLowRank(),
        "paper": GreedyLowRank(
            scales=(1e-4, 1e-8, 1e-12, 1e-16, 1e-20, 1e-24),
            deep_scales=(1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12),
            seeds=50,
        ),
    },
    costs={"smoke": "20 s", "small": "2 min on two cores", "paper": "15 min on two cores"},
    home=__name__,
)
