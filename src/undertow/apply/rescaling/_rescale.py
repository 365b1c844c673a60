"""Move a job to another batch size or number of workers, optimizer and its state included.

The rules are those of `predict.rescale` (2102.12470, 2205.10287); here they meet optimizers that
are running, their schedulers, and configurations as people keep them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from undertow import predict
from undertow.apply._arguments import whole_number
from undertow.apply.rescaling import _running, _schedulers, configs
from undertow.apply.rescaling._law import Law
from undertow.apply.rescaling._result import Live, Rescaled
from undertow.apply.rescaling._schedulers import Given
from undertow.apply.rescaling._units import Quantity, quantity
from undertow.predict import Betas

if TYPE_CHECKING:
    from undertow.apply.rescaling._verify import Verification
    from undertow.objective import Objective


def rescale(
    optimizer_or_dict: Any,
    *,
    from_batch: int | str | None = None,
    to_batch: int | str,
    from_workers: int = 1,
    to_workers: int | None = None,
    optimizer: str | None = None,
    scheduler: Any = None,
    rule: str | None = None,
    betas: Betas = "half-life",
    noise_scale: float | None = None,
    sharpness: float | None = None,
    objective: Objective | None = None,
) -> Rescaled:
    """Hyperparameters that keep a job's training path at another batch size.

    Nothing is changed until `.apply()` is called on the result for an optimizer; a configuration
    is returned anew in `.hyper`, of the type that was given and with the new batch in it, so that a
    second call changes nothing. The rules, their equations and ranges are those of
    `predict.rescale`.

    Args:
        optimizer_or_dict: an optimizer of `torch.optim` or `train.optim`, alone or inside what
            holds it (accelerate, DeepSpeed, Lightning), each parameter group of which is rescaled;
            or a configuration: Transformers' `TrainingArguments`, Lightning's, nanoGPT's,
            torchtune's, DeepSpeed's, OLMo's, timm's arguments, a dictionary with the names that
            `predict.rescale` reads (and `optimizer`), as a dictionary, dataclass or namespace.
        from_batch: samples a step on one worker, now; also as "0.5M tokens" or "512 sequences". By
            default what the configuration says.
        to_batch: the same, after.
        from_workers: data-parallel workers now; 1 where the configuration counts them.
        to_workers: and after; by default as many.
        optimizer: the optimizer's name under any of its spellings, where the configuration, or the
            class of one that is running, does not say it.
        scheduler: of a running optimizer, the scheduler of `torch.optim` that moves its rate, or
            several; `{"scheduler": ..., "interval": "epoch"}` for one that steps by epochs; False
            where there is none any more. `apply` moves it too, and it goes on as the same object.
        rule: another rule for the rate than the optimizer's own, of `predict.RULES`.
        betas: what becomes of averages: `half-life`, `sde` or `keep`, see `predict.rescale`.
        noise_scale: B_simple in samples, see there.
        sharpness: largest eigenvalue of the Hessian, see there.
        objective: the job's objective at its present weights. Its noise scale and sharpness are
            then measured, and short runs check whether the rule holds here.

    Raises:
        ValueError: a value out of range, an optimizer that is not named or not known, a
            configuration that contradicts itself or what is given beside it, or a batch that the
            rule does not reach; the message names the largest factor.
        TypeError: the first argument is none of these, or a scheduler that cannot be moved.
    """
    to = quantity("to_batch", to_batch)
    start = None if from_batch is None else quantity("from_batch", from_batch)
    workers = (
        _whole("from_workers", from_workers),
        None if to_workers is None else _whole("to_workers", to_workers),
    )
    if isinstance(optimizer_or_dict, Mapping) and _running.is_running(
        optimizer_or_dict.get("optimizer")
    ):  # what Lightning's configure_optimizers returns
        scheduler = optimizer_or_dict.get("lr_scheduler") if scheduler is None else scheduler
        optimizer_or_dict = optimizer_or_dict["optimizer"]
    measures = _Measures(noise_scale, sharpness, objective, rule, betas)
    if _running.is_running(optimizer_or_dict):
        if start is None:
            raise ValueError("from_batch is needed: an optimizer does not say it")
        if start.unit != to.unit:
            raise ValueError("from_batch and to_batch must be in one unit")
        batches = (start.value * workers[0], to.value * (workers[1] or workers[0]))
        return _of_optimizer(optimizer_or_dict, optimizer, scheduler, batches, measures)
    if scheduler not in (None, False):
        raise TypeError("scheduler goes with an optimizer that is running, not a configuration")
    return _of_configuration(optimizer_or_dict, optimizer, start, to, workers, measures)


@dataclass(frozen=True)
class _Measures:
    """What is known of the job beside its hyperparameters, and which rule is asked for."""

    noise_scale: float | None
    sharpness: float | None
    objective: Objective | None
    rule: str | None
    betas: Betas

    def tried(
        self, optimizer: str, hyper: Mapping[str, Any], batches: tuple[int, int]
    ) -> tuple[_Measures, Verification | None]:
        """With what short runs measure, where there is an objective."""
        if self.objective is None:
            return self, None
        from undertow.apply.rescaling._verify import verify

        found = verify(
            self.objective,
            optimizer,
            hyper,
            from_batch=batches[0],
            to_batch=batches[1],
            rule=self.rule,
            betas=self.betas,
            noise_scale=self.noise_scale,
        )
        noise_scale, sharpness = self.noise_scale, self.sharpness
        # Where noise is all there is, or no direction curves upwards, nothing warns.
        if noise_scale is None and 0 < found.noise_scale < math.inf:
            noise_scale = found.noise_scale
        if optimizer in ("sgd", "momentum") and sharpness is None:
            sharpness = found.sharpness if found.sharpness > 0 else None
        return replace(self, noise_scale=noise_scale, sharpness=sharpness, objective=None), found

    def ruled(
        self, optimizer: str, hyper: Mapping[str, Any], batches: tuple[int, int]
    ) -> tuple[predict.Rescaled, Law]:
        """What the rule gives, and the rule itself for the other values of a schedule."""
        arguments: dict[str, Any] = {
            "from_batch": batches[0],
            "to_batch": batches[1],
            "optimizer": optimizer,
            "rule": self.rule,
            "betas": self.betas,
            "noise_scale": self.noise_scale,
        }
        result = predict.rescale(hyper, sharpness=self.sharpness, **arguments)
        known = result.hyper["lr"] is not None
        ratio = _rate(result.hyper) / _rate(hyper) if known else 1.0
        return result, Law(hyper, ratio, arguments)


def _of_configuration(
    source: Any,
    optimizer: str | None,
    start: Quantity | None,
    to: Quantity,
    workers: tuple[int, int | None],
    measures: _Measures,
) -> Rescaled:
    job = configs.read(source, optimizer)
    plan = job.plan(from_batch=start, to_batch=to, from_workers=workers[0], to_workers=workers[1])
    batches = (plan.from_batch, plan.to_batch)
    measures, verification = measures.tried(job.optimizer, job.hyper, batches)
    result, _ = measures.ruled(job.optimizer, job.hyper, batches)
    hyper, also, notes = job.moved(result, plan)
    return Rescaled(
        hyper=hyper,
        groups=(result,),
        labels=("",),
        from_batch=plan.from_batch,
        to_batch=plan.to_batch,
        verification=verification,
        notes=tuple(dict.fromkeys((*job.notes, *notes))),
        read=job.read,
        unread=job.unread,
        also=also,
    )


def _of_optimizer(
    source: Any,
    named: str | None,
    scheduler: Any,
    batches: tuple[int, int],
    measures: _Measures,
) -> Rescaled:
    bare = _running.read_running(source, named=named)
    given: tuple[Given, ...] = ()
    if scheduler is not None and scheduler is not False:
        given = _schedulers.read_schedulers(scheduler, bare.inner, bare.layers)
    peaks = _schedulers.peaks(given, len(bare.groups)) if given else None
    running = _running.read_running(source, peaks, named)
    first = running.groups[0]
    measures, verification = measures.tried(first.optimizer, first.hyper, batches)
    ruled = [measures.ruled(group.optimizer, group.hyper, batches) for group in running.groups]
    results = tuple(result for result, _ in ruled)
    laws = tuple(law for _, law in ruled)
    hyper = [
        group.written(result.hyper, law)  # so that a schedule's other values are in reach too
        for group, (result, law) in zip(running.groups, ruled, strict=True)
    ]
    notes = [*running.notes, *(note for group in running.groups for note in group.notes)]
    notes += [note for one in given for note in one.notes]
    if running.scheduled and not given:
        notes.append(
            "the optimizer is under a scheduler: give it as scheduler=, or scheduler=False where "
            "there is none any more; the rule is that of its base rate"
        )
    if verification is not None and len(results) > 1:
        notes.append("the short runs take the first group's hyperparameters for all parameters")
    return Rescaled(
        hyper=hyper,
        groups=results,
        labels=tuple(group.label for group in running.groups),
        from_batch=batches[0],
        to_batch=batches[1],
        verification=verification,
        notes=tuple(dict.fromkeys(notes)),
        scheduler=scheduler or None,
        _live=Live(source, running, laws, named, given, alone=scheduler is False),
    )


def _whole(name: str, value: Any) -> int:
    return whole_number(name, value, least=1)


def _rate(hyper: Mapping[str, Any]) -> float:
    return float(hyper["lr"])
