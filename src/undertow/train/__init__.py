"""Make it happen: update rules, optimizer front ends, and ensembles of networks trained as one."""

from undertow.train import flows as flows
from undertow.train import optim as optim
from undertow.train import rules as rules
from undertow.train import schedules as schedules
from undertow.train._completion import Completion as Completion
from undertow.train._completion import nuclear_norm_completion as nuclear_norm_completion
from undertow.train._completion import truncated_svd as truncated_svd
from undertow.train._ensemble import Ensemble as Ensemble
from undertow.train._ensemble import Evaluation as Evaluation
from undertow.train._factored import factored_descent as factored_descent
from undertow.train._greedy import GreedyLowRank as GreedyLowRank
from undertow.train._greedy import GreedyPath as GreedyPath
from undertow.train._greedy import GreedyPhase as GreedyPhase
from undertow.train._greedy import greedy_low_rank as greedy_low_rank
from undertow.train._matrix_losses import completion_loss as completion_loss
from undertow.train._matrix_losses import gaussian_sensors as gaussian_sensors
from undertow.train._matrix_losses import sensing_loss as sensing_loss
from undertow.train._member import Member as Member

__all__ = [
    "Completion",
    "Ensemble",
    "Evaluation",
    "GreedyLowRank",
    "GreedyPath",
    "GreedyPhase",
    "Member",
    "completion_loss",
    "factored_descent",
    "flows",
    "gaussian_sensors",
    "greedy_low_rank",
    "nuclear_norm_completion",
    "optim",
    "rules",
    "schedules",
    "sensing_loss",
    "truncated_svd",
]
