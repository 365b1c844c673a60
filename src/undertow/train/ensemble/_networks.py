"""The networks of an ensemble before the first step: their tensors, and what their forward does.

Initial weights are drawn on the CPU under each member's own generator, so that they depend on
neither the neighbours nor the device.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

Model = nn.Module | Sequence[nn.Module] | Callable[[torch.Generator], nn.Module]


def initialise(
    model: Model,
    generators: Sequence[torch.Generator],
    dtype: torch.dtype,
    device: torch.device | str,
) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """A template, the trainable parameters `[E, ...]`, and the fixed tensors `[E, ...]`."""
    modules = [module.to(device, dtype) for module in _copies(model, generators)]
    shapes = [
        {name: value.shape for name, value in {**trainable(part), **fixed(part)}.items()}
        for part in modules
    ]
    for e, own_shapes in enumerate(shapes):
        if own_shapes != shapes[0]:
            raise ValueError(
                f"the model made for member {e} has other tensors or shapes than that of member "
                "0; networks of different shapes are different ensembles"
            )
    if not trainable(modules[0]):
        raise ValueError("the model has no parameters to train")
    params = stack([trainable(module) for module in modules])
    return modules[0].train(), params, stack([fixed(module) for module in modules])


def _copies(model: Model, generators: Sequence[torch.Generator]) -> list[nn.Module]:
    """A module for each member, none of which is the user's own."""
    if isinstance(model, nn.Module):
        return [copy.deepcopy(model)] * len(generators)
    if isinstance(model, Sequence):
        if len(model) != len(generators):
            raise ValueError(
                f"model must hold one module for each of the {len(generators)} members, got "
                f"{len(model)}"
            )
        for given in model:
            if not isinstance(given, nn.Module):
                raise TypeError(f"model must hold modules, got {type(given).__name__}")
        return [copy.deepcopy(given) for given in model]
    if not callable(model):
        raise TypeError(
            "model must be an nn.Module, one for each member, or a function that makes one, got "
            f"{type(model).__name__}"
        )
    modules = []
    for own in generators:
        with random_state(own.get_state()):
            made = model(own)
        if not isinstance(made, nn.Module):
            raise TypeError(
                f"model is a function that returned {type(made).__name__}; it must make an "
                "nn.Module from a torch.Generator"
            )
        # A copy, as nothing says that the function makes a new module at each call.
        modules.append(copy.deepcopy(made))
    return modules


def probe(
    template: nn.Module, inputs: Shaped[Tensor, "n ..."], smallest: int, state: Tensor
) -> tuple[Shaped[Tensor, "few ..."], bool]:
    """Outputs for a few samples, and whether a forward pass in train mode draws random numbers.

    Raises:
        ValueError: the model does not run on these inputs, or on a batch of the `smallest` size.
        TypeError: the model returns anything but a tensor.
    """
    trial, inputs = copy.deepcopy(template).cpu(), inputs[:2].cpu()
    with random_state(state), torch.no_grad():
        before = torch.get_rng_state()
        try:
            outputs = trial(inputs.repeat(2, *[1] * (inputs.ndim - 1)))
        except RuntimeError as error:
            raise ValueError(
                f"the model does not run on inputs of shape {tuple(inputs.shape[1:])} a sample and "
                f"type {inputs.dtype}: {error}"
            ) from error
        draws = not torch.equal(before, torch.get_rng_state())
        if not isinstance(outputs, Tensor):
            raise TypeError(f"the model must return a tensor, got {type(outputs).__name__}")
        if smallest == 1:
            try:
                trial(inputs[:1])
            except ValueError as error:
                raise ValueError(
                    "the model cannot train on a batch of one sample (batch norm needs two); "
                    "choose a batch size of at least 2 that leaves no rest of one: "
                    f"{error}"
                ) from error
    return outputs, draws


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that require a gradient."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def fixed(module: nn.Module) -> dict[str, Tensor]:
    """The buffers and the frozen parameters."""
    frozen = {name: value for name, value in module.named_parameters() if not value.requires_grad}
    return {**frozen, **dict(module.named_buffers())}


def stack(members: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of the members, stacked along a leading ensemble axis."""
    return {name: torch.stack([member[name].detach() for member in members]) for name in members[0]}


@torch.no_grad()
def load_member(module: nn.Module, tensors: dict[str, Tensor], member: int) -> None:
    """Copy one member's parameters and buffers into a module."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        tensor.copy_(tensors[name][member])


@contextlib.contextmanager
def random_state(state: Tensor) -> Iterator[None]:
    """Run under a random state of one's own, and leave the CPU's global one as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(state)
        yield
