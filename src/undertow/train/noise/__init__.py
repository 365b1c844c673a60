"""Models so small that what noise does to them is known: one variable, least squares, one layer."""

from undertow.train.noise._committee import CommitteeMachine as CommitteeMachine
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
    "exact_stationary_variance",
    "label_noise_imbalances",
    "momentum_paths",
    "stationary_variance",
]
