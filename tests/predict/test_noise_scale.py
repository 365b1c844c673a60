"""The best rate of a step, as derived, against the step that gains most in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow.predict import best_lr, rescale

PARAMS = 40


class Quadratic:
    """A loss of gradient g and curvature H at a point, with independent noise in its entries."""

    def __init__(self, seed: int, coupled: float) -> None:
        generator = np.random.default_rng(seed)
        self.gradient = generator.uniform(0.5, 1.5, PARAMS) * generator.choice([-1, 1], PARAMS)
        self.noise = generator.uniform(30, 60, PARAMS)
        signs = np.sign(self.gradient)
        # Curved along the signs of its gradient, as far as it is coupled.
        self.hessian = np.diag(generator.uniform(0.5, 1.5, PARAMS))
        self.hessian += coupled * np.outer(signs, signs)

    def best(self, batch: int, update: str, draws: int = 40_000) -> float:
        """g.E[u] / E[u.H u] over batches that were drawn: the rate whose step gains most."""
        generator = np.random.default_rng(batch)
        drawn = self.noise / math.sqrt(batch) * generator.standard_normal((draws, PARAMS))
        steps = self.gradient + drawn
        if update == "sign":
            steps = np.sign(steps)
        lost = np.einsum("ni,ij,nj->n", steps, self.hessian, steps).mean()
        return float(steps.mean(0) @ self.gradient / lost)

    def noise_scale(self, update: str) -> float:
        """B_noise as `best_lr` has it."""
        g, h = self.gradient, self.hessian
        if update == "gradient":
            return float((np.diag(h) * self.noise**2).sum() / (g @ h @ g))
        ratio = g / self.noise
        apart = h - np.diag(np.diag(h))
        return float(math.pi / 2 * np.trace(h) / (ratio @ apart @ ratio))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_best_rate_of_a_gradient_saturates_at_the_noise_scale(seed: int) -> None:
    loss = Quadratic(seed, coupled=0.3)
    scale = loss.noise_scale("gradient")
    g = loss.gradient
    largest = g @ g / (g @ loss.hessian @ g)
    for share in (0.01, 0.1, 1, 10):
        batch = round(scale * share)
        expected = largest * best_lr(batch, scale)
        assert loss.best(batch, "gradient") == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_best_rate_of_signs_surges_and_falls_where_curvature_couples(seed: int) -> None:
    loss = Quadratic(seed, coupled=0.5)
    scale = loss.noise_scale("sign")
    assert scale < 0.3 * (loss.noise / loss.gradient).min() ** 2  # noise outweighs each entry there
    found = {share: loss.best(round(scale * share), "sign") for share in (1 / 16, 1 / 4, 1, 4, 16)}
    assert max(found, key=lambda share: found[share]) == 1
    for share in (1 / 16, 1 / 4, 4):
        expected = best_lr(round(scale * share), scale, update="sign")
        assert found[share] / found[1] == pytest.approx(expected, rel=0.1)


def test_without_coupling_the_best_rate_of_signs_does_not_fall() -> None:
    loss = Quadratic(0, coupled=0.0)
    found = [loss.best(batch, "sign") for batch in (64, 256, 1024, 4096, 2**18)]
    assert found == sorted(found)
    assert found[1] / found[0] == pytest.approx(2, rel=0.1)  # the square root, and then no more
    assert found[-1] / found[-2] < 1.5


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(1, 1e9))
def test_the_forms_tend_to_the_rules_far_below_the_noise_scale(
    old: int, new: int, scale: float
) -> None:
    sgd = rescale({"lr": 1e-9}, from_batch=old, to_batch=new, optimizer="sgd")
    finite = rescale(
        {"lr": 1e-9},
        from_batch=old,
        to_batch=new,
        optimizer="sgd",
        rule="noise scale",
        noise_scale=scale,
    )
    lost = (scale + old) / (scale + new)
    assert finite.hyper["lr"] / sgd.hyper["lr"] == pytest.approx(lost)
    for family in ("adam", "adamax", "lion", "muon", "sign"):
        root = rescale({"lr": 1e-9}, from_batch=old, to_batch=new, optimizer=family)
        surge = rescale(
            {"lr": 1e-9},
            from_batch=old,
            to_batch=new,
            optimizer=family,
            rule="surge",
            noise_scale=scale,
        )
        assert surge.hyper["lr"] / root.hyper["lr"] == pytest.approx(lost)


def test_a_best_rate_needs_a_known_update() -> None:
    with pytest.raises(ValueError, match="update must be 'gradient' or 'sign', got 'adam'"):
        best_lr(8, 100.0, update="adam")
    with pytest.raises(ValueError, match="noise_scale must be"):
        best_lr(8, -1.0)
