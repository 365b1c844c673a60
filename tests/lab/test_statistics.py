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
    effect: Callable[[np.ndarray], lab.Effect],
    draw: Draw,
    count: int,
    truth: float,
    runs: int = 500,
) -> float:
    generator, hits = np.random.default_rng(count), 0
    for _ in range(runs):
        low, high = effect(draw(generator, count)).interval
        hits += low <= truth <= high
    return hits / runs


@pytest.mark.parametrize("count", [8, 20])
@pytest.mark.parametrize(("draw", "truth"), [(NORMAL, 0.0), (UNIFORM, 0.0), (EXPONENTIAL, 1.0)])
def test_interval_of_the_mean_covers(draw: Draw, truth: float, count: int) -> None:
    covered = coverage(lambda x: lab.bootstrap_interval(x, resamples=800), draw, count, truth)
    assert 0.92 <= covered <= 0.98


MEDIANS: list[tuple[Draw, float]] = [
    (NORMAL, 0.0),
    (EXPONENTIAL, math.log(2)),
    (lambda generator, count: generator.lognormal(0, 1, size=count), 1.0),
    (lambda generator, count: generator.standard_t(3, size=count), 0.0),
]


@pytest.mark.parametrize("count", [6, 8, 12, 24])
@pytest.mark.parametrize(("draw", "truth"), MEDIANS)
def test_interval_of_the_median_covers(draw: Draw, truth: float, count: int) -> None:
    covered = coverage(lab.median_interval, draw, count, truth, runs=2000)
    assert 0.93 <= covered <= 0.97
    logs: Draw = lambda generator, count: np.exp(draw(generator, count))  # noqa: E731
    ratios = coverage(lambda x: lab.paired_ratio(2 * x, 1 + 0 * x), logs, count, 2 * np.exp(truth))
    assert 0.92 <= ratios <= 0.98


@pytest.mark.parametrize("count", [8, 12, 24])
def test_values_that_repeat_are_covered_more_often_never_less(count: int) -> None:
    few: Draw = lambda generator, count: generator.integers(0, 5, size=count)  # noqa: E731
    assert coverage(lab.median_interval, few, count, 2.0) >= 0.95


def in_clusters(draws: np.ndarray, *, shared: bool) -> lab.Effect:
    """A slope of one with lognormal errors, of ten clusters of five points each."""
    x, errors = np.tile(np.arange(5.0), 10), np.exp(draws[:50])
    if not shared:
        x = x + 3 * np.repeat(draws[50:], 5)
    return lab.slope(x, x + errors, clusters=np.repeat(np.arange(10), 5).tolist())


@pytest.mark.parametrize("shared", [True, False])
def test_interval_of_a_slope_covers_whether_or_not_clusters_share_their_x(shared: bool) -> None:
    covered = coverage(lambda x: in_clusters(x, shared=shared), NORMAL, 60, 1.0)
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


@pytest.mark.parametrize("paired", [True, False])
def test_things_apart_by_the_margin_are_seldom_called_alike(paired: bool) -> None:
    """By the margin of the median, and long-tailed: t tests call a fifth of the pairs alike."""
    generator, alike, margin = np.random.default_rng(5), 0, 1.0
    for _ in range(500):
        first, second = generator.lognormal(0, 1, (2, 8))
        a, b = (first, 0 * first) if paired else (first + margin, second)
        alike += float(lab.equivalence_test(a, b, margin=margin, paired=paired).p_value or 1) < 0.05
    assert alike <= 0.07 * 500


ODD = [-2.31, -2.28, -2.33, -2.3, -2.27, -2.29, -2.32, -1.0]


def test_one_odd_value_moves_a_median_by_no_more_than_its_neighbours() -> None:
    """However far it lies: the end towards it moves by a small part of the step, or not at all."""
    usual = lab.median_interval([*ODD[:-1], -2.26])
    for odd in (-1.0, 10.6):
        effect = lab.median_interval([*ODD[:-1], odd])
        assert effect.value == pytest.approx(usual.value)
        assert effect.interval[0] == usual.interval[0]
        assert effect.interval[1] - usual.interval[1] <= 0.07 * (odd + 2.26)
    many = lab.median_interval([*ODD[:-1], *ODD[:-1], 1e6])
    assert many.interval[1] < -2.26


def test_the_mean_of_one_odd_value_keeps_to_twice_students_interval() -> None:
    student = scipy.stats.ttest_1samp(ODD, 0).confidence_interval(0.95)
    mean, (low, high) = np.mean(ODD), lab.bootstrap_interval(ODD).interval
    assert mean - low <= 2.001 * (mean - student.low)
    assert high - mean <= 2.001 * (student.high - mean)
    assert high < -1


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
    np.testing.assert_allclose(ratio.interval[0], 1 / inverse.interval[1], rtol=1e-9)
    assert ratio.p_value == inverse.p_value


def test_ratios_of_zero_and_without_end_are_ordered_with_the_others() -> None:
    ratios = [0.0, *(0.5, 0.7, 0.8, 0.9, 1.0, 1.1), math.inf]
    effect = lab.median_interval(ratios, ratios=True)
    assert effect.value == pytest.approx(math.sqrt(0.8 * 0.9))
    assert effect.interval == (0, math.inf)
    assert lab.median_interval([0.0] + 9 * [1.0] + [0.0], ratios=True).interval[1] == 1
    half = lab.median_interval([0.0] * 4 + [1.0] * 4, ratios=True)
    assert (half.value, half.interval[1]) == (0, 1)
    assert lab.paired_ratio([0, 1, 1], [1, 1, 0]).value == 1
    none = lab.median_interval([0.0, math.inf], ratios=True)  # anything at all lies between them
    assert math.isnan(none.value)


