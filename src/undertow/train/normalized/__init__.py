"""Descent with weight decay where the length of the weights does not matter."""

from undertow.train.normalized._circles import CircleDescent as CircleDescent
from undertow.train.normalized._circles import circle_descent as circle_descent
from undertow.train.normalized._circles import circle_flow as circle_flow
from undertow.train.normalized._stack import NormalizedNetworks as NormalizedNetworks
from undertow.train.normalized._stack import normalized_networks as normalized_networks

__all__ = [
    "CircleDescent",
    "NormalizedNetworks",
    "circle_descent",
    "circle_flow",
    "normalized_networks",
]
