"""Make it happen: update rules, optimizer front ends, and ensembles of networks trained as one."""

from undertow.train import flows as flows
from undertow.train import optim as optim
from undertow.train import rules as rules
from undertow.train import schedules as schedules
from undertow.train.ensemble import Ensemble as Ensemble
from undertow.train.ensemble import Evaluation as Evaluation
from undertow.train.ensemble import Member as Member
from undertow.train.ensemble import spawn_generators as spawn_generators
from undertow.train.local_sgd import LocalReport as LocalReport
from undertow.train.local_sgd import LocalSGD as LocalSGD
from undertow.train.local_sgd import Outer as Outer
from undertow.train.local_sgd import Rounds as Rounds
from undertow.train.local_sgd import WorkerLost as WorkerLost
from undertow.train.local_sgd import Workers as Workers
from undertow.train.local_sgd import partition as partition
from undertow.train.matrix import ClosestApproach as ClosestApproach
from undertow.train.matrix import Completion as Completion
from undertow.train.matrix import Crossing as Crossing
from undertow.train.matrix import EigenvaluesLearned as EigenvaluesLearned
from undertow.train.matrix import GreedyLowRank as GreedyLowRank
from undertow.train.matrix import GreedyPath as GreedyPath
from undertow.train.matrix import GreedyPhase as GreedyPhase
from undertow.train.matrix import PhaseVisit as PhaseVisit
from undertow.train.matrix import SaddleSpectra as SaddleSpectra
from undertow.train.matrix import SensingProblems as SensingProblems
from undertow.train.matrix import balanced_factors as balanced_factors
from undertow.train.matrix import completion_error as completion_error
from undertow.train.matrix import completion_flow as completion_flow
from undertow.train.matrix import completion_loss as completion_loss
from undertow.train.matrix import factored_descent as factored_descent
from undertow.train.matrix import gaussian_factors as gaussian_factors
from undertow.train.matrix import gaussian_sensors as gaussian_sensors
from undertow.train.matrix import greedy_low_rank as greedy_low_rank
from undertow.train.matrix import largest_stable_lr as largest_stable_lr
from undertow.train.matrix import nuclear_norm_completion as nuclear_norm_completion
from undertow.train.matrix import phase_distance as phase_distance
from undertow.train.matrix import phase_visits as phase_visits
from undertow.train.matrix import rank_minimiser as rank_minimiser
from undertow.train.matrix import recovery_loss as recovery_loss
from undertow.train.matrix import saddle_spectra as saddle_spectra
from undertow.train.matrix import sensing_loss as sensing_loss
from undertow.train.matrix import sensing_problems as sensing_problems
from undertow.train.matrix import sensor_gram as sensor_gram
from undertow.train.matrix import symmetric_coordinates as symmetric_coordinates
from undertow.train.matrix import truncated_svd as truncated_svd
from undertow.train.noise import CommitteeMachine as CommitteeMachine
from undertow.train.noise import NoisyOscillator as NoisyOscillator
from undertow.train.noise import exact_stationary_variance as exact_stationary_variance
from undertow.train.noise import label_noise_imbalances as label_noise_imbalances
from undertow.train.noise import momentum_paths as momentum_paths
from undertow.train.noise import stationary_variance as stationary_variance
from undertow.train.normalized import CircleDescent as CircleDescent
from undertow.train.normalized import NormalizedNetworks as NormalizedNetworks
from undertow.train.normalized import circle_descent as circle_descent
from undertow.train.normalized import circle_flow as circle_flow
from undertow.train.normalized import normalized_networks as normalized_networks
from undertow.train.past_zero import Dips as Dips
from undertow.train.past_zero import LogDomain as LogDomain
from undertow.train.past_zero import LossBasedLR as LossBasedLR
from undertow.train.past_zero import descend_log_loss as descend_log_loss
from undertow.train.past_zero import log_losses as log_losses
from undertow.train.past_zero import loss_based_epochs as loss_based_epochs
from undertow.train.past_zero import past_zero_loss as past_zero_loss

__all__ = [
    "CircleDescent",
    "ClosestApproach",
    "CommitteeMachine",
    "Completion",
    "Crossing",
    "Dips",
    "EigenvaluesLearned",
    "Ensemble",
    "Evaluation",
    "GreedyLowRank",
    "GreedyPath",
    "GreedyPhase",
    "LocalReport",
    "LocalSGD",
    "LogDomain",
    "LossBasedLR",
    "Member",
    "NoisyOscillator",
    "NormalizedNetworks",
    "Outer",
    "PhaseVisit",
    "Rounds",
    "SaddleSpectra",
    "SensingProblems",
    "WorkerLost",
    "Workers",
    "balanced_factors",
    "circle_descent",
    "circle_flow",
    "completion_error",
    "completion_flow",
    "completion_loss",
    "descend_log_loss",
    "exact_stationary_variance",
    "factored_descent",
    "flows",
    "gaussian_factors",
    "gaussian_sensors",
    "greedy_low_rank",
    "label_noise_imbalances",
    "largest_stable_lr",
    "log_losses",
    "loss_based_epochs",
    "momentum_paths",
    "normalized_networks",
    "nuclear_norm_completion",
    "optim",
    "partition",
    "past_zero_loss",
    "phase_distance",
    "phase_visits",
    "rank_minimiser",
    "recovery_loss",
    "rules",
    "saddle_spectra",
    "schedules",
    "sensing_loss",
    "sensing_problems",
    "sensor_gram",
    "spawn_generators",
    "stationary_variance",
    "symmetric_coordinates",
    "truncated_svd",
]
