"""Per-sample gradients themselves: by `vmap`, or one sample after the other.

Each sample is a batch of its own, so that there is no layout to be mistaken about.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from undertow.objective import EmpiricalRisk, Tensors, dense, out_of_memory, over_tensors, taken

# They are held for so many bytes at a time.
_VMAP_BYTES = 2**25


def written_down(
    risk: EmpiricalRisk,
    parameters: Tensors,
    names: tuple[str, ...],
    inputs: Any,
    targets: Tensor,
    delta: Tensor,
) -> Iterator[dict[str, Float[Tensor, "samples ..."]]]:
    """Per-sample gradients of some parameters, for as many samples at a time as memory allows.

    Args:
        risk: what is evaluated.
        parameters: and buffers, by name.
        names: of those that are differentiated in.
        inputs: of the microbatch.
        targets: of the microbatch.
        delta: the slope of the loss's sum in the outputs.
    """
    rest = {name: parameters[name].detach() for name in names}

    def gradient(one_input: Any, one_target: Tensor, one_delta: Tensor) -> dict[str, Tensor]:
        def forward(own: dict[str, Tensor]) -> Tensor:
            outputs = risk.logits({**parameters, **own}, taken(one_input, None), one_target[None])
            return outputs.reshape(one_delta.shape)

        (found,) = vjp(forward, rest)[1](one_delta)
        return found

    def one_by_one(here: slice) -> dict[str, Tensor]:
        each = []
        for index in range(*here.indices(len(delta))):
            one = slice(index, index + 1)
            leaves = {name: tensor.clone().requires_grad_() for name, tensor in rest.items()}
            with torch.enable_grad():
                outputs = risk.logits({**parameters, **leaves}, taken(inputs, one), targets[one])
            each.append(
                torch.autograd.grad(outputs, list(leaves.values()), delta[one], allow_unused=True)
            )
        return {
            name: torch.stack(
                [torch.zeros_like(rest[name]) if g is None else dense(g) for g in found]
            )
            for name, found in zip(names, zip(*each, strict=True), strict=True)
        }

    held = sum(tensor.numel() * tensor.element_size() for tensor in rest.values())
    step = max(1, _VMAP_BYTES // max(1, held))
    mapped = True
    # The math kernel of attention is the one that vmap can transform.
    with sdpa_kernel(SDPBackend.MATH):
        for start in range(0, len(delta), step):
            here = slice(start, start + step)
            if mapped:
                try:
                    with warnings.catch_warnings():
                        # Functions that vmap runs one by one; the result names them anyway.
                        warnings.filterwarnings("ignore", "There is a performance drop")
                        part = taken(inputs, here)
                        found = vmap(gradient, in_dims=(_axes(part), 0, 0))(
                            part, targets[here], delta[here]
                        )
                    yield found
                    continue
                except RuntimeError as error:
                    if out_of_memory(error):
                        raise
                    mapped = False  # recurrent layers, or a flow that depends on values
            yield one_by_one(here)


def _axes(inputs: Any) -> Any:
    """Where vmap finds the samples: along the first axis of every tensor, and nowhere else."""
    return over_tensors(lambda tensor: 0, inputs, lambda other: None)
