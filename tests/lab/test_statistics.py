"""Intervals cover, tests agree with scipy's, and degenerate input is answered, not crashed on."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from undertow import lab

Draw = Callable[[np.random.Generator, int], np.ndarray]

NORMAL: Draw = lambda generator, count: generator.normal(size=count)  # noqa: E731
UNIFORM: Draw = lambda generator, count: generator.uniform(-1, 1, size=count)  # noqa: E731
EXPONENTIAL: Draw = lambda generator, count: generator.exponential(size=count)  # noqa: E731


def coverage(
    effect: Callable[[np.ndarray], lab.Effect], draw: Draw, count: int, truth: float
) -> float:
    generator = np.random.default_rng(count)
    runs, hits = 500, 0
    for _ in range(runs):
        low, high = effect(draw(generator, count)).interval
        hits += low <= truth <= high
    return hits / runs


@pytest.mark.parametrize("count", [8, 20])
@pytest.mark.parametrize(("draw", "truth"), [(NORMAL, 0.0), (UNIFORM, 0.0), (EXPONENTIAL, 1.0)])
def test_interval_of_the_mean_covers(draw: Draw, truth: float, count: int) -> None:
    covered = coverage(lambda x: lab.bootstrap_interval(x, resamples=800), draw, count, truth)
    assert 0.92 <= covered <= 0.98


@pytest.mark.parametrize("count", [8, 20])
@pytest.mark.parametrize(("draw", "truth"), [(NORMAL, 0.0), (EXPONENTIAL, math.log(2))])
def test_interval_of_the_median_covers(draw: Draw, truth: float, count: int) -> None:
    covered = coverage(
        lambda x: lab.bootstrap_interval(x, "median", resamples=500), draw, count, truth
    )
    assert 0.92 <= covered <= 0.985


@pytest.mark.parametrize(("count", "highest"), [(8, 1.0), (12, 0.98), (20, 0.98)])
@pytest.mark.parametrize(("draw", "truth"), [(NORMAL, 0.0), (EXPONENTIAL, math.log(2))])
def test_interval_of_the_sign_test_covers(
    draw: Draw, truth: float, count: int, highest: float
) -> None:
    covered = coverage(lambda x: lab.paired_sign_test(x, 0 * x), draw, count, truth)
    assert 0.94 <= covered <= highest


@pytest.mark.parametrize("count", [3, 8, 20])
def test_interval_of_the_ratio_covers(count: int) -> None:
    covered = coverage(
        lambda x: lab.paired_ratio(2 * np.exp(x), np.ones(count)), NORMAL, count, 2.0
    )
    assert 0.92 <= covered <= 0.98


def test_interval_of_a_slope_covers_when_seeds_differ() -> None:
    """Each seed has its own slope: the points' own interval would be far too short."""
    x = np.tile(np.arange(5.0), 6)
    seeds = np.repeat(np.arange(6), 5)

    def effect(draws: np.ndarray) -> lab.Effect:
        return lab.slope(
            x, (1 + 0.5 * draws[:6])[seeds] * x + 0.1 * draws[6:], clusters=seeds.tolist()
        )

    covered = coverage(effect, NORMAL, 36, 1.0)
    assert 0.92 <= covered <= 0.98


values = arrays(
    np.float64, st.integers(3, 12), elements=st.floats(-100, 100).map(lambda x: round(x, 3))
)


@given(values, st.floats(0.5, 4), st.floats(-10, 10))
def test_mean_interval_follows_a_change_of_units(x: np.ndarray, scale: float, shift: float) -> None:
    before = lab.bootstrap_interval(x, resamples=200)
    after = lab.bootstrap_interval(scale * x + shift, resamples=200)
    if np.ptp(x) > 0.1:
        expected = [scale * bound + shift for bound in before.interval]
        np.testing.assert_allclose(after.interval, expected, rtol=1e-4, atol=1e-3)


