"""Optimizers under all their spellings: one table from a name to the family whose rule it follows.

Names of PyTorch, Transformers' `optim`, timm's `--opt`, bitsandbytes, DeepSpeed, apex, Composer,
schedule-free and others; what is only a way to run one (fused, paged, 8 bits) is taken off first.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from enum import Enum
from functools import partial
from typing import Any

from undertow import predict

# What says how an optimizer is run or stored, and not what it does.
_MANNERS = (
    *("fused", "foreach", "paged", "torch", "hf", "bnb", "apex", "cpu", "deepspeed", "xla", "npu"),
    *(
        "zero",
        "one",
        "onebit",
        "zeroone",
        "bit",
        "multi",
        "tensor",
        "distributed",
        "mp",
        "capturable",
    ),
    *("4bit", "8bit", "16bit", "32bit", "fp8", "layerwise", "blockwise", "anyprecision", "dion"),
)
_LONGEST = tuple(sorted(_MANNERS, key=len, reverse=True))
_FAMILIES = {
    "sgd": (
        *("sgd", "sgdm", "sgdw", "nag", "nesterov", "nesterovsgd", "sgdnesterov", "sgdmomentum"),
        *("decoupledsgdw", "momentumsgd"),
    ),
    "momentum": ("momentum",),
    "rmsprop": ("rmsprop", "rmsproptf"),
    "adam": ("adam", "sparseadam"),
    "adamw": ("adamw", "decoupledadamw", "adamweightdecay"),
    "nadam": ("nadam", "nadamw"),
    "radam": ("radam", "radamw"),
    "adamax": ("adamax",),
    "adafactor": ("adafactor", "adafactorbv"),
    "lamb": ("lamb", "lambc"),
    "lion": ("lion", "lionw", "decoupledlionw"),
    "muon": ("muon",),
    "sign": ("sign", "signsgd", "signum"),
    "schedulefree-sgd": ("schedulefreesgd", "sgdschedulefree"),
    "schedulefree-adamw": ("schedulefreeadamw", "adamwschedulefree"),
    # Their state, their metric or their own clock stands between noise and rate.
    "unknown": (
        *("adagrad", "adagradw", "adadelta", "asgd", "rprop", "lbfgs", "lars", "larc", "nlars"),
        *("sophia", "sophiag", "shampoo", "soap", "kron", "psgd", "prodigy", "adan", "adabelief"),
        *("adopt", "adoptw", "yogi", "novograd", "nvnovograd", "ademamix", "came", "apollo"),
        *("dadaptadam", "dadaptadamw", "dadaptation", "adahessian", "madgrad", "madgradw", "mars"),
        *("lomo", "adalomo", "grokadamw", "stableadamw", "galoreadamw", "galoreadafactor"),
        *("apolloadamw", "qgaloreadamw", "laprop", "adamp", "adamuon", "schedulefreeradam"),
        *("radamschedulefree", "sgdp", "sgdc", "tiger", "lookahead", "sam", "ranger"),
    ),
}
_FAMILY = {name: family for family, names in _FAMILIES.items() for name in names}
KNOWN = tuple(family for family in _FAMILIES if family != "unknown")

# Of timm, Adam with its decay taken off the weights.
_DECOUPLED = frozenset({"nadamw", "radamw"})


def reads(family: str) -> tuple[str, ...]:
    """The hyperparameters that the rule of a family reads."""
    return predict.FAMILIES[family].reads


def text(value: Any) -> str:
    """The name in a text, an enumeration (TrainingArguments' `optim`), a class or a partial.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(value, partial):
        value = value.func
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    plain = value.value if isinstance(value, Enum) else getattr(value, "__name__", value)
    if not isinstance(plain, str):
        raise TypeError(f"optimizer must be a name or a class, got {type(value).__name__}")
    return plain


def family(name: str) -> str:
    """Which family a named optimizer belongs to; `unknown` where no rule is known for its rate.

    Raises:
        ValueError: there is no optimizer of that name.
    """
    known = lookup(name)
    if known is None:
        plain = _plain(name)
        close = get_close_matches(plain, _FAMILY)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(KNOWN)}"
        raise ValueError(f"optimizer {name!r}: no scaling rule is known for it; {hint}")
    return known


def lookup(name: str) -> str | None:
    """The same, or None where there is no optimizer of that name."""
    last = name.rpartition(".")[2] if "/" not in name else name.rpartition("/")[2]
    whole = re.sub(r"[^a-z0-9]", "", last.lower())
    if whole in ("fusedadam", "cpuadam", "deepspeedcpuadam", "zerooneadam"):
        return "adamw"  # of apex and DeepSpeed: their decay is decoupled by default
    return _FAMILY.get(whole) or _FAMILY.get(_plain(name))


def decoupled(name: str) -> bool:
    """Whether a name of a family whose decay is coupled says that it is decoupled here."""
    return _plain(name) in _DECOUPLED


def _plain(name: str) -> str:
    """The name without modules, manners and separators: `paged_adamw_8bit` is `adamw`."""
    last = name.rpartition(".")[2]
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", last).lower()
    parts = [part for part in re.split(r"[^a-z0-9]+", words) if part and part not in _MANNERS]
    plain = "".join(parts)
    bare = plain
    while bare not in _FAMILY:  # FusedAdam, bnbadamw8bit: written without a break
        shorter = next(filter(bare.__ne__, map(partial(_without, bare), _LONGEST)), bare)
        if shorter == bare:
            return plain
        bare = shorter
    return bare


def _without(name: str, manner: str) -> str:
    return name.removeprefix(manner).removesuffix(manner)
