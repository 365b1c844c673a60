"""What should the optimizer do? Closed forms in the hyperparameters, by numpy alone."""

from undertow.predict._decay import decay_exponent as decay_exponent
from undertow.predict._decay import decay_factor as decay_factor
from undertow.predict._decay import null_space_decay as null_space_decay
from undertow.predict._rank_bound import RankBound as RankBound
from undertow.predict._rank_bound import RankIdentity as RankIdentity
from undertow.predict._rank_bound import patch_count as patch_count
from undertow.predict._rank_bound import rank_bound as rank_bound
from undertow.predict._rank_bound import rank_identity as rank_identity
from undertow.predict._survivors import Initializer as Initializer
from undertow.predict._survivors import forecast_rank as forecast_rank
from undertow.predict._survivors import initial_spectrum as initial_spectrum
from undertow.predict._survivors import initial_std as initial_std
from undertow.predict._survivors import surviving_rank as surviving_rank

__all__ = [
    "Initializer",
    "RankBound",
    "RankIdentity",
    "decay_exponent",
    "decay_factor",
    "forecast_rank",
    "initial_spectrum",
    "initial_std",
    "null_space_decay",
    "patch_count",
    "rank_bound",
    "rank_identity",
    "surviving_rank",
]
