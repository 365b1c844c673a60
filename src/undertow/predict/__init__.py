"""What should the optimizer do? Closed forms in the hyperparameters, by numpy alone."""

from undertow.predict._averages import Betas as Betas
from undertow.predict._averages import moved_average as moved_average
from undertow.predict._counterexamples import CompletionCounterexample as CompletionCounterexample
from undertow.predict._counterexamples import completion_counterexample as completion_counterexample
from undertow.predict._decay import decay_exponent as decay_exponent
from undertow.predict._decay import decay_factor as decay_factor
from undertow.predict._decay import null_space_decay as null_space_decay
from undertow.predict._edge import Edge as Edge
from undertow.predict._edge import edge as edge
from undertow.predict._equilibrium import Equilibrium as Equilibrium
from undertow.predict._equilibrium import equilibrium as equilibrium
from undertow.predict._equilibrium import equilibrium_steps as equilibrium_steps
from undertow.predict._evidence import block_evidence as block_evidence
from undertow.predict._families import FAMILIES as FAMILIES
from undertow.predict._families import Family as Family
from undertow.predict._flattening import label_noise_flattening as label_noise_flattening
from undertow.predict._kernel_rounds import KernelRounds as KernelRounds
from undertow.predict._kernel_rounds import arc_cosine_kernel as arc_cosine_kernel
from undertow.predict._kernel_rounds import local_sgd_rounds as local_sgd_rounds
from undertow.predict._label_noise import label_noise_drift as label_noise_drift
from undertow.predict._local_sgd import SyncRounds as SyncRounds
from undertow.predict._local_sgd import local_drift_multiplier as local_drift_multiplier
from undertow.predict._local_sgd import sync_period as sync_period
from undertow.predict._local_sgd import sync_rounds as sync_rounds
from undertow.predict._momentum import MomentumEquivalent as MomentumEquivalent
from undertow.predict._momentum import averaged_lr as averaged_lr
from undertow.predict._momentum import momentum_equivalent as momentum_equivalent
from undertow.predict._momentum_gap import momentum_gap as momentum_gap
from undertow.predict._noise_scale import best_lr as best_lr
from undertow.predict._noise_scale import largest_batch as largest_batch
from undertow.predict._rank_bound import RankBound as RankBound
from undertow.predict._rank_bound import RankIdentity as RankIdentity
from undertow.predict._rank_bound import patch_count as patch_count
from undertow.predict._rank_bound import rank_bound as rank_bound
from undertow.predict._rank_bound import rank_identity as rank_identity
from undertow.predict._rank_one import activation_derivatives as activation_derivatives
from undertow.predict._rank_one import rank_one_modes as rank_one_modes
from undertow.predict._rank_one import rank_one_rate as rank_one_rate
from undertow.predict._recovery import RecoveryWindow as RecoveryWindow
from undertow.predict._recovery import minimiser_shift as minimiser_shift
from undertow.predict._recovery import recovery_window as recovery_window
from undertow.predict._regression_noise import fixed_order_orbit as fixed_order_orbit
from undertow.predict._regression_noise import ridge_noise as ridge_noise
from undertow.predict._relu_flips import ReluFlips as ReluFlips
from undertow.predict._relu_flips import relu_flips as relu_flips
from undertow.predict._rescale import rescale as rescale
from undertow.predict._rescaled import Change as Change
from undertow.predict._rescaled import Rescaled as Rescaled
from undertow.predict._residue import combined_rank as combined_rank
from undertow.predict._rules import RULES as RULES
from undertow.predict._rules import Alternative as Alternative
from undertow.predict._rules import ScalingRule as ScalingRule
from undertow.predict._saddles import SaddlePhase as SaddlePhase
from undertow.predict._saddles import greedy_exponents as greedy_exponents
from undertow.predict._saddles import saddle_phases as saddle_phases
from undertow.predict._speed_limit import sharpness_speed_limit as sharpness_speed_limit
from undertow.predict._survivors import Initializer as Initializer
from undertow.predict._survivors import forecast_rank as forecast_rank
from undertow.predict._survivors import initial_spectrum as initial_spectrum
from undertow.predict._survivors import initial_std as initial_std
from undertow.predict._survivors import surviving_rank as surviving_rank
from undertow.predict._two_layer import OneNeuron as OneNeuron
from undertow.predict._two_layer import TwoLayerMargin as TwoLayerMargin
from undertow.predict._two_layer import two_layer_margin as two_layer_margin

__all__ = [
    "FAMILIES",
    "RULES",
    "Alternative",
    "Betas",
    "Change",
    "CompletionCounterexample",
    "Edge",
    "Equilibrium",
    "Family",
    "Initializer",
    "KernelRounds",
    "MomentumEquivalent",
    "OneNeuron",
    "RankBound",
    "RankIdentity",
    "RecoveryWindow",
    "ReluFlips",
    "Rescaled",
    "SaddlePhase",
    "ScalingRule",
    "SyncRounds",
    "TwoLayerMargin",
    "activation_derivatives",
    "arc_cosine_kernel",
    "averaged_lr",
    "best_lr",
    "block_evidence",
    "combined_rank",
    "completion_counterexample",
    "decay_exponent",
    "decay_factor",
    "edge",
    "equilibrium",
    "equilibrium_steps",
    "fixed_order_orbit",
    "forecast_rank",
    "greedy_exponents",
    "initial_spectrum",
    "initial_std",
    "label_noise_drift",
    "label_noise_flattening",
    "largest_batch",
    "local_drift_multiplier",
    "local_sgd_rounds",
    "minimiser_shift",
    "momentum_equivalent",
    "momentum_gap",
    "moved_average",
    "null_space_decay",
    "patch_count",
    "rank_bound",
    "rank_identity",
    "rank_one_modes",
    "rank_one_rate",
    "recovery_window",
    "relu_flips",
    "rescale",
    "ridge_noise",
    "saddle_phases",
    "sharpness_speed_limit",
    "surviving_rank",
    "sync_period",
    "sync_rounds",
    "two_layer_margin",
]
