"""Which modules can be evaluated at parameters of one's choice.

What cannot is refused before any work: its numbers would be another model's, or there are none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def check_not_scripted(name: str, module: nn.Module) -> None:
    """Raise TypeError for a module of `torch.jit`."""
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            f"{name} is TorchScript, which runs on its own parameters only: give the nn.Module "
            "that it was made of"
        )


def is_sharded(value: Any) -> bool:
    """Whether it is a `DTensor`, whose module is not loaded to find out."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def check_supported(model: nn.Module) -> None:
    """Raise TypeError or ValueError for a module that cannot be evaluated at other parameters."""
    for path, module in model.named_modules():
        name, kind = path or "the model", type(module)
        check_not_scripted(name, module)
        if getattr(module.train, "__module__", "").startswith("torch.export"):
            raise TypeError(
                f"{name} is an exported program, whose training mode is fixed: give the nn.Module "
                "that was exported"
            )
        if kind.__module__.startswith("torch.") and "quantized" in kind.__module__:
            raise TypeError(
                f"{name} is a quantised {kind.__name__}, which has no derivatives: give the model "
                "as it was before quantisation"
            )
        if kind.__name__ == "FullyShardedDataParallel":
            raise TypeError(
                f"{name} is sharded (FullyShardedDataParallel): gather its parameters into a plain "
                "copy of the model, and give that"
            )
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise TypeError(
                f"parameter {name} is a DTensor, of which each rank holds a part: load the full "
                "tensors ({n: p.full_tensor() for n, p in model.named_parameters()}) into a plain "
                "copy of the model, and give that"
            )
        if parameter.layout is not torch.strided:
            raise TypeError(f"parameter {name} is sparse: make it dense, or a buffer")