@given(values)
def test_exchanging_the_pair_turns_the_effect_round(x: np.ndarray) -> None:
    y = np.arange(len(x)) - 1.0
    one, other = lab.paired_sign_test(x, y), lab.paired_sign_test(y, x)
    assert one.value == -other.value
    assert one.interval == tuple(-bound for bound in reversed(other.interval))
    assert one.p_value == other.p_value
    ratio = lab.paired_ratio(np.exp(x / 50), np.exp(y / 50))
    inverse = lab.paired_ratio(np.exp(y / 50), np.exp(x / 50))
    np.testing.assert_allclose(ratio.value, 1 / inverse.value, rtol=1e-9)
    np.testing.assert_allclose(ratio.interval[0], 1 / inverse.interval[1], rtol=1e-6)


@given(values)
def test_ranks_are_all_that_spearman_sees(x: np.ndarray) -> None:
    y = np.random.default_rng(len(x)).normal(size=len(x))
    before, after = lab.spearman(x, y), lab.spearman(np.arctan(x / 1000), y)
    if not math.isnan(before.value):
        assert before.value == pytest.approx(after.value)
        assert before.value == pytest.approx(scipy.stats.spearmanr(x, y).statistic)


def test_p_values_are_scipys() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(0.3, 1, size=(2, 15))
    signs = int(np.sum(a > b))
    for alternative in ("two-sided", "less", "greater"):
        expected = scipy.stats.binomtest(signs, 15, alternative=alternative).pvalue
        assert lab.paired_sign_test(a, b, alternative=alternative).p_value == pytest.approx(
            expected
        )
    line = scipy.stats.linregress(a, b)
    fitted = lab.slope(a, b)
    half = scipy.stats.t.ppf(0.975, 13) * line.stderr
    assert fitted.value == pytest.approx(line.slope)
    assert fitted.p_value == pytest.approx(line.pvalue)
    assert fitted.interval == pytest.approx((line.slope - half, line.slope + half))
    ratio = lab.paired_ratio(np.exp(a), np.exp(b))
    assert ratio.p_value == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue)


@pytest.mark.parametrize("paired", [True, False])
def test_equivalence_is_two_one_sided_tests(paired: bool) -> None:
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=12), generator.normal(size=12)
    result = lab.equivalence_test(a, b, margin=0.9, paired=paired)
    if paired:
        above = scipy.stats.ttest_1samp(a - b, -0.9, alternative="greater").pvalue
        below = scipy.stats.ttest_1samp(a - b, 0.9, alternative="less").pvalue
        interval = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    else:
        above = scipy.stats.ttest_ind(a + 0.9, b, equal_var=False, alternative="greater").pvalue
        below = scipy.stats.ttest_ind(a - 0.9, b, equal_var=False, alternative="less").pvalue
        interval = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert result.p_value == pytest.approx(max(above, below))
    assert result.interval == pytest.approx(tuple(interval))
    low, high = result.test_interval
    assert (result.p_value < 0.05) == (low > -0.9 and high < 0.9)


def test_clusters_with_the_same_x_give_the_t_interval_of_their_slopes() -> None:
    x = np.tile(np.arange(4.0), 5)
    y = np.random.default_rng(2).normal(size=20) + x
    slopes = [lab.slope(x[:4], part).value for part in y.reshape(5, 4)]
    clustered = lab.slope(x, y, clusters=np.repeat(np.arange(5), 4).tolist())
    expected = scipy.stats.ttest_1samp(slopes, 0).confidence_interval(0.95)
    assert clustered.value == pytest.approx(np.mean(slopes))
    assert clustered.interval == pytest.approx(tuple(expected))


def test_clusters_widen_what_repeats_within_them() -> None:
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(2, 6))
    repeated = lab.spearman(np.repeat(x, 10), np.repeat(y, 10))
    clustered = lab.spearman(np.repeat(x, 10), np.repeat(y, 10), clusters=np.repeat(range(6), 10))
    assert np.ptp(clustered.interval) > 2 * np.ptp(repeated.interval)
    assert clustered.p_value is None


def test_the_same_seed_gives_the_same_interval() -> None:
    x = np.random.default_rng(4).normal(size=9)
    assert lab.bootstrap_interval(x) == lab.bootstrap_interval(x)
    assert lab.bootstrap_interval(x) != lab.bootstrap_interval(x, seed=1)


