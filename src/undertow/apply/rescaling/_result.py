"""What a move to another batch size gives: each change with its equation, and the whole applied.

A configuration comes back in the type in which it was given; an optimizer is changed by `apply`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undertow import lab, predict
from undertow.apply._printed import Printed
from undertow.apply.rescaling import _running, _schedulers
from undertow.apply.rescaling._law import Law
from undertow.apply.rescaling._running import Running
from undertow.apply.rescaling._schedulers import Given
from undertow.apply.rescaling._side_by_side import rule_sections, rules_data
from undertow.predict import Change

if TYPE_CHECKING:
    from undertow.apply.rescaling._verify import Verification


@dataclass(frozen=True, eq=False)
class Live:
    """The optimizer that a move was read from, and what will be set in it.

    Attributes:
        source: as it was given.
        running: as it was read.
        laws: the rule, for each group.
        named: the optimizer's name, where it was given.
        schedulers: those that were given.
        alone: whether it was said that there is no scheduler.
    """

    source: Any
    running: Running
    laws: tuple[Law, ...]
    named: str | None = None
    schedulers: tuple[Given, ...] = ()
    alone: bool = False


@dataclass(frozen=True, eq=False)
class Rescaled(Printed):
    """Hyperparameters for another batch size, in the form in which they were given.

    Attributes:
        hyper: the configuration at the new batch, of the type that was given: batch, accumulation
            and counts of steps included; of an optimizer, one dictionary for each parameter group.
        groups: the rule's result for each parameter group (one where there are no groups), with
            every change, its equation and its reason.
        from_batch: samples a step over all workers, before.
        to_batch: and after.
        verification: whether the rule holds for this job, where an objective was given.
        notes: what the rules do not cover.
        read: the keys of a configuration that were read.
        unread: those that were not, and stay as they are.
        also: what changes beside the hyperparameters: the batch, other rates and counts.
        scheduler: what was given as `scheduler`, which `apply` moves too.
    """

    hyper: Any
    groups: tuple[predict.Rescaled, ...]
    labels: tuple[str, ...]
    from_batch: int
    to_batch: int
    verification: Verification | None = None
    notes: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    also: tuple[Change, ...] = ()
    scheduler: Any = None
    _live: Live | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Where the noise scale or the sharpness says that the runs will part."""
        return tuple(dict.fromkeys(text for group in self.groups for text in group.warnings))

    def apply(self) -> list[str]:
        """Set the new values in the optimizer that was given, its state and schedulers included.

        Mean squares of gradients are divided by k, as they hold Sigma / batch, and Adam's step
        count moves with its averages. A scheduler goes on at its place, at the new batch's pace;
        its state, saved, goes into one that was moved in the same way, and into no other.
        Returns a line for each kind of state that was changed.

        Raises:
            TypeError: it was no optimizer that was given.
            ValueError: the optimizer is no longer as it was read, as this was applied already; a
                scheduler moves it and was not given; or no rule is known for its rate. Then nothing
                has been changed.
        """
        live = self._live
        if live is None:
            raise TypeError("apply needs an optimizer; for a configuration use .hyper")
        groups = live.running.groups
        now = _running.read_running(
            live.source, _schedulers.peaks(live.schedulers, len(groups)) or None, live.named
        )
        if [group.hyper for group in now.groups] != [group.hyper for group in groups]:
            raise ValueError(
                "the optimizer's hyperparameters have changed since they were read, by apply or by "
                "a scheduler: call rescale again"
            )
        if now.scheduled and not (live.schedulers or live.alone):
            raise ValueError(
                "the optimizer is under a scheduler, which would bring its old rate back: give it "
                "as scheduler=; scheduler=False says that there is none any more"
            )
        if any(group.optimizer == "unknown" for group in groups):
            raise ValueError(
                f"no rule is known for the rate of {type(now.inner).__name__}: nothing is applied; "
                ".hyper has what is known, to be set by hand"
            )
        if self.from_batch == self.to_batch:
            return []
        prepared = _schedulers.prepare(live.schedulers)
        said = self._set(now, live.laws)
        pace = (self.from_batch, self.to_batch)
        said += [one.carry_out(live.laws, pace) for one in prepared]
        return list(dict.fromkeys(said))

    def _set(self, now: Running, laws: Sequence[Law]) -> list[str]:
        said: list[str] = []
        present = [group.written(new, law) for group, new, law in self._by_group(now, laws)]
        for index, group in enumerate(now.inner.param_groups):
            factor, after = self.groups[index].factor, present[index]
            betas = (_running.slowest(group), _running.slowest({**group, **after}))
            said += _running.rescale_state(now.inner, group, factor, betas)
            _running.move_averaging(group, factor, laws[index].ratio)
        for layer in now.layers:
            for index, group in enumerate(layer):
                _running.set_group(group, present[index])
        return said

    def _by_group(self, now: Running, laws: Sequence[Law]) -> Any:
        return zip(now.groups, (result.hyper for result in self.groups), laws, strict=True)

    def document(self, *, every: bool = False) -> lab.Document:
        """Each change with its equation and reason, the rules beside it, and where the rule ends.

        With `every` a terminal, too, shows each rule's source and range.
        """
        state, count = None, len(self.warnings)
        if count:
            state = lab.State(f"{count} warning{'s' if count > 1 else ''}", "unsure")
        said = () if self.verification is None else (repr(self.verification),)
        verdict = "" if self.verification is None else f"{self.verification.verdict}: "
        keys = [f"read: {', '.join(self.read)}"] if self.read else []
        if self.unread:
            keys.append(f"not read, and left as they are: {_listed(self.unread)}")
        return lab.Document(
            title=f"{verdict}Batch {self.from_batch} -> {self.to_batch} "
            f"(k = {self.groups[0].factor:.6g}), by the {self.groups[0].rule} rule",
            state=state,
            sections=(
                *(
                    lab.Section(label.rstrip(": "), (_table(group.changes),))
                    for label, group in zip(self.labels, self.groups, strict=True)
                ),
                lab.Section("And with it", (_table(self.also),) if self.also else ()),
                lab.Section("Warnings", (self.warnings,)),
                lab.Section("Notes", (self.notes,)),
                lab.Section("Keys", tuple(keys)),
                lab.Section("Tried on this job", said),
                *rule_sections(self.groups[0], self.labels[0].rstrip(": "), whole=every),
                lab.Section("It assumes that", (self.groups[0].assumptions,)),
            ),
            data=self._data(),
        )

    def __repr__(self) -> str:
        rule = self.groups[0].rule
        count = len(self.warnings)
        caution = f" {count} warning{'s' if count > 1 else ''}." if count else ""
        return (
            f"Batch {self.from_batch} -> {self.to_batch} (k = {self.groups[0].factor:.6g}), by the "
            f"{rule} rule.{caution}"
        )

    def _data(self) -> dict[str, Any]:
        return {
            "hyper": _as_data(self.hyper),
            "from_batch": self.from_batch,
            "to_batch": self.to_batch,
            "factor": self.groups[0].factor,
            "rule": self.groups[0].rule,
            "changes": [
                {
                    "group": label.rstrip(": ") or None,
                    "name": change.name,
                    "old": change.old,
                    "new": change.new,
                    "equation": change.equation,
                    "reason": change.reason,
                }
                for label, group in zip(self.labels, self.groups, strict=True)
                for change in group.changes
            ],
            "also": [
                {"name": one.name, "old": one.old, "new": one.new, "equation": one.equation}
                for one in self.also
            ],
            "read": list(self.read),
            "unread": list(self.unread),
            **rules_data(self.groups[0]),
            "assumptions": list(self.groups[0].assumptions),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "verification": None if self.verification is None else self.verification.as_json(),
        }


