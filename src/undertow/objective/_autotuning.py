"""Which way to multiply takes the least time, found by a trial on the first microbatch.

All ways give the same numbers; a trial costs about one product each way.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.objective._linearization import Leaves, Linearization, Mode, pull_back, seconds

Choice = TypeVar("Choice", bound=Hashable)

# Directions of the trial that decides between modes.
_TRIAL_BLOCK = 4
# What takes less is run again, as its first run may have been slow for other reasons, unless it
# was this much slower than the best; what is not faster by the last is not taken.
_TRIAL_SECONDS = 0.01
_HOPELESS = 2.0
_CLEARLY = 0.9
# Forward over reverse runs the model, and each operation again along the direction: at least so
# many times what the gradient's graph takes to build. With it kept, products of less time need no
# comparison.
_FORWARD_BUILDS = 2.0
# On a processor, ways that take directions together or run the model again save calls, not
# arithmetic: nothing, where a product with a kept graph takes so long.
_LARGE_SECONDS = 0.02
# Ways to compute the same must agree so far.
_AGREEMENT = 1e-3


def fastest_mode(
    linearization: Linearization, vectors: Float[Tensor, "directions params"], *, kept: bool
) -> tuple[Mode, Tensor | None]:
    """The way to multiply that takes the least time on a microbatch, and the product if known.

    A mode that the model does not support, or only by a slow fallback that torch warns of, is out.
    `kept` says whether the graph stays for the next products; otherwise building it counts.
    """
    block = vectors[:_TRIAL_BLOCK]
    others: tuple[Mode, ...] = ("batched", "forward") if len(block) > 1 else ("forward",)

    mix = _mix(block)

    def run(mode: Mode) -> Tensor:
        if not kept:
            linearization.free()
        return mix @ linearization.product(block, mode)

    def run_single() -> Tensor:
        return linearization.product(mix @ block, "loop")

    # The loop always works, or its error is the user's to see. With a kept graph its time is that
    # of a single direction, times their number; a graph that is not kept serves all of a block.
    certain, times = (run_single, len(block)) if kept else (partial(run, "loop"), 1)
    trials = {mode: partial(run, mode) for mode in others}
    single = kept and len(block) == 1 and linearization.kind == "hessian"
    enough = _FORWARD_BUILDS * linearization.build_seconds if single else 0.0
    large = _LARGE_SECONDS if kept and vectors.device.type == "cpu" else math.inf
    clock = partial(seconds, vectors.device)
    mode, result = _fastest("loop", certain, times, trials, clock, enough, large)
    return mode, result if len(block) == 1 else None  # of one direction, the mix is that itself


def fastest_pull_back(
    output: Tensor, leaves: Leaves, cotangents: Float[Tensor, "directions outputs"]
) -> bool:
    """Whether vector-Jacobian products take less time batched than one after the other."""
    block = cotangents[:_TRIAL_BLOCK]
    if len(block) == 1:
        return False
    mix = _mix(block)
    run = partial(pull_back, [output], leaves)
    batched, _ = _fastest(
        False,
        lambda: run([mix @ block], batched=False),
        len(block),
        {True: lambda: mix @ run([block], batched=True)},
        partial(seconds, output.device),
    )
    return batched


def _mix(block: Tensor) -> Float[Tensor, "1 directions"]:
    """A combination of all directions, as its product tells of an error in any of theirs."""
    return torch.linspace(1, 2, len(block), dtype=block.dtype, device=block.device)[None]


def _fastest(
    certain: Choice,
    run_certain: Callable[[], Tensor],
    times: int,
    others: Mapping[Choice, Callable[[], Tensor]],
    clock: Callable[[], float],
    enough: float = 0.0,
    large: float = math.inf,
) -> tuple[Choice, Tensor]:
    """The choice that takes least time, and the result of `run_certain`.

    That is one of `times` equal parts of the choice `certain`, which is taken without looking at
    the others where it takes less than `enough` seconds in all, or more than `large` by itself.
    """
    expected, taken = _least_time(run_certain, math.inf, clock, enough)
    choice, least = certain, taken * times
    if least < enough or taken > large:
        return certain, expected
    for other, run in others.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                result, taken = _least_time(run, _HOPELESS * least, clock)
        except (RuntimeError, UserWarning):  # no derivative of that kind, or a slow one
            continue
        # Batching rules of rarely used derivatives can be wrong.
        error = torch.linalg.norm(result - expected)
        if error <= _AGREEMENT * torch.linalg.norm(expected) and taken < _CLEARLY * least:
            choice, least = other, taken
    return choice, expected


def _least_time(
    run: Callable[[], Tensor], hopeless: float, clock: Callable[[], float], enough: float = 0.0
) -> tuple[Tensor, float]:
    """A result, and the time of one run or the less of two; of one within `enough`."""
    start = clock()
    result = run()
    taken = clock() - start
    if enough <= taken < min(_TRIAL_SECONDS, hopeless):
        start = clock()
        run()
        taken = min(taken, clock() - start)
    return result, taken
