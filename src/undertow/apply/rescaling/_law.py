"""A rule as it acts on one parameter group: at its highest rate, and wherever a schedule takes it.

The rule is asked once; values in between follow from its ratio and from what it makes of averages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from undertow import predict


@dataclass(frozen=True)
class Law:
    """What a rule makes of the hyperparameters of one group.

    Attributes:
        hyper: those that it was given, at the highest rate.
        ratio: new learning rate / old; 1 where no rule is known for it.
        arguments: of `predict.rescale`.
    """

    hyper: Mapping[str, Any]
    ratio: float
    arguments: Mapping[str, Any]

    def __call__(self, name: str, value: Any) -> Any:
        """The new value of a hyperparameter that a schedule moves.

        Raises:
            ValueError: the rule does not reach it; the message names the largest batch.
        """
        if name == "lr":
            return value * self.ratio
        several = value if isinstance(value, tuple) else (value,)
        names = [f"beta{place}" for place in (1, 2)] if isinstance(value, tuple) else [name]
        new = tuple(map(self._moved, names, several))
        if None in new:
            whole = {n: v for n, v in self.hyper.items() if n not in ("steps", "warmup_steps")}
            predict.rescale({**whole, name: value}, **self.arguments)
        return new if isinstance(value, tuple) else new[0]

    def _moved(self, name: str, value: float) -> float | None:
        if name not in predict.FAMILIES[self.arguments["optimizer"]].averages:
            return value
        factor = self.arguments["to_batch"] / self.arguments["from_batch"]
        return predict.moved_average(value, factor, self.arguments["betas"])
