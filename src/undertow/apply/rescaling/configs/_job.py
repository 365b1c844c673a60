"""A configuration as the rules read it, and the same configuration with what they gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from undertow import predict
from undertow.apply.rescaling import _names, _units
from undertow.apply.rescaling._units import Quantity, as_given
from undertow.apply.rescaling.configs import _batch, _keys
from undertow.apply.rescaling.configs._batch import Batch, Plan
from undertow.apply.rescaling.configs._keys import PLAIN
from undertow.apply.rescaling.configs._roles import Entry, Roles, roles, shown
from undertow.apply.rescaling.configs._tree import Leaf, Path, is_config, leaves, written
from undertow.predict import Change

_SWITCHES = ("nesterov", "decoupled_weight_decay")
_AVERAGES = ("betas", "beta1", "beta2")


@dataclass(frozen=True, eq=False)
class Job:
    """A configuration and what was read in it.

    Attributes:
        source: as it was given.
        roles: its values with what they mean.
        optimizer: the family of its optimizer.
        hyper: hyperparameters, as `predict.rescale` reads them.
        batch: samples a step.
        per_step: whether its decay is one of a step and not of lr x weight_decay.
        notes: what was taken for granted, or is not moved.
    """

    source: Any
    roles: Roles
    optimizer: str
    hyper: Mapping[str, Any]
    batch: Batch
    per_step: bool = False
    notes: tuple[str, ...] = ()

    @property
    def read(self) -> tuple[str, ...]:
        """The keys that were read."""
        return tuple(str(entry.leaf) for entry in self.roles.entries)

    @property
    def unread(self) -> tuple[str, ...]:
        """The keys that were not."""
        return self.roles.unread

    def plan(
        self,
        *,
        from_batch: Quantity | None,
        to_batch: Quantity,
        from_workers: int,
        to_workers: int | None,
    ) -> Plan:
        """From which batch to which; see `_batch.plan`."""
        return _batch.plan(
            self.roles,
            self.batch,
            from_batch=from_batch,
            to_batch=to_batch,
            from_workers=from_workers,
            to_workers=to_workers,
        )

    def moved(
        self, result: predict.Rescaled, plan: Plan
    ) -> tuple[Any, tuple[Change, ...], tuple[str, ...]]:
        """The configuration at the new batch, what else was changed for it, and notes."""
        if result.factor == 1:
            return written(self.source, plan.changes), plan.said, plan.notes
        new: dict[str, Any] = dict(result.hyper)
        old: dict[str, Any] = {change.name: change.old for change in result.changes}
        changes, said, notes = dict(plan.changes), list(plan.said), list(plan.notes)
        if new["lr"] is None:
            new = {name: value for name, value in new.items() if value is not None}
            notes.append(
                "no rule is known for the rate of this optimizer: it stays, and its weight decay; "
                "lr' weight_decay' = k lr weight_decay is what keeps the decay over a run"
            )
        ratio = float(new.get("lr", old["lr"])) / float(old["lr"])
        if self.per_step and "weight_decay" in new:
            new["weight_decay"] = new["weight_decay"] * new["lr"]
        for role, value in new.items():
            entries = self.roles.of(role)
            for entry in entries:
                changes[entry.leaf.path] = as_given(entry.leaf.value, value)
            if not entries and role not in _SWITCHES:
                notes += self._add(role, value, value != old.get(role), changes)
        for entry, change in self._others(ratio, result.factor):
            changes[entry.leaf.path] = as_given(entry.leaf.value, change.new)
            said.append(change)
        notes += self._cadences(result.factor)
        return written(self.source, changes), tuple(said), tuple(notes)

    def _others(self, ratio: float, factor: float) -> list[tuple[Entry, Change]]:
        """Rates, counts and averages beside those of the rule."""
        found = []
        ticks = self._ticks()
        for entry in self.roles.entries:
            name, old = str(entry.leaf), entry.value
            if entry.role == "rate" and old:
                change = Change(
                    name,
                    old,
                    old * ratio,
                    f"{entry.leaf.name}' = {entry.leaf.name} x lr' / lr",
                    "moves as the learning rate does",
                )
            elif entry.role == "count" or (entry.role == "clock" and ticks(entry)):
                new = max(round(old / factor), 1) if old else 0
                change = Change(
                    name,
                    old,
                    new,
                    f"{entry.leaf.name}' = {entry.leaf.name} / k",
                    "the same samples are seen",
                )
            elif entry.role == "ema" and 0 < old < 1:
                change = Change(
                    name, old, old**factor, "d' = d^k", "averages over the same samples"
                )
            else:
                continue
            found.append((entry, change))
        return found

    def _ticks(self) -> Any:
        """Whether a count in a schedule is one of steps: by what stands beside it."""
        run = self.roles.of("steps")
        steps = run[0].value if run else None
        whole = self.roles.vocabulary.ticks

        def of_steps(entry: Entry) -> bool:
            beside = {
                leaf.name: leaf.value
                for leaf in leaves(self.source)
                if leaf.path[:-1] in (entry.leaf.path[:-1], entry.leaf.path[:-2])
            }
            if _units.duration(entry.leaf.value):
                return True
            if beside.get("interval") == "step" or beside.get("by_epoch") is False:
                return True
            return whole or (steps is not None and entry.value == steps)

        return of_steps

    def _cadences(self, factor: float) -> list[str]:
        notes = []
        cadences = [entry for entry in self.roles.of("interval") if entry.value]
        if cadences:
            said = ", ".join(
                f"{entry.leaf} = {entry.value} ({max(round(entry.value / factor), 1)} for as many "
                "samples)"
                for entry in cadences[:4]
            )
            notes.append(f"cadences count steps and stay: {said}")
        ticks = self._ticks()
        clocks = [str(entry.leaf) for entry in self.roles.of("clock") if not ticks(entry)]
        if clocks:
            notes.append(
                f"{', '.join(clocks)} in the schedule may count epochs, and stays; where it counts "
                "steps, divide it by k (interval: step says so)"
            )
        clips = [str(entry.leaf) for entry in self.roles.of("clip") if entry.value]
        if clips:
            notes.append(
                f"{', '.join(clips)} stays: where noise is most of a gradient, its norm changes by "
                "1 / sqrt(k)"
            )
        return notes

    def _place(self) -> Leaf:
        """A hyperparameter beside which others belong: the optimizer's own, if it has a section."""
        own = [
            entry for entry in self.roles.of(*_keys.HYPER.values()) if entry.section == "optimizer"
        ]
        return (own or self.roles.of("lr", "lr_base"))[0].leaf

    def _add(self, role: str, value: Any, moved: bool, changes: dict[Path, Any]) -> list[str]:
        """A hyperparameter that stood at its default, under its name there; or a note."""
        vocabulary = self.roles.vocabulary
        key = role if vocabulary.adds is None else vocabulary.adds.get(role)
        place = self._place().path[:-1]
        node = self.source
        for step in place:
            node = node[step] if isinstance(node, Mapping | list) else getattr(node, step)
        if not moved and not (vocabulary is PLAIN and not place and role != "lr"):
            return []
        if key is not None and (isinstance(node, Mapping) or hasattr(node, key)):
            changes[(*place, key)] = list(value) if isinstance(value, tuple) and place else value
            return []
        return [
            f"{role}' = {shown(value)} has no key in {vocabulary.name}: set it where the optimizer "
            "is made"
        ]


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
    per_step = name.lower().startswith("decoupled") and "weight_decay" in hyper
    if per_step:
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
    modes = [leaf for leaf in found.unread if leaf.endswith("adam_w_mode")]
    if found.vocabulary.decoupled and not modes:
        return "adamw"
    return "adam"


