"""What one evaluation on a few samples shows of a model and a loss, before any other.

Which tensors forward writes to, and which parameters are reached beside the model's attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from undertow.objective._batches import piece
from undertow.objective._module import own_random_state, shown
from undertow.objective._roads import Redirected, Roads, check_modes, leaves_of, tensors_in
from undertow.objective._stand_in import names_of, storage, storages

if TYPE_CHECKING:
    from undertow.objective._risk import EmpiricalRisk

# Enough for a batch to be one.
_FEW = 2


def meet(risk: EmpiricalRisk, inputs: Any, targets: Tensor) -> Roads:
    """Evaluate a risk that nobody else uses, on the first samples, or on all if these will not do.

    What the model or the loss raises is left for the evaluation proper to raise.

    Raises:
        ValueError: if a tensor is used that was computed from a parameter, or is a view of one,
            outside of the evaluation; or if parts of the model are called from outside of it in
            another mode than eval.
    """
    for chosen in (slice(_FEW), slice(None)):
        some = piece(inputs, chosen, targets.device), targets[chosen]
        with own_random_state(risk.model), torch.enable_grad():
            try:
                return _Meeting(risk).roads(*some)
            except _Refused as refused:
                raise ValueError(str(refused)) from None
            except Exception:
                continue
    return Roads()


class _Refused(Exception):
    """What is found cannot be evaluated rightly."""


class _Meeting:
    """One evaluation under the eyes of a witness."""

    def __init__(self, risk: EmpiricalRisk) -> None:
        self._risk = risk
        self._names = names_of(risk.model)
        self._tensors = risk.own()
        for tensor in self._tensors.values():
            tensor.requires_grad_(tensor.is_floating_point() or tensor.is_complex())
        self._others = {key: self._tensors[name] for key, name in self._names.items()}

    def roads(self, inputs: Any, targets: Tensor) -> Roads:
        aliases = self._risk.stand_in.aliases(self._risk.dtype)
        stored = storages(self._risk.model)
        witness = _Witness(self._others, stored, aliases)
        with witness:
            outputs = self._risk.outputs(self._tensors, inputs, targets)
        by_model = self._named(witness.read)
        witness.read.clear()
        witness.depends.clear()
        self._check(witness, outputs)
        with witness:
            total = self._risk.loss_sum(outputs, targets)
        self._check(witness, total)
        by_loss, depends = self._named(witness.read), self._named(witness.depends)
        if by_model or by_loss:
            self._check_modes(inputs, targets)
        return Roads(by_model, by_loss, depends)

    def _named(self, found: set[int]) -> tuple[str, ...]:
        return tuple(name for key, name in self._names.items() if key in found)

    def _check(self, witness: _Witness, computed: Any) -> None:
        saved = list(witness.saved)
        saved += [self._names[id(leaf)] for leaf in leaves_of(computed) if id(leaf) in self._names]
        if saved:
            names = shown(tuple(dict.fromkeys(saved)))
            raise _Refused(
                f"model or loss uses a tensor that was made from {names} outside of the forward pass (a view, a detached copy, or what was computed when "
                "it was built), so that it cannot follow the parameters: make it in forward"
            )

    def _check_modes(self, inputs: Any, targets: Tensor) -> None:
        names = {id(module): name for name, module in self._risk.model.named_modules()}

        def call() -> None:
            with Redirected(self._others):
                outputs = self._risk.outputs(self._tensors, inputs, targets)
                self._risk.loss_sum(outputs, targets)

        try:
            check_modes(names, call)
        except ValueError as error:
            raise _Refused(str(error)) from None


class _Witness(Redirected):
    """Notes also which other tensors share the memory of those that it replaces.

    Attributes:
        saved: the names of what they share it with.
    """

    def __init__(
        self, others: Mapping[int, Tensor], stored: Mapping[int, str], aliases: Mapping[int, str]
    ) -> None:
        super().__init__(others)
        self._stored = stored
        self._aliases = aliases
        self.saved: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one function of PyTorch."""
        for tensor in tensors_in([args, kwargs or {}]):
            if id(tensor) not in self._others:
                name = self._aliases.get(id(tensor)) or self._stored.get(storage(tensor))
                if name is not None:
                    self.saved.add(name)
        return super().__torch_function__(func, types, args, kwargs)
