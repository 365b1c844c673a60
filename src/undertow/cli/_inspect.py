"""`undertow inspect`: what the weight matrices of a checkpoint are like (`apply.inspect`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from undertow.cli._fields import Shown
from undertow.cli._output import show
from undertow.cli._words import arguments, parse

SYNOPSIS = "CHECKPOINT"
SUMMARY = "ranks, norms and compressibility per layer"
PARAMETERS = {"path": "path_or_model"}


@dataclass(frozen=True)
class Options:
    """What `inspect` takes."""

    path: Annotated[Path, Shown("CHECKPOINT", positional=True)]
    """A .safetensors, .pt, .pth, .bin or .ckpt file, an .index.json, or a folder with one."""
    against: Annotated[Path | None, Shown("OTHER")] = None
    """Another: the table is then of the differences, what fine-tuning changed."""
    threshold: float = 1e-3
    """Of the rank, relative to the Frobenius norm."""
    errors: Annotated[tuple[float, ...], Shown("E...")] = (0.01, 0.05, 0.1)
    """Relative errors that compressibility is given for."""
    lr: float | None = None
    """With --weight-decay and --steps: what is left of the initial weights."""
    weight_decay: float | None = None
    """PyTorch's."""
    steps: int | None = None
    """Optimizer steps taken."""
    momentum: float = 0.0
    """Of SGD with coupled decay."""
    init: Annotated[str, Shown("NAME")] = "pytorch"
    """Initialisation: pytorch, he, lecun or xavier."""
    every: bool = False
    """A line for every matrix, not for every role."""
    csv: Annotated[Path | None, Shown("FILE")] = None
    """Write the table and the spectra there."""
    html: Annotated[Path | None, Shown("FILE")] = None
    """Write a page with spectra drawn there."""
    workers: int | None = None
    """Threads; one a core by default."""
    json: bool = False
    """Print one JSON object."""


def run(words: Sequence[str]) -> int:
    """Read a checkpoint, and print, write or draw what was found."""
    options = parse(
        Options,
        words,
        command="inspect",
        summary="Ranks, norms, spectra and compressibility of every weight matrix of a checkpoint.",
    )
    from undertow import apply, lab

    found = apply.inspect(**arguments(options, PARAMETERS), progress=True)
    if options.csv is not None:
        lab.write_atomically(options.csv, found.csv().encode())
    if options.html is not None:
        found.write_html(options.html)
    show(found.document(every=options.every), options.json)
    return 0
