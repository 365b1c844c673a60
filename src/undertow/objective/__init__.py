"""A model, a loss and data, seen as one function of the parameters."""

from undertow.objective._losses import Loss as Loss
from undertow.objective._losses import as_sum_and_count as as_sum_and_count
from undertow.objective._losses import check_targets as check_targets
from undertow.objective._losses import logits_of as logits_of
from undertow.objective._module import evaluating as evaluating
from undertow.objective._module import out_of_memory as out_of_memory
from undertow.objective._module import unfused as unfused
from undertow.objective._objective import Objective as Objective

__all__ = [
    "Loss",
    "Objective",
    "as_sum_and_count",
    "check_targets",
    "evaluating",
    "logits_of",
    "out_of_memory",
    "unfused",
]
