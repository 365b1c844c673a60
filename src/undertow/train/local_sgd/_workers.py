"""The workers of a simulated run of Local SGD: how many, when and what they average, their data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from undertow.objective import whole_number
from undertow.train.local_sgd._outer import Outer
from undertow.train.local_sgd._partition import How, check_how
from undertow.train.local_sgd._rounds import Rounds

Averaged = Literal["parameters", "optimizer", "buffers"]
WorkerData = Literal["own", "shared"] | How


@dataclass(frozen=True)
class Workers:
    """K workers that take H local steps each from a common start, and are then averaged.

    Attributes:
        num: K.
        rounds: the local steps of each round, `Rounds` or a number H.
        average: what is averaged at a round's end: `parameters` always, and by option `optimizer`
            (the state of the update rule, such as velocities and second moments) and `buffers`
            (such as running statistics). What is not stays each worker's own.
        outer: what is made of the averaged parameters; None takes them as they are.
        data: what the workers see. `own`: each draws from all samples, in an order of its own;
            `shared`: worker k sees the k-th part of a batch K times as large, in one order;
            `split`, `by_class`, `("dirichlet", c)`: each has a shard of its own, see `partition`.

    Raises:
        TypeError: `num` is no whole number, or `rounds` or `outer` of another kind.
        ValueError: a value is out of its range, or `average` or `data` is none of these.
    """

    num: int
    rounds: Rounds | int = 1
    average: tuple[Averaged, ...] = ("parameters",)
    outer: Outer | None = None
    data: WorkerData = "own"

    def __post_init__(self) -> None:
        whole_number("num", self.num, least=1)
        if not isinstance(self.rounds, Rounds):
            whole_number("rounds", self.rounds, least=1)
        if self.outer is not None and not isinstance(self.outer, Outer):
            raise TypeError(f"outer must be train.Outer or None, got {self.outer!r}")
        words = get_args(Averaged)
        if not isinstance(self.average, tuple) or any(own not in words for own in self.average):
            raise ValueError(f"average must be a tuple of {', '.join(words)}, got {self.average!r}")
        if "parameters" not in self.average:
            raise ValueError(
                f"average must hold 'parameters', or it is no Local SGD, got {self.average!r}"
            )
        check_how("data", self.data, get_args(Literal["own", "shared"]))

    @property
    def steps_outer(self) -> bool:
        """Whether anything is made of the average."""
        return self.outer is not None and not self.outer.plain

    def samples_of(self, available: int) -> int:
        """How many of a member's samples one worker sees in an epoch.

        Raises:
            ValueError: a worker would have none.
        """
        if self.data == "own":
            return available
        if available < self.num:
            raise ValueError(
                f"{self.num} workers cannot share {available} samples, as one would have none; "
                "take fewer workers, or data='own'"
            )
        return available // self.num

    def length(self, step: int, lr: float) -> int:
        """The local steps of the round that starts after `step` steps at the rate `lr`."""
        return self._rule.length(step, lr)

    @cached_property
    def _rule(self) -> Rounds:
        return self.rounds if isinstance(self.rounds, Rounds) else Rounds(self.rounds)
