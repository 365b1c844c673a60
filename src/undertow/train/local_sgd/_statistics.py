"""Batch-norm statistics of an averaged model, re-estimated on the data of every worker.

Averaged weights have activations that no worker's running statistics describe; 2303.01215 runs the
averaged model over 100 batches before it evaluates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from undertow.objective import whole_number
from undertow.train.local_sgd._flat import Flat
from undertow.train.local_sgd._team import Team, trouble


def reestimate(model: nn.Module, loader: Iterable[Any], batches: int, team: Team) -> int:
    """Set running statistics to their means over `batches` batches of each worker.

    Returns:
        How many batches that were, over all workers.

    Raises:
        TypeError: batches is no whole number.
        ValueError: it is below 1, or the loader is empty.
        WorkerLost: a worker did not come.
        Troubled: the same went wrong on another rank.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    kept = [stat for norm in norms for stat in (norm.running_mean, norm.running_var)]
    statistics = [stat for stat in kept if stat is not None]
    counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    saved = [tensor.clone() for tensor in (*statistics, *counts)]
    told = False
    try:
        ran = _run(model, norms, loader, whole_number("batches", batches, least=1))
        told = True
        words = team.meet({"ran": ran}, "the statistics of batch norm")
        total = sum(word["ran"] for word in words.values())
        for count in counts:
            count.fill_(total)
        by_format: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for stat in statistics:
            by_format.setdefault((stat.dtype, stat.device), []).append(stat)
        flats = [Flat(stats) for stats in by_format.values()]
        for flat, stats in zip(flats, by_format.values(), strict=True):
            flat.fill(stats)
            flat.buffer.mul_(ran / total)
        team.reduce_(flats, "the statistics of batch norm")
        for flat, stats in zip(flats, by_format.values(), strict=True):
            flat.empty(stats)
    except BaseException as error:
        for tensor, value in zip((*statistics, *counts), saved, strict=True):
            tensor.copy_(value)
        if not told and isinstance(error, Exception):
            team.leave(trouble(error))
        raise
    return total


def _run(model: nn.Module, norms: list[_BatchNorm], loader: Iterable[Any], batches: int) -> int:
    """Run the model with its norms alone in training mode; how many batches there were."""
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    ran = 0
    try:
        model.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over batches
        for batch in islice(loader, batches):
            if isinstance(batch, Mapping):
                model(**batch)
            else:
                model(batch[0] if isinstance(batch, (list, tuple)) else batch)
            ran += 1
    finally:
        for module, training in modes:
            module.training = training
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if not ran:
        raise ValueError("loader must give at least one batch to re-estimate statistics on")
    return ran
