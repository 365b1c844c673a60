"""A configuration as the rules read it, and the same configuration with what they gave."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from undertow import predict
from undertow.apply.rescaling import _names, _units
from undertow.apply.rescaling._units import Quantity, as_given
from undertow.apply.rescaling.configs import _keys, _plan
from undertow.apply.rescaling.configs._batch import Batch
from undertow.apply.rescaling.configs._keys import PLAIN
from undertow.apply.rescaling.configs._plan import Plan
from undertow.apply.rescaling.configs._roles import Entry, Roles, shown
from undertow.apply.rescaling.configs._tree import Leaf, Path, leaves, written
from undertow.predict import Change

_SWITCHES = ("nesterov", "decoupled_weight_decay")


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
        return tuple(str(entry.leaf) for entry in self.roles.entries if not self._of_another(entry))

    @property
    def unread(self) -> tuple[str, ...]:
        """The keys that were not, those of optimizers that are not in use included."""
        others = [str(entry.leaf) for entry in self.roles.entries if self._of_another(entry)]
        return (*self.roles.unread, *others)

    def _of_another(self, entry: Entry) -> bool:
        return entry.role in _keys.HYPER.values() and entry.role not in self.hyper

    def plan(
        self,
        *,
        from_batch: Quantity | None,
        to_batch: Quantity,
        from_workers: int,
        to_workers: int | None,
    ) -> Plan:
        """From which batch to which; see `_plan.plan`."""
        return _plan.plan(
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
            if entry.role == "rate" and old and not self._is_foreign(entry):
                change = Change(
                    name,
                    old,
                    old * ratio,
                    f"{entry.leaf.name}' = {entry.leaf.name} x lr' / lr",
                    "moves as the learning rate does",
                )
            elif entry.role == "count" or (entry.role == "clock" and ticks(entry)):
                new = _fewer(old, factor)
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

    def _is_foreign(self, entry: Entry) -> bool:
        """Whether a rate is that of another optimizer by its name: `adam_lr` beside Muon's."""
        family = _names.lookup(entry.leaf.name.partition("_")[0])
        return family not in (None, self.optimizer, "unknown")

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
        cadences = [entry for entry in self.roles.of("interval") if entry.value and entry.value > 1]
        if cadences:
            said = ", ".join(
                f"{entry.leaf} = {entry.value} ({_fewer(entry.value, factor)} for as many samples)"
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
        foreign = [str(e.leaf) for e in self.roles.of("rate") if self._is_foreign(e)]
        if foreign:
            notes.append(
                f"{', '.join(foreign)} is of another optimizer, and stays: rescale it alone"
            )
        akin = [name for name in self.roles.unread if _is_akin(name)]
        if akin:
            notes.append(
                f"{', '.join(akin[:8])}: not read; where it is a rate or a decay of this "
                "optimizer, move it as lr or weight_decay moves"
            )
        epochs = [str(entry.leaf) for entry in self.roles.of("epoch clock")]
        if epochs:
            notes.append(f"{', '.join(epochs)} is taken to count epochs, and stays")
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
        beside = self._place()
        wrapped = beside.path[-1] == "value" and beside.name != "value"
        place = beside.path[: -2 if wrapped else -1]
        node = self.source
        for step in place:
            node = node[step] if isinstance(node, Mapping | list) else getattr(node, step)
        if not moved and not (vocabulary is PLAIN and not place and role != "lr"):
            return []
        if key is not None and _keys.is_adams(key, self.optimizer):
            key = None
        if key is not None and (isinstance(node, Mapping) or hasattr(node, key)):
            written = list(value) if isinstance(value, tuple) and place else value
            path = (*place, _beside(beside.path[-1], key))
            changes[path] = {"value": written} if wrapped else written
            return []
        return [
            f"{role}' = {shown(value)} has no key in {vocabulary.name}: set it where the optimizer "
            "is made"
        ]


def _is_akin(name: str) -> bool:
    """Whether a key that is not read may say a rate or a decay all the same, by its name."""
    last = re.split(r"[./]", name.lower())[-1].replace("-", "_")
    words = set(last.split("_"))
    named = "learning_rate" in last or "weight_decay" in last or words & {"lr", "wd", "blr", "lr0"}
    other = {"gamma", "factor", "steps", "step", "size", "epochs", "style", "type", "name", "mult"}
    return bool(named) and not words & (other | {"use", "ratio", "scheduler", "patience", "policy"})


def _fewer(count: Any, factor: float) -> Any:
    if isinstance(count, tuple):
        return tuple(_fewer(one, factor) for one in count)
    return max(round(count / factor), 1) if count else 0


def _beside(present: Any, key: str) -> str:
    """The key in the manner of one beside it: `optimizer.eps` beside `optimizer.lr`."""
    for mark in "./":
        head, found, _ = str(present).rpartition(mark)
        if found:
            return f"{head}{mark}{key}"
    return key
