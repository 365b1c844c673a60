"""Neural collapse (Papyan, Han and Donoho, 2020): four numbers that are zero when it is complete.

Class means and what is needed of the within-class scatter are streamed over the data in two
passes in float64; no matrix of features x features is ever formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from undertow.measure._evaluation import (
    batches_apart,
    class_scores,
    evaluating,
    given,
    outputs_of,
    state_of,
)
from undertow.measure._kinds import check_objective
from undertow.measure._nested import tensors
from undertow.measure.function._simplex import distance_to_simplex, regularity, unit
from undertow.measure.weights import weight_matrices
from undertow.objective import Objective, taken

Features = str | Callable[[Any], Tensor] | None
# Class means are off by at most about this many rounding errors of the largest feature vector, for
# each root of a batch that they are merged from.
_ROUNDING_FACTOR = 16.0
# Features of a sample among others and among the same in another order agree so far.
_SAME = 1e-3


@dataclass(frozen=True, eq=False)
class NeuralCollapse:
    """How far the features of a network are from neural collapse; every number is 0 at collapse.

    Attributes:
        nc1: tr(Sigma_W Sigma_B^+) / C, the variability within classes; inf where all class means
            are equal, up to the rounding of float64.
        nc2: || K / ||K||_F - (I - 1 1^T / C) / sqrt(C - 1) ||_F for K = M^T M, the distance of the
            centred class means M from a simplex equiangular tight frame.
        nc3: || W^T / ||W||_F - M / ||M||_F ||_F^2 (0 to 4), between the last linear layer and the
            class means; NaN where the features are not its input.
        nc4: share of samples on which the network and the nearest class mean disagree.
        equinorm_means: standard deviation over mean of ||mu_c - mu_G||.
        equiangular_means: mean over pairs of |cosine + 1 / (C - 1)|.
        equinorm_weights: as `equinorm_means`, of the rows of W; NaN like `nc3`.
        equiangular_weights: as `equiangular_means`, of the rows of W; NaN like `nc3`.
        class_means: mu_c, not centred.
        counts: samples of each class.
        classes: which of the network's classes the data hold, in the order of the rows above.
        samples: how many samples.
        passes: forward passes over the data.
        notes: what was left out, and why.
    """

    nc1: float
    nc2: float
    nc3: float
    nc4: float
    equinorm_means: float
    equiangular_means: float
    equinorm_weights: float
    equiangular_weights: float
    class_means: Float64[Tensor, "classes features"]
    counts: Int64[Tensor, " classes"]
    classes: tuple[int, ...]
    samples: int
    passes: int = 2
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        duality = "no self-duality (NC3)" if math.isnan(self.nc3) else f"NC3 = {self.nc3:.3g}"
        text = (
            f"Neural collapse of {self.class_means.shape[1]:,} features over {self.samples:,} "
            f"samples of {len(self.classes)} classes: NC1 = {self.nc1:.3g}, NC2 = {self.nc2:.3g}, "
            f"{duality}, NC4 = {self.nc4:.3g}; all are 0 at collapse."
        )
        return "\n".join([text, *(f"  note: {note}" for note in self.notes)])


def neural_collapse(
    objective: Objective,
    *,
    features: Features = None,
    side: Literal["input", "output"] = "output",
    classifier: str | None = None,
    dtype: torch.dtype | None = None,
) -> NeuralCollapse:
    """NC1 to NC4 of Papyan, Han and Donoho (2020).

    With features h_i, class means mu_c, mu_G = mean_c mu_c and M = [mu_c - mu_G]: Sigma_W is the
    mean over samples of (h_i - mu_c)(h_i - mu_c)^T and Sigma_B = M M^T / C. Classes count equally
    in Sigma_B and samples in Sigma_W; for balanced data these are the paper's. With one output,
    the two classes have the weights -w / 2 and w / 2.

    Args:
        objective: labels as in `margins`, one per sample.
        features: None for the input of the last linear layer; the name of a module; or a function
            from a batch of inputs to features `[samples, ...]`, run without gradients.
        side: for a module's name, whether its output or its input is taken.
        classifier: the name of the last linear layer; by default the last one that the forward
            pass calls.
        dtype: precision of the forward pass; by default the model's own. Statistics are in float64.

    Raises:
        ValueError: if a name is unknown or its module is not called exactly once, features are
            not finite or not one row per sample, there are fewer than two classes, or a label is
            ignored, or the features lie in another order than the samples (sorted, or with
            another axis in front): the second pass has each batch's samples in another order.
    """
    check_objective(objective)
    if side not in ("input", "output"):
        raise ValueError(f"side must be 'input' or 'output', got {side!r}")
    reader = _Reader(objective, features, side, classifier, dtype)
    means, counts, rounding = _class_means(reader)
    classes = counts.nonzero()[:, 0]
    if len(classes) < 2:
        raise ValueError(f"neural collapse needs two or more classes; the data hold {len(classes)}")
    means, kept = means[classes], counts[classes]
    center = means.mean(0)
    centered = means - center
    rounding *= math.sqrt(len(classes))
    if float(centered.norm()) <= rounding:  # equal: nothing may be read from their differences
        centered = torch.zeros_like(centered)

    reader.turn()
    nc1, disagreements = _second_pass(reader, center, centered, classes, rounding)
    samples = int(kept.sum())
    weight = reader.weight(len(counts))
    notes = []
    if len(classes) < len(counts):
        notes.append(f"{len(counts) - len(classes)} of {len(counts)} classes have no sample")
    if weight is None:
        notes.append("the features are not the input of a linear layer with one row per class")
        nc3 = equinorm_weights = equiangular_weights = math.nan
    else:
        weight = weight[classes]
        nc3 = float((unit(weight) - unit(centered)).square().sum())
        equinorm_weights, equiangular_weights = regularity(weight)
    equinorm_means, equiangular_means = regularity(centered, rounding)
    return NeuralCollapse(
        nc1=nc1,
        nc2=distance_to_simplex(centered),
        nc3=nc3,
        nc4=disagreements / samples,
        equinorm_means=equinorm_means,
        equiangular_means=equiangular_means,
        equinorm_weights=equinorm_weights,
        equiangular_weights=equiangular_weights,
        class_means=means.cpu(),
        counts=kept.cpu(),
        classes=tuple(classes.tolist()),
        samples=samples,
        notes=tuple(notes),
    )


class _Reader:
    """Features, scores and labels of every batch, with hooks only while it is read."""

    def __init__(
        self,
        objective: Objective,
        features: Features,
        side: str,
        classifier: str | None,
        dtype: torch.dtype | None,
    ) -> None:
        self.objective = objective
        self.risk = objective.risk if dtype is None else objective.risk.at(dtype)
        self.modules = dict(objective.model.named_modules())
        for argument, name in (("features", features), ("classifier", classifier)):
            if isinstance(name, str) and name not in self.modules:
                shown = ", ".join(name for name in list(self.modules)[1:8])
                raise ValueError(f"{argument} names {name!r}; the model has {shown}")
        if features is not None and not isinstance(features, str) and not callable(features):
            raise TypeError(
                "features must be a module's name, a function or None, "
                f"got {type(features).__name__}"
            )
        self.classifier = classifier or self._last_linear()
        if classifier is not None and not isinstance(self.modules[classifier], nn.Linear):
            raise ValueError(f"classifier {classifier!r} is no nn.Linear")
        if features is None and self.classifier is None:
            raise ValueError("the model calls no nn.Linear; name the module to take features from")
        self.features = self.classifier if features is None else features
        self.side = "input" if features is None else side
        # Whether the features have been the classifier's input on every batch so far.
        self.feeds_classifier = self.classifier is not None
        # Numbers for each sample and its features, batch by batch, from the pass before a turn.
        self.prints: list[tuple[Tensor, Tensor]] = []
        self.turned = False

    def turn(self) -> None:
        """From now on each batch is read with its first sample last."""
        self.turned = True

    def _last_linear(self) -> str | None:
        risk = self.risk.apart()
        last: list[str] = []
        names = {module: name for name, module in risk.stand_in.follow().named_modules()}

        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            del args, output
            last[:] = [names[module]]

        for module in names:
            if isinstance(module, nn.Linear):
                module.register_forward_hook(record)
        with evaluating(risk):
            inputs, _ = next(self.objective.batches())
            outputs_of(risk, state_of(risk), taken(inputs, slice(1)))
        return last[0] if last else None

    def read(self, visit: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        """visit(features [n, d] in float64, scores [n, C], labels [n]) for every batch."""
        risk = self.risk.apart()
        modules = dict(risk.stand_in.follow().named_modules())
        own = self.objective.risk
        # A function may hold the model, which then must not be run itself.
        by_function = own.stand_in.apart(self.features if callable(self.features) else None)
        caught: list[Any] = []
        fed: list[Any] = []

        def record(
            module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any
        ) -> None:
            del module
            # A copy: an activation that works in place may follow.
            value = given(args, named) if self.side == "input" else output
            caught.append(value.clone() if isinstance(value, Tensor) else value)

        def record_fed(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            del module
            fed.append(given(args, named))

        if isinstance(self.features, str):
            modules[self.features].register_forward_hook(record, with_kwargs=True)
        if self.classifier is not None:
            modules[self.classifier].register_forward_pre_hook(record_fed, with_kwargs=True)
        with evaluating(risk):
            state = state_of(risk)
            for index, (inputs, targets) in enumerate(batches_apart(self.objective.risk)):
                if self.turned:
                    order = torch.arange(len(targets), device=targets.device).roll(-1)
                    inputs, targets = taken(inputs, order), targets[order]
                caught.clear()
                fed.clear()
                outputs = outputs_of(risk, state, inputs)
                if callable(self.features):
                    call = partial(_call, inputs)
                    caught.append(by_function.apply(own.own(), call))
                found = self._checked(caught, len(targets))
                self._check_order(index, inputs, found)
                self.feeds_classifier &= len(fed) == 1 and _equal(fed[0], found)
                scores, labels = class_scores(self.objective.loss, outputs, targets)
                if len(labels) != len(targets):
                    raise ValueError(
                        f"neural collapse needs one label per sample that counts, got "
                        f"{len(labels)} labels for {len(targets)} samples"
                    )
                visit(found, scores, labels)

    def _checked(self, caught: list[Any], samples: int) -> Tensor:
        if len(caught) != 1:
            raise ValueError(
                f"module {self.features!r} is called {len(caught)} times in a forward pass, so "
                "its features are not one row per sample"
            )
        found = caught[0]
        if not isinstance(found, Tensor) or found.ndim == 0 or len(found) != samples:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"features must be [samples, ...], {samples} rows here, got {shape}")
        found = found.detach().reshape(samples, -1).double()
        if not torch.isfinite(found).all():
            raise ValueError("features are not finite")
        return found

    def _check_order(self, index: int, inputs: Any, found: Tensor) -> None:
        """Compare what each sample's features are with what they were in another order."""
        generator = torch.Generator().manual_seed(0)
        along = torch.randn(found.shape[1], generator=generator, dtype=torch.float64).to(found)
        prints = found @ along
        parts = [part.to_dense().double().flatten(1).sum(1) for part in tensors(inputs)]
        own = torch.stack(parts) if parts else prints[None]
        if not self.turned:
            self.prints.append((own, prints))
            return
        before, expected = (part.roll(-1, -1) for part in self.prints[index])
        if not torch.equal(own, before):
            return  # data that come in another order each time
        away = (prints - expected).abs()
        if bool((away > _SAME * (found.norm(dim=1) * along.norm()).max()).any()):
            raise ValueError(
                "the features do not lie in the order of the samples (the model sorts them, or "
                "has another axis in front): name a module that gives [samples, ...] in order"
            )

    def weight(self, classes: int) -> Tensor | None:
        """The classifier's rows, one per class, if the features were its input."""
        if self.classifier is None or not self.feeds_classifier:
            return None
        items, _ = weight_matrices(self.modules[self.classifier])
        weight = items[0].matrix.double()
        if len(weight) == 1 and classes == 2:
            return torch.cat([-weight / 2, weight / 2])
        return weight if len(weight) == classes else None


