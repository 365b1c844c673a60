"""What one evaluation on a few samples shows of a model and a loss, before any other.

Which tensors forward writes to, and which parameters are reached beside the model's attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from undertow.objective._inputs import taken
from undertow.objective._losses import logits_of
from undertow.objective._module import own_random_state, shown
from undertow.objective._random_states import kept_states, moved, states
from undertow.objective._roads import Redirected, Roads, check_modes, leaves_of, tensors_in
from undertow.objective._stand_in import StandIn, names_of, storage, storages

# Enough for a batch to be one.
_FEW = 2
# Outputs of one model that differ by more, relative to their size, are not those of rounding.
_RANDOM = 1e-2


class Evaluated(Protocol):
    """What is needed of a risk."""

    model: nn.Module
    stand_in: StandIn
    dtype: torch.dtype | None

    def own(self) -> dict[str, Tensor]:
        """Copies of all parameters and buffers."""

    def outputs(self, tensors: Mapping[str, Tensor], inputs: Any, targets: Tensor) -> Any:
        """What the model returns."""

    def loss_sum(self, outputs: Any, targets: Tensor) -> Tensor:
        """The sum of the loss."""


def meet(risk: Evaluated, inputs: Any, targets: Tensor) -> Roads:
    """Evaluate a risk that nobody else uses, on the first samples, or on all if these will not do.

    What the model or the loss raises is left for the evaluation proper to raise.

    Raises:
        ValueError: if a tensor is used that was computed from a parameter, or is a view of one,
            outside of the evaluation; or if parts of the model are called from outside of it in
            another mode than eval.
    """
    for chosen in (slice(_FEW), slice(None)):
        some = taken(inputs, chosen), targets[chosen]
        with own_random_state(risk.model), torch.enable_grad(), kept_states():
            before = states()
            try:
                return _Meeting(risk).roads(*some)
            except _Refused as refused:
                raise ValueError(str(refused)) from None
            except Exception:
                continue
            finally:
                risk.stand_in.draws |= moved(before)
    return Roads()


class _Refused(Exception):
    """What is found cannot be evaluated rightly."""


class _Meeting:
    """One evaluation under the eyes of a witness."""

    def __init__(self, risk: Evaluated) -> None:
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
        self._risk.stand_in.recomputes |= witness.saves
        self._check_random(outputs, inputs, targets)
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
                f"model or loss uses a tensor that was made from {names} outside of the forward "
                "pass (a view, a detached copy, or what was computed when it was built), so that "
                "it cannot follow the parameters: make it in forward"
            )

    def _check_random(self, outputs: Any, inputs: Any, targets: Tensor) -> None:
        """Of a random model, each value and each product would be of another function."""
        tensors = self._risk.own()
        pairs = [(name, tensor, self._tensors[name]) for name, tensor in tensors.items()]
        # Through `.data`, of which no version tells.
        self._risk.stand_in.note_written(n for n, then, now in pairs if not torch.equal(then, now))
        redirected = Redirected({key: tensors[name] for key, name in self._names.items()})
        with redirected:
            again = self._risk.outputs(tensors, inputs, targets)
        one, other = logits_of(outputs), logits_of(again)
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            return
        one, other = one.detach(), other.detach()
        if one.shape != other.shape or not (one.isfinite().all() and other.isfinite().all()):
            return
        apart = torch.linalg.vector_norm((one - other).flatten())
        if apart > _RANDOM * torch.linalg.vector_norm(one.flatten()):
            raise _Refused(
                "the model is random in eval mode: the same samples give other outputs each time; "
                "turn that off where self.training is False (functional.dropout needs its "
                "training=self.training), or draw from a torch.Generator that the model holds"
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
        saves: whether what a graph saves goes another way, as where it is computed again.
    """

    def __init__(
        self, others: Mapping[int, Tensor], stored: Mapping[int, str], aliases: Mapping[int, str]
    ) -> None:
        super().__init__(others)
        self._stored = stored
        self._aliases = aliases
        self.saved: set[str] = set()
        self.saves = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one function of PyTorch."""
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # noqa: SLF001
        self.saves = self.saves or hooks is not None
        for tensor in tensors_in([args, kwargs or {}]):
            if id(tensor) not in self._others:
                name = self._aliases.get(id(tensor)) or self._stored.get(storage(tensor))
                if name is not None:
                    self.saved.add(name)
        return super().__torch_function__(func, types, args, kwargs)
