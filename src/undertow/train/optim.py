"""The update rules of `undertow.train.rules` as `torch.optim.Optimizer`s, for anyone's loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from undertow.train import rules
from undertow.train.rules import Hyper, Rule


class RuleOptimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` that applies a pure update rule.

    Args:
        params: parameters, or parameter groups (dictionaries that may set any hyperparameter).
        rule: the update rule.
        **hyper: fields of `undertow.train.rules.Hyper`; `lr` is required. Schedulers of
            `torch.optim.lr_scheduler` work as usual.

    Raises:
        ValueError: a hyperparameter is out of range.
        TypeError: a hyperparameter that `Hyper` does not have.
    """

    def __init__(self, params: Iterable[Any], rule: Rule, **hyper: float) -> None:
        checked = Hyper(**hyper)
        self.rule = rule
        super().__init__(
            params, {field.name: getattr(checked, field.name) for field in fields(checked)}
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with hyperparameters of their own."""
        _hyper(self.defaults | param_group)
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs: all that a `torch.optim.Optimizer` keeps, and the rule."""
        return super().__getstate__() | {"rule": self.rule}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns the closure's loss, if any.

        Raises:
            ValueError: a gradient is sparse; then no parameter has been updated.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grads = [param.grad for group in self.param_groups for param in group["params"]]
        if any(grad is not None and grad.is_sparse for grad in grads):
            raise ValueError(
                "sparse gradients are not supported; build the embedding with sparse=False"
            )
        for group in self.param_groups:
            hyper, rule = _hyper(group), self._rule_for(group)
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, rule, hyper)
        return loss

    def _rule_for(self, group: dict[str, Any]) -> Rule:
        return self.rule

    def _update(self, param: Tensor, rule: Rule, hyper: Hyper) -> None:
        state = self.state[param]
        if not state:
            state.update({key: values[0] for key, values in rule.init([param]).items()})
        stored = {key: [value] for key, value in state.items()}
        _, new = rule.update([param], [param.grad], stored, hyper, inplace=True)
        state.update({key: values[0] for key, values in new.items()})


def _hyper(group: dict[str, Any]) -> Hyper:
    return Hyper(**{field.name: group[field.name] for field in fields(Hyper)})


class SGD(RuleOptimizer):
    """`rules.sgd`, or `rules.momentum` where `momentum` is positive; as `torch.optim.SGD`."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, rules.momentum, lr=lr, momentum=momentum, weight_decay=weight_decay
        )

    def _rule_for(self, group: dict[str, Any]) -> Rule:
        # Groups and schedulers may set a momentum of their own; without one nothing is stored.
        return self.rule if group["momentum"] else rules.sgd


class AdamW(RuleOptimizer):
    """`rules.adamw`, as `torch.optim.AdamW`; parameter groups may set `betas`, too."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(
            params,
            rules.adamw,
            lr=lr,
            beta1=betas[0],
            beta2=betas[1],
            eps=eps,
            weight_decay=weight_decay,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with hyperparameters of their own; `betas` is (beta1, beta2)."""
        group = dict(param_group)
        if "betas" in group:
            group["beta1"], group["beta2"] = group.pop("betas")
        super().add_param_group(group)
