"""Nothing of a module or of the process is changed by measuring it, whatever the module does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import undertow as ut
from left_as_found import differences, of_module, of_process
from module_zoo import CLASSES, WIDTH, ZOO
from undertow import measure
from undertow.objective import Objective

SAMPLES = 6


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, WIDTH, generator=generator)
    return x, torch.arange(SAMPLES) % CLASSES


def objective_of(net: nn.Module) -> Objective:
    return Objective(net, nn.CrossEntropyLoss(), data(), microbatch=4)


def block(objective: Objective) -> Tensor:
    return torch.ones(2, objective.num_params)


def of_objective(call: Callable[[Objective], Any]) -> Callable[[nn.Module], Any]:
    return lambda net: call(objective_of(net))


def of_tokens(call: Callable[..., Any]) -> Callable[[nn.Module], Any]:
    """Saliency masks parts of inputs: each number is taken for a token here."""

    def run(net: nn.Module) -> Any:
        return call(nn.Sequential(nn.Flatten(), net), data()[0].unsqueeze(2))

    return run


GENERATOR = torch.Generator()
# How each public function that takes a module or an objective is called; a new one belongs here.
MEASURES: dict[str, Callable[[nn.Module], Any]] = {
    "activation_region": lambda net: measure.activation_region(net, data()[0]),
    "angular_update": lambda net: measure.angular_update(
        net, {name: tensor.clone() for name, tensor in net.state_dict().items()}
    ),
    "batch_gradient_norms": of_objective(
        lambda o: measure.batch_gradient_norms(o, torch.arange(4).view(2, 2))
    ),
    "batch_sharpness": of_objective(
        lambda o: measure.batch_sharpness(o, rtol=0.5, batch_size=SAMPLES)
    ),
    "boundary_distance": lambda net: measure.boundary_distance(net, data()[0]),
    "decision_distance": lambda net: measure.decision_distance(net, *data(), steps=2),
    "depth_convergence": lambda net: measure.depth_convergence(net, data()[0]),
    "displacement": lambda net: measure.displacement(net, net),
    "distance_in_function_space": lambda net: measure.distance_in_function_space(
        [net, nn.Sequential(net)], [*map(nn.Sequential, [net, net])], data()[0], permutations=9
    ),
    "functional_rank": lambda net: measure.functional_rank(net, objective_of(net)),
    "gradient_noise": of_objective(measure.gradient_noise),
    "hessian_trace": of_objective(lambda o: measure.hessian_trace(o, rtol=0.5)),
    "homogeneity": of_objective(lambda o: measure.homogeneity(o, layers=True)),
    "kkt_residual": of_objective(lambda o: measure.kkt_residual(o, degree=2.0)),
    "layer_norms": of_objective(measure.layer_norms),
    "local_drift": lambda net: measure.local_drift([net, net], [objective_of(net)] * 2),
    "margins": of_objective(measure.margins),
    "neural_collapse": lambda net: measure.neural_collapse(
        objective_of(net), features=lambda x: logits(net(x))
    ),
    "noise_covariance": of_objective(lambda o: measure.noise_covariance(o).eigenpairs(1)),
    "noise_floor": lambda net: measure.noise_floor(
        net, weight_decay=0.1, batch_size=1, patches=objective_of(net)
    ),
    "norm_bounds": of_objective(measure.norm_bounds),
    "normalized_outputs": of_objective(measure.normalized_outputs),
    "per_sample_gradient_norms": of_objective(measure.per_sample_gradient_norms),
    "profile": of_objective(measure.profile),
    "ranks": measure.ranks,
    "region_radius": lambda net: measure.region_radius(net, data()[0], data()[0]),
    "sharpness": of_objective(lambda o: measure.sharpness(o, rtol=0.5)),
    "sharpness_gradient": of_objective(
        lambda o: measure.sharpness_gradient(o, rtol=0.5, tolerance=0.1)
    ),
    "spectral_density": of_objective(lambda o: measure.spectral_density(o, rtol=0.5)),
    "spherical_sharpness": of_objective(lambda o: measure.spherical_sharpness(o, rtol=0.5)),
    "split_init": lambda net: measure.split_init(
        net, {name: tensor.clone() for name, tensor in net.state_dict().items()}, 0.5
    ),
    "weight_matrices": measure.weight_matrices,
    # Of saliency.
    "certify": of_tokens(lambda net, x: measure.saliency.certify(net, x, steps=2)),
    "completeness": of_tokens(
        lambda net, x: measure.saliency.completeness(net, x, torch.arange(6 * WIDTH).view(6, -1))
    ),
    "evaluate": of_tokens(
        lambda net, x: measure.saliency.evaluate(net, x, {"g": measure.saliency.gradient_x_input})
    ),
    "sanity_checks": of_tokens(
        lambda net, x: measure.saliency.sanity_checks(net, x, {"s": measure.saliency.smooth_grad})
    ),
    "soundness": of_tokens(
        lambda net, x: measure.saliency.soundness(net, x, lambda model, *given: given[0])
    ),
    # An objective's own.
    "value": of_objective(Objective.value),
    "gradient": of_objective(Objective.gradient),
    "predictions": of_objective(Objective.predictions),
    "hvp": of_objective(lambda o: o.hvp(block(o))),
    "ggnvp": of_objective(lambda o: o.ggnvp(block(o))),
    "ggn_trace": of_objective(Objective.ggn_trace),
    "sample_noise": of_objective(lambda o: o.sample_noise(2, batch_size=2, generator=GENERATOR)),
}
# Of tensors or readings alone, or of a model that one of the above makes.
OF_TENSORS = {
    "absolute_gradient",
    "follow_depth",
    "gradient_x_input",
    "integrated_gradients",
    "margin_from_growth",
    "matrix_ranks",
    "matrix_spectrum",
    "null_projector",
    "operator_spectrum",
    "random_map",
    "row_norms",
    "smooth_grad",
    "spectrum_ranks",
    "split_matrices",
    "toeplitz_norm",
    "update_fluctuation",
}


def logits(outputs: Any) -> Tensor:
    return getattr(outputs, "logits", outputs)


def found(name: str) -> nn.Module:
    """A module in the middle of training."""
    torch.manual_seed(0)
    net = ZOO[name]().train()
    if name == "frozen":
        net[1].eval()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    return net


def measured(call: Callable[[nn.Module], Any], net: nn.Module) -> Any:
    """What a measure gives, or the one line in which it declines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call(net)
        except (ValueError, TypeError) as error:
            return error


