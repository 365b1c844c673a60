"""Move a job to another batch size or number of workers, optimizer and its state included.

The rules are those of `predict.rescale` (2102.12470, 2205.10287); here they meet optimizers that
are running and configurations as people keep them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from undertow import lab, predict
from undertow.apply.rescaling._configs import Config, read_config, read_groups, rescale_state
from undertow.predict import Change

if TYPE_CHECKING:
    from pathlib import Path

    from undertow.apply.rescaling._verify import Verification
    from undertow.objective import Objective


@dataclass(frozen=True, eq=False)
class Rescaled:
    """Hyperparameters for another batch size, in the form in which they were given.

    Attributes:
        hyper: a dictionary like the one given; of TrainingArguments, the fields to replace; of an
            optimizer, one dictionary for each parameter group.
        groups: the rule's result for each parameter group (one where there are no groups), with
            every change, its equation and its reason.
        from_batch: samples a step over all workers, before.
        to_batch: and after.
        verification: whether the rule holds for this job, where an objective was given.
        notes: what the rules do not cover.
    """

    hyper: Any
    groups: tuple[predict.Rescaled, ...]
    labels: tuple[str, ...]
    from_batch: int
    to_batch: int
    verification: Verification | None = None
    notes: tuple[str, ...] = ()
    _source: Any = None
    _read: tuple[Mapping[str, Any], ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Where the noise scale or the sharpness says that the runs will part."""
        return tuple(dict.fromkeys(text for group in self.groups for text in group.warnings))

    def apply(self) -> list[str]:
        """Set the new values in the optimizer that was given, its state included.

        Mean squares of gradients are divided by k, as they hold Sigma / batch, and Adam's step
        count moves with its averages. Returns a line for each kind of state that was changed.

        Raises:
            TypeError: it was no optimizer that was given.
            ValueError: the optimizer is no longer as it was read: this was applied already, or a
                scheduler has moved it since. Then nothing has been changed.
        """
        optimizer = self._source
        if not hasattr(optimizer, "param_groups"):
            raise TypeError("apply needs an optimizer; for a configuration use .hyper")
        if [config.hyper for config in read_groups(optimizer)] != list(self._read):
            raise ValueError(
                "the optimizer's hyperparameters have changed since they were read, by apply or by "
                "a scheduler: call rescale again"
            )
        said: list[str] = []
        for group, new, result in zip(optimizer.param_groups, self.hyper, self.groups, strict=True):
            factor = result.factor
            if result.rule != "linear":
                betas = (_slowest(group), _slowest(new))
                said += rescale_state(optimizer, group, factor, betas)
            for name, value in new.items():
                group[name] = _set(group.get(name), value)
        return list(dict.fromkeys(said))

    def document(self) -> lab.Document:
        """Each change with its equation and reason, what was assumed, and where the rule ends."""
        state, count = None, len(self.warnings)
        if count:
            state = lab.State(f"{count} warning{'s' if count > 1 else ''}", "unsure")
        said = () if self.verification is None else (repr(self.verification),)
        return lab.Document(
            title=f"Batch {self.from_batch} -> {self.to_batch} (k = {self.groups[0].factor:.6g}),"
            f" by the {self.groups[0].rule} rule",
            state=state,
            sections=(
                *(
                    lab.Section(label.rstrip(": "), (_table(group.changes),))
                    for label, group in zip(self.labels, self.groups, strict=True)
                ),
                lab.Section("Warnings", (self.warnings,)),
                lab.Section("Notes", (self.notes,)),
                lab.Section("Tried on this job", said),
                lab.Section("It assumes that", (self.groups[0].assumptions,)),
            ),
            data=self._data(),
        )

    def text(self) -> str:
        """The document in 80 columns."""
        return lab.as_text(self.document())

    def write_html(self, path: str | PathLike[str]) -> Path:
        """Write the page, as one file that needs no network."""
        return lab.write_page(self.document(), path)

    def as_json(self) -> dict[str, Any]:
        """The whole as one JSON object can hold it."""
        content: dict[str, Any] = json.loads(lab.as_json(self.document()))
        return content

    def __repr__(self) -> str:
        rule = self.groups[0].rule
        count = len(self.warnings)
        caution = f" {count} warning{'s' if count > 1 else ''}." if count else ""
        return (
            f"Batch {self.from_batch} -> {self.to_batch} (k = {self.groups[0].factor:.6g}), by the "
            f"{rule} rule.{caution}"
        )

    def _data(self) -> dict[str, Any]:
        return {
            "hyper": self.hyper,
            "from_batch": self.from_batch,
            "to_batch": self.to_batch,
            "factor": self.groups[0].factor,
            "rule": self.groups[0].rule,
            "changes": [
                {
                    "group": label.rstrip(": ") or None,
                    "name": change.name,
                    "old": change.old,
                    "new": change.new,
                    "equation": change.equation,
                    "reason": change.reason,
                }
                for label, group in zip(self.labels, self.groups, strict=True)
                for change in group.changes
            ],
            "assumptions": list(self.groups[0].assumptions),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "verification": None if self.verification is None else self.verification.as_json(),
        }


