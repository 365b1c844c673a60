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

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns the closure's loss, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            hyper = Hyper(**{field.name: group[field.name] for field in fields(Hyper)})
            for param in group["params"]:
                if param.grad is None:
                    continue
                if param.grad.is_sparse:
                    raise ValueError(
                        "sparse gradients are not supported; build the embedding with sparse=False"
                    )
                self._update(param, hyper)
        return loss

    def _update(self, param: Tensor, hyper: Hyper) -> None:
        if param not in self.state:
            self.state[param] = {key: values[0] for key, values in self.rule.init([param]).items()}
        stored = {key: [value] for key, value in self.state[param].items()}
        _, new = self.rule.update([param], [param.grad], stored, hyper, inplace=True)
        self.state[param] = {key: values[0] for key, values in new.items()}


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
        rule = rules.momentum if momentum else rules.sgd
        super().__init__(params, rule, lr=lr, momentum=momentum, weight_decay=weight_decay)


class AdamW(RuleOptimizer):
    """`rules.adamw`, as `torch.optim.AdamW`."""

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
