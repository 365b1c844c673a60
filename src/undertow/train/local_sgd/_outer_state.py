"""The outer optimizer's memory over a run: where the round started, and its velocity.

Half precision is kept and stepped in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from undertow.train.local_sgd._carried import local
from undertow.train.local_sgd._flat import accumulates_in
from undertow.train.local_sgd._outer import Outer


class OuterState:
    """`Outer` applied to named parameters, in place."""

    def __init__(self, outer: Outer) -> None:
        self.outer = outer
        self._start: dict[str, Tensor] = {}
        self._velocity: dict[str, Tensor] = {}

    def begin(self, parameters: Mapping[str, Tensor]) -> None:
        """Note where the round starts."""
        if self.outer.plain:
            return
        for name, param in parameters.items():
            ours = local(param)
            if name in self._start and self._start[name].shape == ours.shape:
                self._start[name].copy_(ours)
            else:
                self._start[name] = ours.to(accumulates_in(ours.dtype), copy=True)

    def step_(self, parameters: Mapping[str, Tensor]) -> None:
        """Step from the start along what the averaged parameters say, over these."""
        if self.outer.plain:
            return
        for name, param in parameters.items():
            if name not in self._start:  # added in the middle of the round
                continue
            start, ours = self._start[name], local(param)
            velocity = None
            if self.outer.momentum:
                velocity = self._velocity.setdefault(name, torch.zeros_like(start))
            average = ours.to(start.dtype)
            self.outer.step_(start, average, velocity)
            if average is not ours:
                ours.copy_(average)

    def state_dict(self, in_round: bool) -> dict[str, Any]:
        """Copies of what resumes it; the start only in the middle of a round."""
        start = self._start if in_round else {}
        return {
            "start": {name: tensor.clone() for name, tensor in start.items()},
            "velocity": {name: tensor.clone() for name, tensor in self._velocity.items()},
        }

    def check(self, state: dict[str, Any], in_round: bool) -> None:
        """Raise ValueError where a state lacks what this optimizer needs to go on."""
        if in_round and not self.outer.plain and not state["start"]:
            raise ValueError(
                "the state was saved in the middle of a round without an outer optimizer, which "
                "needs to know where it started; give outer= as it was, or resume at a round's end"
            )

    def load_state_dict(self, state: dict[str, Any], parameters: Mapping[str, Tensor]) -> None:
        """Go on from `state_dict()`, for parameters of the same names and shapes."""
        for memory in (state["start"], state["velocity"]):
            for name, tensor in memory.items():
                if name not in parameters or local(parameters[name]).shape != tensor.shape:
                    raise ValueError(
                        f"the state is of another model: it has {name} of shape "
                        f"{tuple(tensor.shape)}"
                    )
        self._start, self._velocity = (
            {name: value.clone().to(parameters[name].device) for name, value in memory.items()}
            for memory in (state["start"], state["velocity"])
        )
