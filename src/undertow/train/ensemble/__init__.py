"""Many networks of one shape, trained as one batched program."""

from undertow.train.ensemble._ensemble import Ensemble as Ensemble
from undertow.train.ensemble._ensemble import Evaluation as Evaluation
from undertow.train.ensemble._member import Member as Member

__all__ = [
    "Ensemble",
    "Evaluation",
    "Member",
]
