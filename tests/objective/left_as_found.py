"""All that evaluating a module could leave changed, to be compared before and after."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def snapshot(net: nn.Module) -> list[Any]:
    return [
        [tensor.clone() for tensor in net.state_dict().values()],
        [module.training for module in net.modules()],
        [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        [p.requires_grad for p in net.parameters()],
        [id(p) for p in net.parameters()],
        torch.get_rng_state(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.is_grad_enabled(),
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other
