"""Schedulers moved with their optimizer: the old schedule, played at the new batch's pace.

A moved scheduler is the same object. It keeps a copy of what it was, on groups of its own, and one
step of it takes as many steps of the copy as see the same samples; what the copy then says, moved
by the rule, is set in the optimizer. So every kind goes on at its place, sums of kinds included.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from types import MethodType
from typing import Any, Literal, cast

from undertow.apply.rescaling._law import Law

Interval = Literal["step", "epoch"]

_MOVED = ("lr", "momentum", "betas")
_RATES = ("initial_lr", "max_lr", "min_lr", "swa_lr", "lr", "momentum", "betas")
_KEPT = (*_RATES, "max_momentum", "base_momentum")


@dataclass(frozen=True, eq=False)
class Given:
    """A scheduler as the argument `scheduler` gave it.

    Attributes:
        scheduler: the one of `torch.optim` itself, without what holds it.
        interval: whether it steps with the optimizer or with epochs.
        notes: what was taken for granted.
    """

    scheduler: Any
    interval: Interval
    notes: tuple[str, ...] = ()


# ---- what is given


def read_schedulers(given: Any, optimizer: Any, layers: Sequence[Any]) -> tuple[Given, ...]:
    """The schedulers that an argument names, one or several.

    Args:
        given: a scheduler of `torch.optim`, or what holds one; a dictionary of it and its
            `interval`, as Lightning has it; or a list of these.
        optimizer: the optimizer that it should be of.
        layers: the parameter groups of that and of its holders.

    Raises:
        TypeError: it is none, or of a kind that cannot be moved.
        ValueError: it is another optimizer's, or its interval is neither step nor epoch.
    """
    if isinstance(given, list | tuple):
        return tuple(one for item in given for one in read_schedulers(item, optimizer, layers))
    interval = None
    if isinstance(given, Mapping):
        interval, given = given.get("interval"), given.get("scheduler")
    elif hasattr(given, "scheduler") and hasattr(given, "interval"):
        interval, given = given.interval, given.scheduler
    scheduler = _unwrapped(given)
    _check_kind(scheduler)
    if not any(scheduler.optimizer.param_groups is layer for layer in layers) and (
        scheduler.optimizer is not optimizer
    ):
        raise ValueError("scheduler must be one of the optimizer that is rescaled, got another's")
    if interval not in (None, "step", "epoch"):
        raise ValueError(f"scheduler: interval must be 'step' or 'epoch', got {interval!r}")
    if interval is not None or _by_metric(scheduler):
        return (Given(scheduler, interval or "epoch"),)
    return (_placed(scheduler, optimizer),)


def _unwrapped(scheduler: Any) -> Any:
    """The scheduler inside accelerate's."""
    while type(scheduler).__name__ in ("AcceleratedScheduler", "LRSchedulerWrapper") or (
        not hasattr(scheduler, "optimizer") and hasattr(scheduler, "scheduler")
    ):
        scheduler = scheduler.scheduler
    return scheduler


def _check_kind(scheduler: Any) -> None:
    from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

    name = type(scheduler).__name__
    if not isinstance(scheduler, LRScheduler | ReduceLROnPlateau):
        raise TypeError(
            f"scheduler must be one of torch.optim.lr_scheduler, or made from its LRScheduler, got "
            f"{name}: make it anew for the new batch, and give scheduler=False"
        )
    if "Dummy" in name or "Greedy" in name:
        raise TypeError(f"scheduler {name} cannot be moved: make it anew, and give scheduler=False")
    for part in getattr(scheduler, "_schedulers", ()):
        _check_kind(part)


def _by_metric(scheduler: Any) -> bool:
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    return isinstance(scheduler, ReduceLROnPlateau)


def _placed(scheduler: Any, optimizer: Any) -> Given:
    """Whether it steps with the optimizer, by the steps that both have taken."""
    name = type(scheduler).__name__
    counts = [state["step"] for state in optimizer.state.values() if "step" in state]
    taken = max(map(float, counts), default=0.0)
    # A ChainedScheduler counts nothing itself.
    epochs = max(float(getattr(part, "last_epoch", 0) or 0) for part in _parts(scheduler))
    if taken >= 4 and epochs < taken / 2:
        return Given(
            scheduler,
            "epoch",
            (f"{name} has stepped {epochs:.0f} times in {taken:.0f} steps: by epochs",),
        )
    return Given(
        scheduler,
        "step",
        (
            f"{name} is taken to step with the optimizer; where it steps once an epoch, give "
            "scheduler={'scheduler': ..., 'interval': 'epoch'}",
        ),
    )


