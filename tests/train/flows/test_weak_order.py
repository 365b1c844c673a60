"""Second moments of update rules tend to those of their SDEs, at the order of the theorems.

SGD and its SVAG: an error of order lr and 1 / l (2102.12470); RMSprop and Adam: of order lr^2 and
1 / l^2 (2205.10287).
"""

from __future__ import annotations

import pytest
import weak_order
from weak_order import Case, Kind, gap, order

ORDER = {"sgd": 1.0, "rmsprop": 2.0, "adam": 2.0}


def assert_order(slope: float, stderr: float, expected: float) -> None:
    assert stderr < 0.06
    assert slope == pytest.approx(expected, abs=0.15)


def rates(kind: Kind, finest: int) -> list[float]:
    first = 2**-3 if kind == "sgd" else 2**-1.5
    ratio = 2 if kind == "sgd" else 2**0.5
    return [first / ratio**k for k in range(finest)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sgd", "rmsprop", "adam"])
def test_order_in_the_learning_rate_on_a_quadratic(kind: Kind) -> None:
    case = weak_order.quadratic()
    units = rates(kind, 4)
    found = order(units, [gap(kind, case, lr, time=1.0, replicas=20_000) for lr in units])
    assert_order(*found, ORDER[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sgd", "rmsprop", "adam"])
def test_order_in_the_learning_rate_on_a_network(kind: Kind) -> None:
    case = weak_order.network()
    units = rates(kind, 4)[1:]
    found = order(units, [gap(kind, case, lr, time=0.5, replicas=2000) for lr in units])
    assert_order(*found, ORDER[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sgd", "rmsprop", "adam"])
def test_svag_tends_to_the_sde_at_a_fixed_learning_rate(kind: Kind) -> None:
    case: Case = weak_order.quadratic()
    levels = (1, 2, 4, 8) if kind == "sgd" else (1, 2, 4)
    lr = 0.125 if kind == "sgd" else 2**-1.5
    gaps = [gap(kind, case, lr, finer=level, time=1.0, replicas=10_000) for level in levels]
    assert_order(*order(levels, gaps), -ORDER[kind])
