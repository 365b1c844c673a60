"""Gradient noise and the simple noise scale B = tr(Sigma) / |g|^2 (McCandlish et al., 2018).

Sigma is the covariance of the per-sample gradients; a batch of B samples has a gradient whose noise
is as large as its signal. One pass over the data gives both, a few samples more give the interval.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from undertow.measure._kinds import check_objective
from undertow.measure.noise._gathering import Kept
from undertow.measure.noise._per_sample import Sweep, inner_products, said_of, sweep_samples
from undertow.objective import Objective

# Standard errors come from this many samples, drawn without replacement, or from a sixteenth: they
# are then good to a tenth, and Student's quantile allows for that.
_INTERVAL_SAMPLES = 64
_INTERVAL_SHARE = 16
# Weights of mean one that differ by less are equal but for rounding.
_EQUAL = 1e-6
_ROWS_SHOWN = 12


@dataclass(frozen=True)
class NoiseScale:
    """Noise against signal of some parameters' gradient.

    Attributes:
        trace: of the covariance of per-sample gradients, unbiased (over n - 1).
        gradient_sqnorm: |g|^2 of the mean gradient of the distribution that the samples come
            from: the data's |G|^2 less the noise in it, trace / n. Unbiased, so it may be
            negative where the gradient cannot be told from zero.
        noise_scale: trace / gradient_sqnorm, in samples; infinite where the latter is not positive.
        interval: of the noise scale. The upper end is infinite where a gradient of zero cannot be
            excluded.
        trace_stderr: standard error of the trace.
        gradient_sqnorm_stderr: standard error of the squared norm.
    """

    trace: float
    gradient_sqnorm: float
    noise_scale: float
    interval: tuple[float, float]
    trace_stderr: float
    gradient_sqnorm_stderr: float

    def __repr__(self) -> str:
        return f"Noise scale {_said(self)}."


@dataclass(frozen=True)
class GradientNoise(NoiseScale):
    """The gradient noise of an objective, in all and by layer.

    Attributes:
        per_layer: the same of each layer's parameters, by the layer's name; traces and squared
            norms add up to the totals.
        num_samples: n.
        confidence: level of the intervals.
        passes: over the data; where the samples of the interval took another one, it counts by
            their share.
        vmapped: parameters whose per-sample gradients no layer's formula covers, which is slower.
        converged: whether the interval is finite, so that a gradient of zero is excluded.
    """

    per_layer: Mapping[str, NoiseScale]
    num_samples: int
    confidence: float
    passes: float
    vmapped: tuple[str, ...]
    converged: bool

    @property
    def noise_to_signal(self) -> float:
        """N/G of a batch of one: trace / |G|^2, where G is the gradient of these data.

        It is what training on these data sees, where the noise scale is of the distribution that
        they come from: never above it, and finite unless G is zero. A batch of B samples has the
        B-th part.
        """
        signal = self.gradient_sqnorm + self.trace / self.num_samples
        return self.trace / signal if signal > 0 else math.inf

    def __repr__(self) -> str:
        lines = [
            f"Noise scale {_said(self)} at {self.confidence:.0%} confidence, from "
            f"{self.num_samples:,} samples: trace {self.trace:.4g} (standard error "
            f"{self.trace_stderr:.1g}), squared gradient {self.gradient_sqnorm:.4g} (standard "
            f"error {self.gradient_sqnorm_stderr:.1g}); {self.passes:.3g} passes over the data, "
            f"{said_of(self.vmapped)}."
        ]
        shown = list(self.per_layer.items())[:_ROWS_SHOWN]
        width = max(len(name) for name, _ in shown)
        lines += [f"  {name:<{width}}  {_said(layer)}" for name, layer in shown]
        if len(self.per_layer) > len(shown):
            lines.append(f"  and {len(self.per_layer) - len(shown)} more in .per_layer")
        return "\n".join(lines)


def _said(scale: NoiseScale) -> str:
    low, high = scale.interval
    if math.isinf(scale.noise_scale):
        return f"infinite (at least {low:.4g}): the gradient cannot be told from zero"
    return f"{scale.noise_scale:.4g} samples ({low:.4g} to {high:.4g})"


def gradient_noise(objective: Objective, *, confidence: float = 0.95) -> GradientNoise:
    """How noisy the gradient of one sample is, and from which batch size on signal prevails.

    With the per-sample gradients g_i of `per_sample_gradient_norms`, which average to G, over n
    samples:

    - tr(Sigma) = sum ||g_i - G||^2 / (n - 1) = (sum ||g_i||^2 - n |G|^2) / (n - 1);
    - |g|^2 = |G|^2 - tr(Sigma) / n, the mean of <g_i, g_j> over pairs i != j;
    - the noise scale tr(Sigma) / |g|^2.

    Where samples count differently (class weights, ignored labels), g_i - w_i G takes the place
    of g_i - G, with w_i the sample's share in the loss's denominator, of mean one: the gradient of
    a batch is a ratio of sums, and this is its noise to first order.

    The interval is Fieller's for a ratio of two estimates with correlated errors. These follow
    from ||g_i||^2 and <g_i, G_-i>, G_-i the mean without sample i, of 64 samples or a sixteenth of
    them, whichever is more (all of them, where weights are unequal). What their gradients follow
    from is kept until G is known; where that would take more than 64 MB, or which samples there
    will be is not known ahead, they cost a second pass.

    Raises:
        ValueError: if there is but one sample, confidence is not strictly between 0 and 1, or as
            `per_sample_gradient_norms` does.
    """
    return noise_and_sweep(objective, confidence)[0]


def noise_and_sweep(objective: Objective, confidence: float) -> tuple[GradientNoise, Sweep]:
    """`gradient_noise`, and the pass over the data that it came from."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be strictly between 0 and 1, got {confidence!r}")
    check_objective(objective)
    kept = Kept(_choose(objective.risk.known_samples or 0))
    sweep = sweep_samples(objective, kept)
    samples = len(sweep.weights)
    if samples < 2:
        raise ValueError("the data hold one sample, which has no covariance; give two or more")
    weights = sweep.weights
    equal = bool(((weights - 1).abs() < _EQUAL).all())
    chosen = _choose(samples) if equal else torch.ones(samples, dtype=torch.bool)
    inners, again = inner_products(objective, sweep, chosen, kept)
    sizes = dict(objective.model.named_parameters())
    flat = sweep.gradient.double().split([sizes[name].numel() for name in objective.param_names])

    layers: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(objective.param_names):
        layers[name.rpartition(".")[0] or "(own)"].append(index)
    rows = list(layers.values())

    def grouped(parts: list[Tensor]) -> Tensor:
        """Sums over each layer's parameters, and over all."""
        stacked = torch.stack(parts)
        return torch.stack([*(stacked[row].sum(0) for row in rows), stacked.sum(0)])

    *per_layer, total = _scales(
        grouped([sweep.squares[name] for name in objective.param_names]),
        grouped([inners[name] for name in objective.param_names]),
        grouped([part.square().sum() for part in flat]),
        weights,
        chosen.to(weights.device),
        confidence,
    )
    share = float(chosen.double().mean())
    noise = GradientNoise(
        **vars(total),
        per_layer=dict(zip(layers, per_layer, strict=True)),
        num_samples=samples,
        confidence=confidence,
        passes=(1 + again * share) * (1 + bool(sweep.vmapped)),
        vmapped=sweep.vmapped,
        converged=math.isfinite(total.interval[1]),
    )
    return noise, sweep


