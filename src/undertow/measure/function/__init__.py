"""What a network computes: margins, collapse, homogeneity, functional rank, regions and depth."""

from undertow.measure.function._bounds import NormBounds as NormBounds
from undertow.measure.function._bounds import norm_bounds as norm_bounds
from undertow.measure.function._collapse import NeuralCollapse as NeuralCollapse
from undertow.measure.function._collapse import neural_collapse as neural_collapse
from undertow.measure.function._decision import DecisionDistance as DecisionDistance
from undertow.measure.function._decision import decision_distance as decision_distance
from undertow.measure.function._depth import DepthConvergence as DepthConvergence
from undertow.measure.function._depth import depth_convergence as depth_convergence
from undertow.measure.function._depth_path import DepthPath as DepthPath
from undertow.measure.function._depth_path import follow_depth as follow_depth
from undertow.measure.function._depth_path import row_norms as row_norms
from undertow.measure.function._function_space import FunctionDistance as FunctionDistance
from undertow.measure.function._function_space import (
    distance_in_function_space as distance_in_function_space,
)
from undertow.measure.function._functional_rank import FunctionalRank as FunctionalRank
from undertow.measure.function._functional_rank import functional_rank as functional_rank
from undertow.measure.function._growth import GrowthMargin as GrowthMargin
from undertow.measure.function._growth import margin_from_growth as margin_from_growth
from undertow.measure.function._homogeneity import Homogeneity as Homogeneity
from undertow.measure.function._homogeneity import homogeneity as homogeneity
from undertow.measure.function._kkt import KKTResidual as KKTResidual
from undertow.measure.function._kkt import kkt_residual as kkt_residual
from undertow.measure.function._margins import Margins as Margins
from undertow.measure.function._margins import margins as margins
from undertow.measure.function._margins import normalized_outputs as normalized_outputs
from undertow.measure.function._regions import AffineRegion as AffineRegion
from undertow.measure.function._regions import Boundary as Boundary
from undertow.measure.function._regions import activation_region as activation_region
from undertow.measure.function._regions import boundary_distance as boundary_distance
from undertow.measure.function._regions import region_radius as region_radius

__all__ = [
    "AffineRegion",
    "Boundary",
    "DecisionDistance",
    "DepthConvergence",
    "DepthPath",
    "FunctionDistance",
    "FunctionalRank",
    "GrowthMargin",
    "Homogeneity",
    "KKTResidual",
    "Margins",
    "NeuralCollapse",
    "NormBounds",
    "activation_region",
    "boundary_distance",
    "decision_distance",
    "depth_convergence",
    "distance_in_function_space",
    "follow_depth",
    "functional_rank",
    "homogeneity",
    "kkt_residual",
    "margin_from_growth",
    "margins",
    "neural_collapse",
    "norm_bounds",
    "normalized_outputs",
    "region_radius",
    "row_norms",
]
