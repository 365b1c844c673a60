"""Optimizers that are running: what they hold, inside whatever holds them, and their state.

Hyperparameters are set at every layer, as a ZeroRedundancyOptimizer copies its own over those of
the optimizer inside at each step; state belongs to the innermost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from undertow.apply.rescaling import _names

# Holders that change nothing of what the optimizer inside does.
_HOLDERS = frozenset(
    {
        "AcceleratedOptimizer",
        "DeepSpeedOptimizerWrapper",
        "MegatronLMOptimizerWrapper",
        "LightningOptimizer",
        "ZeroRedundancyOptimizer",
        "DeepSpeedEngine",
        "DeepSpeedZeroOptimizer",
        "DeepSpeedZeroOptimizer_Stage3",
        "FP16_Optimizer",
        "FP16_UnfusedOptimizer",
        "BF16_Optimizer",
        "MixedPrecisionOptimizer",
        "FP32Optimizer",
        "Float16OptimizerWithFloat16Params",
        "DistributedOptimizer",
        "OptimWrapper",
        "AmpOptimWrapper",
        "_NamedOptimizer",
        "ShardedOptimizer",
        "OSS",
        "MultiPrecisionOptimizer",
    }
)
# What the name of a holder says where it does something of its own with the weights.
_ACTING = (
    *("lookahead", "sam", "schedulefree", "localsgd", "averag", "swa", "ema", "pcgrad", "svag"),
    *("larc", "lars", "gradientnoise"),
)
_INSIDE = (
    *("optimizer", "_optimizer", "optim", "base_optimizer", "_base_optimizer", "inner_optimizer"),
    *("wrapped_optimizer", "base"),
)
_HYPER = (
    *("lr", "weight_decay", "momentum", "betas", "alpha", "beta2", "eps", "momentum_decay"),
    *("nesterov", "decoupled_weight_decay"),
)
_RATES = ("initial_lr", "max_lr", "min_lr", "swa_lr", "base_lr", "lr_max", "scheduled_lr")
_MOMENTA = ("max_momentum", "base_momentum")
# Means of squared gradients under the names that optimizers give them, and of their size.
_SQUARES = (
    *("exp_avg_sq", "max_exp_avg_sq", "square_avg", "square", "exp_avg_sq_row", "exp_avg_sq_col"),
    *("row_var", "col_var", "variance", "absmax2", "max2"),
)
_SIZES = ("exp_inf",)

Move = Callable[[str, Any], Any]


@dataclass(frozen=True, eq=False)
class Group:
    """One parameter group of an optimizer.

    Attributes:
        label: which one, where there are several.
        optimizer: its family.
        hyper: values under the names that `predict.rescale` reads; those of a schedule's peak.
        present: the group as it is.
        notes: what the rules do not cover, and stays.
    """

    label: str
    optimizer: str
    hyper: dict[str, Any]
    present: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def written(self, new: Mapping[str, Any], move: Move) -> dict[str, Any]:
        """The group's own values after the move: its rates, and where a schedule has brought them.

        Args:
            new: what the rule gave for `hyper`.
            move: the rule for another value of a hyperparameter, by its name.
        """
        changed = {name: value for name, value in new.items() if name not in ("nesterov",)}
        if new["lr"] is None:  # no rule is known for it
            return changed
        changed["lr"] = move("lr", number(self.present["lr"]))
        for name in _RATES:
            if self.present.get(name) is not None:
                changed[name] = move("lr", number(self.present[name]))
        first = "betas" if "betas" in self.hyper else "momentum"
        if first in self.hyper and all(name in self.present for name in _MOMENTA):
            changed[first] = move(first, number(self.present[first]))
            for name in _MOMENTA:
                value = number(self.present[name])
                pair = (value, *self.hyper["betas"][1:]) if first == "betas" else value
                moved = move(first, pair)
                changed[name] = moved[0] if first == "betas" else moved
        return changed


@dataclass(frozen=True, eq=False)
class Running:
    """An optimizer, with what it is inside of.

    Attributes:
        layers: the lists of parameter groups from the outermost holder to the optimizer itself.
        inner: the optimizer itself.
        groups: its parameter groups.
        notes: what was taken for granted.
    """

    layers: tuple[Sequence[MutableMapping[str, Any]], ...]
    inner: Any
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()

    @property
    def scheduled(self) -> bool:
        """Whether a scheduler has been made for it."""
        return any("initial_lr" in group for layer in self.layers for group in layer)


def is_running(value: Any) -> bool:
    """Whether this is an optimizer, or holds one."""
    if isinstance(value, Mapping):
        return False
    return hasattr(value, "param_groups") or type(value).__name__ in _HOLDERS


def read_running(
    optimizer: Any,
    peaks: Sequence[Mapping[str, Any]] | None = None,
    named: str | None = None,
) -> Running:
    """The optimizer inside, and its hyperparameters by group.

    Args:
        optimizer: the optimizer, or what holds it.
        peaks: for each group what its scheduler says of its highest rate, where one is given.
        named: the optimizer's name, where its class does not say it.

    Raises:
        ValueError: its class says another.
        TypeError: a holder that does something of its own, or one that holds no optimizer.
    """
    chain, notes = _chain(optimizer)
    inner = chain[-1]
    layers: list[Any] = []
    for holder in chain:
        groups = getattr(holder, "param_groups", None)
        if groups and not any(groups is layer for layer in layers):
            layers.append(groups)
    several = len(inner.param_groups) > 1
    read = [
        _group(
            inner,
            group,
            f"group {index}: " if several else "",
            peaks[index] if peaks else {},
            named,
        )
        for index, group in enumerate(inner.param_groups)
    ]
    return Running(tuple(layers), inner, tuple(read), tuple(notes))


def _chain(optimizer: Any) -> tuple[list[Any], list[str]]:
    chain, notes = [optimizer], []
    while True:
        holder = chain[-1]
        names = [kind.__name__ for kind in type(holder).__mro__]
        inner = _inside(holder, chain)
        if inner is None:
            break
        if not _HOLDERS & set(names):
            if any(word in names[0].lower() for word in _ACTING):
                raise TypeError(
                    f"optimizer {names[0]}: no scaling rule is known for what it does around "
                    f"{type(inner).__name__}; give the optimizer inside"
                )
            if _family_name(holder) not in (None, "unknown"):
                break
            notes.append(f"{names[0]} is taken for a mere holder of {type(inner).__name__}")
        chain.append(inner)
    if not hasattr(chain[-1], "param_groups"):
        raise TypeError(f"{type(chain[-1]).__name__} holds no optimizer with param_groups")
    return chain, notes


def _inside(holder: Any, chain: Sequence[Any]) -> Any:
    for name in _INSIDE:
        inner = getattr(holder, name, None)
        held = hasattr(inner, "param_groups") or type(inner).__name__ in _HOLDERS
        if held and not isinstance(inner, type) and not any(inner is one for one in chain):
            return inner
    return None


def _family_name(optimizer: Any) -> str | None:
    """The family of an optimizer's class, or of the nearest one that it is made from."""
    return next(
        filter(None, (_names.lookup(kind.__name__) for kind in type(optimizer).__mro__)), None
    )