def rescale(
    optimizer_or_dict: Any,
    *,
    from_batch: int | None = None,
    to_batch: int,
    from_workers: int = 1,
    to_workers: int | None = None,
    optimizer: str | None = None,
    noise_scale: float | None = None,
    sharpness: float | None = None,
    objective: Objective | None = None,
) -> Rescaled:
    """Hyperparameters that keep a job's training path at another batch size.

    Nothing is changed until `.apply()` is called on the result for an optimizer; a configuration
    is returned anew in `.hyper`. The rules, their equations and ranges are those of
    `predict.rescale`.

    Args:
        optimizer_or_dict: an optimizer of `torch.optim` or `train.optim`, each parameter group of
            which is rescaled; a dictionary with the names that `predict.rescale` reads (and
            `optimizer`); Transformers `TrainingArguments` or a dictionary of its fields; or a
            configuration of Lightning's command line.
        from_batch: samples a step on one worker, now. By default what the configuration says.
        to_batch: the same, after.
        from_workers: data-parallel workers now; 1 where the configuration counts them.
        to_workers: and after; by default as many.
        optimizer: sgd, momentum, rmsprop, adam or adamw, where the configuration does not say.
        noise_scale: B_simple in samples, see `predict.rescale`.
        sharpness: largest eigenvalue of the Hessian, see there.
        objective: the job's objective at its present weights. Its noise scale and sharpness are
            then measured, and short runs check whether the rule holds here.

    Raises:
        ValueError: a value out of range, an optimizer that no rule is known for, or a batch that
            the rule does not reach; the message names the largest factor.
        TypeError: the first argument is none of these.
    """
    to_workers = from_workers if to_workers is None else to_workers
    running = hasattr(optimizer_or_dict, "param_groups")
    if running:
        configs = read_groups(optimizer_or_dict)
    else:
        configs = [read_config(optimizer_or_dict, optimizer)]
    if from_batch is None:
        from_batch = _batch_of(configs[0], from_workers)
    verification: Verification | None = None
    if objective is not None:
        from undertow.apply.rescaling._verify import verify

        verification = verify(
            objective,
            configs[0],
            from_batch=from_batch * from_workers,
            to_batch=to_batch * to_workers,
        )
        # Where noise is all there is, or no direction curves upwards, nothing warns.
        if noise_scale is None and 0 < verification.noise_scale < math.inf:
            noise_scale = verification.noise_scale
        if configs[0].optimizer in ("sgd", "momentum") and sharpness is None:
            sharpness = verification.sharpness if verification.sharpness > 0 else None

    def one(config: Config) -> predict.Rescaled:
        return predict.rescale(
            config.hyper,
            from_batch=from_batch,
            to_batch=to_batch,
            optimizer=config.optimizer,  # type: ignore[arg-type]
            from_workers=from_workers,
            to_workers=to_workers,
            noise_scale=noise_scale,
            sharpness=sharpness,
        )

    results = [one(config) for config in configs]
    written = [
        config.written(result.hyper) for config, result in zip(configs, results, strict=True)
    ]
    notes = [note for config in configs for note in config.notes]
    if verification is not None and len(configs) > 1:
        notes.append("the short runs take the first group's hyperparameters for all parameters")
    return Rescaled(
        hyper=written if running else written[0],
        groups=tuple(results),
        labels=tuple(config.label for config in configs),
        from_batch=from_batch * from_workers,
        to_batch=to_batch * to_workers,
        verification=verification,
        notes=tuple(dict.fromkeys(notes)),
        _source=optimizer_or_dict,
        _read=tuple(config.hyper for config in configs),
    )


def _batch_of(config: Config, from_workers: int) -> int:
    """The batch that a configuration says."""
    if config.batch is None:
        raise ValueError("from_batch is needed: the configuration does not say it")
    if config.workers_counted and from_workers != 1:
        raise ValueError(
            f"from_workers: the configuration counts its workers, {config.batch} samples a step "
            "over all of them; leave from_workers at 1, or give from_batch too"
        )
    return config.batch


def _set(present: Any, value: Any) -> Any:
    """The new value; in the tensors that hold the present one, where captured graphs read it."""
    if isinstance(present, tuple | list):
        return tuple(map(_set, present, value))
    return present.fill_(value) if hasattr(present, "fill_") else value


def _slowest(group: Mapping[str, Any]) -> float:
    """The decay of the mean of squared gradients."""
    if "betas" in group:
        return float(group["betas"][1])
    return float(group.get("alpha", group.get("beta2", 0.0)))


def _table(changes: tuple[Change, ...]) -> lab.Table:
    """A row a hyperparameter; at a terminal the reason stands under the equation."""
    return lab.Table(
        {
            "name": [change.name for change in changes],
            "change": [
                f"{_shown(change.old)} stays"
                if change.old == change.new
                else f"{_shown(change.old)} -> {_shown(change.new)}"
                for change in changes
            ],
            "equation": [change.equation for change in changes],
            "reason": [change.reason for change in changes],
        },
        terminal=("name", "change", ("equation", "reason")),
    )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_shown(one) for one in value)})"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
