"""How the words of a command line become options, and a claim's knobs.

Knobs are the fields of the claim's configuration, with the preset's values as defaults.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

if TYPE_CHECKING:
    from undertow.claims import Claim

Outcome = Literal["supported", "refuted", "inconclusive"]
# Names in place of the choices keep the help of a claim with many knobs on one screen.
_Preset = Annotated[Literal["smoke", "small", "paper"], tyro.conf.arg(metavar="NAME")]
_Engine = Annotated[Literal["local", "inline"], tyro.conf.arg(metavar="NAME")]
_Workers = Annotated[int | None, tyro.conf.arg(metavar="N")]
_Expect = Annotated[Outcome | None, tyro.conf.arg(metavar="VERDICT")]
_File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
_Number = Annotated[float, tyro.conf.arg(metavar="X")]
_Count = Annotated[int, tyro.conf.arg(metavar="N")]
_Optimizer = Annotated[str, tyro.conf.arg(metavar="NAME")]
_MaybeNumber = Annotated[float | None, tyro.conf.arg(metavar="X")]
_Parsed = TypeVar("_Parsed")


class UsageError(Exception):
    """The arguments make no sense; the message says what would."""


@dataclass(frozen=True)
class ReproduceOptions:
    """What `reproduce` takes for every claim."""

    preset: _Preset = "small"
    """smoke (seconds), small or paper (scale)."""
    seed: int = 0
    """Base seed."""
    engine: _Engine = "local"
    """local (worker processes) or inline."""
    workers: _Workers = None
    """Worker processes; one a core by default."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the run."""
    expect: _Expect = None
    """Exit with 3 on any other verdict."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class ResumeOptions:
    """What `resume` takes."""

    directory: tyro.conf.Positional[Path]
    """Folder of the run."""
    engine: _Engine = "local"
    """local (worker processes) or inline."""
    workers: _Workers = None
    """Worker processes; one a core by default."""
    expect: _Expect = None
    """Exit with 3 on any other verdict."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class ReportOptions:
    """What `report` takes."""

    directory: tyro.conf.Positional[Path]
    """Folder of the run."""
    expect: _Expect = None
    """Exit with 3 on any other verdict."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class ClaimsOptions:
    """What `claims` takes."""

    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class InspectOptions:
    """Ranks, norms, spectra and compressibility of every weight matrix of a checkpoint."""

    path: tyro.conf.Positional[Path]
    """A .safetensors, .pt, .pth, .bin or .ckpt file, an .index.json, or a folder with one."""
    against: Annotated[Path | None, tyro.conf.arg(metavar="OTHER")] = None
    """Another: the table is then of the differences, what fine-tuning changed."""
    threshold: _Number = 1e-3
    """Of the rank, relative to the Frobenius norm."""
    errors: Annotated[tuple[float, ...], tyro.conf.arg(metavar="E...")] = (0.01, 0.05, 0.1)
    """Relative errors that compressibility is given for."""
    lr: _MaybeNumber = None
    """With --weight-decay and --steps: what is left of the initial weights."""
    weight_decay: _MaybeNumber = None
    """PyTorch's."""
    steps: _Workers = None
    """Optimizer steps taken."""
    momentum: _Number = 0.0
    """Of SGD with coupled decay."""
    init: Annotated[str, tyro.conf.arg(metavar="NAME")] = "pytorch"
    """Initialisation: pytorch, he, lecun or xavier."""
    every: bool = False
    """A line for every matrix, not for every role."""
    csv: _File = None
    """Write the table there."""
    html: _File = None
    """Write a page with spectra drawn there."""
    workers: _Workers = None
    """Threads; one a core by default."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class RescaleOptions:
    """Hyperparameters for another batch size, one line a change."""

    lr: _Number
    """Learning rate."""
    batch_size: _Count
    """Samples a step on one worker, now."""
    to: _Count
    """And after."""
    optimizer: _Optimizer = "sgd"
    """sgd, momentum, rmsprop, adam or adamw."""
    workers: _Count = 1
    """Data-parallel workers now."""
    to_workers: _Workers = None
    """And after; as many by default."""
    momentum: _MaybeNumber = None
    """Of SGD."""
    betas: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="B1 B2")] = None
    """Of Adam and AdamW."""
    alpha: _MaybeNumber = None
    """Of RMSprop."""
    eps: _MaybeNumber = None
    """Outside the root."""
    weight_decay: _MaybeNumber = None
    """PyTorch's."""
    steps: _Workers = None
    """Of the run."""
    warmup_steps: _Workers = None
    """Of warm-up."""
    milestones: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="N...")] = None
    """Steps at which the rate drops."""
    noise_scale: _MaybeNumber = None
    """Measured noise scale, in samples: warns where the rule ends."""
    sharpness: _MaybeNumber = None
    """Measured largest eigenvalue of the Hessian: the same."""
    verify: Annotated[str | None, tyro.conf.arg(metavar="FILE.py:NAME")] = None
    """Run NAME() of that file for an Objective, measure there, and try the rule in short runs."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class ForecastOptions:
    """What a run's hyperparameters say before it starts."""

    lr: _Number
    """Peak learning rate."""
    weight_decay: _Number
    """PyTorch's."""
    steps: _Count
    """Optimizer steps of the run."""
    batch_size: _Count
    """Samples a step over all workers."""
    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Shapes and norms of its matrices."""
    shapes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ROWSxCOLS...")] = ()
    """Shapes of matrices, in place of a checkpoint."""
    optimizer: _Optimizer = "sgd"
    """sgd, momentum, rmsprop, adam or adamw."""
    momentum: _Number = 0.0
    """Of SGD."""
    schedule: Annotated[str, tyro.conf.arg(metavar="NAME")] = "constant"
    """constant, cosine, linear, or step:0.1@3000,6000."""
    warmup_steps: _Count = 0
    """Of linear warm-up before it."""
    samples: _Workers = None
    """Of the training set, to count epochs."""
    init: Annotated[str, tyro.conf.arg(metavar="NAME")] = "pytorch"
    """Initialisation: pytorch, he, lecun or xavier."""
    threshold: _Number = 1e-3
    """Of ranks, relative to the Frobenius norm."""
    norm_ratio: _Number = 1.0
    """Final over initial norm, where only shapes are given."""
    sync_alpha: _MaybeNumber = None
    """Of the quadratic synchronisation rule."""
    sync_base: _Count = 4
    """Its least period."""
    records: _File = None
    """A run's records: forecast and measurement side by side."""
    html: _File = None
    """Write a page with curves there."""
    json: bool = False
    """Print one JSON object."""