def _family(optimizer: Any, group: Mapping[str, Any], named: str | None) -> tuple[str, list[str]]:
    from undertow.train.optim import RuleOptimizer

    kind = type(optimizer).__name__
    if isinstance(optimizer, RuleOptimizer):
        if optimizer.rule.name not in _names.KNOWN:
            raise TypeError(
                f"no scaling rule is known for the update rule {optimizer.rule.name}: there are "
                f"{', '.join(_names.KNOWN)}, bare. Rescale the hyperparameters of a wrapped rule "
                "as a dictionary"
            )
        return optimizer.rule.name, []
    if kind.endswith("DummyOptimizer") or "lr" not in group or group["lr"] is None:
        raise TypeError(
            f"optimizer {kind}: it has no learning rate of its own to move (its groups hold "
            f"{', '.join(name for name in group if name != 'params')})"
        )
    family = _family_name(optimizer)
    if family == "adam" and group.get("decoupled_weight_decay"):
        family = "adamw"
    if named is not None:
        wanted = _names.family(named)
        if family not in (None, "unknown", wanted) and {family, wanted} != {"sgd", "momentum"}:
            raise ValueError(f"optimizer is {named!r}, and the one that is given is {kind}")
        family = wanted
    if family is None:
        return "unknown", [
            f"{kind} is no optimizer that is known here; give optimizer= where it is one by nature"
        ]
    return family, []


