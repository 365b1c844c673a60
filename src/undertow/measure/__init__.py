"""What is the optimizer doing? Measurements that read weights and data and never train."""

from undertow.measure._bounds import NormBounds as NormBounds
from undertow.measure._bounds import norm_bounds as norm_bounds
from undertow.measure._collapse import NeuralCollapse as NeuralCollapse
from undertow.measure._collapse import neural_collapse as neural_collapse
from undertow.measure._convolution import operator_spectrum as operator_spectrum
from undertow.measure._density import SpectralDensity as SpectralDensity
from undertow.measure._density import spectral_density as spectral_density
from undertow.measure._depth import DepthConvergence as DepthConvergence
from undertow.measure._depth import depth_convergence as depth_convergence
from undertow.measure._drift import LocalDrift as LocalDrift
from undertow.measure._drift import local_drift as local_drift
from undertow.measure._functional_rank import FunctionalRank as FunctionalRank
from undertow.measure._functional_rank import functional_rank as functional_rank
from undertow.measure._gradient_noise import GradientNoise as GradientNoise
from undertow.measure._gradient_noise import NoiseScale as NoiseScale
from undertow.measure._gradient_noise import gradient_noise as gradient_noise
from undertow.measure._homogeneity import Homogeneity as Homogeneity
from undertow.measure._homogeneity import homogeneity as homogeneity
from undertow.measure._margins import Margins as Margins
from undertow.measure._margins import margins as margins
from undertow.measure._margins import normalized_outputs as normalized_outputs
from undertow.measure._noise_covariance import NoiseAlignment as NoiseAlignment
from undertow.measure._noise_covariance import NoiseCovariance as NoiseCovariance
from undertow.measure._noise_covariance import NoiseEigenpairs as NoiseEigenpairs
from undertow.measure._noise_covariance import noise_covariance as noise_covariance
from undertow.measure._noise_floor import NoiseFloor as NoiseFloor
from undertow.measure._noise_floor import noise_floor as noise_floor
from undertow.measure._norms import LayerNorms as LayerNorms
from undertow.measure._norms import layer_norms as layer_norms
from undertow.measure._norms import toeplitz_norm as toeplitz_norm
from undertow.measure._per_sample import PerSampleNorms as PerSampleNorms
from undertow.measure._per_sample import per_sample_gradient_norms as per_sample_gradient_norms
from undertow.measure._profile import Profile as Profile
from undertow.measure._profile import profile as profile
from undertow.measure._ranks import Ranks as Ranks
from undertow.measure._ranks import ranks as ranks
from undertow.measure._regions import AffineRegion as AffineRegion
from undertow.measure._regions import Boundary as Boundary
from undertow.measure._regions import activation_region as activation_region
from undertow.measure._regions import boundary_distance as boundary_distance
from undertow.measure._regions import region_radius as region_radius
from undertow.measure._sharpness import Sharpness as Sharpness
from undertow.measure._sharpness import SharpnessTracker as SharpnessTracker
from undertow.measure._sharpness import sharpness as sharpness
from undertow.measure._sharpness import spherical_sharpness as spherical_sharpness
from undertow.measure._spectrum import SpectrumRanks as SpectrumRanks
from undertow.measure._spectrum import matrix_ranks as matrix_ranks
from undertow.measure._spectrum import matrix_spectrum as matrix_spectrum
from undertow.measure._spectrum import spectrum_ranks as spectrum_ranks
from undertow.measure._split import InitSplit as InitSplit
from undertow.measure._split import split_init as split_init
from undertow.measure._trace import Estimate as Estimate
from undertow.measure._trace import hessian_trace as hessian_trace
from undertow.measure._weights import WeightMatrix as WeightMatrix
from undertow.measure._weights import weight_matrices as weight_matrices

__all__ = [
    "AffineRegion",
    "Boundary",
    "DepthConvergence",
    "Estimate",
    "FunctionalRank",
    "GradientNoise",
    "Homogeneity",
    "InitSplit",
    "LayerNorms",
    "LocalDrift",
    "Margins",
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
    "SharpnessTracker",
    "SpectralDensity",
    "SpectrumRanks",
    "WeightMatrix",
    "activation_region",
    "boundary_distance",
    "depth_convergence",
    "functional_rank",
    "gradient_noise",
    "hessian_trace",
    "homogeneity",
    "layer_norms",
    "local_drift",
    "margins",
    "matrix_ranks",
    "matrix_spectrum",
    "neural_collapse",
    "noise_covariance",
    "noise_floor",
    "norm_bounds",
    "normalized_outputs",
    "operator_spectrum",
    "per_sample_gradient_norms",
    "profile",
    "ranks",
    "region_radius",
    "sharpness",
    "spectral_density",
    "spectrum_ranks",
    "spherical_sharpness",
    "split_init",
    "toeplitz_norm",
    "weight_matrices",
]
