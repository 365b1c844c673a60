"""Learning matrices: completion and sensing, greedy low-rank learning, and their references."""

from undertow.train.matrix._completion import Completion as Completion
from undertow.train.matrix._completion import nuclear_norm_completion as nuclear_norm_completion
from undertow.train.matrix._completion import truncated_svd as truncated_svd
from undertow.train.matrix._completion_flow import completion_error as completion_error
from undertow.train.matrix._completion_flow import completion_flow as completion_flow
from undertow.train.matrix._factored import factored_descent as factored_descent
from undertow.train.matrix._factored import largest_stable_lr as largest_stable_lr
from undertow.train.matrix._greedy import GreedyLowRank as GreedyLowRank
from undertow.train.matrix._greedy import GreedyPath as GreedyPath
from undertow.train.matrix._greedy import GreedyPhase as GreedyPhase
from undertow.train.matrix._greedy import greedy_low_rank as greedy_low_rank
from undertow.train.matrix._matrix_losses import completion_loss as completion_loss
from undertow.train.matrix._matrix_losses import gaussian_sensors as gaussian_sensors
from undertow.train.matrix._matrix_losses import sensing_loss as sensing_loss
from undertow.train.matrix._phase_distance import PhaseVisit as PhaseVisit
from undertow.train.matrix._phase_distance import phase_distance as phase_distance
from undertow.train.matrix._phase_distance import phase_visits as phase_visits
from undertow.train.matrix._rank_minimiser import rank_minimiser as rank_minimiser
from undertow.train.matrix._saddles import SaddleSpectra as SaddleSpectra
from undertow.train.matrix._saddles import saddle_spectra as saddle_spectra
from undertow.train.matrix._sensing_problems import SensingProblems as SensingProblems
from undertow.train.matrix._sensing_problems import sensing_problems as sensing_problems
from undertow.train.matrix._starts import balanced_factors as balanced_factors
from undertow.train.matrix._starts import gaussian_factors as gaussian_factors
from undertow.train.matrix._symmetric import recovery_loss as recovery_loss
from undertow.train.matrix._symmetric import sensor_gram as sensor_gram
from undertow.train.matrix._symmetric import symmetric_coordinates as symmetric_coordinates
from undertow.train.matrix._watches import ClosestApproach as ClosestApproach
from undertow.train.matrix._watches import Crossing as Crossing
from undertow.train.matrix._watches import EigenvaluesLearned as EigenvaluesLearned

__all__ = [
    "ClosestApproach",
    "Completion",
    "Crossing",
    "EigenvaluesLearned",
    "GreedyLowRank",
    "GreedyPath",
    "GreedyPhase",
    "PhaseVisit",
    "SaddleSpectra",
    "SensingProblems",
    "balanced_factors",
    "completion_error",
    "completion_flow",
    "completion_loss",
    "factored_descent",
    "gaussian_factors",
    "gaussian_sensors",
    "greedy_low_rank",
    "largest_stable_lr",
    "nuclear_norm_completion",
    "phase_distance",
    "phase_visits",
    "rank_minimiser",
    "recovery_loss",
    "saddle_spectra",
    "sensing_loss",
    "sensing_problems",
    "sensor_gram",
    "symmetric_coordinates",
    "truncated_svd",
]
