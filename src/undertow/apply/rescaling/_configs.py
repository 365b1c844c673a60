"""Hyperparameters as people keep them, read into one form and written back.

Optimizers of `torch.optim` and `train.optim`, plain dictionaries, Transformers `TrainingArguments`
(or a dictionary of its fields), and configurations as Lightning's command line takes them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

_FAMILY = {
    "sgd": "sgd",
    "momentum": "momentum",
    "rmsprop": "rmsprop",
    "adam": "adam",
    "adamw": "adamw",
}
# What TrainingArguments calls things, and the names that the rules read.
_ARGUMENTS = {
    "learning_rate": "lr",
    "weight_decay": "weight_decay",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "eps",
    "max_steps": "steps",
    "warmup_steps": "warmup_steps",
}
_READS = {
    "sgd": ("lr", "weight_decay", "momentum"),
    "momentum": ("lr", "weight_decay", "momentum"),
    "rmsprop": ("lr", "weight_decay", "alpha", "beta2", "eps"),
    "adam": ("lr", "weight_decay", "betas", "beta1", "beta2", "eps"),
    "adamw": ("lr", "weight_decay", "betas", "beta1", "beta2", "eps"),
}
_RMSPROP_MOMENTUM = "momentum of RMSprop is outside the square-root rule, and stays"
_ARGUMENT_DEFAULTS = {"weight_decay": 0.0, "adam_epsilon": 1e-8}


@dataclass(frozen=True, eq=False)
class Config:
    """Hyperparameters of one optimizer, or of one of its parameter groups.

    Attributes:
        label: which group, where there are several.
        optimizer: sgd, momentum, rmsprop, adam or adamw.
        hyper: values under the names that `predict.rescale` reads.
        written: new values of that kind -> the configuration in its own form.
        batch: samples a step, where the configuration says so.
        workers_counted: whether these are of all workers, and not of one.
        notes: what the rules do not cover, and stays.
    """

    label: str
    optimizer: str
    hyper: dict[str, Any]
    written: Callable[[Mapping[str, Any]], Any]
    batch: int | None = None
    workers_counted: bool = False
    notes: tuple[str, ...] = ()


def family(name: str) -> str:
    """Which of the five rules a named optimizer follows.

    Raises:
        ValueError: it is none that a scaling rule is known for.
    """
    plain = name.rpartition(".")[2].lower().removeprefix("paged_")
    if plain == "fusedadam":  # of apex and DeepSpeed: its decay is decoupled by default
        plain = "adamw"
    plain = plain.removeprefix("fused")
    for known in ("adamw", "rmsprop"):  # adamw_torch_fused, adamw_bnb_8bit, rmsprop_bnb, ...
        if plain.startswith(f"{known}_"):
            plain = known
    if plain not in _FAMILY:
        close = get_close_matches(plain, _FAMILY)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_FAMILY)}"
        raise ValueError(f"optimizer {name!r}: no scaling rule is known for it; {hint}")
    return _FAMILY[plain]


def read_config(source: Any, optimizer: str | None) -> Config:
    """The hyperparameters in a dictionary or an object with TrainingArguments' attributes.

    Raises:
        ValueError: the optimizer is not named, or not known.
        TypeError: the source is none of these.
    """
    if isinstance(source, Mapping):
        if isinstance(source.get("optimizer"), Mapping):
            return _lightning(source, optimizer)
        if "learning_rate" in source:
            return _arguments(dict(source), optimizer)
        return _plain(source, optimizer)
    if hasattr(source, "learning_rate") and hasattr(source, "adam_beta1"):
        names = [*_ARGUMENTS, "optim", "per_device_train_batch_size", "world_size"]
        names += ["gradient_accumulation_steps"]
        values = {name: getattr(source, name) for name in names if hasattr(source, name)}
        return _arguments(values, optimizer)
    raise TypeError(
        "optimizer_or_dict must be an optimizer of torch.optim, a dictionary of hyperparameters, "
        f"TrainingArguments or a Lightning configuration, got {type(source).__name__}"
    )


def _plain(source: Mapping[str, Any], optimizer: str | None) -> Config:
    hyper = {name: value for name, value in source.items() if name != "optimizer"}
    named = optimizer or source.get("optimizer")
    if not isinstance(named, str):
        raise ValueError(
            "optimizer must name the update rule, such as optimizer='adamw'; "
            f"there are {', '.join(_FAMILY)}"
        )
    kept = {"optimizer": source["optimizer"]} if "optimizer" in source else {}
    return Config("", family(named), hyper, lambda new: kept | dict(new))


def _arguments(source: dict[str, Any], optimizer: str | None) -> Config:
    named = optimizer or _text(source.get("optim", "adamw"))
    rule = family(named)
    values = _ARGUMENT_DEFAULTS | source
    hyper: dict[str, Any] = {}
    for name, ours in _ARGUMENTS.items():
        value = values.get(name)
        if value is None or (ours in ("steps", "warmup_steps") and value <= 0):
            continue  # -1 and 0 stand for "not given" there
        if ours == "warmup_steps" and value < 1:
            continue  # a share of the run
        if ours in ("beta1", "beta2", "eps") and rule in ("sgd", "momentum"):
            continue
        if ours in ("beta1", "beta2", "eps") and rule == "rmsprop":
            continue  # its alpha and eps come from optim_args, not from Adam's fields
        hyper[ours] = int(value) if ours in ("steps", "warmup_steps") else value
    spelled = {ours: name for name, ours in _ARGUMENTS.items()}
    notes: tuple[str, ...] = ()
    if rule == "rmsprop":
        del spelled["eps"]
        notes = ("alpha and eps of RMSprop belong into optim_args",)

    def written(new: Mapping[str, Any]) -> dict[str, Any]:
        changed = dict(new)
        if "betas" in changed:
            changed["beta1"], changed["beta2"] = changed.pop("betas")
        return {spelled.get(name, name): value for name, value in changed.items()}

    batch = None
    if "per_device_train_batch_size" in source:
        batch = (
            int(source["per_device_train_batch_size"])
            * int(source.get("gradient_accumulation_steps", 1))
            * max(1, int(source.get("world_size", 1)))
        )
    return Config("", rule, hyper, written, batch, "world_size" in source, notes)


def _text(value: Any) -> str:
    """The value of an enumeration, as TrainingArguments keeps `optim`, or the text itself."""
    return str(getattr(value, "value", value))


def _lightning(source: Mapping[str, Any], optimizer: str | None) -> Config:
    part = source["optimizer"]
    if "class_path" not in part:
        raise ValueError("a Lightning configuration names its optimizer by optimizer.class_path")
    rule = family(optimizer or str(part["class_path"]))
    arguments = dict(part.get("init_args") or {})
    if rule == "adam" and arguments.get("decoupled_weight_decay"):
        rule = "adamw"
    known = set(_READS[rule])
    hyper = {name: value for name, value in arguments.items() if name in known}
    if "betas" in hyper:
        hyper["betas"] = tuple(hyper["betas"])
    trainer = source.get("trainer") or {}
    if (trainer.get("max_steps") or 0) > 0:
        hyper["steps"] = trainer["max_steps"]
    notes = []
    if rule == "rmsprop" and arguments.get("momentum"):
        notes.append(_RMSPROP_MOMENTUM)
    if source.get("lr_scheduler"):
        notes.append(
            "lr_scheduler counts epochs unless its interval is 'step'; counts of steps there go "
            "down by the same factor, and are not changed here"
        )

    def written(new: Mapping[str, Any]) -> dict[str, Any]:
        result = copy.deepcopy(dict(source))
        changed = {name: value for name, value in new.items() if name != "steps"}
        if "betas" in changed:
            changed["betas"] = list(changed["betas"])
        result["optimizer"]["init_args"] = arguments | changed
        if "steps" in new:
            result["trainer"]["max_steps"] = new["steps"]
        return result

    data = source.get("data") or {}
    size = (data.get("init_args") or data).get("batch_size")
    batch = None
    devices = _devices(trainer.get("devices"))
    if isinstance(size, int):
        batch = size * int(trainer.get("accumulate_grad_batches", 1) or 1)
        batch *= (devices or 1) * int(trainer.get("num_nodes", 1) or 1)
        if devices is None:
            notes.append("trainer.devices does not say how many: from_batch is that of one device")
    return Config("", rule, hyper, written, batch, devices is not None, tuple(notes))


def _devices(value: Any) -> int | None:
    """How many devices Lightning's `devices` names; None where that is left to the machine."""
    if isinstance(value, str) and value.replace(",", "").isdigit():
        value = [word for word in value.split(",") if word] if "," in value else int(value)
    if isinstance(value, list | tuple):
        return len(value)
    return value if isinstance(value, int) and value > 0 else None


