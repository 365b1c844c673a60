"""Is a job in the regime where a scaling rule holds? Measured at its present weights.

The noise scale and the sharpness say what theory can; short runs say what happens: the job as it
is, the job rescaled, and the job at finer steps with amplified noise (SVAG, 2102.12470), all for
the same continuous time from the same weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from undertow import lab, measure, predict
from undertow.objective import Objective
from undertow.train import Ensemble, Member, rules

Answer = Literal["holds", "does not hold", "cannot be told"]

_REPLICAS = 16
_SVAG = 2.0
_CLOSE = 0.1  # of the way that the loss goes in the meantime
_LEAST_STEPS = 32  # of the smaller batch
_LEAST_LARGE_STEPS = 4
_MOST_STEPS = 512
_RUN = ("sgd", "momentum", "rmsprop", "adam", "adamw")
_COUNTS = ("steps", "warmup_steps", "milestones")


@dataclass(frozen=True)
class Verification:
    """Whether two jobs follow one path, from measurements and short runs at the present weights.

    Attributes:
        noise_scale: B_simple in samples, tr Sigma / ||grad L||^2.
        noise_interval: its confidence interval.
        sharpness: largest eigenvalue of the Hessian.
        steps: of the job as it is, in the short runs; the others run the same continuous time.
        start: the loss at the present weights.
        losses: mean final loss of the job as it is, rescaled, and at finer steps.
        rescaled: log loss of the rescaled runs less that of the job as it is, with its interval.
        finer: the same of the runs with finer steps: what discretisation does to the job as it is.
        margin: the difference that counts as none, a tenth of the way that the log loss went.
        answer: `holds` where both differences lie within the margin (equivalence tests at 5%),
            `does not hold` where one is outside of it, and otherwise that it cannot be told.
        notes: what was left out.
    """

    noise_scale: float
    noise_interval: tuple[float, float]
    sharpness: float
    steps: int
    start: float
    losses: Mapping[str, float]
    rescaled: lab.Effect | None
    finer: lab.Effect | None
    margin: float
    answer: Answer
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The answer in some words."""
        if self.answer == "cannot be told":
            return "Whether the rule holds here cannot be told"
        return f"For this job the rule {self.answer}"

    def __repr__(self) -> str:
        low, high = self.noise_interval
        said = (
            f"{self.verdict}. Measured here: noise scale {self.noise_scale:.4g} "
            f"[{low:.4g}, {high:.4g}] samples, sharpness {self.sharpness:.4g}."
        )
        if self.rescaled is not None and self.finer is not None:
            said += (
                f" In {_REPLICAS} runs of {self.steps} steps the loss went from {self.start:.4g} "
                f"to {self.losses['as it is']:.4g}, rescaled {self.losses['rescaled']:.4g}, at "
                f"finer steps {self.losses['finer']:.4g}: log loss {_effect(self.rescaled)} and "
                f"{_effect(self.finer)}, where {self.margin:.2g} counts as none."
            )
        return " ".join([said, *(f"Note: {note}." for note in self.notes)])

    def as_json(self) -> dict[str, Any]:
        """The whole as one JSON object can hold it."""
        return {
            "noise_scale": _finite(self.noise_scale),
            "noise_interval": [_finite(limit) for limit in self.noise_interval],
            "sharpness": self.sharpness,
            "steps": self.steps,
            "start": _finite(self.start),
            "losses": {name: _finite(loss) for name, loss in self.losses.items()},
            "rescaled": None if self.rescaled is None else self.rescaled.value,
            "finer": None if self.finer is None else self.finer.value,
            "margin": _finite(self.margin),
            "answer": self.answer,
            "notes": list(self.notes),
        }


