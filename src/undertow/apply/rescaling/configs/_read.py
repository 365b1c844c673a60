"""What a configuration says: its optimizer, its hyperparameters and its batch, or why it does not.

A program's own defaults stand in for what is not written down; an optimizer does only where its
maker documents the one that is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from undertow.apply.rescaling import _names, _units
from undertow.apply.rescaling.configs import _batch, _keys
from undertow.apply.rescaling.configs._batch import Batch
from undertow.apply.rescaling.configs._job import Job
from undertow.apply.rescaling.configs._roles import Entry, Roles, roles, shown
from undertow.apply.rescaling.configs._tree import is_config, leaves

_PER_STEP_DECAY = 1e-5  # Composer's default
_AVERAGES = ("betas", "beta1", "beta2")
_HYPER = frozenset({*_keys.HYPER.values(), *_keys.STEPS.values()})


def read(source: Any, optimizer: str | None = None) -> Job:
    """The hyperparameters, the batch and the counts that a configuration holds.

    Args:
        source: a dictionary, a dataclass or a namespace, of any maker; see `_keys`.
        optimizer: the optimizer's name, where the configuration does not say it.

    Raises:
        ValueError: the optimizer or its rate is not named or not known, a key contradicts another,
            or holds no number.
        TypeError: the source holds no values under names.
    """
    if not is_config(source):
        raise TypeError(
            "optimizer_or_dict must be an optimizer of torch.optim, a dictionary of "
            "hyperparameters, TrainingArguments or a Lightning configuration, or another dataclass "
            f"or namespace, got {type(source).__name__}"
        )
    found = roles(leaves(source))
    _refuse_own_scaling(source)
    family, name, notes = _family(found, optimizer)
    hyper = _hyper(found, family, source)
    if family == "rmsprop" and any(entry.value for entry in found.of("momentum")):
        notes.append("momentum of RMSprop is outside the square-root rule, and stays")
    batch = _batch.read_batch(found)
    _lr_base(found, batch, hyper, name, source)
    if "lr" not in hyper:
        raise ValueError(_no_rate(found))
    if _names.decoupled(name):
        hyper.setdefault("decoupled_weight_decay", True)
    per_step = name.lower().startswith("decoupled")
    if per_step:
        hyper.setdefault("weight_decay", _PER_STEP_DECAY)
        notes.append(f"{name} decays by weight_decay a step, and not by lr x weight_decay")
        hyper["weight_decay"] = hyper["weight_decay"] / hyper["lr"]
    if found.left:
        notes.append(f"{', '.join(found.left)}: left to the program that reads it, and not moved")
    return Job(source, found, family, hyper, batch, per_step, tuple(notes))


def _family(found: Roles, optimizer: str | None) -> tuple[str, str, list[str]]:
    """The family, the name that says it, and what was taken for granted."""
    named = [(str(e.leaf), _names.text(e.value)) for e in found.of("name")]
    typed = found.of("type")
    if typed:
        deepest = max(len(entry.leaf.path) for entry in typed)
        named += [(str(e.leaf), _names.text(e.value)) for e in typed if len(e.leaf.path) == deepest]
    if optimizer is not None:
        named.insert(0, ("optimizer", optimizer))
    notes: list[str] = []
    if not named and found.vocabulary.optimizer is not None:
        named = [("", found.vocabulary.optimizer)]
        notes.append(
            f"the optimizer is not named: {found.vocabulary.optimizer}, as {found.vocabulary.name} "
            "has it"
        )
    if not named:
        raise ValueError(
            "optimizer must name the update rule, such as optimizer='adamw', as the configuration "
            f"does not; there are {', '.join(_names.KNOWN)}"
        )
    families = [_of(found, name) for _, name in named]
    for (key, name), family in zip(named[1:], families[1:], strict=True):
        if {family, families[0]} not in ({family}, {"sgd", "momentum"}):
            raise ValueError(
                f"{named[0][0]} = {named[0][1]!r} and {key} = {name!r} contradict each other: they "
                "are two optimizers"
            )
    return families[0], named[-1][1].rpartition(".")[2], notes


def _of(found: Roles, name: str) -> str:
    family = _names.family(name)
    if family != "adam":
        return family
    switched = [e.value for e in found.of("decoupled_weight_decay")]
    if switched:
        return "adamw" if any(switched) else "adam"
    return "adamw" if found.vocabulary.decoupled else "adam"


def _hyper(found: Roles, family: str, source: Any) -> dict[str, Any]:
    """The hyperparameters that the rule reads, at the program's defaults where not given."""
    reads = _names.reads(family)
    hyper: dict[str, Any] = {}
    foreign = []
    every = found.vocabulary.holds_all or not isinstance(source, Mapping)
    for role in {entry.role: None for entry in found.entries}:
        known = role in _HYPER and not all(
            _keys.is_adams(e.leaf.name, family) for e in found.of(role)
        )
        if known and role in reads:
            hyper[role] = found.one(role)
        elif known:
            foreign += found.of(role)
    if "betas" in hyper and {"beta1", "beta2"} & set(hyper):
        pair = dict(zip(("beta1", "beta2"), hyper["betas"], strict=False))
        for name in {"beta1", "beta2"} & set(hyper):
            if hyper.pop(name) != pair.get(name):
                raise ValueError(f"betas and {name} contradict each other; give one of them")
    for entry in foreign:
        if not every and entry.value and _contradicts(entry, family):
            raise ValueError(
                f"{entry.leaf} = {shown(entry.value)} contradicts the optimizer: {family} reads "
                f"{', '.join(name for name in reads if name not in _keys.STEPS.values())}"
            )
    for role, value in found.vocabulary.defaults.items():
        adams = _keys.is_adams((found.vocabulary.adds or {}).get(role, role), family)
        if role in reads and not adams and not (role in _AVERAGES and "betas" in hyper):
            hyper.setdefault(role, value)
    return hyper


