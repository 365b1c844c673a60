"""Learning matrices: completion and sensing, greedy low-rank learning, and their references."""

from undertow.train.matrix._completion import Completion as Completion
from undertow.train.matrix._completion import nuclear_norm_completion as nuclear_norm_completion
from undertow.train.matrix._completion import truncated_svd as truncated_svd
from undertow.train.matrix._factored import factored_descent as factored_descent
from undertow.train.matrix._greedy import GreedyLowRank as GreedyLowRank
from undertow.train.matrix._greedy import GreedyPath as GreedyPath
from undertow.train.matrix._greedy import GreedyPhase as GreedyPhase
from undertow.train.matrix._greedy import greedy_low_rank as greedy_low_rank
from undertow.train.matrix._matrix_losses import completion_loss as completion_loss
from undertow.train.matrix._matrix_losses import gaussian_sensors as gaussian_sensors
from undertow.train.matrix._matrix_losses import sensing_loss as sensing_loss
from undertow.train.matrix._saddles import SaddleSpectra as SaddleSpectra
from undertow.train.matrix._saddles import saddle_spectra as saddle_spectra

__all__ = [
    "Completion",
    "GreedyLowRank",
    "GreedyPath",
    "GreedyPhase",
    "SaddleSpectra",
    "completion_loss",
    "factored_descent",
    "gaussian_sensors",
    "greedy_low_rank",
    "nuclear_norm_completion",
    "saddle_spectra",
    "sensing_loss",
    "truncated_svd",
]
