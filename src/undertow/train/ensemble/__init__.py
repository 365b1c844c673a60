"""Many networks of one shape, trained as one batched program."""

from undertow.train.ensemble._ensemble import Ensemble as Ensemble
from undertow.train.ensemble._evaluation import Evaluation as Evaluation
from undertow.train.ensemble._member import Member as Member
from undertow.train.ensemble._sampling import spawn_generators as spawn_generators

__all__ = [
    "Ensemble",
    "Evaluation",
    "Member",
    "spawn_generators",
]