def _hyper(found: Roles, family: str, source: Any) -> dict[str, Any]:
    """The hyperparameters that the rule reads, at the program's defaults where not given."""
    reads = _names.reads(family)
    hyper: dict[str, Any] = {}
    foreign = []
    for role in {entry.role: None for entry in found.entries}:
        known = role in set(_keys.HYPER.values()) | set(_keys.STEPS.values())
        if known and role in reads:
            hyper[role] = found.one(role)
        elif known:
            foreign += found.of(role)
    if "betas" in hyper and {"beta1", "beta2"} & set(hyper):
        pair = dict(zip(("beta1", "beta2"), hyper["betas"], strict=False))
        for name in {"beta1", "beta2"} & set(hyper):
            if hyper.pop(name) != pair.get(name):
                raise ValueError(f"betas and {name} contradict each other; give one of them")
    every = found.vocabulary.holds_all or not isinstance(source, Mapping)
    for entry in foreign:
        if not every and entry.value and _contradicts(entry, family):
            raise ValueError(
                f"{entry.leaf} = {shown(entry.value)} contradicts the optimizer: {family} reads "
                f"{', '.join(name for name in reads if name not in _keys.STEPS.values())}"
            )
    for role, value in found.vocabulary.defaults.items():
        if role in reads and not (role in _AVERAGES and "betas" in hyper):
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
    """MMEngine scales the rate by the batch itself where it is told so; twice would be wrong."""
    for leaf in leaves(source):
        if leaf.parts[-2:] == ("auto_scale_lr", "enable") and leaf.value is True:
            raise ValueError(
                f"{leaf} is on: the program would scale the learning rate again; switch it off"
            )
