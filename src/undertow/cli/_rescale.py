"""`undertow rescale`: hyperparameters for another batch size (`apply.rescale`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from undertow.cli._fields import Above0, Count, From0, Memory, NotNegative, Shown
from undertow.cli._output import EXPECTED_ERRORS, remark, show, undisturbed
from undertow.cli._words import arguments, in_samples, parse

SYNOPSIS = "--lr X ..."
SUMMARY = "hyperparameters for another batch size"
_HYPER = (
    *("lr", "momentum", "betas", "alpha", "eps", "weight_decay"),
    *("steps", "warmup_steps", "milestones"),
)
PARAMETERS = {
    "batch_size": "from_batch",
    "to": "to_batch",
    "workers": "from_workers",
    "verify": "objective",
    "averages": "betas",
    **dict.fromkeys(_HYPER, "optimizer_or_dict"),
}


@dataclass(frozen=True)
class Options:
    """What `rescale` takes."""

    optimizer: Annotated[str, Shown("NAME")]
    """sgd, adamw, lion, muon, ...: a wrong one names them all."""
    lr: Above0
    """Learning rate."""
    batch_size: Annotated[str, Shown("N")]
    """Samples a step on one worker, now; also as 5e5, 0.5M, 256seq."""
    to: Annotated[str, Shown("N")]
    """And after."""
    sequence_length: Count | None = None
    """Tokens a sequence: batches are then in tokens, unless as 256seq."""
    workers: Count = 1
    """Data-parallel workers now."""
    to_workers: Count | None = None
    """And after; as many by default."""
    momentum: Memory | None = None
    """Of SGD."""
    betas: Annotated[tuple[Memory, Memory] | None, Shown("B1 B2")] = None
    """Of Adam and AdamW."""
    alpha: Memory | None = None
    """Of RMSprop."""
    eps: From0 | None = None
    """Outside the root."""
    weight_decay: From0 | None = None
    """PyTorch's."""
    steps: NotNegative | None = None
    """Of the run."""
    warmup_steps: NotNegative | None = None
    """Of warm-up."""
    milestones: tuple[NotNegative, ...] | None = None
    """Steps at which the rate drops."""
    rule: Annotated[str | None, Shown("NAME")] = None
    """Another rule than the optimizer's own, such as linear or fixed-rate."""
    averages: Annotated[Literal["half-life", "sde", "keep"], Shown("NAME")] = "half-life"
    """What becomes of betas: half-life (beta^k), sde (1 - k (1 - beta)) or keep."""
    noise_scale: Above0 | None = None
    """Measured noise scale, in samples: warns where the rule ends."""
    sharpness: Above0 | None = None
    """Measured largest eigenvalue of the Hessian: the same."""
    verify: Annotated[str | None, Shown("FILE.py:NAME")] = None
    """Run that file, call its NAME() for an Objective, and try the rule there in short runs."""
    every: bool = False
    """Print every rule's source and range, too."""
    json: bool = False
    """Print one JSON object."""


def run(words: Sequence[str]) -> int:
    """Print each hyperparameter's new value, with the equation that gives it."""
    options = parse(
        Options,
        words,
        command="rescale",
        summary="Hyperparameters for another batch size, one line a change.",
    )
    from undertow import apply

    given = arguments(options, PARAMETERS) | in_samples(options, ("batch_size", "to"), PARAMETERS)
    # The batch is one of the job's values too, so that what is printed is whole.
    hyper = given.pop("optimizer_or_dict") | {"batch_size": given["from_batch"]}
    with undisturbed(options.json):
        if options.verify is not None:
            file = options.verify.rpartition(":")[0]
            if Path(file).is_file():
                remark(f"--verify runs {file}: whatever stands in it is done")
            given["objective"] = apply.load_objective(options.verify)
        # Its model and loss are not ours either.
        alone = options.verify is None
        foreign = apply.survived(str(options.verify), passing=EXPECTED_ERRORS)
        with nullcontext() if alone else foreign:
            found = apply.rescale(
                {name: value for name, value in hyper.items() if value is not None}, **given
            )
    show(found.document(every=options.every), options.json)
    return 0
