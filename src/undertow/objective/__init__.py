"""A model, a loss and data, seen as one function of the parameters.

Behind `Objective`, which users have: its risk (what is evaluated), gradients of it, and curvature
products, for what measures and solvers do with them beside.
"""

from undertow.objective._arguments import whole_number as whole_number
from undertow.objective._curvature_products import CurvatureProducts as CurvatureProducts
from undertow.objective._evaluation import Tensors as Tensors
from undertow.objective._gradients import gradient as gradient
from undertow.objective._inputs import over_tensors as over_tensors
from undertow.objective._inputs import sample_bytes as sample_bytes
from undertow.objective._inputs import taken as taken
from undertow.objective._losses import Loss as Loss
from undertow.objective._losses import as_sum_and_count as as_sum_and_count
from undertow.objective._losses import check_targets as check_targets
from undertow.objective._losses import logits_of as logits_of
from undertow.objective._module import dense as dense
from undertow.objective._module import evaluating as evaluating
from undertow.objective._module import out_of_memory as out_of_memory
from undertow.objective._module import outside_inference_mode as outside_inference_mode
from undertow.objective._module import unfused as unfused
from undertow.objective._objective import Objective as Objective
from undertow.objective._random_states import kept_states as kept_states
from undertow.objective._risk import EmpiricalRisk as EmpiricalRisk
from undertow.objective._stand_in import StandIn as StandIn
from undertow.objective._support import is_sharded as is_sharded
from undertow.objective._twin import original as original

__all__ = [
    "CurvatureProducts",
    "EmpiricalRisk",
    "Loss",
    "Objective",
    "StandIn",
    "Tensors",
    "as_sum_and_count",
    "check_targets",
    "dense",
    "evaluating",
    "gradient",
    "is_sharded",
    "kept_states",
    "logits_of",
    "original",
    "out_of_memory",
    "outside_inference_mode",
    "over_tensors",
    "sample_bytes",
    "taken",
    "unfused",
    "whole_number",
]
