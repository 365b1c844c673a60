"""Models so small that what noise does to them is known: one variable, least squares, one layer."""

from undertow.train.noise._committee import CommitteeMachine as CommitteeMachine
from undertow.train.noise._diagonal import diagonal_descent as diagonal_descent
from undertow.train.noise._diagonal import diagonal_hessian_trace as diagonal_hessian_trace
from undertow.train.noise._diagonal import diagonal_problems as diagonal_problems
from undertow.train.noise._local_valley import valley_multiplier as valley_multiplier
from undertow.train.noise._local_valley import valley_paths as valley_paths
from undertow.train.noise._momentum_noise import (
    exact_stationary_variance as exact_stationary_variance,
)
from undertow.train.noise._momentum_noise import label_noise_imbalances as label_noise_imbalances
from undertow.train.noise._momentum_noise import momentum_paths as momentum_paths
from undertow.train.noise._momentum_noise import stationary_variance as stationary_variance
from undertow.train.noise._oscillator import NoisyOscillator as NoisyOscillator

__all__ = [
    "CommitteeMachine",
    "NoisyOscillator",
    "diagonal_descent",
    "diagonal_hessian_trace",
    "diagonal_problems",
    "exact_stationary_variance",
    "label_noise_imbalances",
    "momentum_paths",
    "stationary_variance",
    "valley_multiplier",
    "valley_paths",
]
