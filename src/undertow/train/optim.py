"""The update rules of `undertow.train.rules` as `torch.optim.Optimizer`s, for anyone's loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from undertow.train import rules
from undertow.train.rules import COUNTERS, HYPER, Hyper, Rule

# What optimizers of PyTorch do beside the recursions here.
_OTHERS = ("amsgrad", "centered", "dampening", "maximize", "nesterov")


class RuleOptimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` that applies a pure update rule.

    Args:
        params: parameters, or parameter groups (dictionaries that may set any hyperparameter).
        rule: the update rule, bare or wrapped.
        **hyper: those fields of `undertow.train.rules.Hyper` that the rule reads; `lr` is required.
            Schedulers of `torch.optim.lr_scheduler` work as usual. For a wrapped rule these are
            the hyperparameters of the rule inside.

    Raises:
        ValueError: a hyperparameter is out of range, or the rule does not read it.
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
        _check_read(rule, hyper)
        super().__init__(
            params, self._as_group({name: getattr(checked, name) for name in rule.reads})
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with hyperparameters of their own."""
        group = self._as_group(param_group)
        _check_read(self.rule, group)
        _check_done(self.rule, group)
        self._hyper(self.defaults | group)
        super().add_param_group(group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the `state_dict()` of an optimizer of the same rule and parameters.

        Raises:
            ValueError: the state is of another rule, or of parameters of other shapes, or its
                hyperparameters are of another optimizer or out of range; then this optimizer is
                as it was.
        """
        before = {"state": self.state, "param_groups": self.param_groups}
        super().load_state_dict(state_dict)
        try:
            self._check_state()
            self._check_groups()
        except ValueError:
            self.__setstate__(before)
            raise

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs: all that a `torch.optim.Optimizer` keeps, and the rule."""
        return super().__getstate__() | {"rule": self.rule}

    def recursion(self, group: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """What `predict.edge` takes: the hyperparameters of a group, and the optimizer's name.

        Raises:
            TypeError: the rule is wrapped, or of no known recursion.
        """
        rule = self._rule_for(dict(group))
        if rule.wrappers or rule.family is None:
            raise TypeError(
                f"preconditioner: no edge is known for {rule!r}; give the optimizer a bare rule "
                "(rules.sgd, momentum, ema_momentum, rmsprop, adam, adamw)"
            )
        hyper = self._hyper(group)
        return {name: getattr(hyper, name) for name in rule.reads}, rule.family

    def preconditioner(self, param: Tensor, group: Mapping[str, Any]) -> Tensor | None:
        """What a parameter of that group was divided by in the last step; None where that is 1.

        Raises:
            LookupError: it has had no step.
        """
        denominator = self._rule_for(dict(group)).denominator
        if denominator is None:
            return None
        state = self.state.get(param)
        if not state:
            raise LookupError("no step has been taken")
        stored = {key: [value] for key, value in state.items()}
        (own,) = denominator(stored, self._hyper(group))
        return own

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
        hypers = [self._hyper(group) for group in self.param_groups]
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

    def _check_groups(self) -> None:
        needed = self._as_group(dict.fromkeys(self.rule.reads))
        for number, group in enumerate(self.param_groups):
            lacking = [name for name in needed if name not in group]
            if lacking:
                raise ValueError(
                    f"group {number} of the state does not say {', '.join(lacking)}; it is that of "
                    "another optimizer"
                )
            _check_done(self.rule, group)
            self._hyper(group)

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

    def _as_group(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Hyperparameters under the names that schedulers of PyTorch look for."""
        return dict(values)

    def _hyper(self, group: Mapping[str, Any]) -> Hyper:
        return Hyper(**{name: group[name] for name in self.rule.reads})

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


def _check_read(rule: Rule, given: Mapping[str, Any]) -> None:
    for name in given:
        if name in HYPER and name not in rule.reads:
            raise ValueError(
                f"{rule!r} does not read {name}; it reads {', '.join(rule.reads)}. Choose another "
                f"rule, or leave {name} out"
            )


def _check_done(rule: Rule, group: Mapping[str, Any]) -> None:
    others = _OTHERS if "momentum" in rule.reads else (*_OTHERS, "momentum")
    for name in others:
        if group.get(name):
            raise ValueError(f"{name}={group[name]!r} is not what {rule!r} does; leave it out")


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

    def _as_group(self, values: Mapping[str, Any]) -> dict[str, Any]:
        group = dict(values)
        if "beta2" in group:
            group["alpha"] = group.pop("beta2")
        return group

    def _hyper(self, group: Mapping[str, Any]) -> Hyper:
        return super()._hyper({**group, "beta2": group["alpha"]})


class Adam(RuleOptimizer):
    """`rules.adam`, as `torch.optim.Adam`; parameter groups may set `betas`, too."""

    _adam = rules.adam
    _decoupled = False

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

    def _as_group(self, values: Mapping[str, Any]) -> dict[str, Any]:
        group = dict(values)
        names = ("beta1", "beta2")
        if any(name in group for name in names):
            given = group.get("betas")
            group["betas"] = tuple(
                group.pop(name) if name in group else (given or self.defaults["betas"])[place]
                for place, name in enumerate(names)
            )
        return group

    def _hyper(self, group: Mapping[str, Any]) -> Hyper:
        beta1, beta2 = group["betas"]
        return super()._hyper({**group, "beta1": beta1, "beta2": beta2})

    def _check_groups(self) -> None:
        super()._check_groups()
        for group in self.param_groups:
            decoupled = group.get("decoupled_weight_decay", self._decoupled)
            if group["weight_decay"] and decoupled != self._decoupled:
                kinds = ("coupled", "decoupled")
                raise ValueError(
                    f"the state is of {kinds[decoupled]} weight decay, but that of {self.rule!r} "
                    f"is {kinds[self._decoupled]}"
                )


class AdamW(Adam):
    """`rules.adamw`, as `torch.optim.AdamW`; parameter groups may set `betas`, too."""

    _adam = rules.adamw
    _decoupled = True

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
