"""Lines through the records of each cell."""

from __future__ import annotations

import math

import polars as pl
import pytest

from undertow import lab

LOG = pl.col("scale").log()


def power(exponent: float, seed: int, scales: list[float]) -> pl.DataFrame:
    return pl.DataFrame(
        {"seed": seed, "scale": scales, "value": [2 * scale**exponent for scale in scales]}
    )


def test_the_exponent_of_a_power_law_is_found_in_each_cell() -> None:
    frame = pl.concat([power(3.0, 1, [0.1, 1.0, 10.0]), power(-0.5, 0, [1.0, 2.0])])
    fits = lab.slopes(frame, LOG, pl.col("value").log())
    assert fits["seed"].to_list() == [0, 1]
    assert fits["slope"].to_list() == pytest.approx([-0.5, 3.0])
    assert fits["misfit"].to_list() == pytest.approx([0, 0], abs=1e-12)
    assert fits["points"].to_list() == [2, 3]


def test_the_smallest_x_are_fitted_whatever_their_order() -> None:
    bent = pl.concat([power(1.0, 0, [1e6, 1e8]), power(3.0, 0, [1e-2, 1e-4, 1e-3])])
    fits = lab.slopes(bent, LOG, pl.col("value").log(), smallest=3)
    assert fits["slope"].item() == pytest.approx(3)
    assert fits["points"].item() == 3


def test_what_is_null_or_left_out_takes_no_part() -> None:
    frame = pl.DataFrame({"seed": 0, "x": [1.0, 2.0, 3.0, 4.0], "y": [1.0, None, 3.0, 99.0]})
    fits = lab.slopes(frame, pl.col("x"), pl.col("y"), pl.col("x") < 4, smallest=2)
    assert fits["slope"].item() == pytest.approx(1)


@pytest.mark.parametrize("xs", [[1.0], [2.0, 2.0]])
def test_no_slope_goes_through_one_x(xs: list[float]) -> None:
    frame = pl.DataFrame({"seed": 0, "x": xs, "y": xs})
    assert math.isnan(lab.slopes(frame, pl.col("x"), pl.col("y"))["slope"].item())


def test_no_records_have_no_slopes() -> None:
    found = lab.slopes(pl.DataFrame(), pl.col("x"), pl.col("y"), by=("seed", "phase"), depth=2)
    assert found.is_empty()
    assert found.columns == ["seed", "phase", "slope", "misfit", "points"]


def test_equal_x_have_no_slope_though_rounding_would_give_one() -> None:
    rows = pl.DataFrame({"seed": [0] * 3, "x": [0.1] * 3, "y": [1.0, 2.0, 4.0]})
    found = lab.slopes(rows, pl.col("x"), pl.col("y"))
    assert math.isnan(found["slope"][0])
    assert math.isnan(found["misfit"][0])


@pytest.mark.parametrize(("sizes", "powers"), [((1, 2, 4), (-2, -4)), ((0.5, 0.3, 0.1), (1, 1.5))])
def test_the_leading_power_is_free_of_the_next_term(
    sizes: tuple[float, ...], powers: tuple[float, float]
) -> None:
    errors = [3 * x ** powers[0] - 5 * x ** powers[1] for x in sizes]
    assert lab.leading_power(sizes, errors, powers) == pytest.approx(powers[0])
    assert lab.leading_power(sizes, [-error for error in errors], powers) == pytest.approx(
        powers[0]
    )


def test_a_wrong_leading_power_is_found_in_a_geometric_progression() -> None:
    errors = [x**0.5 for x in (1, 2, 4)]
    assert lab.leading_power((1, 2, 4), errors, (2, 4)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="three each"):
        lab.leading_power((1, 2), errors, (2, 4))
