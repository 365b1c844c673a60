"""Predictions: words from numbers, a whole interval on one side, and nothing from the unknown."""

from __future__ import annotations

import math
from typing import Any

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