def verify(
    objective: Objective,
    optimizer: str,
    hyper: Mapping[str, Any],
    *,
    from_batch: int,
    to_batch: int,
    rule: str | None = None,
    betas: predict.Betas = "half-life",
    noise_scale: float | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> Verification:
    """Measure noise scale and sharpness, and run the job as it is, rescaled, and at finer steps.

    The short runs start from the objective's present weights with fresh optimizer states, and draw
    samples with replacement. The objective's model is left as it is.

    Args:
        objective: model, loss and data of the job.
        optimizer: the family of its optimizer.
        hyper: its hyperparameters, as `predict.rescale` reads them.
        from_batch: samples a step, now.
        to_batch: and after.
        rule: see `predict.rescale`.
        betas: see there.
        noise_scale: for the rules that read it; measured first where it is not given.
        steps: of the job as it is; by default as few as give both batch sizes some.
        seed: of the short runs.

    Raises:
        ValueError: the noise scale cannot be measured: the data hold a single sample.
    """
    factor = to_batch / from_batch
    hyper = {name: v for name, v in hyper.items() if name not in _COUNTS}
    noise = None
    if rule is not None and noise_scale is None:
        noise = measure.gradient_noise(objective)
        noise_scale = float(noise.noise_scale) if 0 < noise.noise_scale < math.inf else None
    rescaling = predict.rescale(
        hyper,
        from_batch=from_batch,
        to_batch=to_batch,
        optimizer=optimizer,  # type: ignore[arg-type]
        rule=rule,
        betas=betas,
        noise_scale=noise_scale,
    )
    # With the defaults that were not given, so that all runs have the same ones.
    hyper, new = {change.name: change.old for change in rescaling.changes}, rescaling.hyper
    steps, notes = _length(optimizer, _member_fields(hyper), factor, steps)
    # After the rule has said that it reaches that batch: this is the expensive part.
    noise = measure.gradient_noise(objective) if noise is None else noise
    sharp = measure.sharpness(objective, k=1)
    measured: dict[str, Any] = {
        "noise_scale": float(noise.noise_scale),
        "noise_interval": (float(noise.interval[0]), float(noise.interval[1])),
        "sharpness": float(sharp.eigenvalues[0]),
        "steps": steps,
        "start": float(objective.value()),
    }
    unable, data = _tensors(objective, max(from_batch, to_batch))
    if optimizer not in _RUN:
        unable, data = f"there is no batched {optimizer}", None
    if data is None:
        return Verification(
            **measured,
            losses={},
            rescaled=None,
            finer=None,
            margin=math.nan,
            answer="cannot be told",
            notes=(f"no short runs: {unable}",),
        )
    bare = getattr(rules, optimizer)
    if optimizer == "sgd" and hyper.get("momentum"):
        bare = rules.momentum
    fine = rules.svag(bare, _SVAG)

    final = partial(_final_losses, objective, data, seed)
    runs = {
        "as it is": final(bare, hyper, from_batch, steps),
        "rescaled": final(bare, new, to_batch, max(1, round(steps / factor))),
        "finer": final(fine, hyper, from_batch, round(steps * fine.steps_per_step)),
    }
    return _judged(measured, runs, notes)


def _length(
    optimizer: str, fields: Mapping[str, Any], factor: float, steps: int | None
) -> tuple[int, tuple[str, ...]]:
    """The steps of the job as it is, and what there is to say of them."""
    memory = 0.0
    if optimizer not in ("sgd", "momentum") and "beta2" in fields:  # else it is a mere default
        memory = 1 / (1 - fields["beta2"])
    if steps is None:
        least = max(_LEAST_STEPS * max(1.0, 1 / factor), _LEAST_LARGE_STEPS * factor)
        steps = math.ceil(max(least, min(2 * memory, _MOST_STEPS)))
    if steps >= memory:
        return steps, ()
    remembered = f"the {memory:.0f} steps that mean squares remember"
    return steps, (f"the runs are shorter than {remembered}, so their start has a part in it",)


def _final_losses(
    objective: Objective,
    data: tuple[Tensor, Tensor],
    seed: int,
    rule: rules.Rule,
    values: Mapping[str, Any],
    batch: int,
    count: int,
) -> Tensor:
    """The losses of the replicas of a short run at its end."""
    member = Member(0, order="replacement", **_member_fields(values))  # type: ignore[arg-type]
    members = [replace(member, seed=seed * _REPLICAS + replica) for replica in range(_REPLICAS)]
    ensemble = Ensemble(
        copy.deepcopy(objective.model),
        objective.loss,  # type: ignore[arg-type]
        data,
        members,
        batch_size=batch,
        rule=rule,
    )
    return ensemble.train(count).evaluate(*data).loss.double()


def _judged(
    measured: dict[str, Any], runs: Mapping[str, Tensor], notes: tuple[str, ...]
) -> Verification:
    losses = {name: float(values.mean()) for name, values in runs.items()}
    shared = {**measured, "losses": losses}
    sound = all(torch.isfinite(values).all() and (values > 0).all() for values in runs.values())
    if not (sound and measured["start"] > 0):
        broken = [name for name, values in runs.items() if not torch.isfinite(values).all()]
        note = f"runs diverged: {', '.join(broken)}" if broken else "a loss is not positive"
        answer: Answer = "does not hold" if broken else "cannot be told"
        return Verification(
            **shared,
            rescaled=None,
            finer=None,
            margin=math.nan,
            answer=answer,
            notes=(*notes, note),
        )
    logs = {name: values.log().numpy() for name, values in runs.items()}
    margin = _CLOSE * abs(float(logs["as it is"].mean()) - math.log(measured["start"]))
    tests = [
        lab.equivalence_test(logs[name], logs["as it is"], margin=margin, paired=False)
        for name in ("rescaled", "finer")
    ]
    answer = "cannot be told"
    if all(test.p_value is not None and test.p_value < 0.05 for test in tests):
        answer = "holds"
    elif any(min(abs(x) for x in test.interval) > margin and _one_sided(test) for test in tests):
        answer = "does not hold"
    return Verification(
        **shared, rescaled=tests[0], finer=tests[1], margin=margin, answer=answer, notes=notes
    )


def _one_sided(test: lab.Effect) -> bool:
    """Whether the interval lies on one side of zero."""
    low, high = test.interval
    return low > 0 or high < 0


def _tensors(objective: Objective, batch: int) -> tuple[str, tuple[Tensor, Tensor] | None]:
    """The data as two tensors; or why the short runs cannot be had, and None."""
    if objective.loss is None:
        return "the model computes its own loss", None
    pieces = list(objective.batches())
    if not all(isinstance(inputs, Tensor) for inputs, _ in pieces):
        return "the inputs are no tensor", None
    inputs = torch.cat([inputs for inputs, _ in pieces])
    targets = torch.cat([targets for _, targets in pieces])
    if len(inputs) < batch:
        return f"a batch of {batch} is larger than the {len(inputs)} samples given", None
    return "", (inputs, targets)


def _member_fields(hyper: Mapping[str, Any]) -> dict[str, float]:
    known = {"lr", "weight_decay", "momentum", "beta1", "beta2", "eps"}
    fields = {name: float(value) for name, value in hyper.items() if name in known}
    if "betas" in hyper:
        fields["beta1"], fields["beta2"] = map(float, hyper["betas"])
    if "alpha" in hyper:
        fields["beta2"] = float(hyper["alpha"])
    return fields


def _effect(effect: lab.Effect) -> str:
    low, high = effect.interval
    return f"{effect.value:+.2g} [{low:+.2g}, {high:+.2g}]"


def _finite(value: float) -> float | None:
    """A number as JSON can hold it: infinities and NaN are null."""
    return value if math.isfinite(value) else None
