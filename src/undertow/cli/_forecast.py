"""`undertow forecast`: what a run's hyperparameters say before it starts (`apply.forecast`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from undertow.cli._fields import Shown
from undertow.cli._output import show
from undertow.cli._words import UsageError, arguments, in_samples, parse

SYNOPSIS = "--lr X ..."
SUMMARY = "what a run will forget, before it starts"
PARAMETERS = {"checkpoint": "model_or_shapes", "shapes": "model_or_shapes"}


@dataclass(frozen=True)
class Options:
    """What `forecast` takes."""

    lr: float
    """Peak learning rate."""
    weight_decay: float
    """PyTorch's."""
    steps: int
    """Optimizer steps of the run."""
    batch_size: Annotated[str, Shown("N")]
    """Samples a step over all workers; also as 5e5, 0.5M, 256seq."""
    checkpoint: Path | None = None
    """Shapes and norms of its matrices."""
    shapes: Annotated[tuple[str, ...] | None, Shown("ROWSxCOLS...")] = None
    """Shapes of matrices, in place of a checkpoint."""
    optimizer: Annotated[str | None, Shown("NAME")] = None
    """Of any kind: sgd (the default), adamw, lion, muon, ..."""
    momentum: float | None = None
    """Of SGD."""
    schedule: Annotated[str, Shown("NAME")] = "constant"
    """constant, cosine:FLOOR, linear, wsd, onecycle or step:0.1@3000,6000."""
    warmup_steps: int = 0
    """Of linear warm-up before it."""
    samples: Annotated[str | None, Shown("N")] = None
    """Of the training set, to count epochs."""
    sequence_length: int | None = None
    """Tokens a sequence: these two are then in tokens, unless as 256seq."""
    init: Annotated[str, Shown("NAME")] = "pytorch"
    """Initialisation: pytorch, he, lecun or xavier."""
    threshold: float = 1e-3
    """Of ranks, relative to the Frobenius norm."""
    norm_ratio: float = 1.0
    """Final over initial norm, where only shapes are given."""
    sync_alpha: float | None = None
    """Of the quadratic synchronisation rule."""
    sync_base: int = 4
    """Its least period."""
    records: Annotated[Path | None, Shown("FILE")] = None
    """A run's records: forecast and measurement side by side."""
    html: Annotated[Path | None, Shown("FILE")] = None
    """Write a page with curves there."""
    json: bool = False
    """Print one JSON object."""


def run(words: Sequence[str]) -> int:
    """Print what decay leaves of the initial weights, and each layer's forecast rank."""
    options = parse(
        Options,
        words,
        command="forecast",
        summary="What a run's hyperparameters say before it starts.",
    )
    if options.checkpoint is not None and options.shapes:
        raise UsageError("forecast: give --checkpoint or --shapes, not both")
    from undertow import apply

    given = arguments(options, PARAMETERS)
    given |= in_samples(options, ("batch_size", "samples"), PARAMETERS)
    given["model_or_shapes"] = (
        apply.parse_shapes(options.shapes) if options.shapes else options.checkpoint
    )
    found = apply.forecast(**given)
    if options.html is not None:
        found.write_html(options.html)
    show(found.document(), options.json)
    return 0