def _class_means(reader: _Reader) -> tuple[Tensor, Tensor, float]:
    """Means `[C, d]` and counts `[C]`, merged batch by batch (Chan, Golub and LeVeque).

    And how far a mean may be off by rounding.
    """
    means: Tensor | None = None
    counts: Tensor | None = None
    largest, batches = 0.0, 0

    def visit(features: Tensor, scores: Tensor, labels: Tensor) -> None:
        nonlocal means, counts, largest, batches
        largest, batches = max(largest, float(features.norm(dim=1).max())), batches + 1
        if means is None or counts is None:
            means = features.new_zeros(scores.shape[1], features.shape[1])
            counts = torch.zeros(scores.shape[1], dtype=torch.int64, device=features.device)
        counts += labels.bincount(minlength=len(counts))
        shift = torch.zeros_like(means).index_add_(0, labels, features - means[labels])
        means += shift / counts.clamp(min=1)[:, None]

    reader.read(visit)
    assert means is not None
    assert counts is not None
    rounding = _ROUNDING_FACTOR * torch.finfo(means.dtype).eps * math.sqrt(batches) * largest
    return means, counts, rounding


def _second_pass(
    reader: _Reader, center: Tensor, centered: Tensor, classes: Tensor, rounding: float
) -> tuple[float, int]:
    """NC1, and on how many samples the nearest class mean disagrees with the network.

    Sigma_B = M M^T / C, so tr(Sigma_W Sigma_B^+) / C is the mean of ||M^+ (h - mu_c)||^2.
    """
    # In a basis of the vectors that sum to zero, and above the means' own rounding: neither that in
    # M 1 = 0 nor that of means on a line or plane may be inverted.
    ones_first = torch.eye(len(classes)).to(centered)
    ones_first[:, 0] = 1
    basis = torch.linalg.qr(ones_first).Q[:, 1:]
    spread = basis.T @ centered
    relative = max(spread.shape) * torch.finfo(spread.dtype).eps
    inverse = torch.linalg.pinv(spread, atol=rounding, rtol=relative)
    rows = centered.new_full((int(classes.max()) + 1,), -1).long()
    rows[classes] = torch.arange(len(classes), device=classes.device)
    half_squares = centered.square().sum(1) / 2
    total = 0.0
    samples = disagreements = 0

    def visit(features: Tensor, scores: Tensor, labels: Tensor) -> None:
        nonlocal total, samples, disagreements
        offsets = features - center
        total += float(((offsets - centered[rows[labels]]) @ inverse).square().sum())
        samples += len(labels)
        nearest = classes[(offsets @ centered.T - half_squares).argmax(1)]
        disagreements += int((nearest != scores.argmax(1)).sum())

    reader.read(visit)
    separated = bool(centered.any())
    return (total / samples if separated else math.inf), disagreements


def _call(inputs: Any, module: nn.Module, features: Callable[[Any], Any]) -> Any:
    del module
    return features(inputs)


def _equal(fed: Any, features: Tensor) -> bool:
    """Whether a layer was fed these features, up to float32 rounding."""
    if not isinstance(fed, Tensor) or fed.shape != features.shape:
        return False
    return torch.allclose(
        fed.double(), features, rtol=1e-5, atol=1e-6 * float(features.abs().max())
    )
