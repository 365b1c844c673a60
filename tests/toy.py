"""A claim small enough to run whole in a test: fair coins land on heads half the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from undertow import lab
from undertow.claims import Check, Claim, Figure, Verdict, check_below, decide


@dataclass(frozen=True)
class Knobs:
    """How coins are thrown.

    Attributes:
        flips: throws of each coin.
        coins: how many coins.
        bias: chance of heads.
        mint: which mint made the coins, if one is known.
        crooked: hide a coin that cannot be thrown.
        lucky: throw with the left hand.
    """

    flips: tuple[int, ...] = (64, 256)
    coins: int = 6
    bias: float = 0.5
    mint: str | None = None
    crooked: bool = False
    lucky: bool = True


@dataclass(frozen=True)
class Coin:
    """One coin."""

    number: int
    flips: int
    bias: float
    crooked: bool
    seed: int


def trials(knobs: Knobs, seed: int) -> list[Coin]:
    """Every number of throws with every coin."""
    return [
        Coin(number, flips, knobs.bias, knobs.crooked and number == 0, seed)
        for flips in knobs.flips
        for number in range(knobs.coins)
    ]


def throw(coins: Sequence[Coin]) -> list[Any]:
    """The share of heads of each coin."""
    results: list[Any] = []
    for coin in coins:
        if coin.crooked:
            results.append(ValueError("it stands on its edge."))
            continue
        generator = np.random.default_rng([coin.number, coin.flips, coin.seed])
        results.append([{"heads": float(np.mean(generator.random(coin.flips) < coin.bias))}])
    return results


def judge(records: pl.DataFrame, knobs: Knobs) -> Verdict:
    """Half are heads; two-headed coins, the control, are not."""
    heads = float(np.average(records["heads"], weights=records["flips"]))
    width = 1 / np.sqrt(records["flips"].sum())
    distance = abs(heads - 0.5)
    fair = check_below(
        "distance from one half",
        lab.Effect(
            distance, (max(distance - width, 0), distance + width), None, len(records), "throws"
        ),
        bound=0.1,
        rule="at most 0.1",
    )
    control = Check(
        "two-headed coins differ", 1.0, (1.0, float("inf")), "at least 0.9", True, control=True
    )
    return decide([fair, control], f"{heads:.0%} of the throws were heads.")


def figures(records: pl.DataFrame, knobs: Knobs) -> list[Figure]:
    """One chart."""
    import altair as alt

    throws = alt.Chart(records.select("flips", "heads"))
    chart = throws.mark_point().encode(x="flips:O", y="heads:Q")
    return [Figure("heads", "Share of heads", "More throws, less spread.", chart)]


def table(records: pl.DataFrame, knobs: Knobs) -> pl.DataFrame:
    """Means by number of throws."""
    return records.group_by("flips", maintain_order=True).agg(pl.col("heads").mean())


PRESETS: Mapping[str, Knobs] = {
    "smoke": Knobs(flips=(16,), coins=2),
    "small": Knobs(),
    "paper": Knobs(flips=(10_000,), coins=100),
}

CLAIM = Claim(
    name="toy",
    title="Fair coins land on heads half the time",
    paper="J. Bernoulli, Ars Conjectandi, 1713",
    statement="The share of heads of a fair coin comes as near to one half as you like.",
    corrections=("A finite number of throws may miss one half by any amount.",),
    config=Knobs,
    presets=PRESETS,
    costs={"smoke": "1 s", "small": "1 s", "paper": "10 s"},
    trials=trials,
    group=lambda coin: coin.flips,
    group_size=4,
    run=throw,
    judge=judge,
    figures=figures,
    table=table,
)