def parse(
    kind: type[_Parsed],
    words: Sequence[str],
    *,
    program: str,
    default: _Parsed | None = None,
    description: str = "",
) -> _Parsed:
    """The dataclass that the words spell. Help and wrong usage end the process, as tyro does."""
    given: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(
        kind,
        args=list(words),
        prog=program,
        description=description,
        config=(tyro.conf.FlagCreatePairsOff,),
        **given,
    )


def parse_reproduce(
    words: Sequence[str],
) -> tuple[ReproduceOptions, list[tuple[Claim, dict[str, Any]]]]:
    """The options, and each claim with the knobs that the words set.

    Claims come first, flags after them. A knob must belong to one of the claims; the others (as
    with `--all`) do without it.

    Raises:
        UsageError: no claim, an unknown one, or a flag that is no option and no claim's knob.
    """
    names = list(takewhile(lambda word: not word.startswith("-"), words))
    flags = _by_flag(words[len(names) :])
    chosen = _chosen(names, flags)
    if any(flag.name == "help" for flag in flags):
        _show_help(chosen)
    flags = [flag for flag in flags if flag.name != "all"]
    _refuse_unknown(flags, chosen)

    program = f"undertow reproduce {chosen[0].name}"
    options = parse(ReproduceOptions, _only(flags, ReproduceOptions), program=program)
    return options, [(claim, _knobs(claim, flags, options.preset)) for claim in chosen]