def test_equal_values_have_an_interval_of_no_width() -> None:
    for statistic in ("mean", "median", np.max):
        assert lab.bootstrap_interval([0.1] * 9, statistic).interval == (0.1, 0.1)
    assert lab.paired_ratio([2.0, 4.0], [1.0, 2.0]).interval == (2.0, 2.0)
    assert lab.slope([0, 1, 2], [0, 2, 4]).interval == (2.0, 2.0)
    same = lab.equivalence_test([1.0, 2.0], [1.0, 2.0], margin=0.1)
    assert (same.value, same.interval, same.p_value) == (0.0, (0.0, 0.0), 0.0)


def test_too_few_values_give_nan_and_a_note() -> None:
    for effect in (
        lab.bootstrap_interval([1.0]),
        lab.paired_ratio([1.0], [2.0]),
        lab.equivalence_test([1.0], [2.0], margin=1),
        lab.slope([0, 1], [1, 3]),
        lab.spearman([1, 2, 3], [1, 3, 2]),
        lab.spearman([1, 2, 3], [1, 3, 2], clusters=[0, 0, 0]),
        lab.spearman([1, 1, 1, 1], [1, 3, 2, 4]),
    ):
        assert all(map(math.isnan, effect.interval))
        assert effect.note
        assert effect.note in repr(effect)
    assert lab.paired_sign_test([1, 2, 3], [0, 0, 0]).interval == (-math.inf, math.inf)


def test_ties_are_dropped_and_counted() -> None:
    effect = lab.paired_sign_test([1, 2, 3, 4, 5, 6, 7], [1, 2, 0, 0, 0, 0, 0])
    assert effect.p_value == pytest.approx(2 * 0.5**5)
    assert "2 tied pairs" in effect.note


def test_an_effect_reads_like_a_sentence() -> None:
    effect = lab.Effect(0.83, (0.71, 0.92), 0.002, 12, "paired ratio")
    assert repr(effect) == "0.83 [0.71, 0.92], p = 0.002, n = 12 (paired ratio)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lab.bootstrap_interval([1, math.nan]), "values: 1 of 2"),
        (lambda: lab.bootstrap_interval([]), "values"),
        (lambda: lab.bootstrap_interval([1, 2], "mode"), "statistic"),
        (lambda: lab.bootstrap_interval([1, 2], confidence=95), "confidence"),
        (lambda: lab.paired_sign_test([1, 2], [1]), "a and b"),
        (lambda: lab.paired_sign_test([1], [1], alternative="more"), "alternative"),
        (lambda: lab.paired_ratio([1, 2], [0, 1]), "b: a ratio needs positive"),
        (lambda: lab.spearman([1, 2], [1, math.inf]), "y: 1 of 2"),
        (lambda: lab.spearman([1, 2], [1, 2], clusters=[0]), "clusters"),
        (lambda: lab.equivalence_test([1], [1], margin=0), "margin"),
        (lambda: lab.slope([1, 1], [1, 2]), "x: all values"),
    ],
)
def test_bad_input_is_named(call: Callable[[], lab.Effect], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_proportion_has_its_exact_interval() -> None:
    """Clopper and Pearson: 0 of n has the upper end 1 - 0.025^(1/n); all of n mirrors it."""
    none, every = lab.proportion(0, 12), lab.proportion(12, 12)
    upper = 1 - 0.025 ** (1 / 12)
    assert none.interval == pytest.approx((0, upper))
    assert every.interval == pytest.approx((1 - upper, 1))
    assert lab.proportion(3, 12).value == 0.25


def test_a_proportion_of_nothing_is_unknown_and_of_too_much_an_error() -> None:
    assert math.isnan(lab.proportion(0, 0).value)
    with pytest.raises(ValueError, match="count"):
        lab.proportion(3, 2)


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.0, 2.0, 5.0]])
def test_a_statistic_of_two_or_three_values_has_the_whole_range(values: list[float]) -> None:
    found = lab.bootstrap_interval(values, lambda own: float(np.median(own)))
    assert found.interval == (min(values), max(values))
