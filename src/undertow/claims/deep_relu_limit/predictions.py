"""What the paper predicts of depth, where its bound needs its conditions, and where it does not."""

from __future__ import annotations

import polars as pl

from undertow import lab
from undertow.claims import Records
from undertow.claims.deep_relu_limit import BURN_IN, DIVERGING, DeepReluLimit
from undertow.claims.deep_relu_limit.experiments import experiments, nets
from undertow.lab import PerSeed, Prediction, Reading, at_most, near, no_less, no_seed, of

KINDS = {
    "aligned": "aligned perturbations",
    "random": "random perturbations",
    "bias": "random biases",
}


def predictions(knobs: DeepReluLimit) -> dict[str, Prediction]:
    """Rates, bounds, counterexamples, and trained networks."""
    return _rates(knobs) | _bounds() | _counterexamples() | _training(knobs)


def summary(records: Records, knobs: DeepReluLimit) -> str:
    """How many networks have no slope, and how close the one-step bound comes."""
    every = networks(records)
    rated = every.filter(pl.col("kind").is_in(list(KINDS)))
    proper = every.filter(~pl.col("diverged"), pl.col("kind") != "mixed-sign")["excess"]
    return (
        f"{rated['slope'].null_count()} of {len(rated)} networks died or overflowed and have no "
        f"slope; {every['diverged'].sum()} overflowed. The largest excess over the one-step bound "
        f"is {max(proper, default=0):.1g} of a state's norm."
    )


def promises_verdict(records: Records, knobs: DeepReluLimit) -> bool:
    """Whether there are enough trainings: a best learning rate is the best of all that were run."""
    planned = {name: len(made.trials) for name, made in experiments(knobs, 0).items()}
    found = {"networks": len(records["networks"]), "limits": len(networks(records))}
    return knobs.net_seeds >= 8 and found == planned


def _rates(knobs: DeepReluLimit) -> dict[str, Prediction]:
    unsummable = "1/2 - p, not summable, and it converges"
    laws = [
        *(("aligned", p, 1 - p, "1 - p") for p in knobs.aligned_powers),
        ("aligned", 1.0, knobs.scale, "c, not summable, and it diverges"),
        *(("random", p, 0.5 - p, unsummable) for p in knobs.random_powers if p <= 1),
        *(("random", p, 0.5 - p, "1/2 - p") for p in knobs.random_powers if p > 1),
        *(("bias", p, 0.5 - p, "1/2 - p") for p in knobs.bias_powers),
    ]
    slow = "perturbations that fall slower than n^-1/2 do not converge"
    return {
        f"{KINDS[kind]} n^-{power:g}, slope of d(n)": near(
            target, 0.05, slope(knobs, kind, power), note
        )
        for kind, power, target, note in laws
    } | {
        f"{KINDS['random']} n^-{power:g}, slope of d(n)": no_less(
            0, slope(knobs, "random", power), slow, control=True
        )
        for power in DIVERGING
    }


def _bounds() -> dict[str, Prediction]:
    step, size = violated("excess", 1e-12), violated("log_norm_ratio", 1e-9)
    step_note = "to 1e-12 of a state, ||h_n+1 - h_n|| <= ||P|| ||h_n|| + ||b||"
    size_note = "to 1e-9, ||N_n|| <= prod(1 + ||P_i||) (||x|| + sum ||b_i||)"
    mixed = "the bound needs h >= 0, so at W_n = I the first ReLU breaks it"
    return {
        "one-step bound violated": no_seed(step, step_note, exact=True),
        "norm bound violated": no_seed(size, size_note, exact=True),
        "one-step bound, mixed-sign input, excess": no_less(
            0.01, value("excess", "mixed-sign"), mixed, control=True
        ),
    }


def _counterexamples() -> dict[str, Prediction]:
    both = pl.col("kind").is_in(["shrinking", "mixing"])
    moved = of("limits", "last_ratio", *FIRST, both, how="max")
    stops = "W_n = I/2 and (I + 11'/m)/2 converge, so pointwise W_n -> I is not necessary"
    return {
        "W_n stays 0.5 away from I, d(n) over ||x||": at_most(1e-12, moved, stops),
        "the same, ||limit|| over ||x|| of the second": no_less(
            0.5, value("limit_ratio", "mixing"), "its limit is not zero"
        ),
        "the same, ||limit - mean of x|| over ||x||": at_most(
            1e-12, value("off_average", "mixing"), "the limit depends on x"
        ),
    }


def _training(knobs: DeepReluLimit) -> dict[str, Prediction]:
    deep, shallow = knobs.net_depth, knobs.shallow_depth
    near_identity, he, few = (at_best("train_accuracy", *net) for net in nets(knobs))
    gain = at_best("test_accuracy", *nets(knobs)[0]) - at_best("test_accuracy", *nets(knobs)[1])
    best = "at the learning rate of the best mean"
    without = f"without the initialisation it does not train, {best}"
    recipe = f"the recipe trains a shallow network, {best}"
    return {
        f"{deep} layers, I + c n^-p G, training accuracy": no_less(0.9, near_identity, best),
        f"{deep} layers, test accuracy, I + c n^-p G less He": no_less(
            0.4, gain, "by seed, each at its own best learning rate"
        ),
        f"{deep} layers, He, training accuracy": at_most(0.5, he, without, control=True),
        f"{shallow} layers, He, training accuracy": no_less(0.9, few, recipe, control=True),
    }


# ---- readings

# One row a network, of those that did not overflow.
FIRST = (pl.col("layers") == BURN_IN, ~pl.col("diverged"))


def networks(records: Records) -> pl.DataFrame:
    """One row a network."""
    return records["limits"].filter(layers=BURN_IN)


def value(column: str, kind: str) -> Reading:
    """A fact of the networks of a kind."""
    return of("limits", column, *FIRST, kind=kind)


def slope(knobs: DeepReluLimit, kind: str, power: float) -> Reading:
    """The slope of log d(n) on log n; the survivors of many that died are no fair sample."""
    read = of("limits", "slope", *FIRST, kind=kind, power=power)
    return read.then(lambda found: found.known(0.9, of=knobs.seeds))


def violated(column: str, bound: float) -> Reading:
    """The share of seeds with a network above a bound, on inputs at least zero; NaN is above."""
    above, proper = ~(pl.col(column) <= bound), pl.col("kind") != "mixed-sign"
    return of("limits", above, *FIRST, proper, how="any").then(PerSeed.share)


def at_best(column: str, init: str, depth: int) -> Reading:
    """Of an initialisation, at the learning rate whose mean training accuracy is the highest."""

    def read(records: Records) -> PerSeed:
        runs = records["networks"].filter(init=init, net_depth=depth)
        means = runs.group_by("lr").agg(pl.col("train_accuracy").mean())
        best = means.sort("train_accuracy", "lr", descending=[True, False]).head(1)
        return lab.per_seed(runs.join(best.select("lr"), on="lr"), column)

    return Reading(read)
