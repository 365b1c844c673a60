"""The three ways of running an ensemble: which can run a module, and which of them is fastest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from undertow.train.ensemble._engines import Engine, Job, LoopEngine, VmapEngine
from undertow.train.ensemble._fused import FusedEngine
from undertow.train.ensemble._layers import recognise
from undertow.train.ensemble._sampling import Batch

_TRIAL_STEPS = 4  # steps that the chooser times at once on each path
_TRIAL_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class Start:
    """The networks of all lanes before the first step.

    `random_states` are those of their forward passes; None where these draw nothing.
    """

    template: nn.Module
    params: dict[str, Tensor]
    fixed: dict[str, Tensor]
    random_states: Sequence[Tensor] | None


def build(path: str, start: Start, job: Job) -> Engine:
    """The engine of a path.

    Raises:
        ValueError: the path cannot run the module.
    """
    if path == "fused":
        layers = recognise(start.template, input_ndim=job.inputs.ndim)
        if layers is None:
            raise ValueError(
                "path='fused' runs plain MLPs only (a Sequential of Linear, elementwise "
                "activations and BatchNorm1d, all trainable, with a Flatten first where inputs "
                "have more than one axis a sample); use path='auto', 'vmap' or 'loop'"
            )
        return FusedEngine(layers, start.params, start.fixed, job)
    if path == "vmap":
        if start.random_states is not None:
            raise ValueError(
                "path='vmap' cannot keep each member's own randomness (dropout); use "
                "path='auto' or 'loop'"
            )
        return VmapEngine(start.template, start.params, start.fixed, job)
    return LoopEngine(
        start.template, start.params, start.fixed, job, random_states=start.random_states
    )


def choose(
    start: Start, job: Job, batches: Sequence[Batch], rates: Float[Tensor, "steps E"]
) -> tuple[str, dict[str, float]]:
    """The fastest of the paths that can run the module, and each one's seconds a step."""
    plain = recognise(start.template, input_ndim=job.inputs.ndim) is not None
    random = start.random_states is not None
    candidates = ["loop"] if random else ["fused" if plain else "vmap", "loop"]
    engines: dict[str, Engine] = {}
    for path in candidates:
        try:
            engines[path] = build(path, start, job)
            engines[path].advance(batches[:1], rates[:1], {})  # to warm up
        except RuntimeError:  # what the path cannot run, the loop can
            if path == "loop":
                raise
            engines.pop(path, None)
    seconds: dict[str, float] = {}
    # In turns, and the least of each: something else on the machine slows all paths alike.
    for _ in range(_TRIAL_ROUNDS):
        for path, engine in engines.items():
            own = _seconds(engine, batches, rates)
            seconds[path] = min(own, seconds.get(path, own))
    return min(seconds, key=seconds.__getitem__), seconds


def _seconds(engine: Engine, batches: Sequence[Batch], rates: Tensor) -> float:
    """Seconds a step, over the first few."""
    count = min(_TRIAL_STEPS, len(batches))
    start = time.perf_counter()
    engine.advance(batches[:count], rates[:count], {})
    return (time.perf_counter() - start) / count
