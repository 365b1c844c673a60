"""What is the optimizer doing? Measurements that read weights and data and never train."""

from undertow.measure import saliency as saliency
from undertow.measure._drift import LocalDrift as LocalDrift
from undertow.measure._drift import local_drift as local_drift
from undertow.measure._profile import Profile as Profile
from undertow.measure._profile import profile as profile
from undertow.measure.curvature import BatchSharpness as BatchSharpness
from undertow.measure.curvature import Estimate as Estimate
from undertow.measure.curvature import Sharpness as Sharpness
from undertow.measure.curvature import SharpnessGradient as SharpnessGradient
from undertow.measure.curvature import SharpnessTracker as SharpnessTracker
from undertow.measure.curvature import SpectralDensity as SpectralDensity
from undertow.measure.curvature import batch_sharpness as batch_sharpness
from undertow.measure.curvature import hessian_trace as hessian_trace
from undertow.measure.curvature import sharpness as sharpness
from undertow.measure.curvature import sharpness_gradient as sharpness_gradient
from undertow.measure.curvature import spectral_density as spectral_density
from undertow.measure.curvature import spherical_sharpness as spherical_sharpness
from undertow.measure.function import AffineRegion as AffineRegion
from undertow.measure.function import Boundary as Boundary
from undertow.measure.function import DecisionDistance as DecisionDistance
from undertow.measure.function import DepthConvergence as DepthConvergence
from undertow.measure.function import DepthPath as DepthPath
from undertow.measure.function import FunctionalRank as FunctionalRank
from undertow.measure.function import FunctionDistance as FunctionDistance
from undertow.measure.function import GrowthMargin as GrowthMargin
from undertow.measure.function import Homogeneity as Homogeneity
from undertow.measure.function import KKTResidual as KKTResidual
from undertow.measure.function import Margins as Margins
from undertow.measure.function import NeuralCollapse as NeuralCollapse
from undertow.measure.function import NormBounds as NormBounds
from undertow.measure.function import activation_region as activation_region
from undertow.measure.function import boundary_distance as boundary_distance
from undertow.measure.function import decision_distance as decision_distance
from undertow.measure.function import depth_convergence as depth_convergence
from undertow.measure.function import distance_in_function_space as distance_in_function_space
from undertow.measure.function import follow_depth as follow_depth
from undertow.measure.function import functional_rank as functional_rank
from undertow.measure.function import homogeneity as homogeneity
from undertow.measure.function import kkt_residual as kkt_residual
from undertow.measure.function import margin_from_growth as margin_from_growth
from undertow.measure.function import margins as margins
from undertow.measure.function import neural_collapse as neural_collapse
from undertow.measure.function import norm_bounds as norm_bounds
from undertow.measure.function import normalized_outputs as normalized_outputs
from undertow.measure.function import region_radius as region_radius
from undertow.measure.function import row_norms as row_norms
from undertow.measure.noise import GradientNoise as GradientNoise
from undertow.measure.noise import NoiseAlignment as NoiseAlignment
from undertow.measure.noise import NoiseCovariance as NoiseCovariance
from undertow.measure.noise import NoiseEigenpairs as NoiseEigenpairs
from undertow.measure.noise import NoiseFloor as NoiseFloor
from undertow.measure.noise import NoiseScale as NoiseScale
from undertow.measure.noise import PerSampleNorms as PerSampleNorms
from undertow.measure.noise import batch_gradient_norms as batch_gradient_norms
from undertow.measure.noise import gradient_noise as gradient_noise
from undertow.measure.noise import noise_covariance as noise_covariance
from undertow.measure.noise import noise_floor as noise_floor
from undertow.measure.noise import per_sample_gradient_norms as per_sample_gradient_norms
from undertow.measure.weights import AngularUpdate as AngularUpdate
from undertow.measure.weights import Displacement as Displacement
from undertow.measure.weights import InitSplit as InitSplit
from undertow.measure.weights import LayerNorms as LayerNorms
from undertow.measure.weights import MatrixSplit as MatrixSplit
from undertow.measure.weights import Ranks as Ranks
from undertow.measure.weights import SpectrumRanks as SpectrumRanks
from undertow.measure.weights import SplitRanks as SplitRanks
from undertow.measure.weights import WeightMatrix as WeightMatrix
from undertow.measure.weights import angular_update as angular_update
from undertow.measure.weights import displacement as displacement
from undertow.measure.weights import layer_norms as layer_norms
from undertow.measure.weights import matrix_ranks as matrix_ranks
from undertow.measure.weights import matrix_spectrum as matrix_spectrum
from undertow.measure.weights import null_projector as null_projector
from undertow.measure.weights import operator_spectrum as operator_spectrum
from undertow.measure.weights import ranks as ranks
from undertow.measure.weights import spectrum_ranks as spectrum_ranks
from undertow.measure.weights import split_init as split_init
from undertow.measure.weights import split_matrices as split_matrices
from undertow.measure.weights import toeplitz_norm as toeplitz_norm
from undertow.measure.weights import update_fluctuation as update_fluctuation
from undertow.measure.weights import weight_matrices as weight_matrices

__all__ = [
    "AffineRegion",
    "AngularUpdate",
    "BatchSharpness",
    "Boundary",
    "DecisionDistance",
    "DepthConvergence",
    "DepthPath",
    "Displacement",
    "Estimate",
    "FunctionDistance",
    "FunctionalRank",
    "GradientNoise",
    "GrowthMargin",
    "Homogeneity",
    "InitSplit",
    "KKTResidual",
    "LayerNorms",
    "LocalDrift",
    "Margins",
    "MatrixSplit",
    "NeuralCollapse",
    "NoiseAlignment",
    "NoiseCovariance",
    "NoiseEigenpairs",
    "NoiseFloor",
    "NoiseScale",
    "NormBounds",
    "PerSampleNorms",
    "Profile",
    "Ranks",
    "Sharpness",
    "SharpnessGradient",
    "SharpnessTracker",
    "SpectralDensity",
    "SpectrumRanks",
    "SplitRanks",
    "WeightMatrix",
    "activation_region",
    "angular_update",
    "batch_gradient_norms",
    "batch_sharpness",
    "boundary_distance",
    "decision_distance",
    "depth_convergence",
    "displacement",
    "distance_in_function_space",
    "follow_depth",
    "functional_rank",
    "gradient_noise",
    "hessian_trace",
    "homogeneity",
    "kkt_residual",
    "layer_norms",
    "local_drift",
    "margin_from_growth",
    "margins",
    "matrix_ranks",
    "matrix_spectrum",
    "neural_collapse",
    "noise_covariance",
    "noise_floor",
    "norm_bounds",
    "normalized_outputs",
    "null_projector",
    "operator_spectrum",
    "per_sample_gradient_norms",
    "profile",
    "ranks",
    "region_radius",
    "row_norms",
    "saliency",
    "sharpness",
    "sharpness_gradient",
    "spectral_density",
    "spectrum_ranks",
    "spherical_sharpness",
    "split_init",
    "split_matrices",
    "toeplitz_norm",
    "update_fluctuation",
    "weight_matrices",
]