def _table(changes: tuple[Change, ...]) -> lab.Table:
    """A row a hyperparameter; at a terminal the reason stands under the equation."""
    return lab.Table(
        {
            "name": [change.name for change in changes],
            "change": [
                f"{_shown(change.old)} stays"
                if change.old == change.new
                else f"{_shown(change.old)} -> {_shown(change.new)}"
                for change in changes
            ],
            "equation": [change.equation for change in changes],
            "reason": [change.reason for change in changes],
        },
        terminal=("name", "change", ("equation", "reason")),
    )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_shown(one) for one in value)})"
    if value is None:
        return "open"  # no rule is known for it
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _listed(names: Sequence[str], most: int = 16) -> str:
    """Names in a line, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _as_data(hyper: Any) -> Any:
    """A configuration as JSON can hold it: what is no number or text, as it is shown."""
    if isinstance(hyper, Mapping):
        return {str(name): _as_data(value) for name, value in hyper.items()}
    if isinstance(hyper, list | tuple):
        return [_as_data(value) for value in hyper]
    if isinstance(hyper, float):
        return hyper if math.isfinite(hyper) else str(hyper)
    if hyper is None or isinstance(hyper, str | int):
        return hyper
    fields = getattr(hyper, "__dict__", None)
    if fields and not isinstance(hyper, type) and not callable(hyper):
        return {n: _as_data(value) for n, value in fields.items() if not n.startswith("_")}
    return str(hyper)