def test_every_public_measure_is_among_them() -> None:
    names = {*measure.__all__, *measure.saliency.__all__} - {"saliency"}
    functions = {name for name in names if name.islower()}
    assert functions <= MEASURES.keys() | OF_TENSORS
    methods = {n for n in vars(Objective) if callable(getattr(Objective, n)) and n[0] != "_"}
    assert methods <= MEASURES.keys() | {"batches", "fixed", "release"}
    assert {n for n in dir(ut) if n in measure.__all__} <= MEASURES.keys()


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("how", MEASURES)
def test_nothing_is_changed(name: str, how: str) -> None:
    net = found(name)
    modules, process = of_module(net), of_process()
    measured(MEASURES[how], net)
    assert not differences(modules, of_module(net))
    assert not differences(process, of_process())


class _Interrupting(TorchFunctionMode):
    """Raises when a given number of functions of PyTorch have been called."""

    def __init__(self, after: int, error: type[BaseException]) -> None:
        super().__init__()
        self.left, self.error = after, error

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
@pytest.mark.parametrize("name", ["writer", "structured", "old spectral norm", "attentive"])
@pytest.mark.parametrize("how", ["hvp", "margins", "gradient_noise", "activation_region", "ranks"])
def test_nothing_is_changed_by_what_ends_in_the_middle(
    name: str, how: str, error: type[BaseException]
) -> None:
    net = found(name)
    modules, process = of_module(net), of_process()
    counter = _Interrupting(-1, error)
    with counter:
        measured(MEASURES[how], net)
    calls = -1 - counter.left
    for after in range(1, calls, max(1, calls // 25)):
        try:
            with _Interrupting(after, error):
                measured(MEASURES[how], net)
        except error:
            pass
        assert not differences(modules, of_module(net)), after
        assert not differences(process, of_process()), after
