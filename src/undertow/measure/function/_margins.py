"""Margins of a classifier, normalised so that scaling the parameters does not change them.

arXiv 1906.05890: q_min / ||theta||^L and its smoothed version, which gradient flow never lowers
once the loss is small; Xu et al. (Research, 2023): f = g / rho with rho = prod ||W_k||_F.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.measure._evaluation import (
    batches_apart,
    class_scores,
    evaluating,
    outputs_of,
    state_of,
)
from undertow.measure._kinds import check_objective
from undertow.measure.function._homogeneity import Homogeneity, homogeneity
from undertow.measure.weights import LayerNorms, layer_norms
from undertow.objective import Objective

Smoothing = Literal["logistic", "exponential"]
# Below this, log(1 + e^x) and e^x - 1 are e^x to the last bit of float64.
_TINY_LOG = -37.0


@dataclass(frozen=True, eq=False)
class Margins:
    """Margins of a network over its data, in float64.

    q_n is the score of the label less the best other score; for one output, y f.

    Attributes:
        normalized: q_min / ||theta||^L; NaN where the network is not homogeneous.
        smoothed: its smoothed version, at most `normalized`; NaN likewise.
        per_sample: q_n, one for every label that counts, in the order of the data.
        degree: L, or NaN where the network is not homogeneous.
        frobenius: q_min / prod ||W_k||_F, over the kernels of linear and convolutional layers.
        spectral: q_min / prod ||W_k||_2, over the same layers as linear maps; of a convolution
            the norm is an upper bound, so this is a lower bound.
        smoothing: which loss is inverted in `smoothed`.
        smoothed_margin: the smoothed margin before division by ||theta||^L.
        log_loss: log of the sum (not the mean) over labels of that loss.
        log_norms: log of what q_min is divided by: "parameters" (L log ||theta||), "frobenius"
            and "spectral". Where these leave float64's range, so do the quotients, to 0 or inf.
        homogeneity: how the degree was measured; None where it was given.
        layers: norms of the layers; None where there are no such layers.
        passes: forward passes over the data, without those of `homogeneity`.
    """

    normalized: float
    smoothed: float
    per_sample: Float64[Tensor, " labels"]
    degree: float
    frobenius: float
    spectral: float
    smoothing: Smoothing
    smoothed_margin: float
    log_loss: float
    log_norms: Mapping[str, float]
    homogeneity: Homogeneity | None
    layers: LayerNorms | None
    passes: int = 1

    @property
    def log_normalized(self) -> float:
        """The log of q_min / ||theta||^L; NaN unless every label is separated."""
        return _log(float(self.per_sample.min())) - self.log_norms["parameters"]

    @property
    def log_smoothed(self) -> float:
        """Log of `smoothed`; NaN unless the loss is below its threshold."""
        return _log(self.smoothed_margin) - self.log_norms["parameters"]

    @property
    def below_threshold(self) -> bool:
        """Whether the smoothed margin is positive: from here on gradient flow cannot lower it.

        The summed loss is then below log 2 (logistic) or 1 (exponential).
        """
        return self.smoothed_margin > 0

    def __repr__(self) -> str:
        wrong = int((self.per_sample <= 0).sum())
        least = float(self.per_sample.min())
        lines = [
            f"Margins of {len(self.per_sample):,} labels: least {least:.4g}, "
            f"median {float(self.per_sample.median()):.4g}, "
            + (f"{wrong:,} not separated." if wrong else "all separated.")
        ]
        if math.isnan(self.degree):
            lines.append("  The network is not homogeneous, so ||theta||^L does not normalise it.")
        else:
            state = "below" if self.below_threshold else "not below"
            lines.append(
                f"  Over ||theta||^{self.degree:.6g}: {self.normalized:.4g}, smoothed "
                f"{self.smoothed:.4g} ({self.smoothing}; loss {state} its threshold)."
            )
        if self.layers is not None:
            lines.append(
                f"  Over the product of Frobenius norms {self.frobenius:.4g}, of spectral norms "
                f"{self.spectral:.4g}."
            )
            lines.extend(f"  note: {note}" for note in self.layers.notes)
        if self.homogeneity is not None:
            lines.extend("  " + line for line in repr(self.homogeneity).splitlines())
        return "\n".join(lines)


def margins(
    objective: Objective,
    *,
    degree: float | None = None,
    smoothing: Smoothing = "logistic",
    dtype: torch.dtype = torch.float64,
) -> Margins:
    """Normalised, smoothed and per-sample margins of a classifier (arXiv 1906.05890).

    With rho = ||theta|| over the objective's parameters and Loss summed over labels:

    - normalized margin q_min / rho^L;
    - smoothed margin, logistic: -log(e^Loss - 1) / rho^L with the cross-entropy of each label
      (for one output log(1 + e^(-q))); exponential: log(1 / Loss) / rho^L with Loss = sum e^(-q).

    Every label counts once, whatever its class weight in the objective's loss; ignored ones do
    not count. Losses stay in the log domain, so they may lie far below float64's least number.

    Args:
        objective: outputs `[n, C, ...]` with labels, one-hot or -1/+1 coded targets, or one output
            `[n]` or `[n, 1]` with targets 0 and 1, or -1 and +1.
        degree: L where it is known; measured by `homogeneity` otherwise.
        smoothing: which loss to invert; for C > 2 classes "logistic" is the cross-entropy.
        dtype: precision of the forward pass.

    Raises:
        ValueError: if targets name no classes, all labels are ignored, the degree is not finite,
            or outputs are not finite.
    """
    check_objective(objective)
    if smoothing not in ("logistic", "exponential"):
        raise ValueError(f"smoothing must be 'logistic' or 'exponential', got {smoothing!r}")
    if degree is not None and not math.isfinite(degree):
        raise ValueError(f"degree must be finite, or None to have it measured, got {degree}")
    per_sample, soft = _margins(objective, dtype)
    measured = None
    if degree is None:
        measured = homogeneity(objective, dtype=dtype)
        degree = measured.degree if measured.homogeneous else math.nan
    log_loss, smoothed_margin = (
        _logistic(soft) if smoothing == "logistic" else _exponential(per_sample)
    )
    layers = _layers(objective)
    log_norms = {
        "parameters": degree * _log_parameter_norm(objective) if degree else 0.0,
        "frobenius": math.nan if layers is None else layers.log_frobenius,
        "spectral": math.nan if layers is None else layers.log_spectral,
    }
    least = float(per_sample.min())
    return Margins(
        normalized=_quotient(least, log_norms["parameters"]),
        smoothed=_quotient(smoothed_margin, log_norms["parameters"]),
        per_sample=per_sample,
        degree=degree,
        frobenius=_quotient(least, log_norms["frobenius"]),
        spectral=_quotient(least, log_norms["spectral"]),
        smoothing=smoothing,
        smoothed_margin=smoothed_margin,
        log_loss=log_loss,
        log_norms=log_norms,
        homogeneity=measured,
        layers=layers,
    )


def normalized_outputs(
    objective: Objective, *, dtype: torch.dtype = torch.float64
) -> Float64[Tensor, "samples ..."]:
    """The outputs f = g / rho with rho = prod ||W_k||_F that the square-loss theory speaks of.

    Divided layer by layer in the log domain, so that rho itself may leave float64's range.

    Raises:
        ValueError: if the model calls no linear or convolutional layer, or one is all zero.
    """
    log_rho = layer_norms(objective).log_frobenius
    if not math.isfinite(log_rho):
        raise ValueError("rho = prod ||W_k||_F is zero: a layer's weights are all zero")
    risk = objective.risk.at(dtype)
    with evaluating(risk):
        state = state_of(risk)
        outputs = [outputs_of(risk, state, inputs) for inputs, _ in batches_apart(risk)]
    found = torch.cat(outputs).double()
    return found.sign() * (found.abs().log() - log_rho).exp()


def _margins(objective: Objective, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """q_n with the best other score, and with the log-sum-exp of the other scores."""
    hard, soft = [], []
    risk = objective.risk.at(dtype)
    with evaluating(risk):
        state = state_of(risk)
        risk.check_outputs()
        for inputs, targets in objective.batches():
            outputs = outputs_of(risk, state, inputs).double()
            scores, labels = class_scores(objective.loss, outputs, targets)
            own = scores.gather(1, labels[:, None])[:, 0]
            others = scores.scatter(1, labels[:, None], -math.inf)
            hard.append(own - others.amax(1))
            soft.append(own - others.logsumexp(1))
    found = torch.cat(hard)
    if len(found) == 0:
        raise ValueError("no label counts: every target is ignored, so there is no margin")
    return found.cpu(), torch.cat(soft).cpu()


def _logistic(soft: Float64[Tensor, " labels"]) -> tuple[float, float]:
    """Log of Loss = sum log(1 + e^-q), and -log(e^Loss - 1)."""
    minus = -soft
    # log log(1 + e^x) = x + log(1 - e^x / 2 + ...) far below zero.
    logs = torch.where(
        minus < _TINY_LOG,
        minus,
        torch.logaddexp(minus.clamp(min=_TINY_LOG), torch.zeros_like(minus)).log(),
    )
    log_loss = float(logs.logsumexp(0))
    if log_loss < _TINY_LOG:
        return log_loss, -log_loss
    loss = math.inf if log_loss > 709.78 else math.exp(log_loss)
    # log(e^loss - 1), without e^loss where the loss is large.
    above = loss + math.log(-math.expm1(-loss))
    return log_loss, -above


def _exponential(hard: Float64[Tensor, " labels"]) -> tuple[float, float]:
    """Log of Loss = sum e^-q, and log(1 / Loss)."""
    log_loss = float((-hard).logsumexp(0))
    return log_loss, -log_loss


def _log_parameter_norm(objective: Objective) -> float:
    named = dict(objective.model.named_parameters())
    norms = [named[name].detach().double().norm() for name in objective.param_names]
    return _log(float(torch.stack(norms).norm()))


def _layers(objective: Objective) -> LayerNorms | None:
    try:
        return layer_norms(objective)
    except ValueError:  # a network without linear or convolutional layers
        return None


def _log(value: float) -> float:
    return math.log(value) if value > 0 else (-math.inf if value == 0 else math.nan)


def _quotient(value: float, log_divisor: float) -> float:
    """The quotient value / e^log_divisor, whether or not the divisor is within float64's range."""
    if math.isnan(log_divisor):
        return math.nan
    if value == 0:
        return 0.0
    exponent = math.log(abs(value)) - log_divisor
    size = math.inf if exponent > 709.78 else math.exp(exponent)
    return math.copysign(size, value)
