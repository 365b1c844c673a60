"""Random problems of matrix sensing as one batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from undertow import predict, train

SPECTRUM = (2.0, 1.0, 0.5)


def problems(seeds: tuple[int, ...] = (3, 8), **options: Any) -> train.SensingProblems:
    return train.sensing_problems(seeds, SPECTRUM, **({"dim": 6, "measurements": 300} | options))


def test_a_problem_does_not_depend_on_what_it_is_drawn_with() -> None:
    both, one = problems(), problems((8,))
    assert both.grams is not None
    assert one.grams is not None
    for name in ("targets", "grams", "starts"):
        assert torch.equal(getattr(both, name)[1:], getattr(one, name))


def test_targets_have_the_spectrum_and_starts_the_norm_one() -> None:
    found = problems(width=2)
    values = torch.linalg.eigvalsh(found.targets).flip(-1)
    expected = torch.tensor([*SPECTRUM, 0, 0, 0], dtype=torch.float64)
    assert torch.allclose(values, expected.expand(2, 6), atol=1e-12)
    assert found.starts.shape == (2, 6, 2)
    norms = torch.linalg.matrix_norm(found.starts, 2)
    assert torch.allclose(norms, torch.ones_like(norms))


def test_losses_of_one_problem_are_those_of_the_batch() -> None:
    found = problems()
    runs = found.targets[:, None] + torch.eye(6, dtype=torch.float64)
    whole = found.loss()(runs)
    for place in range(2):
        assert torch.allclose(found.loss(place)(runs[place]), whole[place])
        assert float(found.loss(place)(found.targets[place])) == pytest.approx(0, abs=1e-25)
    assert torch.allclose(found.errors(2 * found.targets[:, None]), torch.ones(2, 1).double())


def test_where_every_entry_is_measured_minimisers_are_truncations() -> None:
    found = problems(measurements=0)
    assert found.grams is None
    assert torch.allclose(found.minimisers(2), found.truncated(2), atol=1e-10)
    # 2 (x_s - x_s+1) / (x_s + x_s+1) is the early exponent then, and x_s the rate.
    for phases in found.saddle_phases(found.truncated(2)):
        early = [phase.early_exponent for phase in phases]
        assert early == pytest.approx([2 / 3, 2 / 3])
        assert [phase.arrival for phase in phases] == pytest.approx([1 / 2, 1.0])


def test_minimisers_are_lower_than_truncations_and_shifted_as_predicted() -> None:
    found = problems(tuple(range(12)))
    lowest, cut = found.minimisers(1), found.truncated(1)
    assert bool((found.loss()(lowest) <= found.loss()(cut)).all())
    rms = float((lowest - cut).flatten(1).square().sum(-1).mean().sqrt())
    shift = predict.minimiser_shift(SPECTRUM, 1, dim=6, measurements=300)
    assert rms == pytest.approx(shift, rel=0.3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 2}, "spectrum must be at most dim = 2 numbers"),
        ({"dim": 0}, "dim must be at least 1"),
        ({"width": 7}, "width must be at most dim = 6, got 7"),
        ({"measurements": -1}, "measurements must be at least 0"),
        ({"seeds": ()}, "seeds must hold at least one seed"),
    ],
)
def test_what_is_no_problem_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        problems(**options)


def test_a_spectrum_that_rises_is_named() -> None:
    with pytest.raises(ValueError, match="numbers above 0 in descending order"):
        train.sensing_problems([0], (1.0, 2.0), dim=4, measurements=10)
