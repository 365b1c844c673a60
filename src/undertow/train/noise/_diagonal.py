"""Local SGD with label noise on the diagonal linear network f(x) = x . (u^2 - v^2).

The network on which label noise is known to flatten: on the set of fits the Hessian's trace is a
weighted sum of u^2 + v^2, and its gradient flow is where the slow equation of 2303.01215 goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.objective import whole_number

_CHUNK = 512  # steps whose samples are drawn at once
_FITTED = 1e-10  # residuals of a fit
_FIT_STEP, _FIT_STEPS = 1.0, 100_000  # of descent to it, over the Hessian's trace


def diagonal_hessian_trace(
    inputs: Float64[Tensor, "runs n d"], layers: Float64[Tensor, "2 runs d"]
) -> Float64[Tensor, " runs"]:
    """The trace of the Hessian at a fit: 4 sum_j mean_i x_ij^2 (u_j^2 + v_j^2).

    Of the loss mean_i (f(x_i) - y_i)^2 / 2; away from a fit it is that of the Gauss-Newton matrix.
    """
    return 4 * (inputs.square().mean(1) * layers.square().sum(0)).sum(1)


def diagonal_problems(
    samples: int,
    width: int,
    *,
    generators: Sequence[torch.Generator],
    sparsity: int = 3,
) -> tuple[Float64[Tensor, "runs n d"], Float64[Tensor, "runs n"], Float64[Tensor, "2 runs d"]]:
    """Sparse regression from few samples, with a fit of each: inputs, targets, and layers (u, v).

    Inputs are standard normal, a target is the sum of the first `sparsity` features. Layers are
    those to which full-batch descent without noise comes from normal ones of variance 1 / 2, to
    residuals of 1e-10.

    Args:
        samples: n.
        width: d, at least n.
        generators: one for each run.
        sparsity: features that count.

    Raises:
        TypeError: a count is no whole number.
        ValueError: a count is out of its range, or descent does not come to a fit.
    """
    samples = whole_number("samples", samples, least=1)
    width = whole_number("width", width, least=samples)
    whole_number("sparsity", sparsity, least=0)
    shape = samples + 2, width
    drawn = [torch.randn(shape, generator=own, dtype=torch.float64) for own in generators]
    both = torch.stack(drawn)
    inputs = both[:, :-2]
    u, v = (math.sqrt(0.5) * both[:, -2:]).unbind(1)
    targets = inputs[..., :sparsity].sum(2)
    for _ in range(_FIT_STEPS):
        residuals = (inputs * (u.square() - v.square())[:, None]).sum(2) - targets
        moving = (residuals.abs() > _FITTED).any(1)
        if not bool(moving.any()):
            return inputs, targets, torch.stack([u, v])
        traces = diagonal_hessian_trace(inputs, torch.stack([u, v]))
        # What fits stays, so that a run does not depend on the others.
        rates = 2 * _FIT_STEP * moving / traces
        pull = (inputs * residuals[:, :, None]).mean(1) * rates[:, None]
        u, v = u - pull * u, v + pull * v
    raise ValueError(
        f"descent comes to no fit: residuals of {float(residuals.abs().max()):.3g} are left after "
        f"{_FIT_STEPS:,} steps; give fewer samples, or a greater width"
    )


def diagonal_descent(
    inputs: Float64[Tensor, "runs n d"],
    targets: Float64[Tensor, "runs n"],
    layers: Float64[Tensor, "2 runs d"],
    *,
    lr: float,
    num_workers: int,
    period: int,
    read_at: Iterable[int],
    noise: float,
    generators: Sequence[torch.Generator],
    batch_size: int = 1,
) -> Iterator[Float64[Tensor, "2 runs d"]]:
    """The workers' average (u, v) after these numbers of steps of Local SGD with label noise.

    The loss of a sample is (f(x) - y - noise z)^2 / 2, with z of -1 or 1 as a coin falls, anew each
    time that it is seen; samples are drawn with replacement, by each worker for itself. In
    float32, each run a row of one program: `predict.label_noise_flattening` says how fast the
    Hessian's trace falls.

    Args:
        inputs: x of each run.
        targets: y of each run.
        layers: (u, v) at the start, of every worker of a run.
        lr: learning rate.
        num_workers: K.
        period: H, steps between two averagings.
        read_at: numbers of steps from the start, each read once, in ascending order.
        noise: standard deviation of the labels' noise.
        generators: of samples and coins, one for each run.
        batch_size: samples of a worker's step, B / K.

    Raises:
        TypeError: a count is no whole number.
        ValueError: a count or a value is out of its range.
    """
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be finite and above 0, got {lr}")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise must be finite and at least 0, got {noise}")
    workers = whole_number("num_workers", num_workers, least=1)
    period = whole_number("period", period, least=1)
    each = whole_number("batch_size", batch_size, least=1)
    runs, count, width = inputs.shape
    pool, labels = inputs.flatten(0, 1).float(), targets.flatten().float()
    # With p = u + v and q = u - v the network is x . (p q), and either layer moves along the other.
    u, v = (layer.float()[:, None].repeat(1, workers, 1) for layer in layers)
    p, q, taken = u + v, u - v, 0
    rate = 2 * lr / each
    for step in sorted(set(read_at)):
        while taken < step:
            steps = min(_CHUNK, step - taken)
            rows, coins = _drawn(generators, (steps, workers * each), count)
            aims = labels[rows].add_(coins, alpha=noise).view(steps, runs, workers, each)
            for index in range(steps):
                x = pool.index_select(0, rows[index]).view(runs, workers, each, width)
                product = (p * q)[:, :, None]
                errors = x.mul(product).sum(3).sub_(aims[index]).mul_(rate)
                pull = x.mul_(errors[..., None]).sum(2) if each > 1 else x.mul_(errors[..., None])
                pull = pull.view(runs, workers, width)
                moved = torch.addcmul(p, pull, q, value=-1)
                q.addcmul_(pull, p, value=-1)
                p = moved
                taken += 1
                if taken % period == 0 and workers > 1:
                    p.copy_(p.mean(1, keepdim=True))
                    q.copy_(q.mean(1, keepdim=True))
        first, second = p.double().mean(1), q.double().mean(1)
        yield torch.stack([first + second, first - second]) / 2


def _drawn(
    generators: Sequence[torch.Generator], shape: tuple[int, int], count: int
) -> tuple[Tensor, Tensor]:
    """Rows of the pool and coins, `[steps, runs x draws]`, each run's from its own generator."""
    rows, coins = [], []
    for run, own in enumerate(generators):
        rows.append(torch.randint(0, count, shape, generator=own) + run * count)
        coins.append(torch.randint(0, 2, shape, generator=own, dtype=torch.int8))
    return torch.cat(rows, 1), torch.cat(coins, 1).float().mul_(2).sub_(1)