# ---- optimizers that are running


def read_groups(optimizer: Any) -> list[Config]:
    """One configuration for each parameter group of an optimizer.

    Raises:
        TypeError: it is of a class that no scaling rule is known for.
    """
    return [
        _group(optimizer, group, f"group {index}: " if len(optimizer.param_groups) > 1 else "")
        for index, group in enumerate(optimizer.param_groups)
    ]


def _group(optimizer: Any, group: MutableMapping[str, Any], label: str) -> Config:
    rule = _rule_of(optimizer, group)
    notes = []
    if rule == "rmsprop" and group.get("momentum"):
        notes.append(_RMSPROP_MOMENTUM)
    if "initial_lr" in group:
        notes.append("a scheduler made before now keeps its own base_lrs and counts: make it anew")
    reads = _READS[rule]
    if "alpha" in group:
        reads = tuple(name for name in reads if name != "beta2")
    hyper = {name: number(group[name]) for name in reads if name in group}
    base, rate = number(group.get("initial_lr", 0.0)), hyper["lr"]
    if rate == 0 and base > 0:
        hyper["lr"] = base  # a warm-up that starts from zero: the rule moves the rate it grows to
        notes.append("the present lr is 0, of a schedule; the rule is that of its base rate")

    def written(new: Mapping[str, Any]) -> dict[str, Any]:
        changed = dict(new)
        if base > 0:
            changed["initial_lr"] = base * changed["lr"] / hyper["lr"]
        if rate == 0:
            changed["lr"] = 0.0
        return changed

    return Config(label, rule, hyper, written, notes=tuple(notes))


