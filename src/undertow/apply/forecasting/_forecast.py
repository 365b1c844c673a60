"""What a run will do to a network's weights, from its hyperparameters and shapes alone.

How much of the initial weights weight decay forgets (2206.05794), where normalised layers settle
(2010.02916), what momentum amounts to (2307.15196), and what Local SGD would save (2310.14423).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from undertow import predict
from undertow.apply._arguments import whole_number
from undertow.apply._start import initial_values, running_exponent
from undertow.apply.forecasting._memory import Decay, decay_of, judged
from undertow.apply.forecasting._rates import Rates, rates_of
from undertow.apply.forecasting._result import Forecast, LayerForecast
from undertow.apply.forecasting._schedule import Schedule
from undertow.predict import Initializer, RankBound

if TYPE_CHECKING:
    from torch import nn

    from undertow.apply.forecasting._records import Comparison

_POINTS = 64  # of the curves over a run
# QSR's growth coefficient over the peak learning rate in the paper's own runs: ResNet-152 trained
# with SGD (0.2 / 0.8, 0.25 / 0.8) and ViT-B with AdamW (0.0175 / 0.008).
_QSR_ALPHA = 0.25
_QSR_ALPHA_ADAPTIVE = 2.2
_QSR_BASE = 4


def forecast(
    model_or_shapes: str | PathLike[str] | nn.Module | Mapping[str, Any] | None = None,
    *,
    lr: float | Sequence[float] | None = None,
    weight_decay: float,
    steps: int,
    batch_size: int,
    optimizer: Any = None,
    momentum: float | None = None,
    schedule: Schedule | Any = "constant",
    warmup_steps: int = 0,
    scheduler_interval: int = 1,
    samples: int | None = None,
    init: Initializer = "pytorch",
    threshold: float = 1e-3,
    norm_ratio: float = 1.0,
    sync_alpha: float | None = None,
    sync_base: int = _QSR_BASE,
    records: Any = None,
) -> Forecast:
    """What a run's hyperparameters say about it, before a step is taken.

    A layer's forecast rank counts the initial singular values that decay leaves above the
    threshold, #{i : e^-E s_i > threshold ||W||}; what training adds is not forecast. The initial
    spectrum is that of i.i.d. entries, and ||W|| that of the weights given, or `norm_ratio`
    times its initial value where only shapes are. Where the learned part of a matrix has the
    larger rank, that is its rank.

    Args:
        model_or_shapes: a checkpoint's path, a module, or a mapping from names to (rows, cols);
            None leaves layers out.
        lr: peak learning rate; or one rate a step. May be left out beside a scheduler.
        weight_decay: PyTorch's.
        steps: optimizer steps of the run.
        batch_size: samples a step over all workers.
        optimizer: any optimizer's name, itself or its class; by default the one that a scheduler
            moves, or SGD. E is the sum of lr x weight_decay where decay is decoupled
            (AdamW, Lion, Muon, ...), and that over 1 - momentum for SGD. The decay of RMSprop, Adam
            and their kin is divided by the gradient's size, and E does not describe it; one that is
            not known is taken to decay decoupled. The notes say which.
        momentum: of SGD; by default its own where it is given as itself or by a scheduler, or 0.
        schedule: `constant`, `cosine`, `linear`, `wsd`, `onecycle`, `step:0.1@3000,6000`, see
            `lr_factors`; a function of the step, or one factor a step; or a scheduler of PyTorch,
            of which a copy is stepped, from where it stands, with an optimizer of its own.
        warmup_steps: of linear warm-up before it, where it is given by name.
        scheduler_interval: optimizer steps between two of a scheduler's own; the steps of an epoch
            where it steps once an epoch.
        samples: of the training set, to count epochs.
        init: how weights are initialised, see `predict.initial_std`.
        threshold: of the rank, relative to the Frobenius norm.
        norm_ratio: ||W_T|| / ||W_0|| where only shapes are given.
        sync_alpha: growth coefficient of the quadratic synchronisation rule; by default 0.25
            times the peak rate for SGD and 2.2 times for Adam, as in the paper's own runs.
        sync_base: its least period.
        records: what a run has measured (a polars frame, a .parquet, .csv or .jsonl file, or the
            folder of a run of the `low-rank` claim): see `compare_records`.

    Raises:
        TypeError: a count that is no whole number, or a scheduler that follows the loss.
        ValueError: a value out of its range, a schedule that does not parse or contradicts lr, lr x
            weight_decay >= 1, or a momentum that the optimizer does not have.
    """
    whole_number("steps", steps, least=1)
    whole_number("batch_size", batch_size, least=1)
    whole_number("scheduler_interval", scheduler_interval, least=1)
    count = None if samples is None else whole_number("samples", samples, least=1)
    if not (math.isfinite(norm_ratio) and norm_ratio > 0):
        raise ValueError(f"norm_ratio must be a finite number above 0, got {norm_ratio}")
    found = rates_of(lr, schedule, steps, warmup_steps, scheduler_interval)
    decay = decay_of(optimizer, momentum, weight_decay, found.optimizer)
    momentum, linear = decay.momentum, decay.follows_gradients
    rates, notes = found.values, list(found.notes)
    if momentum and found.momenta is not None and np.ptp(found.momenta):
        rates, momentum = _at_one_momentum(rates, found.momenta)
    peak = float(rates.max())
    total = predict.decay_exponent(rates, weight_decay, momentum=momentum)
    notes += decay.notes
    at = np.unique(np.linspace(0, steps, min(_POINTS, steps) + 1).round().astype(int))
    running = running_exponent(rates, weight_decay, momentum)
    exponents = running[at]
    memory = (1 - momentum) / (peak * weight_decay) if peak * weight_decay else math.inf
    shapes, norms, taps, read_notes = _shapes(model_or_shapes)
    notes += read_notes
    bound_of = None
    if linear and not momentum:
        bound_of = partial(
            _bound, running=running, batch_size=batch_size, lr=peak, weight_decay=weight_decay
        )
    layer = partial(
        _layer, exponents=exponents, init=init, threshold=threshold, norm_ratio=norm_ratio
    )
    layers = tuple(
        layer(name, shape, norms.get(name), taps=taps.get(name, 1), bound_of=bound_of)
        for name, shape in shapes.items()
    )
    alpha = peak * (_QSR_ALPHA if linear else _QSR_ALPHA_ADAPTIVE)
    alpha = alpha if sync_alpha is None else sync_alpha
    hyper: dict[str, Any] = {"lr": rates, "weight_decay": weight_decay, "momentum": momentum}
    return Forecast(
        decay_exponent=total,
        residue=math.exp(-total),
        memory_steps=memory,
        memory_epochs=None if count is None else memory * batch_size / count,
        steps=tuple(int(step) for step in at),
        exponents=tuple(float(value) for value in exponents),
        layers=layers,
        memory_equation=decay.equation,
        decays_so=decay.known,
        memory_says=("" if decay.known or not weight_decay else "were decay decoupled: ")
        + judged(memory, total, None if count is None else count / batch_size),
        **_settling(decay, peak, weight_decay, momentum, found),
        sync=predict.sync_rounds(rates, alpha=alpha, base=sync_base, warmup_steps=warmup_steps),
        sync_alpha=alpha,
        sync_base=sync_base,
        threshold=threshold,
        comparison=None
        if records is None
        else _compared(records, **hyper, threshold=threshold, init=init),
        assumptions=_assumptions(init, read=bool(norms), layers=layers, norm_ratio=norm_ratio),
        notes=tuple(notes),
    )


def _at_one_momentum(rates: np.ndarray, momenta: np.ndarray) -> tuple[np.ndarray, float]:
    """Rates as they would be at one momentum: that where lr / (1 - momentum) is largest."""
    momentum = float(momenta[np.argmax(rates / (1 - momenta))])
    return rates * (1 - momentum) / (1 - momenta), momentum


def _settling(
    decay: Decay, lr: float, weight_decay: float, momentum: float, rates: Rates
) -> dict[str, Any]:
    """Where normalised layers settle, and what momentum amounts to, as far as both are known."""
    found: dict[str, Any] = {"equilibrium": None, "effective_lr": None}
    if not lr:
        return found
    if decay.follows_gradients:
        found["effective_lr"] = predict.momentum_equivalent(lr, momentum).effective_lr
        if weight_decay:
            found["equilibrium"] = predict.equilibrium(lr, weight_decay, momentum=momentum)
    elif decay.beta1 is not None and weight_decay:
        kept = decay.beta1
        if rates.momenta is not None:
            kept = float(rates.momenta[np.argmax(rates.values)])
        settled = predict.equilibrium(lr, weight_decay, optimizer="adamw", beta1=kept)
        found["equilibrium"] = settled
    return found


def _compared(records: Any, **given: Any) -> Comparison:
    from undertow.apply.forecasting._records import compare_records

    return compare_records(records, **given)


def _shapes(
    source: Any,
) -> tuple[dict[str, tuple[int, int]], dict[str, float], dict[str, int], list[str]]:
    """Shapes of the weight matrices by name; norms and taps where there are values; notes."""
    if source is None:
        return {}, {}, {}, []
    if isinstance(source, Mapping) and all(
        isinstance(shape, tuple | list) for shape in source.values()
    ):
        shapes: dict[str, tuple[int, int]] = {}
        for name, shape in source.items():
            if len(shape) != 2 or not all(isinstance(s, int) and s > 0 for s in shape):
                raise ValueError(
                    f"shape of {name} must be (rows, cols), whole and above 0: {shape}"
                )
            shapes[name] = (shape[0], shape[1])
        return shapes, {}, {}, []
    import torch

    from undertow.apply.inspection import opened, taps_of
    from undertow.measure import weight_matrices

    if isinstance(source, str | PathLike):
        read = opened(source)
        if read.adapter is not None:
            raise ValueError(
                f"{os.fspath(source)} is an adapter, whose pairs start at no change: forecast from "
                "its base, or from shapes"
            )
        source = read.content
    weights, notes = weight_matrices(source)
    return (
        {item.name: (item.matrix.shape[0], item.matrix.shape[1]) for item in weights},
        {item.name: float(torch.linalg.vector_norm(item.matrix.double())) for item in weights},
        {item.name: taps_of(item) for item in weights},
        list(notes),
    )


def _layer(
    name: str,
    shape: tuple[int, int],
    norm: float | None,
    *,
    exponents: np.ndarray,
    taps: int,
    init: Initializer,
    threshold: float,
    norm_ratio: float,
    bound_of: Callable[[tuple[int, int], float], RankBound] | None,
) -> LayerForecast:
    rows, cols = shape
    spectrum = initial_values(init, rows, cols, taps)
    if norm is None:
        norm = norm_ratio * float(np.linalg.norm(spectrum))
    survivors = predict.surviving_rank(
        spectrum[None], exponents, final_norm=np.full(len(exponents), norm), threshold=threshold
    )
    bound = None if bound_of is None else bound_of(shape, threshold)
    return LayerForecast(
        name, rows, cols, norm, tuple(int(rank) for rank in np.atleast_1d(survivors)), bound
    )


def _bound(
    shape: tuple[int, int],
    threshold: float,
    *,
    running: np.ndarray,
    batch_size: int,
    lr: float,
    weight_decay: float,
) -> RankBound:
    """The bound of 2206.05794, at the mean rate of the steps that the last weights remember.

    The paper's n = log(2 / threshold) / (lr weight_decay) steps are those over which E grows by
    log(2 / threshold). A run whose E is smaller still holds its start, and nothing bounds its rank.
    """
    forgotten = math.log(2 / threshold) if 0 < threshold < 1 else 0.0
    if running[-1] < forgotten:
        return RankBound(math.inf, min(shape), True)
    if forgotten:
        since = np.searchsorted(running, running[-1] - forgotten, side="right") - 1
        lr = float(running[-1] - running[since]) / ((len(running) - 1 - since) * weight_decay)
    return predict.rank_bound(
        batch_size=batch_size, lr=lr, weight_decay=weight_decay, shape=shape, threshold=threshold
    )


def _assumptions(
    init: str, *, read: bool, layers: tuple[LayerForecast, ...], norm_ratio: float
) -> tuple[str, ...]:
    if not layers:
        return ("the hyperparameters as given; name a checkpoint or shapes to forecast ranks",)
    norm = f"weights whose norm ends at {norm_ratio:g} times what it was at the start"
    if read:
        norm = "the norms of the weights that were read"
    elif norm_ratio == 1:
        norm = "weights that end with the norm they started with"
    said = [
        f"{init} initialisation, and {norm}",
        "ranks count what is left of the initial weights; what training adds comes on top",
    ]
    if any(layer.bound is not None for layer in layers):
        said.append(
            "the rank bound takes a matrix to see one position a sample: a convolution's is larger "
            "by its number of positions"
        )
    else:
        said.append("no rank bound: that of 2206.05794 is for SGD without momentum")
    return tuple(said)