def _choose(samples: int) -> Bool[Tensor, " samples"]:
    """The samples that the interval is estimated from; drawn, because data come in an order."""
    size = min(samples, max(_INTERVAL_SAMPLES, samples // _INTERVAL_SHARE))
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    chosen = torch.zeros(samples, dtype=torch.bool)
    chosen[order[:size]] = True
    return chosen


def _scales(
    squares: Float64[Tensor, "groups samples"],
    products: Float64[Tensor, "groups chosen"],
    mean_sqnorms: Float64[Tensor, " groups"],
    weights: Float64[Tensor, " samples"],
    chosen: Bool[Tensor, " samples"],
    confidence: float,
) -> list[NoiseScale]:
    """Noise scales from ||g_i||^2, <g_i, G> of the chosen samples, and |G|^2, by group."""
    from scipy.special import stdtrit  # loads slowly

    samples = len(weights)
    own, share = squares[:, chosen], weights[chosen]
    # sum ||g_i - w_i G||^2, where sum w_i = n; all of <g_i, G> is at hand where w_i is not one.
    cross = mean_sqnorms * samples if len(share) < samples else products @ share
    noise = squares.sum(1) - 2 * cross + weights.square().sum() * mean_sqnorms
    # Rounding alone can take it below zero.
    traces = (noise / (samples - 1)).clamp_min(0)
    sqnorms = mean_sqnorms - traces / samples
    # <g_i, G_-i>: with sample i itself, its own noise would count as signal.
    others = (samples * products - own) / (samples - 1)
    bent = own - 2 * share * others + share.square() * sqnorms[:, None]
    errors = torch.stack(
        [bent - 2 * share * traces[:, None], 2 * (others - share * sqnorms[:, None])], dim=1
    )
    errors = errors - errors.mean(2, keepdim=True)
    covariances = errors @ errors.mT / (samples * (len(share) - 1))
    quantile = float(stdtrit(len(share) - 1, (1 + confidence) / 2))
    found = []
    for trace, sqnorm, ((var_trace, cov), (_, var_sqnorm)) in zip(
        traces.tolist(), sqnorms.tolist(), covariances.tolist(), strict=True
    ):
        found.append(
            NoiseScale(
                trace=trace,
                gradient_sqnorm=sqnorm,
                noise_scale=trace / sqnorm if sqnorm > 0 else math.inf,
                interval=_fieller(trace, sqnorm, (var_trace, cov, var_sqnorm), quantile),
                trace_stderr=math.sqrt(var_trace),
                gradient_sqnorm_stderr=math.sqrt(var_sqnorm),
            )
        )
    return found


def _fieller(
    trace: float, sqnorm: float, covariance: tuple[float, float, float], quantile: float
) -> tuple[float, float]:
    """Ratios r >= 0 for which trace - r sqnorm is within `quantile` standard errors of zero.

    They lie between two roots where sqnorm is significantly positive, and from one root on
    otherwise.
    """
    var_trace, cov, var_sqnorm = (quantile**2 * entry for entry in covariance)
    a = sqnorm**2 - var_sqnorm
    b = trace * sqnorm - cov
    c = trace**2 - var_trace
    root = math.sqrt(max(0.0, b * b - a * c))
    if a > 0 and sqnorm > 0:
        return max(0.0, (b - root) / a), max(0.0, (b + root) / a)
    return c / (b + root) if c > 0 and b + root > 0 else 0.0, math.inf
