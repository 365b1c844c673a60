"""The noise of mini-batch gradients: per-sample norms, size, covariance and floor."""

from undertow.measure.noise._batch_gradients import batch_gradient_norms as batch_gradient_norms
from undertow.measure.noise._gradient_noise import GradientNoise as GradientNoise
from undertow.measure.noise._gradient_noise import NoiseScale as NoiseScale
from undertow.measure.noise._gradient_noise import gradient_noise as gradient_noise
from undertow.measure.noise._noise_covariance import NoiseAlignment as NoiseAlignment
from undertow.measure.noise._noise_covariance import NoiseCovariance as NoiseCovariance
from undertow.measure.noise._noise_covariance import NoiseEigenpairs as NoiseEigenpairs
from undertow.measure.noise._noise_covariance import noise_covariance as noise_covariance
from undertow.measure.noise._noise_floor import NoiseFloor as NoiseFloor
from undertow.measure.noise._noise_floor import noise_floor as noise_floor
from undertow.measure.noise._per_sample import PerSampleNorms as PerSampleNorms
from undertow.measure.noise._per_sample import (
    per_sample_gradient_norms as per_sample_gradient_norms,
)

__all__ = [
    "GradientNoise",
    "NoiseAlignment",
    "NoiseCovariance",
    "NoiseEigenpairs",
    "NoiseFloor",
    "NoiseScale",
    "PerSampleNorms",
    "batch_gradient_norms",
    "gradient_noise",
    "noise_covariance",
    "noise_floor",
    "per_sample_gradient_norms",
]
