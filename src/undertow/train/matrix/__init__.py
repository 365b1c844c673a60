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
from undertow.train.matrix._phase_distance import phase_distance as phase_distance
from undertow.train.matrix._rank_minimiser import rank_minimiser as rank_minimiser
from undertow.train.matrix._saddles import SaddleSpectra as SaddleSpectra
from undertow.train.matrix._saddles import saddle_spectra as saddle_spectra
from undertow.train.matrix._symmetric import recovery_loss as recovery_loss
from undertow.train.matrix._symmetric import sensor_gram as sensor_gram
from undertow.train.matrix._symmetric import symmetric_coordinates as symmetric_coordinates
from undertow.train.matrix._watches import ClosestApproach as ClosestApproach
from undertow.train.matrix._watches import EigenvaluesLearned as EigenvaluesLearned

__all__ = [
    "ClosestApproach",
    "Completion",
    "EigenvaluesLearned",
    "GreedyLowRank",
    "GreedyPath",
    "GreedyPhase",
    "SaddleSpectra",
    "completion_loss",
    "factored_descent",
    "gaussian_sensors",
    "greedy_low_rank",
    "nuclear_norm_completion",
    "phase_distance",
    "rank_minimiser",
    "recovery_loss",
    "saddle_spectra",
    "sensing_loss",
    "sensor_gram",
    "symmetric_coordinates",
    "truncated_svd",
]