def _group(
    optimizer: Any,
    group: Mapping[str, Any],
    label: str,
    peak: Mapping[str, Any],
    named: str | None,
) -> Group:
    family, notes = _family(optimizer, group, named)
    if family == "rmsprop" and group.get("momentum"):
        notes.append("momentum of RMSprop is outside the square-root rule, and stays")
    reads = set(_names.reads(family))
    if "alpha" in group:
        reads.discard("beta2")
    hyper: dict[str, Any] = {}
    for name in _HYPER:
        if name in reads and group.get(name) is not None:
            value = group[name]
            hyper[name] = value if isinstance(value, bool) else number(value)
    if _names.decoupled(type(optimizer).__name__):
        hyper["decoupled_weight_decay"] = True
    base = peak.get("lr", group.get("max_lr", group.get("initial_lr")))
    if base is not None:
        hyper["lr"] = number(base)
    momentum = peak.get("momentum", group.get("base_momentum"))
    if momentum is not None and "betas" in hyper:
        hyper["betas"] = (number(momentum), *hyper["betas"][1:])
    elif momentum is not None and "momentum" in hyper:
        hyper["momentum"] = number(momentum)
    return Group(label, family, hyper, group, tuple(notes))


def number(value: Any) -> Any:
    """A hyperparameter of a group as plain floats; rates may be kept in tensors."""
    if isinstance(value, tuple | list):
        return tuple(float(one) for one in value)
    return float(value)


# ---- setting new values


def set_group(group: MutableMapping[str, Any], new: Mapping[str, Any]) -> None:
    """The new values into a group; in the tensors that hold the present ones, which graphs read."""
    for name, value in new.items():
        if name in group:
            group[name] = _set(group[name], value)


def _set(present: Any, value: Any) -> Any:
    if isinstance(present, tuple | list):
        return type(present)(map(_set, present, value))
    return present.fill_(value) if hasattr(present, "fill_") else value


def move_averaging(group: MutableMapping[str, Any], factor: float, ratio: float) -> None:
    """The weights that schedule-free optimizers average with: a step counts for k of them."""
    if "weight_sum" not in group:
        return
    power = group.get("weight_lr_power", 2.0)
    group["weight_sum"] = group["weight_sum"] * ratio**power / factor
    group["k"] = round(group.get("k", 0) / factor)


def rescale_state(optimizer: Any, group: Mapping[str, Any], factor: float, betas: Any) -> list[str]:
    """Bring an optimizer's running averages to the new batch size; says what was changed.

    Mean squares hold Sigma / batch, so they are divided by k; centred RMSprop subtracts the square
    of the mean gradient, which has none of k, so there the rest alone is divided. The step t
    becomes the one at which the new average is as far past its zero start, 1 - beta2'^t' = 1 -
    beta2^t.
    """
    old, new = betas
    clock = math.log(old) / math.log(new) if 0 < old < 1 and 0 < new < 1 else 1 / factor
    touched: dict[str, str] = {}
    for param in group["params"]:
        state = optimizer.state.get(param, {})
        squares = [name for name in _squares(state) if state.get(name) is not None]
        for name in squares:
            mean = state.get("grad_avg")
            kept = 0.0 if mean is None else mean.square() * (1 - 1 / factor)
            state[name].div_(factor).add_(kept)
            touched[name] = f"state {name} / k: it holds the noise, Sigma / batch"
        for name in _SIZES:
            if name in state:
                state[name].div_(math.sqrt(factor))
                touched[name] = f"state {name} / sqrt(k): it holds the size of the noise"
                squares.append(name)
        if "step" in state and squares:
            step = state["step"]
            if hasattr(step, "mul_") and step.is_floating_point():
                step.mul_(clock)  # in place, as captured graphs read it
            else:
                # Kernels of bitsandbytes take whole numbers.
                state["step"] = max(round(step * clock), 1) if "state1" in state else step * clock
            touched["step"] = "state step x ln(beta2) / ln(beta2'): as far past its start"
    return list(touched.values())


def _squares(state: Mapping[str, Any]) -> tuple[str, ...]:
    """The mean squares; of those kept in 8 bits, the scales that stand for them."""
    whole = state.get("state2")
    if whole is not None and whole.is_floating_point():
        return (*_SQUARES, "state2")
    return _SQUARES


def slowest(group: Mapping[str, Any]) -> float:
    """The decay of the mean of squared gradients."""
    if "betas" in group:
        return float(group["betas"][1])
    return float(group.get("alpha", group.get("beta2", 0.0)))
