"""How far apart two ensembles are as distributions over functions, whatever their weights.

The law of the output at each input, over the members of an ensemble, is held against that of
another (the fast equilibrium of 2010.02916), and both against what chance alone sets apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor, nn

from undertow.measure._arguments import or_new
from undertow.measure._kinds import check_model
from undertow.objective import StandIn, evaluating, logits_of, whole_number

Kind = Literal["total variation", "symmetric kl"]
Law = Literal["probabilities", "classes"]

_NUMBERS = 2**22  # of the redrawn means that are kept at once


@runtime_checkable
class Predicts(Protocol):
    """Many models as one, such as `train.Ensemble`."""

    def predict(self, inputs: Any) -> Tensor:
        """Outputs `[members, rows, classes]`."""


Models = Sequence[nn.Module] | Predicts | Tensor


@dataclass(frozen=True)
class FunctionDistance:
    """The distance between two ensembles' laws of the output, averaged over inputs.

    Attributes:
        value: the distance. Finite ensembles lift it: of two with the same law it is `null`.
        stderr: of `value`, over members, by the jackknife; for these inputs.
        null: the mean distance if one law had drawn all members: that of random divisions of them
            into two ensembles of these sizes.
        null_interval: within which 95% of those lie.
        p_value: of the permutation test, how often divisions are as far apart as the given one. It
            is exact: uniform, or larger, if all members are independent and of one law.
        kind: `total variation` or `symmetric kl`.
        law: of `probabilities` or of `classes`.
        members: of each of the two ensembles.
        num_inputs: over which it is averaged.
        permutations: how many divisions were drawn.
    """

    value: float
    stderr: float
    null: float
    null_interval: tuple[float, float]
    p_value: float
    kind: Kind
    law: Law
    members: tuple[int, int]
    num_inputs: int
    permutations: int

    @property
    def excess(self) -> float:
        """What the distance is beyond that of two ensembles of one law; may be below zero."""
        return self.value - self.null

    def as_dict(self) -> dict[str, Any]:
        """All values, by name."""
        return vars(self) | {"excess": self.excess}

    def __repr__(self) -> str:
        (one, other), (low, high) = self.members, self.null_interval
        apart = "apart" if self.p_value < 0.05 else "not told apart"
        return (
            f"FunctionDistance: {self.kind} {self.value:.4g} +- {self.stderr:.2g} between {one} "
            f"and {other} members' {self.law} on {self.num_inputs} inputs; of one law "
            f"{self.null:.4g} [{low:.4g}, {high:.4g}]: {apart} (p = {self.p_value:.3g})."
        )


def distance_in_function_space(
    models: Models,
    others: Models,
    inputs: Any = None,
    *,
    kind: Kind = "total variation",
    law: Law = "probabilities",
    permutations: int = 999,
    generator: torch.Generator | None = None,
) -> FunctionDistance:
    """How far apart two lists of models are as random functions.

    The law of the output at an input x is that of a class: with `probabilities` of one that is
    drawn from a random member's softmax, so p(c | x) is the members' mean probability; with
    `classes` of a random member's own choice, so it is their share whose largest logit is c. With
    p and p' those of the two ensembles, averaged over the inputs,

        total variation = sum_c |p(c | x) - p'(c | x)| / 2            in [0, 1]
        symmetric kl    = (KL(p || p') + KL(p' || p)) / 2             in nats

    Both are lifted by finite ensembles, the total variation of one law by about sqrt(p (1 - p) (1 /
    n + 1 / n') / (2 pi)) a class. So the distance is held against that of random divisions of all
    members into ensembles of the same sizes. Where the laws do differ, members of the two mixed
    differ more among themselves than within one, and the null is too high, not too low. Members
    must be independent given their law: two checkpoints of one run are not.

    Models run in eval mode, with batch norm's running statistics, and are left as found.

    Args:
        models: modules of (inputs) -> logits `[rows, classes]`, a `train.Ensemble`, or what their
            members gave: logits `[members, rows, classes]`, or classes `[members, rows]` as whole
            numbers. At least two.
        others: the other ensemble, in any of these forms.
        inputs: what the models are shown, samples along the first axis; None where both ensembles
            are outputs already.
        kind: of distance; `symmetric kl` of probabilities only, as of shares it may be infinite.
        law: of what; `classes` is all that whole numbers have.
        permutations: random divisions of the members.
        generator: draws them; None starts a new one from 0.

    Raises:
        TypeError: models are neither modules nor an ensemble nor a tensor, or the number of
            permutations is not whole.
        ValueError: fewer than two models or one of them twice, an unknown kind or law, outputs
            that are not finite, that are probabilities, of another shape, or of other inputs or
            classes in the two; or inputs are missing or given in vain.

    Source: 2010.02916, the fast equilibrium conjecture, for a law of classes; its experiments
    compare laws of predictions by the l1 distance, which is twice the total variation.
    """
    for name, word, words in (("kind", kind, Kind), ("law", law, Law)):
        if word not in get_args(words):
            raise ValueError(f"{name} must be {' or '.join(get_args(words))}, got {word!r}")
    permutations = whole_number("permutations", permutations, least=1)
    if inputs is not None and isinstance(models, Tensor) and isinstance(others, Tensor):
        raise ValueError("inputs must be None where models and others are outputs already")
    given = [
        _outputs(name, found, inputs) for name, found in (("models", models), ("others", others))
    ]
    one, other = _laws(given, law)
    if kind == "symmetric kl" and law == "classes":
        raise ValueError(
            "kind='symmetric kl' of classes is infinite where one ensemble never chooses a class; "
            "take law='probabilities', or kind='total variation'"
        )
    distance = _total_variation if kind == "total variation" else _symmetric_kl
    value = float(distance(one.mean(0), other.mean(0)))
    drawn = torch.cat(
        list(_redrawn(torch.cat([one, other]), len(one), distance, permutations, generator))
    )
    ends = torch.quantile(drawn, drawn.new_tensor([0.025, 0.975])).tolist()
    # Divisions that give the same number up to rounding are as far apart.
    as_far = int((drawn >= value * (1 - 1e-9)).sum())
    return FunctionDistance(
        value=value,
        stderr=_jackknife(one, other, distance),
        null=float(drawn.mean()),
        null_interval=(ends[0], ends[1]),
        p_value=(1 + as_far) / (1 + permutations),
        kind=kind,
        law=law,
        members=(len(one), len(other)),
        num_inputs=one.shape[1],
        permutations=permutations,
    )


def _outputs(name: str, models: Models, inputs: Any) -> Tensor:
    """Logits `[members, rows, classes]`, or chosen classes `[members, rows]`."""
    if isinstance(models, Tensor):
        found = models.detach()
    elif not isinstance(models, Sequence | Predicts) or isinstance(models, nn.Module):
        raise TypeError(
            f"{name} must be modules in a list, a train.Ensemble, or their outputs as a tensor, "
            f"got {type(models).__name__}"
        )
    elif inputs is None:
        raise ValueError(f"inputs must be given where {name} are no outputs yet, got None")
    elif isinstance(models, Predicts):
        found = models.predict(inputs).detach()
    else:
        for model in models:
            check_model(model, f"each of {name}")
        if len({id(model) for model in models}) < len(models):
            raise ValueError(
                f"{name} must be different modules, but one of them is there twice: members must "
                "be independent"
            )
        shown = [_of_module(model, inputs) for model in models]
        if len({tuple(own.shape) for own in shown}) > 1:
            shapes = sorted({tuple(own.shape) for own in shown})
            raise ValueError(f"{name} must give outputs of one shape, got {shapes}")
        found = torch.stack(shown) if shown else torch.empty(0, 0, 0)
    whole = not found.is_floating_point()
    if found.is_complex() or found.dtype == torch.bool or found.ndim != (2 if whole else 3):
        raise ValueError(
            f"{name} must give logits [members, rows, classes], or classes [members, rows] as "
            f"whole numbers, got shape {tuple(found.shape)} of {found.dtype}"
        )
    if len(found) < 2 or not found.shape[1]:
        raise ValueError(
            f"{name} must hold at least two members' outputs on at least one input, got "
            f"{len(found)} members on {found.shape[1]}"
        )
    if not whole and found.shape[2] < 2:
        raise ValueError(
            f"{name} give a single output; for two classes give the logits [-f / 2, f / 2]"
        )
    if not whole and not torch.isfinite(found).all():
        lost = [e for e, own in enumerate(found) if not torch.isfinite(own).all()]
        raise ValueError(
            f"{name} must give finite outputs, but members {lost[:8]} do not; leave out those that "
            "diverged"
        )
    if not whole and bool((found >= 0).all()):
        sums = found.double().sum(2)
        if bool(((sums - 1).abs() < 1e-2).all()):
            raise ValueError(
                f"{name} must give logits, but give probabilities: all are at least 0 and each "
                "row's sum is 1; give their logarithms"
            )
    if whole and bool((found < 0).any()):
        raise ValueError(f"{name} must hold classes from 0 on, got {int(found.min())}")
    return found


def _of_module(model: nn.Module, inputs: Any) -> Tensor:
    stand_in = StandIn(model)
    with evaluating(model), torch.no_grad():
        found = logits_of(stand_in.run(stand_in.own(), (inputs,)))
    if not isinstance(found, Tensor):
        raise TypeError(f"a model must return a tensor of outputs, got {type(found).__name__}")
    return found


def _laws(given: Sequence[Tensor], law: Law) -> list[Float64[Tensor, "members rows classes"]]:
    """Every member's own law, of one class if it is its choice."""
    whole = [not found.is_floating_point() for found in given]
    if any(whole) and law == "probabilities":
        raise ValueError("law='probabilities' needs logits; of whole numbers take law='classes'")
    if given[0].shape[1] != given[1].shape[1]:
        rows = [found.shape[1] for found in given]
        raise ValueError(f"models and others must be shown the same inputs, got {rows} rows")
    classes = [found.shape[2] for found, own in zip(given, whole, strict=True) if not own]
    if len(set(classes)) > 1:
        raise ValueError(f"models and others must have the same classes, got {classes}")
    if law == "probabilities":
        return [found.double().softmax(2) for found in given]
    chosen = [
        found.long() if own else found.argmax(2) for found, own in zip(given, whole, strict=True)
    ]
    highest = max(int(found.max()) for found in chosen)
    if classes and highest >= classes[0]:
        raise ValueError(f"classes must lie below the {classes[0]} of the logits, got {highest}")
    # Of those that somebody chose, however they are numbered.
    _, which = torch.cat(chosen).unique(return_inverse=True)
    laws = nn.functional.one_hot(which).double()
    return [laws[: len(chosen[0])], laws[len(chosen[0]) :]]


Distance = Callable[[Tensor, Tensor], Tensor]


def _total_variation(
    p: Shaped[Tensor, "*some rows classes"], q: Shaped[Tensor, "*some rows classes"]
) -> Shaped[Tensor, "*some"]:
    return (p - q).abs().sum(-1).mean(-1) / 2


def _symmetric_kl(
    p: Shaped[Tensor, "*some rows classes"], q: Shaped[Tensor, "*some rows classes"]
) -> Shaped[Tensor, "*some"]:
    # A softmax may underflow to zero; there both laws are as good as zero, or the distance is huge.
    tiny = torch.finfo(p.dtype).tiny
    ratio = (p.clamp_min(tiny) / q.clamp_min(tiny)).log()
    return ((p - q) * ratio).sum(-1).mean(-1) / 2


def _redrawn(
    pooled: Float64[Tensor, "members rows classes"],
    first: int,
    distance: Distance,
    permutations: int,
    generator: torch.Generator | None,
) -> Iterator[Float64[Tensor, " some"]]:
    """Distances between the two parts of random divisions, a block of divisions at a time."""
    generator = or_new(generator)
    members, flat = len(pooled), pooled.flatten(1)
    total, block = flat.sum(0), max(1, _NUMBERS // flat.shape[1])
    for start in range(0, permutations, block):
        count = min(block, permutations - start)
        ranks = torch.rand(count, members, dtype=torch.float64, generator=generator).argsort(1)
        sums = (ranks < first).to(flat) @ flat
        parts = sums / first, (total - sums) / (members - first)
        yield distance(*(part.unflatten(1, pooled.shape[1:]) for part in parts))


def _jackknife(one: Tensor, other: Tensor, distance: Distance) -> float:
    """The standard error over members of both."""
    variance = 0.0
    for varied, kept in ((one, other), (other, one)):
        total, count, mean = varied.sum(0), len(varied), kept.mean(0)
        left = torch.stack([distance((total - own) / (count - 1), mean) for own in varied])
        variance += float(left.var(correction=0)) * (count - 1)
    return variance**0.5
