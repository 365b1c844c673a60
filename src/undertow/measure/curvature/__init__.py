"""Second derivatives: sharpness, traces and densities of the Hessian and Gauss-Newton matrices."""

from undertow.measure.curvature._batch_sharpness import BatchSharpness as BatchSharpness
from undertow.measure.curvature._batch_sharpness import batch_sharpness as batch_sharpness
from undertow.measure.curvature._density import SpectralDensity as SpectralDensity
from undertow.measure.curvature._density import spectral_density as spectral_density
from undertow.measure.curvature._sharpness import Sharpness as Sharpness
from undertow.measure.curvature._sharpness import sharpness as sharpness
from undertow.measure.curvature._sharpness import spherical_sharpness as spherical_sharpness
from undertow.measure.curvature._sharpness_gradient import SharpnessGradient as SharpnessGradient
from undertow.measure.curvature._sharpness_gradient import sharpness_gradient as sharpness_gradient
from undertow.measure.curvature._trace import Estimate as Estimate
from undertow.measure.curvature._trace import hessian_trace as hessian_trace
from undertow.measure.curvature._tracking import SharpnessTracker as SharpnessTracker

__all__ = [
    "BatchSharpness",
    "Estimate",
    "Sharpness",
    "SharpnessGradient",
    "SharpnessTracker",
    "SpectralDensity",
    "batch_sharpness",
    "hessian_trace",
    "sharpness",
    "sharpness_gradient",
    "spectral_density",
    "spherical_sharpness",
]
