"""A claim small enough to run whole in a test: fair coins land on heads half the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import polars as pl

from undertow.claims import Claim, Records
from undertow.lab import (
    Charts,
    Experiment,
    Knobs,
    Prediction,
    Seeds,
    at_least,
    figure,
    grid,
    near,
    no_less,
    of,
    seeds,
)


@dataclass(frozen=True)
class Coins(Knobs):
    """How coins are thrown.

    Attributes:
        flips: throws of each coin.
        seeds: how many coins.
        bias: chance of heads.
        mint: which mint made the coins, if one is known.
        crooked: hide a coin that cannot be thrown.
        all_crooked: hide nothing else.
        lucky: throw with the left hand.
    """

    flips: Annotated[tuple[int, ...], at_least(1)] = (64, 256)
    seeds: Seeds = 6
    bias: float = 0.5
    mint: str | None = None
    crooked: bool = False
    all_crooked: bool = False
    lucky: bool = True


@dataclass(frozen=True)
class Coin:
    """One coin."""

    flips: int
    bias: float
    crooked: bool
    seed: int


def experiments(knobs: Coins, seed: int) -> dict[str, Experiment]:
    """Every number of throws with every coin."""
    coins = [
        {"seed": own, "crooked": knobs.all_crooked or (knobs.crooked and index == 0)}
        for index, own in enumerate(seeds(seed, knobs.seeds))
    ]
    thrown = grid(Coin, knobs, flips=knobs.flips, coin=coins)
    return {"coins": Experiment(thrown, throw, together=("seed", "crooked"), group_size=4)}


def throw(coins: Sequence[Coin]) -> list[Any]:
    """The share of heads of each coin."""
    results: list[Any] = []
    for coin in coins:
        if coin.crooked:
            results.append(ValueError("it stands on its edge."))
            continue
        generator = np.random.default_rng([coin.flips, coin.seed])
        share = float(np.mean(generator.random(coin.flips) < coin.bias))
        results.append([{"heads": share, "two_headed": 1.0}])
    return results


def predictions(knobs: Coins) -> dict[str, Prediction]:
    """Half are heads; two-headed coins, the control, are not."""
    return {
        "share of heads": near(0.5, 0.25, of("coins", "heads"), "a fair coin"),
        "two-headed coins": no_less(0.9, of("coins", "two_headed"), control=True),
    }


def summary(records: Records, knobs: Coins) -> str:
    """The share of all throws."""
    heads = np.average(records["coins"]["heads"], weights=records["coins"]["flips"])
    return f"{heads:.0%} of the throws were heads."


@figure("Share of heads")
def heads(records: Records, knobs: Coins) -> Any:
    """More throws, less spread."""
    return Charts(flips="throws").points(records["coins"], "flips", "heads")


FIGURES: tuple[Any, ...] = (heads,)


def table(records: Records, knobs: Coins) -> pl.DataFrame:
    """Means by number of throws."""
    return records["coins"].group_by("flips", maintain_order=True).agg(pl.col("heads").mean())


CLAIM = Claim(
    name="toy",
    title="Fair coins land on heads half the time",
    paper="J. Bernoulli, Ars Conjectandi, 1713",
    statement="The share of heads of a fair coin comes as near to one half as you like.",
    corrections=("A finite number of throws may miss one half by any amount.",),
    presets={
        "smoke": Coins(flips=(16,), seeds=2),
        "small": Coins(),
        "paper": Coins(flips=(10_000,), seeds=100),
    },
    costs={"smoke": "1 s", "small": "1 s", "paper": "10 s"},
    home=__name__,
    least_seeds=2,
)