def number(value: Any) -> Any:
    """A hyperparameter of a group as plain floats; rates may be kept in tensors."""
    if isinstance(value, tuple | list):
        return tuple(float(one) for one in value)
    return float(value)


def _rule_of(optimizer: Any, group: Mapping[str, Any]) -> str:
    import torch

    from undertow.train.optim import RuleOptimizer

    if isinstance(optimizer, RuleOptimizer):
        name = optimizer.rule.name
        if name not in _FAMILY:
            raise TypeError(
                f"no scaling rule is known for the update rule {name}: there are "
                f"{', '.join(_FAMILY)}, bare. Rescale the hyperparameters of a wrapped rule as a "
                "dictionary"
            )
    else:
        plain = (torch.optim.SGD, torch.optim.RMSprop, torch.optim.AdamW, torch.optim.Adam)
        name = next((kind.__name__ for kind in plain if isinstance(optimizer, kind)), "")
    if name == "Adam" and group.get("decoupled_weight_decay"):
        name = "AdamW"
    if name.lower() not in _FAMILY:
        raise TypeError(
            f"optimizer {type(optimizer).__name__}: no scaling rule is known for it; there are SGD,"
            " RMSprop, Adam and AdamW of torch.optim and train.optim"
        )
    return name.lower()


def rescale_state(optimizer: Any, group: Mapping[str, Any], factor: float, betas: Any) -> list[str]:
    """Bring an optimizer's running averages to the new batch size; says what was changed.

    Mean squares hold Sigma / batch, so they are divided by k; centred RMSprop subtracts the square
    of the mean gradient, which has none of k, so there the rest alone is divided. The step t
    becomes the one at which the new average is as far past its zero start, 1 - beta2'^t' = 1 -
    beta2^t.
    """
    squares = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "square")
    old, new = betas
    clock = math.log(old) / math.log(new) if 0 < old < 1 and 0 < new < 1 else 1 / factor
    touched: dict[str, str] = {}
    for param in group["params"]:
        state = optimizer.state.get(param, {})
        for name in squares:
            if name in state:
                mean = state.get("grad_avg")
                kept = 0.0 if mean is None else mean.square() * (1 - 1 / factor)
                state[name].div_(factor).add_(kept)
                touched[name] = f"state {name} / k: it holds the noise, Sigma / batch"
        if "step" in state and any(name in state for name in squares):
            step = state["step"]
            if hasattr(step, "mul_") and step.is_floating_point():
                step.mul_(clock)  # in place, as captured graphs read it
            else:
                state["step"] = step * clock
            touched["step"] = "state step x ln(beta2) / ln(beta2'): as far past its start"
    return list(touched.values())
