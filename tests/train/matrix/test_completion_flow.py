"""Completion by a deep product, and the error of what is completed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from undertow.train import completion_error, completion_flow

TIMES = np.geomspace(1, 1e5, 40).tolist()


def rank_one() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.rand(n, 1, generator=generator).double() + 0.5 for n in (6, 5))
    mask = torch.rand(6, 5, generator=generator) < 0.7
    return left @ right.T / torch.linalg.matrix_norm(left @ right.T, 2), mask


@pytest.mark.parametrize("depth", [2, 3])
def test_it_ends_where_it_holds_what_is_observed_and_fills_in_the_rest(depth: int) -> None:
    truth, mask = rank_one()
    options = {"depth": depth, "scale": 1e-3, "times": TIMES, "residual": 1e-3}
    flow = completion_flow(truth, mask, **options, generator=torch.Generator().manual_seed(0))
    assert flow.stopped == "event"
    ended = flow.parameters[-1]
    assert float(completion_error(ended, truth, mask)) == pytest.approx(1e-3, rel=0.01)
    assert float(completion_error(ended, truth, ~mask)) < 0.1


def test_what_is_not_observed_is_not_looked_at() -> None:
    truth, mask = rank_one()
    holed = torch.where(mask, truth, torch.nan)
    options = {"depth": 2, "scale": 1e-2, "times": TIMES}
    one, other = (
        completion_flow(given, mask, **options, generator=torch.Generator().manual_seed(0))
        for given in (truth, holed)
    )
    assert torch.equal(one.parameters, other.parameters)


def test_an_error_is_relative_to_the_entries_it_is_of() -> None:
    truth = torch.tensor([[3.0, 4.0], [0.0, 10.0]], dtype=torch.float64)
    entries = torch.tensor([[True, True], [False, False]])
    runs = torch.stack([truth, torch.zeros_like(truth), 1.5 * truth])
    runs[:, 1] = 99  # not of these entries
    assert completion_error(runs, truth, entries).tolist() == pytest.approx([0.0, 1.0, 0.5])


def test_what_does_not_fit_is_named() -> None:
    truth, mask = rank_one()
    with pytest.raises(ValueError, match="must have the same rows and columns"):
        completion_error(truth, truth, mask[:-1])
    with pytest.raises(ValueError, match="residual must be a finite number above 0"):
        completion_flow(
            truth, mask, depth=2, scale=1.0, times=TIMES, generator=torch.Generator(), residual=0
        )
