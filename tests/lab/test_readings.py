"""Readings: arithmetic within seeds, and one policy for what is missing, odd or zero."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow import lab
from undertow.lab import (
    KEPT,
    PerSeed,
    Reading,
    agreement_of,
    greatest,
    kept,
    lost,
    no_less,
    of,
    per_seed,
    share,
    slope_of,
    unknown,
    worst,
)

numbers = st.floats(0.1, 10)
per_seeds = st.dictionaries(st.integers(0, 9), numbers, min_size=2, max_size=8).map(PerSeed)

FRAME = pl.DataFrame(
    {
        "seed": [1, 1, 0, 0, 2, 2],
        "kind": ["a", "b", "a", "b", "a", "b"],
        "value": [3.0, 1.0, 2.0, 6.0, None, 4.0],
        "good": [True, True, False, True, True, True],
    }
)


@given(per_seeds, per_seeds)
def test_pairs_are_the_seeds_that_both_have(first: PerSeed, second: PerSeed) -> None:
    both = set(first.values) & set(second.values)
    for found in (first - second, first + second, first * second, first / second):
        assert set(found.values) == both
    difference = first - second
    assert all(difference.values[s] == first.values[s] - second.values[s] for s in both)


@given(per_seeds, per_seeds)
def test_a_ratio_is_geometric_and_turns_over_with_its_pair(first: PerSeed, second: PerSeed) -> None:
    one, other = (first / second).effect(), (second / first).effect()
    if math.isnan(one.value):
        assert len(set(first.values) & set(second.values)) < 2
    else:
        assert one.value == pytest.approx(1 / other.value)


def test_the_effect_is_the_median_of_ratios_in_logarithms() -> None:
    numerator, ones = PerSeed({0: 1.0, 1: 4.0}), PerSeed({0: 1.0, 1: 1.0})
    assert (numerator / ones).effect().value == pytest.approx(2.0)
    assert (numerator / 1.0).effect().value == pytest.approx(2.5)
    odd = PerSeed({seed: 1.0 + seed for seed in range(8)} | {8: 1e9})
    assert odd.effect().value == 5.0
    assert odd.effect().interval[1] < 9.0
    assert odd.effect().seeds == 9


def test_zero_has_a_ratio_and_zero_over_zero_has_none() -> None:
    zero, one = PerSeed({0: 0.0, 1: 0.0}), PerSeed({0: 1.0, 1: 1.0})
    assert math.isnan((zero / zero).effect().value)
    assert (zero / one).effect().value == 0
    assert (one / zero).effect().value == math.inf
    assert (-one / zero).effect().value == -math.inf
    assert (PerSeed({0: -1.0, 1: 2.0}) / one).effect().value == 0.5


def test_one_zero_among_ratios_moves_no_median_and_no_interval_to_zero() -> None:
    """Ranks of a network that collapsed in one seed of twelve."""
    first = PerSeed({seed: 6.0 + seed % 3 for seed in range(11)} | {11: 0.0})
    second = PerSeed(dict.fromkeys(range(12), 10.0))
    low, high = (first / second).effect().interval
    assert 0.6 <= low < high <= 0.8
    low, high = (second / first).effect().interval
    assert 1 / 0.8 <= low < high <= 1 / 0.6 + 1e-12


def test_what_is_not_finite_makes_the_effect_unknown_unless_it_is_left_out() -> None:
    odd = PerSeed({0: 1.0, 1: math.nan, 2: 3.0})
    assert math.isnan(odd.effect().value)
    assert "1 of 3 seeds" in odd.effect().method
    assert odd.known().effect().value == 2.0
    assert len(odd.known(least=0.9)) == 0
    assert len(odd.known(least=0.2, of=10)) == 2


@pytest.mark.parametrize("how", ["mean", "min", "max"])
def test_a_row_that_is_not_a_number_is_not_passed_over(how: Any) -> None:
    rows = pl.DataFrame({"seed": [0, 0, 1, 1], "x": [1.0, math.nan, 2.0, 3.0]})
    found = per_seed(rows, "x", how=how)
    assert math.isnan(found.values[0])
    assert math.isfinite(found.values[1])
    assert math.isnan(found.effect().value)


def test_a_part_of_nothing_is_unknown() -> None:
    assert math.isnan((PerSeed({0: 1.0, 1: 2.0}) / 0.0).effect().value)


def test_fewer_than_two_seeds_are_unknown() -> None:
    for few in (PerSeed({}), PerSeed({0: 1.0})):
        assert math.isnan(few.effect().value)
        assert all(map(math.isnan, few.effect().interval))


def test_rows_of_a_seed_are_one_number() -> None:
    assert per_seed(FRAME, "value").values == {0: 4.0, 1: 2.0, 2: 4.0}
    assert per_seed(FRAME, "value", how="max").values == {0: 6.0, 1: 3.0, 2: 4.0}
    assert per_seed(FRAME, "value", kind="a").values == {0: 2.0, 1: 3.0}
    assert per_seed(FRAME, pl.col("value") * 2, "good", kind="b", how="first").values == {
        0: 12.0,
        1: 2.0,
        2: 8.0,
    }
    assert list(per_seed(FRAME, "value").values) == [0, 1, 2]


def test_a_reading_is_of_one_experiment_and_adds_up_as_its_values_do() -> None:
    records = {"runs": FRAME}
    gap = of("runs", "value", kind="a") - of("runs", "value", kind="b")
    assert gap(records).values == {0: -4.0, 1: 2.0}
    assert abs(gap)(records).values == {0: 4.0, 1: 2.0}
    assert (-gap)(records).values == {0: 4.0, 1: -2.0}
    assert (gap / 2.0)(records).values == {0: -2.0, 1: 1.0}
    assert gap.effect(records) == gap(records).effect()


def test_a_share_is_of_seeds_in_all_of_whose_rows_it_holds() -> None:
    found = share("runs", "good").effect({"runs": FRAME})
    assert found.value == pytest.approx(2 / 3)
    assert found.count == 3
    assert found.interval == lab.proportion(2, 3).interval


def test_what_holds_of_a_seed_makes_a_share_and_nothing_holds_or_fails_of_nan() -> None:
    found = PerSeed({0: 1.0, 1: 2.0, 2: 3.0})
    assert [(found < 2).share().value, (found <= 2).share().value] == pytest.approx([1 / 3, 2 / 3])
    assert [(found > 2).share().value, (found >= 2).share().value] == pytest.approx([1 / 3, 2 / 3])
    assert (found / found <= 1).share().value == 1
    odd = PerSeed({0: 1.0, 1: math.nan})
    for holds in (odd < 2, odd <= 2, odd > 0, odd >= 0):
        assert math.isnan(holds.share().value)
    assert (of("other", "x") <= 3)(RECORDS).share().value == 0.5


@pytest.mark.parametrize("holds", [pl.col("x") > 0, ~(pl.col("x") < 0), pl.col("x") / 1 > 0, "x"])
def test_a_share_of_what_is_nan_is_unknown(holds: Any) -> None:
    """Polars takes NaN for the greatest number there is: `NaN > 0` is true."""
    rows = pl.DataFrame({"seed": [0, 0, 1], "x": [1.0, math.nan, 2.0], "kept": [True, False, True]})
    assert math.isnan(share("runs", holds).effect({"runs": rows}).value)
    assert share("runs", holds, "kept").effect({"runs": rows}).value == 1
    nothing = rows.with_columns(x=pl.lit(0.0))
    made = share("runs", pl.col("x") / pl.col("x") > 0).effect({"runs": nothing})
    assert math.isnan(made.value)


def reads(*effects: lab.Effect) -> list[Reading]:
    return [Reading(lambda records, effect=effect: effect) for effect in effects]


def test_the_worst_reaches_farthest_from_its_target_and_what_is_unknown_is_worse() -> None:
    ends = [(0.9, 1.0), (1.0, 1.1), (0.3, 2.9), (0.2, 1.2)]
    effects = [lab.Effect(1.0, interval, None, 9, "") for interval in ends]
    assert worst(reads(*effects), 1.0).effect({}).interval == (0.3, 2.9)
    for odd in (unknown(), lab.Effect(1.0, (0.9, math.nan), None, 9, "")):
        for order in ([*effects, odd], [odd, *effects]):
            assert math.isnan(worst(reads(*order), 1.0).effect({}).interval[1])
    assert math.isnan(worst([]).effect({}).value)


def test_the_worst_of_ratios_is_farthest_by_its_factor() -> None:
    effects = [lab.Effect(value, (value, value), None, 9, "") for value in (0.78, 1.23)]
    assert worst(reads(*effects), 1.0).effect({}).value == 1.23
    assert worst(reads(*effects), 1.0, of_ratios=True).effect({}).value == 0.78
    zero = lab.Effect(1.0, (0.0, 1.0), None, 9, "")
    assert worst(reads(*effects, zero), 1.0, of_ratios=True).effect({}).interval == (0.0, 1.0)


def test_the_worst_rests_on_the_fewest_seeds_of_all() -> None:
    few, many = (lab.Effect(1.0, (0.0, far), None, 9, "", seeds=n) for far, n in ((1, 3), (5, 9)))
    found = worst(reads(many, few)).effect({})
    assert (found.interval, found.seeds) == ((0.0, 5), 3)


RECORDS = {
    "one": pl.DataFrame({"seed": [1, 1, 2, 3], "x": [1.0, 5.0, 2.0, math.nan]}),
    "other": pl.DataFrame({"seed": [1, 2, 3, 4], "x": [3.0, 7.0, 1.0, 4.0]}),
}


def test_the_greatest_of_several_readings_is_taken_within_seeds() -> None:
    found = greatest(of(name, "x", how="max") for name in RECORDS)
    for _ in range(2):  # it can be read again
        values = found(RECORDS).values
        assert {seed: values[seed] for seed in (1, 2, 4)} == {1: 5, 2: 7, 4: 4}
        assert math.isnan(values[3])
    assert not greatest([])(RECORDS).values
    none = Reading(lambda records: PerSeed({}))
    assert not greatest([of("one", "x", how="max"), none])(RECORDS).values


def test_the_worst_reading_can_be_read_again() -> None:
    farthest = worst((of("other", "x") + shift for shift in (0.0, 10.0)), target=3.0)
    assert farthest(RECORDS).value == farthest(RECORDS).value == pytest.approx(13.5)


def test_each_seed_has_its_own_slope_where_it_has_the_points() -> None:
    rows = pl.DataFrame(
        [
            {"seed": seed, "x": x, "y": float(x**2 if seed == 2 else seed * x), "kind": "a"}
            for seed in (1, 2, 3)
            for x in ((1, 2, 4) if seed < 3 else (1, 2))
        ]
    )
    x, y = pl.col("x"), pl.col("y")
    whole = lab.slope_by_seed("runs", x, y)({"runs": rows})
    assert whole.values == pytest.approx({1: 1, 2: 36 / 7, 3: 3})
    steep = lab.slope_by_seed("runs", x, y, smallest=2)({"runs": rows})
    assert steep.values == pytest.approx({1: 1, 2: 3, 3: 3})
    assert set(lab.slope_by_seed("runs", x, y, smallest=3)({"runs": rows}).values) == {1, 2}
    for none in (lab.slope_by_seed("runs", x, y, kind="b"), lab.slope_by_seed("none", x, y)):
        assert not none({"runs": rows, "none": pl.DataFrame()}).values


def test_a_slope_over_seeds_is_the_median_of_their_own_and_may_be_unknown() -> None:
    rows = pl.DataFrame(
        [
            {"seed": seed, "lr": lr, "gap": 3 * lr**power}
            for seed, power in enumerate((1.9, 1.9, 1.8, 2.0, 2.1, 2.1, 2.2))
            for lr in (0.1, 0.2, 0.4)
        ]
    )
    log_lr, log_gap = pl.col("lr").log(), pl.col("gap").log()
    order = slope_of("runs", log_lr, log_gap)
    found = order.effect({"runs": rows})
    assert found.value == pytest.approx(2)
    assert found.interval[0] < 1.9 < 2.1 < found.interval[1]
    for where in ({"seed": 1}, {"lr": 0.1}, {"lr": 7.0}):  # one seed, one point, nothing
        assert math.isnan(slope_of("runs", log_lr, log_gap, **where).effect({"runs": rows}).value)
    lost = rows.with_columns(gap=pl.when(pl.col("lr") == 0.1).then(0.0).otherwise("gap"))
    for unknown_of in (lost, pl.DataFrame(schema={"trial": pl.String})):
        assert math.isnan(order.effect({"runs": unknown_of}).value)
    kept = slope_of("runs", log_lr, log_gap, pl.col("gap") > 0)
    assert kept.effect({"runs": lost}).value == pytest.approx(2)


def test_agreement_is_of_pairs_and_of_ranks_alone() -> None:
    rows = pl.DataFrame(
        {
            "seed": [2, 1, 1, 1, 2, 2, 3, 4, 4],
            "x": [3.0, 1.0, 2.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0],
            "y": [3.0, 1.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0, 2.0],
            "good": [True] * 8 + [False],
        }
    )
    records = {"runs": rows}
    found = agreement_of("runs", "x", "y")(records).values
    assert [found[seed] for seed in (1, 2)] == pytest.approx([1 / 3, 1])
    assert math.isnan(found[3])  # one point
    assert math.isnan(found[4])  # x is constant
    curved = agreement_of("runs", pl.col("x").exp(), -(pl.col("y") ** 3), seed=1)(records)
    assert curved.values == pytest.approx({1: -1 / 3})
    assert len(agreement_of("runs", "x", "y", "good", seed=4)(records)) == 1
    assert len(agreement_of("runs", "x", "y", seed=7)(records)) == 0
    nothing = {"runs": pl.DataFrame(schema={"trial": pl.String})}
    assert len(agreement_of("runs", "x", "y")(nothing)) == 0


def test_an_experiment_without_records_has_no_seeds() -> None:
    records = {"runs": pl.DataFrame(schema={"trial": pl.String})}
    read = of("runs", "loss", ~pl.col("diverged"), lr=0.1)
    assert len(read(records)) == 0
    check = no_less(1, read).check("loss", records)
    assert math.isnan(check.value)
    assert not check.passed
    assert not check.refuted


def test_a_trial_that_diverges_anywhere_is_lost_whole() -> None:
    runs = pl.DataFrame(
        {
            "trial": ["a", "a", "b", "b"],
            "seed": [1, 1, 2, 2],
            "diverged": [False, True, False, False],
            "loss": [1.0, None, 3.0, 5.0],
        }
    )
    exact = pl.DataFrame({"trial": ["c"], "gap": [0.1]})  # what cannot diverge
    records = {"runs": runs, "exact": exact, "none": pl.DataFrame(schema={"trial": pl.String})}
    assert of("runs", "loss", KEPT)(records).values == {2: 4.0}
    assert kept(runs)["trial"].to_list() == ["b", "b"]
    assert kept(exact).equals(exact)
    assert lost(records) == (1, 3)
    assert lost(records, "exact", "none") == (0, 1)


def test_a_table_of_means_counts_trials_and_renames() -> None:
    runs = pl.DataFrame(
        {"trial": ["a", "a", "b"], "lr": [0.2, 0.2, 0.1], "loss": [1.0, 3.0, 5.0], "x": [1, 1, 1]}
    )
    found = lab.means(runs, ["lr"], {"loss": "train loss"})
    assert found.columns == ["lr", "train loss", "runs"]
    assert found.rows() == [(0.1, 5.0, 1), (0.2, 2.0, 1)]
    assert lab.means(runs, ["lr"], ["x"]).columns == ["lr", "x", "runs"]


def test_a_seed_whose_values_are_all_null_takes_no_part_in_a_share() -> None:
    rows = pl.DataFrame({"seed": [0, 0, 1, 2], "good": [None, None, True, False]})
    found = share("runs", "good").effect({"runs": rows})
    assert (found.value, found.count) == (0.5, 2)
    assert per_seed(rows, "good", how="any").values == {1: 1.0, 2: 0.0}


def test_a_share_of_one_seed_or_of_what_is_not_finite_is_unknown() -> None:
    for odd in (PerSeed({0: 1.0}), PerSeed({0: math.nan, 1: 1.0})):
        assert math.isnan(odd.share().value)


@pytest.mark.parametrize("how", ["mean", "median", "min", "max"])
def test_one_nan_among_the_rows_of_a_seed_makes_its_number_nan(how: Any) -> None:
    rows = pl.DataFrame({"seed": [0, 0, 0, 1], "x": [1.0, 2.0, math.nan, 3.0]})
    found = per_seed(rows, "x", how=how).values
    assert math.isnan(found[0])
    assert found[1] == 3.0


def test_a_ratio_with_what_is_not_finite_is_unknown() -> None:
    one, odd = PerSeed({0: 1.0, 1: 2.0}), PerSeed({0: math.inf, 1: 2.0})
    assert math.isnan((odd / one).effect().value)
    assert math.isnan((one / odd).effect().value)


def test_one_zero_among_ratios_has_an_interval_without_end() -> None:
    ratio = PerSeed({0: 0.0, 1: 1.0, 2: 1.0}) / PerSeed(dict.fromkeys(range(3), 1.0))
    assert ratio.effect().interval[1] == math.inf


def test_a_scaled_ratio_is_a_ratio_and_a_shifted_one_is_not() -> None:
    ratio = PerSeed({0: 1.0, 1: 4.0}) / PerSeed({0: 1.0, 1: 1.0})
    assert (ratio * 3.0).effect().value == pytest.approx(6.0)
    assert (ratio / 2.0).effect().value == pytest.approx(1.0)
    assert (ratio - 1.0).effect().value == pytest.approx(1.5)
    assert (ratio + 1.0).effect().value == pytest.approx(3.5)


def test_the_worst_is_one_without_an_interval() -> None:
    alone = Reading(lambda records: lab.Effect(1.0, (math.nan, math.nan), None, 3, ""))
    known = Reading(lambda records: lab.Effect(1.1, (1.0, 1.2), None, 9, ""))
    assert worst([known, alone], 1.0).effect({}).count == 3


def test_an_experiment_that_there_is_not_is_named() -> None:
    pair = ("rnus", "value", "value")
    for read in (of(*pair[:2]), slope_of(*pair), agreement_of(*pair)):
        with pytest.raises(ValueError, match="no experiment is called 'rnus'; there are runs"):
            read({"runs": FRAME})
