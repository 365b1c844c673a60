"""Kinks that a loss is on both sides of: where derivatives miss what moves the sharpness.

In the mean over samples a kink of the loss, of its slope or of its curvature adds to the third
derivative what no derivative at a point shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from undertow.measure._nested import tensors
from undertow.measure._pieces import KINKS, operation_name

# Operations whose value, slope or curvature jumps at numbers, beside those of `KINKS`.
_JUMPS: dict[str, tuple[float, ...]] = {
    "elu": (0.0,),
    "celu": (0.0,),
    "selu": (0.0,),
    "hardswish": (-3.0, 3.0),
}
# Those that jump at what they are given, whatever that is.
_CHOOSING = frozenset(
    """
    adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d hardshrink
    huber_loss max_pool2d_with_indices max_pool3d_with_indices rrelu_with_noise
    rrelu_with_noise_functional smooth_l1_loss softshrink threshold
    """.split()  # noqa: SIM905
)
# What chooses between tensors that have a gradient; of others it is a constant.
_BETWEEN = frozenset(
    "amax amin fmax fmin kthvalue max maximum median min minimum sort topk".split()  # noqa: SIM905
)
_COMPARISONS = frozenset(
    "ge gt greater greater_equal heaviside le less less_equal lt sgn sign signbit".split()  # noqa: SIM905
)


@contextmanager
def watching_for_kinks() -> Iterator[set[str]]:
    """The names of the operations whose kinks the forward passes inside are on both sides of."""
    found: set[str] = set()
    with _Functions(found), _Operations(found):
        yield found


class _Operations(TorchDispatchMode):
    """Sees what runs in the end, however it was called."""

    def __init__(self, found: set[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = operation_name(func)
        if name in _CHOOSING or self._is_divided(name, args, kwargs):
            self._found.add(name)
        return func(*args, **kwargs)

    def _is_divided(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if name in _JUMPS:
            return any(_both(args[0] > at) for at in _JUMPS[name])
        if name not in KINKS or not args[0].is_floating_point():
            return False
        if name.startswith("clamp") and any(True for _ in tensors((args[1:], kwargs))):
            return True  # its bounds are tensors
        kinks = KINKS[name](*args, **kwargs)
        return any(_both(args[0] > at) for at in kinks.at)


class _Functions(TorchFunctionMode):
    """Sees whether what is compared has a gradient."""

    def __init__(self, found: set[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        chooses = name in _BETWEEN and any(part.numel() > 1 for part in tensors(args))
        if (
            chooses or (name in _COMPARISONS and isinstance(outputs, Tensor) and _both(outputs > 0))
        ) and any(part.requires_grad for part in tensors((args, kwargs))):
            self._found.add(name)
        return outputs


def _both(above: Tensor) -> bool:
    """Whether some numbers are above and some are not."""
    return bool(above.any()) and not bool(above.all())
