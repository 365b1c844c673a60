"""Parameters that a model or a loss reaches by another road than the model's attributes.

A penalty in the loss closes over `model.parameters()`, a module in a global is called in forward:
the module that stands in for the model does not see these, so calls of PyTorch's functions do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

# Tell of a tensor, not of its values: asked of the user's own.
_PROPERTIES = """
    requires_grad is_leaf grad grad_fn shape dtype device layout ndim is_cuda is_sparse is_meta
    is_quantized name _version output_nr retains_grad nbytes itemsize
"""
_METHODS = """
    size dim numel nelement ndimension stride storage_offset is_floating_point is_complex
    is_contiguous element_size get_device __len__ __hash__ is_inference data_ptr type
"""
_OF_THE_TENSOR: frozenset[Any] = frozenset(
    [getattr(Tensor, name).__get__ for name in _PROPERTIES.split()]
    + [getattr(Tensor, name) for name in _METHODS.split()]
)


@dataclass(frozen=True)
class Roads:
    """Which parameters and buffers are read beside the attributes of the model.

    Attributes:
        by_model: in forward.
        by_loss: by the loss, beside the outputs that it is given.
        depends: those that the loss depends on differentiably beside the outputs.
    """

    by_model: tuple[str, ...] = ()
    by_loss: tuple[str, ...] = ()
    depends: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.by_model or self.by_loss)


class Redirected(TorchFunctionMode):
    """While active, functions of PyTorch that are given one tensor get another one in its place.

    Args:
        others: what to give, by the identity of what is replaced.

    Attributes:
        read: the identities of tensors whose values were read.
        depends: of those that something was computed from differentiably.
    """

    def __init__(self, others: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._others = others
        self.read: set[int] = set()
        self.depends: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one function of PyTorch."""
        del types
        kwargs = kwargs or {}
        if func in _OF_THE_TENSOR:
            return func(*args, **kwargs)
        found: set[int] = set()
        args, kwargs = self._replaced(tuple(args), found), self._replaced(dict(kwargs), found)
        output = func(*args, **kwargs)
        if found:
            self.read |= found
            if any(tensor.requires_grad for tensor in tensors_in(output)):
                self.depends |= found
        return output

    def _replaced(self, value: Any, found: set[int]) -> Any:
        if isinstance(value, Tensor):
            other = self._others.get(id(value))
            if other is None:
                return value
            found.add(id(value))
            return other
        if type(value) in (list, tuple):
            return type(value)(self._replaced(part, found) for part in value)
        if type(value) is dict:
            return {name: self._replaced(part, found) for name, part in value.items()}
        return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Tensors in nested containers, and in the attributes of what a model may return."""
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, Mapping):
        parts: Iterable[Any] = value.values()
    elif isinstance(value, list | tuple):
        parts = value
    else:
        parts = getattr(value, "__dict__", {}).values()
    for part in parts:
        if isinstance(part, Tensor | Mapping | list | tuple):
            yield from tensors_in(part)


def leaves_of(value: Any) -> Iterator[Tensor]:
    """The leaves that tensors were computed from, as their graph has them."""
    waiting = [tensor.grad_fn for tensor in tensors_in(value) if tensor.grad_fn is not None]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [parent for parent, _ in node.next_functions if parent is not None]


def check_modes(names: Mapping[int, str], call: Callable[[], object]) -> None:
    """Raise where a call runs modules themselves, and not their copies, in another mode than eval.

    Args:
        names: of the modules by identity.
        call: is run once.
    """
    wrong: list[tuple[str, nn.Module]] = []

    def before(module: nn.Module, args: Any) -> None:
        del args
        if id(module) in names and module.training and _has_modes(module):
            wrong.append((names[id(module)], module))

    handle = nn.modules.module.register_module_forward_pre_hook(before)
    try:
        call()
    finally:
        handle.remove()
    if wrong:
        name, module = wrong[0]
        raise ValueError(
            f"{type(module).__name__} {name!r} of the model is called from outside of it (by the "
            "loss, or through a global) in training mode: call model.eval() before measuring"
        )


def _has_modes(module: nn.Module) -> bool:
    """Whether a module may compute something else while training."""
    if isinstance(module, _DropoutNd | _NormBase):
        return True
    if getattr(module, "dropout", 0) not in (0, 0.0, None):
        return True
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and "training" in code.co_names
