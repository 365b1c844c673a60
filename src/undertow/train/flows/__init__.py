"""Training as a flow: the differential equations that optimizers follow, solved as such."""

from undertow.train.flows._adaptive_sde import adam_sde as adam_sde
from undertow.train.flows._adaptive_sde import rmsprop_sde as rmsprop_sde
from undertow.train.flows._factored_flow import factored_flow as factored_flow
from undertow.train.flows._gradient_flow import GradientFlow as GradientFlow
from undertow.train.flows._gradient_flow import gradient_flow as gradient_flow
from undertow.train.flows._noise import NoisyGradient as NoisyGradient
from undertow.train.flows._normalized_flow import NormalizedPath as NormalizedPath
from undertow.train.flows._normalized_flow import normalized_flow as normalized_flow
from undertow.train.flows._path import Event as Event
from undertow.train.flows._sde import sgd_sde as sgd_sde
from undertow.train.flows._sharpness_reduction import SharpnessReduction as SharpnessReduction
from undertow.train.flows._sharpness_reduction import (
    sharpness_reduction_flow as sharpness_reduction_flow,
)
from undertow.train.flows._slow_sde import Manifold as Manifold
from undertow.train.flows._slow_sde import local_sgd_slow_sde as local_sgd_slow_sde
from undertow.train.flows._slow_sde import valley_floor as valley_floor
from undertow.train.flows._stochastic import StochasticFlow as StochasticFlow
from undertow.train.flows._two_layer_flow import TwoLayerPath as TwoLayerPath
from undertow.train.flows._two_layer_flow import two_layer_flow as two_layer_flow

__all__ = [
    "Event",
    "GradientFlow",
    "Manifold",
    "NoisyGradient",
    "NormalizedPath",
    "SharpnessReduction",
    "StochasticFlow",
    "TwoLayerPath",
    "adam_sde",
    "factored_flow",
    "gradient_flow",
    "local_sgd_slow_sde",
    "normalized_flow",
    "rmsprop_sde",
    "sgd_sde",
    "sharpness_reduction_flow",
    "two_layer_flow",
    "valley_floor",
]
