"""Predictions: words from numbers, a whole interval on one side, and nothing from the unknown."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow import lab
from undertow.lab import (
    PerSeed,
    Prediction,
    Reading,
    at_most,
    at_most_times,
    check_all,
    decide,
    every_seed,
    near,
    no_less,
    no_seed,
    outside,
    proportion,
    unknown,
    within,
)

finite = st.floats(-10, 10)
intervals = st.tuples(finite, finite, finite).map(sorted)


def reads(low: float, value: float, high: float) -> Reading:
    return Reading(lambda records: lab.Effect(value, (low, high), None, 9, ""))


def checked(prediction: Prediction) -> lab.Check:
    return prediction.check("it", {})


@given(intervals, finite, st.floats(0, 5))
def test_passed_is_the_whole_interval_inside_and_refuted_the_whole_outside(
    given_: list[float], target: float, by: float
) -> None:
    low, _, high = given_
    read = reads(*given_)
    for prediction, least, most in (
        (at_most(target, read), -math.inf, target),
        (no_less(target, read), target, math.inf),
        (near(target, by, read), target - by, target + by),
        (within(target, target + by, read), target, target + by),
    ):
        check = checked(prediction)
        assert check.passed == (least <= low and high <= most)
        assert check.refuted == (high < least or most < low)
        assert not (check.passed and check.refuted)
    apart = checked(outside(target, by, read))
    alike = checked(near(target, by, read))
    assert apart.passed == alike.refuted
    assert not (apart.passed and apart.refuted)


MAKERS: list[Any] = [
    lambda read, control: at_most(1, read, control=control),
    lambda read, control: no_less(1, read, control=control),
    lambda read, control: near(1, 0.5, read, control=control),
    lambda read, control: within(1, 2, read, control=control),
    lambda read, control: outside(1, 0.5, read, control=control),
    lambda read, control: every_seed(read, control=control),
    lambda read, control: no_seed(read, control=control),
    lambda read, control: every_seed(read, control=control, exact=True),
]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("control", [False, True])
def test_what_is_unknown_neither_passes_nor_refutes(make: Any, control: bool) -> None:
    check = checked(make(Reading(lambda records: unknown()), control))
    assert not check.passed
    assert not check.refuted
    assert check.control is control


@pytest.mark.parametrize("make", MAKERS)
def test_an_unknown_interval_does_not_pass(make: Any) -> None:
    """Too few seeds for an interval leave a value alone; a share always has an interval."""
    check = checked(make(reads(math.nan, 0.7, math.nan), False))
    assert not check.passed


def test_words_come_from_numbers_and_the_note_follows() -> None:
    read = reads(0, 0, 0)
    assert at_most(0.65, read, "why").words == "at most 0.65: why"
    assert (
        at_most(1e-12, read, "of the norm: at rest").words == "at most 1e-12 of the norm: at rest"
    )
    assert no_less(2, read).words == "at least 2"
    assert near(40, 4e-5, read).words == "within 4e-5 of 40"
    assert near(1, 0.05, read).words == "within 0.05 of 1"
    assert within(0.8, 1.25, read).words == "0.8 to 1.25"
    assert outside(0, 0.02, read).words == "farther than 0.02 from 0"
    assert every_seed(read).words == "in every seed"
    assert no_seed(read, "why").words == "in no seed: why"


def pairs(seeds: int, large: float = 0.51) -> dict[str, PerSeed]:
    """A tenth of the other, but in two seeds where both are a thousand times as large."""
    odd = [seed < 2 for seed in range(seeds)]
    own = {s: 1000 * large if o else 0.1 + 0.001 * s for s, o in enumerate(odd)}
    return {
        "own": PerSeed(own),
        "other": PerSeed({s: 1000.0 if o else 1.0 for s, o in enumerate(odd)}),
    }


def at_most_half(found: dict[str, PerSeed]) -> lab.Check:
    own, other = (Reading(lambda _, name=name: found[name]) for name in ("own", "other"))
    return at_most_times(0.5, own, other, "why").check("it", {})


def test_signed_ranks_are_asked_too_where_there_are_runs_enough() -> None:
    ratio = pairs(10)["own"] / pairs(10)["other"]
    judged = at_most_half(pairs(10))
    assert (judged.value, judged.interval) == (ratio.effect().value, ratio.effect().interval)
    assert judged.interval[1] < 0.5
    assert not judged.passed
    assert not judged.refuted
    assert at_most_half(pairs(9)).passed
    assert at_most_half(pairs(10, large=0.1)).passed
    assert at_most_half(pairs(40)).passed
    assert judged.rule == "at most 0.5, with p < 0.01 by signed ranks of 10 runs or more: why"


def test_a_ratio_that_is_too_large_refutes_and_an_unknown_one_does_not() -> None:
    found = pairs(12, large=0.1)
    swapped = at_most_half({"own": found["other"], "other": found["own"]})
    assert swapped.refuted
    lost = at_most_half({**found, "own": PerSeed({**found["own"].values, 3: math.nan})})
    assert (lost.passed, lost.refuted) == (False, False)
    assert not at_most_half(dict.fromkeys(found, PerSeed({}))).passed


def share(count: int, total: int) -> Reading:
    return Reading(lambda records: proportion(count, total))


def test_in_every_seed_one_that_breaks_it_leaves_it_open_unless_it_is_exact() -> None:
    assert checked(every_seed(share(12, 12))).passed
    broken = checked(every_seed(share(11, 12)))
    assert (broken.passed, broken.refuted) == (False, False)
    assert checked(every_seed(share(11, 12), exact=True)).refuted
    assert checked(every_seed(share(1, 12))).refuted
    assert not checked(every_seed(share(0, 0))).passed


def test_in_no_seed_is_the_other_end() -> None:
    assert checked(no_seed(share(0, 12))).passed
    assert not checked(no_seed(share(1, 12))).refuted
    assert checked(no_seed(share(1, 12), exact=True)).refuted
    assert checked(no_seed(share(11, 12))).refuted


def test_a_verdict_needs_every_check_and_a_refutation_the_controls() -> None:
    good, bad = at_most(1, reads(0, 0, 0)), at_most(1, reads(2, 2, 2))
    caught = no_less(1, reads(2, 2, 2), control=True)
    missed = no_less(1, reads(0, 0, 0), control=True)
    outcome = {
        name: decide(check_all(predictions, {})).outcome
        for name, predictions in {
            "all": {"a": good, "c": caught},
            "against": {"a": good, "b": bad, "c": caught},
            "no control": {"a": good, "c": missed},
            "against, no control": {"b": bad, "c": missed},
        }.items()
    }
    assert outcome == {
        "all": "supported",
        "against": "refuted",
        "no control": "inconclusive",
        "against, no control": "inconclusive",
    }
    assert decide(check_all({"a": good}, {}), promises_verdict=False).outcome == "inconclusive"


def test_nothing_predicted_supports_nothing() -> None:
    control = no_less(1, reads(2, 2, 2), control=True)
    for predictions in ({}, {"control": control}):
        assert decide(check_all(predictions, {})).outcome == "inconclusive"


AGAINST: list[Any] = [
    lambda read, against: at_most(0.65, read, "why", against=against),
    lambda read, against: near(0, 0.65, read, "why", against=against),
    lambda read, against: no_less(1.5, read, "why", against=against),
    lambda read, against: at_most_times(0.65, read.then(by_seed), read.then(ones), against=against),
]


def by_seed(effect: lab.Effect) -> PerSeed:
    """Nine seeds within an interval."""
    return PerSeed(dict(enumerate(np.linspace(*effect.interval, 9))))


def ones(effect: lab.Effect) -> PerSeed:
    return PerSeed(dict.fromkeys(range(9), 1.0))


@pytest.mark.parametrize("make", AGAINST)
def test_a_missed_threshold_is_no_evidence_against_the_paper(make: Any) -> None:
    """A ratio of 0.7 misses 0.65, and only one above 1 has the wrong sign."""
    above = make is not AGAINST[2]
    missed = reads(0.68, 0.69, 0.7) if above else reads(1.2, 1.2, 1.3)
    wrong = reads(1.1, 1.2, 1.3) if above else reads(0.68, 0.69, 0.7)
    assert checked(make(missed, None)).refuted
    assert not checked(make(missed, 1)).refuted
    assert checked(make(wrong, 1)).refuted
    for read in (missed, wrong):
        assert not checked(make(read, math.inf)).refuted
        assert not checked(make(read, math.inf)).passed


def test_outside_of_a_pair_a_range_is_refuted() -> None:
    for low, refuted in ((0.7, False), (1.1, True), (-1.3, True)):
        read = reads(low, low, low + 0.1)
        assert checked(within(0, 0.65, read, against=(-1, 1))).refuted is refuted
        assert not checked(within(0, 0.65, read, against=math.inf)).refuted


def test_the_rule_says_what_would_refute_it() -> None:
    read = reads(0, 0, 0)
    assert at_most(0.65, read, "why", against=1).words == "at most 0.65 (refuted above 1): why"
    assert no_less(2, read, against=1).words == "at least 2 (refuted below 1)"
    assert near(1, 0.1, read, against=1).words == ("within 0.1 of 1 (refuted below 0 or above 2)")
    assert at_most(0.65, read, against=math.inf).words == "at most 0.65 (a miss refutes nothing)"
    assert at_most(0.65, read, control=True, against=1).words == "at most 0.65"
    with pytest.raises(ValueError, match="against must not lie within the rule, at most 1"):
        at_most(1, read, against=0.5)


def test_a_control_is_never_refuted() -> None:
    """It passes or it cannot tell; evidence against a claim comes from its checks."""
    assert not checked(at_most(1, reads(2, 2, 2), control=True)).refuted
    assert checked(at_most(1, reads(2, 2, 2), control=True)).result == "not passed"


def test_what_rests_on_too_few_surviving_seeds_neither_passes_nor_refutes() -> None:
    seven = PerSeed(dict.fromkeys(range(7), 1.0))
    frame = pl.DataFrame({"seed": [0, 1, 2] * 2, "x": [1.0, 2.0, 3.0, 2.0, 3.0, 4.0]})
    few = [
        Reading(lambda records: seven),
        Reading(lambda records: seven / seven),
        Reading(lambda records: seven.share()),
        lab.worst([Reading(lambda records: seven), reads(1, 1, 1)]),
        lab.greatest([Reading(lambda records: seven)] * 2),
        lab.slope_of("runs", "x", "x"),
        lab.of_means([lab.of("runs", "x")], lambda means: float(means[0])),
    ]
    for read in few:
        for prediction in (no_less(-9, read), at_most(-9, read), every_seed(read, exact=True)):
            check = prediction.check("it", {"runs": frame}, least_seeds=8)
            assert check.result == "not passed"
    without_seeds = no_less(-9, reads(1, 1, 1)).check("it", {}, least_seeds=8)
    assert without_seeds.passed
    assert no_less(-9, few[0]).check("it", {}, least_seeds=7).passed


def test_in_every_seed_reads_what_holds_of_each() -> None:
    found = Reading(lambda records: PerSeed({seed: 0.1 * seed for seed in range(9)}))
    assert checked(every_seed(found <= 0.81)).passed
    assert checked(every_seed(found < 0.8)).value == pytest.approx(8 / 9)
    assert checked(no_seed(found > 0.81)).passed


def test_of_a_bound_of_ones_own_no_share_of_seeds_refutes() -> None:
    short = reads(0.0, 0.0, 0.37)
    assert checked(every_seed(short)).refuted
    own = every_seed(short, "at most 1", against=math.inf)
    assert own.words == "in every seed (a miss refutes nothing): at most 1"
    assert not checked(own).passed
    assert not checked(own).refuted
    assert every_seed(short, against=0.2).words == "in every seed (refuted below 0.2)"
    assert not checked(every_seed(short, against=0.2)).refuted
    assert at_most(1, short, "of it: why", against=2).words == (
        "at most 1 of it (refuted above 2): why"
    )
