"""How a tensor of three or more axes is laid out where no module says so, and what is no weight.

A convolution is `[c_out, c_in / groups, *taps]`, a transposed one `[c_in, c_out / groups, *taps]`;
experts, heads and tables of positions are stacks of matrices `[..., rows, cols]`. The bias beside
a tensor tells these apart, then its name, then its sizes; what was only assumed is noted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

Sibling = Callable[[str], Tensor | None]
Kind = Literal["convolution", "transposed", "stack", "vector", "unknown"]

_STACKED = re.compile(
    r"expert|gate_up_proj|(^|[._])(w[123]|wi(_[01])?|wo|mlp[12]|(up|down|gate)_proj|"
    r"pos(ition)?s?(al|ition)?_?(emb\w*)?|query_tokens|queries|latents?|(cls|dist|mask)_token)"
    r"([._]weight)?$",
    re.IGNORECASE,
)
_EXPERTS = re.compile(r"expert|gate_up_proj", re.IGNORECASE)
_CONVOLVED = re.compile(r"conv|patch_embed|downsample|feature_extractor", re.IGNORECASE)
_TRANSPOSED = re.compile(r"transpose|deconv|up_?conv|(^|[._])ups([._]|$)|upsampl", re.IGNORECASE)
# Odd kernels and the smallest even ones; a stack of matrices so narrow is rarer.
_TAPS_OF_A_LINE = (1, 2, 3, 4, 5, 7, 9, 11, 13, 15)
_WIDEST_TAPS = 32

# What stands beside weights and is none: name, and where it needs one the tensor that it is for.
_NO_WEIGHT = re.compile(
    r"(^|[._])(running_(mean|var)|num_batches_tracked|inv_freq|freqs_(cis|cos|sin)|"
    r"(cos|sin)_cached|position_ids|token_type_ids|relative_position_index|"
    r"(attn|attention|causal)_mask|masked_bias|bias|quant_map|nested_quant_map|absmax|"
    r"nested_absmax|quant_state\S*|SCB|g_idx|qzeros|zero_points?|weight_zero_point|weight_shape|"
    r"weight_scale(_2|_inv)?|scale_weight|scale_inv|input_scale|output_scale|[kv]_scale|"
    r"(input|weight)_global_scale)$|_bias$|_scale_inv$|_bias_(hh|ih)\S*$"
)
# Tables that are called as weights might be, and the packed tensor that tells them apart.
_BESIDE = {
    ".scales": (".qweight", ".weight"),
    "_scales": ("_blocks",),
    ".zeros": (".qweight",),
    ".scale": (".W_q", ".weight_packed"),
    ".zero": (".W_q",),
    "_scale": ("",),
}


@dataclass(frozen=True)
class Layout:
    """What a tensor is, and what was assumed to say so, as a clause."""

    kind: Kind
    assumed: str = ""
    groups: int = 1


def is_no_weight(name: str, sibling: Sibling) -> bool:
    """Whether a tensor is a bias, a table of quantisation, a statistic or a cache, by its name."""
    if _NO_WEIGHT.search(name):
        return True
    for ending, others in _BESIDE.items():
        if name.endswith(ending):
            stem = name.removesuffix(ending)
            if any(sibling(stem + other) is not None for other in others):
                return True
    return _is_norm(name, sibling)


def _is_norm(name: str, sibling: Sibling) -> bool:
    """Whether it holds the norms that weight normalisation keeps beside directions."""
    for ending, directions in ((".original0", ".original1"), ("_g", "_v")):
        if name.endswith(ending):
            norms, beside = sibling(name), sibling(name.removesuffix(ending) + directions)
            if norms is not None and beside is not None and norms.ndim == beside.ndim:
                sizes = zip(norms.shape, beside.shape, strict=True)
                return all(one in (1, other) for one, other in sizes) and (
                    norms.numel() == max(norms.shape) < beside.numel()
                )
    return False


def layout_in_module(module: nn.Module, name: str, tensor: Tensor) -> Layout:
    """The layout of a parameter of three or more axes in a module that torch does not know."""
    kinds = " ".join(kind.__name__ for kind in type(module).__mro__).lower()
    if "conv" in kinds or hasattr(module, "kernel_size"):
        return Layout("transposed" if "transpose" in kinds else "convolution")
    shape = tensor.shape
    if tensor.ndim == 4 and not _EXPERTS.search(name) and max(shape[2:]) <= min(16, *shape[:2]):
        return Layout("convolution", "was taken for a convolution's kernel")
    return _stack(tensor)


def layout_of(name: str, tensor: Tensor, sibling: Sibling) -> Layout:
    """The layout of a tensor of three or more axes of a state dict."""
    shape = tuple(tensor.shape)
    if tensor.ndim > 5:
        return Layout("unknown")
    if _EXPERTS.search(name):
        return _stack(tensor)
    bias = _bias_of(name, sibling)
    convolved = bool(_CONVOLVED.search(name))
    if bias is not None and bias.ndim == 1:
        if bias.shape[0] == shape[0] and not (shape[0] == shape[1] and _TRANSPOSED.search(name)):
            return Layout("convolution")
        if bias.shape[0] == shape[1] or _TRANSPOSED.search(name):
            return Layout("transposed", _SWAPPED)
        groups, odd = divmod(bias.shape[0], shape[1])
        if not odd and groups > 1 and shape[0] % groups == 0:
            return Layout("transposed", _SWAPPED, groups)
    if convolved or _TRANSPOSED.search(name):
        swapped = bool(_TRANSPOSED.search(name)) and bias is None
        return Layout("transposed", _SWAPPED) if swapped else Layout("convolution")
    if _STACKED.search(name) or (bias is not None and bias.ndim == 2):
        return _stack(tensor)
    if tensor.ndim == 3:
        return _of_three(tensor)
    if tensor.ndim == 4 and shape[:2] == (1, 1):
        return _stack(tensor)
    if max(shape[2:]) <= _WIDEST_TAPS or tensor.ndim == 5:
        return Layout("convolution")
    return _stack(tensor)


_SWAPPED = "was taken for a transposed convolution, [c_in, c_out, taps]"


def _of_three(tensor: Tensor) -> Layout:
    first, second, last = tensor.shape
    narrow = last in _TAPS_OF_A_LINE and 1 < last < first
    if narrow and (second == 1 or last < second):
        return Layout("convolution", "was taken for the kernel of a convolution along a line")
    return _stack(tensor)


def _stack(tensor: Tensor) -> Layout:
    *lead, rows, cols = stacked(tensor).shape if stacked(tensor).ndim > 1 else (0, 0)
    count = math.prod(lead)
    if not rows:
        return Layout("vector")
    if count == 1:
        leading = tensor.shape[:-2].numel() == 1
        return Layout("stack", "" if leading else f"was taken for a matrix {rows} x {cols}")
    return Layout("stack", f"was taken for {count} matrices {rows} x {cols}")


def stacked(tensor: Tensor) -> Tensor:
    """A stack without its axes of one: what is left is a vector, a matrix, or as many as lead."""
    return tensor.squeeze()


def _bias_of(name: str, sibling: Sibling) -> Tensor | None:
    path, dot, last = name.rpartition(".")
    stem = re.sub(r"\.?parametrizations$", "", path.rpartition(".")[0])
    candidates = [f"{path}{dot}bias"] if re.fullmatch(r"weight(_v)?", last) else []
    if last in ("original0", "original1"):
        candidates.append(f"{stem}.bias".lstrip("."))
    candidates += [f"{name}_bias", f"{name.removesuffix('_weight')}_bias"]
    for candidate in candidates:
        found = sibling(candidate)
        if found is not None:
            return found
    return None
