"""The update rules of `undertow.train.rules` as `torch.optim.Optimizer`s, for anyone's loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from undertow.train import rules
from undertow.train._rule import COUNTERS, Hyper, Rule


class RuleOptimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` that applies a pure update rule.

    Args:
        params: parameters, or parameter groups (dictionaries that may set any hyperparameter).
        rule: the update rule, bare or wrapped.
        **hyper: fields of `undertow.train.rules.Hyper`; `lr` is required. Schedulers of
            `torch.optim.lr_scheduler` work as usual. For a wrapped rule these are the
            hyperparameters of the rule inside.

    Raises:
        ValueError: a hyperparameter is out of range.
        TypeError: a hyperparameter that `Hyper` does not have, or `rule` is not a rule.

    Notes:
        A rule that needs several independent batches a step (`rules.svag`) takes them from the
        closure, which `step` calls once for each; it must draw a fresh batch every time. An
        optimizer sees no targets: under `rules.label_noise`, give the loss
        `rule.perturb(targets, generator)` in the loop.
    """

    def __init__(self, params: Iterable[Any], rule: Rule, **hyper: float) -> None:
        if not isinstance(rule, Rule):
            raise TypeError(f"rule must be one of train.rules, such as rules.sgd, got {rule!r}")
        checked = Hyper(**hyper)
        self.rule = rule
        super().__init__(
            params, {field.name: getattr(checked, field.name) for field in fields(checked)}
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with hyperparameters of their own."""
        _hyper(self.defaults | param_group)
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the `state_dict()` of an optimizer of the same rule and parameters.

        Raises:
            ValueError: the state is of another rule, or of parameters of other shapes; then the
                optimizer is as it was.
        """
        before = {"state": self.state, "param_groups": self.param_groups}
        super().load_state_dict(state_dict)
        try:
            self._check_state()
        except ValueError:
            self.__setstate__(before)
            raise

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs: all that a `torch.optim.Optimizer` keeps, and the rule."""
        return super().__getstate__() | {"rule": self.rule}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns the closure's loss, if any.

        For a rule that needs several batches, `closure` is called once for each of
        `rule.batch_weights`, with cleared gradients; it draws a fresh batch, runs `backward`, and
        returns the loss. The sum with these weights is what is returned, and what the gradients
        hold afterwards.

        Raises:
            ValueError: a gradient is sparse, NaN or infinite, a scheduler has moved a
                hyperparameter out of range, or a rule that needs several batches has no closure
                to draw them; then no parameter has been updated.
        """
        loss = self._combined(closure) if len(self.rule.batch_weights) > 1 else _call(closure)
        self._check_gradients()
        hypers = [_hyper(group) for group in self.param_groups]
        for group, hyper in zip(self.param_groups, hypers, strict=True):
            rule = self._rule_for(group)
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, rule, hyper)
        return loss

    def _combined(self, closure: Callable[[], Any] | None) -> Any:
        """Leave the weighted sum of the gradients of several batches; returns that of losses."""
        weights = self.rule.batch_weights
        if closure is None:
            raise ValueError(
                f"{self.rule!r} needs {len(weights)} independent batches a step: call "
                "step(closure) with a function that draws a fresh batch, runs backward on its loss "
                "and returns the loss"
            )
        params = [param for group in self.param_groups for param in group["params"]]
        losses, grads = [], []
        for _ in weights:
            for param in params:
                param.grad = None
            losses.append(_call(closure))
            grads.append([param.grad for param in params])
        for param, *own in zip(params, *grads, strict=True):
            if any(grad is not None for grad in own):
                reached = [[torch.zeros_like(param) if grad is None else grad] for grad in own]
                (param.grad,) = self.rule.combine(reached)
        if any(loss is None for loss in losses):
            return None
        return sum(weight * loss for weight, loss in zip(weights, losses, strict=True))

    def _check_gradients(self) -> None:
        grads = [param.grad for group in self.param_groups for param in group["params"]]
        found = [grad for grad in grads if grad is not None]
        if any(grad.is_sparse for grad in found):
            raise ValueError(
                "sparse gradients are not supported; build the embedding with sparse=False"
            )
        # The sums are cheap, and asked for once, but may overflow where every entry is finite.
        sums = [grad.sum() for grad in found]
        if not sums or bool(torch.isfinite(torch.stack([own.to(sums[0]) for own in sums])).all()):
            return
        for name, param in self._named():
            if param.grad is not None and not bool(torch.isfinite(param.grad).all()):
                raise ValueError(
                    f"the gradient of {name} holds NaN or infinite values; nothing was updated. "
                    "Skip the batch, lower lr, or clip the gradients"
                )

    def _check_state(self) -> None:
        for name, param in self._named():
            state = self.state.get(param)
            if not state:
                continue
            expected = self.rule.init([torch.zeros(())]).keys()
            if state.keys() != expected:
                raise ValueError(
                    f"the state of {name} holds {', '.join(sorted(state))}, but {self.rule!r} "
                    f"keeps {', '.join(sorted(expected)) or 'none'}; it is that of another rule"
                )
            for key, value in state.items():
                if key not in COUNTERS and value.shape != param.shape:
                    raise ValueError(
                        f"{name} has shape {tuple(param.shape)}, but its state {key!r} has "
                        f"{tuple(value.shape)}; it is that of another model"
                    )

    def _named(self) -> Iterable[tuple[str, Tensor]]:
        for number, group in enumerate(self.param_groups):
            names = group.get("param_names")
            for place, param in enumerate(group["params"]):
                yield names[place] if names else f"parameter {place} of group {number}", param

    def _rule_for(self, group: dict[str, Any]) -> Rule:
        return self.rule

    def _update(self, param: Tensor, rule: Rule, hyper: Hyper) -> None:
        state = self.state[param]
        if not state:
            state.update({key: values[0] for key, values in rule.init([param]).items()})
        stored = {key: [value] for key, value in state.items()}
        _, new = rule.update([param], [param.grad], stored, hyper, inplace=True)
        state.update({key: values[0] for key, values in new.items()})


def _call(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


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


class RMSprop(RuleOptimizer):
    """`rules.rmsprop`, as `torch.optim.RMSprop` without momentum; groups may set `alpha`."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, rules.rmsprop, lr=lr, beta2=alpha, eps=eps, weight_decay=weight_decay
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with hyperparameters of their own; `alpha` is beta2."""
        group = dict(param_group)
        if "alpha" in group:
            group["beta2"] = group.pop("alpha")
        super().add_param_group(group)


class Adam(RuleOptimizer):
    """`rules.adam`, as `torch.optim.Adam`; parameter groups may set `betas`, too."""

    _adam = rules.adam

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            self._adam,
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


class AdamW(Adam):
    """`rules.adamw`, as `torch.optim.AdamW`; parameter groups may set `betas`, too."""

    _adam = rules.adamw

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay)