def _contradicts(entry: Entry, family: str) -> bool:
    """Whether a key is of another optimizer, and no key of something else under that name."""
    if entry.role == "momentum":
        return family not in ("rmsprop", "unknown", "adafactor")
    return entry.role in _AVERAGES and family in ("sgd", "momentum")


def _lr_base(found: Roles, batch: Batch, hyper: dict[str, Any], name: str, source: Any) -> None:
    """The rate of timm: lr_base x batch / lr_base_size, rooted for names with Adam or LAMB.

    Written back as `lr`, which goes before lr_base there.
    """
    bases = found.of("lr_base")
    if not bases or "lr" in hyper:
        return
    if not batch.counted or batch.size is None:
        raise ValueError(
            "lr_base: timm makes the rate of it and of the batch over all devices; say world_size, "
            "or give lr as the run prints it"
        )
    beside = {leaf.name: leaf.value for leaf in leaves(source)}
    rooted = any(part in name.lower() for part in ("ada", "lamb"))
    scale = beside.get("lr_base_scale") or ("sqrt" if rooted else "linear")
    share = batch.size / _units.number("lr_base_size", beside.get("lr_base_size") or 256)
    hyper["lr"] = bases[0].value * (share**0.5 if scale == "sqrt" else share)


def _no_rate(found: Roles) -> str:
    left = [name for name in found.left if name.rpartition(".")[2] in _keys.HYPER]
    if left:
        return f"hyper must hold lr: {left[0]} is left to the program; rescale its arguments"
    keys = ", ".join((*found.unread, *(str(entry.leaf) for entry in found.entries))[:8])
    return f"hyper must hold lr (or learning_rate), got {keys or 'nothing'}"


def _refuse_own_scaling(source: Any) -> None:
    """Some programs scale the rate by the batch themselves if they are told; twice is wrong."""
    for leaf in leaves(source):
        switch = leaf.parts[-2] if leaf.parts[-2:][1:] == ("enable",) else leaf.name
        if switch in _keys.OWN_SCALING and leaf.value is True:
            raise ValueError(
                f"{leaf} is on: the program would scale the learning rate again; switch it off"
            )