def peaks(given: Sequence[Given], count: int) -> list[dict[str, Any]]:
    """For each group the highest rate that a schedule multiplies, and the momentum there."""
    found: list[dict[str, Any]] = [{} for _ in range(count)]
    for one in given:
        scheduler = one.scheduler
        groups = scheduler.optimizer.param_groups
        rates = getattr(scheduler, "max_lrs", None) or [
            group.get("max_lr", group.get("initial_lr", group["lr"])) for group in groups
        ]
        for index in range(count):
            rate = float(rates[index])
            if rate > found[index].get("lr", 0.0):
                found[index]["lr"] = rate
            if groups[index].get("base_momentum") is not None:
                found[index]["momentum"] = float(groups[index]["base_momentum"])
    return [{name: value for name, value in one.items() if value} for one in found]


# ---- the move


class _Groups:
    """Parameter groups without parameters, for schedulers to act on."""

    def __init__(self, groups: list[dict[str, Any]], defaults: Mapping[str, Any]) -> None:
        self.param_groups = groups
        self.defaults = dict(defaults)
        self._opt_called = True

        self.step = partial(int)  # nothing: schedulers ask only whether it is there
        vars(self.step)["_wrapped_by_lr_sched"] = True


class Moved:
    """What a moved scheduler does in place of its own class: it plays the copy of what it was."""

    # The attributes of a scheduler, and of the copy that it plays.
    optimizer: Any
    last_epoch: int
    _step_count: int
    _last_lr: list[Any]
    _played: Any
    _laws: list[Law]
    _pace: tuple[int, int]
    _taken: int

    def step(self, epoch: float | None = None) -> None:
        """One step at the new batch; `epoch` is that of schedules that take a fraction of it."""
        if epoch is not None:
            self._played.step(epoch)
        else:
            old, new = self._pace
            due = (self._taken + 1) * new // old - self._taken * new // old
            for number in range(due):
                try:
                    self._played.step()
                except ValueError:
                    if number == 0:  # beyond the schedule's end, and not only at a step across it
                        raise
                    break
        self._taken += 1
        self.last_epoch = getattr(self, "last_epoch", 0) + 1
        self._step_count = getattr(self, "_step_count", 0) + 1
        self._show()

    def _update_lr(self, epoch: int | None = None) -> None:
        self.step(epoch)

    def _show(self) -> None:
        """Set in the optimizer what the copy says, moved by the rule."""
        played = self._played.optimizer.param_groups
        for group, was, law in zip(self.optimizer.param_groups, played, self._laws, strict=True):
            for name in _MOVED:
                if name in was and (name == "lr" or "base_momentum" in was):
                    group[name] = _into(group[name], law(name, _plain(was[name])))
        self._last_lr = _rates(self)

    def get_lr(self) -> list[Any]:
        """The rates as they are."""
        return self._last_lr

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs: the copy, its groups and the place."""
        groups = self._played.optimizer.param_groups
        return {
            "last_epoch": getattr(self, "last_epoch", 0),
            "_step_count": getattr(self, "_step_count", 0),
            "_last_lr": [_plain(rate) for rate in self._last_lr],
            # One that was not moved takes all this for attributes of its own: it is to fail at its
            # next step, and not to go on at the old pace.
            "get_lr": None,
            "moved": {
                "schedule": copy.deepcopy(self._played.state_dict()),
                "groups": [
                    {name: _plain(group[name]) for name in _KEPT if name in group}
                    for group in groups
                ],
                "laws": [
                    {"hyper": dict(law.hyper), "ratio": law.ratio, "arguments": dict(law.arguments)}
                    for law in self._laws
                ],
                "pace": self._pace,
                "taken": self._taken,
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the `state_dict()` of a scheduler that was moved.

        Raises:
            ValueError: it is that of one that was not.
        """
        if "moved" not in state_dict:
            raise ValueError(
                "the state is that of a scheduler before it was moved: load it first, then rescale"
            )
        moved = copy.deepcopy(state_dict["moved"])
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["_step_count"]
        self._last_lr = list(state_dict["_last_lr"])
        self._played.load_state_dict(moved["schedule"])
        for group, was in zip(self._played.optimizer.param_groups, moved["groups"], strict=True):
            group.update({name: _tupled(value) for name, value in was.items()})
        self._laws = [Law(**law) for law in moved["laws"]]
        self._pace = (moved["pace"][0], moved["pace"][1])
        self._taken = moved["taken"]

    def __reduce__(self) -> Any:
        """Pickled as the class that it was, moved: the class that it is has no name to be found."""
        return _restored, (type(self).__bases__[1],), self.__dict__