def test_a_negative_ratio_is_the_smallest() -> None:
    ratios = [-1.0, *(0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)]
    assert lab.median_interval(ratios, ratios=True).value == 0.9


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
    assert ratio.p_value == lab.paired_sign_test(a, b).p_value


@pytest.mark.parametrize("paired", [True, False])
def test_equivalence_is_two_one_sided_tests(paired: bool) -> None:
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=12), generator.normal(size=12)
    result = lab.equivalence_test(a, b, margin=0.9, paired=paired)
    if paired:
        above = scipy.stats.binomtest(int(np.sum(a - b > -0.9)), 12, alternative="greater").pvalue
        below = scipy.stats.binomtest(int(np.sum(a - b < 0.9)), 12, alternative="greater").pvalue
        assert result.interval == lab.paired_sign_test(a, b).interval
    else:
        exact = {"alternative": "greater", "method": "exact"}
        above = scipy.stats.mannwhitneyu(a + 0.9, b, **exact).pvalue
        below = scipy.stats.mannwhitneyu(b + 0.9, a, **exact).pvalue
        assert result.value == pytest.approx(np.median(np.subtract.outer(a, b)))
    assert result.p_value == pytest.approx(max(above, below))
    low, high = result.test_interval
    assert low <= result.value <= high
    assert result.p_value >= 0.05 or (low > -0.9 and high < 0.9)


@pytest.mark.parametrize("sizes", [(5, 5), (4, 9), (12, 12)])
def test_interval_of_a_shift_covers(sizes: tuple[int, int]) -> None:
    def effect(draws: np.ndarray) -> lab.Effect:
        first, second = np.split(np.exp(draws), [sizes[0]])
        return lab.equivalence_test(first + 3, second, margin=1, paired=False)

    assert 0.94 <= coverage(effect, NORMAL, sum(sizes), 3.0) <= 0.99


def test_clusters_give_the_median_of_their_own_slopes_and_correlations() -> None:
    x, y = np.random.default_rng(2).normal(size=(2, 7, 4))
    x[:, 0] += 3
    y += x
    labels = np.repeat(np.arange(7), 4).tolist()
    for statistic in (lab.slope, lab.spearman):
        own = [statistic(*part).value for part in zip(x, y, strict=True)]
        clustered = statistic(x.ravel(), y.ravel(), clusters=labels)
        assert clustered.value == pytest.approx(np.median(own))
        assert clustered.interval == pytest.approx(lab.median_interval(own).interval)
        assert clustered.count == clustered.seeds == 7


def test_the_same_seed_gives_the_same_interval() -> None:
    x = np.random.default_rng(4).normal(size=9)
    assert lab.bootstrap_interval(x) == lab.bootstrap_interval(x)
    assert lab.bootstrap_interval(x) != lab.bootstrap_interval(x, seed=1)


def test_equal_values_have_an_interval_of_no_width() -> None:
    for statistic in ("mean", np.median, np.max):
        assert lab.bootstrap_interval([0.1] * 9, statistic).interval == (0.1, 0.1)
    assert lab.median_interval([0.1] * 9).interval == (0.1, 0.1)
    assert lab.paired_ratio([0.2] * 7, [0.1] * 7).interval == (2.0, 2.0)
    assert lab.slope([0, 1, 2], [0, 2, 4]).interval == (2.0, 2.0)
    same = lab.equivalence_test(np.arange(7), np.arange(7), margin=0.1)
    assert (same.value, same.interval, same.p_value) == (0.0, (0.0, 0.0), 0.5**7)


def test_too_few_values_give_nan_and_a_note() -> None:
    for effect in (
        lab.bootstrap_interval([1.0]),
        lab.slope([0, 1], [1, 3]),
        lab.slope([0, 1, 2], [1, 3, 4], clusters=[0, 0, 1]),
        lab.spearman([1, 2, 3], [1, 3, 2]),
        lab.spearman([1, 2, 3], [1, 3, 2], clusters=[0, 0, 1]),
        lab.spearman([1, 1, 1, 1], [1, 3, 2, 4]),
    ):
        assert all(map(math.isnan, effect.interval))
        assert effect.note
        assert effect.note in repr(effect)


def test_fewer_than_six_values_have_a_median_without_end() -> None:
    few = [1.0, 2.0, 3.0, 4.0, 5.0]
    whole = (-math.inf, math.inf)
    for effect in (
        lab.median_interval(few),
        lab.paired_sign_test(few, 0 * np.array(few)),
        lab.equivalence_test(few, 0 * np.array(few), margin=1),
        lab.equivalence_test([1.0], [2.0], margin=1, paired=False),
        lab.slope([0, 1, 2], [1, 3, 4], clusters=[0, 0, 0]),
    ):
        assert effect.interval == whole
        assert "too few" in effect.note or "too few" in effect.method
    assert lab.paired_ratio([1.0], [2.0]).interval == (0, math.inf)
    assert lab.median_interval([*few, 6.0]).interval[1] < 6


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
        (lambda: lab.bootstrap_interval([1, 2], "median"), "statistic"),
        (lambda: lab.median_interval([]), "values"),
        (lambda: lab.median_interval([1, math.inf]), "values: 1 of 2"),
        (lambda: lab.median_interval([1, math.nan], ratios=True), "values"),
        (lambda: lab.median_interval([1, 2], confidence=95), "confidence"),
        (lambda: lab.bootstrap_interval([1, 2], confidence=95), "confidence"),
        (lambda: lab.paired_sign_test([1, 2], [1]), "a and b"),
        (lambda: lab.paired_sign_test([1], [1], alternative="more"), "alternative"),
        (lambda: lab.paired_ratio([1, 2], [-1, 1]), "b: a ratio needs"),
        (lambda: lab.paired_ratio([1, 0], [1, 0]), "a pair of zeros"),
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