def close_to(given: str, known: Iterable[str]) -> str:
    """Which of the known names may have been meant."""
    names = list(known)
    close = difflib.get_close_matches(given, names)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"


@dataclass(frozen=True)
class _Flag:
    """One flag with the values after it; `name` is the field that it sets."""

    name: str
    words: tuple[str, ...]


def _by_flag(words: Sequence[str]) -> list[_Flag]:
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or word == "-h":
            groups.append([word])
        elif groups:
            groups[-1].append(word)
        else:
            raise UsageError(f"no flag {word!r}; flags start with --")
    return [_Flag(_field_name(group[0]), tuple(group)) for group in groups]


def _field_name(flag: str) -> str:
    name = flag.partition("=")[0].lstrip("-").replace("-", "_")
    return "help" if name == "h" else name


def _chosen(names: Sequence[str], flags: Sequence[_Flag]) -> list[Claim]:
    from undertow import claims

    if any(flag.name == "all" for flag in flags):
        if names:
            raise UsageError("give claims or --all, not both")
        names = claims.ALL
    elif not names and all(flag.name != "help" for flag in flags):
        raise UsageError(f"name the claims first, of {', '.join(claims.ALL)}; or give --all")
    try:
        return [claims.get(name) for name in names]
    except ValueError as error:
        raise UsageError(str(error)) from error


def _show_help(chosen: Sequence[Claim]) -> None:
    """Show the options, with the knobs of the claim if there is one. Ends the process."""
    if len(chosen) != 1:
        from undertow import claims

        text = f"Claims: {', '.join(claims.ALL)}; --all for each. A claim's --help shows its knobs."
        parse(ReproduceOptions, ["--help"], program="undertow reproduce CLAIM", description=text)
    (claim,) = chosen
    whole = dataclasses.make_dataclass(
        "whole",
        [
            ("options", Annotated[ReproduceOptions, tyro.conf.arg(name="")]),
            ("knobs", Annotated[claim.config, tyro.conf.arg(name="")]),
        ],
    )
    default = whole(ReproduceOptions(), claim.presets["small"])
    program = f"undertow reproduce {claim.name}"
    parse(whole, ["--help"], program=program, default=default, description=claim.title)


def _refuse_unknown(flags: Iterable[_Flag], chosen: Sequence[Claim]) -> None:
    kinds = [ReproduceOptions, *(claim.config for claim in chosen)]
    accepted = set().union(*map(_names, kinds))
    for flag in flags:
        if flag.name not in accepted:
            fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
            spelled = [f"--{name.replace('_', '-')}" for name in sorted(fields)]
            given = flag.words[0].partition("=")[0]
            raise UsageError(
                f"{', '.join(claim.name for claim in chosen)}: no knob {given};"
                f" {close_to(given, spelled)}"
            )


def _names(config: type) -> set[str]:
    """The flags of a dataclass; a switch that is on by default has `no_` before its name."""
    fields = [field.name for field in dataclasses.fields(config)]
    return {*fields, *(f"no_{name}" for name in fields)}


def _only(flags: Iterable[_Flag], config: type) -> list[str]:
    names = _names(config)
    return [word for flag in flags if flag.name in names for word in flag.words]


def _knobs(claim: Claim, flags: Iterable[_Flag], preset: str) -> dict[str, Any]:
    """The knobs that differ from the preset's, by name."""
    base = claim.presets[preset]
    program = f"undertow reproduce {claim.name}"
    given = parse(claim.config, _only(flags, claim.config), program=program, default=base)
    names = [field.name for field in dataclasses.fields(claim.config)]
    return {
        name: getattr(given, name) for name in names if getattr(given, name) != getattr(base, name)
    }