def _restored(kind: Any) -> Any:
    made = _moved_class(kind)
    return made.__new__(made)


@cache
def _moved_class(kind: Hashable) -> Any:
    """A scheduler's class with `Moved` before it, so that it is still one of its kind."""
    assert isinstance(kind, type)
    return type(f"Moved{kind.__name__}", (Moved, kind), {"__doc__": Moved.__doc__})


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that a move needs, made before anything is changed."""

    given: Given
    played: Any

    def carry_out(self, laws: Sequence[Law], pace: tuple[int, int]) -> str:
        """Move the scheduler, whose optimizer has its new values; says what was changed."""
        scheduler = self.given.scheduler
        if _by_metric(scheduler):
            for index, law in enumerate(laws):
                scheduler.min_lrs[index] *= law.ratio
            if scheduler.default_min_lr is not None:
                scheduler.default_min_lr *= laws[0].ratio
            scheduler.eps *= laws[0].ratio
            vars(scheduler)["_last_lr"] = _rates(scheduler)
            return f"{type(scheduler).__name__}: min_lr and eps x lr' / lr"
        name = type(scheduler).__name__.removeprefix("Moved")
        by_steps = self.given.interval == "step"
        if not isinstance(scheduler, Moved):
            scheduler.__class__ = _moved_class(cast(Hashable, type(scheduler)))
        old, new = pace if by_steps else (1, 1)
        rates = getattr(scheduler, "base_lrs", [])
        vars(scheduler).update(
            base_lrs=[rate * law.ratio for rate, law in zip(rates, laws, strict=False)],
            last_epoch=getattr(scheduler, "last_epoch", 0) * old // new,
            _played=self.played,
            _laws=list(laws),
            _pace=(old, new),
            _taken=0,
            _last_lr=_rates(scheduler),
        )
        pace_said = f"at {new / old:.6g} times the pace" if by_steps else "by epochs"
        return f"{name}: plays its schedule {pace_said}, rates x lr' / lr"


def prepare(given: Sequence[Given]) -> list[Prepared]:
    """Copies of the schedulers as they are, on groups of their own that they share.

    Raises:
        TypeError: one cannot be copied.
    """
    if not given:
        return []
    real = given[0].scheduler.optimizer
    groups = [
        {name: _copied(value) for name, value in group.items() if name != "params"}
        for group in real.param_groups
    ]
    stand_in = _Groups(groups, getattr(real, "defaults", {}))
    memo: dict[int, Any] = {}
    for one in given:
        for part in _parts(one.scheduler):
            memo[id(part.optimizer)] = stand_in
            for function in _foreign_methods(part):
                memo[id(function)] = function
    try:
        return [Prepared(one, copy.deepcopy(one.scheduler, memo)) for one in given]
    except Exception as error:
        names = ", ".join(type(one.scheduler).__name__ for one in given)
        raise TypeError(
            f"scheduler {names} cannot be copied ({type(error).__name__}): make it anew for the "
            "new batch, and give scheduler=False"
        ) from None


def _foreign_methods(scheduler: Any) -> list[Any]:
    """Methods that it calls of objects other than itself, which are not to be copied with it."""
    held = [value for value in vars(scheduler).values() if not isinstance(value, list)]
    held += [one for value in vars(scheduler).values() if isinstance(value, list) for one in value]
    methods = [value for value in held if isinstance(value, MethodType)]
    return [method for method in methods if method.__self__ is not scheduler]


def _parts(scheduler: Any) -> list[Any]:
    """A scheduler and those inside it."""
    inside = [one for part in getattr(scheduler, "_schedulers", ()) for one in _parts(part)]
    return [scheduler, *inside]


def _rates(scheduler: Any) -> list[Any]:
    return [_copied(group["lr"]) for group in scheduler.optimizer.param_groups]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(map(float, value))
    return float(value)


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _copied(value: Any) -> Any:
    """A value that does not change with the optimizer's own."""
    if isinstance(value, tuple | list):
        return type(value)(map(_copied, value))
    return value.detach().clone() if hasattr(value, "detach") else value


def _into(present: Any, value: Any) -> Any:
    """The new value, in the tensor that holds the present one."""
    if isinstance(present, tuple | list):
        return type(present)(map(_into, present, value))
    return present.fill_(value) if hasattr(present, "fill_") else value
