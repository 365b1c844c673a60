"""The order of arguments of PyTorch's own functions, for calls by place and by name alike.

As torch.nn.functional has them; those that do not matter here are named all the same, for their
places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LINEAR = ("input", "weight", "bias")
CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
EMBEDDING = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq")
ATTENTION = (
    "query",
    "key",
    "value",
    "embed_dim_to_check",
    "num_heads",
    "in_proj_weight",
    "in_proj_bias",
    "bias_k",
    "bias_v",
    "add_zero_attn",
    "dropout_p",
    "out_proj_weight",
    "out_proj_bias",
    "training",
)
NORM = ("input", "normalized_shape", "weight", "bias", "eps")
RMS_NORM = ("input", "normalized_shape", "weight", "eps")
GROUP = ("input", "num_groups", "weight", "bias", "eps")
BATCH = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


def given_to(
    names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments by name; positional ones come in the order of `names`."""
    return {**dict(zip(names, args, strict=False)), **kwargs}
