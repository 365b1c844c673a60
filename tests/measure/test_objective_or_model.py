"""An objective where a model is wanted, and a model where an objective is: one line says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from undertow import measure
from undertow.objective import Objective

INPUTS = torch.ones(4, 3)
LABELS = torch.tensor([0, 1, 0, 1])
NET = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
OBJECTIVE = Objective(NET, nn.CrossEntropyLoss(), (INPUTS, LABELS))
OF_OBJECTIVES: dict[str, Callable[[Any], Any]] = {
    "batch_gradient_norms": lambda o: measure.batch_gradient_norms(o, torch.arange(4)[None]),
    "batch_sharpness": lambda o: measure.batch_sharpness(o, batch_size=2),
    "functional_rank": lambda o: measure.functional_rank(NET, o),
    "SharpnessTracker": measure.SharpnessTracker,
    **{
        name: getattr(measure, name)
        for name in (
            "gradient_noise",
            "hessian_trace",
            "homogeneity",
            "layer_norms",
            "margins",
            "neural_collapse",
            "noise_covariance",
            "norm_bounds",
            "normalized_outputs",
            "per_sample_gradient_norms",
            "profile",
            "sharpness",
            "sharpness_gradient",
            "spectral_density",
            "spherical_sharpness",
        )
    },
}
OF_MODELS: dict[str, Callable[[Any], Any]] = {
    "activation_region": lambda net: measure.activation_region(net, INPUTS),
    "boundary_distance": lambda net: measure.boundary_distance(net, INPUTS),
    "distance_in_function_space": lambda net: measure.distance_in_function_space(
        [NET, net], [NET, NET], INPUTS
    ),
    "functional_rank": lambda net: measure.functional_rank(net, OBJECTIVE),
    "local_drift": lambda net: measure.local_drift([net, net], [OBJECTIVE, OBJECTIVE]),
    "noise_floor": lambda net: measure.noise_floor(net, weight_decay=0.1, batch_size=1),
    "region_radius": lambda net: measure.region_radius(net, INPUTS, INPUTS),
}
OF_WEIGHTS: dict[str, Callable[[Any], Any]] = {
    "angular_update": lambda net: measure.angular_update(NET, net),
    "displacement": lambda net: measure.displacement(net, NET),
    "ranks": measure.ranks,
    "split_init": lambda net: measure.split_init(net, NET.state_dict(), 0.5),
    "weight_matrices": measure.weight_matrices,
}


@pytest.mark.parametrize("name", OF_OBJECTIVES)
def test_a_model_is_no_objective(name: str) -> None:
    message = "^objective must be an undertow.Objective, got Sequential; make one of it: [^\n]*$"
    with pytest.raises(TypeError, match=message):
        OF_OBJECTIVES[name](NET)


@pytest.mark.parametrize("name", OF_MODELS)
def test_an_objective_is_no_model(name: str) -> None:
    message = "must be an nn.Module, got Objective; its model is objective.model$"
    with pytest.raises(TypeError, match=message):
        OF_MODELS[name](OBJECTIVE)


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_an_objective_has_no_weights_of_its_own(name: str) -> None:
    with pytest.raises(TypeError, match=r"must be an nn\.Module or a mapping .*, got Objective"):
        OF_WEIGHTS[name](OBJECTIVE)


def test_a_model_has_no_patches() -> None:
    message = "patches must be counts by the names of weights, or an undertow.Objective, got Seq"
    with pytest.raises(TypeError, match=message):
        measure.noise_floor(NET, weight_decay=0.1, batch_size=1, patches=NET)  # type: ignore[arg-type]
