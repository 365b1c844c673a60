"""Descent on a circle of minimisers beside the flow, whose solution is known."""

from __future__ import annotations

import numpy as np
import pytest

from undertow.predict import sharpness_speed_limit
from undertow.train import circle_descent, circle_flow


def test_a_circle_without_decay_stays_at_the_edge_and_where_it_was() -> None:
    run = circle_descent(
        np.array([1.0, 1.0]), np.array([1.5, 1.5]), 0.02, 0.5, decay=[True, False], readings=10
    )
    flow = circle_flow(1.0, 1.5, run.times)
    assert run.angle[:, 0] == pytest.approx(flow, abs=2e-3)
    assert abs(run.angle[:, 1] - 1).max() < 0.02
    assert run.edge == pytest.approx([2, 2], abs=0.05)


@pytest.mark.parametrize("steepness", [0.5, 1.5, 6.0])
def test_it_keeps_the_pace_of_its_slope(steepness: float) -> None:
    run = circle_descent(
        np.array([1.0]), np.array([steepness]), 0.005, 0.05, decay=[True], readings=2
    )
    slope = steepness * np.sin(run.angle[:, 0].mean())
    pace = steepness * np.diff(np.cos(run.angle[[0, -1], 0]))[0] / run.times[-1]
    assert pace == pytest.approx(sharpness_speed_limit(slope), rel=0.05)


def test_runs_without_a_time_are_refused() -> None:
    one = np.array([1.0])
    with pytest.raises(ValueError, match="one for each run"):
        circle_descent(one, one, 0.1, 1.0, decay=[True, False])
    with pytest.raises(ValueError, match="time must be a finite number above 0"):
        circle_descent(one, one, 0.1, 0.0, decay=[True])
    with pytest.raises(ValueError, match="angle and steepness must be finite"):
        circle_descent(one, np.array([np.inf]), 0.1, 1.0, decay=[True])
    with pytest.raises(ValueError, match="intrinsic_rate must be between 0 and sqrt"):
        circle_descent(one, one, 2.0, 1.0, decay=[True])
    with pytest.raises(TypeError, match="readings must be a whole number"):
        circle_descent(one, one, 0.1, 1.0, decay=[True], readings=2.5)  # type: ignore[arg-type]
